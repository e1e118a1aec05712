"""Checkpoints and weights that lost something on their way: a byte changed anywhere, or the end is missing."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import saved
from figures import Family, Figures

from torch_caption import checkpoint as checkpoints
from torch_caption import seal
from torch_caption.checkpoint import CheckpointError

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


def _refuse_all(cases: int, folder: Path, damage: Callable[[bytes, list[Region], int], tuple[str, bytes]]) -> Figures:
    """Damage a checkpoint and its weights in turn; each time `load` must refuse in one line."""
    figures = Figures()
    figures.expect("loaded silently", "tracebacks")
    checkpoint, weights = folder / "last.pt", folder / "best.safetensors"
    checkpoints.save(checkpoint, saved.make())
    checkpoints.save_weights(weights, saved.make())
    files = [(path, path.read_bytes(), _regions(path)) for path in (checkpoint, checkpoint, weights)]
    for path, *_ in files:
        checkpoints.load(path)  # whole, it is taken
    for number in range(cases):
        path, whole, regions = files[number % len(files)]
        what, content = damage(whole, regions, number // len(files))
        path.write_bytes(content)
        figures.cases += 1
        try:
            checkpoints.load(path)
        except CheckpointError as error:
            if "\n" in str(error) or str(path) not in str(error):
                figures.wrong("tracebacks", f"{path.name}: {what}: {error!r}")
        except Exception as error:
            figures.wrong("tracebacks", f"{path.name}: {what}: {error!r}")
        else:
            figures.wrong("loaded silently", f"{path.name}: {what}")
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
