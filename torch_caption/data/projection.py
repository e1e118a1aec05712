"""A linear projection of features onto principal components, and its file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_caption.errors import DataError
from torch_caption.io.exits import one_line

PROJECTION_LIMIT = 2**30
"""Maximum size of the arrays of a projection in bytes (1 GiB)."""

_REMEDY = "copy it again, or compute it again"
# What NumPy and zipfile raise for a damaged file, depending on the damage.
_NPZ_ERRORS = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, MemoryError, OverflowError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


@dataclass(frozen=True)
class Projection:
    """x -> (x - mean) @ components.

    Attributes:
        mean: (D,) float32.
        components: (D, K) float32.
        share: the fraction of the variance that it keeps, 0 to 1; NaN if unknown.
    """

    mean: Tensor
    components: Tensor
    share: float = float("nan")

    def __call__(self, features: Tensor) -> Tensor:
        """Vectors (N, D) to (N, K), or grids (N, D, a, a), position by position, to (N, K, a, a); float32."""
        mean = self.mean.view(-1, *[1] * (features.dim() - 2))
        x = features.float() - mean
        return torch.tensordot(x, self.components, ([1], [0])).movedim(-1, 1)

    def save(self, path: Path) -> None:
        """Write an NPZ file with `mean`, `components` and `share`."""
        with path.open("wb") as file:
            np.savez(file, mean=self.mean.numpy(), components=self.components.numpy(), share=np.float64(self.share))

    @classmethod
    def load(cls, path: Path) -> Projection:
        """Read the file of `save`; `share` may be missing.

        Raises:
            DataError: missing or invalid.
        """
        try:
            with _arrays(path) as content:
                mean, components = (_floats(content[name]) for name in ("mean", "components"))
                share = float(content["share"]) if "share" in content else float("nan")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; the manifest names it as the PCA of the features") from None
        except _NPZ_ERRORS as error:
            raise DataError(f"{path}: not an NPZ file of mean and components ({one_line(error)}); {_REMEDY}") from None
        finite = np.isfinite(mean).all() and np.isfinite(components).all()
        if mean.ndim != 1 or components.ndim != 2 or len(mean) != len(components) or not finite:
            shapes = f"{mean.shape} and {components.shape}, not finite (D,) and (D, K)"
            raise DataError(f"{path}: mean and components have the shapes {shapes}; {_REMEDY}")
        return cls(torch.from_numpy(mean), torch.from_numpy(components), share)


@contextmanager
def _arrays(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an NPZ file, after a check of their sizes."""
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > PROJECTION_LIMIT:
            raise DataError(f"its arrays take {size:,} bytes, more than the limit {PROJECTION_LIMIT:,}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as content:
            yield content


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise DataError(f"it contains {array.dtype}, not floating-point numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)
