"""The one error of unsound data."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message names file, dataset, row and value, and says what to do."""
