"""Peak memory of the loss over a large vocabulary: scores, softmax and their gradients, forward and backward.

Each way runs in a process of its own, `python -m benchmarks.memory`: memory that was freed is seldom given back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.agreement import TOLERANCE, Disagreement
from benchmarks.options import Options
from benchmarks.peers import HAS_CHUNKED, chunked_cross_entropy
from benchmarks.step import OURS
from benchmarks.tables import Column, Table
from benchmarks.workload import IDS, new_captions
from torch_caption import functions
from torch_caption.data.vocabulary import NULL

MIB = 2**20
A = "(a) nn.Linear, F.cross_entropy"
FUSED = "(f) F.linear_cross_entropy in chunks"

COLUMNS = (
    *(Column("V", ",d"), Column("H", ",d"), Column("who")),
    *(Column("peak MiB", ",.0f"), Column("of these gradients", ",.0f"), Column("share of (a)", ".2f")),
)
NOTES = (
    "above what is resident before the call, as the system counts; the gradients of h, w and b are there at the end",
)


@dataclass(frozen=True)
class Loss:
    """Sizes of the loss, and who computes it."""

    who: str
    N: int
    T: int
    H: int
    V: int
    threads: int


@dataclass(frozen=True)
class Peak:
    """What a process found.

    Attributes:
        bytes: peak above what was resident before the call.
        gradients: bytes of the gradients.
        values: the loss, and the norm of each gradient.
    """

    bytes: int
    gradients: int
    values: dict[str, float]


def tables(options: Options) -> Iterator[Table]:
    """One table; without processes of their own in a smoke run, whose figures mean nothing."""
    sizes = ((9, 30),) if options.quick else ((1024, 50_000), (512, 50_000))
    N, T = (3, 4) if options.quick else (128, 20)
    measure = peak_here if options.quick else peak_apart
    if not sys.platform.startswith("linux"):
        yield Table("memory", "memory: skipped, the peak is read from Linux's /proc")
        return
    rows: list[tuple[Any, ...]] = []
    for H, V in tqdm(sizes, desc="memory", unit="size", leave=False, disable=None):
        found = {who: measure(Loss(who, N, T, H, V, torch.get_num_threads())) for who in WAYS}
        require_same(found)
        rows += [
            (V, H, who, p.bytes / MIB, p.gradients / MIB, p.bytes / (found[A].bytes or 1)) for who, p in found.items()
        ]
    yield Table(
        "memory", f"peak memory of the loss, forward and backward: N={N} T={T}, float32", COLUMNS, tuple(rows), NOTES
    )


def require_same(found: dict[str, Peak]) -> None:
    """Hold losses and norms of gradients against ours.

    Raises:
        Disagreement: names who differs, and in what.
    """
    for who, peak in found.items():
        for name, expected in found[OURS].values.items():
            if not abs(peak.values[name] - expected) <= TOLERANCE["float32"] * abs(expected):
                raise Disagreement(f"memory, {who}: {name} is {peak.values[name]}, but ours is {expected}")


def peak_apart(loss: Loss) -> Peak:
    """`peak_here` in a new process.

    Raises:
        ChildProcessError: it failed; the message is its last line.
    """
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(loss))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChildProcessError(f"memory, {loss.who}: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return Peak(**json.loads(done.stdout))


def peak_here(loss: Loss) -> Peak:
    """Forward and backward once, after a small one that brings in whatever is loaded on first use."""
    _forward_and_backward(Loss(loss.who, N=2, T=2, H=8, V=16, threads=loss.threads))
    return _forward_and_backward(loss)


def _forward_and_backward(loss: Loss) -> Peak:
    torch.manual_seed(0)
    h = torch.randn(loss.N, loss.T, loss.H).requires_grad_()
    w = torch.empty(loss.H, loss.V).normal_(std=loss.H**-0.5).requires_grad_()
    b = torch.zeros(loss.V).requires_grad_()
    y = new_captions(loss.N, loss.T, max(loss.V, 16), torch.Generator().manual_seed(0))[:, 1:]
    if loss.who != OURS:
        w = w.detach().T.contiguous().requires_grad_()  # nn.Linear's layout
    before = _restart_peak()
    value = WAYS[loss.who](h, w, b, y)
    value.backward()
    peak = _status("VmHWM") - before
    grads = {name: tensor.grad for name, tensor in (("h", h), ("w", w), ("b", b)) if tensor.grad is not None}
    values = {"loss": float(value.detach()), **{f"d{name}": float(grad.norm()) for name, grad in grads.items()}}
    return Peak(max(peak, 0), sum(grad.nbytes for grad in grads.values()), values)


def _restart_peak() -> int:
    """Forget the peak so far; the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii", newline="\n")
    return _status("VmRSS")


def _status(name: str) -> int:
    """An entry of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


# The ways to compute it ----------------------------------------------------------------------------------------------


def _ours(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return functions.temporal_affine_softmax_loss(h, w, b, y, y != IDS[NULL])


def _padded(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    scores = F.linear(h, w, b)
    return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=IDS[NULL], reduction="sum") / len(y)


def _fused(h: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
    real = y != IDS[NULL]
    return chunked_cross_entropy(h[real], w, b, y[real]) / len(y)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {OURS: _ours, A: _padded}
if HAS_CHUNKED:
    WAYS[FUSED] = _fused


if __name__ == "__main__":
    asked = Loss(**json.loads(sys.argv[1]))
    torch.set_num_threads(asked.threads)
    print(json.dumps(asdict(peak_here(asked))))
