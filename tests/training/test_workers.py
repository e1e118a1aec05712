"""The processes that load batches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_data import write_tiny
from torch_caption.data.dataset import DataError, Split, batches, open_data
from torch_caption.training.workers import Loading, WorkerLost

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return open_data(write_tiny(tmp_path_factory.mktemp("data") / "tiny"))["train"]


def workers_of(loading: Loading) -> list[int]:
    return [worker.pid for worker in loading._loader._iterator._workers]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_ctrl_c_is_for_the_one_that_trains(split: Split, context: str) -> None:
    """In a terminal it reaches all, at any moment: also one in which the processes are only beginning."""
    expected = [batch for _, batch in batches(split, 5, seed=1)]
    with Loading(batches(split, 5, seed=1, workers=2, context=context)) as loading:
        for number in range(2):
            found = []
            for _, batch in loading.epoch(0, 0):
                found.append(batch)
                for pid in workers_of(loading):
                    os.kill(pid, signal.SIGINT)
            if number == 0:
                assert all(map(torch.equal, found, expected))
            assert len(found) == 5
        pids = workers_of(loading)
    assert not any(map(alive, pids))


def test_while_they_start_ctrl_c_waits(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """And they begin with it blocked."""
    blocked = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    fork = os.fork

    def watched() -> int:
        blocked.append(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()))
        return fork()

    monkeypatch.setattr(os, "fork", watched)
    with Loading(batches(split, 5, workers=1, context="fork")) as loading:
        next(loading.epoch(0, 0))
    assert blocked == [True]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_death_is_told_when_a_batch_is_asked_for(split: Split, number: signal.Signals) -> None:
    """And not in whatever happens meanwhile, which may be half a step."""
    handler = signal.getsignal(signal.SIGCHLD)
    with Loading(batches(split, 1, workers=2, context="fork")) as loading:
        each = loading.epoch(0, 0)
        next(each)
        for pid in workers_of(loading):
            os.kill(pid, number)
        end = time.monotonic() + 20
        while not loading._died and time.monotonic() < end:
            time.sleep(0.01)
        assert loading._died
        with pytest.raises(WorkerLost, match=r"^a process that loads batches was lost: DataLoader worker \(pid"):
            for _ in each:
                pass
    if callable(handler):
        assert signal.getsignal(signal.SIGCHLD) is not loading._on_death


def test_it_goes_on_in_the_middle_of_an_epoch(split: Split) -> None:
    whole = [batch for _, batch in Loading(batches(split, 5, seed=3)).epoch(2, 0)]
    rest = [batch for _, batch in Loading(batches(split, 5, seed=3)).epoch(2, 3)]
    assert len(rest) == 2
    assert all(map(torch.equal, rest, whole[3:]))


def test_what_else_goes_wrong_is_told_as_it_is(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "__getitems__", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"), Loading(batches(split, 5)) as loading:
        next(loading.epoch(0, 0))


class Unusual(ValueError):
    """With a message of several lines."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2: (3)"),
        RuntimeError("DataLoader worker (pid 7) is killed by nobody"),
        DataError("x.h5: features[3, 2] is nan"),
        Unusual("first\nValueError: second"),
        KeyError("colour"),
        RuntimeError(),
        MemoryError("no room"),
    ],
    ids=repr,
)
def test_an_error_of_a_process_is_told_as_it_was_there(
    split: Split, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        try:
            raise LookupError("RuntimeError: an earlier one")
        except LookupError as earlier:
            raise error from earlier

    monkeypatch.setattr(Split, "__getitems__", fails)
    with pytest.raises(type(error)) as told, Loading(batches(split, 5, workers=1, context="fork")) as loading:
        next(loading.epoch(0, 0))
    assert type(told.value) is type(error)
    assert str(told.value) == (repr(str(error)) if isinstance(error, KeyError) else str(error))
    assert "in fails" in str(told.value.__cause__)  # where it happened is still there for who reads a traceback


def test_an_error_that_torch_cannot_make_again_keeps_its_words(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Split, "__getitems__", lambda *_: b"\xff".decode("utf-8"))
    loader = batches(split, 5, workers=1, context="fork")
    with pytest.raises(RuntimeError, match=r"^'utf-8' codec can't decode byte"), Loading(loader) as loading:
        next(loading.epoch(0, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_cut_off_meanwhile_is_a_mistake_of_the_data(tmp_path: Path, workers: int) -> None:
    """One line with the file; HDF5 would read zeros."""
    directory = write_tiny(tmp_path / "tiny", width=4000)  # of small ones HDF5 keeps all that it has read once
    path = directory / "train2014_vgg16_fc7.h5"
    data = open_data(directory, in_memory="no")["train"]
    with Loading(batches(data, 2, workers=workers)) as loading:
        each = loading.epoch(0, 0)
        next(each)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: .*; bring that file back$") as told:
            for _ in each:
                pass
    assert "\n" not in str(told.value)
    assert "Traceback" not in str(told.value)


def test_that_the_one_that_trains_was_killed_is_no_error_of_theirs() -> None:
    """It may be killed while it takes over a tensor; what else goes wrong there is reported."""
    code = """
import socket
from multiprocessing import resource_sharer
from torch_caption.data import batches as _batches
_batches._begin_worker(0)
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
