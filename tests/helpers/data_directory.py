"""A small, sound data directory to read, and to damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

WORDS = ("<NULL>", "<START>", "<END>", "<UNK>", "a", "red", "dog", "runs", "ball", "on")
IMAGES = {"train": 7, "val": 4}
LENGTH = 6  # of a caption's row
WIDTH = 3  # of the features


def _captions(rows: int, generator: np.random.Generator) -> np.ndarray:
    captions = np.zeros((rows, LENGTH), np.int32)
    for caption, words in zip(captions, generator.integers(1, LENGTH - 1, rows), strict=True):
        caption[: words + 2] = [1, *generator.integers(3, len(WORDS), words), 2]
    return captions


@pytest.fixture
def coco_directory(tmp_path: Path) -> Callable[..., Path]:
    """`coco_directory()`: a directory in cs231n's layout, three captions an image.

    Args:
        images: the images of each split.
        kinds: the endings of the feature files.
        dtype: of the features.
        name: of the folder.
        grid: the places of grids, which are then written too.
    """

    def write(
        images: Mapping[str, int] = IMAGES,
        kinds: tuple[str, ...] = ("_pca",),
        dtype: str = "<f4",
        name: str = "data",
        grid: tuple[int, ...] = (),
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        generator = np.random.default_rng(0)
        vocabulary = {"idx_to_word": WORDS, "word_to_idx": {word: idx for idx, word in enumerate(WORDS)}}
        (directory / "coco2014_vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        with h5py.File(directory / "coco2014_captions.h5", "w") as file:
            for split, count in images.items():
                file[f"{split}_captions"] = _captions(3 * count, generator)
                file[f"{split}_image_idxs"] = generator.permutation(np.repeat(np.arange(count, dtype=np.int32), 3))
        for split, count in images.items():
            for kind in kinds:
                with h5py.File(directory / f"{split}2014_vgg16_fc7{kind}.h5", "w") as file:
                    file["features"] = generator.standard_normal((count, WIDTH)).astype(dtype)
            if grid:
                with h5py.File(directory / f"{split}2014_grid.h5", "w") as file:
                    file["features"] = generator.standard_normal((count, WIDTH, *grid)).astype(dtype)
        return directory

    return write


@pytest.fixture
def replace() -> Callable[[Path, str, object], None]:
    """`replace(path, name, value)`: another HDF5 dataset; None takes it away, a function is given the old one."""

    def write(path: Path, name: str, value: object) -> None:
        with h5py.File(path, "a") as file:
            if callable(value):
                value = value(file[name][()])
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value

    return write


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, by its path from the folder on."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
