"""From a picture to the input of a network: resize, crop, normalise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_caption.errors import EncoderError

LARGEST = 4096  # maximum side in pixels of a resized picture
LONGEST = 16  # maximum aspect ratio; longer pictures are cropped first, which bounds the memory of the resized one
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters by torchvision's names."""


def are_sizes(resize: object, crop: object) -> bool:
    """Whether a recipe may have these lengths in pixels."""
    return type(resize) is int and type(crop) is int and 1 <= crop <= resize <= LARGEST


@dataclass(frozen=True)
class Transform:
    """Preprocessing: resize the shorter side to `resize` pixels, crop the centre of `crop` x `crop`, scale 0..255 to
    0..1, subtract `mean`, divide by `std`. The values are those of torchvision's transforms, bit for
    bit, up to an aspect ratio of 16; the centre of a longer picture is cropped first.

    Attributes:
        antialias: as torchvision records it; Pillow always smooths what it reduces.
        channels: the order of mean, std and the network's input, "RGB" or "BGR".
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    antialias: bool = True
    channels: str = "RGB"

    def check(self) -> None:
        """Raise EncoderError for the first invalid value."""
        if not are_sizes(self.resize, self.crop):
            raise EncoderError(f"resize {self.resize!r} and crop {self.crop!r}; the maximum is {LARGEST} pixels")
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if len(values) != 3 or not all(type(v) in (int, float) and abs(v) < 1e6 for v in values):
                raise EncoderError(f"{name} is {values!r}, not three numbers below a million")
        if min(self.std) <= 0 or self.channels not in ("RGB", "BGR") or self.interpolation not in INTERPOLATIONS:
            raise EncoderError(f"std {self.std}, channels {self.channels!r}, interpolation {self.interpolation!r}")

    def __call__(self, picture: Image.Image) -> Tensor:
        """A Pillow picture in RGB as (3, crop, crop) float32."""
        picture = _shortened(picture)
        short = min(picture.size)
        width, height = (int(self.resize * side / short) for side in picture.size)
        picture = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        left, top = (round((side - self.crop) / 2) for side in (width, height))
        cropped = picture.crop((left, top, left + self.crop, top + self.crop))
        with torch.device("cpu"):
            pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).contiguous().float() / 255
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        if self.channels == "BGR":
            pixels = pixels.flip(0)
        return pixels.sub_(mean).div_(std)


IMAGENET = Transform(256, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Caffe's VGG-16: blue, green, red from 0 to 255, minus their means over ImageNet.
CAFFE = Transform(256, 224, tuple(m / 255 for m in (103.939, 116.779, 123.68)), (1 / 255,) * 3, channels="BGR")


def _shortened(picture: Image.Image) -> Image.Image:
    """The centre of a very long picture; it contains the transform's crop."""
    width, height = picture.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return picture.crop((left, top, left + min(width, most), top + min(height, most)))
