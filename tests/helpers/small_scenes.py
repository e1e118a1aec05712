"""Scenes for tests: the sizes of small folders, one scene, names of groups and pictures."""

from __future__ import annotations

import numpy as np

from torch_caption.scenes.dataset import Group, Scene
from torch_caption.scenes.draw import draw
from torch_caption.scenes.phrases import NUMBERS, PLURAL

SMALL = {"train": 40, "val": 8, "test": 12, "novel": 12}
TINY = dict.fromkeys(SMALL, 2)
TWO = Scene(Group("circle", "red", "small", 2), Group("square", "blue", "large", 1), "above")


def name(group: Group) -> str:
    """Two red circles."""
    return f"{NUMBERS[group.count]} {group.colour} {group.shape if group.count == 1 else PLURAL[group.shape]}"


def sketch(scene: Scene, seed: int = 0) -> np.ndarray:
    """Its picture."""
    return draw(scene, np.random.default_rng(seed))
