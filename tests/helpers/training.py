"""What the tests of training share: models and states of the tiny data, and what two runs have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_caption.checkpoints import format as checkpoints
from torch_caption.data.dataset import CocoData, open_data
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.training.log import read_log

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {  # settings of a run that takes a second
    "hidden_dim": 16,
    "wordvec_dim": 8,
    "epochs": 1,
    "score_images": 0,
    "tensorboard": False,
    "device": "cpu",
}
EVERY_OPTION: dict[str, Any] = {
    "tied": True,
    "num_layers": 2,
    "label_smoothing": 0.1,
    "scheduled_sampling": 0.5,
    "ema": 0.9,
    "weight_decay": 0.1,
    "warm_up": 3,
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


def data_for(cell_type: str, directory: Path) -> CocoData:
    return open_data(directory, grids=CELLS[cell_type].attends)


def model_of(data: CocoData, **changes: Any) -> CaptioningRNN:
    torch.manual_seed(0)
    arguments = {"input_dim": 8, "wordvec_dim": 8, "hidden_dim": 16} | changes
    return CaptioningRNN(data.vocabulary.word_to_idx, **arguments)


def weights_of(run: Path, name: str = "last.safetensors") -> dict[str, Tensor]:
    return checkpoints.load(run / name).weights


def records_of(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(run)]


def weights_equal(run: Path, other: Path, name: str = "last.safetensors") -> bool:
    ours, theirs = weights_of(run, name), weights_of(other, name)
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def assert_same(whole: Path, run: Path) -> None:
    """Weights, moving average, moments, random state, progress, best weights and records."""
    ours, theirs = (checkpoints.load(r / "last.safetensors") for r in (whole, run))
    for part in ("weights", "average", "optimizer", "random"):
        tensors, others = getattr(ours, part), getattr(theirs, part)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert ours.progress == theirs.progress
    assert weights_equal(whole, run, "best.safetensors")
    assert checkpoints.load(whole / "best.safetensors").progress == checkpoints.load(run / "best.safetensors").progress
    assert records_of(whole) == records_of(run)


def failing(does: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
    """The function, which raises the error at its call of that number."""
    calls = iter(range(1, 10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error
        return does(*args, **kwargs)

    return wrapped
