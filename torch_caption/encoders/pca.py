"""Principal components: fitted on streamed rows, applied, kept in a file, and recovered where only their work is left.

The covariance is accumulated whole, D x D in float64, and its eigenvectors are taken once. That is exact, and takes
128 MiB at D = 4,096, however many rows there are. (scikit-learn's IncrementalPCA keeps K components from one batch to
the next and so forgets what did not fit; and it would be one library more.)
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
from torch_caption.io.exits import is_watched

CHUNK = 8192  # rows in float64 at a time


class Moments:
    """Mean and scatter of rows that come in pieces.

    Attributes:
        count: rows so far.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum over the rows of (x - mean) (x - mean)^T.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64, device="cpu")
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def update(self, rows: Tensor) -> None:
        """Take rows (n, D) in; with the piece's own mean, so that nothing large is subtracted (Chan et al., 1983)."""
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
    """Raise ConfigError unless it is a number of components, or a share of the variance below 1."""
    if not (0 < size < 1 or (size >= 1 and float(size).is_integer())):
        raise ConfigError(f"{flag} {size:g}: name a number of components, or a share of the variance between 0 and 1")


def check_count(size: float, rows: int, width: int, flag: str) -> None:
    """Raise DataError if more components are asked for than so many rows of that width have."""
    most = max(min(rows - 1, width), 0)
    if size > most:
        raise DataError(f"{flag} {size:g}: {rows:,} rows of {width:,} numbers have at most {most:,} components")


def fit(moments: Moments, size: float, flag: str) -> Projection:
    """The principal components, the greatest first; of each, the entry greatest in size is positive.

    Args:
        size: how many; below 1, as few as keep this share of the variance.
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
    """A projection found from what it did.

    Attributes:
        projection: the basis.
        rows: how many it was found from.
        errors: of each split the greatest difference from the file, over the file's standard deviation.
    """

    projection: Projection
    rows: int
    errors: dict[str, float]


def recover(full: dict[str, Path], projected: dict[str, Path]) -> Recovered:
    """The mean and components by which the full features of train became the projected ones, by least squares.

    y = (x - m) C is affine in x: with both sides centred, C = Sxx^+ Sxy from the scatters; the means then give m.

    Args:
        full, projected: of each split the file of full features, and that of the projected ones, both found sound.

    Raises:
        DataError: the files do not belong together, have too few rows, or no projection explains them.
    """
    shapes = {name: (_shape(full[name]), _shape(projected[name])) for name in full}
    for name, ((rows, _), (other, _)) in shapes.items():
        if rows != other:
            raise DataError(f"{projected[name]}: features has {other} rows, but {full[name].name} has {rows}")
    (rows, width), (_, size) = shapes["train"]
    if rows <= width:
        raise DataError(f"{full['train']}: {rows:,} rows do not determine a basis of {width:,} numbers; it takes more")
    moments = Moments(width + size)  # of x and y side by side
    for x, y in _pairs(full["train"], projected["train"], "least squares"):
        moments.update(torch.cat([x, y], 1))
    scatter = moments.scatter
    values, vectors = torch.linalg.eigh(scatter[:width, :width])
    kept = values > values[-1] * width * torch.finfo(torch.float64).eps  # numbers that never vary, such as dead units
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    components = inverse @ scatter[:width, width:]
    offset = torch.linalg.pinv(components.T) @ moments.mean[width:]
    projection = Projection((moments.mean[:width] - offset).float(), components.float().contiguous())
    scale = (scatter[width:, width:].trace() / (size * moments.count)).sqrt().item()
    errors = {name: _error(projection, full[name], projected[name]) / scale for name in full}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] < 1e-2:
        raise DataError(
            f"{projected[worst]}: no projection of {full[worst].name} (greatest error {errors[worst]:.2g} of its "
            "standard deviation); the two files do not belong together"
        )
    return Recovered(projection, rows, errors)


def _error(projection: Projection, full: Path, projected: Path) -> float:
    return max(float((projection(x) - y).abs().max()) for x, y in _pairs(full, projected, "check"))


def _shape(path: Path) -> tuple[int, int]:
    with hdf5.opened(path) as file:
        return hdf5.dataset(file, "features", (2,), FLOATS).shape


def _pairs(full: Path, projected: Path, says: str) -> Iterator[tuple[Tensor, Tensor]]:
    with hdf5.opened(full) as left, hdf5.opened(projected) as right:
        xs, ys = (hdf5.dataset(file, "features", (2,), FLOATS) for file in (left, right))
        bar = tqdm(range(0, len(xs), CHUNK), desc=f"{says}, {full.name}", unit="block", disable=not is_watched())
        for first in bar:
            piece = slice(first, first + CHUNK)
            yield torch.from_numpy(checks.read_rows(xs, piece)), torch.from_numpy(checks.read_rows(ys, piece))


def positions(grids: Tensor) -> Tensor:
    """Grids (n, F, a, a) as rows (n a a, F)."""
    return grids.movedim(1, -1).reshape(-1, grids.shape[1])
