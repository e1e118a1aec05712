"""The log of a run: the records of its epochs, in JSON lines and in TensorBoard."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_caption.training.log import Log, read_log


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Log]:
    """`log(...)`: a log of one run, which may not warn."""

    def warn(line: str) -> None:
        raise AssertionError(line)

    return functools.partial(Log, tmp_path, warn=warn)


def record(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * epoch, "val_loss": 1 / epoch, "gradient_norm": 2.0}


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_log_continues_after_the_epochs_of_the_checkpoint(log: Callable[..., Log], tmp_path: Path, cut: int) -> None:
    """Later records are dropped, and a truncated line as well."""
    first = log(tensorboard=False)
    for epoch in (1, 2, 3):
        first.write(record(epoch))
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: len(whole) - cut])
    again = log(tensorboard=False, epochs=2, step=12)
    assert read_log(tmp_path) == [record(1), record(2)]
    again.write(record(3))
    assert first.path.read_bytes() == whole


INVALID = {
    b"{}": "{} has no epoch and step",
    b'{"epoch": true, "step": 5}': "has no epoch and step",
    b'{"epoch": 2, "st': "Unterminated string",
    b'{"epoch": 2, "step": 10, "val_loss\xff": 1}': "can't decode byte 0xff",
    b"[" * 100_000: "nested too deep",
    b'{"epoch": ' + b"9" * 5000 + b"}": "Exceeds the limit",
    b"": "Expecting value",
}


@pytest.mark.parametrize("bad", INVALID, ids=lambda bad: repr(bad[:30]))
@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_line_loses_no_other_record(log: Callable[..., Log], tmp_path: Path, bad: bytes, place: int) -> None:
    """The damaged file is kept under another name, with one warning."""
    first = log(tensorboard=False)
    for epoch in (1, 2, 3):
        first.write(record(epoch))
    lines = first.path.read_bytes().splitlines()
    lines[place] = bad
    damaged = b"\n".join(lines) + b"\n"
    first.path.write_bytes(damaged)
    message = f"{first.path}: line {place + 1} is not a record of an epoch: "
    with pytest.raises(ValueError, match="is not a record of an epoch") as raised:
        read_log(tmp_path)
    assert str(raised.value).startswith(message)
    assert INVALID[bad] in str(raised.value)
    assert len(str(raised.value)) < len(message) + 200
    warned: list[str] = []
    Log(tmp_path, warn=warned.append, tensorboard=False, epochs=3)
    aside = tmp_path / "metrics.previous.jsonl"
    assert warned == [f"{raised.value}; the file is kept as {aside}, and its other records are used"]
    assert aside.read_bytes() == damaged
    assert [r["epoch"] for r in read_log(tmp_path)] == [epoch for epoch in (1, 2, 3) if epoch != place + 1]
    log(tensorboard=False, epochs=3)  # without a warning
    assert aside.read_bytes() == damaged


def test_a_last_line_without_its_newline_is_a_record(log: Callable[..., Log], tmp_path: Path) -> None:
    first = log(tensorboard=False)
    first.write(record(1))
    whole = first.path.read_bytes()
    for cut in range(1, len(whole)):
        first.path.write_bytes(whole[:-cut])
        assert read_log(tmp_path) == ([record(1)] if cut == 1 else [])
    first.path.write_bytes(whole + bytes(50))  # as a power failure may leave it
    assert read_log(tmp_path) == [record(1)]


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_that_cannot_be_written_is_named(
    log: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log(tensorboard=False)
    monkeypatch.setattr("os.fsync", no_room)
    message = r"metrics\.jsonl: .*: No space left on device; free disk space, then continue with --resume$"
    with pytest.raises(OSError, match=message):
        first.write(record(1))
    with pytest.raises(OSError, match=message):
        log(tensorboard=False)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_run_continues_without_tensorboard_after_one_warning(
    log: Callable[..., Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Whether its file cannot be created, or not be written to later."""
    warned: list[str] = []
    if epoch == 0:
        (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    first = Log(tmp_path, warn=warned.append)
    for number in (1, 2, 3):
        if number == epoch:
            monkeypatch.setattr("torch_caption.training.tensorboard.Curves.write", no_room)
        first.write(record(number))
    (line,) = warned
    assert line.startswith(str(tmp_path / "tensorboard"))
    assert line.endswith("; continuing without TensorBoard")
    assert ("No space left on device" in line) == (epoch > 0)
    assert read_log(tmp_path) == [record(1), record(2), record(3)]
