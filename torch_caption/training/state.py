"""The training state: model, optimizer, average and progress; initialised, or restored from a checkpoint."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint, Found
from torch_caption.config import MODEL_FIELDS, TrainConfig
from torch_caption.data.dataset import CocoData, generator
from torch_caption.errors import CheckpointError, InputError
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import distributed
from torch_caption.training.objectives import rows_of_epoch
from torch_caption.training.progress import Progress

_COMPARED = ("train", "val")  # the splits whose captions a run depends on


@dataclass
class TrainingState:
    """Everything that a step changes.

    Attributes:
        average: a model with the moving average of the weights, with `--ema`.
        inconsistent: a step has failed after it began to change the state.
    """

    model: CaptioningRNN
    optimizer: Optimizer
    average: CaptioningRNN | None = None
    progress: Progress = field(default_factory=Progress)
    inconsistent: bool = field(default=False, init=False)

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step. If it fails, the state, including random numbers, is unchanged, or `inconsistent` is set."""
        device = self.model.device
        random = random_state(device)
        begun: list[bool] = []
        with self.optimizer.register_step_pre_hook(lambda *_: begun.append(True)):
            try:
                yield
            except Exception:
                self.inconsistent = bool(begun)
                if not self.inconsistent:
                    set_random_state(random, device)
                raise

    @property
    def evaluated(self) -> CaptioningRNN:
        """The model that is validated and saved as the best: the average if there is one."""
        return self.model if self.average is None else self.average

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Update the average, if there is one: average = d average + (1 - d) weights.

        d = min(decay, (1 + k) / (10 + k)) at the k-th step, so that the influence of the initial weights decays fast.
        """
        if self.average is not None:
            k = self.progress.step
            nearer = 1 - min(decay, (1 + k) / (10 + k))
            for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(weight, nearer)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's random generators, by "torch" and "cuda"."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_state`; a generator without a saved state is unchanged."""
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def source(config: TrainConfig) -> Found | None:
    """The checkpoint that a run resumes from or is initialised with, if any.

    Raises:
        CheckpointError: it is missing or cannot be used.
    """
    if config.resume is not None:
        return checkpoints.find_latest(runs.find(config.out, config.resume) / runs.LAST)
    if config.init_from is not None:
        return checkpoints.find(runs.find_checkpoint(config.init_from, config.out))
    return None


def initial_state(
    config: TrainConfig, data: CocoData, device: torch.device, found: Found | None = None
) -> TrainingState:
    """A model, with weights initialised by the seed or from a checkpoint, and a new optimizer.

    Raises:
        CheckpointError: the checkpoint cannot be used with this configuration and data.
    """
    feature_dim = data["train"].feature_dim
    if found is None:
        torch.manual_seed(config.seed)
        with torch.device("cpu"):  # so that a seed gives the same weights on every device
            model = CaptioningRNN(data.vocabulary.word_to_idx, feature_dim, **config.model_arguments())
        model.to(getattr(torch, config.dtype))
    else:
        saved, path = found.checkpoint, found.path
        checkpoints.check_fits(saved, data.vocabulary, feature_dim, data.recipe, path=path, data=data.directory)
        _check_same(config, found, MODEL_FIELDS)
        built = checkpoints.build_model(dataclasses.replace(saved, config=config), path)
        model = copy.deepcopy(built)  # training in place must not change the checkpoint
        if config.resume is None and config.objective == "scst" and config.temperature != 1:
            model.scale_logits_(config.temperature)
        torch.manual_seed(config.seed)
    model.to(device)
    _seed_rank(config.seed)
    optimizer = AdamW(_groups(model, config.weight_decay), lr=config.highest_lr, fused=True)
    return TrainingState(model, optimizer, _copy(model) if config.ema else None)


def resume(config: TrainConfig, data: CocoData, device: torch.device, found: Found) -> tuple[TrainingState, list[str]]:
    """The state of a run from its checkpoint.

    Returns:
        The state, and warnings: about a checkpoint that cannot be used, and changed data.

    Raises:
        CheckpointError: the checkpoint cannot be used, or not with this configuration and data.
    """
    saved, path, warning, _ = found
    if not saved.random:
        raise CheckpointError(f"{path}: contains a model without its training state; use it with --init-from")
    state = initial_state(config, data, device, found)
    try:
        progress = Progress.from_plain(saved.progress)
        under_way = ("batch_size", "seed", "max_train") if progress.position else ()
        _check_same(config, found, ("objective", *under_way))
        changed = _changed(found, data, under_way=progress.position > 0)
        steps = -(-rows_of_epoch(config, data["train"]) // config.batch_size)
        progress.check_epoch(steps, rewarded=config.objective == "scst")
        if state.average is not None and saved.average:
            state.average.load_state_dict(saved.average)
        _load_optimizer(state, saved.optimizer, progress.step)
        _set_rank_state(saved.random, device, config.seed, progress.step)
    except CheckpointError:
        raise
    except (RuntimeError, InputError) as error:
        raise CheckpointError(f"{path}: cannot be resumed: {' '.join(str(error).split())}") from error
    state.progress = progress
    return state, [line for line in (warning, changed) if line is not None]


def snapshot(state: TrainingState, config: TrainConfig, data: CocoData) -> Checkpoint:
    """The state as a checkpoint, for resuming.

    All ranks must call it, since it contains the random state of each.
    """
    named = {f"{name}/": p for name, p in state.model.named_parameters()}
    ranks = distributed.gathered(random_state(state.model.device))
    return Checkpoint(
        weights=_weights(state.model),
        config=dataclasses.replace(config, resume=None),
        words=list(data.vocabulary.words),
        manifest=dict(data.recipe),
        input_dim=data["train"].feature_dim,
        progress=state.progress.plain(),
        average={} if state.average is None else _weights(state.average),
        optimizer={n + key: x.cpu() for n, p in named.items() for key, x in state.optimizer.state.get(p, {}).items()},
        random={f"{rank}/{name}": x for rank, random in enumerate(ranks) for name, x in random.items()},
        data={name: data[name].digest for name in _COMPARED if name in data.splits},
    )


def for_inference(saved: Checkpoint) -> Checkpoint:
    """The part of a snapshot for inference: the validated weights, which are the average's if there is one."""
    return dataclasses.replace(
        saved, weights=saved.average or saved.weights, average={}, optimizer={}, random={}, data={}
    )


def _weights(model: CaptioningRNN) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in model.state_dict().items()}


def _copy(model: CaptioningRNN) -> CaptioningRNN:
    return copy.deepcopy(model).eval().requires_grad_(False)


def _groups(model: CaptioningRNN, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay; biases and word vectors without."""
    decaying = [p for name, p in model.named_parameters() if p.dim() > 1 and name != "W_embed"]
    others = [p for name, p in model.named_parameters() if p.dim() == 1 or name == "W_embed"]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _load_optimizer(state: TrainingState, saved: Mapping[str, Tensor], steps: int) -> None:
    """Load the optimizer's moments, whose shapes were checked in loading; its settings are those of the run.

    Args:
        steps: completed by the optimizer.

    Raises:
        InputError: it has moments before its first step, or none after it.
    """
    if bool(saved) != (steps > 0):
        raise InputError(f"its optimizer has {len(saved)} tensors after step {steps}")
    names = {parameter: name for name, parameter in state.model.named_parameters()}
    content = state.optimizer.state_dict()
    if steps:
        ordered = [names[p] for group in state.optimizer.param_groups for p in group["params"]]
        content["state"] = {
            idx: {moment: saved[f"{name}/{moment}"].clone() for moment in checkpoints.MOMENTS}
            for idx, name in enumerate(ordered)
        }
    state.optimizer.load_state_dict(content)


def _seed_rank(seed: int, step: int = 0) -> None:
    """Seed each rank's generators for dropout; rank 0 continues as a single process does."""
    if distributed.rank() > 0:
        torch.manual_seed(generator(seed, distributed.rank(), step).initial_seed())


def _set_rank_state(saved: Mapping[str, Tensor], device: torch.device, seed: int, step: int) -> None:
    """Set the random state of this rank, or seed a new one if there were fewer ranks."""
    prefix = f"{distributed.rank()}/"
    state = {name.removeprefix(prefix): x for name, x in saved.items() if name.startswith(prefix)}
    if state:
        set_random_state(state, device)
    else:
        _seed_rank(seed, step)


def _changed(found: Found, data: CocoData, *, under_way: bool) -> str | None:
    """A warning that names the splits whose captions have changed since the checkpoint, if any.

    Raises:
        CheckpointError: they have changed within an epoch, whose order would change.
    """
    known, path = found.checkpoint.data, found.path
    changed = [name for name in _COMPARED if name in known and data[name].digest != known[name]]
    if "train" in changed and under_way:
        raise CheckpointError(
            f"{path}: within an epoch over other captions of train than those of {data.directory}; restore those, or "
            "start a new run with --init-from"
        )
    if not changed:
        return None
    return (
        f"{path}: has other captions of {' and '.join(changed)} than {data.directory}; best weights and --patience "
        "compare the epochs before and after"
    )


def _check_same(config: TrainConfig, found: Found, fixed: Iterable[str]) -> None:
    """Raise CheckpointError for flags that would change the model, or the order of the current epoch."""
    for name in fixed:
        ours, theirs = getattr(config, name), getattr(found.checkpoint.config, name)
        if ours != theirs:
            raise CheckpointError(f"{found.path}: has --{name.replace('_', '-')} {theirs}, not {ours}")
