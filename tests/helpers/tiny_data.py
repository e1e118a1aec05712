"""A tiny data directory in cs231n's layout: twelve images, distinguished by their features, with a caption or two each.

Grids of features have three rows and two columns, and what tells an image stands at one place of them.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from torch_caption.data.vocabulary import Vocabulary

COLOURS, SHAPES = ("red", "green", "blue", "grey"), ("circle", "square", "star")
D, T = 8, 7


def write_tiny(
    directory: Path, *, wordings: int = 2, pictures: bool = False, width: int = D, grids: bool = False
) -> Path:
    """Write the splits train, val and test: the same images and captions, features with a little noise of their own."""
    directory.mkdir(parents=True, exist_ok=True)
    named = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    ways = [["a", None, None], ["one", None, None, "is", "here"]][:wordings]
    captions = [
        [colour if w is None and i == 1 else shape if w is None else w for i, w in enumerate(way)]
        for colour, shape in named
        for way in ways
    ]
    vocabulary = Vocabulary.build(captions)
    vocabulary.save(directory / "coco2014_vocab.json")
    rows = np.zeros((len(captions), T), dtype=np.int32)
    for row, tokens in zip(rows, captions, strict=True):
        ids = vocabulary.encode(tokens)
        row[: len(ids)] = ids
    centres = np.random.default_rng(0).standard_normal((len(named), width))
    with h5py.File(directory / "coco2014_captions.h5", "w") as file:
        for seed, split in enumerate(("train", "val", "test")):
            file[f"{split}_captions"] = rows
            file[f"{split}_image_idxs"] = np.repeat(np.arange(len(named), dtype=np.int32), wordings)
            noise = np.random.default_rng(seed + 1).standard_normal(centres.shape)
            with h5py.File(directory / f"{split}2014_vgg16_fc7.h5", "w") as features:
                features["features"] = (centres + 0.05 * noise).astype(np.float32)
            if grids:
                _write_grid(directory / f"{split}2014_grid.h5", centres, np.random.default_rng(seed + 4))
    if pictures:
        _write_pictures(directory, named)
    return directory


def _write_grid(path: Path, centres: np.ndarray, rng: np.random.Generator) -> None:
    images, width = centres.shape
    places = 0.05 * rng.standard_normal((images, width, 6))
    places[np.arange(images), :, rng.integers(0, 6, images)] += centres
    with h5py.File(path, "w") as file:
        file["features"] = places.reshape(images, width, 3, 2).astype(np.float16)


def _write_pictures(directory: Path, named: list[tuple[str, str]]) -> None:
    from PIL import Image

    (directory / "images").mkdir()
    names = [f"{colour}_{shape}.png" for colour, shape in named]
    for place, name in enumerate(names):
        Image.new("RGB", (16, 16), (20 * place, 90, 200)).save(directory / "images" / name)
    for split in ("train", "val", "test"):
        (directory / f"{split}2014_images.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
