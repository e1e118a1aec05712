"""The state of a run: model, optimizer and progress; into a checkpoint, and out of it again."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from torch_caption import checkpoint as checkpoints
from torch_caption import runs
from torch_caption.captioner import CaptioningRNN
from torch_caption.checkpoint import Checkpoint, CheckpointError
from torch_caption.config import OF_THE_MODEL, TrainConfig
from torch_caption.data.coco import CocoData
from torch_caption.objectives import Lesson


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: whole epochs done.
        position: steps done of the epoch under way.
        step: steps done in all.
        nats, words: the training loss summed over the epoch under way, and over how many words.
        norms: the gradients' norms, summed likewise.
        images, reward, greedy_reward: how many images the epoch under way has rewarded captions of, and the rewards
            of the drawn and of the greedy ones, summed over them.
        seconds: how long the epoch under way has taken.
        best_epoch: whose weights are kept: those of the lowest validation loss, in self-critical training of the
            highest CIDEr.
        best_loss, best_cider: the validation loss and CIDEr then.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    nats: float = 0.0
    words: int = 0
    norms: float = 0.0
    images: int = 0
    reward: float = 0.0
    greedy_reward: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_cider: float = -math.inf

    def count(self, lesson: Lesson, loss: float, norm: float, words: int) -> None:
        """Count a step's lesson, its loss (mean over the batch), its gradient's norm and its words."""
        N = len(lesson.captions)
        self.position += 1
        self.step += 1
        self.nats += loss * N
        self.words += words
        self.norms += norm
        if lesson.reward is not None and lesson.greedy_reward is not None:
            self.images += N
            self.reward += lesson.reward * N
            self.greedy_reward += lesson.greedy_reward * N

    def means(self) -> dict[str, float]:
        """What the epoch under way has come to: the loss of people's captions, or the rewards of the model's own."""
        if self.images:
            return {"reward": self.reward / self.images, "greedy_reward": self.greedy_reward / self.images}
        return {"train_loss": self.nats / self.words}

    def is_beaten_by(self, record: Mapping[str, Any], objective: str) -> bool:
        """Whether the record's epoch is better than the best before it."""
        if objective == "scst":
            return record["CIDEr"] > self.best_cider
        return record["val_loss"] < self.best_loss

    def next_epoch(self) -> Progress:
        """This epoch done, and nothing of the next one."""
        return Progress(
            self.epoch + 1,
            step=self.step,
            best_epoch=self.best_epoch,
            best_loss=self.best_loss,
            best_cider=self.best_cider,
        )


@dataclass
class State:
    """What a step changes.

    Attributes:
        average: a model with the moving average of the weights, where one is kept.
    """

    model: CaptioningRNN
    optimizer: Optimizer
    average: CaptioningRNN | None = None
    progress: Progress = field(default_factory=Progress)

    @property
    def judged(self) -> CaptioningRNN:
        """The model that is validated and kept: the average, where there is one."""
        return self.model if self.average is None else self.average

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Bring the average, if there is one, a step nearer to the weights: average = d average + (1 - d) weights.

        d = min(decay, (1 + k) / (10 + k)) at the k-th step, so that the first weights, which are random, are soon
        forgotten.
        """
        if self.average is not None:
            k = self.progress.step
            nearer = 1 - min(decay, (1 + k) / (10 + k))
            for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, nearer)


def begin(config: TrainConfig, data: CocoData, device: torch.device) -> State:
    """A new model, its weights drawn by the seed or those that `init_from` names, and its optimizer.

    Raises:
        CheckpointError: the checkpoint to begin with cannot be used, or not with this configuration and data.
    """
    torch.manual_seed(config.seed)
    model = CaptioningRNN(data.vocabulary.word_to_idx, **_model_arguments(config, data))
    model.to(device, getattr(torch, config.dtype))
    if config.init_from is not None and config.resume is None:
        _adopt(model, config, data, runs.checkpoint(config.init_from, config.out))
        if config.objective == "scst" and config.temperature != 1:
            model.sharpen(config.temperature)
    optimizer = AdamW(_groups(model, config.weight_decay), lr=config.highest_lr, fused=True)
    return State(model, optimizer, _copy(model) if config.ema else None)


def _groups(model: CaptioningRNN, weight_decay: float) -> list[dict[str, Any]]:
    """The matrices, which decay, and then biases and word vectors, which do not."""
    decaying = [p for name, p in model.named_parameters() if p.dim() > 1 and name != "W_embed"]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or name == "W_embed"]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _copy(model: CaptioningRNN) -> CaptioningRNN:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _adopt(model: CaptioningRNN, config: TrainConfig, data: CocoData, path: Path) -> None:
    saved = checkpoints.load(path)
    checkpoints.check_fits(saved, data.vocabulary, data["train"].feature_dim, path=path, data=data.directory)
    _check_same(config, saved, OF_THE_MODEL, path)
    try:
        model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its model: {' '.join(str(error).split())}") from error


def snapshot(state: State, config: TrainConfig, data: CocoData, *, resumable: bool = True) -> Checkpoint:
    """The state as a checkpoint: all that training needs to go on if `resumable`, else the judged weights alone."""
    random = {"torch": torch.get_rng_state()}
    if state.model.W_proj.is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(state.model.W_proj.device)
    model = state.model if resumable else state.judged
    return Checkpoint(
        weights=_weights(model),
        config=dataclasses.replace(config, resume=None).plain() if resumable else config.shared(),
        words=list(data.vocabulary.words),
        manifest=dict(data.recipe),
        model=_model_arguments(config, data),
        progress=dataclasses.asdict(state.progress),
        optimizer=state.optimizer.state_dict() if resumable else None,
        random=random if resumable else None,
        average=_weights(state.average) if resumable and state.average is not None else None,
    )


def _weights(model: CaptioningRNN) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in model.state_dict().items()}


def restore(state: State, config: TrainConfig, data: CocoData, path: Path) -> None:
    """Bring a new state to where the checkpoint left off.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not with this configuration and data.
    """
    saved = checkpoints.load(path)
    if saved.optimizer is None or saved.random is None:
        raise CheckpointError(f"{path}: holds a model, but not the state of its training")
    checkpoints.check_fits(saved, data.vocabulary, data["train"].feature_dim, path=path, data=data.directory)
    try:
        progress = Progress(**saved.progress)
        under_way = ("batch_size", "seed", "max_train") if progress.position else ()
        _check_same(config, saved, (*OF_THE_MODEL, "objective", *under_way), path)
        state.model.load_state_dict(saved.weights)
        if state.average is not None:
            state.average.load_state_dict(saved.weights if saved.average is None else saved.average)
        _load_optimizer(state.optimizer, saved.optimizer, path)
        torch.set_rng_state(saved.random["torch"])
        if "cuda" in saved.random and state.model.W_proj.is_cuda:
            torch.cuda.set_rng_state(saved.random["cuda"], state.model.W_proj.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: training cannot go on from it: {' '.join(str(error).split())}") from error
    state.optimizer.param_groups[0]["weight_decay"] = config.weight_decay
    state.progress = progress


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any], path: Path) -> None:
    """What the optimizer has gathered of each parameter, and the learning rate; its other settings are the run's own.

    Raises:
        CheckpointError: it is of other parameters: torch takes it, and its fused step writes past the end of what is
            too small.
    """
    ours = optimizer.state_dict()["param_groups"]
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    try:
        fits = [group["params"] for group in saved["param_groups"]] == [group["params"] for group in ours]
        rates = [group["lr"] for group in saved["param_groups"]]
        fits = fits and all(type(rate) is float and 0 <= rate < math.inf for rate in rates)
        for place, gathered in saved["state"].items():
            found = {name: tuple(tensor.shape) for name, tensor in gathered.items() if tensor.is_floating_point()}
            fits = fits and found == {"step": (), "exp_avg": shapes[place], "exp_avg_sq": shapes[place]}
    except (AttributeError, IndexError, KeyError, TypeError):
        fits = False
    if not fits:
        raise CheckpointError(f"{path}: training cannot go on from it: its optimizer's state is that of another model")
    groups = [group | {"lr": rate} for group, rate in zip(ours, rates, strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def _check_same(config: TrainConfig, saved: Checkpoint, fixed: Iterable[str], path: Path) -> None:
    """Refuse flags that would change the model, or the order of an epoch that is under way."""
    settings = TrainConfig.from_plain(saved.config)
    for name in fixed:
        ours, theirs = getattr(config, name), getattr(settings, name)
        if ours != theirs:
            raise CheckpointError(
                f"{path}: was made with --{name.replace('_', '-')} {theirs}, which {ours} cannot replace"
            )


def _model_arguments(config: TrainConfig, data: CocoData) -> dict[str, Any]:
    return {
        "input_dim": data["train"].feature_dim,
        "wordvec_dim": config.wordvec_dim,
        "hidden_dim": config.hidden_dim,
        "cell_type": config.cell_type,
        "gradients": config.gradients,
        "dropout": config.dropout,
        "label_smoothing": config.label_smoothing,
        "tied": config.tied,
    }
