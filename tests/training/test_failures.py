"""A run that fails names the reason and the checkpoint that is kept, and that checkpoint resumes to the bit."""

from __future__ import annotations

import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from tests.helpers.rings import ringed
from tests.helpers.training import EVERY_OPTION, assert_same, failing, model_of
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, EpochBatches, batches
from torch_caption.errors import DataError, NonFiniteError
from torch_caption.io.exits import Stopped, guarded
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import trainer
from torch_caption.training.progress import Progress
from torch_caption.training.trainer import fit, train_step, validate

FAILURES = {  # what is called, at which call it fails, with what error, and the step that is then saved
    "reading a batch": ("torch_caption.data.dataset.Split.__getitems__", 9, ValueError("bad"), 7),  # 1 validates
    "a step": ("torch_caption.training.trainer.train_step", 8, OverflowError("too large"), 7),
    "its backward": ("torch.nn.utils.clip_grad_norm_", 8, RuntimeError("no kernel"), 7),
    "validation": ("torch_caption.training.trainer.validate", 2, RuntimeError("no kernel"), 10),
    "writing a record": ("torch_caption.training.log.Log.write", 2, OSError("no room"), 10),
}


@pytest.mark.parametrize("what", ringed(FAILURES, ["its backward"]))
def test_the_steps_before_a_failure_are_saved(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """Resuming repeats the failed step with the same random numbers."""
    config = replace(config, **EVERY_OPTION, dropout=0.5, in_memory="no", score_images=0)
    whole = fit(config)
    name, at, error, saved = FAILURES[what]
    original = pkgutil.resolve_name(name)
    monkeypatch.setattr(name, failing(original, at, error))
    capsys.readouterr()
    with pytest.raises(type(error)) as raised:
        fit(config)
    assert raised.value is error
    run = runs.find(config.out)
    assert checkpoints.load(run / "last.safetensors").progress["step"] == saved
    monkeypatch.setattr(name, original)
    printed = capsys.readouterr()
    in_the_epoch = saved == 7
    assert (f"stopped after step {saved}, which is saved; `python -m" in printed.out) == in_the_epoch
    assert "not saved" not in printed.err
    torch.manual_seed(99)
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.parametrize("place", ["lerp_", "count"])
def test_half_a_step_is_not_saved(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The weights have changed, but the average or the progress has not."""
    config = replace(config, ema=0.9)
    whole = fit(config)
    owner, at = {"lerp_": (Tensor, 60), "count": (Progress, 7)}[place]
    original = getattr(owner, place)
    monkeypatch.setattr(owner, place, failing(original, at, RuntimeError("no kernel")))
    with pytest.raises(RuntimeError, match="no kernel"):
        fit(config)
    monkeypatch.setattr(owner, place, original)
    assert checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"] == 5
    assert_same(whole, fit(replace(config, resume="last")))


def test_a_failed_save_does_not_hide_the_first_error(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = failing(checkpoints.save, 2, OSError("last.safetensors: could not be written"))
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(trainer, "train_step", failing(train_step, 4, DataError("the first reason")))
    assert guarded(lambda: fit(config)) == 2
    printed = capsys.readouterr()
    assert "which is saved" not in printed.out
    assert [line for line in re.split("[\r\n]+", printed.err) if "epoch 1/3: " not in line and line] == [
        "warning: step 3 is not saved: last.safetensors: could not be written",
        "error: the first reason",
    ]
    assert checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"] == 0


def test_a_failed_save_is_not_repeated(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Mock(side_effect=[None, OSError("could not be written")])
    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(OSError, match="could not be written"):
        fit(replace(config, checkpoint_every=2))
    assert save.call_count == 2


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    config: TrainConfig, stopping: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Resuming writes it again before the first step, so that there are two valid checkpoints."""
    whole = fit(config)
    stopping(12)
    with pytest.raises(Stopped):
        fit(config)
    last, before = (runs.find(config.out) / name for name in ("last.safetensors", "last.previous.safetensors"))
    last.write_bytes(last.read_bytes()[:-100])
    capsys.readouterr()
    stopping(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_train", lambda *_: None)
        fit(replace(config, resume="last"))
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {last}: ")
    assert err.endswith("last.previous.safetensors, of step 10\n")
    saved, kept = checkpoints.load(last), checkpoints.load(before)
    assert saved.progress == kept.progress
    assert all(torch.equal(weight, kept.weights[name]) for name, weight in saved.weights.items())
    assert_same(whole, fit(replace(config, resume="last")))


# Non-finite numbers and memory ----------------------------------------------------------------------------------------


def test_a_non_finite_loss_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(100))

    def poisoned(model: CaptioningRNN, *args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(steps) == 7:
            with torch.no_grad():
                model.b_vocab.fill_(math.nan)
        return train_step(model, *args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", poisoned)
    with pytest.raises(NonFiniteError) as stopped:
        fit(config)
    order = EpochBatches(24, 5)
    order.set_epoch(1)
    rows = ", ".join(map(str, order.rows_at(2)))
    run = runs.find(config.out)
    assert str(stopped.value) == (
        f"epoch 2/3, step 8: the loss is nan; the batch is rows {rows} of train; all rows have a non-finite "
        f"loss; {run / 'last.safetensors'} is that of step 5; a lower --lr may help"
    )
    kept = checkpoints.load(run / "last.safetensors")
    assert kept.progress["step"] == 5
    assert all(weight.isfinite().all() for weight in kept.weights.values())


@pytest.mark.parametrize("objective", ["xe", "scst"])
def test_the_caption_without_a_finite_loss_is_named(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    if objective == "scst":
        config = replace(config, objective="scst", init_from=fit(config))
    open_training_data = trainer.open_training_data

    def poisoned(config: TrainConfig, **options: bool) -> CocoData:
        data = open_training_data(config, **options)
        features = data["train"]._features
        assert isinstance(features, Tensor)
        features[4] = math.nan
        return data

    monkeypatch.setattr(trainer, "open_training_data", poisoned)
    with pytest.raises(NonFiniteError) as stopped:
        fit(replace(config, feature_dropout=0.0))
    named = {"xe": r"row [89] \(image 4\)", "scst": "image 4"}[objective]
    assert re.search(
        rf"with a non-finite loss: {named} of train; .*last\.safetensors is that of step 0; ", str(stopped.value)
    )


def test_a_non_finite_gradient_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(
        NonFiniteError, match=r"step 1: the gradient's norm is inf; .*; each row separately has a finite loss"
    ):
        fit(config)


def test_a_non_finite_gradient_leaves_the_weights_unchanged(data: CocoData) -> None:
    model = model_of(data)
    model.W_proj.register_hook(lambda gradient: gradient * math.inf)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    features, captions = next(iter(batches(data["train"], 6)))
    with pytest.raises(NonFiniteError, match="the gradient's norm is "):
        train_step(model, torch.optim.AdamW(model.parameters()), features, captions, clip=1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_non_finite_weights_are_not_saved(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(config, lr=1e39, lr_schedule="constant", checkpoint_every=1, clip=0.0)
    assert guarded(lambda: fit(config)) == 1
    err = capsys.readouterr().err
    run = runs.find(config.out)
    assert re.fullmatch(r"error: after step 1: .*contains NaN or infinity; .*last\.\w+ is that of step 0; .*\n", err)
    assert checkpoints.load(run / "last.safetensors").progress["step"] == 0


def test_a_non_finite_validation_loss_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are saved, and the previous checkpoint can begin a new run."""
    losses = iter([1.0, math.nan])
    monkeypatch.setattr(trainer, "validate", lambda *_: next(losses))
    with pytest.raises(NonFiniteError) as stopped:
        fit(config)
    run = runs.find(config.out)
    assert str(stopped.value) == (
        f"epoch 2: the validation loss is nan; {run / 'last.safetensors'} is that of step 10; --init-from a previous "
        "checkpoint, with a lower --lr, may help"
    )
    assert checkpoints.load(run / "last.previous.safetensors").progress["step"] == 5
    monkeypatch.setattr(trainer, "validate", validate)
    fit(replace(config, init_from=run / "last.previous.safetensors", lr=1e-3, epochs=1))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't allocate memory: you tried to allocate 80 bytes"), torch.OutOfMemoryError("x"), MemoryError()],
)
def test_a_run_without_memory_names_the_flags_and_the_checkpoint(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    monkeypatch.setattr(trainer, "train_step", failing(train_step, 7, error))
    assert guarded(lambda: fit(config)) == 1
    last = config.out / "tiny-rnn-1" / "last.safetensors"
    assert checkpoints.load(last).progress["step"] == 6
    asked = ": 80 bytes more were requested" if "80" in str(error) else ""
    advice = "make --batch-size, --hidden-dim or --wordvec-dim smaller"
    printed = capsys.readouterr().err.rpartition("\r")[2]  # behind a bar of progress
    assert printed == f"error: not enough memory{asked}; {advice}; {last} is that of step 6\n"
