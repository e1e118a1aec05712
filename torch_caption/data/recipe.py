"""How the features of a data directory were made, kept with a model, and done to a new picture.

A recipe is what the directory's manifest says of the features' making, and two entries more: `features`, which of its
feature files a model learns from, and `projection`, the arrays of their PCA as tensors. It is plain enough for a
checkpoint, and needs nothing else but the encoder's weights. Where the photographs were, and of which people wrote
what, is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_caption.data import _written, features, scenes
from torch_caption.data._errors import DataError
from torch_caption.data._pca import Projection
from torch_caption.data.features import BACKBONES, Encoder
from torch_caption.ending import one_line
from torch_caption.files import at_home
from torch_caption.texts import shown

SCENES = "torch_caption.data.scenes.features"
KEPT = (
    *("data", "recipe", "encoder", "layers", "weights", "transform", "projections", "recovered"),
    *("vector_dim", "feature_dim", "grid", "grid_shape", "grid_dtype", "versions"),
)
"""Of the manifest's entries; the others may say more of a machine than whoever gets the model has to know."""
PROJECTED = {"vgg16_fc7_pca": "vector", "grid": "grid"}  # feature files, and whose projection they have


class Maker(Protocol):
    """Makes features of pictures in two steps, so that of many pictures only the small outcome of the first is kept."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """An upright RGB picture, as the second step takes it."""

    def make(self, prepared: Sequence[Tensor]) -> Tensor:
        """The features of prepared pictures, (N, D), or grids (N, F, a, a), float32."""


def record(directory: Path, manifest: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The recipe of one of the directory's files of features; the manifest alone where that does not say enough.

    Args:
        file: such as `train2014_vgg16_fc7_pca.h5`.

    Raises:
        DataError: the manifest names a projection whose file is missing or damaged.
    """
    kind = file.stem.partition("2014_")[2]
    recipe = {name: manifest[name] for name in KEPT if name in manifest} | {"features": kind}
    weights = recipe.get("weights")
    if isinstance(weights, Mapping) and isinstance(weights.get("path"), str):
        recipe["weights"] = {**weights, "path": at_home(weights["path"])}
    names = manifest.get("projections")
    name = names.get(PROJECTED.get(kind)) if isinstance(names, Mapping) else None
    if name is not None and (not isinstance(name, str) or not name or PurePath(name).name != name or "\\" in name):
        raise DataError(
            f"{directory / 'manifest.json'}: projections names {shown(name)}, no file of the folder; write it again"
        )
    if isinstance(name, str):
        _written.check(directory, manifest, [directory / name])
        projection = Projection.load(directory / name)
        recipe["projection"] = {"mean": projection.mean, "components": projection.components}
    return recipe


def check_width(recipe: Mapping[str, Any], width: int, directory: Path) -> None:
    """Raise DataError unless the features, `width` numbers wide, may have come out of the recipe's projection."""
    projection = recipe.get("projection")
    if projection is not None and projection["components"].shape[1] != width:
        raise DataError(
            f"{directory / 'manifest.json'}: its projection of {recipe['features']} gives "
            f"{projection['components'].shape[1]} numbers, but the features have {width}; "
            "bring the projection that made them"
        )


def is_one(recipe: Mapping[str, Any]) -> bool:
    """Whether it says how features were made."""
    encoder, kind = recipe.get("encoder"), recipe.get("features")
    if not isinstance(encoder, str) or not isinstance(kind, str | None):
        return False
    projected = kind != "vgg16_fc7_pca" or "projection" in recipe
    return encoder == SCENES or (encoder in BACKBONES and kind in ("vgg16_fc7", *PROJECTED) and projected)


def maker(
    recipe: Mapping[str, Any],
    *,
    weights: Path | None = None,
    near: Sequence[Path] = (),
    device: str | torch.device = "cpu",
) -> Maker:
    """What makes the recipe's features of new pictures.

    Args:
        weights: the encoder's weights, where they are not found by what the recipe says.
        near: folders to look for them.

    Raises:
        ValueError: it is no recipe, or one of another version, or the weights are not to be had.
    """
    if not is_one(recipe):
        raise DataError("not a recipe of features")
    if recipe["encoder"] == SCENES:
        if recipe.get("recipe") != scenes.RECIPE:
            raise DataError(f"features of scenes by recipe {recipe.get('recipe')}; this is recipe {scenes.RECIPE}")
        return _Scenes(recipe.get("features") == "grid")
    encoder = features.from_recipe(recipe, weights=weights, near=near, device=device)
    grid = recipe["features"] == "grid"
    half = grid and recipe.get("grid_dtype") == "float16"
    return _Photographs(encoder, grid, _projection(recipe.get("projection")), half)


def seen(recipe: Mapping[str, Any], picture: Image.Image) -> Image.Image:
    """The part of a picture that the features are of, and that a grid lies over: all of a scene, the middle square
    that its transform keeps of a photograph; all where the recipe does not say.

    Raises:
        DataError: the transform's lengths are no counts of pixels.
    """
    transform = recipe.get("transform")
    if not isinstance(transform, Mapping) or not {"resize", "crop"} <= transform.keys():
        return picture
    sizes = crop, resize = transform["crop"], transform["resize"]
    if any(type(size) is not int for size in sizes) or not 1 <= crop <= resize <= features.LARGEST:
        raise DataError(f"the recipe's transform has resize {shown(resize)} and crop {shown(crop)}; make it again")
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
        return made.half().float() if self._half else made  # as it was stored
