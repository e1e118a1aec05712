"""Nothing is removed, renamed or replaced while it is open: Windows refuses it."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny

from torch_caption import runs, training
from torch_caption.config import TrainConfig
from torch_caption.ending import Stopped
from torch_caption.training import train_step

pytestmark = pytest.mark.usefixtures("windows_files")


def written(path: Path, content: bytes = b"x") -> Path:
    path.write_bytes(content)
    return path


# The emulation itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unlink", "os.remove", "rename", "replace", "replaced", "shutil.move", "its folder"])
def test_what_is_open_stays(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path, other = written(folder / "a"), tmp_path / "b"
    acts = {
        "unlink": path.unlink,
        "os.remove": lambda: os.remove(path),
        "rename": lambda: path.rename(other),
        "replace": lambda: path.replace(other),
        "replaced": lambda: written(other).replace(path),
        "shutil.move": lambda: shutil.move(path, other),
        "its folder": lambda: folder.rename(tmp_path / "c"),
    }
    with path.open("rb"), pytest.raises(PermissionError):
        acts[how]()
    assert path.exists()
    acts[how]()
    assert path.exists() == (how == "replaced")


def test_trees_and_maps(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = written(folder / "a")
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with pytest.raises(PermissionError):
        shutil.rmtree(folder)
    mapped.close()
    shutil.rmtree(folder)
    assert not folder.exists()


def test_renaming_onto_what_exists(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        written(tmp_path / "a").rename(written(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    with pytest.raises(PermissionError):
        (tmp_path / "a").replace(tmp_path / "c")
    (tmp_path / "a").replace(tmp_path / "b")


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_is_saved_stopped_and_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints replaced, records dropped, the pointer moved, with the lock and TensorBoard's file open."""
    config = TrainConfig(
        data=str(write_tiny(tmp_path / "tiny", pictures=True)),
        out=tmp_path / "runs",
        hidden_dim=8,
        wordvec_dim=8,
        batch_size=5,
        epochs=3,
        checkpoint_every=2,
        score_images=2,
    )
    steps = iter(range(10**6))

    def stopping(*args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(steps) == 7:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*args, **kwargs)

    monkeypatch.setattr(training, "train_step", stopping)
    with pytest.raises(Stopped):
        training.fit(config)
    run = training.fit(replace(config, resume="last"))
    assert [record["step"] for record in runs.read(run)] == [5, 10, 15]
    assert not list(tmp_path.rglob("*.tmp"))
    assert training.fit(config).name == "tiny-rnn-2"
    shutil.rmtree(run)  # nothing of it is open any more
