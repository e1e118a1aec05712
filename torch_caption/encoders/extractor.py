"""Features of new pictures by a recipe (`torch_caption.data.recipe`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_caption.data.projection import Projection
from torch_caption.data.recipe import PROJECTED
from torch_caption.encoders.encoder import Encoder, from_recipe
from torch_caption.encoders.registry import is_encoder
from torch_caption.encoders.transform import are_sizes
from torch_caption.errors import DataError
from torch_caption.io.exits import one_line
from torch_caption.io.text import shown
from torch_caption.scenes import dataset as scenes

SCENES = "torch_caption.data.scenes.features"
"""The name of the features of the built-in scenes in manifests and checkpoints; not a module."""


class FeatureExtractor(Protocol):
    """Computes features in two steps; for many pictures only the small result of the first is in memory."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """The input of the second step, from an upright RGB picture."""

    def make(self, prepared: Sequence[Tensor]) -> Tensor:
        """The features of prepared pictures, (N, D), or grids (N, F, a, a), float32."""


def is_one(recipe: Mapping[str, Any]) -> bool:
    """Whether it has a complete recipe of features."""
    encoder, kind = recipe.get("encoder"), recipe.get("features")
    if not isinstance(encoder, str) or not isinstance(kind, str | None):
        return False
    projected = kind != "vgg16_fc7_pca" or "projection" in recipe
    return encoder == SCENES or (is_encoder(encoder) and kind in ("vgg16_fc7", *PROJECTED) and projected)


def feature_extractor(
    recipe: Mapping[str, Any],
    *,
    weights: Path | None = None,
    near: Sequence[Path] = (),
    device: str | torch.device = "cpu",
) -> FeatureExtractor:
    """The feature extractor of a recipe, for new pictures.

    Args:
        weights: the encoder's weights, if they are not found by their entry in the recipe.
        near: folders to search for them.

    Raises:
        DataError, EncoderError: the recipe is invalid or of another version, or the weights are missing.
    """
    if not is_one(recipe):
        raise DataError("not a recipe of features")
    if recipe["encoder"] == SCENES:
        if recipe.get("recipe") != scenes.VERSION:
            raise DataError(f"features of scenes {recipe.get('recipe')}; this version has scenes {scenes.VERSION}")
        return _Scenes(recipe.get("features") == "grid")
    encoder = from_recipe(recipe, weights=weights, near=near, device=device)
    grid = recipe["features"] == "grid"
    half = grid and recipe.get("grid_dtype") == "float16"
    return _Photographs(encoder, grid, _projection(recipe.get("projection")), half)


def visible(recipe: Mapping[str, Any], picture: Image.Image) -> Image.Image:
    """The part of a picture that the features and a grid cover: all of a scene, the centre crop of a photograph; all if
    the recipe has no transform.

    Raises:
        DataError: the lengths of the transform are invalid.
    """
    transform = recipe.get("transform")
    if not isinstance(transform, Mapping) or not {"resize", "crop"} <= transform.keys():
        return picture
    crop, resize = transform["crop"], transform["resize"]
    if not are_sizes(resize, crop):
        raise DataError(f"the recipe's transform has resize {shown(resize)} and crop {shown(crop)}; prepare it again")
    side = min(picture.size) * crop / resize
    left, top = ((length - side) / 2 for length in picture.size)
    return picture.crop((round(left), round(top), round(left + side), round(top + side)))


def _projection(arrays: Any) -> Projection | None:
    if arrays is None:
        return None
    try:
        projection = Projection(arrays["mean"].float(), arrays["components"].float())
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a projection: {one_line(error)}") from None
    shapes = tuple(projection.mean.shape), tuple(projection.components.shape)
    if not (len(shapes[0]) == 1 and len(shapes[1]) == 2 and shapes[0][0] == shapes[1][0]):
        raise DataError(f"not a projection: a mean of shape {shapes[0]} with components of shape {shapes[1]}")
    return projection


class _Scenes:
    def __init__(self, grid: bool) -> None:
        self._grid = grid

    def prepare(self, picture: Image.Image) -> Tensor:
        pixels = np.asarray(picture)
        made = scenes.grid(pixels).astype(np.float16) if self._grid else scenes.features(pixels)
        return torch.from_numpy(made).float()

    def make(self, prepared: Sequence[Tensor]) -> Tensor:
        return torch.stack([*prepared])


class _Photographs:
    def __init__(self, encoder: Encoder, grid: bool, projection: Projection | None, half: bool) -> None:
        self._encoder = encoder
        self._grid = grid
        self._projection = projection
        self._half = half

    def prepare(self, picture: Image.Image) -> Tensor:
        return self._encoder.prepare(picture)

    def make(self, prepared: Sequence[Tensor]) -> Tensor:
        encoded = self._encoder.encode(torch.stack([*prepared]), grids=self._grid)
        made = encoded.vectors if encoded.grids is None else encoded.grids
        if self._projection is not None:
            width = len(self._projection.mean)
            if made.shape[1] != width:
                raise DataError(f"a projection of width {width}, but {self._encoder.name} makes {made.shape[1]}")
            made = self._projection(made)
        return made.half().float() if self._half else made  # as stored
