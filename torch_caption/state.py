"""The state of a run: model, optimizer and progress; into a checkpoint, and out of it again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from torch_caption import checkpoint as checkpoints
from torch_caption.captioner import CaptioningRNN
from torch_caption.checkpoint import Checkpoint, CheckpointError
from torch_caption.config import TrainConfig
from torch_caption.data.coco import CocoData


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: whole epochs done.
        position: steps done of the epoch under way.
        step: steps done in all.
        nats, words: the training loss summed over the epoch under way, and over how many words.
        norms: the gradients' norms, summed likewise.
        seconds: how long the epoch under way has taken.
        best_epoch, best_loss: where the validation loss was lowest.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    nats: float = 0.0
    words: int = 0
    norms: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf


@dataclass
class State:
    """What a step changes."""

    model: CaptioningRNN
    optimizer: Optimizer
    progress: Progress = field(default_factory=Progress)


def begin(config: TrainConfig, data: CocoData, device: torch.device) -> State:
    """A new model, its weights drawn by the seed, and its optimizer."""
    torch.manual_seed(config.seed)
    model = CaptioningRNN(data.vocabulary.word_to_idx, **_model_arguments(config, data))
    model.to(device, getattr(torch, config.dtype))
    optimizer = AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return State(model, optimizer)


def snapshot(state: State, config: TrainConfig, data: CocoData, *, resumable: bool = True) -> Checkpoint:
    """The state as a checkpoint, with all that training needs to go on if `resumable`."""
    random = {"torch": torch.get_rng_state()}
    if state.model.W_proj.is_cuda:
        random["cuda"] = torch.cuda.get_rng_state(state.model.W_proj.device)
    return Checkpoint(
        weights={name: weight.detach().cpu() for name, weight in state.model.state_dict().items()},
        config=dataclasses.replace(config, resume=None).plain(),
        words=list(data.vocabulary.words),
        manifest=dict(data.recipe),
        model=_model_arguments(config, data),
        progress=dataclasses.asdict(state.progress),
        optimizer=state.optimizer.state_dict() if resumable else None,
        random=random if resumable else None,
    )


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
        _check_same(config, saved, progress, path)
        state.model.load_state_dict(saved.weights)
        state.optimizer.load_state_dict(saved.optimizer)
        torch.set_rng_state(saved.random["torch"])
        if "cuda" in saved.random and state.model.W_proj.is_cuda:
            torch.cuda.set_rng_state(saved.random["cuda"], state.model.W_proj.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: training cannot go on from it: {' '.join(str(error).split())}") from error
    for group in state.optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
    state.progress = progress


def _check_same(config: TrainConfig, saved: Checkpoint, progress: Progress, path: Path) -> None:
    """Refuse flags that would change the model, or the order of an epoch that is under way."""
    fixed = ["cell_type", "hidden_dim", "wordvec_dim", "dtype"]
    fixed += ["batch_size", "seed", "max_train"] if progress.position else []
    for name in fixed:
        ours, theirs = getattr(config, name), saved.config.get(name)
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
    }
