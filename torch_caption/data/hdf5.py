"""HDF5 files from untrusted sources: their datasets are checked before a value is read.

A file can refer to other files, to filters that are loaded as code, and to sizes beyond the memory. All that captions
and features do not need is refused, and every chunk of a dataset must be stored in the file.
"""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
from h5py import h5pl, h5t, h5z

from torch_caption.errors import DataError
from torch_caption.io.exits import one_line

# What h5py raises for a damaged file, depending on the damage: it maps HDF5's errors to all of these.
HDF5_ERRORS = (
    *(OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError),
    zlib.error,
)

INFLATED_LIMIT = 2**26
"""A dataset of at most this many bytes (64 MiB) may have any compression ratio."""
RATIO_LIMIT = 200
"""Maximum compression ratio of a larger one. Features reach 2, captions 20."""
CHUNK_LIMIT = 2**28
"""Maximum size of a compressed chunk in bytes (256 MiB): HDF5 decompresses it in memory."""
ROW_LIMIT = 2**26
"""Maximum size of a row in bytes (64 MiB): the features of an image, or a caption."""


class _Filter(NamedTuple):
    """A permitted filter and its maximum compression ratio."""

    name: str
    ratio: int = 1


_FILTERS = {
    h5z.FILTER_SHUFFLE: _Filter("shuffle"),
    h5z.FILTER_DEFLATE: _Filter("deflate", 1032),
    h5z.FILTER_LZF: _Filter("lzf", 88),
    h5z.FILTER_FLETCHER32: _Filter("fletcher32"),
}
_BITS, _ORDERS = (8, 16, 32, 64), ("LE", "BE")
INTEGERS, FLOATS = "integers", "floating-point numbers"
_TYPES = {
    INTEGERS: [getattr(h5t, f"STD_{sign}{bits}{order}") for sign in "IU" for bits in _BITS for order in _ORDERS],
    FLOATS: [getattr(h5t, f"IEEE_F{bits}{order}") for bits in _BITS[1:] for order in _ORDERS],
}
_SHOWN = 8  # names in a message
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_CHECKSUM_BYTES = 4  # at the end of a chunk, by fletcher32


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file, read only; no plugin of HDF5 is loaded in the block.

    Raises:
        DataError: the file is missing, locked by a writer, not HDF5, truncated, or damaged where the block reads it.
    """
    with examined(path), h5py.File(path, "r") as file:
        yield file


@contextmanager
def examined(path: Path) -> Iterator[None]:
    """In the block, HDF5's errors for the file become DataErrors, and no plugin is loaded."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; copy it there, or download the directory again")
    try:
        with _no_plugins():
            yield
    except DataError:
        raise
    except HDF5_ERRORS as error:
        raise DataError(f"{path}: {_refusal(path, error)}") from None


def check_free(path: Path) -> None:
    """Raise DataError if another process has the HDF5 file open for writing, so that it may be incomplete."""
    try:
        h5py.File(path, "r").close()
    except HDF5_ERRORS as error:
        if _is_locked(error):
            raise DataError(f"{path}: {_refusal(path, error)}") from None


def _is_locked(error: Exception) -> bool:
    return "unable to lock file" in str(error) and getattr(error, "errno", None) not in _NO_LOCKS


def _refusal(path: Path, error: Exception) -> str:
    """Why a file cannot be opened or read, and what to do: a locked or unreadable file is not damaged."""
    text, number = one_line(error), getattr(error, "errno", None)
    if _is_locked(error):
        return "another process has it open for writing and locks it; close it there, or wait until it is written"
    if "unable to lock file" in text:
        return "its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE in the environment to read without"
    if "already open for write" in text:  # HDF5's mark in the file itself
        return (
            "it is marked as open for writing; close it there, or, if no process has it open, because the one that "
            f"wrote it was ended, write it again (`h5clear -s {path}` removes the mark)"
        )
    if number is not None:  # the system's refusal, not damage in the file
        return f"cannot be read: {os.strerror(number)}"
    return f"not a readable HDF5 file ({text}); copy or download it again"


@contextmanager
def _no_plugins() -> Iterator[None]:
    """HDF5 has no folder of filters in the block: an unknown filter is then an error and not code."""
    folders = []
    while h5pl.size():
        folders.append(h5pl.get(0))
        h5pl.remove(0)
    try:
        yield
    finally:
        for folder in folders:
            h5pl.append(folder)


def dataset(file: h5py.File, name: str, ranks: Collection[int], values: str) -> h5py.Dataset:
    """The dataset `name`, with one of the `ranks`, no empty axis, and all of its values stored in the file.

    Args:
        values: `INTEGERS` or `FLOATS`.

    Raises:
        DataError: there is no such dataset, its shape or type is invalid, or it is incomplete.
    """
    where = f"{file.filename}: {name}"
    link = file.get(name, getlink=True)
    if link is None:
        raise DataError(f"{file.filename}: no dataset {name}; it contains {names(file)}")
    found = file.get(name) if isinstance(link, h5py.HardLink) else None  # other links refer to other datasets or files
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise DataError(f"{where} is not a dataset within this file; write its values into the file")
    if found.id.get_type() not in _TYPES[values]:  # other types of the class have another bit layout
        raise DataError(f"{where} contains {_type_name(found, values)}; write it as {values}")
    if found.shape is None or len(found.shape) not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise DataError(f"{where} has the shape {found.shape}; it must have {wanted} axes")
    if 0 in found.shape:
        raise DataError(f"{where} is empty, of shape {found.shape}; fill it, or remove the split")
    _check_stored(found, where)
    return found


def names(file: h5py.File) -> str:
    """The names of the file's datasets, for a message."""
    found = [repr(name)[1:-1][:80] for name in sorted(file)]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more or "nothing"


def _type_name(found: h5py.Dataset, wanted: str) -> str:
    kind = found.id.get_type().get_class()
    unusual = {h5t.ENUM: "an enumeration", h5t.BITFIELD: "bit fields"}
    if kind in unusual:
        return unusual[kind]
    try:
        name = str(found.dtype)
    except (TypeError, ValueError):
        return "a type that NumPy does not have"
    same = kind == {INTEGERS: h5t.INTEGER, FLOATS: h5t.FLOAT}[wanted]
    return f"{name}, of an unknown layout" if same else name


def _check_stored(found: h5py.Dataset, where: str) -> None:
    """Raise DataError unless every value is stored in the file, within the limits of memory."""
    declared = math.prod(found.shape) * found.id.get_type().get_size()
    stored = found.id.get_storage_size()
    if stored == 0:  # HDF5 would read zeros
        raise DataError(f"{where} was declared, but never written; write the file again")
    if declared // found.shape[0] > ROW_LIMIT:
        raise DataError(
            f"{where} has the shape {found.shape}: a row takes {declared // found.shape[0]:,} bytes, more than the "
            f"limit {ROW_LIMIT:,}; write one image or caption per row"
        )
    size = os.path.getsize(found.file.filename)
    if stored > size or (found.chunks is None and stored < declared):
        raise DataError(
            f"{where} declares {declared:,} bytes, {stored:,} of the file's {size:,}; it is damaged: write or "
            "download the file again"
        )
    if found.chunks is not None:
        _check_chunks(found, where, declared, stored)


def _check_chunks(found: h5py.Dataset, where: str, declared: int, stored: int) -> None:
    expected = math.prod(-(-length // chunk) for length, chunk in zip(found.shape, found.chunks, strict=True))
    count = found.id.get_num_chunks()
    if count != expected:
        raise DataError(
            f"{where} has the shape {found.shape}, of which {count:,} of {expected:,} chunks were written; write the "
            "file again"
        )
    filters = _filters(found, where)
    if not filters:
        return
    chunk = math.prod(found.chunks) * found.id.get_type().get_size()
    if chunk > CHUNK_LIMIT:
        raise DataError(
            f"{where} has chunks of {chunk:,} bytes, more than the limit {CHUNK_LIMIT:,} of compressed ones; "
            "write smaller chunks"
        )
    if declared > max(INFLATED_LIMIT, RATIO_LIMIT * stored):
        raise DataError(
            f"{where} has the shape {found.shape}: {stored:,} bytes that decompress to {declared:,}, more than "
            f"{RATIO_LIMIT} times as many; write it without compression"
        )
    _check_inflation(found, where, chunk, filters)


def _filters(found: h5py.Dataset, where: str) -> list[int]:
    """The filters of its chunks; only HDF5's and h5py's own are allowed, each once."""
    plist = found.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    for index, code in enumerate(filters):
        if code not in _FILTERS or not h5z.filter_avail(code) or code in filters[:index]:
            raise DataError(
                f"{where} is compressed by the filter {code}, which is not allowed; write it with one of "
                f"{', '.join(known.name for known in _FILTERS.values())}, or without any"
            )
    if {h5z.FILTER_DEFLATE, h5z.FILTER_LZF} <= {*filters}:  # one would decompress the output of the other
        raise DataError(f"{where} is compressed by deflate and by lzf; write it with one of them")
    return filters


def _check_inflation(found: h5py.Dataset, where: str, chunk: int, filters: list[int]) -> None:
    """Raise DataError if a chunk decompresses to more than its size: HDF5 decompresses it completely before it checks.

    Chunks that cannot exceed `CHUNK_LIMIT`, such as those with h5py's default size, are not decompressed here.
    """
    chunks: list[Any] = []
    found.id.chunk_iter(chunks.append)
    most = max(info.size for info in chunks)
    if most > chunk + chunk // 64 + 2**10:  # incompressible data grows by less
        raise DataError(
            f"{where} stores {most:,} bytes of a chunk of {chunk:,}; it is damaged: write or download the file again"
        )
    for info in chunks:
        # A bit of the mask is a filter that was not applied to the chunk; HDF5 decodes the others.
        passed = [code for index, code in enumerate(filters) if not info.filter_mask >> index & 1]
        if max((_FILTERS[code].ratio for code in passed), default=1) * info.size <= CHUNK_LIMIT:
            continue
        if h5z.FILTER_LZF in passed:
            raise DataError(f"{where} has chunks of {info.size:,} bytes; write smaller chunks, or use deflate")
        if h5z.FILTER_DEFLATE not in passed:
            continue
        tail = _CHECKSUM_BYTES if passed[-1] == h5z.FILTER_FLETCHER32 else 0
        _, packed = found.id.read_direct_chunk(info.chunk_offset)
        unpacked = zlib.decompressobj().decompress(packed[: len(packed) - tail], chunk + 2 * _CHECKSUM_BYTES)
        if len(unpacked) > chunk + _CHECKSUM_BYTES:
            raise DataError(
                f"{where}: the chunk at {info.chunk_offset} decompresses to more than its {chunk:,} bytes; it is "
                "damaged: write or download the file again"
            )
