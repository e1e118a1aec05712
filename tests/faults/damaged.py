"""Checkpoints, weights and data that lost something on their way: a byte changed anywhere, or the end is missing."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.helpers import saved_checkpoint
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import checksum as seal
from torch_caption.checkpoints import format as checkpoints
from torch_caption.data import manifest as manifests
from torch_caption.data.dataset import open_kinds
from torch_caption.errors import CheckpointError, DataError

Region = tuple[str, range]


def flipped(cases: int, seed: int, folder: Path) -> Figures:
    """One byte, in every region of the file in turn, becomes another."""
    rng = random.Random(seed)

    def damage(whole: bytes, regions: list[Region], number: int) -> tuple[str, bytes]:
        name, places = regions[number % len(regions)]
        place, change = rng.choice(places), rng.randrange(1, 256)
        changed = bytearray(whole)
        changed[place] ^= change
        return f"{name}, byte {place} ^ {change}", bytes(changed)

    return _refuse_all(cases, folder, damage)


def truncated(cases: int, seed: int, folder: Path) -> Figures:
    """The file ends too early; every third time what is missing is zeros, as a copy that was cut off may leave it."""
    rng = random.Random(seed)

    def damage(whole: bytes, regions: list[Region], number: int) -> tuple[str, bytes]:
        name, places = regions[number % len(regions)]
        end = rng.choice(places)
        filled = number % 3 == 2 and any(whole[end:])
        return f"{name}, ends at {end}{', filled' if filled else ''}", whole[:end] + bytes(len(whole) - end) * filled

    return _refuse_all(cases, folder, damage)


def data(cases: int, seed: int, folder: Path) -> Figures:
    """Of a file of a data directory a byte becomes another, or the end is missing, or is zeros."""
    rng = random.Random(seed)
    figures = Figures()
    figures.expect("loaded silently", "tracebacks")
    write_tiny(folder)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    marks = manifests.marks({path.name: path for path in files})
    (folder / "manifest.json").write_text(json.dumps({manifests.ENTRY: marks}), encoding="utf-8")
    open_kinds(folder)  # whole, it is taken
    for number in range(cases):
        path, whole = rng.choice([*files.items()])
        place = rng.randrange(len(whole))
        rest = {
            "changed": bytes([whole[place] ^ rng.randrange(1, 256)]) + whole[place + 1 :],
            "cut off": b"",
            "filled": bytes(len(whole) - place) if any(whole[place:]) else b"",
        }
        how = list(rest)[number % len(rest)]
        path.write_bytes(whole[:place] + rest[how])
        _must_refuse(figures, lambda: open_kinds(folder), DataError, path, f"{how} at {place}")
        path.write_bytes(whole)
    return figures


def _must_refuse(figures: Figures, load: Callable[[], object], kind: type[Exception], path: Path, what: str) -> None:
    """Count what is no error of that kind, in one line with the file's name."""
    figures.cases += 1
    try:
        load()
    except Exception as error:
        if not isinstance(error, kind) or "\n" in str(error) or str(path) not in str(error):
            figures.wrong("tracebacks", f"{path.name}: {what}: {error!r}")
    else:
        figures.wrong("loaded silently", f"{path.name}: {what}")


def _refuse_all(cases: int, folder: Path, damage: Callable[[bytes, list[Region], int], tuple[str, bytes]]) -> Figures:
    """Damage a checkpoint and its weights in turn; each time `load` must refuse in one line."""
    figures = Figures()
    figures.expect("loaded silently", "tracebacks")
    checkpoint, weights = folder / "last.pt", folder / "best.safetensors"
    checkpoints.save(checkpoint, saved_checkpoint.make())
    checkpoints.save_weights(weights, saved_checkpoint.make())
    files = [(path, path.read_bytes(), _regions(path)) for path in (checkpoint, checkpoint, weights)]
    for path, *_ in files:
        checkpoints.load(path)  # whole, it is taken
    for number in range(cases):
        path, whole, regions = files[number % len(files)]
        what, content = damage(whole, regions, number // len(files))
        path.write_bytes(content)
        _must_refuse(figures, lambda path=path: checkpoints.load(path), CheckpointError, path, what)
        path.write_bytes(whole)
    return figures


def _regions(path: Path) -> list[Region]:
    """The parts that the file is made of."""
    whole = path.read_bytes()
    if path.suffix == checkpoints.SAFETENSORS:
        body = 8 + int.from_bytes(whole[:8], "little")
        digits = whole.index(b'"sha256":"') + 10
        parts = {
            "length": 0,
            "header": 8,
            "digits": digits,
            "rest of the header": digits + seal.DIGITS,
            "numbers": body,
        }
        return _ranges(parts, len(whole))
    with zipfile.ZipFile(path) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    pickle = entries[0]
    end64 = whole.index(b"PK\6\6", directory)
    parts = {
        "first header": 0,
        "pickle": pickle.header_offset + 30 + len(pickle.filename),
        "small records, padding": entries[1].header_offset,
        "tensors": entries[4].header_offset,
        "last records": entries[-2].header_offset,
        "directory": directory,
        "end": end64,
        "comment": len(whole) - seal.SEAL_SIZE,
        "digits": len(whole) - seal.DIGITS,
    }
    return _ranges(parts, len(whole))


def _ranges(starts: dict[str, int], length: int) -> list[Region]:
    ends = [*list(starts.values())[1:], length]
    return [(name, range(start, end)) for (name, start), end in zip(starts.items(), ends, strict=True)]


FLIPPED = Family("flipped", flipped, short=60, full=1200)
TRUNCATED = Family("truncated", truncated, short=40, full=300)
DATA = Family("damaged data", data, short=60, full=600)
