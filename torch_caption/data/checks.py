"""Checks of a data directory, before anything is computed from it.

Each error is a `DataError` of one line: file, dataset, row and column, the value found, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from torch_caption.data._memory import check_room
from torch_caption.data.hdf5 import INTEGERS, dataset
from torch_caption.data.tokenizer import TOKENIZERS
from torch_caption.data.vocabulary import END, NULL, START, Vocabulary
from torch_caption.errors import DataError, InputError
from torch_caption.io.exits import is_interactive, one_line
from torch_caption.io.text import invalid_character, lines, read_json, read_text, shown

BLOCK_BYTES = 2**26
"""Values are read and checked in blocks of about this many bytes (64 MiB)."""
LONGEST = 1000
"""Maximum number of columns of captions."""
NAMES_LIMIT = 2**30
"""Maximum size of a file of names in bytes (1 GiB)."""
DEEPEST = 32
"""Maximum nesting depth of a manifest."""


def check_room_for_captions(file: h5py.File, splits: Sequence[str]) -> None:
    """Raise DataError if the captions of all splits together exceed the memory limit."""
    shapes = [dataset(file, f"{split}_captions", (2,), INTEGERS).shape for split in splits]
    size = sum(8 * rows * (columns + 1) for rows, columns in shapes)
    where = f"{file.filename}: the captions of all splits"
    check_room(size, where, "remove captions, or use a machine with more memory")


def read_captions(file: h5py.File, split: str, vocabulary: Vocabulary, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The split's captions (M, T) and image indices (M,), both int64 and checked.

    Args:
        images: the number of rows of the split's features.

    Raises:
        DataError: an id outside the vocabulary or the features, or a row that is not <START>, words, <END>, <NULL>s.
    """
    where, images_where = f"{file.filename}: {split}_captions", f"{file.filename}: {split}_image_idxs"
    captions = dataset(file, f"{split}_captions", (2,), INTEGERS)
    image_idxs = dataset(file, f"{split}_image_idxs", (1,), INTEGERS)
    rows, columns = captions.shape
    if rows != len(image_idxs):
        raise DataError(
            f"{where} has {rows} rows and {split}_image_idxs {len(image_idxs)}; each caption needs one image index"
        )
    if columns > LONGEST:
        raise DataError(f"{where} has {columns} columns; cut the captions to at most {LONGEST}")
    held = np.empty((rows, columns), np.int64), np.empty(rows, np.int64)
    block = max(1, BLOCK_BYTES // (8 * columns))
    for start in range(0, rows, block):
        piece = slice(start, start + block)
        words, owners = captions[piece], image_idxs[piece]
        _check_words(where, start, words, vocabulary)
        outside = np.flatnonzero((owners < 0) | (owners >= images))
        if outside.size:
            row = outside[0]
            raise DataError(
                f"{images_where}[{start + row}] is {owners[row]}, but the split's features have {images} rows; use "
                "the features of the images of these captions"
            )
        held[0][piece], held[1][piece] = words, owners
    return held


def _check_words(where: str, start_row: int, captions: np.ndarray, vocabulary: Vocabulary) -> None:
    """Check a block of captions. `where` begins the message, rows count from `start_row`. The dtype is the file's:
    uint64 must not wrap before it is compared.
    """
    null, start, end = (vocabulary.word_to_idx[word] for word in (NULL, START, END))
    column = np.arange(captions.shape[1])
    is_end = captions == end
    last = np.where(is_end.any(1), is_end.argmax(1), captions.shape[1])[:, None]  # the column of <END>, per row
    words = (column > 0) & (column < last)
    faults = (
        (
            (captions < 0) | (captions >= len(vocabulary)),
            f"but the vocabulary has {len(vocabulary)} words; use the vocabulary of these captions",
        ),
        (
            (column == 0) & (captions != start),
            f"but a caption starts with <START>, {start}; write these captions again",
        ),
        (
            (column == captions.shape[1] - 1) & (last == captions.shape[1]),
            f"and the row has no <END>, {end}; end the caption, or remove it",
        ),
        (
            (column > last) & (captions != null),
            f"but only <NULL>, {null}, may follow <END>; write these captions again",
        ),
        (
            words & ((captions == null) | (captions == start)),
            "a <NULL> or <START> between the words; write these captions again",
        ),
    )
    for bad, reason in faults:
        if bad.any():
            row, col = np.unravel_index(int(bad.argmax()), bad.shape)
            raise DataError(f"{where}[{start_row + row}, {col}] is {captions[row, col]}, {reason}")


def read_rows(features: h5py.Dataset, rows: Any) -> np.ndarray:
    """Rows of features as float32 in the machine's byte order; values beyond float32 become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return features[rows].astype(np.float32, copy=False)


def read_features(features: h5py.Dataset, where: str, out: np.ndarray | None) -> None:
    """Check that every feature is finite, block by block, and fill `out` with them where given.

    Args:
        features: (images, D) or, for grids, (images, D, ...).
        where: begins the message of an error.
        out: (images, D), or (images, positions, D).

    Raises:
        DataError: a NaN, an infinity, or a number beyond float32.
    """
    images, *shape = features.shape
    block = max(1, BLOCK_BYTES // (features.dtype.itemsize * math.prod(shape)))
    starts = tqdm(range(0, images, block), desc=where, unit="block", delay=1, leave=False, disable=not is_interactive())
    for start in starts:
        values = read_rows(features, slice(start, start + block))
        finite = np.isfinite(values)
        if not finite.all():
            row, *index = map(int, np.unravel_index(int((~finite).argmax()), finite.shape))
            index = [start + row, *index]
            raise DataError(
                f"{where}{index} is {features[tuple(index)]}, not a finite float32; "
                "extract the features again, or remove the image"
            )
        if out is not None:
            out[start : start + block] = by_position(values) if values.ndim > 2 else values


def by_position(grids: np.ndarray) -> np.ndarray:
    """(B, D, ...) as (B, positions, D)."""
    return grids.reshape(*grids.shape[:2], math.prod(grids.shape[2:])).swapaxes(1, 2)


def read_names(path: Path, images: int) -> list[str] | None:
    """The lines of a file with one image per line, unchanged; None if there is no such file.

    Raises:
        DataError: not UTF-8, or another number of lines than of images.
    """
    if not path.exists():
        return None
    try:
        names = lines(read_text(path, NAMES_LIMIT))
    except InputError as error:
        raise DataError(f"{error}; write it again in UTF-8, or remove it") from None
    if len(names) != images:
        raise DataError(
            f"{path}: has {len(names)} lines, but the split's features have {images} rows; "
            "the file needs one line per image, in the order of the rows"
        )
    return names


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json`, the provenance of the features; {} if there is none.

    Raises:
        DataError: the file is not a JSON object in UTF-8.
    """
    if not path.exists():
        return {}
    try:
        manifest = read_json(path)
    except InputError as error:
        raise DataError(f"{error}; write it again, or remove it") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: holds {type(manifest).__name__}, not an object; write it again, or remove it")
    _check_values(manifest, path)
    images = manifest.get("images", "")
    if not all(isinstance(name, str) for name in (images.values() if isinstance(images, dict) else [images])):
        raise DataError(f"{path}: images is {shown(images)}, not the name of a folder; write it again")
    tokenizer = manifest.get("tokenizer", "words")
    if not isinstance(tokenizer, str) or tokenizer not in TOKENIZERS:
        raise DataError(f"{path}: tokenizer is {shown(tokenizer)}, not one of {', '.join(TOKENIZERS)}; write it again")
    return manifest


def _check_values(manifest: dict[str, Any], path: Path) -> None:
    """Raise DataError for a value that cannot be stored with a model."""
    level: list[tuple[str, Any]] = [*manifest.items()]
    for _ in range(DEEPEST):
        inner: list[tuple[str, Any]] = []
        for name, value in level:
            fault = isinstance(value, float) and not math.isfinite(value)
            if fault or invalid_character(name) or (isinstance(value, str) and invalid_character(value)):
                raise DataError(f"{path}: {shown(name)} is {shown(value)}, which cannot be stored; write it again")
            if isinstance(value, dict):
                inner += [(f"{name}.{key}", below) for key, below in value.items()]
            elif isinstance(value, list):
                inner += [(f"{name}[{index}]", below) for index, below in enumerate(value)]
        level = inner
    if level:
        raise DataError(f"{path}: {shown(level[0][0])} is nested more than {DEEPEST} deep; write it again")


def read_vocabulary(path: Path) -> Vocabulary:
    """`coco2014_vocab.json`.

    Raises:
        DataError: missing, not JSON, or its two halves disagree.
    """
    try:
        return Vocabulary.load(path)
    except InputError as error:
        raise DataError(f"{one_line(error)}; copy the vocabulary of these captions") from None
