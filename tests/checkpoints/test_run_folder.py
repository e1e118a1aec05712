"""Folders of runs: created, found and named."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest

from torch_caption.checkpoints import run_folder as runs
from torch_caption.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match="which is missing; name another run"):
        runs.find(tmp_path)


def test_of_the_files_of_a_run_only_its_last_checkpoint_names_the_run(tmp_path: Path) -> None:
    """The message advises --init-from for another checkpoint, which resuming would not read."""
    run = runs.create(tmp_path, "tiny-rnn")
    for file in ("last.safetensors", "best.safetensors", "metrics.jsonl"):
        (run / file).write_bytes(b"")
    assert runs.find("nowhere", str(run / "last.safetensors")) == run
    assert runs.find(tmp_path, "tiny-rnn-1/last.safetensors") == run
    best = run / "best.safetensors"
    advice = f"`--resume {run}` resumes the run from its last.safetensors, and `--init-from {best}` starts a new"
    with pytest.raises(CheckpointError, match=re.escape(f"{best}: is a file, not a run; {advice}")):
        runs.find("nowhere", str(best))
    (run / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match=re.escape("metrics.jsonl: is a file, not a run; name the run's folder")):
        runs.find(tmp_path, str(run / "metrics.jsonl"))


def test_a_run_is_found_beside_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.create(tmp_path / "runs", "tiny-rnn")
    (tmp_path / run.name).write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert runs.find("runs", run.name) == Path("runs") / run.name


def test_runs_that_begin_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
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


def test_the_last_run_is_found_by_its_whole_name(tmp_path: Path) -> None:
    """With blanks at its ends, but without a byte order mark."""
    run = tmp_path / " mine-rnn-1"
    run.mkdir()
    runs.point_to(run)
    assert runs.find(tmp_path) == run
    pointer = tmp_path / runs.POINTER
    pointer.write_text(pointer.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert runs.find(tmp_path) == run


def test_a_pointer_that_cannot_be_written_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.create(tmp_path, "tiny-rnn")
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError("no room")))
    with pytest.raises(OSError, match=r"last\.txt: could not be written: .*`.* train --resume .*tiny-rnn-1`$"):
        runs.point_to(run)
