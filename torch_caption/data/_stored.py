"""Features stored in HDF5: found, measured, and read whole or in slices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from torch_caption.data import _checks
from torch_caption.data._checks import DataError


class FeatureFile:
    """Rows of an HDF5 file's `features`, read when asked for.

    The file is opened at the first read in each process: a handle is never pickled, nor used across a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, h5py.Dataset] | None = None  # the process's id, and its dataset

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows (B,) in any order, repeated or not, as (B, D) float32: one read, sorted and without repetition.

        Raises:
            DataError: the file has been moved or damaged since it was checked.
        """
        unique, place = torch.unique(rows, return_inverse=True)
        try:
            values = _checks.read_rows(self._dataset(), unique.numpy())
        except (OSError, RuntimeError, KeyError) as error:
            raise DataError(f"{self.path}: cannot be read any more ({_checks.one_line(error)})") from None
        return torch.from_numpy(values).index_select(0, place)

    def _dataset(self) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), h5py.File(self.path, "r")["features"]
        return self._opened[1]


def find(directory: Path, splits: Sequence[str], pca: bool | None) -> dict[str, Path]:
    """The file of each split's features, all of them projected or all of them full.

    Args:
        pca: True takes `*_pca.h5`, False the full features, None the first of the two that every split has.

    Raises:
        DataError: a split lacks its file.
    """
    kinds = {None: ("_pca", ""), True: ("_pca",), False: ("",)}[pca]
    lacking = []
    for kind in kinds:
        paths = {name: directory / f"{name}2014_vgg16_fc7{kind}.h5" for name in splits}
        missing = [path for path in paths.values() if not path.is_file()]
        if not missing:
            return paths
        lacking.append(missing)
    paths_text = " or ".join(str(missing[0]) for missing in lacking)
    raise DataError(f"{paths_text}: no such file; each of the splits {', '.join(splits)} takes its features")


def shapes(paths: dict[str, Path]) -> dict[str, tuple[int, int]]:
    """The shape (images, D) of each split's features.

    Raises:
        DataError: a file or its dataset `features` is wrong, or D is not the same for every split.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, path in paths.items():
        with _checks.opened(path) as file:
            found[name] = _checks.dataset(file, "features", 2, "f").shape
        first = next(iter(paths))
        if found[name][1] != found[first][1]:
            raise DataError(
                f"{path}: features has {found[name][1]} columns, but {paths[first].name} has {found[first][1]}; "
                "make the features of every split with the same encoder and projection"
            )
    return found


def load(path: Path, shape: tuple[int, int], in_memory: bool) -> Tensor | FeatureFile:
    """The features of one file, every one of them checked to be finite: in memory (images, D), or to be read in slices.

    Raises:
        DataError: a feature is not finite, or they do not fit in memory.
    """
    try:
        out = torch.empty(shape, dtype=torch.float32) if in_memory else None
    except RuntimeError:
        raise DataError(f"{path}: features {shape} do not fit in memory; read them in slices, in_memory no") from None
    with _checks.opened(path) as file:
        _checks.read_features(file["features"], f"{path}: features", None if out is None else out.numpy())
    return FeatureFile(path.resolve()) if out is None else out
