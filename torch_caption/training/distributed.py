"""Several processes that train one model: their shares, what they agree on, and how they end.

`torchrun --nproc-per-node K train.py` starts K processes, called ranks and counted from 0. Each holds the whole model
and computes the gradient of its share of every batch; `DistributedDataParallel` averages the gradients, and each takes
the same step. Without torchrun there is one rank, 0, and every function here does at once what it would do with one.

The loss is a mean over the N rows of the whole batch. Of a rank's n rows the model computes their own mean, and DDP
averages over the ranks. So a rank's loss is weighted by n K / N:

    1/K sum_k (n_k K / N) (1/n_k) sum_rows = 1/N sum_rows

A rank with no rows, of a last batch that is small, takes part with a loss of zero.
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
"""How long a rank waits for another that neither answers nor has closed its connection, as of a machine without power.
Longer than what rank 0 does alone while the others wait: scoring, drawing, writing."""


# Who they are --------------------------------------------------------------------------------------------------------


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 where it is alone."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """K, how many processes there are."""
    return dist.get_world_size() if _joined() else 1


def first() -> bool:
    """Whether this rank is the one that prints, writes and scores."""
    return rank() == 0


@contextlib.contextmanager
def first_alone_speaks() -> Iterator[None]:
    """In the block the other ranks' output goes nowhere: of the same command line all would say the same."""
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def gpu() -> torch.device:
    """The rank's own GPU, which is made the current one.

    Raises:
        ConfigError: this machine has fewer GPUs than ranks.
    """
    if size() == 1:
        return torch.device("cuda")
    place, ranks = _local()
    if ranks > torch.cuda.device_count():
        raise ConfigError(
            f"{ranks} processes on a machine with {torch.cuda.device_count()} GPUs; start no more of them "
            "(--nproc-per-node), or take --device cpu"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


def _local() -> tuple[int, int]:
    """This rank's number among those of its machine, and how many they are."""
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", size()))


# What they agree on --------------------------------------------------------------------------------------------------


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
    """What `make` returns on rank 0, which alone calls it.

    Raises:
        RankError: what it raises there ends the other ranks too, with the same message.
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
    """Return on no rank before all are here."""
    total([0.0])


class Replica:
    """A rank's model, whose gradients become the mean over the ranks in their backward.

    DDP's settings. Every parameter is in every loss, so no graph has to be searched for the unused
    (`find_unused_parameters` is off), and nothing would be gained by a promise that the graph never changes
    (`static_graph`), which the empty shares would break. Gradients are views of the buckets that are sent
    (`gradient_as_bucket_view`), which saves a copy of them. There are no buffers to broadcast.

    DDP orders its buckets anew after the first backward, and in which order a sum over three ranks or more is added up
    depends on where an entry lies. A run that goes on must add up as the one that never stopped: so the first backward
    is one of zeros, here, before any step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.ranks = size()
        self._parent = os.getppid()
        self._weighted = model
        if self.ranks > 1:
            self._weighted = DistributedDataParallel(_Weighted(model), gradient_as_bucket_view=True)
            for _ in range(2):  # the buckets are ordered when the second forward begins
                self._weighted(None, None, 0.0).backward()
            model.zero_grad(set_to_none=True)

    def share(self, rows: int, of: int, *, asked: bool = False) -> Share:
        """This rank's share of the next batch: `rows` of its `of` rows, and whether this rank was asked to stop.

        A rank whose launcher is gone, by SIGKILL, is asked to stop by that.
        """
        if self.ranks > 1:
            asked = asked or os.getppid() != self._parent
        return Share(self._weighted, rows, of, self.ranks, asked=asked)


class _Weighted(nn.Module):
    """A weight times the model's loss; of weight 0 a loss of no rows, whose gradients are zeros."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor | None, captions: Tensor | None, weight: float, **given: Tensor) -> Tensor:
        if weight:
            return weight * self.model(features, captions, **given)
        return torch.stack([p.flatten()[:0].sum() for p in self.model.parameters()]).sum()


class Share:
    """A rank's share of one batch, from its loss to what all ranks' shares come to.

    Attributes:
        of: the rows of the whole batch.
        counts: numbers that are to be summed over the ranks, and after `received` their sums.
        asked: this rank was asked to stop, and after `received` whether any was.
    """

    def __init__(self, weighted: nn.Module, rows: int, of: int, ranks: int = 1, *, asked: bool = False) -> None:
        self.of = of
        self.counts: list[float] = []
        self.asked = asked
        self._weighted = weighted
        self._weight = rows * ranks / of
        self._ranks = ranks

    @classmethod
    def whole(cls, model: nn.Module, rows: int) -> Share:
        """All `rows` of the batch, for this process alone."""
        return cls(model, rows, rows)

    def loss(self, features: Tensor, captions: Tensor, **given: Tensor) -> Tensor:
        """The model's own loss, but so weighted that its mean over the ranks is that of the whole batch."""
        weight = () if self._ranks == 1 else (self._weight,)
        loss: Tensor = self._weighted(features, captions, *weight, **given)
        self._loss = loss.detach()
        return loss

    def received(self) -> float:
        """The whole batch's loss, once the gradient has been computed. Of several ranks it takes one message."""
        loss, asked, *self.counts = total([float(self._loss), float(self.asked), *self.counts])
        self.asked = asked > 0
        return loss / self._ranks


# How they end --------------------------------------------------------------------------------------------------------


def several(main: Callable[[], object]) -> None:
    """Run `main` as one of the processes that torchrun started; alone, just run it.

    Whatever ends one rank ends all of them. Its error is recorded for torchrun, whose report names the rank.

    Raises:
        RankError: what went wrong on this rank.
        SystemExit: another was lost.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        main()
        return
    from torch.distributed.elastic.multiprocessing.errors import record  # it takes as long to load as the rest

    record(_rank)(main)


def _rank(main: Callable[[], object]) -> None:
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=SILENCE)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"the processes do not find each other: {one_line(error)}") from error
    try:
        main()
    except BrokenPipeError:
        raise
    except Exception as error:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            # Not recorded: torchrun's report takes the earliest record for the cause.
            line = f"error: rank {rank()} has lost another, which torchrun names: {one_line(error)}"
            raise SystemExit(line) from None
        if not isinstance(error, TorchCaptionError | OSError):
            raise  # a mistake of the program's: the traceback says where
        cause = error if os.environ.get(TRACEBACK) else None  # which torchrun's report would print too
        raise RankError(f"rank {rank()}: {one_line(error)}", exit_status(error)) from cause
    dist.destroy_process_group()
