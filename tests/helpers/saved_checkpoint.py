"""A small checkpoint that has everything, and ways to write what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torch_caption.checkpoints import checksum as seal
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.data.vocabulary import SPECIAL, Vocabulary
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import state

WORDS = [*SPECIAL, "a", "red", "circle"]
MODEL = {"input_dim": 3, "wordvec_dim": 4, "hidden_dim": 5, "cell_type": "rnn", "gradients": "hand", "dropout": 0.1}

SETTINGS = {"lr": 1e-3, "max_train": None, "tensorboard": True, "wordvec_dim": 4, "hidden_dim": 5, "batch_size": 1}


def make(**changes: Any) -> Checkpoint:
    """Of a model that has learnt a step; `changes` replace its parts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CaptioningRNN(Vocabulary(tuple(WORDS)).word_to_idx, **MODEL)
        optimizer = torch.optim.AdamW(state._groups(model, 0.0))
        model(torch.randn(2, 3), torch.tensor([[1, 4, 2], [1, 5, 2]])).backward()
        optimizer.step()
        drawn = torch.get_rng_state()
    content = {
        "weights": {name: weight.detach() for name, weight in model.state_dict().items()},
        "config": SETTINGS,
        "words": WORDS,
        "manifest": {"encoder": "none", "widths": [3, 4], "projection": {"mean": torch.arange(3.0)}},
        "model": MODEL,
        "progress": {"epoch": 2, "step": 2, "best_epoch": 2, "best_loss": 1.5},
        "optimizer": optimizer.state_dict(),
        "random": {"torch": drawn},
        "data": {"train": "0" * 64},
        "average": {name: 2 * weight.detach() for name, weight in model.state_dict().items()},
    }
    return Checkpoint(**content | changes)


def plain(checkpoint: Checkpoint, **changes: Any) -> dict[str, Any]:
    """What the file of a checkpoint holds."""
    return vars(checkpoint) | {"format": checkpoints.FORMAT, "version": checkpoints.VERSION} | changes


def write(path: Path, content: Any) -> Path:
    """Whatever it is, sealed as a checkpoint is."""
    with open(path, "wb") as file:
        sealing = seal.Sealing(file)
        torch.save(content, sealing)
        sealing.finish()
    return path
