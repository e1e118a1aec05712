"""The processes that load batches."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_data import write_tiny
from torch_caption.data.batches import Batch
from torch_caption.data.dataset import Split, batches, open_data
from torch_caption.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_data(write_tiny(tmp_path_factory.mktemp("data") / "tiny"))["train"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ctrl_c_is_for_the_one_that_trains(split: Split, context: str) -> None:
    """In a terminal it reaches all. They end with the loader."""
    loader = batches(split, 5, seed=1, workers=2, context=context)
    found = []
    for _, batch in loader:
        found.append(batch)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGINT)
    assert all(map(torch.equal, found, [batch for _, batch in batches(split, 5, seed=1)]))
    assert len(multiprocessing.active_children()) == 2
    del loader
    assert not multiprocessing.active_children()


def test_while_they_start_ctrl_c_waits(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they begin with it blocked."""
    blocked = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    fork = os.fork

    def watched() -> int:
        blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))
        return fork()

    monkeypatch.setattr(os, "fork", watched)
    next(iter(batches(split, 5, workers=1, context="fork")))
    assert blocked == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


def strike(pid: int, each: Iterator[Batch]) -> None:
    os.kill(pid, signal.SIGKILL)
    for _ in each:
        time.sleep(0.1)


def test_who_was_lost_is_known(split: Split) -> None:
    loader = batches(split, 1, workers=2, context="fork")
    each = iter(loader)
    next(each)
    assert loader.lost() == []
    process = multiprocessing.active_children()[0]
    with pytest.raises((RuntimeError, OSError)):  # in whatever was going on
        strike(process.pid, each)
    assert loader.lost() == [process.pid]


@pytest.mark.parametrize("error", [DataError("x.h5: features[3, 2] is nan"), OSError(5, "Input/output error")])
def test_an_error_of_a_process_is_told_as_it_was_there(
    split: Split, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Split, "__getitems__", fails)
    with pytest.raises(type(error)) as told:
        next(iter(batches(split, 5, workers=1, context="fork")))
    assert (type(told.value), str(told.value)) == (type(error), str(error))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_cut_off_meanwhile_is_a_mistake_of_the_data(tmp_path: Path, workers: int) -> None:
    """One line with the file; HDF5 would read zeros."""
    directory = write_tiny(tmp_path / "tiny", width=4000)  # of small ones HDF5 keeps all that it has read once
    path = directory / "train2014_vgg16_fc7.h5"
    each = iter(batches(open_data(directory, in_memory="no")["train"], 2, workers=workers))
    next(each)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*; restore that file$") as told:
        for _ in each:
            pass
    assert "\n" not in str(told.value)


def test_that_the_one_that_trains_was_killed_is_no_error_of_theirs() -> None:
    """It may be killed while it takes over a tensor; what else goes wrong there is reported."""
    code = """
import socket
from multiprocessing import resource_sharer
from torch_caption.data import batches
batches._begin_worker(0)
def give(connection, process):
    raise ZeroDivisionError
sharer = resource_sharer._resource_sharer
address, key = sharer.register(give, lambda: None)
with socket.socket(socket.AF_UNIX) as killed:
    killed.connect(address)
with resource_sharer._resource_sharer.get_connection((address, key)) as connection:
    pass
resource_sharer.stop()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, encoding="utf-8"
    )
    assert ended.returncode == 0
    assert re.findall(r"^\w+Error", ended.stderr, re.MULTILINE) == ["ZeroDivisionError"]
