"""Nothing is removed, renamed or replaced while it is open: Windows refuses it."""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.demo_page import Colours
from tests.helpers.photo_server import PHOTO, serving
from tests.helpers.tiny_data import write_tiny
from torch_caption import cs231n
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.inference import photographs
from torch_caption.io.exits import Stopped
from torch_caption.io.images import ImageError, load_image
from torch_caption.training import run_folder as runs
from torch_caption.training import trainer
from torch_caption.training.trainer import train_step

pytestmark = pytest.mark.usefixtures("windows_files")
emulated = pytest.mark.skipif(
    sys.platform != "win32" and not Path("/proc/self/maps").exists(), reason="open files are found in /proc"
)


def written(path: Path, content: bytes = b"x") -> Path:
    path.write_bytes(content)
    return path


# The emulation itself ------------------------------------------------------------------------------------------------


@emulated
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


@emulated
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


@emulated
def test_renaming_onto_what_exists(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        written(tmp_path / "a").rename(written(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    with pytest.raises(PermissionError):
        (tmp_path / "a").replace(tmp_path / "c")
    (tmp_path / "a").replace(tmp_path / "b")


# The library under it; downloads, `prepare` and scenes are tested so in tests/data -----------------------------------


def test_photographs_are_closed_when_they_are_read(tmp_path: Path) -> None:
    """Good and bad ones, by each way in, can be removed at once; so can the folder."""
    with serving() as server:
        for read in (load_image, lambda source: load_image(str(source)), cs231n.image_from_url):
            for name, content in {"a.png": PHOTO, "b.png": PHOTO[:-30], "c.png": b"", "d.png": b"text"}.items():
                path = written(tmp_path / name, content)
                with contextlib.suppress(ImageError):
                    read(path)
                path.unlink()
        assert cs231n.image_from_url(f"{server.url}/photo", allow_private=True).shape == (8, 12, 3)
    assert [*tmp_path.iterdir()] == []


def test_photographs_of_a_model_are_closed(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("<NULL>", "<START>", "<END>", "<UNK>"))
    paths = [written(tmp_path / f"{k}.png", PHOTO if k else b"text") for k in range(3)]
    found = photographs.read([*map(str, paths)], Colours(False), vocabulary, keep=True, failed=lambda *_: None)
    for path in paths:
        path.unlink()
    assert found.num_images == 2
    assert found.picture(0).size == (12, 8)


def test_a_data_directory_can_be_replaced_after_it_was_read(tmp_path: Path) -> None:
    """As `scenes.ensure` does with one that was cleaned out; features on the disk are let go with the data."""
    write_tiny(tmp_path / "tiny")
    for in_memory in ("yes", "no"):
        data = open_data(tmp_path / "tiny", in_memory=in_memory)
        assert data["train"].features_of([0, 1]).shape == (2, 8)
        del data
        gc.collect()
        (tmp_path / "tiny").rename(tmp_path / "other")
        (tmp_path / "other").rename(tmp_path / "tiny")


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

    monkeypatch.setattr(trainer, "train_step", stopping)
    with pytest.raises(Stopped):
        trainer.fit(config)
    run = trainer.fit(replace(config, resume="last"))
    assert [record["step"] for record in runs.read(run)] == [5, 10, 15]
    assert not list(tmp_path.rglob("*.tmp"))
    assert trainer.fit(config).name == "tiny-rnn-2"
    shutil.rmtree(run)  # nothing of it is open any more
