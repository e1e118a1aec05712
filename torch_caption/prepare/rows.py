"""Rows for an HDF5 file: appended to a plain file, truncated after an interruption, written to HDF5 at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np

from torch_caption.data.checks import BLOCK_BYTES
from torch_caption.errors import DataError


class RowFile:
    """Rows of one shape and dtype in a plain file, open within a `with`.

    Args:
        rows: the number of complete rows; the file is truncated after them.

    Attributes:
        count: the number of rows.

    Raises:
        DataError: the file has fewer rows than `rows`.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str, rows: int = 0) -> None:
        self.path = path
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.count = rows
        self._bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed at the end of a with
        if os.fstat(self._file.fileno()).st_size < rows * self._bytes:
            self._file.close()
            raise DataError(f"{path}: shorter than {rows} rows")
        self._file.truncate(rows * self._bytes)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: np.ndarray) -> None:
        """Add rows `(n, *shape)`, in the file's dtype."""
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.count += len(rows)

    def sync(self) -> None:
        """Flush the appended rows to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, in blocks `(n, *shape)` of about 64 MiB."""
        self._file.flush()
        step = max(1, BLOCK_BYTES // self._bytes)
        with self.path.open("rb") as file:
            for first in range(0, self.count, step):
                n = min(step, self.count - first)
                yield np.frombuffer(bytearray(file.read(n * self._bytes)), self.dtype).reshape(n, *self.shape)


def write_hdf5(rows: RowFile, path: Path, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the rows, each block changed to `(n, *shape)`, as the dataset `features` of an HDF5 file."""
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", (rows.count, *shape), rows.dtype)
        first = 0
        for block in rows.blocks():
            features[first : first + len(block)] = change(block)
            first += len(block)
