"""The part of a picture that features are of. What a recipe makes of new pictures: tests/test_photographs.py."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from torch_caption.data import recipe as recipes
from torch_caption.data.features import IMAGENET, Transform


@pytest.mark.parametrize("size", [(90, 60), (61, 90), (64, 64), (400, 300)])
@pytest.mark.parametrize("transform", [IMAGENET, Transform(40, 40, (0.0,) * 3, (1.0,) * 3)])
def test_what_is_seen_is_what_the_transform_keeps(size: tuple[int, int], transform: Transform) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, x], -1).round().astype(np.uint8))
    kept = transform(picture).permute(1, 2, 0).numpy() * transform.std + transform.mean
    seen = recipes.seen({"transform": {"resize": transform.resize, "crop": transform.crop}}, picture)
    assert abs(seen.size[0] - seen.size[1]) <= 1
    again = np.asarray(seen.resize((transform.crop, transform.crop), Image.Resampling.BILINEAR)) / 255
    assert np.abs(again - kept).max() < 0.03  # a pixel of the smallest picture is 0.016


def test_all_of_a_picture_is_seen_where_nobody_says_otherwise() -> None:
    picture = Image.new("RGB", (9, 5))
    for recipe in ({}, {"encoder": recipes.SCENES, "transform": "none"}, {"transform": {"resize": 3}}):
        assert recipes.seen(recipe, picture) is picture
