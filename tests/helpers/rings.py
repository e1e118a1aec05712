"""Cases of one test in two rings."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def ringed(values: Iterable[Any], inner: Collection[Any]) -> list[Any]:
    """Parameters of a test: those of `inner` in the inner ring, the others marked exhaustive."""
    return [pytest.param(value, marks=() if value in inner else pytest.mark.exhaustive) for value in values]
