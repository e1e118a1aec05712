"""Captions and features: files, readers and checks."""
