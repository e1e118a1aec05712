"""Photographs encoded into files of rows, split by split; an interrupted run continues where it stopped.

During encoding a folder contains `{split}_vectors` and `{split}_grids` (plain rows) and `progress.json`, the number of
complete rows. Grids for a PCA are stored without projection only until the PCA is fitted, on the first training
photographs, up to `FIT_BYTES`. Later grids are projected at once.
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
from torch_caption.encoders.encoder import Encoder
from torch_caption.encoders.stream import stream
from torch_caption.errors import DataError, ImageError
from torch_caption.io.exits import is_interactive, one_line
from torch_caption.io.files import replace_text
from torch_caption.io.images import load_image
from torch_caption.io.text import printable
from torch_caption.prepare.rows import RowFile

FIT_BYTES = 4 * 2**30
"""Maximum size of the training grids that the PCA is fitted on (4 GiB, on the disk)."""
SAVE_SECONDS = 2.0
"""The interval at which progress is saved."""
GRID_PCA = "grid_pca.npz"


@dataclass(frozen=True)
class Wanted:
    """What is computed for each photograph besides its vector.

    Attributes:
        grid: spatial grids too.
        grid_pca: the number of their components, or the fraction of their variance; None does not project.
        grid_dtype: "float16" or "float32".
        batch_size, workers: as in `stream`.
        truncated: accept truncated JPEGs.
    """

    grid: bool
    grid_pca: float | None
    grid_dtype: str
    batch_size: int
    workers: int
    truncated: bool = False


@dataclass
class EncodingProgress:
    """The complete part of the folder's files.

    Attributes:
        settings: a digest of everything that the rows depend on.
        done: of each split, the number of photographs read, including failures.
        failed: of each split, the indices of the photographs that cannot be read, and the reasons.
        fitted: the PCA of the grids is fitted, and further grids are projected.
    """

    settings: str
    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    fitted: bool = False

    def rows(self, split: str) -> int:
        return self.done.get(split, 0) - len(self.failed.get(split, {}))

    def kept(self, split: str) -> list[int]:
        """The indices of the photographs with a row."""
        return [index for index in range(self.done[split]) if str(index) not in self.failed.get(split, {})]

    def save(self, folder: Path) -> None:
        replace_text(folder / "progress.json", json.dumps(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> EncodingProgress | None:
        """The last saved progress; None if there is none."""
        try:
            return cls(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder}: left by an interrupted run, and damaged ({one_line(error)}); remove it"
            ) from None


class Encoding:
    """The folder, its files and their progress.

    Args:
        folder: the files' folder.
        encoder: of the photographs.
        wanted: what is computed.
        progress: of an interrupted run, or new.
    """

    def __init__(self, folder: Path, encoder: Encoder, wanted: Wanted, progress: EncodingProgress) -> None:
        self.folder = folder
        self.progress = progress
        self._encoder = encoder
        self._wanted = wanted
        vectors, grids = encoder.blank.vectors, encoder.blank.grids
        self.width = vectors.shape[1]
        self.grid_shape: tuple[int, ...] = tuple(grids.shape[1:]) if wanted.grid and grids is not None else ()
        self.projection = Projection.load(folder / GRID_PCA) if progress.fitted else None

    @property
    def stored_grid_shape(self) -> tuple[int, ...]:
        """The shape of a projected grid."""
        if self.projection is None:
            return self.grid_shape
        return (self.projection.components.shape[1], *self.grid_shape[1:])

    def vectors(self, split: str) -> RowFile:
        return RowFile(self.folder / f"{split}_vectors", (self.width,), "float32", self.progress.rows(split))

    def grids(self, split: str) -> RowFile:
        """The split's grids: without projection before the PCA is fitted, else in their final form."""
        if self._wanted.grid_pca is not None and not self.progress.fitted:
            return RowFile(self._raw, self.grid_shape, "float32", self.progress.rows(split))
        path = self.folder / f"{split}_grids"
        return RowFile(path, self.stored_grid_shape, self._wanted.grid_dtype, self.progress.rows(split))

    @property
    def _raw(self) -> Path:
        return self.folder / "train_grids_raw"

    def run(self, splits: dict[str, list[Photograph]], report: Callable[[str], None]) -> None:
        """Encode the remaining photographs of all splits.

        Args:
            report: called with a line for every unreadable or truncated photograph.

        Raises:
            DataError: no photograph of a split can be read, or the PCA of the grids cannot be fitted.
        """
        for split, photographs in splits.items():
            if self._remains(split, photographs):
                self._encode(split, photographs, report)
            if self.progress.rows(split) == 0:
                raise DataError(f"none of the {len(photographs)} photographs of {split} can be read")
            if self._to_fit:
                self._fit()
                if self._remains(split, photographs):
                    self._encode(split, photographs, report)

    def _remains(self, split: str, photographs: list[Photograph]) -> bool:
        """Whether photographs remain before the PCA of the grids is fitted, or in the split."""
        whole = self.progress.done.get(split, 0) == len(photographs)
        return not whole and not (self._to_fit and self.progress.rows(split) >= self._enough)

    @property
    def _enough(self) -> int:
        """The number of photographs to fit the PCA of the grids on, if there are as many."""
        return max(1, FIT_BYTES // (4 * math.prod(self.grid_shape)))

    def most_fitted(self, photographs: int) -> int:
        """The maximum number of photographs of train that the PCA of the grids is fitted on."""
        return min(photographs, self._enough + self._wanted.batch_size)

    @property
    def _to_fit(self) -> bool:
        return self._wanted.grid and self._wanted.grid_pca is not None and not self.progress.fitted

    def _encode(self, split: str, photographs: list[Photograph], report: Callable[[str], None]) -> None:
        """Encode the split, or as many photographs as the PCA of the grids needs."""
        wanted, start = self._wanted, self.progress.done.get(split, 0)
        enough = self._enough if self._to_fit else len(photographs)
        truncated = (lambda line: report(f"warning: {line}")) if wanted.truncated else None

        def read(photograph: Photograph) -> torch.Tensor:
            if photograph.path is None:
                raise ImageError("no such file")
            return self._encoder.prepare(load_image(photograph.path, truncated=truncated))

        batches = stream(photographs, read, start=start, batch_size=wanted.batch_size, workers=wanted.workers)
        with ExitStack() as stack:
            vectors = stack.enter_context(self.vectors(split))
            grids = stack.enter_context(self.grids(split)) if wanted.grid else None
            bar = stack.enter_context(
                tqdm(total=len(photographs), initial=start, desc=split, unit="photo", disable=not is_interactive())
            )
            stack.enter_context(closing(batches))
            saved = time.monotonic()
            for batch in batches:
                failed = {index: _reason(photographs[index], error) for index, error in batch.failed.items()}
                for index, reason in failed.items():
                    report(f"left out  {printable(photographs[index].file_name)}: {reason}")
                if batch.read:
                    self._keep(torch.stack([*batch.read.values()]), vectors, grids)
                self.progress.done[split] = batch.stop
                self.progress.failed.setdefault(split, {}).update({str(k): v for k, v in failed.items()})
                bar.update(batch.stop - bar.n)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self._save(vectors, grids)
                    saved = time.monotonic()
                if self.progress.rows(split) >= enough:
                    break
            self._save(vectors, grids)

    def _keep(self, pictures: torch.Tensor, vectors: RowFile, grids: RowFile | None) -> None:
        encoded = self._encoder.encode(pictures, grids=grids is not None)
        vectors.append(encoded.vectors.numpy())
        if grids is not None and encoded.grids is not None:
            grid = encoded.grids if self.projection is None else self.projection(encoded.grids)
            grids.append(self._stored(grid, grids.dtype))

    def _stored(self, grid: torch.Tensor, dtype: np.dtype) -> np.ndarray:
        if dtype == np.float16 and float(grid.abs().max()) > float(np.finfo(np.float16).max):
            raise DataError(f"a grid contains {float(grid.abs().max()):g}, beyond float16; use --grid-dtype float32")
        return grid.numpy().astype(dtype)

    def _save(self, vectors: RowFile, grids: RowFile | None) -> None:
        vectors.sync()
        if grids is not None:
            grids.sync()
        self.progress.save(self.folder)

    def _fit(self) -> None:
        """Fit the PCA of the grids on the stored ones, and project them."""
        assert self._wanted.grid_pca is not None
        moments = pca.Moments(self.grid_shape[0])
        with self.grids("train") as raw:
            with tqdm(total=raw.count, desc="PCA of grids", unit="photo", disable=not is_interactive()) as bar:
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


def _reason(photograph: Photograph, error: ImageError) -> str:
    """Why a photograph is omitted, without its name."""
    return str(error).removeprefix(f"{printable(photograph.path)}: ") + file_names.hint(photograph.nearest)
