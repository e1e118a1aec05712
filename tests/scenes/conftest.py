"""Scenes: composed ones, placed ones, their captions, and a small folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.small_scenes import SMALL
from torch_caption.scenes import dataset as scenes
from torch_caption.scenes.dataset import Scene, ensure, make_captions
from torch_caption.scenes.draw import arrange


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("cache"), sizes=SMALL, progress=False)


@pytest.fixture(scope="session")
def composed() -> list[Scene]:
    """Hundreds of scenes, without positions."""
    _, splits = scenes._compose(3, {"train": 300, "val": 50, "test": 100, "novel": 50})
    return [scene for split in splits.values() for scene in split]


@pytest.fixture(scope="session")
def placed(composed: list[Scene]) -> list[Scene]:
    rng = np.random.default_rng(0)
    return [arrange(scene, rng) for scene in composed]


@pytest.fixture(scope="session")
def captions(composed: list[Scene]) -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(0)
    return [(scene, caption) for scene in composed for caption in make_captions(scene, rng)]
