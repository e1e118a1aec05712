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
"""The most bytes that the arrays of a projection may take (1 GiB)."""

_REMEDY = "copy it there again, or make it again"
# What NumPy and zipfile raise of a damaged file, by the place of the damage.
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
        share: how much of the variance it keeps, 0 to 1; NaN where nobody counted.
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
        """Write an NPZ file of `mean`, `components` and `share`."""
        with path.open("wb") as file:
            np.savez(file, mean=self.mean.numpy(), components=self.components.numpy(), share=np.float64(self.share))

    @classmethod
    def load(cls, path: Path) -> Projection:
        """Read what `save` wrote; `share` may be missing.

        Raises:
            DataError: missing, or not such a file.
        """
        try:
            with _arrays(path) as content:
                mean, components = (_floats(content[name]) for name in ("mean", "components"))
                share = float(content["share"]) if "share" in content else float("nan")
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; the manifest beside it names it as the features' PCA") from None
        except _NPZ_ERRORS as error:
            raise DataError(f"{path}: not a file of mean and components ({one_line(error)}); {_REMEDY}") from None
        finite = np.isfinite(mean).all() and np.isfinite(components).all()
        if mean.ndim != 1 or components.ndim != 2 or len(mean) != len(components) or not finite:
            shapes = f"{mean.shape} and {components.shape}, not finite (D,) and (D, K)"
            raise DataError(f"{path}: mean and components have the shapes {shapes}; {_REMEDY}")
        return cls(torch.from_numpy(mean), torch.from_numpy(components), share)


@contextmanager
def _arrays(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an NPZ file, none of which takes more memory than it may."""
    with path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > PROJECTION_LIMIT:
            raise DataError(f"its arrays take {size:,} bytes, more than the {PROJECTION_LIMIT:,} that they may")
        file.seek(0)
        with np.load(file, allow_pickle=False) as content:
            yield content


def _floats(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise DataError(f"it holds {array.dtype}, not floating-point numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32)
