"""Photographs encoded into files of rows, split by split, so that a run that was stopped goes on where it was.

A folder holds, while photographs are encoded, `{split}_vectors` and `{split}_grids` (plain rows) and `progress.json`,
which says how far they are whole. Grids that are to be projected by a PCA are kept as they are only until the PCA is
fitted: on the training photographs in their order, up to `FIT_BYTES` of them. From then on each is projected at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from torch_caption.data import file_names
from torch_caption.data.caption_files import Photograph
from torch_caption.data.projection import Projection
from torch_caption.encoders import pca
from torch_caption.encoders.torchvision_encoder import Batch, Encoder, stream
from torch_caption.errors import DataError
from torch_caption.io.exits import is_watched, one_line
from torch_caption.io.files import replace_text
from torch_caption.io.text import printable
from torch_caption.prepare.rows import RowFile

FIT_BYTES = 4 * 2**30
"""Grids of training photographs that the PCA is fitted on, at most (4 GiB, on the disk)."""
SAVE_SECONDS = 2.0
"""Between two times that progress is put down."""
GRID_PCA = "grid_pca.npz"


@dataclass(frozen=True)
class Wanted:
    """What is computed of each photograph beside its vector.

    Attributes:
        grid: spatial grids too.
        grid_pca: their components, or a share of their variance; None leaves them as they are.
        grid_dtype: "float16" or "float32".
        batch_size, workers: as in `stream`.
        truncated: JPEGs whose end is missing, too.
    """

    grid: bool
    grid_pca: float | None
    grid_dtype: str
    batch_size: int
    workers: int
    truncated: bool = False


@dataclass
class Progress:
    """What of the folder's files is whole.

    Attributes:
        settings: a digest of all that the rows depend on.
        done: of each split, the photographs that were read or tried.
        failed: of each split, the places of those that could not be read, and why.
        fitted: the grids' PCA is there, and grids from now on are projected.
    """

    settings: str
    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    fitted: bool = False

    def rows(self, split: str) -> int:
        return self.done.get(split, 0) - len(self.failed.get(split, {}))

    def kept(self, split: str) -> list[int]:
        """The places of the photographs that have a row."""
        return [place for place in range(self.done[split]) if str(place) not in self.failed.get(split, {})]

    def save(self, folder: Path) -> None:
        replace_text(folder / "progress.json", json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Progress | None:
        """What was put down last; None where nothing was."""
        try:
            return cls(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder}: of a run that was stopped, and damaged ({one_line(error)}); remove it"
            ) from None


class Encoding:
    """The folder, its files and how far they are.

    Args:
        folder: the files' folder.
        encoder: of the photographs.
        wanted: what is computed.
        progress: of an earlier run, or new.
    """

    def __init__(self, folder: Path, encoder: Encoder, wanted: Wanted, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self._encoder = encoder
        self._wanted = wanted
        side = encoder.transform.crop
        blank = encoder.encode(torch.zeros(1, 3, side, side, dtype=torch.float32, device="cpu"), grids=wanted.grid)
        self.width = blank.vectors.shape[1]
        self.grid_shape: tuple[int, ...] = tuple(blank.grids.shape[1:]) if blank.grids is not None else ()
        self.projection = Projection.load(folder / GRID_PCA) if progress.fitted else None

    @property
    def stored_grid_shape(self) -> tuple[int, ...]:
        """Of a grid once it is projected."""
        if self.projection is None:
            return self.grid_shape
        return (self.projection.components.shape[1], *self.grid_shape[1:])

    def vectors(self, split: str) -> RowFile:
        return RowFile(self.folder / f"{split}_vectors", (self.width,), "float32", self.progress.rows(split))

    def grids(self, split: str) -> RowFile:
        """The split's grids: as they are while a PCA is to be fitted, else as they will be stored."""
        if self._wanted.grid_pca is not None and not self.progress.fitted:
            return RowFile(self._raw, self.grid_shape, "float32", self.progress.rows(split))
        path = self.folder / f"{split}_grids"
        return RowFile(path, self.stored_grid_shape, self._wanted.grid_dtype, self.progress.rows(split))

    @property
    def _raw(self) -> Path:
        return self.folder / "train_grids_raw"

    def run(self, splits: dict[str, list[Photograph]], tell: Callable[[str], None]) -> None:
        """Encode what remains of every split.

        Args:
            tell: is given a line for every photograph that cannot be read, or not to its end.

        Raises:
            DataError: nothing of a split can be read, or the grids' PCA cannot be fitted.
        """
        for split, photographs in splits.items():
            if self._remains(split, photographs):
                self._encode(split, photographs, tell)
            if self.progress.rows(split) == 0:
                raise DataError(f"none of the {len(photographs)} photographs of {split} can be read")
            if self._to_fit:
                self._fit()
                if self._remains(split, photographs):
                    self._encode(split, photographs, tell)

    def _remains(self, split: str, photographs: list[Photograph]) -> bool:
        """Whether there is more to encode before the grids' PCA is fitted, or before the split's end."""
        whole = self.progress.done.get(split, 0) == len(photographs)
        return not whole and not (self._to_fit and self.progress.rows(split) >= self._enough)

    @property
    def _enough(self) -> int:
        """Photographs to fit the grids' PCA on, if there are so many."""
        return max(1, FIT_BYTES // (4 * math.prod(self.grid_shape)))

    def most_fitted(self, photographs: int) -> int:
        """How many of train's photographs the grids' PCA is fitted on, at most."""
        return min(photographs, self._enough + self._wanted.batch_size)

    @property
    def _to_fit(self) -> bool:
        return self._wanted.grid and self._wanted.grid_pca is not None and not self.progress.fitted

    def _encode(self, split: str, photographs: list[Photograph], tell: Callable[[str], None]) -> None:
        """Encode the split to its end, or until there are grids enough to fit their PCA on."""
        wanted, start = self._wanted, self.progress.done.get(split, 0)
        enough = self._enough if self._to_fit else len(photographs)
        batches = stream(
            self._encoder,
            [photograph.path for photograph in photographs],
            start=start,
            batch_size=wanted.batch_size,
            workers=wanted.workers,
            grids=wanted.grid,
            truncated=(lambda line: tell(f"warning: {line}")) if wanted.truncated else None,
        )
        with ExitStack() as stack:
            vectors = stack.enter_context(self.vectors(split))
            grids = stack.enter_context(self.grids(split)) if wanted.grid else None
            bar = stack.enter_context(
                tqdm(total=len(photographs), initial=start, desc=split, unit="photo", disable=not is_watched())
            )
            stack.enter_context(closing(batches))
            saved = time.monotonic()
            for batch in batches:
                for place in batch.failed:
                    batch.failed[place] += file_names.hint(photographs[place].nearest)
                    tell(f"left out  {printable(photographs[place].file_name)}: {batch.failed[place]}")
                self._keep(split, batch, vectors, grids)
                bar.update(batch.stop - bar.n)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self._save(vectors, grids)
                    saved = time.monotonic()
                if self.progress.rows(split) >= enough:
                    break
            self._save(vectors, grids)

    def _keep(self, split: str, batch: Batch, vectors: RowFile, grids: RowFile | None) -> None:
        if batch.encoded is not None:
            vectors.append(batch.encoded.vectors.numpy())
            if grids is not None and batch.encoded.grids is not None:
                grid = batch.encoded.grids
                grids.append(self._stored(grid if self.projection is None else self.projection(grid), grids.dtype))
        self.progress.done[split] = batch.stop
        self.progress.failed.setdefault(split, {}).update({str(k): v for k, v in batch.failed.items()})

    def _stored(self, grid: torch.Tensor, dtype: np.dtype) -> np.ndarray:
        if dtype == np.float16 and float(grid.abs().max()) > np.finfo(np.float16).max:
            raise DataError(f"a grid holds {float(grid.abs().max()):g}, beyond float16; take --grid-dtype float32")
        return grid.numpy().astype(dtype)

    def _save(self, vectors: RowFile, grids: RowFile | None) -> None:
        vectors.sync()
        if grids is not None:
            grids.sync()
        self.progress.save(self.folder)

    def _fit(self) -> None:
        """Fit the grids' PCA on those that are there, and project them."""
        assert self._wanted.grid_pca is not None
        moments = pca.Moments(self.grid_shape[0])
        with self.grids("train") as raw:
            with tqdm(total=raw.count, desc="PCA of grids", unit="photo", disable=not is_watched()) as bar:
                for block in raw.blocks():
                    moments.update(pca.positions(torch.from_numpy(block)))
                    bar.update(len(block))
            self.projection = pca.fit(moments, self._wanted.grid_pca, "--grid-pca")
            self.projection.save(self.folder / GRID_PCA)
            path = self.folder / "train_grids"
            path.unlink(missing_ok=True)
            with RowFile(path, self.stored_grid_shape, self._wanted.grid_dtype) as stored:
                for block in raw.blocks():
                    stored.append(self._stored(self.projection(torch.from_numpy(block)), stored.dtype))
                stored.sync()
        self.progress.fitted = True
        self.progress.save(self.folder)
        self._raw.unlink()
