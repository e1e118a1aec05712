"""Fixtures of the assignment's tests."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(params=["rnn", "lstm"])
def cell_type(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _numpy_seed() -> None:
    np.random.seed(231)  # noqa: NPY002  (what the notebooks do)
