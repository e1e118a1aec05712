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
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torch_caption.io.exits import SIGNALS, Failure

T = TypeVar("T")
COUNTS = 4
"""How many numbers a step may count over the ranks."""
SILENCE = timedelta(minutes=10)
"""How long a rank waits for another that neither answers nor has closed its connection, as of a machine without power.
Longer than what rank 0 does alone while the others wait: scoring, drawing, writing."""
PATIENCE = 5.0
"""Seconds in which a rank that has lost another finds out which one, and why."""


class RankError(Failure):
    """What went wrong on a rank; the message says on which, where it is not the same on all."""


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
        ValueError: this machine has fewer GPUs than ranks.
    """
    if size() == 1:
        return torch.device("cuda")
    place, ranks = _local()
    if ranks > torch.cuda.device_count():
        raise ValueError(
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
        Failure: what it raises there ends the other ranks too, with the same message.
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
            made[1] = _line(raised), _status(raised)
    dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
    if error is not None:
        raise error
    if made[1] is not None:
        raise Failure(*made[1])
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
        self._tally: Tensor | None = None
        if self.ranks > 1:
            weighted = _Weighted(model)
            self._tally = weighted.tally
            self._weighted = DistributedDataParallel(weighted, gradient_as_bucket_view=True)
            for _ in range(2):  # the buckets are ordered when the second forward begins
                self._weighted(None, None, 0.0, [0.0] * (1 + COUNTS)).backward()
            model.zero_grad(set_to_none=True)

    def share(self, rows: int, of: int, *, asked: bool = False) -> Share:
        """This rank's share of the next batch: `rows` of its `of` rows, and whether this rank was asked to stop.

        A rank whose launcher is gone, by SIGKILL, is asked to stop by that.
        """
        if self.ranks > 1:
            asked = asked or os.getppid() != self._parent
        return Share(self._weighted, rows, of, self.ranks, self._tally, asked=asked)


class _Weighted(nn.Module):
    """A weight times the model's loss; of weight 0 a loss of no rows, whose gradients are zeros.

    What else the ranks tell each other in a step, its loss among it, is the gradient of one more parameter, which is
    zero and which no optimizer knows: DDP sends it with the others, and no message is needed for it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.tally = nn.Parameter(next(model.parameters()).detach().new_zeros(2 + COUNTS))

    def forward(
        self,
        features: Tensor | None,
        captions: Tensor | None,
        weight: float,
        numbers: Sequence[float],
        **given: Tensor,
    ) -> Tensor:
        if weight:
            loss = weight * self.model(features, captions, **given)
        else:
            loss = torch.stack([p.flatten()[:0].sum() for p in self.model.parameters()]).sum()
        told = torch.cat([loss.detach().reshape(1), loss.new_tensor(numbers)])
        return loss + (self.tally * told.to(self.tally)).sum()


class Share:
    """A rank's share of one batch, from its loss to what all ranks' shares come to.

    Attributes:
        of: the rows of the whole batch.
        counts: at most `COUNTS` numbers that are to be summed over the ranks, and after `received` their sums, rounded
            as the weights' precision has it.
        asked: this rank was asked to stop, and after `received` whether any was.
    """

    def __init__(
        self,
        weighted: nn.Module,
        rows: int,
        of: int,
        ranks: int = 1,
        tally: Tensor | None = None,
        *,
        asked: bool = False,
    ) -> None:
        self.of = of
        self.counts: list[float] = []
        self.asked = asked
        self._weighted = weighted
        self._weight = rows * ranks / of
        self._ranks = ranks
        self._tally = tally

    @classmethod
    def whole(cls, model: nn.Module, rows: int) -> Share:
        """All `rows` of the batch, for this process alone."""
        return cls(model, rows, rows)

    def loss(self, features: Tensor, captions: Tensor, **given: Tensor) -> Tensor:
        """The model's own loss, but so weighted that its mean over the ranks is that of the whole batch.

        Raises:
            ValueError: there are too many counts.
        """
        if self._tally is None:
            loss: Tensor = self._weighted(features, captions, **given)
            self._loss = loss.detach()
            return loss
        if len(self.counts) > COUNTS:
            raise ValueError(f"{len(self.counts)} counts, where a step has {COUNTS}")
        numbers = [float(self.asked), *self.counts, *[0.0] * (COUNTS - len(self.counts))]
        self._tally.grad = None
        loss = self._weighted(features, captions, self._weight, numbers, **given)
        return loss

    def received(self) -> float:
        """The whole batch's loss, once the gradient has been computed."""
        if self._tally is None or self._tally.grad is None:
            return float(self._loss)
        loss, *means = self._tally.grad.tolist()
        asked, *counts = (mean * self._ranks for mean in means)
        self.asked = asked > 0
        self.counts = counts[: len(self.counts)]
        return loss


# How they end --------------------------------------------------------------------------------------------------------


def several(main: Callable[[], object]) -> None:
    """Run `main` as one of the processes that torchrun started; alone, just run it.

    Whatever ends one rank ends all of them, and is said once: by the rank that it happened to, or, of the same mistake
    on all ranks, by rank 0; if a rank was killed, by another one.

    Raises:
        RankError: this rank is the one to say what went wrong.
        SystemExit: it is not.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        main()
        return
    ranks = _Ranks()
    try:
        main()
    except BaseException as error:
        try:
            ranks.end(error)
        except dist.DistError:  # the store ends with torchrun, and then there is nothing to agree on
            if isinstance(error, Exception) and _is_loss_of_a_rank(error):
                line = f"rank {ranks.rank} has lost another, and where they meet is gone: {_line(error)}"
                raise RankError(line, 1) from error
        raise
    dist.destroy_process_group()


def _is_loss_of_a_rank(error: Exception) -> bool:
    """Whether a connection broke: gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class _Ranks:
    """The ranks' last words, in the store that torchrun keeps for them.

    Keys: pid/k at the start; word/k when rank k ends, its message or none; gone/k when others find that it has ended
    without; asker/m, where the first of machine m's ranks that has lost another takes it on to say so.
    """

    def __init__(self) -> None:
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            self._store, self.rank, self.size = next(dist.rendezvous("env://"))
            self.machine = os.environ.get("GROUP_RANK", "0")
            self._set("pid", self.rank, [os.getpid(), self.machine])
            group = dist.PrefixStore("group", self._store)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(backend, timeout=SILENCE, store=group, rank=self.rank, world_size=self.size)
        except (RuntimeError, ValueError) as error:
            raise RankError(f"the processes do not find each other: {_line(error)}", 1) from error

    def end(self, error: BaseException) -> None:
        """End by an error, or because another rank has ended; return to raise the error itself."""
        if isinstance(error, Exception) and not _is_loss_of_a_rank(error):
            self.end_with(error)
        speaks = self.end_without()
        if isinstance(error, Exception):
            if not speaks:
                raise SystemExit(1)
            silent = [k for k in range(self.size) if not self._has("word", k)]
            away = ", ".join(str(k) for k in silent if self._get("pid", k)[1] != self.machine)
            if away:
                raise RankError(f"rank {away}: on another machine, and not heard of any more", 1)
            raise RankError(f"rank {self.rank} has lost another: {_line(error)}")
        # Told to stop, or a command line that is wrong or asks for help: so it is on all.

    def end_with(self, error: Exception) -> NoReturn:
        """End by an error of this rank's own, or of all."""
        self._stay()
        line = _line(error)
        self._set("word", self.rank, line)
        self._wait(self._all_have_ended, seconds=3)
        same = [k for k in range(self.size) if self._has("word", k) and self._get("word", k) == line]
        if isinstance(error, BrokenPipeError) and self.rank == 0:
            raise error
        if same[0] != self.rank:
            raise SystemExit(_status(error))
        if not isinstance(error, (ValueError, OSError, ArithmeticError, Failure)):
            raise error  # a mistake of the program's: the traceback says where
        message = line if len(same) == self.size else f"rank {self.rank}: {line}"
        raise RankError(message, _status(error)) from error

    def end_without(self) -> bool:
        """End as all others do, or because another has; return if none has more to say than this one.

        They wait for each other, as torchrun ends them all with the first.

        Returns:
            whether this rank speaks for its machine.

        Raises:
            RankError: this rank is the one to say which was lost.
            SystemExit: it is not.
        """
        self._stay()
        self._set("word", self.rank, None)
        speaks = self._store.add(f"asker/{self.machine}", 1) == 1
        self._wait(lambda: self._lost() or self._all_have_ended())
        if lost := self._lost():
            line, said_here = lost
            raise RankError(line, 1) if speaks and not said_here else SystemExit(1)
        return speaks

    def _all_have_ended(self) -> bool:
        return all(self._has("word", k) for k in range(self.size))

    def _lost(self) -> tuple[str, bool] | None:
        """What ended the rank that ended first, and whether it has said so on this machine; None until it is known."""
        for k in range(self.size):
            pid, machine = self._get("pid", k)
            if self._has("word", k):
                if (said := self._get("word", k)) is not None:
                    return f"rank {k}: {said}", machine == self.machine
            elif machine == self.machine and _is_gone(pid):
                said = f"its process, {pid}, was killed or ended without a word"
                self._set("gone", k, said)
                return f"rank {k}: {said}", False
            elif self._has("gone", k):
                return f"rank {k}: {self._get('gone', k)}", False
        return None

    def _stay(self) -> None:
        """torchrun ends all ranks as soon as one has failed, by SIGTERM or the signal that ended it; what this one has
        to say takes a moment longer."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS[1:]:
                signal.signal(number, signal.SIG_IGN)

    def _set(self, name: str, k: int, value: Any) -> None:
        self._store.set(f"{name}/{k}", json.dumps(value))

    def _get(self, name: str, k: int) -> Any:
        return json.loads(self._store.get(f"{name}/{k}"))

    def _has(self, name: str, k: int) -> bool:
        return self._store.check([f"{name}/{k}"])

    def _wait(self, ask: Callable[[], T], seconds: float = PATIENCE) -> T:
        """The first answer that is something, or the last one."""
        end = time.monotonic() + seconds
        while not (answer := ask()) and time.monotonic() < end:
            time.sleep(0.02)
        return answer


def _is_gone(pid: int) -> bool:
    """Whether there is no such process on this machine any more."""
    if sys.platform == "win32":  # where os.kill(pid, 0) sends Ctrl-C
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _status(error: Exception) -> int:
    if isinstance(error, Failure):
        return error.status
    return 2 if isinstance(error, (ValueError, OSError)) else 1
