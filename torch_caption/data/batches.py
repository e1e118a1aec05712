"""The order of an epoch, and the batches in it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from torch_caption.io.exits import TO_ALL, deferred_signals

Batch = tuple[Tensor, Tensor]


def generator(*seeds: int) -> torch.Generator:
    """A generator that depends on all of the seeds and on nothing else."""
    if min(seeds) < 0:
        raise ValueError(f"a seed is {min(seeds)}; it must be at least 0")
    state = np.random.SeedSequence(seeds).generate_state(2, np.uint32)
    return torch.Generator("cpu").manual_seed(int(state[0]) | int(state[1]) << 32)


class EpochBatches(Sampler[list[int]]):
    """The rows of each batch of an epoch; their order is a function of (seed, epoch).

    Args:
        rows: the number of rows.
        batch_size: rows per batch; the last batch may be smaller.
        seed: with the epoch, the seed of the order.
        shuffle: False keeps the order of the file.
        start: batches to skip in the first epoch that is run, to resume in the middle of it.
        share: (k, K) selects the rows k, k + K, k + 2K, ... of every batch, the share of the k-th of K processes; it
            may be empty.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        start: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= share[0] < share[1]:
            raise ValueError(f"share is {share}; it must be (k, K) with 0 <= k < K")
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.share = share
        self.epoch: int | None = None
        self.start = self._checked(start)

    def set_epoch(self, epoch: int, start: int | None = None) -> None:
        """Set the epoch to run next.

        Args:
            epoch: 0, 1, ...
            start: batches to skip; by default the constructor's `start` in the first call, else 0.
        """
        if start is not None:
            self.start = self._checked(start)
        elif self.epoch not in (None, epoch):
            self.start = 0
        self.epoch = epoch

    def size(self, position: int) -> int:
        """The number of rows of the whole batch at a position of the epoch, all shares together."""
        return min(self.batch_size, self.rows - position * self.batch_size)

    @property
    def total(self) -> int:
        """The number of batches of a whole epoch."""
        return -(-self.rows // self.batch_size)

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._order()[self.start * self.batch_size :].split(self.batch_size):
            if len(batch):  # splitting an empty tensor gives one empty piece
                yield batch[self.share[0] :: self.share[1]].tolist()

    def rows_at(self, position: int) -> list[int]:
        """The rows of the whole batch at a position of the epoch."""
        first = position * self.batch_size
        rows: list[int] = self._order()[first : first + self.batch_size].tolist()
        return rows

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rows, device="cpu")
        return torch.randperm(self.rows, generator=generator(self.seed, self.epoch or 0), device="cpu")

    def _checked(self, start: int) -> int:
        if not 0 <= start <= self.total:
            raise ValueError(f"start is {start}, but an epoch has {self.total} batches")
        return start


def _begin_worker(number: int) -> None:
    """Ignore the signals that a terminal or batch system sends to all processes: the main process handles them and ends
    the workers."""
    for ignored in TO_ALL:
        signal.signal(ignored, signal.SIG_IGN)
    if "RANK" in os.environ and hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # torchrun sends SIGTERM to the whole process group of a rank, which saves first
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error as usual, except a lost connection: the thread that sends tensors raises it if the main process
    is killed."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


class _ErrorsAsBatches(Dataset[Any]):
    """A split that returns errors, since torch would raise them with the traceback as the message."""

    def __init__(self, split: Dataset[Batch]) -> None:
        self._split: Any = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, rows: list[int]) -> Batch | ValueError | OSError:
        try:
            return cast(Batch, self._split.__getitems__(rows))
        except (ValueError, OSError) as error:
            return error


def _raised(batch: Batch | Exception) -> Batch:
    if isinstance(batch, Exception):
        raise batch
    return batch


class Loader(DataLoader[Batch]):
    """Batches in the order of `order`, from worker processes that end at `close`.

    Its generator is on the CPU, regardless of torch's default device.
    """

    def __init__(self, split: Dataset[Batch], order: EpochBatches, workers: int, **options: Any) -> None:
        self.order = order
        self._processes: list[BaseProcess] = []
        if workers:
            split = _ErrorsAsBatches(split)
        super().__init__(split, batch_sampler=order, num_workers=workers, **options)

    def __iter__(self) -> Any:
        with torch.device("cpu"), _without_interrupts(self):
            before = multiprocessing.active_children()
            each: Any = super().__iter__()
            if self.num_workers:
                self._reader = each  # the same in each epoch
                self._processes += [process for process in multiprocessing.active_children() if process not in before]
        return map(_raised, each)

    def close(self) -> None:
        """End the worker processes. A signal that arrives meanwhile is handled afterwards.

        Otherwise torch ends them in a `__del__`, where Python prints and drops what a signal raises.
        """
        if self._processes:
            with deferred_signals():
                self._reader.__del__()

    def lost(self) -> list[int]:
        """The process ids of workers that have exited.

        A killed worker closes its connections before the system reports its end, so the resulting error may come first:
        this waits up to a second.
        """
        try:
            return self._lost()
        except RuntimeError:  # torch's handler of SIGCHLD raises this, once, wherever the program is
            return self._lost()

    def _lost(self) -> list[int]:
        if not self._processes:
            return []
        ended = multiprocessing.connection.wait([process.sentinel for process in self._processes], timeout=1)
        lost = [process for process in self._processes if process.sentinel in ended]
        for process in lost:
            process.join()
        return [cast(int, process.pid) for process in lost]


@contextmanager
def _without_interrupts(loader: Loader) -> Iterator[None]:
    """In the block the signals such as Ctrl-C are blocked, also in processes that are started."""
    if not loader.num_workers or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    context: Any = loader.multiprocessing_context or multiprocessing
    if context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start unblocks Ctrl-C again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unchanged(batch: Any) -> Any:
    """`Split.__getitems__` has already collated the batch."""
    return batch


def batches(
    split: Dataset[Batch],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    context: str | None = None,
) -> Loader:
    """Batches (features (B, D) float32, captions (B, T) int64), each caption once per epoch.

    Before each epoch call `loader.order.set_epoch(epoch)`. The order is the same for any number of workers, and
    the global random state does not change.

    Args:
        split: a `Split`; `Split.__getitems__` makes the batches.
        batch_size: captions per batch; the last batch may be smaller.
        seed: with the epoch, the seed of the order.
        shuffle: False keeps the order of the file.
        workers: processes that read ahead; useful only for features that are not in memory.
        start: batches to skip, to resume in the middle of an epoch.
        share: (k, K) selects the rows k, k + K, ... of every batch.
        context: start method of the workers, "fork", "spawn" or "forkserver"; None is Python's default.
    """
    rows = len(split)  # type: ignore[arg-type]  # Dataset leaves it to its subclasses
    return Loader(
        split,
        EpochBatches(rows, batch_size, seed=seed, shuffle=shuffle, start=start, share=share),
        workers,
        collate_fn=_unchanged,
        persistent_workers=workers > 0,
        multiprocessing_context=context if workers else None,
        worker_init_fn=_begin_worker,
        generator=generator(seed),  # without one, every epoch uses the global generator
    )
