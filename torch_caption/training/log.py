"""The metrics of a run, one record per epoch: metrics.jsonl, and TensorBoard's event files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch_caption.checkpoints.run_folder import METRICS
from torch_caption.errors import DataError
from torch_caption.io import files
from torch_caption.io.exits import one_line
from torch_caption.io.text import shown

if TYPE_CHECKING:
    from torch_caption.training.tensorboard import Curves

TENSORBOARD = "tensorboard"
ADVICE = "free disk space, then continue with --resume"


class Log:
    """The metrics of a run, one record per epoch, in metrics.jsonl and for TensorBoard.

    TensorBoard has the values of metrics.jsonl: if its file cannot be written, the run continues without it.

    Args:
        warn: called with a line if it cannot be written, or metrics.jsonl is damaged.
        epochs: records of later epochs, left by a run that was killed before its checkpoint, are dropped.
        step: the last step of these epochs, for TensorBoard: entries of later steps are hidden.

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
        with files.writing(self.path, ADVICE):
            files.replace_text(self.path, "".join(map(_line, kept)), keep=damage is not None)
        if damage is not None:
            self._warn(f"{damage}; the file is kept as {files.previous(self.path)}, and its other records are used")
        self._curves: Curves | None = None
        if tensorboard:
            with self._or_without(run / TENSORBOARD):
                from torch_caption.training.tensorboard import Curves  # a slow import, not always needed

                self._curves = Curves(run / TENSORBOARD, purge_step=step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append the record of an epoch, which has an `epoch` and a `step`, and flush it to the disk.

        Raises:
            OSError: it cannot be written.
        """
        with files.writing(self.path, ADVICE), open(self.path, "ab") as file:
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
            self._warn(f"{path}: could not be written: {error.strerror or error}; continuing without TensorBoard")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run, one per epoch, without an incomplete last line.

    Raises:
        DataError: another line is not a record; the message names file and line.
        OSError: the file cannot be read.
    """
    records, damage = _records(run / METRICS)
    if damage is not None:
        raise DataError(damage)
    return records


def _records(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The records of a file, if there is one, and an error for the first line that is not a record.

    An incomplete last line was left by a killed run and is not an error.
    """
    *lines, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    records, damage = [], None
    for number, line in enumerate(lines, 1):
        try:
            records.append(_record(line))
        except ValueError as error:
            damage = damage or f"{path}: line {number} is not a record of an epoch: {one_line(error)}"
    with suppress(ValueError):
        records.append(_record(last))
    return records, damage


def _record(line: bytes) -> dict[str, Any]:
    """The record in a line. Raises ValueError if it is not one."""
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
