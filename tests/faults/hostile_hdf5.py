"""Data directories whose HDF5 files are made to mislead, and sound ones whose bytes were changed.

tests/data/test_checks.py has the files with wrong values, shapes and dtypes.
"""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from tests.faults import victims
from tests.faults.figures import Family, Figures
from tests.faults.victims import Case
from tests.helpers.tiny_data import D, write_tiny

CAPTIONS, FEATURES = "coco2014_captions.h5", "train2014_vgg16_fc7.h5"
SECONDS, MIB = 20.0, 1000.0
IMAGES = 12  # of `write_tiny`


@dataclass(frozen=True)
class Kind:
    """One way to mislead.

    Attributes:
        make: changes a sound directory.
        file: the file that the message has to name; None where the directory stays sound.
    """

    make: Callable[[Path], object]
    file: str | None


def edited(file: str, name: str, change: Callable[[np.ndarray], object], **settings: object) -> Kind:
    """Another dataset in the place of one, made of its values."""
    return Kind(lambda folder: _replace(folder / file, name, change, settings), file)


def _replace(path: Path, name: str, change: Callable[[np.ndarray], object], settings: dict[str, object]) -> None:
    with h5py.File(path, "r+") as file:
        values = change(file[name][()])
        del file[name]
        file.create_dataset(name, data=values, **settings)


def put(place: tuple[int, ...] | int, value: float, dtype: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.astype(dtype or values.dtype)
        values[place] = value
        return values

    return change


def made(fill: Callable[[h5py.File, Path], object], file: str = FEATURES) -> Kind:
    """A whole file of its own."""

    def make(folder: Path) -> None:
        with h5py.File(folder / file, "w") as content:
            fill(content, folder)

    return Kind(make, file)


def typed(kind: h5t.TypeID, shape: tuple[int, ...] = (IMAGES, D)) -> Kind:
    """Features of a type that h5py does not make by itself."""

    def fill(file: h5py.File, _: Path) -> None:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        h5d.create(file.id, b"features", kind, h5s.create_simple(shape), plist)

    return made(fill)


def content(write: Callable[[Path], object], file: str) -> Kind:
    """Something else in a file's place."""

    def make(folder: Path) -> None:
        (folder / file).unlink()
        write(folder / file)

    return Kind(make, file)


def named_type(file: h5py.File, _: Path) -> None:
    file["features"] = np.dtype("<f4")


def root_in_its_place(file: h5py.File, _: Path) -> None:
    file["features"] = file["/"]


def virtual_of_a_pipe(file: h5py.File, folder: Path) -> None:
    os.mkfifo(folder / "pipe")  # opening it blocks
    layout = h5py.VirtualLayout((IMAGES, D), "<f4", maxshape=(None, D))
    source = h5py.VirtualSource(str(folder / "pipe"), "features", (IMAGES, D), maxshape=(None, D))
    layout[: h5s.UNLIMITED, :] = source[: h5s.UNLIMITED, :]
    file.create_virtual_dataset("features", layout)


def packed(data: bytes) -> bytes:
    return zlib.compress(data, 9)


def bomb(rows: int, chunk: int, squeeze: Callable[[bytes], bytes], **settings: object) -> Callable[..., None]:
    """Zeros, `rows` of 1 KiB: every chunk of them the same few bytes."""

    def fill(file: h5py.File, _: Path) -> None:
        features = file.create_dataset("features", (rows, 256), "<f4", chunks=(chunk, 256), **settings)
        small = squeeze(bytes(chunk * 1024))
        for first in range(0, rows, chunk):
            features.id.write_direct_chunk((first, 0), small)

    return fill


def twice_packed(file: h5py.File, _: Path) -> None:
    """100 GB in a few hundred kilobytes."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((2**14, 256))
    plist.set_deflate(9)
    plist.set_filter(1, 0, (9,))
    rows = 100 * 2**20
    kind = h5d.create(file.id, b"features", h5t.IEEE_F32LE, h5s.create_simple((rows, 256)), plist)
    small = packed(packed(bytes(2**24)))
    for first in range(0, rows, 2**14):
        kind.write_direct_chunk((first, 0), small)


def endless(blocks: int) -> bytes:
    """A stream of so many equal blocks of 16 MiB."""
    squeezer = zlib.compressobj(1)
    head = squeezer.compress(b"0") + squeezer.flush(zlib.Z_FULL_FLUSH)
    block = squeezer.compress(bytes(2**24)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    return head + block * blocks + squeezer.flush()


def stream_bomb(rows: int, blocks: int) -> Callable[..., None]:
    """A chunk whose stream does not end where the chunk does."""

    def fill(file: h5py.File, _: Path) -> None:
        features = file.create_dataset("features", (rows, 256), "<f4", chunks=(rows, 256), compression="gzip")
        features.id.write_direct_chunk((0, 0), endless(blocks))

    return fill


def filtered(code: int, flags: int) -> Callable[..., None]:
    """Written by a filter that exists nowhere."""

    def fill(file: h5py.File, _: Path) -> None:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((IMAGES, D))
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL, ())
        features = h5d.create(file.id, b"features", h5t.IEEE_F32LE, h5s.create_simple((IMAGES, D)), plist)
        features.write_direct_chunk((0, 0), bytes(4 * IMAGES * D), filter_mask=flags)

    return fill


def nothing_stored(file: h5py.File, _: Path) -> None:
    file.create_dataset("features", (2**40, D), "<f4", chunks=(1000, D))


def half_stored(file: h5py.File, _: Path) -> None:
    features = file.create_dataset("features", (IMAGES, D), "<f4", chunks=(1, D))
    features[: IMAGES // 2] = 1


def grown(file: h5py.File, _: Path) -> None:
    """Rows of zeros that nobody wrote behind those that somebody did."""
    features = file.create_dataset("features", data=np.ones((IMAGES, D), "f4"), chunks=(IMAGES, D), maxshape=(None, D))
    features.resize(10**9, 0)


def wide(file: h5py.File, _: Path) -> None:
    features = file.create_dataset("features", (2, 2**25), "<f4", chunks=(1, 2**22), compression="gzip")
    small = packed(bytes(2**24))
    for place in range(16):
        features.id.write_direct_chunk((place // 8, place % 8 * 2**22), small)


def crowded(file: h5py.File, _: Path) -> None:
    for number in range(3000):
        file.create_group(f"group {number} \x1b[2J \n")


def long_captions(file: h5py.File, folder: Path) -> None:
    rows = np.zeros((3, 10**6), np.int8)
    rows[:, 0], rows[:, -1], rows[:, 1:-1] = 1, 2, 5
    for split in ("train", "val", "test"):
        file.create_dataset(f"{split}_captions", data=rows, compression="gzip")
        file[f"{split}_image_idxs"] = np.arange(3)


def deep(file: h5py.File, _: Path) -> None:
    """Groups in groups, and features at the end of a chain of soft links."""
    inner = file
    for number in range(500):
        inner = inner.create_group(f"g{number}")
    file["link 0"] = h5py.SoftLink("/link 1")
    file["link 1"] = h5py.SoftLink("/link 0")
    file["features"] = h5py.SoftLink("/link 0")


HOSTILE: dict[str, Kind] = {
    "soft links in a circle": made(deep),
    "virtual, of a pipe": made(virtual_of_a_pipe),
    "root in its place": made(root_in_its_place),
    "named type": made(named_type),
    "many names": made(crowded),
    "a folder": content(lambda path: path.mkdir(), CAPTIONS),
    "a pipe": content(os.mkfifo, CAPTIONS),
    "endless": content(lambda path: path.symlink_to("/dev/zero"), FEATURES),
    "rank 32": edited(FEATURES, "features", lambda x: x.reshape([1] * 30 + [*x.shape])),
    "strings of any length": edited(CAPTIONS, "val_captions", lambda x: [["dog"]] * len(x), dtype=h5py.string_dtype()),
    "rows of any length": edited(
        CAPTIONS, "val_captions", lambda x: np.array([[1, 2]] * 3 + [[1]], object)[:0], dtype=h5py.vlen_dtype("i4")
    ),
    "references": edited(CAPTIONS, "val_captions", lambda x: np.empty((3, 2), h5py.ref_dtype), dtype=h5py.ref_dtype),
    "opaque": edited(FEATURES, "features", lambda x: x.view("V4")),
    "bit fields": typed(h5t.STD_B32LE),
    "dates": typed(h5t.UNIX_D32LE),
    "arrays": typed(h5t.array_create(h5t.IEEE_F32LE, (D,)), (IMAGES,)),
    "no chunk stored": made(nothing_stored),
    "half of the chunks": made(half_stored),
    "grown": made(grown),
    "bomb": made(bomb(2**20, 2**14, packed, compression="gzip")),
    "bomb, packed twice": made(twice_packed),
    "bomb in a stream": made(stream_bomb(IMAGES, 32)),
    "bomb in a large stream": made(stream_bomb(2**13, 64)),
    "one huge chunk": made(bomb(2**19, 2**19, lambda _: packed(b""), compression="gzip")),
    "rows of 128 MiB": made(wide),
    "unknown filter, said to be skipped": made(filtered(32001, 1)),
    "id beyond int64, as zero": edited(CAPTIONS, "val_captions", put((2, 5), 2**63, "u8")),
    "captions without end": made(long_captions, CAPTIONS),
    "infinity in half": edited(FEATURES, "features", put((5, 2), np.inf, "f2")),
}


def aside(folder: Path) -> None:
    """Attributes, groups, unknown datasets and hard links, none of which is read."""
    with h5py.File(folder / FEATURES, "r+") as file:
        file.attrs["note"] = "x" * 60_000
        file["features"].attrs["note"] = np.arange(1000)
        file["more"] = file["features"]
        file.create_group("a/b/c")
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")


def behind_a_user_block(folder: Path) -> None:
    with h5py.File(folder / FEATURES) as file:
        values = file["features"][()]
    with h5py.File(folder / FEATURES, "w", userblock_size=512) as file:
        file["features"] = values
    with (folder / FEATURES).open("r+b") as file:
        file.write(b"#!/bin/sh\n")


def newest(folder: Path) -> None:
    with h5py.File(folder / FEATURES) as file:
        values = file["features"][()]
    with h5py.File(folder / FEATURES, "w", libver="latest") as file:
        file.create_dataset("features", data=values, chunks=(5, 3), maxshape=(None, None), compression="gzip")


SOUND: dict[str, Kind] = {
    "as it is": Kind(lambda folder: None, None),
    "aside": Kind(aside, None),
    "user block": Kind(behind_a_user_block, None),
    "newest": Kind(newest, None),
}

# Bytes changed -------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def mutate(data: bytearray, rng: random.Random) -> bytearray:
    """One of the ways in which bytes go wrong; half of the places are in the head, where the structure is."""
    reach = len(data) if rng.random() < 0.5 else min(len(data), 2048)
    place = rng.randrange(reach)
    way = rng.randrange(7)
    if way == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    elif way == 1:
        data[place] = rng.randrange(256)
    elif way == 2:
        width = rng.choice((2, 4, 8))
        place -= place % width
        data[place : place + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, "little")
    elif way == 3:
        length = rng.choice((4, 16, 64, 512))
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif way == 4:
        other, length = rng.randrange(len(data)), rng.choice((8, 32, 256))
        piece = data[other : other + length]
        data[place : place + len(piece)] = piece
    elif way == 5:
        del data[place:]
    else:
        del data[place : place + rng.choice((1, 8, 100))]
    return data


def mutated(folder: Path, seed: int) -> tuple[str, str]:
    """A sound directory, one of its files changed; the file's name, and a digest of what is read of it all the same:
    "" where values themselves were changed, of which nobody can tell.
    """
    rng = random.Random(seed)
    SOUND[rng.choice([*SOUND])].make(folder)
    path = folder / rng.choice((CAPTIONS, FEATURES))
    before = path.read_bytes()
    after = mutate(bytearray(before), rng)
    places = {place for place, (old, new) in enumerate(zip(before, after, strict=False)) if old != new}
    raw = {place for first, end in stored(path) for place in range(first, end)}
    digest = "" if len(before) <= len(after) and places & raw else victims.digest(str(folder))
    path.write_bytes(after)
    return path.name, digest


def stored(path: Path) -> list[tuple[int, int]]:
    """Where the values of a file's datasets are."""
    places: list[tuple[int, int]] = []

    def look(_: str, found: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(found, h5py.Dataset):
            return
        if found.chunks is None:
            first = found.id.get_offset() or 0
            places.append((first, first + found.id.get_storage_size()))
        else:
            found.id.chunk_iter(lambda info: places.append((info.byte_offset, info.byte_offset + info.size)))

    with h5py.File(path) as file:
        file.visititems(look)
    return places


# The family ----------------------------------------------------------------------------------------------------------


def run(cases: int, seed: int, folder: Path) -> Figures:
    """All that is made by hand in the full set, some of it in the short one; the rest is mutations."""
    base = write_tiny(folder / "base")
    kinds = {**HOSTILE, **SOUND}
    chosen = [*kinds] if cases >= len(kinds) else random.Random(seed).sample([*kinds], cases // 2)
    made_cases = []
    for place, name in enumerate(chosen):
        directory = folder / str(place)
        shutil.copytree(base, directory)
        kinds[name].make(directory)
        file = kinds[name].file
        made_cases.append(Case(name, "check", (str(directory),), file is not None, str(directory / (file or ""))))
    for number in range(cases - len(chosen)):
        directory = folder / f"mutated {number}"
        shutil.copytree(base, directory)
        file, digest = mutated(directory, seed * 1_000_003 + number)
        name = f"mutated({seed * 1_000_003 + number}), {file}"
        made_cases.append(Case(name, "check", (str(directory),), None, f"error: {directory}", digest))
    figures = victims.judge(made_cases, folder, seconds=SECONDS, mib=MIB)
    figures.seen["kinds"] = len(chosen)
    return figures


HDF5 = Family("hostile HDF5", run, short=24, full=600)
