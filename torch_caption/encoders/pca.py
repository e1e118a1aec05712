"""Principal components: fitted on streamed rows, or recovered from full and projected features.

The full covariance is accumulated, D x D in float64, and its eigenvectors are computed once. This is exact, and needs
128 MiB at D = 4,096 for any number of rows. (scikit-learn's IncrementalPCA keeps only K components from batch to batch,
which is approximate, and is another dependency.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from torch_caption.data import checks, hdf5
from torch_caption.data.hdf5 import FLOATS
from torch_caption.data.projection import Projection
from torch_caption.errors import ConfigError, DataError
from torch_caption.io.exits import is_interactive

CHUNK = 8192  # rows in float64 at a time


class Moments:
    """Mean and scatter of streamed rows.

    Attributes:
        count: the number of rows.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum over the rows of (x - mean) (x - mean)^T.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device="cpu")
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def update(self, rows: Tensor) -> None:
        """Add rows (n, D); with their own mean, which avoids cancellation (Chan et al., 1983)."""
        for piece in rows.split(CHUNK):
            x = piece.double()
            mean = x.mean(0)
            x = x - mean
            gap = mean - self.mean
            total = self.count + len(x)
            self.scatter.addmm_(x.T, x).addr_(gap, gap, alpha=self.count * len(x) / total)
            self.mean += gap * (len(x) / total)
            self.count = total


def check_size(size: float, flag: str) -> None:
    """Raise ConfigError unless it is a number of components, or a fraction of the variance."""
    if not (0 < size < 1 or (size >= 1 and float(size).is_integer())):
        raise ConfigError(f"{flag} {size:g}: give a number of components, or a fraction of the variance below 1")


def check_count(size: float, rows: int, width: int, flag: str) -> None:
    """Raise DataError if this number of rows of this width has fewer components."""
    most = max(min(rows - 1, width), 0)
    if size > most:
        raise DataError(f"{flag} {size:g}: {rows:,} rows of {width:,} numbers have at most {most:,} components")


def fit(moments: Moments, size: float, flag: str) -> Projection:
    """The principal components in descending order of variance; the largest entry of each by magnitude is positive.

    Args:
        size: their number; below 1, the fraction of the variance that they keep.
        flag: begins the message.

    Raises:
        DataError: fewer rows or dimensions than components.
    """
    check_count(size, moments.count, len(moments.mean), flag)
    values, vectors = torch.linalg.eigh(moments.scatter)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    count = int(size) if size >= 1 else min(int((shares < size).sum()) + 1, moments.count - 1, len(moments.mean))
    components = vectors[:, :count]
    signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
    return Projection(moments.mean.float(), (components * signs).float().contiguous(), float(shares[count - 1]))


@dataclass(frozen=True)
class Recovered:
    """A projection recovered from its inputs and outputs.

    Attributes:
        projection: the basis.
        rows: the number of rows that it was recovered from.
        errors: of each split the maximum difference from the file, over the file's standard deviation.
    """

    projection: Projection
    rows: int
    errors: dict[str, float]


def recover(full: dict[str, Path], projected: dict[str, Path]) -> Recovered:
    """The mean and components from the full to the projected features of train, by least squares.

    y = (x - m) C is affine in x: with both sides centred, C = Sxx^+ Sxy from the scatters; the means then give m.

    Args:
        full, projected: of each split the file of full features and the file of projected ones, both checked.

    Raises:
        DataError: the files do not match, have too few rows, or no projection explains them.
    """
    shapes = {name: (_shape(full[name]), _shape(projected[name])) for name in full}
    for name, ((rows, _), (other, _)) in shapes.items():
        if rows != other:
            raise DataError(f"{projected[name]}: features has {other} rows, but {full[name].name} has {rows}")
    (rows, width), (_, size) = shapes["train"]
    if rows <= width:
        raise DataError(f"{full['train']}: {rows:,} rows are too few for a basis of {width:,} numbers")
    moments = Moments(width + size)  # of x and y concatenated
    for x, y in _pairs(full["train"], projected["train"], "least squares"):
        moments.update(torch.cat([x, y], 1))
    scatter = moments.scatter
    values, vectors = torch.linalg.eigh(scatter[:width, :width])
    kept = values > values[-1] * width * torch.finfo(torch.float64).eps  # constant numbers, such as dead units
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    components = inverse @ scatter[:width, width:]
    offset = torch.linalg.pinv(components.T) @ moments.mean[width:]
    projection = Projection((moments.mean[:width] - offset).float(), components.float().contiguous())
    scale = (scatter[width:, width:].trace() / (size * moments.count)).sqrt().item()
    errors = {name: _error(projection, full[name], projected[name]) / scale for name in full}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] < 1e-2:
        raise DataError(
            f"{projected[worst]}: no projection of {full[worst].name} (maximum error {errors[worst]:.2g} of its "
            "standard deviation); the two files do not match"
        )
    return Recovered(projection, rows, errors)


def _error(projection: Projection, full: Path, projected: Path) -> float:
    return max(float((projection(x) - y).abs().max()) for x, y in _pairs(full, projected, "check"))


def _shape(path: Path) -> tuple[int, int]:
    with hdf5.opened(path) as file:
        return hdf5.dataset(file, "features", (2,), FLOATS).shape


def _pairs(full: Path, projected: Path, label: str) -> Iterator[tuple[Tensor, Tensor]]:
    with hdf5.opened(full) as left, hdf5.opened(projected) as right:
        xs, ys = (hdf5.dataset(file, "features", (2,), FLOATS) for file in (left, right))
        bar = tqdm(range(0, len(xs), CHUNK), desc=f"{label}, {full.name}", unit="block", disable=not is_interactive())
        for first in bar:
            piece = slice(first, first + CHUNK)
            yield torch.from_numpy(checks.read_rows(xs, piece)), torch.from_numpy(checks.read_rows(ys, piece))


def positions(grids: Tensor) -> Tensor:
    """Grids (n, F, a, a) as rows (n a a, F)."""
    return grids.movedim(1, -1).reshape(-1, grids.shape[1])
