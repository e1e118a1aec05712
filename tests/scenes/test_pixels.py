"""Features and grids of scenes, from pixels."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.helpers.small_scenes import sketch
from torch_caption.data.dataset import open_data
from torch_caption.scenes import dataset as scenes
from torch_caption.scenes.dataset import Group, features, grid
from torch_caption.scenes.draw import COLOURS, PALETTE, SHAPES, SIDE


@pytest.mark.parametrize("kind", ["vgg16_fc7", "grid"])
def test_stored_features_are_those_of_the_pictures(directory, kind):
    data = open_data(directory, grids=kind == "grid")
    assert data.manifest["grid"]["feature_dim"] == scenes.POSITION_DIM
    assert data["train"].grid == ((scenes.GRID, scenes.GRID) if kind == "grid" else ())
    make, dtype = {"vgg16_fc7": (features, np.float32), "grid": (grid, np.float16)}[kind]
    for name, split in data.splits.items():
        with h5py.File(directory / f"{name}2014_{kind}.h5") as file:
            stored = file["features"][:]
        assert stored.dtype == dtype
        for image, row in enumerate(stored):
            with Image.open(split.image_path(image)) as picture:
                np.testing.assert_array_equal(make(np.asarray(picture)).astype(dtype), row)


def test_features_change_with_the_picture(placed):
    scene = placed[0]
    before = features(sketch(scene))
    (x, y, radius, angle), *others = scene.first.places
    changes = {
        "moved": replace(scene.first, places=((x + 6, y - 5, radius, angle), *others)),
        "coloured": replace(
            scene.first, colour=next(c for c in COLOURS if c not in (scene.first.colour, scene.second.colour))
        ),
        "shaped": replace(scene.first, shape=SHAPES[SHAPES.index(scene.first.shape) - 1]),
        "dropped": replace(scene.first, places=tuple(others)),
    }
    for change, group in changes.items():
        after = features(sketch(replace(scene, first=group)))
        assert np.abs(after - before).max() > 0.1, change
    assert np.array_equal(before, features(sketch(scene)))


def test_features_identify_colour_and_shape(placed):
    """In each of the two layers the similarity to its own colour and shape is greatest."""
    rows = [features(sketch(scene, seed)) for seed, scene in enumerate(placed[:150])]
    half = scenes.FEATURE_DIM - 74
    right = []
    for row, scene in zip(rows, placed, strict=False):
        for layer, group in zip(row[:half].reshape(2, -1), scene.groups, strict=True):
            right += [COLOURS[layer[:8].argmax()] == group.colour, SHAPES[layer[-8:].argmax()] == group.shape]
    assert np.mean(right) > 0.98


def test_any_picture_has_finite_features():
    rng = np.random.default_rng(0)
    pictures = [np.zeros((1, 1, 3)), rng.integers(0, 256, (50, 200, 3)), rng.integers(0, 256, (300, 7, 3))]
    for picture in (*pictures, *(np.full((20, 20, 3), ink) for ink in PALETTE.values())):
        for found in (features(picture.astype(np.uint8)), grid(picture.astype(np.uint8))):
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert np.abs(found).max() < 20


@pytest.mark.parametrize("make", [features, grid])
@pytest.mark.parametrize("picture", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)])
def test_other_arrays_are_refused(make, picture):
    with pytest.raises(ValueError, match="uint8, not"):
        make(picture)


# Grids


def of_group(positions: np.ndarray, group: Group) -> np.ndarray:
    """The features at the position with the most ink of the colour of a group."""
    ink = positions[COLOURS.index(group.colour)]
    return positions[:, *np.unravel_index(ink.argmax(), ink.shape)]


def test_positions_identify_count_and_shape(placed):
    counts, shapes = [], []
    for seed, scene in enumerate(placed[:100]):
        positions = grid(sketch(scene, seed))
        for group in scene.groups:
            found = of_group(positions, group)
            counts.append(found[8:12].argmax() + 1 == group.count)
            similarity = found[12:-10].reshape(len(SHAPES), -1).sum(1)
            shapes.append(SHAPES[similarity.argmax()] == group.shape)
    assert np.mean(counts) > 0.98
    assert np.mean(shapes) > 0.75  # chance is 0.125


def test_positions_depend_on_what_is_near_them(placed):
    """Without a shape the positions near it change, and elsewhere the count alone."""
    scene = placed[0]
    (x, y, radius, _), *others = scene.first.places
    changed = grid(sketch(scene)) - grid(sketch(replace(scene, first=replace(scene.first, places=tuple(others)))))
    changed[8:12] = 0
    rows, columns = np.nonzero(np.abs(changed).max(0) > 0.05)
    reach = radius + 1.5 * SIDE / scenes.GRID + 4
    assert len(rows) >= 4
    for row, column in zip(rows, columns, strict=True):
        centre = (np.array([column, row]) + 0.5) * SIDE / scenes.GRID
        assert np.abs(centre - (x, y)).max() < reach
