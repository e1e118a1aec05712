"""Worker processes that load batches."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_data import write_tiny
from torch_caption.data.dataset import Split, batches, open_data
from torch_caption.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_data(write_tiny(tmp_path_factory.mktemp("data") / "tiny"))["train"]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.exhaustive)])
def test_workers_ignore_ctrl_c_and_end_at_close(split, context):
    loader = batches(split, 5, seed=1, workers=2, context=context)
    found = []
    for _, batch in loader:
        found.append(batch)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGINT)
    assert all(map(torch.equal, found, [batch for _, batch in batches(split, 5, seed=1)]))
    assert len(multiprocessing.active_children()) == 2
    loader.close()
    assert not multiprocessing.active_children()


def test_a_signal_at_close_is_handled_after_it(split, monkeypatch):
    """Also one that ends a worker: torch would raise a RuntimeError."""
    loader = batches(split, 5, workers=2, context="fork")
    next(iter(loader))
    join = BaseProcess.join

    def interrupted(process: BaseProcess, timeout: float | None = None) -> None:
        os.kill(process.pid, signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        join(process, timeout)

    monkeypatch.setattr(BaseProcess, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loader.close()
    assert not multiprocessing.active_children()
    loader.close()


def test_ctrl_c_is_blocked_while_workers_start(split, monkeypatch):
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


def test_a_killed_worker_is_named(split):
    loader = batches(split, 1, workers=2, context="fork")
    each = iter(loader)
    next(each)
    assert loader.lost() == []
    process = multiprocessing.active_children()[0]

    def kill_and_read_on() -> None:
        os.kill(process.pid, signal.SIGKILL)
        for _ in each:
            time.sleep(0.1)

    with pytest.raises((RuntimeError, OSError, EOFError)):
        kill_and_read_on()
    assert loader.lost() == [process.pid]


@pytest.mark.parametrize("error", [DataError("x.h5: features[3, 2] is nan"), OSError(5, "Input/output error")])
def test_an_error_in_a_worker_is_raised_unchanged(split, monkeypatch, error):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Split, "__getitems__", fails)
    with pytest.raises(type(error)) as raised:
        next(iter(batches(split, 5, workers=1, context="fork")))
    assert (type(raised.value), str(raised.value)) == (type(error), str(error))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_truncated_during_training_is_a_data_error(tmp_path, workers):
    directory = write_tiny(tmp_path / "tiny", width=4000)  # of small ones HDF5 keeps all that it has read once
    path = directory / "train2014_vgg16_fc7.h5"
    each = iter(batches(open_data(directory, in_memory="no")["train"], 2, workers=workers))
    next(each)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*; restore that file$") as raised:
        for _ in each:
            pass
    assert "\n" not in str(raised.value)
