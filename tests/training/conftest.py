"""Fixtures of the tests of training."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_data import write_tiny
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, open_data
from torch_caption.training import trainer
from torch_caption.training.trainer import train_step


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny", pictures=True, grids=True)


@pytest.fixture(scope="module")
def data(directory: Path) -> CocoData:
    return open_data(directory)


@pytest.fixture
def config(directory: Path, tmp_path: Path) -> TrainConfig:
    """Three epochs of five steps."""
    return TrainConfig(
        data=str(directory),
        out=tmp_path / "runs",
        hidden_dim=16,
        wordvec_dim=8,
        batch_size=5,
        epochs=3,
        lr=1e-2,
        score_images=6,
        max_length=6,
        tensorboard=False,
    )


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends without its curves, captions and gallery."""
    monkeypatch.setattr("torch_caption.training.report.closing", lambda *_: None)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stopping(n)`: Ctrl-C, or another signal, within the n-th step from now; none with 0."""

    def stop(step: int, number: int = signal.SIGINT) -> None:
        steps = iter(range(1, 10**6))

        def stopped(*args: Any, **kwargs: Any) -> tuple[float, float]:
            if next(steps) == step:
                signal.raise_signal(number)
            return train_step(*args, **kwargs)

        monkeypatch.setattr(trainer, "train_step", stopped)

    return stop
