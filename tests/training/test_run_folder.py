"""Folders of runs, and their figures."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_caption.errors import CheckpointError
from torch_caption.training import run_folder as runs


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., runs.Log]:
    """Makes logs of one run, which have nothing to warn of."""

    def warn(line: str) -> None:
        raise AssertionError(line)

    return functools.partial(runs.Log, tmp_path, warn=warn)


def record(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "step": 5 * epoch, "val_loss": 1 / epoch, "gradient_norm": 2.0}


def test_runs_are_numbered(tmp_path: Path) -> None:
    for number in (1, 2):
        assert runs.create(tmp_path, "tiny-rnn").name == f"tiny-rnn-{number}"
    (tmp_path / "tiny-rnn-9").mkdir()
    (tmp_path / "tiny-rnn-old").mkdir()
    assert runs.create(tmp_path, "tiny-rnn").name == "tiny-rnn-10"
    assert runs.create(tmp_path, "tiny-lstm").name == "tiny-lstm-1"
    with pytest.raises(CheckpointError, match="no run in"):
        runs.find(tmp_path)
    runs.point_to(tmp_path / "tiny-lstm-1")
    assert runs.find(tmp_path).name == "tiny-lstm-1"
    assert runs.find(tmp_path, "tiny-rnn-2") == tmp_path / "tiny-rnn-2"
    assert runs.find("nowhere", str(tmp_path / "tiny-rnn-2")) == tmp_path / "tiny-rnn-2"
    (tmp_path / "tiny-lstm-1").rmdir()
    with pytest.raises(CheckpointError, match="which is not there"):
        runs.find(tmp_path)


def test_the_last_checkpoint_of_a_run_means_the_run(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "tiny-rnn")
    for name in ("last.safetensors", "best.safetensors"):
        (run / name).write_bytes(b"")
    assert runs.find("nowhere", str(run / "last.safetensors")) == run
    assert runs.find(tmp_path, "tiny-rnn-1/last.safetensors") == run


@pytest.mark.parametrize("name", ["last.previous.safetensors", "best.safetensors"])
def test_another_checkpoint_of_a_run_is_not_the_run(name: str, tmp_path: Path) -> None:
    """Resuming would use last.safetensors, which is not the file that was named."""
    run = runs.create(tmp_path, "tiny-rnn")
    for file in ("last.safetensors", name):
        (run / file).write_bytes(b"")
    advice = f"`--resume {run}` resumes the run from its last.safetensors, and `--init-from {run / name}` begins a new"
    with pytest.raises(CheckpointError, match=re.escape(f"{run / name}: is a file, not a run; {advice}")):
        runs.find("nowhere", str(run / name))


def test_no_flag_is_advised_that_would_not_take_the_file(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "tiny-rnn")
    (run / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=re.escape("metrics.jsonl: is a file, not a run; name the run's folder")):
        runs.find(tmp_path, str(run / "metrics.jsonl"))


def test_a_run_is_found_beside_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a log in the current folder may be called."""
    run = runs.create(tmp_path / "runs", "tiny-rnn")
    (tmp_path / run.name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert runs.find("runs", run.name) == Path("runs") / run.name


def test_runs_that_begin_in_one_moment_get_folders_of_their_own(tmp_path: Path) -> None:
    """And the last one of them is named, whole."""
    made: list[Path] = []
    together = threading.Barrier(8)

    def begin() -> None:
        together.wait()
        run = runs.create(tmp_path, "tiny-rnn")
        made.append(run)
        runs.point_to(run)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run.name for run in made) == sorted(f"tiny-rnn-{k}" for k in range(1, 9))
    assert runs.find(tmp_path) in made
    assert not list(tmp_path.glob("*.tmp"))


def test_a_pointer_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (runs.create(tmp_path, "tiny-rnn") for _ in range(2))
    runs.point_to(one)

    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no room"):
        runs.point_to(other)
    assert runs.find(tmp_path) == one


@pytest.mark.parametrize("cut", [0, 1, 20])
def test_a_log_goes_on_after_the_epochs_of_the_checkpoint(
    log: Callable[..., runs.Log], tmp_path: Path, cut: int
) -> None:
    """What a run that died wrote after it is dropped, a line half written as well."""
    first = log(tensorboard=False)
    for epoch in (1, 2, 3):
        first.write(record(epoch))
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[: len(whole) - cut])
    again = log(tensorboard=False, epochs=2, step=12)
    assert runs.read(tmp_path) == [record(1), record(2)]
    again.write(record(3))
    assert first.path.read_bytes() == whole


def test_whoever_dies_while_dropping_records_loses_none(
    log: Callable[..., runs.Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log(tensorboard=False)
    for epoch in (1, 2, 3):
        first.write(record(epoch))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        log(tensorboard=False, epochs=2)
    assert [r["epoch"] for r in runs.read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("step", [0, 5, 7, 10])
def test_curves_go_on_where_the_checkpoint_is(log: Callable[..., runs.Log], tmp_path: Path, step: int) -> None:
    """Of a later step nothing is shown twice, and of an earlier one nothing is hidden."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = log()
    for epoch in (1, 2):
        before.write(record(epoch))
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # of an earlier second
    again = log(epochs=step // 5, step=step)
    for epoch in range(step // 5 + 1, 4):
        again.write(record(epoch) | {"val_loss": 7.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [5, 10, 15]
    assert [event.value == 7.0 for event in events.Scalars("val_loss")] == [step < 5, step < 10, True]
    assert "gradient_norm" in events.Tags()["scalars"]
    assert [json.loads(line)["epoch"] for line in again.path.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]


NO_RECORDS = {
    b"5": "5 has no epoch and step",
    b"{}": "{} has no epoch and step",
    b'{"epoch": "1", "step": 5}': "has no epoch and step",
    b'{"epoch": 1, "step": 5.0}': "has no epoch and step",
    b'{"epoch": true, "step": 5}': "has no epoch and step",
    b'{"epoch": 0, "step": 5}': "has no epoch and step",
    b'{"epoch": 2, "st': "Unterminated string",
    b'{"epoch": 2, "step": 10, "val_loss\xff": 1}': "can't decode byte 0xff",
    b"[" * 100_000: "nested too deep",
    b'{"epoch": ' + b"9" * 5000 + b"}": "Exceeds the limit",
    b"": "Expecting value",
}


@pytest.mark.parametrize("bad", NO_RECORDS, ids=lambda bad: repr(bad[:30]))
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_damaged_line_takes_no_other_with_it(
    log: Callable[..., runs.Log], tmp_path: Path, bad: bytes, place: int
) -> None:
    """The file is kept aside, the run goes on with its other records, and says so once."""
    first = log(tensorboard=False)
    for epoch in (1, 2, 3):
        first.write(record(epoch))
    lines = first.path.read_bytes().splitlines()
    lines[place] = bad
    damaged = b"\n".join(lines) + b"\n"
    first.path.write_bytes(damaged)
    told = f"{first.path}: line {place + 1} is no record of an epoch: "
    with pytest.raises(ValueError, match="is no record of an epoch") as raised:
        runs.read(tmp_path)
    assert str(raised.value).startswith(told)
    assert NO_RECORDS[bad] in str(raised.value)
    assert len(str(raised.value)) < len(told) + 200
    warned: list[str] = []
    runs.Log(tmp_path, warn=warned.append, tensorboard=False, epochs=3)
    aside = tmp_path / "metrics.previous.jsonl"
    assert warned == [f"{raised.value}; the file is kept as {aside}, and its other records go on"]
    assert aside.read_bytes() == damaged
    assert [r["epoch"] for r in runs.read(tmp_path)] == [epoch for epoch in (1, 2, 3) if epoch != place + 1]
    log(tensorboard=False, epochs=3)  # without a warning
    assert aside.read_bytes() == damaged


def test_a_last_line_without_its_end_is_a_record_if_it_is_whole(log: Callable[..., runs.Log], tmp_path: Path) -> None:
    first = log(tensorboard=False)
    first.write(record(1))
    whole = first.path.read_bytes()
    for cut in range(1, len(whole)):
        first.path.write_bytes(whole[:-cut])
        assert runs.read(tmp_path) == ([record(1)] if cut == 1 else [])
    first.path.write_bytes(whole + bytes(50))  # what a machine that lost its power may leave
    assert runs.read(tmp_path) == [record(1)]


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_cannot_be_written_is_told_by_its_name(
    log: Callable[..., runs.Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log(tensorboard=False)
    run = runs.create(tmp_path, "tiny-rnn")
    monkeypatch.setattr("os.fsync", no_room)
    told = r"metrics\.jsonl: could not be written: No space left on device; free disk space, and --resume goes on$"
    with pytest.raises(OSError, match=told):
        first.write(record(1))
    with pytest.raises(OSError, match=told):
        log(tensorboard=False)
    with pytest.raises(OSError, match=r"last\.txt: could not be written: .*`.* train --resume .*tiny-rnn-1` "):
        runs.point_to(run)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_without_room_for_tensorboard_it_goes_on_and_says_so_once(
    log: Callable[..., runs.Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """Whether its file cannot be made, or not be written on."""
    warned: list[str] = []
    if epoch == 0:
        (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    first = runs.Log(tmp_path, warn=warned.append)
    for number in (1, 2, 3):
        if number == epoch:
            monkeypatch.setattr("torch_caption.training.tensorboard.Curves.write", no_room)
        first.write(record(number))
    (line,) = warned
    assert line.startswith(str(tmp_path / "tensorboard"))
    assert line.endswith("; it goes on without TensorBoard")
    assert ("No space left on device" in line) == (epoch > 0)
    assert runs.read(tmp_path) == [record(1), record(2), record(3)]


def test_the_last_run_is_found_by_its_whole_name(tmp_path: Path) -> None:
    """Blanks at its ends are of the name, and an editor's byte order mark is not."""
    run = tmp_path / " mine-rnn-1"
    run.mkdir()
    runs.point_to(run)
    assert runs.find(tmp_path) == run
    pointer = tmp_path / runs.POINTER
    pointer.write_text(pointer.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert runs.find(tmp_path) == run
