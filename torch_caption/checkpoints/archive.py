"""What an archive of `torch.save` says it holds, found out before any of it is made.

`torch.load(weights_only=True)` runs no code, but it makes what the file asks for: one stored number may be declared a
tensor of terabytes, and a kilobyte of tuples within tuples, as the key of a dict, takes forever to hash, a megabyte of
them the process down (torch 2.13). `examine` reads the archive's directory and steps through its pickle with an
interpreter that knows only what plain values and tensors are written with, makes nothing larger than the file, and
holds what is declared against what is there. Only what passes is given to torch.

An archive that `examine` accepts is laid out as torch writes it: its records uncompressed, under their names, one after
the other, its directory at its end; in its pickle a tree of dicts with keys of str and int, lists, tuples, str, int,
float, bool, None, and tensors, each in a storage of its own and of its size.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

MOST_RECORDS = 4096
MOST_PICKLE = 16 * 2**20
MOST_OPCODES = 1_000_000
MOST_DEPTH = 32
MOST_AXES = 8

STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
TENSOR, HOOKS = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_NAMES = re.compile(r"[\w.-]{1,100}/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
                    r"\.data/serialization_id|data/(0|[1-9]\d{0,8}))", re.ASCII)  # fmt: skip
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")


class ArchiveError(ValueError):
    """The archive is not as `torch.save` writes plain values and tensors; the message says where, in half a line."""


@dataclass(frozen=True)
class Declared:
    """A tensor that the archive says it holds."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


def examine(data: bytes, comment: int = 0, *, views: bool = False) -> Any:
    """The content of an archive, with a `Declared` for each tensor.

    Args:
        data: the whole file.
        comment: the length of the archive's comment, which is at the end of the file.
        views: a tensor may also be a part of its storage, in any order.

    Raises:
        ArchiveError: it holds something else, or says what is not so.
    """
    _check_end(data, comment)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = _records(archive, len(data))
            pickle = archive.read(_only(records, "data.pkl"))
            order = archive.read(_only(records, "byteorder"))
    except ArchiveError:
        raise
    except Exception as error:  # a stranger's bytes raise whatever they like
        raise ArchiveError("no sound archive") from error
    if order not in (b"little", b"big"):
        raise ArchiveError(f"a byte order {order[:20]!r}")
    sizes = {key.partition("/data/")[2]: size for key, size in records.items() if "/data/" in key}
    content = _Interpreter(sizes, views).run(pickle)
    used: set[str] = set()
    _check_tree(content, used, 0)
    if used != sizes.keys():
        raise ArchiveError(f"{len(sizes.keys() - used)} records that belong to nothing")
    return content


def _check_end(data: bytes, comment: int) -> None:
    """There is one end, at the end: whoever reads the archive, in whichever way, finds the same directory."""
    place = len(data) - comment - _END.size
    if place < 0 or data.rfind(b"PK\5\6") != place:
        raise ArchiveError("no end of an archive where it should be")
    *_, disk, first, here, count, size, offset, length = _END.unpack_from(data, place)
    if (disk, first, here, length) != (0, 0, count, comment):
        raise ArchiveError("an archive of several parts")
    if data[place - _LOCATOR.size : place - _LOCATOR.size + 4] == b"PK\6\7":
        place -= _LOCATOR.size + _END64.size
        if place < 0:
            raise ArchiveError("an archive without a directory")
        end = _END64.unpack_from(data, place)
        locator = _LOCATOR.unpack_from(data, place + _END64.size)
        if (end[0], end[1], *end[4:7], *locator[1:]) != (b"PK\6\6", 44, 0, 0, end[7], 0, place, 1):
            raise ArchiveError("an end of an archive that contradicts itself")
        count64, size64, offset64 = end[7:]
        if count not in (count64, 0xFFFF) or size not in (size64, 2**32 - 1) or offset not in (offset64, 2**32 - 1):
            raise ArchiveError("an end of an archive that contradicts itself")
        count, size, offset = count64, size64, offset64
    if offset + size != place:
        raise ArchiveError("a directory that is not where it is said to be")
    if count > MOST_RECORDS or size > MOST_RECORDS * 256:
        raise ArchiveError(f"{count:,} records in a directory of {size:,} bytes; {MOST_RECORDS:,} are the most")


def _records(archive: zipfile.ZipFile, length: int) -> dict[str, int]:
    """The records' sizes by their names."""
    sizes: dict[str, int] = {}
    behind = 0  # where the last record ends, at the least
    for entry in archive.infolist():
        name = entry.filename
        if not _NAMES.fullmatch(name) or name in sizes:
            raise ArchiveError(f"a record {name[:100]!r}{' twice' if name in sizes else ''}")
        if name.partition("/")[0] != next(iter(sizes), name).partition("/")[0]:
            raise ArchiveError("records of several archives")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ArchiveError(f"a record {name!r} that is compressed")
        if entry.flag_bits & 0x1:
            raise ArchiveError(f"a record {name!r} that is encrypted")
        if entry.header_offset < behind:
            raise ArchiveError(f"a record {name!r} that begins within another")
        behind = entry.header_offset + 30 + len(name) + entry.file_size
        if behind > length:
            raise ArchiveError(f"a record {name!r} of {entry.file_size:,} bytes in a file of {length:,}")
        sizes[name] = entry.file_size
    return sizes


def _only(records: Mapping[str, int], name: str) -> str:
    """The full name of the archive's own record."""
    (found,) = (full for full in records if full.partition("/")[2] == name)
    most = MOST_PICKLE if name == "data.pkl" else 100
    if records[found] > most:
        raise ArchiveError(f"a record {name!r} of {records[found]:,} bytes; {most:,} are the most")
    return found


class _Interpreter:
    """Steps through a pickle as torch's weights-only unpickler does, with descriptions in the place of tensors.

    Nothing is called and nothing imported. What it makes takes memory in proportion to the pickle.

    Args:
        sizes: bytes of each storage's record, by its key.
        views: as in `examine`.
    """

    def __init__(self, sizes: Mapping[str, int], views: bool = False) -> None:
        self._sizes = sizes
        self._views = views
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """What the pickle makes."""
        try:
            for number, (opcode, value, place) in enumerate(pickletools.genops(pickle)):
                if number >= MOST_OPCODES:
                    raise ArchiveError(f"a pickle of more than {MOST_OPCODES:,} steps")
                if opcode.name == "STOP":
                    return self._stop(at_end=place == len(pickle) - 1)
                step = _STEPS.get(opcode.name)
                if step is None or (opcode.name == "PROTO") != (number == 0):
                    raise ArchiveError(f"a pickle with {opcode.name} at {place}")
                step(self, value)
        except ArchiveError:
            raise
        except Exception as error:  # a stranger's bytes raise whatever they like
            raise ArchiveError("no sound pickle") from error
        raise ArchiveError("a pickle without an end")

    def _stop(self, at_end: bool) -> Any:
        (content,) = self._stack
        if self._below or not at_end:
            raise ArchiveError("no sound pickle")
        return content

    def _protocol(self, number: int) -> None:
        if number != 2:
            raise ArchiveError(f"a pickle of protocol {number}")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        """Words and names stand once and are used again; with containers that would make more than is written."""
        value = self._memo[index]
        flat = isinstance(value, tuple) and len(value) <= MOST_AXES and all(type(v) in _NUMBERS for v in value)
        if not flat and not isinstance(value, str | _Global):
            raise ArchiveError("a pickle that uses a part twice")
        self._stack.append(value)

    def _tuple(self, count: int | None) -> None:
        items = self._marked() if count is None else [self._stack.pop() for _ in range(count)][::-1]
        self._stack.append(tuple(items))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ArchiveError("a pickle that appends to what is no list")
        target += items

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        keys, values = items[::2], items[1::2]
        if type(target) is not dict or len(keys) != len(values):
            raise ArchiveError("a pickle that sets items of what is no dict")
        strange = [type(key).__name__ for key in keys if type(key) not in (str, int)]
        if strange:
            raise ArchiveError(f"a dict with a key that is a {strange[0]}")
        target.update(zip(keys, values, strict=True))

    def _name(self, name: str) -> None:
        if name not in (TENSOR, HOOKS) and name not in STORAGES:
            raise ArchiveError(f"more than tensors and plain values: {name[:100].replace(' ', '.')!r}")
        self._stack.append(_Global(name))

    def _call(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if function == _Global(HOOKS) and arguments == ():
            self._stack.append({})
        elif function == _Global(TENSOR):
            self._stack.append(_tensor(self._views, *arguments))
        else:
            raise ArchiveError("a pickle that calls what is no tensor")

    def _storage(self, _: None) -> None:
        kind, of, key, location, numel = self._stack.pop()
        right = kind == "storage" and type(of) is _Global and of.name in STORAGES and type(key) is str
        if not right or type(location) is not str or type(numel) is not int or key not in self._sizes:
            raise ArchiveError("a storage that is not there")
        dtype = STORAGES[of.name]
        if numel < 0 or numel * dtype.itemsize != self._sizes[key]:
            raise ArchiveError(f"a storage of {_number(numel)} {dtype} in a record of {self._sizes[key]:,} bytes")
        self._stack.append(_Storage(dtype, key, numel))


_NUMBERS = (int, float, bool, type(None))
_STEPS: dict[str, Any] = {
    "PROTO": _Interpreter._protocol,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Interpreter._push),
    "NONE": lambda self, _: self._push(None),
    "NEWTRUE": lambda self, _: self._push(True),
    "NEWFALSE": lambda self, _: self._push(False),
    "EMPTY_DICT": lambda self, _: self._push({}),
    "EMPTY_LIST": lambda self, _: self._push([]),
    "EMPTY_TUPLE": lambda self, _: self._push(()),
    "MARK": _Interpreter._mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Interpreter._put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Interpreter._get),
    "TUPLE": _Interpreter._tuple,
    "TUPLE1": lambda self, _: self._tuple(1),
    "TUPLE2": lambda self, _: self._tuple(2),
    "TUPLE3": lambda self, _: self._tuple(3),
    "APPEND": lambda self, _: self._append([self._stack.pop()]),
    "APPENDS": lambda self, _: self._append(self._marked()),
    "SETITEM": lambda self, _: self._set([self._stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda self, _: self._set(self._marked()),
    "GLOBAL": _Interpreter._name,
    "REDUCE": _Interpreter._call,
    "BINPERSID": _Interpreter._storage,
}


def _tensor(
    views: bool, storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, *more: Any
) -> Declared:
    """A tensor that is all of its storage, row after row; with `views`, one that does not leave it or repeat it."""
    if type(storage) is not _Storage or type(requires_grad) is not bool or hooks != {} or more:
        raise ArchiveError("a tensor that is not torch's own")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise ArchiveError("a tensor without a sound shape")
    if any(type(size) is not int or size < 0 for size in (offset, *shape, *strides)):
        raise ArchiveError("a tensor without a sound shape")
    count = prod(shape)
    axes = list(zip(shape, strides, strict=True))
    if views:
        last = offset + sum((size - 1) * stride for size, stride in axes)
        fits = count <= storage.numel and (count == 0 or last < storage.numel)
    else:
        rows = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        in_order = all(size == 1 or stride == row for (size, stride), row in zip(axes, rows, strict=True))
        fits = offset == 0 and count == storage.numel and (in_order or count == 0)
    if not fits:
        declared = " x ".join(_number(size) for size in shape)
        raise ArchiveError(f"a tensor of {declared or 'one'} that is not its storage of {storage.numel:,} numbers")
    return Declared(storage.dtype, shape, storage.key)


def _number(value: int) -> str:
    return f"{value:,}" if abs(value) < 2**63 else "far too many"


def _check_tree(value: Any, used: set[str], depth: int) -> None:
    """Plain values and tensors alone, not too deep, and no storage twice; which storages are used goes into `used`."""
    if depth > MOST_DEPTH:
        raise ArchiveError(f"values within values, more than {MOST_DEPTH} deep")
    if type(value) is dict:
        for entry in value.values():
            _check_tree(entry, used, depth + 1)
    elif type(value) in (list, tuple):
        for entry in value:
            _check_tree(entry, used, depth + 1)
    elif type(value) is Declared:
        if value.key in used:
            raise ArchiveError("two tensors in one storage")
        used.add(value.key)
    elif type(value) not in (str, *_NUMBERS):
        raise ArchiveError("more than tensors and plain values")
