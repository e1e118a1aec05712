"""What it costs that nothing is lost: a checkpoint beside a training step, and what every step looks after."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.options import Cell, Options
from benchmarks.step import module_step
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, race
from benchmarks.workload import LARGE, SMALL, TINY, Shape, new_batch, new_model, word_to_idx
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import TrainConfig
from torch_caption.training import distributed
from torch_caption.training.interrupt import Interrupt
from torch_caption.training.objectives import Targets
from torch_caption.training.state import TrainingState
from torch_caption.training.trainer import count_words, train_step

CLIP = 5.0
GUARDED, PLAIN = "as train.py takes it", "without looking"
GUARD_COLUMNS = (
    *(Column("cell"), Column("shape"), Column(f"{PLAIN}, ms", ",.1f"), Column(f"{GUARDED}, ms", ",.1f")),
    *(Column("quartiles", ",.1f"), Column("more", ".1%"), Column("runs", "d")),
)
GUARD_NOTES = (
    "loss, gradients, clipping and AdamW in both; train.py's step also finds what is not finite before a weight "
    "changes, keeps the random numbers of its beginning, watches for Ctrl-C and SIGTERM, and sums up for the record",
)
COLUMNS = (
    *(Column("cell"), Column("what"), Column("MB", ",.1f"), Column("ms", ",.1f"), Column("quartiles", ",.1f")),
    *(Column("of training steps", ".2f"), Column("runs", "d")),
)
SAVE, LOAD, HASH = "save, the one before kept", "load, all checks", "SHA-256 of it alone"
TORCH_SAVE, TORCH_LOAD = "torch.save alone", "torch.load alone"
NOTES = (
    "a checkpoint to go on from: weights and AdamW's state; the files of torch alone are neither checked nor flushed",
    "the step: loss and gradients, without the optimizer; the files are in the system's cache when they are read",
)


def tables(options: Options) -> Iterator[Table]:
    """One table of the largest shape; its files are written to a temporary folder and taken away again."""
    shape = TINY if options.quick else LARGE
    effort = QUICK if options.quick else Effort(4 * options.seconds, least=5, patience=60)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for cell in options.cells for row in measure(cell, shape, Path(folder), effort)]
    yield Table("checkpoint", f"a checkpoint: {shape}, float32", COLUMNS, tuple(rows), NOTES)
    effort = QUICK if options.quick else Effort(6 * options.seconds, least=15, patience=60)
    shapes = (TINY,) if options.quick else (SMALL, LARGE)
    guards = [(cell, shape.name, *measure_guards(cell, shape, effort)) for cell in options.cells for shape in shapes]
    yield Table("checkpoint", "what a step looks after", GUARD_COLUMNS, tuple(guards), GUARD_NOTES)


def measure_guards(cell: Cell, shape: Shape, effort: Effort) -> tuple[Any, ...]:
    """A step as `train.py` takes it, against the same work without any look at what it gives."""
    model, batch = new_model(shape, cell), new_batch(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # all of its work, and the weights stay
    replica, state = distributed.Replica(model), TrainingState(model, optimizer)
    targets = Targets(batch.features, batch.captions)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch.features, batch.captions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    def guarded() -> None:
        N = len(batch.captions)
        share = replica.share(N, N, requested=interrupt.requested)
        share.counts = [count_words(batch.captions, model.null), *targets.rewarded()]
        with state.step():
            loss, norm = train_step(model, optimizer, batch.features, batch.captions, clip=CLIP, share=share)
            words, samples, rewards = share.counts
            state.progress.count(share.of, loss, norm, round(words), round(samples), rewards)
        interrupt.agree(share.requested)

    with Interrupt() as interrupt:
        contenders = [Contender(GUARDED, guarded), Contender(PLAIN, plain)]
        times = {name: t for (name, _), t in race(contenders, effort, label=f"guards, {cell}, {shape.name}").items()}
    ours, bare = times[GUARDED], times[PLAIN]
    return (
        *(1e3 * bare.median, 1e3 * ours.median, tuple(1e3 * t for t in ours.quartiles)),
        *(ours.median / bare.median - 1, len(ours.seconds)),
    )


def measure(cell: Cell, shape: Shape, folder: Path, effort: Effort) -> list[tuple[Any, ...]]:
    """The rows of one cell."""
    model, batch = new_model(shape, cell), new_batch(shape)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step = module_step("a training step", model, model, batch, "float32")
    step.run()
    optimizer.step()
    config = TrainConfig(wordvec_dim=shape.W, hidden_dim=shape.H, cell_type=cell)
    weights = {name: weight.detach() for name, weight in model.state_dict().items()}
    moments = {f"{name}/{key}": x for name, p in model.named_parameters() for key, x in optimizer.state[p].items()}
    words = list(word_to_idx(shape.V))
    whole = Checkpoint(weights, config, words, {}, shape.F, {"step": 1}, optimizer=moments)
    last, plain = folder / f"{cell}.safetensors", folder / f"{cell}.plain.pt"
    checkpoints.save(last, whole)
    data = last.read_bytes()
    work: dict[str, tuple[Callable[[], Any], Path]] = {
        SAVE: (lambda: checkpoints.save(last, whole), last),
        LOAD: (lambda: checkpoints.load(last), last),
        HASH: (lambda: hashlib.sha256(data).hexdigest(), last),
        TORCH_SAVE: (lambda: torch.save(vars(whole) | {"config": config.plain()}, plain), plain),
        TORCH_LOAD: (lambda: torch.load(plain, weights_only=True), plain),
    }
    contenders = [Contender(name, run) for name, (run, _) in work.items()]
    times = {name: t for (name, _), t in race([*contenders, step], effort, label=f"checkpoint, {cell}").items()}
    a_step = times[step.name].median
    rows: list[tuple[Any, ...]] = []
    for name in (*work, step.name):
        mine = times[name]
        size = work[name][1].stat().st_size / 1e6 if name in work else None
        quartiles = tuple(1e3 * t for t in mine.quartiles)
        rows.append((cell, name, size, 1e3 * mine.median, quartiles, mine.median / a_step, len(mine.seconds)))
    return rows
