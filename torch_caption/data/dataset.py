"""Captions and features in cs231n's file layout: splits, checks, batches.

    coco2014_captions.h5                {split}_captions (M, T) and {split}_image_idxs (M,), integers, for every split
    coco2014_vocab.json                 {"idx_to_word": [word, ...], "word_to_idx": {word: id, ...}}
    {split}2014_vgg16_fc7.h5            features (images, D), floating point, and, or instead,
    {split}2014_vgg16_fc7_pca.h5        the same of fewer dimensions
    {split}2014_grid.h5                 features (images, D, a, a) or (images, D, L), for attention (optional)
    {split}2014_images.txt              the images' file names, one per row of the features   (optional)
    {split}2014_urls.txt                the images' URLs, likewise                            (optional)
    manifest.json, *pca.npz             the provenance of the features                        (optional)
    images/                             the pictures that {split}2014_images.txt names        (optional)

`python -m torch_caption check-data DIR` checks a directory, `python -m torch_caption download DIR` downloads
cs231n's own.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from torch_caption.data import _memory, checks, feature_files, file_names, hdf5
from torch_caption.data import manifest as manifests
from torch_caption.data import recipe as recipes
from torch_caption.data.batches import Batch, EpochBatches, Loader, batches, generator
from torch_caption.data.feature_files import FeatureFile
from torch_caption.data.hdf5 import INTEGERS
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import ConfigError, DataError
from torch_caption.io.program import typed

__all__ = [
    "CocoData",
    "DataError",
    "EpochBatches",
    "Loader",
    "Split",
    "batches",
    "below",
    "generator",
    "open_data",
    "open_kinds",
    "summary",
]

KINDS: dict[str, dict[str, bool]] = {
    "vgg16_fc7_pca": {"pca": True},
    "vgg16_fc7": {"pca": False},
    "grid": {"grids": True},
}
"""The feature files that a split may have, `{split}2014_{kind}.h5`, and the arguments of `open_data` for them."""
IN_MEMORY_LIMIT = 2**30
"""`in_memory="auto"` holds the features in memory if those of all splits together take at most 1 GiB."""


class Split(Dataset[Batch]):
    """One split: M captions, each with its image, and the features of the images.

    A row is (features (D,) float32, caption (T,) int64); the features of a grid are (D, a, a) or (D, L).

    Attributes:
        name: "train", "val", ...
        captions: (M, T) int64; each row <START>, words, <END>, <NULL>s.
        image_idxs: (M,) int64; the image of each caption.
        num_images: the number of rows of the features, with or without captions.
        feature_dim: D.
        tokenizer: of the captions, a name in `torch_caption.data.tokenizer.TOKENIZERS`.
        grid: the shape of the spatial positions, (a, a) or (L,); () for one vector per image.
        others: splits of the same images for the further members of an ensemble, each with the features of its member.
    """

    others: Sequence[Split] = ()

    def __init__(
        self,
        name: str,
        vocabulary: Vocabulary,
        captions: Tensor,
        image_idxs: Tensor,
        features: Tensor | FeatureFile,
        shape: feature_files.Shape,
        names: Sequence[str] | None = None,
        urls: Sequence[str] | None = None,
        images: Path | None = None,
        tokenizer: str = "words",
    ) -> None:
        self.name = name
        self.vocabulary = vocabulary
        self.captions = captions
        self.image_idxs = image_idxs
        self.num_images, self.feature_dim, *grid = shape
        self.grid = tuple(grid)
        self._features = features
        self._names = names
        self._urls = urls
        self._images = images
        self.tokenizer = tokenizer

    @property
    def in_memory(self) -> bool:
        """Whether the features are in memory, and not read in slices."""
        return isinstance(self._features, Tensor)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> Batch:
        if not -len(self) <= row < len(self):
            raise IndexError(f"{self.name}: row {row} of {len(self)}")
        features, captions = self.__getitems__([row % len(self)])
        return features[0], captions[0]

    def __getitems__(self, rows: list[int]) -> Batch:
        """The whole batch: features (B, D) or (B, D, ...) float32 and captions (B, T) int64."""
        idx = torch.as_tensor(rows, dtype=torch.int64, device="cpu")
        return self._rows(self.image_idxs.index_select(0, idx)), self.captions.index_select(0, idx)

    def _rows(self, idx: Tensor) -> Tensor:
        stored = self._features
        features = (stored.index_select(0, idx) if isinstance(stored, Tensor) else stored[idx]).float()
        # In memory the features of a position are contiguous, as the projection of each position needs them.
        return features.mT.unflatten(2, self.grid) if self.grid else features

    def features_of(self, image_idxs: Tensor | Sequence[int]) -> Tensor:
        """The images' features (B, D) float32, or grids (B, D, a, a) or (B, D, L).

        Raises:
            DataError: there is no such image.
        """
        if not isinstance(image_idxs, Tensor):
            for image_idx in image_idxs:  # which may be beyond int64
                self._check_image(image_idx)
        idx = torch.as_tensor(image_idxs, dtype=torch.int64, device="cpu")
        outside = idx[(idx < 0) | (idx >= self.num_images)]
        if len(outside):
            self._check_image(int(outside[0]))
        return self._rows(idx)

    def features_of_each(self, image_idxs: Sequence[int]) -> list[Tensor]:
        """`features_of` of this split and of `others`; a split that several members share is read once."""
        parts = (self, *self.others)
        features = {part: part.features_of(image_idxs) for part in dict.fromkeys(parts)}
        return [features[part] for part in parts]

    def same_images(self, other: Split) -> bool:
        """Whether the rows of both splits are the same images: by their names, else by their captions; with different
        vocabularies by the lengths of the captions, which do not depend on <UNK>."""
        if self.num_images != other.num_images:
            return False
        images = range(self.num_images)
        if all(split.file_name(i) for split in (self, other) for i in images):
            return all(self.file_name(i) == other.file_name(i) for i in images)
        key = Split.references if self.vocabulary.words == other.vocabulary.words else _lengths
        return all(key(self, i) == key(other, i) for i in images)

    def references(self, image_idx: int) -> list[str]:
        """The captions of one image as text, in the order of the rows; [] if it has none.

        Raises:
            DataError: there is no such image.
        """
        self._check_image(image_idx)
        order, firsts = self._rows_by_image
        rows = order[firsts[image_idx] : firsts[image_idx + 1]]
        return [self.vocabulary.decode(ids) for ids in self.captions[rows].tolist()]

    def image_name(self, image_idx: int) -> str | None:
        """The image's line in {split}2014_urls.txt, else in {split}2014_images.txt; None without both.

        Raises:
            DataError: there is no such image.
        """
        self._check_image(image_idx)
        lines = self._urls or self._names
        return (lines[image_idx] or None) if lines else None

    def file_name(self, image_idx: int) -> str | None:
        """The image's line in {split}2014_images.txt; None without.

        Raises:
            DataError: there is no such image.
        """
        self._check_image(image_idx)
        return (self._names[image_idx] or None) if self._names else None

    def image_path(self, image_idx: int) -> Path | None:
        """The image's file below the folder of pictures; None if it is missing or its name leads out of the folder.

        Raises:
            DataError: there is no such image.
        """
        name = self.file_name(image_idx)
        return None if name is None or self._images is None else below(self._images, name)

    def picture(self, image_idx: int) -> Path | Image.Image | None:
        """The picture for a gallery: a file, the picture itself if it is loaded, or None.

        Raises:
            DataError: there is no such image.
        """
        return self.image_path(image_idx)

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of the captions and their image indices, in the order of the rows."""
        digest = hashlib.sha256(repr(tuple(self.captions.shape)).encode("ascii"))
        for rows in (self.captions, self.image_idxs):
            digest.update(np.ascontiguousarray(rows.numpy(), dtype="<i8").data)
        return digest.hexdigest()

    def _check_image(self, image_idx: int) -> None:
        if not 0 <= image_idx < self.num_images:
            raise DataError(f"{self.name}: there is no image {image_idx}; choose one of 0 to {self.num_images - 1}")

    @cached_property
    def _rows_by_image(self) -> tuple[Tensor, list[int]]:
        """The rows sorted by image, and the first index of each image; one more entry ends the last image."""
        idxs, order = torch.sort(self.image_idxs, stable=True)
        return order, torch.searchsorted(idxs, torch.arange(self.num_images + 1, device="cpu")).tolist()


def _lengths(split: Split, image_idx: int) -> list[int]:
    return [len(caption.split()) for caption in split.references(image_idx)]


def below(folder: Path, name: str) -> Path | None:
    """`folder / name` if that is a file inside the folder, also after links are followed.

    A name from another system is found in any Unicode normalisation.
    """
    if not name or "\0" in name or file_names.leads_out(name):
        return None
    for form in file_names.forms(name):
        try:
            path = (folder / form).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
        except OSError:  # a name longer than any file's, or a cycle of links
            return None
    return None


@dataclass(frozen=True)
class CocoData:
    """A data directory, checked: `data["train"]` is a `Split`.

    Attributes:
        directory: its path.
        vocabulary: the words of all splits.
        manifest: the content of manifest.json; {} without it.
        recipe: the part of it that a checkpoint contains, to compute the features of a new picture
            (`torch_caption.data.recipe`).
        splits: by name, train first.
    """

    directory: Path
    vocabulary: Vocabulary
    manifest: dict[str, Any]
    recipe: dict[str, Any]
    splits: dict[str, Split]

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(f"{self.directory}: no split {split!r}; choose one of {', '.join(self.splits)}")
        return self.splits[split]


def open_data(
    directory: str | Path,
    *,
    pca: bool | None = None,
    grids: bool = False,
    max_train: int | None = None,
    in_memory: str = "auto",
    seed: int = 0,
) -> CocoData:
    """Open a data directory; it is checked completely before anything is returned.

    Args:
        directory: a folder in cs231n's layout, shown at the head of this file.
        pca: True reads `*_pca.h5`, False the full features, None the first of the two that every split has.
        grids: read `*_grid.h5` instead of vectors.
        max_train: use a random subset of this many train captions, in their order.
        in_memory: "yes" loads the features into memory, "no" reads every batch from the file, "auto" loads them if they
            take at most `IN_MEMORY_LIMIT` bytes and half of the memory. Batches are the same.
        seed: of the choice of `max_train`.

    Raises:
        DataError: the data cannot be used; the message names file, dataset, row and value.
        ConfigError: an argument is out of range.
    """
    if in_memory not in ("auto", "yes", "no"):
        raise ConfigError(f"in_memory is {in_memory!r}; choose auto, yes or no")
    if max_train is not None and max_train < 1:
        raise ConfigError(f"max_train is {max_train}; it must be at least 1")
    if grids and pca:
        raise ConfigError("grids of features have no PCA; use pca with one vector per image")
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder; `{typed('download')} DIR` downloads one")
    words, captions = directory / "coco2014_vocab.json", directory / "coco2014_captions.h5"
    manifest = checks.read_manifest(directory / "manifest.json")
    manifests.check(directory, manifest, [words, captions])
    vocabulary = checks.read_vocabulary(words)
    with hdf5.opened(captions) as file:
        names = _split_names(file)
        paths = feature_files.find(directory, names, pca, grids)
        texts = [directory / f"{name}2014_{kind}.txt" for name in names for kind in ("images", "urls")]
        manifests.check(directory, manifest, [*paths.values(), *texts])
        measured = feature_files.measure(paths, grids)
        images = {name: shape[0] for name, (shape, _) in measured.items()}
        checks.check_room_for_captions(file, names)
        rows = {name: checks.read_captions(file, name, vocabulary, images[name]) for name in names}
    if max_train is not None:
        rows["train"] = _subsample(*rows["train"], max_train, seed)
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in measured.values())
    whole = in_memory == "yes" or (in_memory == "auto" and total <= IN_MEMORY_LIMIT and _memory.has_room(total))
    if whole:
        _memory.check_room(total, f"{directory}: the features of all splits", feature_files.IN_SLICES)
    splits = {
        name: Split(
            name,
            vocabulary,
            torch.from_numpy(rows[name][0]),
            torch.from_numpy(rows[name][1]),
            feature_files.load(paths[name], *measured[name], whole),
            measured[name][0],
            names=checks.read_names(directory / f"{name}2014_images.txt", images[name]),
            urls=_urls(directory / f"{name}2014_urls.txt", images[name]),
            images=_pictures(directory, manifest, name),
            tokenizer=manifest.get("tokenizer", "words"),
        )
        for name in names
    }
    recipe = recipes.record(directory, manifest, paths["train"])
    recipes.check_width(recipe, splits["train"].feature_dim, directory)
    return CocoData(directory, vocabulary, manifest, recipe, splits)


def _pictures(directory: Path, manifest: Mapping[str, Any], split: str) -> Path:
    """The folder of a split's pictures."""
    images = manifest.get("images", "images")
    return directory / (images.get(split, "images") if isinstance(images, Mapping) else images)


def _urls(path: Path, images: int) -> list[str] | None:
    """The lines of a file of URLs, without blanks at their ends."""
    lines = checks.read_names(path, images)
    return None if lines is None else [line.strip() for line in lines]


def _split_names(file: h5py.File) -> list[str]:
    """The splits in the file of captions, train first."""
    suffixes = "_captions", "_image_idxs"
    names = {key.removesuffix(suffix) for key in file for suffix in suffixes if key.endswith(suffix)}
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # the name becomes part of file names
            raise DataError(f"{file.filename}: {name!r} is not the name of a split; use letters, digits, - and _")
        for suffix in suffixes:
            hdf5.dataset(file, name + suffix, (2,) if suffix == "_captions" else (1,), INTEGERS)
    if "train" not in names:
        raise DataError(f"{file.filename}: no dataset train_captions; it contains {hdf5.names(file)}")
    order = ["train", "val", "test"]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _subsample(captions: np.ndarray, image_idxs: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = torch.randperm(len(captions), generator=generator(seed), device="cpu").numpy()[:size]
    rows.sort()
    return captions[rows], image_idxs[rows]


def open_kinds(directory: str | Path) -> list[CocoData]:
    """Open and check a data directory with each kind of features in it: projected, full, grids.

    Raises:
        DataError: the data cannot be used, or only some splits have a kind of features.
    """
    directory = Path(directory)
    found = [kind for kind in KINDS if any(directory.glob(f"*2014_{kind}.h5"))]
    kinds = [open_data(directory, in_memory="no", **KINDS[kind]) for kind in found or ["vgg16_fc7"]]
    manifests.check(directory, kinds[0].manifest, manifests.named(directory, kinds[0].manifest))
    return kinds


def summary(kinds: Sequence[CocoData]) -> str:
    """A table of the splits, their sizes and their kinds of features."""
    data = kinds[0]
    rows: list[Sequence[str]] = [("split", "captions", "length", "images", *(str(d.recipe["features"]) for d in kinds))]
    for name, split in data.splits.items():
        sizes = len(split), split.captions.shape[1], split.num_images
        shapes = [(kind[name].feature_dim, *kind[name].grid) for kind in kinds]
        widths = [" x ".join(f"{size:,}" for size in shape) for shape in shapes]
        rows.append((name, *(f"{size:,}" for size in sizes), *widths))
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(columns[0]), *(c.rjust(w) for c, w in zip(row[1:], columns[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([f"{data.directory}: valid, {len(data.vocabulary):,} words", *lines])
