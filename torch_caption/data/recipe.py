"""The recipe of features: how they were computed, for a checkpoint.

A recipe has the entries of the directory's manifest about the computation of the features, and two more: `features`,
the kind of feature files that a model is trained on, and `projection`, the arrays of their PCA as tensors. With it, and
the weights of the encoder, the features of a new picture can be computed. It does not contain the folders of the
photographs or the files of annotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from torch_caption.data import manifest as manifests
from torch_caption.data.projection import Projection
from torch_caption.errors import DataError
from torch_caption.io.files import at_home
from torch_caption.io.text import shown

KEPT = (
    *("data", "recipe", "encoder", "layers", "weights", "transform", "projections", "recovered"),
    *("vector_dim", "feature_dim", "grid", "grid_shape", "grid_dtype", "versions"),
)
"""The entries of the manifest in a recipe; others may contain folders of the machine."""
PROJECTED = {"vgg16_fc7_pca": "vector", "grid": "grid"}  # kinds of feature files, and their projections


def record(directory: Path, manifest: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The recipe of one of the directory's feature files.

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
            f"{directory / 'manifest.json'}: projections names {shown(name)}, not a file of the folder; write it again"
        )
    if isinstance(name, str):
        manifests.check(directory, manifest, [directory / name])
        projection = Projection.load(directory / name)
        recipe["projection"] = {"mean": projection.mean, "components": projection.components}
    return recipe


def shared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the folder of the weights, for publishing."""
    made, weights = {k: v for k, v in recipe.items() if k in (*KEPT, "features", "projection")}, recipe.get("weights")
    if isinstance(weights, Mapping) and isinstance(weights.get("path"), str):
        made["weights"] = {**weights, "path": weights.get("name")}
    return made


def check_width(recipe: Mapping[str, Any], width: int, directory: Path) -> None:
    """Raise DataError unless features of this width fit the recipe's projection."""
    projection = recipe.get("projection")
    if projection is not None and projection["components"].shape[1] != width:
        raise DataError(
            f"{directory / 'manifest.json'}: its projection of {recipe['features']} gives "
            f"{projection['components'].shape[1]} numbers, but the features have {width}; "
            "use the projection of these features"
        )
