"""Run directories: `runs/scenes-rnn-1` and so on, the last of them named in `runs/last.txt`; and a run's figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch_caption.errors import CheckpointError, DataError
from torch_caption.io import files
from torch_caption.io.exits import one_line
from torch_caption.io.program import typed
from torch_caption.io.text import read_text, shown

if TYPE_CHECKING:
    from torch_caption.training.tensorboard import Curves

BEST, LAST, METRICS = "best.safetensors", "last.safetensors", "metrics.jsonl"
POINTER = "last.txt"
TENSORBOARD = "tensorboard"
GO_ON = "make room, and --resume goes on"


def create(out: str | Path, name: str) -> Path:
    """Make `out/name-1`, or the first number above those there are, free for others too in the same moment."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    numbers = [int(p.name.removeprefix(f"{name}-")) for p in out.glob(f"{name}-*") if _numbered(p.name, name)]
    number = max(numbers, default=0) + 1
    while True:
        run = out / f"{name}-{number}"
        try:
            run.mkdir()
        except FileExistsError:  # another run took the number this moment
            number += 1
            continue
        return run


def point_to(run: Path) -> None:
    """Name the run as the last one of its folder.

    Raises:
        OSError: it cannot be written; another one may be named.
    """
    pointer = run.parent / POINTER
    with files.writing(pointer, f"make room, and `{typed('train')} --resume {run}` goes on"):
        files.replace_text(pointer, run.name + "\n")


def find(out: str | Path, name: str | None = None) -> Path:
    """The run `name` (a name inside `out`, or a path, or that of its last.safetensors), or the last one where name is
    None or "last".

    Raises:
        CheckpointError: there is no such run; the message is one line that says what to do.
    """
    out = Path(out)
    if name is None or name == "last":
        pointer = out / POINTER
        if not pointer.is_file():
            raise CheckpointError(f"no run in {out} yet; `{typed('train')}` makes one")
        run = out / read_text(pointer).rstrip("\r\n")  # blanks may be of its name
        if not run.is_dir():
            raise CheckpointError(f"{pointer} names {run}, which is not there; name another run")
        return run
    named = Path(name), out / name
    for run in named:
        if run.is_dir():
            return run
    for file in named:
        if file.is_file() and file.name == LAST:
            return file.parent
        if file.is_file():
            raise CheckpointError(_not_a_run(file))
    raise CheckpointError(f"there is no run {name!r}, here or in {out}")


def _not_a_run(file: Path) -> str:
    advice = ["name the run's folder"]
    if (file.parent / LAST).is_file():
        advice = [f"`--resume {file.parent}` resumes the run from its {LAST}"]
    if file.suffix == ".safetensors":
        advice.append(f"`--init-from {file}` begins a new run with these weights")
    return f"{file}: is a file, not a run; {', and '.join(advice)}"


def checkpoint(named: Path | None, out: str | Path) -> Path:
    """The checkpoint itself, the best one of a run, or that of the last run of a folder; of `out` where named is None.

    Raises:
        CheckpointError: there is no such run.
    """
    if named is None:
        return find(out) / BEST
    if named.is_dir():
        return (find(named) if (named / POINTER).is_file() else named) / BEST
    return named


def data_name(data: str) -> str:
    """What a run is called after its data: the directory's own name, of letters that may stand in one on any system."""
    name = Path(data).resolve().name
    return "".join(letter if letter.isprintable() and letter not in '<>:"|?*\\' else "_" for letter in name) or "data"


def _numbered(found: str, name: str) -> bool:
    return found.removeprefix(f"{name}-").isdecimal()


class Log:
    """A run's figures, one record an epoch, in metrics.jsonl and for TensorBoard.

    TensorBoard's curves show what is in metrics.jsonl: where they cannot be written, a run goes on without.

    Args:
        warn: is given a line where they cannot, or where metrics.jsonl was damaged.
        epochs: records of later epochs, left by a run that died before its checkpoint, are dropped.
        step: the last one of these epochs, for TensorBoard: what it has of later steps is hidden.

    Raises:
        OSError: metrics.jsonl cannot be read or written.
    """

    def __init__(
        self, run: Path, *, warn: Callable[[str], None], tensorboard: bool = True, epochs: int = 0, step: int = 0
    ) -> None:
        self.path = run / METRICS
        self._warn = warn
        records, damage = _records(self.path)
        kept = [record for record in records if record["epoch"] <= epochs]
        with files.writing(self.path, GO_ON):
            files.replace_text(self.path, "".join(map(_line, kept)), keep=damage is not None)
        if damage is not None:
            self._warn(f"{damage}; the file is kept as {files.previous(self.path)}, and its other records go on")
        self._curves: Curves | None = None
        if tensorboard:
            with self._or_without(run / TENSORBOARD):
                from torch_caption.training.tensorboard import Curves  # heavy, and not always wanted

                self._curves = Curves(run / TENSORBOARD, purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add one epoch's record, which has an `epoch` and a `step`; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        with files.writing(self.path, GO_ON), open(self.path, "ab") as file:
            file.write(_line(record).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        if self._curves is not None:
            with self._or_without(self._curves.path):
                values = {name: value for name, value in record.items() if name not in ("epoch", "step")}
                self._curves.write(record["step"], values)

    @contextmanager
    def _or_without(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._curves = None
            self._warn(f"{path}: could not be written: {error.strerror or error}; it goes on without TensorBoard")


def read(run: Path) -> list[dict[str, Any]]:
    """The run's records, one an epoch; a last line that was cut short is left out.

    Raises:
        DataError: another line is no record; the message names file and line.
        OSError: the file cannot be read.
    """
    records, damage = _records(run / METRICS)
    if damage is not None:
        raise DataError(damage)
    return records


def _records(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The records of a file, none where there is none, and which line of it is not one.

    A last line without its end is what a run was writing when it died, and no damage.
    """
    *lines, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records, damage = [], None
    for number, line in enumerate(lines, 1):
        try:
            records.append(_record(line))
        except ValueError as error:
            damage = damage or f"{path}: line {number} is no record of an epoch: {one_line(error)}"
    with suppress(ValueError):
        records.append(_record(last))
    return records, damage


def _record(line: bytes) -> dict[str, Any]:
    """What a line holds. Raises ValueError where that is no record."""
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        raise DataError("nested too deep") from None
    numbers = [found.get(name) for name in ("epoch", "step")] if isinstance(found, dict) else [None]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise DataError(f"{shown(found)} has no epoch and step")
    return cast(dict[str, Any], found)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"
