"""Folders of runs, and their figures."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from torch_caption import runs
from torch_caption.checkpoint import CheckpointError


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
def test_a_log_goes_on_after_the_epochs_of_the_checkpoint(tmp_path: Path, cut: int) -> None:
    """What a run that died wrote after it is dropped, a line half written as well."""
    log = runs.Log(tmp_path, tensorboard=False)
    for epoch in (1, 2, 3):
        log.write(record(epoch))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: len(whole) - cut])
    again = runs.Log(tmp_path, tensorboard=False, epochs=2, step=12)
    assert runs.read(tmp_path) == [record(1), record(2)]
    again.write(record(3))
    assert log.path.read_bytes() == whole


def test_whoever_dies_while_dropping_records_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = runs.Log(tmp_path, tensorboard=False)
    for epoch in (1, 2, 3):
        log.write(record(epoch))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        runs.Log(tmp_path, tensorboard=False, epochs=2)
    assert [r["epoch"] for r in runs.read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("step", [0, 5, 7, 10])
def test_curves_go_on_where_the_checkpoint_is(tmp_path: Path, step: int) -> None:
    """Of a later step nothing is shown twice, and of an earlier one nothing is hidden."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = runs.Log(tmp_path)
    for epoch in (1, 2):
        log.write(record(epoch))
    log.close()
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # of an earlier second
    again = runs.Log(tmp_path, epochs=step // 5, step=step)
    for epoch in range(step // 5 + 1, 4):
        again.write(record(epoch) | {"val_loss": 7.0})
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [5, 10, 15]
    assert [event.value == 7.0 for event in events.Scalars("val_loss")] == [step < 5, step < 10, True]
    assert "gradient_norm" in events.Tags()["scalars"]
    assert [json.loads(line)["epoch"] for line in again.path.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]
