"""The processes that load batches: how they begin, end, and are missed."""

from __future__ import annotations

import multiprocessing
import re
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader

from torch_caption.data.dataset import EpochBatches
from torch_caption.functions._torch_internals import end_workers
from torch_caption.io.exits import TO_ALL, Failure, one_line

Batch = tuple[Tensor, Tensor]
_LOST = "DataLoader worker (pid"  # so torch's own message begins, and none of a worker's
_CAUGHT = re.compile(r"Caught (\S+) in DataLoader worker process \d+\.\n")


class WorkerLost(Failure):
    """A process that loads batches was killed."""


class Loading:
    """A loader within a block, at whose end its processes end.

    torch tells that one of them has died by an exception in whatever the main thread is doing, which may be half a step
    or half a file. Here it is told when the next batch is asked for, and at no other time. Ctrl-C in a terminal, its
    loss and a batch system's signals are for all processes of a program; those that load leave them to the one that
    trains.
    """

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.order = cast(EpochBatches, loader.batch_sampler)
        self._loader = loader
        self._theirs: Any = None
        self._died = False

    def __enter__(self) -> Loading:
        return self

    def __exit__(self, *_: object) -> None:
        end_workers(self._loader)
        if self._theirs is not None:
            signal.signal(signal.SIGCHLD, self._theirs)
            self._theirs = None

    def epoch(self, number: int, start: int) -> Generator[Batch, None, None]:
        """The batches of an epoch from the given one on.

        Raises:
            WorkerLost: a process that loads them was killed.
            Exception: what went wrong in such a process, as it would have been raised in this one.
        """
        self.order.set_epoch(number, start=start)
        with _without_interrupts(self._loader):
            batches = iter(self._loader)
        self._hold_back()
        while (batch := self._next(batches)) is not None:
            yield batch

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        try:
            if self._died:
                self._theirs(signal.SIGCHLD, None)
            return next(batches, None)
        except Exception as error:
            if isinstance(error, RuntimeError) and str(error).startswith(_LOST):
                raise WorkerLost(f"a process that loads batches was lost: {one_line(error)}") from error
            message = _caught(error)
            if message is None:
                raise
            raise type(error)(message) from error

    def _hold_back(self) -> None:
        """Stand between torch and its processes' deaths, which it hears of from its first loader on."""
        if not self._loader.num_workers or not hasattr(signal, "SIGCHLD") or self._theirs is not None:
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            self._theirs = handler
            signal.signal(signal.SIGCHLD, self._on_death)

    def _on_death(self, number: int, frame: FrameType | None) -> None:
        self._died = True  # if a batch of that process is waited for just now, torch will find out in some seconds


def _caught(error: Exception) -> str | None:
    """What an error said in the process that loads, whose traceback torch has made the message; None of another."""
    text = str(error.args[0]) if error.args else ""
    caught = _CAUGHT.match(text)
    if caught is None:
        return None
    last = list(re.finditer(rf"^(?:[\w.<>]+\.)?{re.escape(caught[1])}(?:: |$)", text, re.MULTILINE))
    return text[last[-1].end() :].strip() if last else text


@contextmanager
def _without_interrupts(loader: DataLoader[Batch]) -> Iterator[None]:
    """In the block Ctrl-C waits, and its like, and the processes that are started never hear it, not even while they
    start."""
    if not loader.num_workers or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    context: Any = loader.multiprocessing_context or multiprocessing
    if context.get_start_method() != "fork":  # what goes with it lets Ctrl-C in again when it is started
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
