"""Fixtures of the assignment's tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torch_caption.cs231n import load_coco_data


@pytest.fixture(params=["rnn", "lstm"])
def cell_type(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _numpy_seed() -> None:
    np.random.seed(231)  # noqa: NPY002  (what the notebooks do)


@pytest.fixture(scope="session")
def flickr(shared_data) -> dict[str, Any]:
    """50 captions of 50 different images, with the whole vocabulary."""
    data = load_coco_data(shared_data / "flickr8k_cs231n")
    _, rows = np.unique(data["train_image_idxs"], return_index=True)
    rows = rows[:: len(rows) // 50][:50]
    small = {**data, "train_captions": data["train_captions"][rows], "train_image_idxs": data["train_image_idxs"][rows]}
    assert len(set(small["train_image_idxs"].tolist())) == 50
    return small
