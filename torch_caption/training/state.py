"""The state of a run: model, optimizer and progress; into a checkpoint, and out of it again."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import OF_THE_MODEL, TrainConfig
from torch_caption.data.dataset import CocoData, generator
from torch_caption.errors import CheckpointError, NonFiniteError
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import distributed
from torch_caption.training import run_folder as runs
from torch_caption.training.objectives import rows_of_epoch


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

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any]) -> Progress:
        """What a checkpoint has of it; a missing field takes its default.

        Raises:
            ValueError: a field is unknown, of another kind, out of its range, or contradicts another.
        """
        for name, value in saved.items():
            wanted = _PROGRESS.get(name)
            if wanted is None:
                raise ValueError(f"its progress has an unknown field {short(name)}")
            if type(value) not in wanted.kinds or not wanted.least <= value <= wanted.most:
                raise ValueError(f"its progress has {name} {short(value)}, but that is {wanted.said}")
        progress = cls(**saved)
        for name, most in {"best_epoch": "epoch", "position": "step", "images": "words"}.items():
            if getattr(progress, name) > getattr(progress, most):
                raise ValueError(
                    f"its progress has {name} {getattr(progress, name)}, but {most} {getattr(progress, most)}"
                )
        if bool(progress.position) != bool(progress.words):
            raise ValueError(f"its progress has words {progress.words}, but position {progress.position}")
        return progress

    def check_epoch(self, steps: int, rewarded: bool) -> None:
        """Raise ValueError unless this can be the progress in an epoch of so many steps, which rewards captions."""
        if self.position > steps:
            raise ValueError(f"its progress has position {self.position}, but an epoch has {steps} steps")
        if bool(self.images) != (rewarded and self.position > 0):
            raise ValueError(
                f"its progress has images {self.images}, but position {self.position} of an epoch that rewards "
                + ("them" if rewarded else "none")
            )

    def count(self, rows: int, loss: float, norm: float, words: int, rewards: Sequence[float]) -> None:
        """Count a step: its rows, loss (mean over them), gradient's norm and words, and its `Lesson.rewards`."""
        self.position += 1
        self.step += 1
        self.nats += loss * rows
        self.words += words
        self.norms += norm
        images, reward, greedy_reward = rewards
        self.images += round(images)
        self.reward += reward
        self.greedy_reward += greedy_reward

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

    def end_epoch(self, record: Mapping[str, Any], objective: str) -> Progress:
        """`next_epoch`, with this one as the best if its record is."""
        done = self.next_epoch()
        if self.is_beaten_by(record, objective):
            done.best_epoch, done.best_loss = done.epoch, record["val_loss"]
            done.best_cider = record.get("CIDEr", -math.inf)
        return done

    def ends_best_epoch(self) -> bool:
        """Whether these are the weights of the best epoch so far."""
        return self.position == 0 and 0 < self.epoch == self.best_epoch


_COMPARED = ("train", "val")  # the splits whose captions a run's epochs are of
_STEPS = (torch.float32, torch.float64)  # dtypes in which AdamW counts


class _Field(NamedTuple):
    """What a field of a saved `Progress` may be; NaN lies in no range."""

    kinds: tuple[type, ...]
    least: float
    most: float
    said: str


_COUNT = _Field((int,), 0, 2**53, "a whole number from 0 on")
_SUM = _Field((int, float), -sys.float_info.max, sys.float_info.max, "a finite number")
_LENGTH = _SUM._replace(least=0, said="a finite number from 0 on")
_BEST = _SUM._replace(least=-math.inf, most=math.inf, said="a number")
_PROGRESS = {
    **dict.fromkeys(("epoch", "position", "step", "words", "images", "best_epoch"), _COUNT),
    **dict.fromkeys(("nats", "reward", "greedy_reward"), _SUM),
    **dict.fromkeys(("norms", "seconds"), _LENGTH),
    **dict.fromkeys(("best_loss", "best_cider"), _BEST),
}


@dataclass
class State:
    """What a step changes.

    Attributes:
        average: a model with the moving average of the weights, where one is kept.
        torn: a step has failed after it had begun to change what is here.
    """

    model: CaptioningRNN
    optimizer: Optimizer
    average: CaptioningRNN | None = None
    progress: Progress = field(default_factory=Progress)
    torn: bool = field(default=False, init=False)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step. One that fails leaves all as it was, random numbers too; or else `torn`."""
        device = self.model.W_proj.device
        drawn = _drawn(device)
        begun: list[bool] = []
        with self.optimizer.register_step_pre_hook(lambda *_: begun.append(True)):
            try:
                yield
            except Exception:
                self.torn = bool(begun)
                if not self.torn:
                    _draw_as(drawn, device)
                raise

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
    with torch.device("cpu"):  # so that a seed draws the same weights wherever the model is trained
        model = CaptioningRNN(data.vocabulary.word_to_idx, **_model_arguments(config, data))
    model.to(device, getattr(torch, config.dtype))
    if config.init_from is not None and config.resume is None:
        _adopt(model, config, data, runs.checkpoint(config.init_from, config.out))
        if config.objective == "scst" and config.temperature != 1:
            model.sharpen(config.temperature)
    _draw_apart(config.seed)
    optimizer = AdamW(_groups(model, config.weight_decay), lr=config.highest_lr, fused=True)
    return State(model, optimizer, _copy(model) if config.ema else None)


def _draw_apart(seed: int, step: int = 0) -> None:
    """Let each rank draw numbers of its own for dropout, by the seed; rank 0 goes on as if it were alone."""
    if distributed.rank() > 0:
        torch.manual_seed(generator(seed, distributed.rank(), step).initial_seed())


def _groups(model: CaptioningRNN, weight_decay: float) -> list[dict[str, Any]]:
    """The matrices, which decay, and then biases and word vectors, which do not."""
    decaying = [p for name, p in model.named_parameters() if p.dim() > 1 and name != "W_embed"]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or name == "W_embed"]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _copy(model: CaptioningRNN) -> CaptioningRNN:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _adopt(model: CaptioningRNN, config: TrainConfig, data: CocoData, path: Path) -> None:
    saved = checkpoints.load(path)
    checkpoints.check_fits(
        saved, data.vocabulary, data["train"].feature_dim, data.recipe, path=path, data=data.directory
    )
    _check_same(config, saved, OF_THE_MODEL, path)
    try:
        model.load_state_dict(saved.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit its model: {' '.join(str(error).split())}") from error


def snapshot(state: State, config: TrainConfig, data: CocoData) -> Checkpoint:
    """The state as a checkpoint: all that training needs to go on.

    Of several ranks all have to call it, for it holds the random state of each.
    """
    return Checkpoint(
        weights=_weights(state.model),
        config=dataclasses.replace(config, resume=None).plain(),
        words=list(data.vocabulary.words),
        manifest=dict(data.recipe),
        model=_model_arguments(config, data),
        progress=dataclasses.asdict(state.progress),
        optimizer=state.optimizer.state_dict(),
        random=_random(state.model.W_proj.device),
        average=None if state.average is None else _weights(state.average),
        data={name: data[name].digest for name in _COMPARED if name in data.splits},
    )


def judged(saved: Checkpoint) -> Checkpoint:
    """Of a snapshot what captions need: the weights that are validated, which are the average's where there is one."""
    return dataclasses.replace(
        saved,
        weights=saved.weights if saved.average is None else saved.average,
        config=TrainConfig.from_plain(saved.config).shared(),
        optimizer=None,
        random=None,
        average=None,
        data=None,
    )


class Keeper:
    """A run's checkpoints on the disk: `last.pt`, to go on from, and the best weights.

    The best weights are written after the `last.pt` that says which they are. So whoever dies between the two leaves a
    `last.pt` that is itself the end of the best epoch, and `begin` writes them again.

    Attributes:
        step: which step's state `last.pt` is; -1 before there is one.
    """

    def __init__(self, run: Path, state: State, config: TrainConfig, data: CocoData) -> None:
        self._run, self._state, self._config, self._data = run, state, config, data
        self.step = self._tried = -1

    @property
    def kept(self) -> str:
        """What `last.pt` is, for a message."""
        return f"{self._run / runs.LAST} is that of step {self.step}" if self.step >= 0 else "nothing is kept yet"

    def begin(self, restored: Restored | None) -> None:
        """Save the new state, so that the run can be taken up from now on, or go on from what was saved of it; from
        another file than `last.pt` by writing that anew."""
        if restored is None or restored.path != self._run / runs.LAST:
            self.save()
            return
        self.step = self._tried = self._state.progress.step
        if distributed.first() and self._state.progress.ends_best_epoch():
            self._keep_best(restored.saved)

    def save_steps(self) -> None:
        """`save`, where a step has been taken since the last time that was tried."""
        if self._state.progress.step > self._tried:
            self.save()

    def save(self) -> None:
        """Save the state, and its weights as the best if this is the end of the best epoch. Of all ranks the first
        writes; all have to call it.

        Raises:
            NonFiniteError: what a step or the optimizer has come to is no number any more.
            OSError: it cannot be written; what was saved before is as it was.
        """
        self._tried = self._state.progress.step
        saved = snapshot(self._state, self._config, self._data)
        if distributed.first():
            try:
                checkpoints.save(self._run / runs.LAST, saved)
            except checkpoints.NumberNotFinite as error:
                raise NonFiniteError(f"after step {self._tried}: {error}") from error
        self.step = self._tried
        if distributed.first() and self._state.progress.ends_best_epoch():
            self._keep_best(saved)

    def _keep_best(self, saved: Checkpoint) -> None:
        best = judged(saved)
        checkpoints.save(self._run / runs.BEST, best, keep=False)
        checkpoints.save_weights(self._run / runs.WEIGHTS, best)


def _random(device: torch.device) -> dict[str, Any]:
    """The state of the random generators of this process, or of rank 0 and in "ranks" of those after it."""
    first, *others = distributed.gathered(_drawn(device))
    return first | {"ranks": others} if others else first


def _drawn(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's random generators."""
    random = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return random


def _draw_as(random: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `_drawn`; a generator that it has no state of goes on as it is."""
    torch.set_rng_state(random["torch"])
    if "cuda" in random and device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], device)


def _draw_on(random: Mapping[str, Any], device: torch.device, seed: int, step: int) -> None:
    """Go on with the random state of this rank, or begin a new one where there were fewer ranks."""
    rank = distributed.rank()
    others = random.get("ranks", [])
    states = [random, *(others if isinstance(others, list) else [None])]
    for place, drawn in enumerate(states):
        if not isinstance(drawn, Mapping) or not isinstance(drawn.get("torch"), Tensor):
            raise ValueError(f"its random state of rank {place} is none")
    if rank >= len(states):
        _draw_apart(seed, step)
        return
    _draw_as(states[rank], device)


def _weights(model: CaptioningRNN) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in model.state_dict().items()}


class Restored(NamedTuple):
    """What a run goes on from: the checkpoint, lines that warn, and the file."""

    saved: Checkpoint
    warnings: list[str]
    path: Path


def restore(state: State, config: TrainConfig, data: CocoData, path: Path) -> Restored:
    """Bring a new state to where the checkpoint left off, or the one before it where that is damaged.

    Returns:
        the checkpoint, and lines that warn: of what was wrong if it is the one before, of data that has changed; and
        the file that was taken.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not with this configuration and data.
    """
    saved, path, warning = checkpoints.load_latest(path)
    if saved.optimizer is None or saved.random is None:
        raise CheckpointError(f"{path}: holds a model, but not the state of its training")
    checkpoints.check_fits(
        saved, data.vocabulary, data["train"].feature_dim, data.recipe, path=path, data=data.directory
    )
    try:
        progress = Progress.from_plain(saved.progress)
        under_way = ("batch_size", "seed", "max_train") if progress.position else ()
        _check_same(config, saved, (*OF_THE_MODEL, "objective", *under_way), path)
        changed = _changed(saved, data, path, under_way=progress.position > 0)
        steps = -(-rows_of_epoch(config, data["train"]) // config.batch_size)
        progress.check_epoch(steps, rewarded=config.objective == "scst")
        state.model.load_state_dict(saved.weights)
        if state.average is not None:
            state.average.load_state_dict(saved.weights if saved.average is None else saved.average)
        _load_optimizer(state.optimizer, saved.optimizer, progress.step)
        _draw_on(saved.random, state.model.W_proj.device, config.seed, progress.step)
    except CheckpointError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: training cannot go on from it: {' '.join(str(error).split())}") from error
    state.optimizer.param_groups[0]["weight_decay"] = config.weight_decay
    state.progress = progress
    return Restored(saved, [line for line in (warning, changed) if line is not None], path)


def _changed(saved: Checkpoint, data: CocoData, path: Path, *, under_way: bool) -> str | None:
    """A line that says whose captions are others than those the checkpoint was made with, if any are.

    Raises:
        CheckpointError: they are those of an epoch that is under way, whose order would be another's.
    """
    known = saved.data or {}  # earlier checkpoints of this version do not say
    changed = [name for name in _COMPARED if name in known and data[name].digest != known[name]]
    if "train" in changed and under_way:
        raise CheckpointError(
            f"{path}: is in the middle of an epoch over other captions of train than those of {data.directory}; bring "
            "those back, or begin another run with --init-from"
        )
    if not changed:
        return None
    return (
        f"{path}: was made with other captions of {' and '.join(changed)} than those of {data.directory}; the epochs "
        "before and after are compared all the same, for the best weights and --patience"
    )


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any], steps: int) -> None:
    """What the optimizer has gathered of each parameter, and the learning rate; its other settings are the run's own.

    Args:
        steps: that it has taken.

    Raises:
        ValueError: it is of other parameters (torch takes it, and its fused step writes past the end of what is too
            small), or no sum of squares over whole steps.
    """
    ours = optimizer.state_dict()["param_groups"]
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    try:
        fits = [group["params"] for group in saved["param_groups"]] == [group["params"] for group in ours]
        rates = [group["lr"] for group in saved["param_groups"]]
        fits = fits and all(type(rate) is float and 0 <= rate < math.inf for rate in rates)
        fits = fits and saved["state"].keys() == set(range(len(shapes)) if steps else ())
        for place, gathered in saved["state"].items():
            found = {name: tuple(tensor.shape) for name, tensor in gathered.items() if tensor.is_floating_point()}
            fits = fits and found == {"step": (), "exp_avg": shapes[place], "exp_avg_sq": shapes[place]}
    except (AttributeError, IndexError, KeyError, TypeError):
        fits = False
    if not fits:
        raise ValueError("its optimizer's state is that of another model")
    for place, gathered in saved["state"].items():
        taken, least = float(gathered["step"]), float(gathered["exp_avg_sq"].min())
        if gathered["step"].dtype not in _STEPS or not taken.is_integer() or taken < 1:
            raise ValueError(f"its optimizer's state has step {gathered['step']} of parameter {place}")
        if least < 0:
            raise ValueError(f"its optimizer's state has the square {least} in exp_avg_sq of parameter {place}")
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
