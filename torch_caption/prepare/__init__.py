"""Photographs and their captions into a data directory."""
