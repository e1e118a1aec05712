"""Resize, crop and normalise."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests.helpers.resnet_weights import picture
from torch_caption.encoders.transform import CAFFE, IMAGENET


def test_caffes_transform_is_blue_green_red_minus_the_mean():
    x = CAFFE(picture())
    rgb = IMAGENET(picture()) * torch.tensor(IMAGENET.std).view(3, 1, 1) + torch.tensor(IMAGENET.mean).view(3, 1, 1)
    bgr = 255 * rgb.flip(0) - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    torch.testing.assert_close(x, bgr, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 65_535), (40, 4_000)])
def test_an_extreme_aspect_ratio_is_cropped_before_resizing(size, monkeypatch):
    resized = []
    resize = Image.Image.resize

    def watch(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        resized.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watch)
    assert IMAGENET(Image.new("RGB", size, (9, 9, 9))).shape == (3, 224, 224)
    assert [max(size) for size in resized] == [256 * 16]
