"""Captions and features: where they come from, how they are read and checked."""
