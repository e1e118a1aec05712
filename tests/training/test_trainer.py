"""Training: each piece against a computation by hand, and whole runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import (
    CPU,
    EVERY_OPTION,
    assert_same,
    data_for,
    model_of,
    records_of,
    weights_equal,
    weights_of,
)
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, batches, open_data
from torch_caption.errors import CheckpointError, ConfigError
from torch_caption.inference.captions import caption_images, some_images
from torch_caption.io import lock
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.training import trainer
from torch_caption.training.log import read_log
from torch_caption.training.state import TrainingState, initial_state, source
from torch_caption.training.trainer import fit, learning_rate, score, train_step, validate


def begun(config: TrainConfig, data: CocoData) -> TrainingState:
    """The state with the weights of the checkpoint that the configuration names."""
    return initial_state(config, data, CPU, source(config))


def test_constant_and_exponential_rates() -> None:
    config = TrainConfig(lr=0.5, lr_schedule="constant", epochs=4)
    assert [learning_rate(config, step, 10) for step in (0, 17, 39)] == [0.5, 0.5, 0.5]
    config = TrainConfig(lr=0.5, lr_schedule="exponential", lr_decay=0.8, epochs=4)
    rates = [learning_rate(config, step, 10) for step in (0, 9, 10, 25, 39)]
    assert rates == pytest.approx([0.5, 0.5, 0.4, 0.32, 0.256], rel=1e-12)


def test_cosine_rate() -> None:
    config = TrainConfig(lr=0.5, lr_schedule="cosine", epochs=4)
    rates = [learning_rate(config, step, 10) for step in range(40)]  # 4 steps of warm-up, then 36 down to 0
    assert rates[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-12)
    assert rates[4 + 12] == pytest.approx(0.375, rel=1e-12)  # (1 + cos(pi / 3)) / 4
    assert rates[39] == pytest.approx((1 - math.cos(math.pi / 36)) / 4, rel=1e-9)
    assert [learning_rate(TrainConfig(lr=0.5, epochs=4, warm_up=2), step, 10) for step in range(3)] == [0.25, 0.5, 0.5]
    assert learning_rate(TrainConfig(epochs=4, warm_up=0), 0, 10) == 2e-3
    assert learning_rate(TrainConfig(epochs=4, warm_up=0, objective="scst"), 0, 10) == 2e-4
    long = TrainConfig(lr=0.5, epochs=10)  # 10,000 steps, of which 200 warm up
    assert learning_rate(long, 199, 1000) == 0.5
    assert learning_rate(long, 200 + 4900, 1000) == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_follows_the_clipped_gradient(data: CocoData, clip: float) -> None:
    model = model_of(data)
    features, captions = next(iter(batches(data["train"], 6)))
    expected = torch.autograd.grad(model(features, captions), list(model.parameters()))
    length = math.sqrt(sum(float(g.pow(2).sum()) for g in expected))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss, norm = train_step(model, optimizer, features, captions, clip=clip)
    scale = 0.5 / length if clip == 0.5 else 1.0
    assert norm == pytest.approx(length, rel=1e-5)
    assert length > 0.5
    for p, old, gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - p.detach(), scale * gradient, rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(model_of(data)(features, captions).item(), rel=1e-6)


@pytest.mark.parametrize("cell_type", CELLS)
def test_the_validation_loss_is_the_mean_over_words(directory: Path, cell_type: str) -> None:
    data = data_for(cell_type, directory)
    model = model_of(data, cell_type=cell_type, dropout=0.5).double()
    split = data["val"]
    nats, words = 0.0, 0
    for row, caption in enumerate(split.captions.tolist()):
        state = model.begin(split.features_of([int(split.image_idxs[row])]).double())
        for word, following in pairwise(caption):
            if following == model.null:
                break
            scores, state = model.step(torch.tensor([word]), state)
            nats -= torch.log_softmax(scores, 1)[0, following].item()
            words += 1
    for batch_size in (1, 7, 256):
        assert validate(model, split, batch_size=batch_size) == pytest.approx(nats / words, rel=1e-12)
    assert model.training


def test_the_scored_images_are_drawn_by_the_seed(data: CocoData) -> None:
    images = some_images(data["val"], 5, seed=3)
    assert images == some_images(data["val"], 5, seed=3)
    assert len(set(images)) == 5
    assert images != some_images(data["val"], 5, seed=4)
    assert score(model_of(data), data["val"], images, max_length=6).keys() == {"BLEU-4", "CIDEr"}


@pytest.mark.parametrize("cell_type", ringed(CELLS, ["rnn"]))
def test_every_cell_memorises_a_tiny_set(config: TrainConfig, tmp_path: Path, cell_type: str) -> None:
    directory = write_tiny(tmp_path / "tiny", wordings=1, grids=True)
    config = replace(config, data=str(directory), cell_type=cell_type, hidden_dim=32, wordvec_dim=16, batch_size=4)
    config = replace(config, dropout=0.0, feature_dropout=0.0, lr_schedule="constant", patience=0, score_images=0)
    run = fit(replace(config, epochs=60))
    last = read_log(run)[-1]
    assert last["train_loss"] < 0.01
    assert last["val_loss"] < 0.02
    data = data_for(cell_type, directory)
    model = checkpoints.build_model(checkpoints.load(run / "best.safetensors")).eval()
    captions = caption_images(model, data["test"], range(12))
    assert [captions[idx][0].text for idx in range(12)] == [data["test"].references(idx)[0] for idx in range(12)]


def test_training_ends_when_the_validation_loss_no_longer_falls(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.9, 2.4, 1.9, 2.0, 1.0])
    monkeypatch.setattr(trainer, "validate", lambda *_: next(losses))
    run = fit(replace(config, epochs=9, patience=3))
    assert [record["val_loss"] for record in read_log(run)] == [3.0, 2.0, 2.5, 2.0, 1.9, 2.4, 1.9, 2.0]
    best = checkpoints.load(run / "best.safetensors").progress
    assert (best["best_epoch"], best["best_loss"], best["epoch"]) == (5, 1.9, 5)
    losses = iter([3.0] * 9)
    assert len(read_log(fit(replace(config, epochs=9, patience=0)))) == 9


def test_a_run_folder_holds_checkpoints_records_and_pictures(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # with its report
    run = fit(config)
    assert run == config.out / "tiny-rnn-1"
    assert runs.find(config.out) == run
    files = "best.safetensors last.safetensors last.previous.safetensors lock metrics.jsonl loss.png gallery.png"
    assert sorted(path.name for path in run.iterdir()) == sorted(files.split())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 5), (2, 10), (3, 15)]
    assert {"train_loss", "val_loss", "lr", "gradient_norm", "seconds", "BLEU-4", "CIDEr"} <= records[0].keys()
    saved = checkpoints.load(run / "last.safetensors")
    assert saved.config == config
    assert saved.progress["epoch"] == 3
    best = checkpoints.load(run / "best.safetensors")
    assert not best.optimizer
    loss = validate(checkpoints.build_model(best), open_data(config.data)["val"])
    assert loss == pytest.approx(min(record["val_loss"] for record in records), rel=1e-6)
    assert fit(config).name == "tiny-rnn-2"


def test_runs_of_one_seed_are_equal(config: TrainConfig) -> None:
    """The caller's random state neither matters nor changes."""
    one = fit(config)
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    again = fit(config)
    assert torch.equal(torch.rand(3), expected)
    assert_same(one, again)
    assert not weights_equal(one, fit(replace(config, seed=1)))


def test_a_second_run_in_the_same_process_is_refused(config: TrainConfig) -> None:
    with lock.alone_in_process(), ThreadPoolExecutor(1) as pool:
        with pytest.raises(lock.RunInUse, match="another run trains in this process"):
            pool.submit(fit, replace(config, threads=2)).result()
        assert torch.get_num_threads() == 1
    assert not config.out.exists()


# Moving average, weight decay, precision, gradients, compilation ------------------------------------------------------


def test_the_moving_average_follows_the_weights(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is validated and kept as the best; the last checkpoint holds both."""
    weights: list[dict[str, Tensor]] = []
    seen: list[dict[str, Tensor]] = []
    follow = TrainingState.follow

    def watched(state: TrainingState, decay: float) -> None:
        follow(state, decay)
        weights.append({name: w.clone() for name, w in state.model.state_dict().items()})

    def judged(model: CaptioningRNN, *args: Any, **kwargs: Any) -> float:
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
        return validate(model, *args, **kwargs)

    monkeypatch.setattr(TrainingState, "follow", watched)
    monkeypatch.setattr(trainer, "validate", judged)
    config = replace(config, ema=0.7, epochs=2, patience=0)
    mean = initial_state(config, open_data(config.data), CPU).model.state_dict()
    run = fit(config)
    assert len(weights) == 10
    for k, after in enumerate(weights):
        decay = min(0.7, (1 + k) / (10 + k))
        mean = {name: decay * mean[name] + (1 - decay) * w for name, w in after.items()}
        if k in (4, 9):
            for name, w in mean.items():
                torch.testing.assert_close(seen[k // 5][name], w, rtol=1e-5, atol=1e-7)
    last = checkpoints.load(run / "last.safetensors")
    assert last.average
    for name, w in weights[-1].items():
        assert torch.equal(last.weights[name], w)
        assert torch.equal(last.average[name], seen[-1][name])
    best = checkpoints.load(run / "best.safetensors")
    assert not best.average
    assert all(torch.equal(w, seen[best.progress["best_epoch"] - 1][name]) for name, w in best.weights.items())


@pytest.mark.parametrize("tied", [False, True])
def test_only_matrices_decay(config: TrainConfig, data: CocoData, tied: bool) -> None:
    """By lr times weight_decay a step, where no gradient moves them."""
    config = replace(config, weight_decay=0.5, lr=0.1, tied=tied, cell_type="lstm")
    state = initial_state(config, data, CPU)
    before = {name: w.clone() for name, w in state.model.state_dict().items()}
    for p in state.model.parameters():
        p.grad = torch.zeros_like(p)
    state.optimizer.step()
    decaying = {"W_proj", "Wx", "Wh", *(["W_out"] if tied else ["W_vocab"])}
    for name, w in state.model.state_dict().items():
        torch.testing.assert_close(w, before[name] * (0.95 if name in decaying else 1.0))
    assert decaying < set(before)


@pytest.mark.parametrize("cell_type", ringed(CELLS, ["lstm"]))
def test_mixed_precision_stays_near(config: TrainConfig, cell_type: str) -> None:
    config = replace(config, **EVERY_OPTION | {"scheduled_sampling": 0.0}) if cell_type == "lstm" else config
    full, mixed = (fit(replace(config, cell_type=cell_type, amp=amp)) for amp in ("none", "bf16"))
    for ours, theirs in zip(read_log(full), read_log(mixed), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-2)
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-2)
    assert not weights_equal(full, mixed)
    assert all(weight.dtype == torch.float32 for weight in weights_of(mixed).values())


@pytest.mark.parametrize("cell_type", ringed(CELLS, ["lstm"]))
def test_hand_and_automatic_gradients_train_alike(config: TrainConfig, directory: Path, cell_type: str) -> None:
    data = data_for(cell_type, directory)
    config = replace(config, cell_type=cell_type, dtype="float64", **EVERY_OPTION)

    def losses(gradients: str) -> Iterator[float]:
        state = initial_state(replace(config, gradients=gradients), data, CPU)
        loader = batches(data["train"], 5, seed=0)
        step = 0
        while step < 100:
            for features, captions in loader:
                step += 1
                yield train_step(state.model, state.optimizer, features, captions, clip=5.0)[0]

    hand, auto = list(losses("hand")), list(losses("auto"))
    assert hand == pytest.approx(auto, rel=1e-9)
    assert hand[-1] < 0.7 * hand[0]


COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="no C++ compiler")
EXHAUSTIVE = pytest.mark.exhaustive


@COMPILER
@EXHAUSTIVE
@pytest.mark.parametrize("options", [{}, EVERY_OPTION | {"scheduled_sampling": 0.0}], ids=["plain", "options"])
def test_a_compiled_run_has_the_same_losses(config: TrainConfig, options: dict[str, Any]) -> None:
    """Padded where the other is packed; its last batch is smaller than the others."""
    config = replace(config, epochs=2, batch_size=5, dropout=0.0, feature_dropout=0.0, score_images=0, **options)
    packed, compiled = (read_log(fit(replace(config, compile=compile))) for compile in (False, True))
    for one, other in zip(packed, compiled, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)


@pytest.mark.parametrize("flags", [{"amp": "bf16"}, pytest.param({"compile": True}, marks=[COMPILER, EXHAUSTIVE])])
def test_captions_of_the_model_are_training_data_in_every_mode(config: TrainConfig, flags: dict[str, Any]) -> None:
    config = replace(config, epochs=2, score_images=3, **flags)
    begun = fit(replace(config, scheduled_sampling=0.5))
    run = fit(replace(config, objective="scst", init_from=begun))
    assert all(weight.dtype == torch.float32 for weight in weights_of(run).values())


def test_compiling_without_a_compiler_is_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"^--compile: torch.compile needs a C\+\+ compiler"):
        fit(replace(config, compile=True))
    assert not config.out.exists()


# Objectives and initial weights ---------------------------------------------------------------------------------------


def test_self_critical_training_keeps_the_weights_of_the_best_cider(config: TrainConfig) -> None:
    config = replace(config, dropout=0.0, feature_dropout=0.0, epochs=20, score_images=12)
    begun = fit(config)
    run = fit(replace(config, objective="scst", init_from=begun, epochs=24, batch_size=3, lr=2e-3, patience=0))
    records = read_log(run)
    assert [record["step"] for record in records] == list(range(4, 97, 4))  # once an image and epoch
    assert all("reward" in record and "train_loss" not in record for record in records)
    best = checkpoints.load(run / "best.safetensors")
    cider = [record["CIDEr"] for record in records]
    assert best.progress["best_cider"] == max(cider)
    assert best.progress["best_epoch"] == 1 + cider.index(max(cider))
    assert best.progress["best_loss"] == records[cider.index(max(cider))]["val_loss"]
    assert max(cider) > read_log(begun)[-1]["CIDEr"]


def test_self_critical_training_scored_on_one_image_is_refused(config: TrainConfig) -> None:
    begun = fit(replace(config, epochs=1))
    with pytest.raises(ConfigError, match=r"--objective scst.* only one image.* 0"):
        fit(replace(config, objective="scst", init_from=begun, score_images=1))
    assert [path.name for path in config.out.iterdir() if path.is_dir()] == [begun.name]


def test_the_cider_of_one_image_is_left_out_with_a_warning(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(replace(config, epochs=1, score_images=1))
    assert re.fullmatch(r"warning: CIDEr of only one image of val is 0 .*\n", capsys.readouterr().err)
    assert "BLEU-4" in records_of(run)[0]
    assert "CIDEr" not in records_of(run)[0]


def test_a_run_begins_with_the_weights_of_another(config: TrainConfig, data: CocoData) -> None:
    """Of its best epoch, or of the named checkpoint; of the moving average, if there is one."""
    run = fit(replace(config, ema=0.9))
    best, last = "best.safetensors", "last.safetensors"
    for named, name in ((run, best), (run.parent, best), (run / last, last)):
        state = begun(replace(config, init_from=named, ema=0.5), data)
        saved = checkpoints.load(run / name).weights
        assert state.average is not None
        for key, weight in state.model.state_dict().items():
            assert torch.equal(weight, saved[key])
            assert torch.equal(state.average.state_dict()[key], saved[key])


def test_self_critical_training_begins_with_logits_divided_by_the_temperature(
    config: TrainConfig, data: CocoData
) -> None:
    """Also those of the moving average."""
    run = fit(config)
    saved = checkpoints.load(run / "best.safetensors").weights
    state = begun(replace(config, objective="scst", init_from=run, temperature=0.5, ema=0.5), data)
    assert state.average is not None
    for name, weight in saved.items():
        expected = weight / 0.5 if name.endswith("_vocab") else weight
        assert torch.equal(state.model.state_dict()[name], expected)
        assert torch.equal(state.average.state_dict()[name], expected)


def test_incompatible_initial_weights_are_refused(config: TrainConfig, tmp_path: Path) -> None:
    run = fit(replace(config, epochs=1))
    for change in ({"hidden_dim": 17}, {"cell_type": "lstm"}, {"tied": True}, {"dtype": "float64"}):
        (name,) = change
        with pytest.raises(CheckpointError, match=rf"best\.safetensors: has --{name.replace('_', '-')} "):
            fit(replace(config, init_from=run, **change))
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: no such checkpoint"):
        fit(replace(config, init_from=Path("nowhere.safetensors")))
    few = write_tiny(tmp_path / "few", wordings=1)
    with pytest.raises(CheckpointError, match=r"not the vocabulary of .*few: 15 words against 12"):
        fit(replace(config, init_from=run, data=str(few)))
    with pytest.raises(CheckpointError, match=r"last\.\w+: has --objective xe, not scst"):
        fit(replace(config, resume=run.name, objective="scst", init_from=run))
    assert len(list(config.out.glob("*-rnn-*"))) == 1
