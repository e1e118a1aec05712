"""Run directories: `runs/scenes-rnn-1` and so on, the last of them named in `runs/last.txt`; and a run's figures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from torch_caption import files
from torch_caption.checkpoint import CheckpointError

BEST, LAST, METRICS = "best.pt", "last.pt", "metrics.jsonl"
WEIGHTS = "best.safetensors"
POINTER = "last.txt"


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
    """Name the run as the last one of its folder."""
    files.replace(run.parent / POINTER, lambda file: _write(file, run.name + "\n"))


def find(out: str | Path, name: str | None = None) -> Path:
    """The run `name` (a name inside `out`, or a path), or the last one where name is None or "last".

    Raises:
        CheckpointError: there is no such run; the message is one line that says what to do.
    """
    out = Path(out)
    if name is None or name == "last":
        pointer = out / POINTER
        if not pointer.is_file():
            raise CheckpointError(f"no run in {out} yet; `python train.py` makes one")
        run = out / pointer.read_text(encoding="utf-8").strip()
        if not run.is_dir():
            raise CheckpointError(f"{pointer} names {run}, which is not there; name another run")
        return run
    for run in (Path(name), out / name):
        if run.is_dir():
            return run
    raise CheckpointError(f"there is no run {name!r}, here or in {out}")


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


def _write(file: BinaryIO, text: str) -> None:
    file.write(text.encode("utf-8"))


def _numbered(found: str, name: str) -> bool:
    return found.removeprefix(f"{name}-").isdecimal()


class Log:
    """A run's figures, one record an epoch, in metrics.jsonl and for TensorBoard.

    Args:
        epochs: records of later epochs, left by a run that died before its checkpoint, are dropped.
        step: the last one of these epochs, for TensorBoard: what it has of later steps is hidden.
    """

    def __init__(self, run: Path, *, tensorboard: bool = True, epochs: int = 0, step: int = 0) -> None:
        self.path = run / METRICS
        kept = [record for record in read(run) if record["epoch"] <= epochs]
        files.replace(self.path, lambda file: _write(file, "".join(json.dumps(record) + "\n" for record in kept)))
        self._writer: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # heavy, and not always wanted

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Add one epoch's record, which has an `epoch` and a `step`; it is on the disk when this returns."""
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._writer is not None:
            for name, value in record.items():
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name, value, record["step"])
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read(run: Path) -> list[dict[str, Any]]:
    """The run's records, one an epoch; a last line that was cut short is left out."""
    path = run / METRICS
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
