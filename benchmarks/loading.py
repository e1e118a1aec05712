"""Batches from a data directory, held in memory and read in slices, against what else one writes over HDF5."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.agreement import Disagreement
from benchmarks.options import Options
from benchmarks.step import OURS, module_step
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, race
from benchmarks.workload import MEDIUM, TINY, Shape, new_batch, new_captions, new_model
from torch_caption.data.dataset import batches, open_data
from torch_caption.data.vocabulary import SPECIAL, Vocabulary

COLUMNS = (
    Column("who"),
    Column("captions/s", ",.0f"),
    Column("ms a batch", ".3f"),
    Column("quartiles", ".3f"),
    Column("share of a training step", ".1%"),
    Column("batches", "d"),
)
STEP = "training step, rnn, medium"


@dataclass(frozen=True)
class Sizes:
    """Of the data directory, and of what is read of it."""

    images: int = 80_000
    captions: int = 400_000
    batch: int = 128
    shape: Shape = MEDIUM
    per_run: int = 20  # batches of a repetition


@dataclass(frozen=True)
class Reader:
    """A way to read: endless batches (features (B, D), captions (B, T)), shuffled, and how many to time at once."""

    name: str
    stream: Iterator[tuple[Tensor, Tensor]]
    batches: int


def tables(options: Options) -> Iterator[Table]:
    """One table; the data directory is written first, and taken away again."""
    sizes = Sizes(images=40, captions=200, batch=8, shape=TINY, per_run=2) if options.quick else Sizes()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps what is open
        directory = write(Path(folder) / "data", sizes.images, sizes.captions, sizes.shape)
        yield measure(directory, sizes, QUICK if options.quick else Effort(options.seconds, least=5, patience=60))


def measure(directory: Path, sizes: Sizes, effort: Effort) -> Table:
    """Time every reader, and a training step on such a batch beside them."""
    readers = [*ours(directory, sizes), *peers(directory, sizes)]
    require_true(readers, directory)
    model, batch = new_model(sizes.shape, "rnn"), new_batch(sizes.shape)
    contenders = [Contender(reader.name, _draw(reader)) for reader in readers]
    contenders.append(Contender(STEP, module_step(STEP, model, model, batch, "float32").run))
    times = {name: t for (name, _), t in race(contenders, effort, label="loading").items()}
    step = times[STEP].median
    rows = []
    for reader in readers:
        mine = times[reader.name]
        a_batch = mine.median / reader.batches
        quartiles = tuple(1e3 * t / reader.batches for t in mine.quartiles)
        count = reader.batches * len(mine.seconds)
        rows.append((reader.name, sizes.batch / a_batch, 1e3 * a_batch, quartiles, a_batch / step, count))
    title = (
        f"loading: batches of {sizes.batch} from {sizes.images:,} x {sizes.shape.F} features and {sizes.captions:,} "
        "captions"
    )
    notes = (f"{STEP}: {1e3 * step:.1f} ms", "the file is in the system's cache; shuffled, one process")
    return Table("loading", title, COLUMNS, tuple(rows), notes)


def _draw(reader: Reader) -> Callable[[], None]:
    def run() -> None:
        for _ in range(reader.batches):
            next(reader.stream)

    return run


# Readers -------------------------------------------------------------------------------------------------------------


def ours(directory: Path, sizes: Sizes) -> list[Reader]:
    """`batches` over features in memory and over the file."""
    made = []
    for name, in_memory, factor in ((f"{OURS}, in memory", "yes", 10), (f"{OURS}, in slices", "no", 1)):
        split = open_data(directory, in_memory=in_memory)["train"]
        made.append(Reader(name, _endless(batches(split, sizes.batch)), factor * sizes.per_run))
    return made


def peers(directory: Path, sizes: Sizes) -> list[Reader]:
    """A Dataset of single captions with PyTorch's own collation, over memory and over h5py."""
    held = ByItem(directory, hold=True)
    read = ByItem(directory, hold=False)
    generator = torch.Generator().manual_seed(0)

    def loader(dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        return _endless(DataLoader(dataset, sizes.batch, shuffle=True, generator=generator))

    return [
        Reader("item by item, in memory", loader(held), 2 * sizes.per_run),
        Reader("item by item, h5py", loader(read), sizes.per_run // 2),
    ]


class ByItem(Dataset):
    """A caption and its image's features by index, as most write it."""

    def __init__(self, directory: Path, hold: bool):
        with h5py.File(directory / "coco2014_captions.h5") as file:
            self.captions = torch.from_numpy(file["train_captions"][:].astype(np.int64))
            self.image_idxs = file["train_image_idxs"][:]
        features = h5py.File(directory / "train2014_vgg16_fc7.h5")["features"]
        self.features = features[:] if hold else features

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.features[self.image_idxs[index]]), self.captions[index]


def _endless(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch after the other."""
    while True:
        yield from loader


def require_true(readers: list[Reader], directory: Path) -> None:
    """Look whether a batch's features are those of the images that its captions describe.

    Every row of features begins with its own number, and so does each caption behind its <START>: see `write`.

    Raises:
        Disagreement: names the reader.
    """
    vocabulary = Vocabulary.load(directory / "coco2014_vocab.json")
    for reader in readers:
        features, captions = next(reader.stream)
        words = len(vocabulary) - len(SPECIAL)
        if not torch.equal(features[:, 0].long() % words, captions[:, 1] - len(SPECIAL)):
            raise Disagreement(f"loading, {reader.name}: features and captions are not of the same images")


# The directory -------------------------------------------------------------------------------------------------------


def write(directory: Path, images: int, captions: int, shape: Shape, splits: tuple[str, ...] = ("train",)) -> Path:
    """A data directory in cs231n's layout, of random numbers; feature 0 is the image's number, and so is word 1."""
    directory.mkdir(parents=True)
    words = shape.V - len(SPECIAL)
    Vocabulary((*SPECIAL, *(f"word{k}" for k in range(words)))).save(directory / "coco2014_vocab.json")
    random = np.random.default_rng(0)
    rows = new_captions(captions, shape.T, shape.V, torch.Generator().manual_seed(0)).numpy().astype(np.int32)
    image_idxs = random.integers(images, size=captions, dtype=np.int32)
    rows[:, 1] = image_idxs % words + len(SPECIAL)  # every caption has a word before its <END>
    features = random.standard_normal((images, shape.F), dtype=np.float32)
    features[:, 0] = np.arange(images)
    with h5py.File(directory / "coco2014_captions.h5", "w") as file:
        for split in splits:
            file[f"{split}_captions"], file[f"{split}_image_idxs"] = rows, image_idxs
            with h5py.File(directory / f"{split}2014_vgg16_fc7.h5", "w") as feature_file:
                feature_file["features"] = features
    return directory
