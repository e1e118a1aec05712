"""Distributed training: shares of a batch, collective operations, errors of ranks.

`torchrun --nproc-per-node K train.py` starts K processes, called ranks and counted from 0. Each holds the whole model
and computes the gradient of its share of every batch; `DistributedDataParallel` averages the gradients, and all make
the same step. Without torchrun there is one rank, 0, and the functions here need no communication.

The loss is a mean over the N rows of the whole batch. The model computes the mean over a rank's n rows, and DDP
averages over the ranks. So a rank's loss is weighted by n K / N:

    1/K sum_k (n_k K / N) (1/n_k) sum_rows = 1/N sum_rows

A rank without rows, in a small last batch, contributes a loss of zero.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_caption.errors import ConfigError, RankError, TorchCaptionError
from torch_caption.io.exits import TRACEBACK, exit_status, one_line

T = TypeVar("T")
SILENCE = timedelta(minutes=10)
"""Timeout for a rank that does not respond, such as on a machine without power. Longer than the work of rank 0 while
the others wait: scoring, figures, writing."""


# Ranks ---------------------------------------------------------------------------------------------------------------


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The rank of this process; 0 without torchrun."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """K, the number of processes."""
    return dist.get_world_size() if _joined() else 1


def first() -> bool:
    """Whether this is rank 0, which prints, writes and scores."""
    return rank() == 0


@contextlib.contextmanager
def first_alone_speaks() -> Iterator[None]:
    """In the block the output of the other ranks is discarded: all would print the same."""
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        yield


def gpu() -> torch.device:
    """The GPU of this rank, which becomes the current one.

    Raises:
        ConfigError: this machine has fewer GPUs than ranks.
    """
    if size() == 1:
        return torch.device("cuda")
    index, ranks = _local()
    if ranks > torch.cuda.device_count():
        raise ConfigError(
            f"{ranks} processes on a machine with {torch.cuda.device_count()} GPUs; start no more of them "
            "(--nproc-per-node), or use --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _local() -> tuple[int, int]:
    """This rank's index on its machine, and the number of ranks there."""
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", size()))


# Collectives ---------------------------------------------------------------------------------------------------------


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over the ranks, in float64."""
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device="cpu")
    dist.all_reduce(sums)
    return cast(list[float], sums.tolist())


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of the ranks."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def from_first(make: Callable[[], T]) -> T:
    """The result of `make`, which only rank 0 calls.

    Raises:
        RankError: on the other ranks, with the message of an error on rank 0.
    """
    if size() == 1:
        return make()
    made: list[Any] = [None, None]
    error = None
    if first():
        try:
            made[0] = make()
        except Exception as raised:
            error = raised
            made[1] = one_line(raised), exit_status(raised)
    dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    if error is not None:
        raise error
    if made[1] is not None:
        raise RankError(*made[1])
    return cast(T, made[0])


def wait_for_all() -> None:
    """A barrier: returns when all ranks have called it."""
    total([0.0])


class Replica:
    """A rank's model, whose backward averages the gradients over the ranks.

    DDP's settings. Every loss uses every parameter, so no search for unused ones is needed (`find_unused_parameters` is
    off); a promise of a constant graph (`static_graph`) would gain nothing, and empty shares would break it. Gradients
    are views of the communicated buckets (`gradient_as_bucket_view`), which saves a copy. There are no buffers.

    DDP reorders its buckets after the first backward, and the order of summation over three ranks or more depends on an
    entry's position in the buckets. A resumed run must sum in the order of an uninterrupted one, so the first backward
    is one of zeros, here, before any step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.ranks = size()
        self._parent = os.getppid()
        self._weighted = model
        if self.ranks > 1:
            self._weighted = DistributedDataParallel(_Weighted(model), gradient_as_bucket_view=True)
            for _ in range(2):  # the buckets are reordered at the start of the second forward
                self._weighted(None, None, 0.0).backward()
            model.zero_grad(set_to_none=True)

    def share(self, rows: int, of: int, *, requested: bool = False) -> Share:
        """This rank's share of the next batch: `rows` of its `of` rows, and whether this rank has a stop request.

        The loss of the launcher, by SIGKILL, is a stop request.
        """
        if self.ranks > 1:
            requested = requested or os.getppid() != self._parent
        return Share(self._weighted, rows, of, self.ranks, requested=requested)


class _Weighted(nn.Module):
    """A weight times the model's loss; for weight 0 a loss without rows, whose gradients are zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor | None, captions: Tensor | None, weight: float, **given: Tensor) -> Tensor:
        if weight:
            return weight * self.model(features, captions, **given)
        return torch.stack([p.flatten()[:0].sum() for p in self.model.parameters()]).sum()


class Share:
    """A rank's share of one batch: its loss, and the sums over all ranks.

    Attributes:
        of: the number of rows of the whole batch.
        counts: numbers to sum over the ranks; after `received` their sums.
        requested: this rank has a stop request; after `received`, any rank has.
    """

    def __init__(self, weighted: nn.Module, rows: int, of: int, ranks: int = 1, *, requested: bool = False) -> None:
        self.of = of
        self.counts: list[float] = []
        self.requested = requested
        self._weighted = weighted
        self._weight = rows * ranks / of
        self._ranks = ranks

    @classmethod
    def whole(cls, model: nn.Module, rows: int) -> Share:
        """All `rows` of the batch, for a single process."""
        return cls(model, rows, rows)

    def loss(self, features: Tensor, captions: Tensor, **given: Tensor) -> Tensor:
        """The model's loss, weighted so that its mean over the ranks is the loss of the whole batch."""
        weight = () if self._ranks == 1 else (self._weight,)
        loss: Tensor = self._weighted(features, captions, *weight, **given)
        self._loss = loss.detach()
        return loss

    def received(self) -> float:
        """The loss of the whole batch, after the backward. With several ranks this is one message."""
        loss, requested, *self.counts = total([float(self._loss), float(self.requested), *self.counts])
        self.requested = requested > 0
        return loss / self._ranks


# Errors --------------------------------------------------------------------------------------------------------------


def several(main: Callable[[], object]) -> None:
    """Run `main` as one of the processes of torchrun, or as a single process.

    An error on one rank ends all ranks. It is recorded for torchrun, whose report names the rank.

    Raises:
        RankError: an error on this rank.
        SystemExit: another rank was lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        main()
        return
    from torch.distributed.elastic.multiprocessing.errors import record  # a slow import

    record(_rank)(main)


def _rank(main: Callable[[], object]) -> None:
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the processes cannot connect to each other: {one_line(error)}") from error
    try:
        main()
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            # Not recorded: torchrun's report takes the earliest record for the cause.
            line = f"error: rank {rank()} has lost another rank, which torchrun names: {one_line(error)}"
            raise SystemExit(line) from None
        if not isinstance(error, TorchCaptionError | OSError):
            raise  # a bug: the traceback shows where
        cause = error if os.environ.get(TRACEBACK) else None  # torchrun's report would print it too
        raise RankError(f"rank {rank()}: {one_line(error)}", exit_status(error)) from cause
    dist.destroy_process_group()
