"""Features in HDF5 files: find them, get their shapes, read them completely or in slices."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from torch_caption.data import checks, hdf5
from torch_caption.data.hdf5 import FLOATS
from torch_caption.errors import DataError
from torch_caption.io.exits import one_line


class _Opened(NamedTuple):
    """The open features of one process: process id, dataset, file descriptor and size of the file in bytes.

    There is no descriptor on Windows, where libraries do not share descriptors.
    """

    process: int
    dataset: h5py.Dataset
    descriptor: int | None = None
    size: int = 0

    @classmethod
    def here(cls, dataset: h5py.Dataset) -> _Opened:
        if os.name != "posix":
            return cls(os.getpid(), dataset)
        descriptor = dataset.file.id.get_vfd_handle()
        return cls(os.getpid(), dataset, descriptor, os.fstat(descriptor).st_size)

    def is_truncated(self) -> bool:
        return self.descriptor is not None and os.fstat(self.descriptor).st_size < self.size


class FeatureFile:
    """Rows of an HDF5 file's `features`, read on demand.

    The file is opened at the first read in each process: a handle is never pickled or used across a fork.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path = path
        self.shape = shape
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows (B,) in any order, repeated or not, as float32: one sorted read without repetitions.

        They are (B, D), or (B, positions, D) of a grid.

        Raises:
            DataError: the file was moved, damaged or truncated since it was checked.
        """
        unique, index = torch.unique(rows, return_inverse=True)
        try:
            opened = self._current()
            values = checks.read_rows(opened.dataset, unique.numpy())
            if opened.is_truncated():  # HDF5 reads zeros past the end
                raise DataError(f"{self.path}: was truncated while it was read; restore that file")
        except DataError:
            raise
        except hdf5.HDF5_ERRORS as error:
            raise DataError(f"{self.path}: can no longer be read ({one_line(error)}); restore that file") from None
        if values.ndim > 2:
            values = np.ascontiguousarray(checks.by_position(values))
        return torch.from_numpy(values).index_select(0, index)

    def _current(self) -> _Opened:
        if self._opened is None or self._opened.process != os.getpid():
            self._opened = _Opened.here(self._open())
        return self._opened

    def _open(self) -> h5py.Dataset:
        """The dataset, checked again: the file may have been replaced."""
        with hdf5.examined(self.path):
            file = h5py.File(self.path, "r")
            try:
                return _as_measured(file, self.path, self.shape)
            except BaseException:
                file.close()
                raise


def _as_measured(file: h5py.File, path: Path, shape: Shape) -> h5py.Dataset:
    """The checked features of an open file, which must have the previous shape."""
    features = hdf5.dataset(file, "features", (len(shape),), FLOATS)
    if features.shape != shape:
        raise DataError(
            f"{path}: features has the shape {features.shape}, but had {shape} when checked; restore that file"
        )
    return features


def find(directory: Path, splits: Sequence[str], pca: bool | None, grids: bool) -> dict[str, Path]:
    """The file of each split's features, all of one kind.

    Args:
        pca: True selects `*_pca.h5`, False the full features, None the first of the two that every split has.
        grids: select `*_grid.h5` instead of vectors.

    Raises:
        DataError: a split lacks its file.
    """
    vectors = {None: ("vgg16_fc7_pca", "vgg16_fc7"), True: ("vgg16_fc7_pca",), False: ("vgg16_fc7",)}[pca]
    lacking = []
    for kind in ("grid",) if grids else vectors:
        paths = _paths(directory, splits, kind)
        missing = [path for path in paths.values() if not path.is_file()]
        if not missing:
            return paths
        lacking.append(missing)
    paths_text = " or ".join(str(missing[0]) for missing in lacking)
    what = "a grid of features for the cell attention" if grids else "its features"
    others = all(path.is_file() for path in _paths(directory, splits, "grid").values())
    hint = "; the existing grids are for the cell attention" if others and not grids else ""
    raise DataError(f"{paths_text}: no such file; each of the splits {', '.join(splits)} needs {what}{hint}")


def _paths(directory: Path, splits: Sequence[str], kind: str) -> dict[str, Path]:
    return {name: directory / f"{name}2014_{kind}.h5" for name in splits}


IN_SLICES = "read them in slices, in_memory no"
Shape = tuple[int, ...]
"""The shape of a split's features: (images, D), (images, D, L) or (images, D, a, a)."""


def measure(paths: dict[str, Path], grids: bool) -> dict[str, tuple[Shape, torch.dtype]]:
    """The shape of each split's features, and their dtype in memory: float16 if stored so, else float32.

    Raises:
        DataError: a file or its dataset `features` is invalid, or D or the number of positions differs between splits.
    """
    found: dict[str, tuple[Shape, torch.dtype]] = {}
    for name, path in paths.items():
        with hdf5.opened(path) as file:
            features = hdf5.dataset(file, "features", (3, 4) if grids else (2,), FLOATS)
            found[name] = features.shape, torch.float16 if features.dtype.itemsize == 2 else torch.float32
        first = next(iter(paths))
        (_, *ours), (_, *theirs) = found[name][0], found[first][0]
        if ours != theirs:
            raise DataError(
                f"{path}: features has {_columns(ours)}, but {paths[first].name} has {_columns(theirs)}; "
                "make the features of every split with the same encoder and projection"
            )
    return found


def _columns(shape: Sequence[int]) -> str:
    width, *positions = shape
    return f"{width} columns" + (f" at {' x '.join(map(str, positions))} positions" if positions else "")


def load(path: Path, shape: Shape, dtype: torch.dtype, in_memory: bool) -> Tensor | FeatureFile:
    """The features of one file, checked to be finite: in memory, or to be read in slices.

    In memory they are (images, D), or (images, positions, D) of a grid.

    Raises:
        DataError: a feature is not finite, or they do not fit in memory.
    """
    images, width, *positions = shape
    held = (images, math.prod(positions), width) if positions else (images, width)
    try:
        out = torch.empty(held, dtype=dtype, device="cpu") if in_memory else None
    except RuntimeError:
        raise DataError(f"{path}: features {shape} do not fit in memory; {IN_SLICES}") from None
    with hdf5.opened(path) as file:
        features = _as_measured(file, path, shape)
        checks.read_features(features, f"{path}: features", None if out is None else out.numpy())
    return FeatureFile(path.resolve(), shape) if out is None else out
