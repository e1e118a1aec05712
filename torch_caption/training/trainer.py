"""Training: steps over a model and an optimizer, and `fit`, a run by one configuration.

Losses are in nats per word: -log p of a reference word given the image and the previous reference words, averaged over
words, including <END>, without <NULL>. Its exp is the perplexity; it does not depend on the batch or on padding.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Found
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, Loader, Split, batches
from torch_caption.data.tokenizer import TOKENIZERS
from torch_caption.decoding import DecodingOptions
from torch_caption.errors import ConfigError, NonFiniteError, RankError, WorkerLost
from torch_caption.inference.captions import caption_images, some_images
from torch_caption.inference.load import choose_device, open_training_data
from torch_caption.io import lock
from torch_caption.io.exits import is_interactive, one_line
from torch_caption.io.memory import within_memory
from torch_caption.metrics import scores as metrics
from torch_caption.metrics.cider import cider_weighs
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.dropout import dropout
from torch_caption.training import distributed, non_finite, report
from torch_caption.training.checkpointing import CheckpointManager
from torch_caption.training.interrupt import Interrupt
from torch_caption.training.log import Log
from torch_caption.training.objectives import Objective, Targets, make_objective
from torch_caption.training.progress import Progress
from torch_caption.training.state import TrainingState, initial_state, resume, source

MEMORY_FLAGS = ("--batch-size", "--hidden-dim", "--wordvec-dim")
"""The flags that determine the memory of training."""


def train_step(
    model: CaptioningRNN,
    optimizer: Optimizer,
    features: Tensor,
    captions: Tensor,
    *,
    inputs: Tensor | None = None,
    weights: Tensor | None = None,
    clip: float = 0.0,
    amp: str = "none",
    share: distributed.Share | None = None,
) -> tuple[float, float]:
    """One optimizer step on the loss of a batch.

    Args:
        features: (N, D) floating-point, or grids, as the model needs.
        captions: (N, T) int64, <START> first, <NULL> after <END>.
        inputs, weights: as in `CaptioningRNN.forward`, on the model's device.
        clip: maximum gradient norm over all parameters; 0 disables clipping.
        amp: "bf16" computes the loss under automatic mixed precision.
        share: features and captions are a rank's share of a batch (`distributed.Replica.share`), in a step of all
            ranks.

    Returns:
        The batch's loss (sum over time, mean over N) and the gradient's norm before clipping.

    Raises:
        NonFiniteError: one of the two is non-finite; the weights are unchanged.
    """
    given = {name: x for name, x in {"inputs": inputs, "weights": weights}.items() if x is not None}
    share = share or distributed.Share.whole(model, len(captions))
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp == "bf16"):
        loss = share.loss(features.to(model.device, model.dtype), captions.to(model.device), **given)
    loss.backward()
    value = share.received()
    if not math.isfinite(value):
        raise NonFiniteError(f"the loss is {value}")
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf))
    if not math.isfinite(norm):
        raise NonFiniteError(f"the gradient's norm is {norm}")
    optimizer.step()
    return value, norm


@torch.no_grad()
def validate(model: CaptioningRNN, split: Split, *, batch_size: int = 256) -> float:
    """The loss on all captions of the split, in nats per word, with teacher forcing.

    Each rank computes a share, and all ranks must call it.
    """
    training = model.training
    model.eval()
    nats, words = 0.0, 0.0
    ranks = distributed.size()
    for features, captions in batches(split, batch_size * ranks, shuffle=False, share=(distributed.rank(), ranks)):
        loss = model(features.to(model.device, model.dtype), captions.to(model.device))
        nats += float(loss) * len(captions)
        words += count_words(captions, model.null)
    model.train(training)
    nats, words = distributed.total([nats, words])
    return nats / words


def score(model: CaptioningRNN, split: Split, images: list[int], *, max_length: int = 30) -> dict[str, float]:
    """BLEU-4 and CIDEr of the images' greedy captions against all their references; without CIDEr if it is 0 for all
    captions (`cider_weighs`)."""
    training = model.training
    model.eval()
    captions = caption_images(model, split, images, DecodingOptions(max_length=max_length))
    model.train(training)
    texts = {idx: caption.text for idx, (caption,) in captions.items()}
    scores = metrics.score(texts, {idx: split.references(idx) for idx in images}, tokenizer=split.tokenizer)
    return {name: scores[name] for name in ("BLEU-4", *(["CIDEr"] if _weighs(split, images) else []))}


def _weighs(split: Split, images: Iterable[int]) -> bool:
    return cider_weighs([list(map(TOKENIZERS[split.tokenizer], split.references(idx))) for idx in images])


def check_scored(config: TrainConfig, val: Split, images: list[int]) -> None:
    """Warn before the first epoch if CIDEr of the scored images is 0 for all captions.

    Raises:
        ConfigError: in self-critical training, which saves the weights of the best CIDEr.
    """
    if not images or _weighs(val, images):
        return
    of = "only one image" if len(images) == 1 else f"{len(images)} images with the same captions"
    line = f"CIDEr of {of} of {val.name} is 0 for all captions: it weights words by the images without them"
    if config.objective == "scst":
        raise ConfigError(
            f"--objective scst keeps the best CIDEr's weights, but {line}; score more images: raise --score-images, or "
            f"add images to {val.name}"
        )
    if distributed.first():
        report.warning(f"{line}; CIDEr is omitted")


def count_words(captions: Tensor, null: int) -> int:
    """The number of words in the loss: all after the first column except <NULL>."""
    return int((captions[:, 1:] != null).sum())


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0, by `lr_schedule`.

    cosine: lr (step + 1) / w in the first w steps, w = min(warm_up, a tenth of all), then lr (1 + cos(pi s)) / 2, with
    s from 0 to 1 over the rest. exponential: lr lr_decay^epoch. constant: lr.
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


def fit(config: TrainConfig, found: Found | None = None) -> Path:
    """Train by the configuration and return the run's directory.

    The run seeds and uses torch's global generator: it is determined by its seed if nothing else in the process uses or
    seeds that generator meanwhile. At the end the previous state of the generator is restored.

    Args:
        found: the checkpoint that the run resumes from or is initialised with, if already loaded (`state.source`); it
            is loaded again only if the file has been replaced since.

    Raises:
        UsageError, InputError: a setting, the data or the checkpoint cannot be used, or another process trains in the
            run's directory, or another thread of this process trains.
        NonFiniteError: the loss or its gradient is non-finite (NaN or Inf); previous checkpoints are kept.
        OutOfMemory: the model or a batch exceeds the memory.
        WorkerLost: a process that loads batches was killed.
        Stopped: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2.

    Before any error the state after the last completed step is saved, unless there are several processes, the loss is
    non-finite, or saving fails.
    """
    config.check()
    check_compiler(config)
    device = choose_device(config.device)
    if device.type == "cuda":
        device = distributed.gpu()
    with ExitStack() as stack:
        stack.enter_context(lock.alone_in_process())
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(within_memory(*MEMORY_FLAGS))
        if config.resume is not None:
            run = _enter(stack, runs.find(config.out, config.resume))
        if found is None or not found.is_current():
            found = source(config)
        data = open_training_data(config, progress=is_interactive() and distributed.first())
        report.check(data)
        objective = make_objective(config, data["train"])
        scored = some_images(data["val"], config.score_images, seed=config.seed)
        check_scored(config, data["val"], scored)
        if config.resume is not None and found is not None:
            state, warnings = resume(config, data, device, found)
            for line in warnings if distributed.first() else ():
                report.warning(line)
        else:
            state = initial_state(config, data, device, found)
            name = f"{runs.data_name(config.data)}-{config.cell_type}"
            run = _enter(stack, distributed.from_first(lambda: runs.create(config.out, name)))
        if config.compile:
            # Dropout and the last batch of an epoch vary: one graph for any number of rows.
            state.model.compile(fullgraph=True, dynamic=True, mode="reduce-overhead" if device.type == "cuda" else None)
        manager = CheckpointManager(run, state, config, data)
        manager.start(found if config.resume is not None else None)
        distributed.from_first(lambda: runs.point_to(run))
        try:
            with within_memory(*MEMORY_FLAGS, kept=lambda: manager.kept):
                _train(run, state, config, data, objective, scored, manager)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {manager.kept}; {error.advice}") from error
        if distributed.first():
            report.closing(run, config, data, device)
        distributed.wait_for_all()
    return run


def _enter(stack: ExitStack, run: Path) -> Path:
    """Lock the run for this process, or these ranks, until the stack is closed."""

    def enter() -> None:
        stack.enter_context(lock.alone_in(run))

    distributed.from_first(enter)
    return run


def _train(
    run: Path,
    state: TrainingState,
    config: TrainConfig,
    data: CocoData,
    objective: Objective,
    scored: list[int],
    manager: CheckpointManager,
) -> None:
    """Train from the state to the end, or until a stop request."""
    replica = distributed.Replica(state.model)
    share = distributed.rank(), distributed.size()
    loader = batches(objective.rows, config.batch_size, seed=config.seed, workers=config.workers, share=share)
    with closing(loader), Interrupt() as interrupt, _naming_lost_workers(loader, manager, interrupt):
        log = None
        if distributed.first():
            report.opening(run, config, data, state.model)
            begun = state.progress
            of = {"epochs": begun.epoch, "step": begun.step - begun.position}
            log = Log(run, tensorboard=config.tensorboard, warn=report.warning, **of)
        while not finished(state.progress, config):
            record = None
            try:
                _train_epoch(state, config, objective, replica, loader, interrupt, manager)
            except Exception as error:
                _save_completed_steps(error, run, state, manager)
                raise
            manager.save_steps()  # so that they are kept if validation fails
            if not interrupt.agreed:
                record = interrupt.unless_requested(lambda: _validation_record(state, config, data, scored))
            if record is not None:
                state.progress = state.progress.end_epoch(record, config.objective)
                if log is not None:  # before the checkpoint: after it, the record would not be written again
                    log.write(record)
                manager.save()
                if distributed.first():
                    with interrupt.printing():
                        report.epoch(record, config, best=state.progress.ends_best_epoch())
            if interrupt.agreed:
                if distributed.first():
                    with interrupt.printing():
                        report.interrupted(run, state.progress.step)
                distributed.wait_for_all()  # no rank may exit before rank 0 has saved
                raise interrupt.stopped()


@contextmanager
def _naming_lost_workers(loader: Loader, manager: CheckpointManager, interrupt: Interrupt) -> Iterator[None]:
    """In the block, an error after the exit of a worker process becomes a WorkerLost; a Stopped if all processes have a
    stop request, and a worker was the first to exit."""
    try:
        yield
    except Exception as error:
        if lost := ", ".join(map(str, loader.lost())):
            if interrupt.requested:
                raise interrupt.stopped() from error
            raise WorkerLost(f"process {lost} of --workers was killed or has exited; {manager.kept}") from error
        raise


def _save_completed_steps(error: Exception, run: Path, state: TrainingState, manager: CheckpointManager) -> None:
    """Save the state at an error, if it is that of a completed step, and print how to resume.

    With several ranks the others are within a step. A state that led to a non-finite loss is not saved.
    """
    if distributed.size() > 1 or state.inconsistent or isinstance(error, NonFiniteError):
        return
    try:
        manager.save_steps()
    except Exception as second:  # must not hide the first error
        report.warning(f"step {state.progress.step} is not saved: {one_line(second)}")
    if manager.step == state.progress.step:
        with suppress(OSError):  # nor must failed output
            report.interrupted(run, state.progress.step)


def check_compiler(config: TrainConfig) -> None:
    """Check for a compiler before the first step.

    Raises:
        ConfigError: --compile, and there is no C++ compiler.
    """
    names = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if config.compile and not any(name and shutil.which(name) for name in names):
        raise ConfigError("--compile: torch.compile needs a C++ compiler (g++, clang++ or cl), and none is installed")


def finished(progress: Progress, config: TrainConfig) -> bool:
    """Whether all epochs are completed, or `patience` epochs had no better validation loss."""
    stale = progress.epoch - progress.best_epoch
    return progress.epoch >= config.epochs or 0 < config.patience <= stale


def _train_epoch(
    state: TrainingState,
    config: TrainConfig,
    objective: Objective,
    replica: distributed.Replica,
    loader: Loader,
    interrupt: Interrupt,
    manager: CheckpointManager,
) -> None:
    """The remaining steps of the current epoch, until a stop request."""
    progress, order = state.progress, loader.order
    label = f"epoch {progress.epoch + 1}/{config.epochs}"
    state.model.train(objective.drops)
    started = time.perf_counter()
    hidden = not (distributed.first() and is_interactive())
    order.set_epoch(progress.epoch, start=progress.position)
    steps = order.total
    with tqdm(desc=label, initial=progress.position, total=steps, unit="step", leave=False, disable=hidden) as bar:
        for features, batch in loader:
            share = replica.share(len(batch), order.size(progress.position), requested=interrupt.requested)
            try:
                with state.step():
                    _train_batch(state, config, objective, features, batch, steps, share)
            except NonFiniteError as error:
                rows = order.rows_at(progress.position)
                of = non_finite.report(objective, rows, error.rows)
                raise NonFiniteError(f"{label}, step {progress.step + 1}: {error}; {of}") from None
            interrupt.agree(share.requested)
            progress.seconds += time.perf_counter() - started
            started = time.perf_counter()
            bar.set_postfix_str(report.so_far(progress.means()), refresh=False)
            bar.update()
            if interrupt.agreed:
                break
            if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
                manager.save()


def _train_batch(
    state: TrainingState,
    config: TrainConfig,
    objective: Objective,
    features: Tensor,
    batch: Tensor,
    steps_per_epoch: int,
    share: distributed.Share | None = None,
) -> None:
    model, optimizer, progress = state.model, state.optimizer, state.progress
    lr = learning_rate(config, progress.step, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    features = dropout(features, config.feature_dropout).to(model.device, model.dtype)
    batch = batch.to(features.device)
    targets = _targets(objective, model, features, batch, progress)
    share = share or distributed.Share.whole(model, len(batch))
    share.counts = [count_words(targets.captions, model.null), *targets.rewarded()]
    try:
        loss, norm = train_step(
            model,
            optimizer,
            targets.features,
            targets.captions,
            inputs=targets.inputs,
            weights=targets.weights,
            clip=config.clip,
            amp=config.amp,
            share=share,
        )
    except NonFiniteError as error:
        rows = non_finite.rows_of_captions(model, targets, len(batch), config.amp)
        raise NonFiniteError(str(error), rows) from error
    state.follow(config.ema)
    words, rewarded, rewards = share.counts
    progress.count(share.of, loss, norm, round(words), round(rewarded), rewards)
    progress.lr = lr


def _targets(
    objective: Objective, model: CaptioningRNN, features: Tensor, batch: Tensor, progress: Progress
) -> Targets:
    """The targets of a batch; empty for a rank without rows.

    Raises:
        NonFiniteError: captions are sampled from the model, and its logits are non-finite.
        RankError: the same, in this rank's share.
    """
    if not len(batch):
        return Targets(features, batch.new_empty(0, 1))
    try:
        return objective.targets(model, features, batch, progress.epoch)
    except (ValueError, RuntimeError) as error:
        rows = non_finite.rows_of_images(model, features)
        if not rows:
            raise
        message = "the logits for sampled captions are non-finite"
        if distributed.size() > 1:  # the others are within the step: their shares are unknown
            raise RankError(f"epoch {progress.epoch + 1}, step {progress.step + 1}: {message}") from error
        raise NonFiniteError(message, rows) from error


def _validation_record(state: TrainingState, config: TrainConfig, data: CocoData, scored: list[int]) -> dict[str, Any]:
    """The record of a completed epoch: means of training, validation loss and scores."""
    progress, val = state.progress, data["val"]
    record = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        **progress.means(),
        "val_loss": validate(state.evaluated, val),
        "lr": progress.lr,
        "gradient_norm": progress.norms / progress.position,
        "seconds": round(progress.seconds, 1),
    }
    if not math.isfinite(record["val_loss"]):
        raise NonFiniteError(
            f"epoch {record['epoch']}: the validation loss is {record['val_loss']}",
            advice="--init-from a previous checkpoint, with a lower --lr, may help",
        )
    if scored:
        record |= distributed.from_first(lambda: score(state.evaluated, val, scored, max_length=config.max_length))
    return record
