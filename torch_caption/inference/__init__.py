"""Captions of a split's images and of new photographs."""
