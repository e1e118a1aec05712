"""Several processes: the sum of gradients on paper, for many machines, and measured, for two processes of this one.

A ring of K processes sends 2 (K - 1) / K times the gradients' bytes out of each, whatever K is (Patarasuk & Yuan 2009).
Processes of one machine share its cores and its memory: the measured table shows that the engine works and what it
costs there, and says nothing of a network.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import AdamW

from benchmarks.options import Options
from benchmarks.tables import Column, Table
from benchmarks.workload import SHAPES, TINY, Shape, new_batch, new_model
from torch_caption.training.distributed import Replica
from torch_caption.training.trainer import train_step

LINKS = {"10 GbE": 1.25e9, "100 GbE": 12.5e9, "NVLink": 450e9}
"""Bytes a second in one direction; NVLink as an H100 has it."""
PROCESSES = (2, 4, 8, 16, 32, 64)
REPEATS = 15
RANKS = 2

ON_PAPER = (
    *(Column("cell"), Column("shape"), Column("gradients, MB", ",.1f"), Column("link")),
    *(Column(f"K={K}", ",.2f") for K in PROCESSES),
    *(Column("step here, ms", ",.1f"), Column("most, share of it", ".0%")),
)
ON_PAPER_NOTES = (
    "2 (K - 1) / K of the gradients' bytes over the link's bandwidth, in ms. What each message takes to set out is not",
    "in it; nor that DDP sends what is ready while the backward goes on, which hides some of it. The step is one",
    "process's, of a whole batch of the shape, on this machine's processor in float32, with one thread.",
)
MEASURED = (
    *(Column("cell"), Column("shape"), Column("one process, ms", ",.1f"), Column("two, half the batch each", ",.1f")),
    *(Column("times as fast", ".2f"), Column("sum of gradients, ms", ",.1f"), Column("MB/s", ",.0f")),
)
MEASURED_NOTES = (
    "one thread a process; medians. The sum alone, by gloo, of nothing else at the same time. What else the processes",
    "tell each other in a step (its loss, its words, whether one was asked to stop) goes with the gradients.",
)


@dataclass(frozen=True)
class Times:
    """What was measured of one shape, in ms.

    Attributes:
        whole: a step of one process.
        shared: a step of two, each with half of the batch.
        gradients: their sum alone.
    """

    whole: float
    shared: float
    gradients: float


def gradient_bytes(shape: Shape, cell: str) -> int:
    """What every process sends on: a float32 for each weight."""
    return 4 * sum(p.numel() for p in new_model(shape, cell, "meta").parameters())


def ring_ms(size: int, K: int, bandwidth: float) -> float:
    """The sum of `size` bytes over K processes by a ring, at so many bytes a second, in ms."""
    return 1e3 * 2 * (K - 1) / K * size / bandwidth


def tables(options: Options) -> Iterator[Table]:
    """The arithmetic, and the measurement."""
    pairs = [(shape, cell) for cell in options.cells for shape in ((TINY,) if options.quick else SHAPES)]
    paper: list[tuple[Any, ...]] = []
    measured: list[tuple[Any, ...]] = []
    for (shape, cell), t in zip(pairs, _measure(pairs, 1 if options.quick else REPEATS), strict=True):
        size = gradient_bytes(shape, cell)
        for link, bandwidth in LINKS.items():
            row = [ring_ms(size, K, bandwidth) for K in PROCESSES]
            paper.append((cell, shape.name, size / 1e6, link, *row, t.whole, row[-1] / t.whole))
        rate = size / 1e6 / (t.gradients / 1e3)
        row = [t.whole, t.shared, t.whole / t.shared, t.gradients, rate]
        measured.append((cell, shape.name, *row))
    yield Table(
        "distributed", "sum of the gradients over K processes, on paper", ON_PAPER, tuple(paper), ON_PAPER_NOTES
    )
    title = "a step of two processes of this machine, over gloo"
    yield Table("distributed", title, MEASURED, tuple(measured), MEASURED_NOTES)


def _measure(pairs: Sequence[tuple[Shape, str]], repeats: int) -> list[Times]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (Path(folder), pairs, repeats)
        torch.multiprocessing.start_processes(_rank, arguments, nprocs=RANKS, start_method="spawn")
        return [Times(**times) for times in json.loads((Path(folder) / "times.json").read_text(encoding="utf-8"))]


def _rank(rank: int, folder: Path, pairs: Sequence[tuple[Shape, str]], repeats: int) -> None:
    """One of the two processes; the first measures alone before, and writes down the times."""
    torch.set_num_threads(1)
    alone = [_whole(shape, cell, repeats) if rank == 0 else 0.0 for shape, cell in pairs]
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(minutes=10))
    times = [
        Times(whole, *_together(rank, shape, cell, repeats)) for whole, (shape, cell) in zip(alone, pairs, strict=True)
    ]
    if rank == 0:
        (folder / "times.json").write_text(json.dumps([asdict(t) for t in times]), encoding="utf-8", newline="\n")
    dist.barrier()
    dist.destroy_process_group()


def _whole(shape: Shape, cell: str, repeats: int) -> float:
    model, batch = new_model(shape, cell), new_batch(shape)
    optimizer = AdamW(model.parameters())
    (ms,) = _medians(repeats, lambda: train_step(model, optimizer, batch.features, batch.captions, clip=5.0))
    return ms


def _together(rank: int, shape: Shape, cell: str, repeats: int) -> list[float]:
    """A step of two, and the sum of gradients alone."""
    model, batch = new_model(shape, cell), new_batch(shape)
    optimizer, replica = AdamW(model.parameters()), Replica(model)
    features, captions = batch.features[rank::RANKS], batch.captions[rank::RANKS]

    def step() -> None:
        share = replica.share(len(captions), shape.N)
        train_step(model, optimizer, features, captions, clip=5.0, share=share)

    weights = torch.zeros(gradient_bytes(shape, cell) // 4)
    return _medians(repeats, step, lambda: dist.all_reduce(weights))


def _medians(repeats: int, *calls: Callable[[], object]) -> list[float]:
    """The median of each call's times in ms; they take turns, after each has run twice."""
    for call in calls * 2:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            begun = time.perf_counter()
            call()
            own.append(1e3 * (time.perf_counter() - begun))
    return [statistics.median(own) for own in times]
