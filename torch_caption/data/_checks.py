"""What makes a data directory sound, checked before anything is computed from it.

Every fault is a `DataError` of one line: the file, the dataset, the row and column, the value found, and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from torch_caption.guard import one_line
from torch_caption.vocabulary import END, NULL, START, Vocabulary

BLOCK_BYTES = 2**26
"""Features are read and checked in blocks of about so many bytes (64 MiB)."""

# What h5py raises on a damaged file, by the place of the damage: it maps HDF5's own errors to all of these.
_HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)


class DataError(ValueError):
    """Data that cannot be used; the message names file, dataset, row and value, and says what to do."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file, read only.

    Raises:
        DataError: the file is missing, is not HDF5, is truncated or is damaged where the body reads it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; copy it there, or download the directory again")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except _HDF5_ERRORS as error:
        raise DataError(f"{path}: not a readable HDF5 file ({one_line(error)}); copy or download it again") from None


def dataset(file: h5py.File, name: str, ranks: Collection[int], kinds: str) -> h5py.Dataset:
    """The dataset called `name`, of so many axes, none of them empty, its dtype of one of the `kinds` ("iu" or "f").

    Raises:
        DataError: no such dataset, it is kept in another file, or its shape or dtype is another.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise DataError(f"{file.filename}: no dataset {name}; it holds {', '.join(sorted(file)) or 'nothing'}")
    found = file.get(name) if isinstance(link, h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise DataError(f"{file.filename}: {name} is not a dataset within this file; write its values into the file")
    if found.shape is None or len(found.shape) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise DataError(f"{file.filename}: {name} has the shape {found.shape}; it takes {wanted} axes")
    if found.dtype.kind not in kinds:
        wanted = "integers" if kinds == "iu" else "floating-point numbers"
        raise DataError(f"{file.filename}: {name} holds {found.dtype}; write it as {wanted}")
    if 0 in found.shape:
        raise DataError(f"{file.filename}: {name} is empty, of shape {found.shape}; fill it, or leave the split out")
    if found.id.get_storage_size() == 0:  # HDF5 would read zeros
        raise DataError(f"{file.filename}: {name} was declared, but never written; write the file again")
    return found


def read_captions(file: h5py.File, split: str, vocabulary: Vocabulary, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The split's captions (M, T) and image indices (M,), both int64, every one of them checked.

    Args:
        images: the number of rows of the split's features.

    Raises:
        DataError: an id outside the vocabulary or the features, or a row that is not <START>, words, <END>, <NULL>s.
    """
    captions = dataset(file, f"{split}_captions", (2,), "iu")[()]
    image_idxs = dataset(file, f"{split}_image_idxs", (1,), "iu")[()]
    if len(captions) != len(image_idxs):
        raise DataError(
            f"{file.filename}: {split}_captions has {len(captions)} rows and {split}_image_idxs {len(image_idxs)}; "
            "each caption takes one image index"
        )
    _check_words(f"{file.filename}: {split}_captions", captions, vocabulary)
    outside = np.flatnonzero((image_idxs < 0) | (image_idxs >= images))
    if outside.size:
        row = outside[0]
        raise DataError(
            f"{file.filename}: {split}_image_idxs[{row}] is {image_idxs[row]}, but the split's features have {images} "
            "rows; bring the features that belong to these captions"
        )
    return captions.astype(np.int64), image_idxs.astype(np.int64)


def _check_words(where: str, captions: np.ndarray, vocabulary: Vocabulary) -> None:
    """`where` begins the message. The dtype is still the file's: uint64 must not wrap before it is compared."""
    null, start, end = (vocabulary.word_to_idx[word] for word in (NULL, START, END))
    column = np.arange(captions.shape[1])
    is_end = captions == end
    last = np.where(is_end.any(1), is_end.argmax(1), captions.shape[1])[:, None]  # the column of <END>, per row
    words = (column > 0) & (column < last)
    faults = (
        (
            (captions < 0) | (captions >= len(vocabulary)),
            f"but the vocabulary has {len(vocabulary)} words; bring the vocabulary that these captions were made with",
        ),
        (
            (column == 0) & (captions != start),
            f"but a caption starts with <START>, {start}; write these captions again",
        ),
        (
            (column == captions.shape[1] - 1) & (last == captions.shape[1]),
            f"and the row has no <END>, {end}; end the caption, or leave it out",
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
            raise DataError(f"{where}[{row}, {col}] is {captions[row, col]}, {reason}")


def read_rows(features: h5py.Dataset, rows: Any) -> np.ndarray:
    """Rows of features as float32 in the machine's byte order; what float32 cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return features[rows].astype(np.float32, copy=False)


def read_features(features: h5py.Dataset, where: str, out: np.ndarray | None) -> None:
    """Check that every feature is finite, block by block, and fill `out` with them where given.

    Args:
        features: (images, D) or (images, D, ...) for the places of a grid.
        where: begins the message of an error.
        out: (images, D), or (images, places, D).

    Raises:
        DataError: a NaN, an infinity, or a number beyond float32.
    """
    images, *shape = features.shape
    block = max(1, BLOCK_BYTES // (features.dtype.itemsize * math.prod(shape)))
    for start in range(0, images, block):
        values = read_rows(features, slice(start, start + block))
        finite = np.isfinite(values)
        if not finite.all():
            row, *place = map(int, np.unravel_index(int((~finite).argmax()), finite.shape))
            place = [start + row, *place]
            raise DataError(
                f"{where}{place} is {features[tuple(place)]}, not a finite float32; "
                "extract the features again, or leave the image out"
            )
        if out is not None:
            out[start : start + block] = by_place(values) if values.ndim > 2 else values


def by_place(grids: np.ndarray) -> np.ndarray:
    """(B, D, ...) as (B, places, D)."""
    return grids.reshape(*grids.shape[:2], math.prod(grids.shape[2:])).swapaxes(1, 2)


def read_names(path: Path, images: int) -> list[str] | None:
    """The lines of a file that names one image a row; None if there is no such file.

    Raises:
        DataError: not UTF-8, or not as many lines as there are images.
    """
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: not a text in UTF-8: {one_line(error)}; save it as UTF-8") from None
    if lines[-1] == "":
        lines.pop()
    if len(lines) != images:
        raise DataError(
            f"{path}: has {len(lines)} lines, but the split's features have {images} rows; "
            "the file takes one line an image, in the order of the rows"
        )
    return [line.strip() for line in lines]


def read_manifest(path: Path) -> dict[str, Any]:
    """`manifest.json`, which says how the features were made; {} if there is none.

    Raises:
        DataError: the file is not a JSON object in UTF-8.
    """
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path}: not JSON in UTF-8: {one_line(error)}; write it again, or remove it") from None
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: holds {type(manifest).__name__}, not an object; write it again, or remove it")
    if not isinstance(manifest.get("images", ""), str):
        raise DataError(f"{path}: images is {manifest['images']!r}, not the name of a folder; write it again")
    return manifest


def read_vocabulary(path: Path) -> Vocabulary:
    """`coco2014_vocab.json`.

    Raises:
        DataError: missing, not JSON, or its two halves disagree.
    """
    try:
        return Vocabulary.load(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{one_line(error)}; copy the file that belongs to these captions") from None
