"""Photographs, and an encoder of a few weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import photo_folder, small_encoder
from tests.helpers.photo_folder import Photos
from torch_caption.encoders import registry


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return photo_folder.write(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def _small_encoder() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKBONES, "resnet18", small_encoder.Small())
        yield
