"""An epoch of training.py's own loop: the captioner, and (a) in its place."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm

from benchmarks import loading
from benchmarks.options import Options
from benchmarks.peers import Padded
from benchmarks.step import OURS
from benchmarks.tables import Column, Table
from benchmarks.timing import onednn, products_note
from benchmarks.workload import TINY
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, batches
from torch_caption.inference.load import open_training_data
from torch_caption.training import trainer
from torch_caption.training.objectives import Objective, make_objective
from torch_caption.training.state import TrainingState, initial_state

TURN = 10  # steps of one contender before it is the other's turn
COLUMNS = (
    *(Column("cell"), Column("who"), Column("captions/s", ",.0f"), Column("quartiles", ",.0f")),
    *(Column("ms a step", ".1f"), Column("over (a)", ".2f"), Column("validation, nats a word", ".4f")),
    *(Column("over that of (a)", "+.2%"), Column("steps", "d")),
)


@dataclass
class Runner:
    """A model in training, and how long its turns took."""

    name: str
    state: TrainingState
    config: TrainConfig
    objective: Objective
    seconds: list[float] = field(default_factory=list)
    captions: list[int] = field(default_factory=list)

    def turn(self, stream: Iterator[tuple[Tensor, Tensor]], steps_an_epoch: int) -> int:
        """Up to `TURN` steps of training.py's, loading counted; returns how many, 0 once the epoch is over."""
        self.state.model.train()
        begun, sizes = time.perf_counter(), []
        with onednn() if self.name.startswith(OURS) else nullcontext():
            for features, captions in islice(stream, TURN):
                trainer._train_batch(self.state, self.config, self.objective, features, captions, steps_an_epoch)
                sizes.append(len(captions))
        if sizes:
            self.seconds.append(time.perf_counter() - begun)
            self.captions.append(sum(sizes))
        return len(sizes)


def tables(options: Options) -> Iterator[Table]:
    """One table: each cell by ours, by ours in bfloat16, and by (a)."""
    if options.quick and options.data == "scenes":  # drawing them takes longer than a smoke run may
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            directory = loading.write(Path(folder) / "data", 10, 40, TINY, splits=("train", "val"))
            yield measure(dataclasses.replace(options, data=str(directory)))
    else:
        yield measure(options)


def measure(options: Options) -> Table:
    """Train every contender on the same batches, in turns, and validate each."""
    rows: list[tuple[Any, ...]] = []
    for cell in options.cells:
        config = configuration(options, cell)
        data = open_training_data(config)
        runners = contenders(config, data)
        for epoch in tqdm(range(config.epochs), desc=f"epoch, {cell}", unit="epoch", leave=False, disable=None):
            one_epoch(runners, data, epoch)
        rows += table_rows(cell, runners, data)
    length = f"{options.epochs} whole epochs" if options.epochs else f"{options.epoch_steps} steps"
    title = f"{length} of train.py on {options.data}: H={config.hidden_dim} W={config.wordvec_dim}"
    notes = (
        f"batches of {config.batch_size}; loading, dropout and optimizer counted, validation not; {TURN} steps a turn",
        "the same first weights, batches and rates; each draws its own dropout; the second bias of torch.nn stays zero",
        products_note(),
    )
    return Table("epoch", title, COLUMNS, tuple(rows), notes)


def configuration(options: Options, cell: str) -> TrainConfig:
    """Of train.py, for that data; without whole epochs, for as many captions as the steps take."""
    H, W = (8, 4) if options.quick else (512, 256)
    batch = 8 if options.quick else TrainConfig.batch_size
    config = TrainConfig(
        data=options.data,
        cell_type="lstm" if cell == "lstm" else "rnn",
        hidden_dim=H,
        wordvec_dim=W,
        batch_size=batch,
        epochs=max(1, options.epochs),
        max_train=None if options.epochs else options.epoch_steps * batch,
        device="cpu",
    )
    config.check()
    return config


def contenders(config: TrainConfig, data: CocoData) -> list[Runner]:
    """All from the same first weights."""
    device, objective = torch.device("cpu"), make_objective(config, data["train"])
    made = [
        Runner(OURS, initial_state(config, data, device), config, objective),
        Runner(
            f"{OURS}, --amp bf16",
            initial_state(config, data, device),
            dataclasses.replace(config, amp="bf16"),
            objective,
        ),
    ]
    peer = Padded(made[0].state.model)
    peer.rnn.bias_hh_l0.requires_grad_(False)  # it stays zero: of two biases Adam would move each as far as our one
    optimizer = AdamW(
        [p for p in peer.parameters() if p.requires_grad],
        lr=config.highest_lr,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # It has what training asks of a model.
    made.append(Runner(Padded.label, TrainingState(cast(Any, peer), optimizer), config, objective))
    return made


def one_epoch(runners: list[Runner], data: CocoData, epoch: int) -> None:
    """The same batches for all, in turns."""
    streams, steps, done = [], 0, 0
    for runner in runners:
        loader = batches(data["train"], runner.config.batch_size, seed=runner.config.seed)
        order = loader.order
        order.set_epoch(epoch)
        steps = len(order)
        streams.append(iter(loader))
    with tqdm(desc="steps", total=steps * len(runners), unit="step", leave=False, disable=None) as bar:
        while done < steps * len(runners):
            for runner, stream in zip(runners, streams, strict=True):
                count = runner.turn(stream, steps)
                done += count
                bar.update(count)


def table_rows(cell: str, runners: list[Runner], data: CocoData) -> list[tuple[Any, ...]]:
    """A line of each; the first turn of each is a warm-up where there are more."""
    losses = [trainer.validate(runner.state.model, data["val"]) for runner in runners]
    rates = [np.divide(runner.captions, runner.seconds)[len(runner.seconds) > 1 :] for runner in runners]
    theirs, their_loss = float(np.median(rates[-1])), losses[-1]
    rows = []
    for runner, loss, rate in zip(runners, losses, rates, strict=True):
        mine = float(np.median(rate))
        quartiles = tuple(float(q) for q in np.percentile(rate, (25, 75)))
        per_step = 1e3 * runner.config.batch_size / mine
        rows.append(
            (
                cell,
                runner.name,
                mine,
                quartiles,
                per_step,
                mine / theirs,
                loss,
                loss / their_loss - 1,
                runner.state.progress.step,
            )
        )
    return rows
