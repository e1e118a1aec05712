"""Fixtures of the captioner's tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.helpers.small_captioner import make, pictures, seeded
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS


@pytest.fixture(params=CELLS)
def cell_type(request) -> str:
    return request.param


@pytest.fixture(params=[1, 2], ids=["1 layer", "2 layers"])
def model(request, cell_type) -> CaptioningRNN:
    return make(cell_type, num_layers=request.param)


@pytest.fixture
def features(request) -> Tensor:
    cell_type = request.getfixturevalue("cell_type") if "cell_type" in request.fixturenames else "rnn"
    return pictures(cell_type, seeded(1))
