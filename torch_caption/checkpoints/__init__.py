"""The file format of weights and training state, without code."""
