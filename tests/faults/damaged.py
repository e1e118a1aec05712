"""Checkpoints and data that lost something on their way: a byte changed anywhere, or the end is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.helpers import saved_checkpoint
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import checksum
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
    """Damage a checkpoint; each time `load` must refuse in one line."""
    figures = Figures()
    figures.expect("loaded silently", "tracebacks")
    path = folder / "last.safetensors"
    checkpoints.save(path, saved_checkpoint.make())
    checkpoints.load(path)  # whole, it is taken
    whole = path.read_bytes()
    regions = _regions(whole)
    for number in range(cases):
        what, content = damage(whole, regions, number)
        path.write_bytes(content)
        _must_refuse(figures, lambda: checkpoints.load(path), CheckpointError, path, what)
    return figures


def _regions(whole: bytes) -> list[Region]:
    """The parts that the file is made of."""
    digits = checksum._DIGITS
    starts = {"length": 0, "before the digits": 8, "digits": digits.start, "rest of the header": digits.stop}
    starts["tensors"] = 8 + int.from_bytes(whole[:8], "little")
    ends = [*list(starts.values())[1:], len(whole)]
    return [(name, range(start, end)) for (name, start), end in zip(starts.items(), ends, strict=True)]


FLIPPED = Family("flipped", flipped, short=60, full=1200)
TRUNCATED = Family("truncated", truncated, short=40, full=300)
DATA = Family("damaged data", data, short=60, full=600)
