"""From a model that scores the next word to whole captions."""
