"""A run on disk, without code."""
