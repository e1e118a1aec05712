"""The built-in dataset: generated scenes, their captions, and the evaluation of captions."""
