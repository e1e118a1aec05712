"""Training: steps over a model and an optimizer, and `fit`, which makes a run of them from one configuration.

Losses here are in nats per word: -log p of a true word given the image and the true words before it, averaged over
words, <END> counted and <NULL> not. exp of it is the perplexity, and it does not depend on the batch or on padding.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from torch_caption import checkpoint as checkpoints
from torch_caption import metrics, report, runs
from torch_caption.captioner import CaptioningRNN
from torch_caption.captioning import describe, some_images
from torch_caption.cells import CELLS
from torch_caption.config import ConfigError, TrainConfig
from torch_caption.data import scenes
from torch_caption.data.coco import CocoData, EpochBatches, Split, batches, open_data
from torch_caption.dropout import feature_dropout
from torch_caption.objectives import Objective, make_objective
from torch_caption.state import Progress, State, begin, restore, snapshot


class LossNotFinite(ArithmeticError):
    """The loss or its gradient is no number any more."""


def train_step(
    model: CaptioningRNN,
    optimizer: Optimizer,
    features: Tensor,
    captions: Tensor,
    *,
    read: Tensor | None = None,
    weights: Tensor | None = None,
    clip: float = 0.0,
    amp: str = "none",
) -> tuple[float, float]:
    """One step down the gradient of one batch's loss.

    Args:
        features: (N, D) floating-point, or as the model takes them.
        captions: (N, T) int64, <START> first, <NULL> after <END>.
        read, weights: as in `CaptioningRNN.forward`, on the model's device.
        clip: the longest gradient, in the norm over all parameters; 0 for any.
        amp: "bf16" computes the loss under automatic mixed precision.

    Returns:
        The batch's loss (sum over time, mean over N) and the gradient's norm before clipping.

    Raises:
        LossNotFinite: one of the two is infinite or NaN; the weights are as before.
    """
    weight = model.W_proj
    given = {name: x for name, x in {"read": read, "weights": weights}.items() if x is not None}
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=amp == "bf16"):
        loss = model(features.to(weight), captions.to(weight.device), **given)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise LossNotFinite(f"the loss is {value}")
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
    if not math.isfinite(norm):
        raise LossNotFinite(f"the gradient's norm is {norm}")
    optimizer.step()
    return value, norm


@torch.no_grad()
def validate(model: CaptioningRNN, split: Split, *, batch_size: int = 256) -> float:
    """The loss on all captions of the split, in nats per word, every word predicted from the true ones before it."""
    training = model.training
    model.eval()
    weight = model.W_proj
    nats, words = 0.0, 0
    for features, captions in batches(split, batch_size, shuffle=False):
        loss = model(features.to(weight), captions.to(weight.device))
        nats += float(loss) * len(captions)
        words += count_words(captions, model.null)
    model.train(training)
    return nats / words


def score(model: CaptioningRNN, split: Split, images: list[int], *, max_length: int = 30) -> dict[str, float]:
    """BLEU-4 and CIDEr of the images' greedy captions against all their references."""
    training = model.training
    model.eval()
    captions = describe(model, split, images, max_length=max_length)
    model.train(training)
    scores = metrics.score({idx: c.text for idx, c in captions.items()}, {idx: split.references(idx) for idx in images})
    return {name: scores[name] for name in ("BLEU-4", "CIDEr")}


def count_words(captions: Tensor, null: int) -> int:
    """The words that the loss is over: all after the first column that are not <NULL>."""
    return int((captions[:, 1:] != null).sum())


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0, as `lr_schedule` says.

    cosine: lr (step + 1) / w in the first w steps, w = min(warm_up, a tenth of all), then lr (1 + cos(pi s)) / 2, with
    s going from 0 to 1 over the rest. exponential: lr lr_decay^epoch. constant: lr.
    """
    lr = config.highest_lr
    if config.lr_schedule == "constant":
        return lr
    if config.lr_schedule == "exponential":
        return lr * config.lr_decay ** (step // steps_per_epoch)
    steps = config.epochs * steps_per_epoch
    warm_up = min(config.warm_up, steps // 10)
    if step < warm_up:
        return lr * (step + 1) / warm_up
    return lr * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))) / 2


def fit(config: TrainConfig) -> Path:
    """Train as the configuration says and return the run's directory, which holds all that came of it.

    Raises:
        ValueError: a setting, the data or the checkpoint to go on from cannot be used.
        LossNotFinite: the loss or its gradient is no number any more; the checkpoints before it are kept.
        KeyboardInterrupt: Ctrl-C; the state after the last whole step is saved first.
    """
    config.check()
    check_compiler(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    data = load_data(config)
    scored = some_images(data["val"], config.score_images, seed=config.seed)
    state = begin(config, data, device)
    if config.compile:
        # Dropout and the last batch of an epoch differ from call to call: one graph for any number of rows.
        state.model.compile(fullgraph=True, dynamic=True, mode="reduce-overhead" if device.type == "cuda" else None)
    if config.resume is None:
        run = runs.create(config.out, f"{runs.data_name(config.data)}-{config.cell_type}")
    else:
        run = runs.find(config.out, config.resume)
        restore(state, config, data, run / runs.LAST)
        runs.point_to(run)
    objective = make_objective(config, data["train"])
    report.opening(run, config, data, state.model)
    log = runs.Log(run, tensorboard=config.tensorboard, epochs=state.progress.epoch, step=state.progress.step)
    loader = batches(objective.rows, config.batch_size, seed=config.seed, workers=config.workers)
    with closing(log), Interrupt() as interrupt:
        while not finished(state.progress, config):
            _train_epoch(state, config, objective, loader, interrupt)
            if not interrupt.asked:
                record = _end_epoch(run, state, config, data, scored)
                log.write(record)
                report.epoch(record, config, best=state.progress.best_epoch == state.progress.epoch)
            checkpoints.save(run / runs.LAST, snapshot(state, config, data))
            if interrupt.asked:
                report.interrupted(run, state.progress.step)
                raise KeyboardInterrupt
    report.closing(run, config, data, device)
    return run


def load_data(config: TrainConfig) -> CocoData:
    """Open the configuration's data, the built-in scenes being drawn on first use.

    Raises:
        ValueError: the directory is not there or its content is not as it should be.
    """
    directory = scenes.ensure(progress=sys.stderr.isatty()) if config.data == "scenes" else Path(config.data)
    return open_data(
        directory,
        pca={"auto": None, "yes": True, "no": False}[config.pca_features],
        grids=CELLS[config.cell_type].looks,
        max_train=config.max_train,
        in_memory=config.in_memory,
        seed=config.seed,
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_compiler(config: TrainConfig) -> None:
    """Find a missing compiler before the first step does.

    Raises:
        ConfigError: --compile, and there is no C++ compiler.
    """
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if config.compile and not any(name and shutil.which(name) for name in names):
        raise ConfigError("--compile: torch.compile needs a C++ compiler (g++, clang++ or cl), and none is installed")


def finished(progress: Progress, config: TrainConfig) -> bool:
    """All epochs are done, or `patience` of them without a better validation loss."""
    stale = progress.epoch - progress.best_epoch
    return progress.epoch >= config.epochs or 0 < config.patience <= stale


def _train_epoch(
    state: State, config: TrainConfig, objective: Objective, loader: DataLoader[Any], interrupt: Interrupt
) -> None:
    """What remains of the epoch under way, or as much of it as goes before Ctrl-C."""
    progress = state.progress
    order = cast(EpochBatches, loader.batch_sampler)
    order.set_epoch(progress.epoch, start=progress.position)
    steps = progress.position + len(order)
    label = f"epoch {progress.epoch + 1}/{config.epochs}"
    state.model.train(objective.drops)
    started = time.perf_counter()
    with tqdm(desc=label, initial=progress.position, total=steps, unit="step", leave=False, disable=None) as bar:
        for features, batch in _each(loader, interrupt):
            try:
                _train_batch(state, config, objective, features, batch, steps)
            except LossNotFinite as error:
                raise LossNotFinite(f"{label}, step {progress.step + 1}: {error}; a lower --lr may help") from None
            bar.set_postfix_str(report.so_far(progress.means()), refresh=False)
            bar.update()
            if interrupt.asked:
                break
    progress.seconds += time.perf_counter() - started


def _train_batch(
    state: State, config: TrainConfig, objective: Objective, features: Tensor, batch: Tensor, steps_per_epoch: int
) -> None:
    model, optimizer, progress = state.model, state.optimizer, state.progress
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, progress.step, steps_per_epoch)
    features = feature_dropout(features, config.feature_dropout).to(model.W_proj)
    lesson = objective.lesson(model, features, batch.to(features.device), progress.epoch)
    loss, norm = train_step(
        model,
        optimizer,
        features,
        lesson.captions,
        read=lesson.read,
        weights=lesson.weights,
        clip=config.clip,
        amp=config.amp,
    )
    state.follow(config.ema)
    progress.count(lesson, loss, norm, words=count_words(lesson.captions, model.null))


def _each(loader: DataLoader[Any], interrupt: Interrupt) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches, until Ctrl-C: in a terminal it reaches the loader's processes as well, and ends them."""
    batch = iter(loader)
    while True:
        try:
            yield next(batch)
        except StopIteration:
            return
        except RuntimeError:
            if interrupt.asked:
                return
            raise


def _end_epoch(run: Path, state: State, config: TrainConfig, data: CocoData, scored: list[int]) -> dict[str, Any]:
    """Validate, keep the best weights, count the epoch; returns its record."""
    progress, val = state.progress, data["val"]
    record = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        **progress.means(),
        "val_loss": validate(state.judged, val),
        "lr": state.optimizer.param_groups[0]["lr"],
        "gradient_norm": progress.norms / progress.position,
        "seconds": round(progress.seconds, 1),
    }
    if not math.isfinite(record["val_loss"]):
        raise LossNotFinite(f"epoch {record['epoch']}: the validation loss is {record['val_loss']}")
    if scored:
        record |= score(state.judged, val, scored, max_length=config.max_length)
    state.progress = progress.next_epoch()
    if progress.is_beaten_by(record, config.objective):
        state.progress.best_epoch, state.progress.best_loss = record["epoch"], record["val_loss"]
        state.progress.best_cider = record.get("CIDEr", -math.inf)
        best = snapshot(state, config, data, resumable=False)
        checkpoints.save(run / runs.BEST, best, keep=False)
        checkpoints.save_weights(run / runs.WEIGHTS, best)
    return record


class Interrupt:
    """Within the block the first Ctrl-C only sets `asked`, so that no step is cut in two; the second acts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._main = threading.current_thread() is threading.main_thread()  # elsewhere signals cannot be caught
        if self._main:
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)
