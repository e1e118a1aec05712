"""Training: each piece against a computation by hand, and whole runs."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import pkgutil
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, EpochBatches, batches, open_data
from torch_caption.decoding import DecodingOptions
from torch_caption.errors import CheckpointError, ConfigError, DataError, NonFiniteError, WorkerLost
from torch_caption.inference.captions import caption_images, looked, some_images
from torch_caption.io import files, lock
from torch_caption.io.exits import Stopped, guarded
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS
from torch_caption.training import report, trainer
from torch_caption.training import run_folder as runs
from torch_caption.training.progress import Progress
from torch_caption.training.state import State, begin, resume, snapshot, source
from torch_caption.training.trainer import fit, learning_rate, score, train_step, validate

CPU = torch.device("cpu")
SCST: dict[str, Any] = {"objective": "scst", "init_from": Path("somewhere")}
EVERY_OPTION: dict[str, Any] = {
    "tied": True,
    "label_smoothing": 0.1,
    "scheduled_sampling": 0.5,
    "ema": 0.9,
    "weight_decay": 0.1,
    "warm_up": 3,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny", pictures=True, grids=True)


@pytest.fixture(scope="module")
def data(directory: Path) -> CocoData:
    return open_data(directory)


def data_for(cell_type: str, directory: Path) -> CocoData:
    return open_data(directory, grids=CELLS[cell_type].attends)


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


def model_of(data: CocoData, **changes: Any) -> CaptioningRNN:
    torch.manual_seed(0)
    arguments = {"input_dim": 8, "wordvec_dim": 8, "hidden_dim": 16} | changes
    return CaptioningRNN(data.vocabulary.word_to_idx, **arguments)


def begun(config: TrainConfig, data: CocoData) -> State:
    """The state with the weights of the checkpoint that the configuration names."""
    return begin(config, data, CPU, source(config))


def weights_of(run: Path, name: str = "last.safetensors") -> dict[str, Tensor]:
    return checkpoints.load(run / name).weights


def records_of(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in runs.read(run)]


def test_constant_rate() -> None:
    config = TrainConfig(lr=0.5, lr_schedule="constant", epochs=4)
    assert [learning_rate(config, step, 10) for step in (0, 17, 39)] == [0.5, 0.5, 0.5]


def test_exponential_rate() -> None:
    config = TrainConfig(lr=0.5, lr_schedule="exponential", lr_decay=0.8, epochs=4)
    rates = [learning_rate(config, step, 10) for step in (0, 9, 10, 25, 39)]
    assert rates == pytest.approx([0.5, 0.5, 0.4, 0.32, 0.256], rel=1e-12)


def test_cosine_rate() -> None:
    config = TrainConfig(lr=0.5, lr_schedule="cosine", epochs=4)
    rates = [learning_rate(config, step, 10) for step in range(40)]  # 4 steps of warm-up, then 36 down to 0
    assert rates[:5] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-12)
    assert rates[4 + 12] == pytest.approx(0.375, rel=1e-12)  # (1 + cos(pi / 3)) / 4
    assert rates[4 + 18] == pytest.approx(0.25, rel=1e-12)
    assert rates[4 + 24] == pytest.approx(0.125, rel=1e-12)
    assert rates[39] == pytest.approx((1 - math.cos(math.pi / 36)) / 4, rel=1e-9)
    short = TrainConfig(lr=0.5, epochs=4, warm_up=2)
    assert [learning_rate(short, step, 10) for step in range(3)] == [0.25, 0.5, 0.5]
    assert learning_rate(TrainConfig(lr=0.5, epochs=4, warm_up=0), 0, 10) == 0.5
    assert learning_rate(TrainConfig(epochs=4, warm_up=0), 0, 10) == 2e-3
    assert learning_rate(TrainConfig(epochs=4, warm_up=0, objective="scst"), 0, 10) == 2e-4
    long = TrainConfig(lr=0.5, epochs=10)  # 10,000 steps, of which 200 warm up
    assert learning_rate(long, 199, 1000) == 0.5
    assert learning_rate(long, 200 + 4900, 1000) == pytest.approx(0.25, rel=1e-12)
    assert learning_rate(TrainConfig(lr=0.5, epochs=1), 0, 1) == 0.5


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_a_step_follows_the_gradient_no_further_than_clip(data: CocoData, clip: float) -> None:
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
    assert words == 12 * (4 + 6)  # "a red circle <END>", "one red circle is here <END>"
    for batch_size in (1, 7, 256):
        assert validate(model, split, batch_size=batch_size) == pytest.approx(nats / words, rel=1e-12)
    assert model.training


def test_captions_are_scored_without_a_look_at_the_references(data: CocoData) -> None:
    model = model_of(data)
    split = data["val"]
    images = some_images(split, 5, seed=3)
    assert images == some_images(split, 5, seed=3)
    assert len(set(images)) == 5
    assert images != some_images(split, 5, seed=4)
    options = DecodingOptions(max_length=6)
    captions = caption_images(model, split, images, options)
    assert score(model, split, images, max_length=6).keys() == {"BLEU-4", "CIDEr"}
    kept = split.captions.clone()
    try:
        split.captions.copy_(kept.roll(3, 0))
        again = caption_images(model, split, images, options, batch_size=2)
        assert {idx: c.text for idx, (c,) in again.items()} == {idx: c.text for idx, (c,) in captions.items()}
        for idx, (caption,) in captions.items():  # a batch of another size is rounded differently
            assert again[idx][0].log_prob == pytest.approx(caption.log_prob, rel=1e-6)
    finally:
        split.captions.copy_(kept)


def test_where_it_looked_depends_on_the_caption_and_not_on_the_others(directory: Path) -> None:
    """One image with several captions, of several lengths; the words alone count, not the padding beside them."""
    split = data_for("attention", directory)["val"]
    model = model_of(data_for("attention", directory), cell_type="attention").eval()
    texts = ["a red circle", "", "one red circle is here", "dragon"]  # <UNK> where the vocabulary has no dragon
    features = split.features_of([3, 3, 5, 3])
    together = looked(model, split.vocabulary, features, texts)
    assert [weights.shape for weights in together] == [(3, 3, 2), (0, 3, 2), (5, 3, 2), (1, 3, 2)]
    for k, text in enumerate(texts):
        (alone,) = looked(model, split.vocabulary, features[k : k + 1], [text])
        np.testing.assert_allclose(alone, together[k], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(alone.sum((1, 2)), 1, rtol=1e-5)


def test_the_cells_are_those_of_the_flag() -> None:
    assert get_args(get_type_hints(TrainConfig)["cell_type"]) == tuple(CELLS)


def test_drawn_captions_depend_on_the_seed_and_the_image_alone(data: CocoData) -> None:
    model, split = model_of(data).eval(), data["val"]
    four = DecodingOptions(samples=4, max_length=6)
    drawn = caption_images(model, split, [2, 5, 7], four, seed=1)
    assert caption_images(model, split, [7], four, seed=1)[7] == drawn[7]
    assert caption_images(model, split, [7], four, seed=2)[7] != drawn[7]
    assert len({caption.text for caption in drawn[2]}) > 1
    greedy = caption_images(model, split, [2, 5, 7], DecodingOptions(max_length=6))
    for idx, (caption,) in caption_images(model, split, [2, 5, 7], DecodingOptions(top_k=1, max_length=6)).items():
        assert caption.text == greedy[idx][0].text
        assert caption.log_prob == pytest.approx(greedy[idx][0].log_prob, rel=1e-5)


@pytest.mark.parametrize("cell_type", CELLS)
def test_a_tiny_set_is_learnt_by_heart(tmp_path: Path, cell_type: str) -> None:
    directory = write_tiny(tmp_path / "tiny", wordings=1, grids=True)
    run = fit(
        TrainConfig(
            data=str(directory),
            out=tmp_path / "runs",
            cell_type=cell_type,
            hidden_dim=32,
            wordvec_dim=16,
            dropout=0.0,
            feature_dropout=0.0,
            batch_size=4,
            epochs=60,
            lr=1e-2,
            lr_schedule="constant",
            patience=0,
            score_images=0,
            tensorboard=False,
        )
    )
    last = runs.read(run)[-1]
    assert last["train_loss"] < 0.01
    assert last["val_loss"] < 0.02
    data = data_for(cell_type, directory)
    model = checkpoints.build_model(checkpoints.load(run / "best.safetensors")).eval()
    captions = caption_images(model, data["test"], range(12))
    assert [captions[idx][0].text for idx in range(12)] == [data["test"].references(idx)[0] for idx in range(12)]


# The moving average of the weights, and their decay ------------------------------------------------------------------


def test_the_average_follows_the_weights(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what is validated, scored and kept as the best; the last checkpoint holds both."""
    weights: list[dict[str, Tensor]] = []
    seen: list[dict[str, Tensor]] = []
    follow = State.follow

    def watched(state: State, decay: float) -> None:
        follow(state, decay)
        weights.append({name: w.clone() for name, w in state.model.state_dict().items()})

    def judged(model: CaptioningRNN, *args: Any, **kwargs: Any) -> float:
        seen.append({name: w.clone() for name, w in model.state_dict().items()})
        return validate(model, *args, **kwargs)

    monkeypatch.setattr(State, "follow", watched)
    monkeypatch.setattr(trainer, "validate", judged)
    config = replace(config, ema=0.7, epochs=2, patience=0)
    mean = begin(config, open_data(config.data), CPU).model.state_dict()
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


def test_an_average_may_begin_and_end_with_a_resume(config: TrainConfig) -> None:
    """It begins as the weights are then."""
    run = fit(replace(config, epochs=1, lr_schedule="constant"))
    fit(replace(config, epochs=2, lr_schedule="constant", ema=0.5, resume="last"))
    assert checkpoints.load(run / "last.safetensors").average
    fit(replace(config, epochs=3, lr_schedule="constant", resume="last"))
    assert not checkpoints.load(run / "last.safetensors").average


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_decay_and_nothing_else(config: TrainConfig, data: CocoData, tied: bool) -> None:
    """By lr times weight_decay a step, where no gradient moves them."""
    config = replace(config, weight_decay=0.5, lr=0.1, tied=tied, cell_type="lstm")
    state = begin(config, data, CPU)
    before = {name: w.clone() for name, w in state.model.state_dict().items()}
    for p in state.model.parameters():
        p.grad = torch.zeros_like(p)
    state.optimizer.step()
    decaying = {"W_proj", "Wx", "Wh", *(["W_out"] if tied else ["W_vocab"])}
    for name, w in state.model.state_dict().items():
        torch.testing.assert_close(w, before[name] * (0.95 if name in decaying else 1.0))
    assert decaying < set(before)


def test_another_decay_may_be_asked_of_a_resumed_run(config: TrainConfig, data: CocoData) -> None:
    fit(replace(config, epochs=1))
    config = replace(config, weight_decay=0.25, resume="last")
    found = source(config)
    assert found is not None
    state, _ = resume(config, data, CPU, found)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.25, 0.0]


# Objectives ----------------------------------------------------------------------------------------------------------


def test_the_first_epoch_of_scheduled_sampling_reads_what_people_wrote(config: TrainConfig) -> None:
    plain, sampled = (fit(replace(config, scheduled_sampling=share)) for share in (0.0, 0.9))
    ours, theirs = records_of(plain), records_of(sampled)
    assert ours[0] == theirs[0]
    assert theirs[-1]["train_loss"] > ours[-1]["train_loss"]  # which is that of true words after words drawn


def test_self_critical_training_keeps_the_best_cider(config: TrainConfig) -> None:
    config = replace(config, dropout=0.0, feature_dropout=0.0, epochs=20, score_images=12)
    begun = fit(config)
    run = fit(replace(config, objective="scst", init_from=begun, epochs=24, batch_size=3, lr=2e-3, patience=0))
    records = runs.read(run)
    assert [record["step"] for record in records] == list(range(4, 97, 4))  # once an image and epoch
    assert all({"reward", "greedy_reward"} < record.keys() and "train_loss" not in record for record in records)
    best = checkpoints.load(run / "best.safetensors")
    cider = [record["CIDEr"] for record in records]
    assert best.progress["best_cider"] == max(cider)
    assert best.progress["best_epoch"] == 1 + cider.index(max(cider))
    assert best.progress["best_loss"] == records[cider.index(max(cider))]["val_loss"]
    assert max(cider) > runs.read(begun)[-1]["CIDEr"]
    assert (run / "loss.png").is_file()


@pytest.mark.parametrize("few", [{"max_train": 1}, {"score_images": 1}], ids=str)
def test_self_critical_training_on_a_cider_that_is_always_0_is_refused(
    config: TrainConfig, few: dict[str, int]
) -> None:
    begun = fit(replace(config, epochs=1))
    with pytest.raises(ConfigError, match=r"--objective scst.* only one image.* 0"):
        fit(replace(config, objective="scst", init_from=begun, **few))
    assert [path.name for path in config.out.iterdir() if path.is_dir()] == [begun.name]


def test_a_cider_that_is_always_0_is_left_out_with_a_warning(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(replace(config, epochs=1, score_images=1))
    assert re.fullmatch(r"warning: CIDEr of one image alone of val is 0 .*\n", capsys.readouterr().err)
    assert "BLEU-4" in records_of(run)[0]
    assert "CIDEr" not in records_of(run)[0]


def test_a_run_begins_with_the_weights_of_another(config: TrainConfig, data: CocoData) -> None:
    """Of its best epoch, or of the checkpoint that is named; the averaged ones where they were averaged."""
    run = fit(replace(config, ema=0.9))
    best, last = "best.safetensors", "last.safetensors"
    for named, name in ((run, best), (run.parent, best), (run / last, last)):
        state = begun(replace(config, init_from=named, ema=0.5), data)
        saved = checkpoints.load(run / name).weights
        assert state.average is not None
        for key, weight in state.model.state_dict().items():
            assert torch.equal(weight, saved[key])
            assert torch.equal(state.average.state_dict()[key], saved[key])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_self_critical_training_begins_with_sharper_scores(
    config: TrainConfig, data: CocoData, temperature: float
) -> None:
    """Once: not when it goes on; the moving average begins likewise."""
    run = fit(config)
    saved = checkpoints.load(run / "best.safetensors").weights
    state = begun(replace(config, objective="scst", init_from=run, temperature=temperature, ema=0.5), data)
    assert state.average is not None
    for name, weight in saved.items():
        expected = weight / temperature if name.endswith("_vocab") else weight
        assert torch.equal(state.model.state_dict()[name], expected)
        assert torch.equal(state.average.state_dict()[name], expected)


def test_what_a_run_cannot_begin_with(config: TrainConfig, tmp_path: Path) -> None:
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


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("options", [{}, EVERY_OPTION | {"scheduled_sampling": 0.0}], ids=["plain", "options"])
def test_a_compiled_run_learns_the_same(config: TrainConfig, options: dict[str, Any]) -> None:
    """Padded where the other is packed; its last batch is smaller than the others."""
    config = replace(config, epochs=2, batch_size=5, dropout=0.0, feature_dropout=0.0, score_images=0, **options)
    packed, compiled = (runs.read(fit(replace(config, compile=compile))) for compile in (False, True))
    for one, other in zip(packed, compiled, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
def test_what_the_model_says_itself_goes_with_a_compiled_run(config: TrainConfig) -> None:
    """A word that is all but as likely as another may be drawn instead: the runs need not be the same."""
    config = replace(config, epochs=2, score_images=3, compile=True)
    begun = fit(replace(config, scheduled_sampling=0.5))
    fit(replace(config, objective="scst", init_from=begun))


def test_compiling_without_a_compiler_is_refused_at_once(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"^--compile: torch.compile needs a C\+\+ compiler"):
        fit(replace(config, compile=True))
    assert not config.out.exists()


def test_training_ends_when_the_validation_loss_no_longer_falls(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.9, 2.4, 1.9, 2.0, 1.0])
    monkeypatch.setattr(trainer, "validate", lambda *_: next(losses))
    run = fit(replace(config, epochs=9, patience=3))
    assert [record["val_loss"] for record in runs.read(run)] == [3.0, 2.0, 2.5, 2.0, 1.9, 2.4, 1.9, 2.0]
    best = checkpoints.load(run / "best.safetensors").progress
    assert (best["best_epoch"], best["best_loss"], best["epoch"]) == (5, 1.9, 5)
    losses = iter([3.0] * 9)
    assert len(runs.read(fit(replace(config, epochs=9, patience=0)))) == 9


def test_a_run_holds_what_came_of_it(config: TrainConfig) -> None:
    run = fit(config)
    assert run == config.out / "tiny-rnn-1"
    assert runs.find(config.out) == run
    assert {path.name for path in run.iterdir()} == {
        "best.safetensors",
        "last.safetensors",
        "last.previous.safetensors",
        "lock",
        "metrics.jsonl",
        "loss.png",
        "gallery.png",
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [5, 10, 15]
    assert {"train_loss", "val_loss", "lr", "gradient_norm", "seconds", "BLEU-4", "CIDEr"} <= records[0].keys()
    saved = checkpoints.load(run / "last.safetensors")
    assert saved.config == config
    assert saved.progress["epoch"] == 3
    best = checkpoints.load(run / "best.safetensors")
    assert not best.optimizer
    data = open_data(config.data)
    model = checkpoints.build_model(best)
    assert validate(model, data["val"]) == pytest.approx(min(record["val_loss"] for record in records), rel=1e-6)
    assert fit(config).name == "tiny-rnn-2"


def test_one_seed_one_run(config: TrainConfig) -> None:
    one, again, other = fit(config), fit(config), fit(replace(config, seed=1))
    assert records_of(one) == records_of(again)
    assert weights_equal(one, again)
    assert not weights_equal(one, other)


def test_of_two_runs_at_once_in_a_process_the_second_is_refused(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first is what it would be alone."""
    alone = fit(replace(config, out=tmp_path / "alone"))
    refused: list[BaseException] = []

    def begin_another() -> None:
        try:
            fit(replace(config, out=tmp_path / "second", threads=2))
        except lock.RunInUse as error:
            refused.append(error)

    def opening(*args: Any) -> None:
        another = threading.Thread(target=begin_another)
        another.start()
        another.join()

    monkeypatch.setattr(report, "opening", opening)
    run = fit(config)
    assert "\n" not in str(refused[0])
    assert "another run trains in this process" in str(refused[0])
    assert torch.get_num_threads() == 1
    assert not (tmp_path / "second").exists()
    assert weights_equal(run, alone)


def test_the_random_state_of_who_calls_is_left_as_it_was(config: TrainConfig) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    fit(replace(config, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def weights_equal(run: Path, other: Path) -> bool:
    ours, theirs = weights_of(run), weights_of(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stopping(n)`: Ctrl-C, or another signal, in the middle of the n-th step from now."""

    def stop(step: int, number: int = signal.SIGINT) -> None:
        steps = iter(range(1, 10**6))

        def stopped(*args: Any, **kwargs: Any) -> tuple[float, float]:
            if next(steps) == step:
                signal.raise_signal(number)
            return train_step(*args, **kwargs)

        monkeypatch.setattr(trainer, "train_step", stopped)

    return stop


@pytest.mark.parametrize(
    ("cell_type", "workers", "steps", "options"),
    [
        ("rnn", 0, [7], {}),
        ("rnn", 0, [5], {}),
        ("lstm", 0, [3, 9], {}),
        ("rnn", 2, [8], {}),
        ("attention", 2, [10], {}),
        ("rnn", 0, [2, 7, 10], EVERY_OPTION),
        ("lstm", 2, [8], EVERY_OPTION),
        ("attention", 0, [7], EVERY_OPTION),
        ("rnn", 0, [2, 3, 7], {"objective": "scst", "ema": 0.9}),
        ("lstm", 2, [5], {"objective": "scst"}),
        ("attention", 0, [5], {"objective": "scst"}),
    ],
)
def test_a_resumed_run_ends_as_if_never_stopped(
    config: TrainConfig,
    stopping: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    cell_type: str,
    workers: int,
    steps: list[int],
    options: dict[str, Any],
) -> None:
    config = replace(config, cell_type=cell_type, workers=workers, dropout=0.5)
    if options.get("objective") == "scst":  # three steps an epoch
        options = options | {"init_from": fit(config), "lr": 1e-3}
    config = replace(config, **options)
    whole = fit(config)
    resumed = config
    done = 0
    for step in steps:
        stopping(step - done)
        with pytest.raises(KeyboardInterrupt):
            fit(resumed)
        assert f"stopped after step {step}, which is saved" in capsys.readouterr().out
        resumed, done = replace(config, resume="last"), step
    stopping(10**6)
    torch.manual_seed(99)  # the stream of a new process is somewhere else
    run = fit(resumed)
    assert run != whole
    assert weights_equal(whole, run)
    assert records_of(whole) == records_of(run)
    ours, theirs = (checkpoints.load(r / "last.safetensors") for r in (whole, run))
    assert bool(ours.average) is ("ema" in options)
    for part in ("average", "optimizer", "random"):
        tensors, others = getattr(ours, part), getattr(theirs, part)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert weights_equal_best(whole, run)


def weights_equal_best(run: Path, other: Path) -> bool:
    ours, theirs = weights_of(run, "best.safetensors"), weights_of(other, "best.safetensors")
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_epoch_that_died_before_its_checkpoint_leaves_no_trace(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(config)

    def dies(state: State, *args: Any) -> Checkpoint:
        if state.progress.epoch == 2:
            raise OSError("No space left on device")
        return snapshot(state, *args)

    monkeypatch.setattr("torch_caption.training.checkpointing.snapshot", dies)
    with pytest.raises(OSError, match="No space left"):
        fit(config)
    run = runs.find(config.out)
    assert len(runs.read(run)) == 2
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"epoch": 3, "st')
    monkeypatch.undo()
    assert fit(replace(config, resume=run.name)) == run
    assert records_of(run) == records_of(whole)
    assert weights_equal(run, whole)


def test_more_epochs_may_be_asked_of_a_finished_run(config: TrainConfig) -> None:
    config = replace(config, lr_schedule="constant", epochs=2)
    run = fit(config)
    assert fit(replace(config, resume="last")) == run
    assert len(runs.read(run)) == 2
    fit(replace(config, resume="last", epochs=3))
    assert records_of(run) == records_of(fit(replace(config, epochs=3)))


def test_what_cannot_be_resumed(config: TrainConfig, stopping: Callable[[int], None], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run in"):
        fit(replace(config, resume="last"))
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    for change in ({"hidden_dim": 17}, {"cell_type": "lstm"}, {"dtype": "float64"}, {"batch_size": 6}, {"seed": 5}):
        (name,) = change
        with pytest.raises(CheckpointError, match=f"has --{name.replace('_', '-')} "):
            fit(replace(config, resume="last", **change))
    with pytest.raises(CheckpointError, match="there is no run 'elsewhere'"):
        fit(replace(config, resume="elsewhere"))
    wide = write_tiny(tmp_path / "wide", width=9)
    with pytest.raises(CheckpointError, match=r"trained on features of width 8, but those of .*wide have 9"):
        fit(replace(config, resume="last", data=str(wide)))
    few = write_tiny(tmp_path / "few", wordings=1)
    with pytest.raises(CheckpointError, match=r"not the vocabulary of .*few: 15 words against 12"):
        fit(replace(config, resume="last", data=str(few)))
    run = runs.find(config.out)
    best = checkpoints.load(run / "last.safetensors")
    checkpoints.save(run / "last.safetensors", replace(best, random={}))
    with pytest.raises(CheckpointError, match="not the state of its training"):
        fit(replace(config, resume="last"))


def curve_of(run: Path) -> list[tuple[int, float]]:
    """The validation losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("val_loss")]


# Stopped and killed at other moments ----------------------------------------------------------------------------------


class Killed(BaseException):
    """What nobody catches: the process is gone."""


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn and judged in the end."""
    monkeypatch.setattr("torch_caption.training.report.closing", lambda *_: None)


def assert_same(whole: Path, run: Path) -> None:
    """Weights, best weights, and records."""
    assert weights_equal(whole, run)
    assert weights_equal_best(whole, run)
    assert records_of(whole) == records_of(run)
    for name in ("best.safetensors", "last.safetensors"):
        assert checkpoints.load(whole / name).progress == checkpoints.load(run / name).progress


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("every", [0, 2])
def test_whoever_dies_between_two_files_loses_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Before each file that is written, and before each record."""
    config = replace(config, epochs=2, ema=0.5, checkpoint_every=every)
    whole = fit(config)
    written, place = 0, 0

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            nonlocal written
            written += 1
            if written == place:
                raise Killed
            write(*args, **kwargs)

        return wrapped

    monkeypatch.setattr("torch_caption.io.files.replace", dying(files.replace))
    monkeypatch.setattr(runs.Log, "write", dying(runs.Log.write))
    dead = config.out / "other"
    while True:
        place, written = place + 1, 0
        shutil.rmtree(dead, ignore_errors=True)
        try:
            run = fit(replace(config, out=dead))
            break
        except Killed:
            pass
        begun = (dead / runs.POINTER).exists()
        run = fit(replace(config, out=dead, resume="last" if begun else None))
        assert_same(whole, run)
    assert_same(whole, run)
    assert place == 1 + 3 + 2 * 3 + (6 if every else 2)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_record_that_is_made_again_is_shown_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Killed between the record and the checkpoint; the one before may be of the epoch's last step."""
    write = runs.Log.write

    def dying(log: runs.Log, record: dict[str, Any]) -> None:
        write(log, record)
        if record["epoch"] == 2:
            raise Killed

    config = replace(config, checkpoint_every=every, tensorboard=True)
    monkeypatch.setattr(runs.Log, "write", dying)
    with pytest.raises(Killed):
        fit(config)
    monkeypatch.undo()
    (first,) = (runs.find(config.out) / "tensorboard").iterdir()
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # of an earlier second
    monkeypatch.setattr("torch_caption.training.report.closing", lambda *_: None)
    run = fit(replace(config, resume="last"))
    assert [record["step"] for record in runs.read(run)] == [5, 10, 15]
    assert curve_of(run) == [(record["step"], pytest.approx(record["val_loss"])) for record in runs.read(run)]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(("cell_type", "workers"), [("rnn", 0), ("lstm", 2), ("attention", 0)])
def test_a_run_that_was_told_to_end_goes_on(
    config: TrainConfig, stopping: Callable[..., None], cell_type: str, workers: int
) -> None:
    config = replace(config, cell_type=cell_type, workers=workers)
    whole = fit(config)
    stopping(8, signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        fit(config)
    assert stopped.value.status == 143
    stopping(10**6)
    assert_same(whole, fit(replace(config, resume="last", checkpoint_every=4)))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("where", ["torch_caption.training.trainer.validate", "torch_caption.training.trainer.score"])
def test_validation_is_cut_off_and_made_again(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(config)
    calls = iter(range(9))
    judge = {"validate": validate, "score": score}[where.rpartition(".")[2]]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on")
        return judge(*args, **kwargs)

    monkeypatch.setattr(where, interrupted)
    with pytest.raises(Stopped):
        fit(config)
    run = runs.find(config.out)
    progress = checkpoints.load(run / "last.safetensors").progress
    assert (progress["epoch"], progress["position"], progress["step"]) == (1, 5, 10)
    assert "stopped after step 10, which is saved" in capsys.readouterr().out
    monkeypatch.undo()
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [1, 2, 3])
def test_what_is_being_saved_is_saved(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, number: int, place: int
) -> None:
    """Told to end while it saves in the middle of an epoch, its last step, and its end."""
    config = replace(config, epochs=1, checkpoint_every=3)
    whole = fit(config)
    save, calls = checkpoints.save, iter(range(99))

    def interrupted(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "last.safetensors" and next(calls) == place:
            signal.raise_signal(number)
        save(path, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(Stopped):
        fit(config)
    run = runs.find(config.out)
    progress = checkpoints.load(run / "last.safetensors").progress
    assert (progress["step"], progress["epoch"]) == {1: (4, 0), 2: (5, 0), 3: (5, 1)}[place]
    monkeypatch.undo()
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("told", [False, True])
def test_a_lost_worker_stops_the_run_after_a_whole_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: bool
) -> None:
    """All processes of a program may be told to end together; those that load do so at once."""
    config = replace(config, workers=2, batch_size=2)
    whole = fit(config)
    steps = iter(range(10**6))

    def struck(*args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(steps) == 14:
            if told:
                signal.raise_signal(signal.SIGTERM)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)
                worker.join()
        return train_step(*args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", struck)
    lost = r"^process \d+.* of --workers was killed or has ended; .*last.safetensors is that of step 1[4-8]$"
    kind, message = (Stopped, "SIGTERM") if told else (WorkerLost, lost)
    capsys.readouterr()
    with pytest.raises(kind, match=message):
        fit(config)
    saved = checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"]
    assert 14 <= saved <= 18  # each of two workers may have had two batches ready
    assert f"stopped after step {saved}, which is saved; `python -m" in capsys.readouterr().out
    assert not multiprocessing.active_children()
    assert_same(whole, fit(replace(config, resume="last")))


def failing(does: Callable[..., Any], at: int, error: Exception) -> Callable[..., Any]:
    """What raises the error at its call of that number."""
    calls = iter(range(1, 10**6))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise error
        return does(*args, **kwargs)

    return wrapped


SAVED_AT = {  # what fails at which call, by what, and the step that is then saved
    "a batch cannot be read": ("torch_caption.data.dataset.Split.__getitems__", 9, ValueError("bad"), 7),  # 1 validates
    "a step fails": ("torch_caption.training.trainer.train_step", 8, OverflowError("too large"), 7),
    "its backward does": ("torch.nn.utils.clip_grad_norm_", 8, RuntimeError("no kernel"), 7),
    "validation does": ("torch_caption.training.trainer.validate", 2, RuntimeError("no kernel"), 10),
    "a record cannot be written": ("torch_caption.training.run_folder.Log.write", 2, OSError("no room"), 10),
}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("what", SAVED_AT)
def test_whatever_ends_a_run_its_whole_steps_are_saved(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """And it goes on bit for bit, with dropout: the step that failed had drawn its numbers."""
    config = replace(config, **EVERY_OPTION, dropout=0.5, in_memory="no", score_images=0)
    whole = fit(config)
    name, at, error, saved = SAVED_AT[what]
    does = pkgutil.resolve_name(name)
    monkeypatch.setattr(name, failing(does, at, error))
    capsys.readouterr()
    with pytest.raises(type(error)) as raised:
        fit(config)
    assert raised.value is error
    run = runs.find(config.out)
    assert checkpoints.load(run / "last.safetensors").progress["step"] == saved
    monkeypatch.setattr(name, does)
    said = capsys.readouterr()
    in_the_epoch = saved == 7
    assert (f"stopped after step {saved}, which is saved; `python -m" in said.out) == in_the_epoch
    assert "not saved" not in said.err
    torch.manual_seed(99)
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("place", ["lerp_", "count"])
def test_half_a_step_is_not_saved(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The weights have changed, and the average or the progress has not."""
    config = replace(config, ema=0.9)
    whole = fit(config)
    owner, at = {"lerp_": (Tensor, 60), "count": (Progress, 7)}[place]
    does = getattr(owner, place)
    monkeypatch.setattr(owner, place, failing(does, at, RuntimeError("no kernel")))
    with pytest.raises(RuntimeError, match="no kernel"):
        fit(config)
    monkeypatch.setattr(owner, place, does)
    assert checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"] == 5
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.usefixtures("quiet")
def test_a_disk_that_is_full_as_well_hides_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = failing(checkpoints.save, 2, OSError("last.safetensors: could not be written"))
    monkeypatch.setattr(checkpoints, "save", save)
    monkeypatch.setattr(trainer, "train_step", failing(train_step, 4, DataError("the first reason")))
    assert guarded(lambda: fit(config)) == 2
    said = capsys.readouterr()
    assert "which is saved" not in said.out
    assert [line for line in re.split("[\r\n]+", said.err) if "epoch 1/3: " not in line and line] == [
        "warning: step 3 is not saved: last.safetensors: could not be written",
        "error: the first reason",
    ]
    assert checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"] == 0


@pytest.mark.usefixtures("quiet")
def test_a_save_that_failed_is_not_tried_again(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def save(path: Path, *args: Any, **kwargs: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("could not be written")

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(OSError, match="could not be written"):
        fit(replace(config, checkpoint_every=2))
    assert len(calls) == 2


@pytest.mark.usefixtures("quiet")
def test_an_epoch_is_saved_before_it_is_judged(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So killed in its validation it loses nothing; nor is it saved twice."""
    whole = fit(config)
    saves: list[int] = []
    save = checkpoints.save

    def counted(path: Path, saved: Checkpoint, **kwargs: Any) -> None:
        if path.name == "last.safetensors":
            saves.append(saved.progress["step"])
        save(path, saved, **kwargs)

    monkeypatch.setattr(checkpoints, "save", counted)
    fit(replace(config, checkpoint_every=5, epochs=2))
    assert saves == [0, 5, 5, 10, 10]
    monkeypatch.setattr(trainer, "validate", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        fit(config)
    saves.clear()
    monkeypatch.setattr(trainer, "validate", validate)
    assert_same(whole, fit(replace(config, resume="last")))
    assert saves == [5, 10, 10, 15, 15]


def test_a_validation_loss_that_is_no_number(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are kept, and so is the checkpoint before them, with which to begin again."""
    losses = iter([1.0, math.nan])
    monkeypatch.setattr(trainer, "validate", lambda *_: next(losses))
    with pytest.raises(NonFiniteError) as stopped:
        fit(config)
    run = runs.find(config.out)
    assert str(stopped.value) == (
        f"epoch 2: the validation loss is nan; {run / 'last.safetensors'} is that of step 10; --init-from a checkpoint "
        "before it, with a lower --lr, may help"
    )
    assert checkpoints.load(run / "last.previous.safetensors").progress["step"] == 5
    monkeypatch.setattr(trainer, "validate", validate)
    fit(replace(config, init_from=run / "last.previous.safetensors", lr=1e-3, epochs=1))


@pytest.mark.usefixtures("quiet")
def test_the_checkpoint_before_a_damaged_one_is_taken(
    config: TrainConfig, stopping: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(config)
    stopping(12)
    with pytest.raises(Stopped):
        fit(config)
    run = runs.find(config.out)
    content = (run / "last.safetensors").read_bytes()
    (run / "last.safetensors").write_bytes(content[:-100])
    stopping(10**6)
    capsys.readouterr()
    assert_same(whole, fit(replace(config, resume="last")))
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {run / 'last.safetensors'}: ")
    assert err.endswith("last.previous.safetensors, of step 10\n")


def test_two_do_not_train_in_one_folder(config: TrainConfig) -> None:
    run = fit(replace(config, epochs=1))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with lock.alone_in(run):
        held = (run / lock.NAME).read_bytes()
        with pytest.raises(lock.RunInUse, match=r"tiny-rnn-1: process \d+ on .* trains there"):
            fit(replace(config, resume="last", epochs=2))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before | {lock.NAME: held}


def test_a_run_can_be_taken_up_from_its_first_moment(config: TrainConfig, stopping: Callable[..., None]) -> None:
    """Killed in its first step, it has its settings, and its first weights."""
    whole = fit(config)
    stopping(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_step", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            fit(config)
    stopping(10**6)
    run = runs.find(config.out)
    assert checkpoints.load(run / "last.safetensors").progress["step"] == 0
    assert_same(whole, fit(replace(checkpoints.load(run / "last.safetensors").config, resume=run.name)))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
@pytest.mark.usefixtures("quiet")
def test_no_descriptor_is_left_open(config: TrainConfig, stopping: Callable[..., None]) -> None:
    """By whole runs, stopped ones and ones that go on, with processes that load and TensorBoard."""

    def once() -> int:
        stopping(7)
        with pytest.raises(Stopped):
            fit(loud)
        stopping(10**6)
        fit(replace(loud, resume="last"))
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    loud = replace(config, workers=2, tensorboard=True, epochs=2)
    counts = [once() for _ in range(3)]
    assert counts[0] == counts[1] == counts[2]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
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
        f"epoch 2/3, step 8: the loss is nan; the batch is rows {rows} of train, none of which has a finite loss "
        f"alone; {run / 'last.safetensors'} is that of step 5; a lower --lr may help"
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
    load_data = trainer.load_data

    def poisoned(config: TrainConfig) -> CocoData:
        data = load_data(config)
        features = data["train"]._features
        assert isinstance(features, Tensor)
        features[4] = math.nan
        return data

    monkeypatch.setattr(trainer, "load_data", poisoned)
    with pytest.raises(NonFiniteError) as stopped:
        fit(replace(config, feature_dropout=0.0))
    named = {"xe": r"row [89] \(image 4\)", "scst": "image 4"}[objective]
    assert re.search(
        rf"with a non-finite loss: {named} of train; .*last\.safetensors is that of step 0; ", str(stopped.value)
    )


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't allocate memory: you tried to allocate 80 bytes"), torch.OutOfMemoryError("x"), MemoryError()],
)
def test_a_run_without_memory_says_what_is_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    steps = iter(range(1, 10**6))

    def full(*args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(steps) == 7:
            raise error
        return train_step(*args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", full)
    assert guarded(lambda: fit(config)) == 1
    last = config.out / "tiny-rnn-1" / "last.safetensors"
    step = checkpoints.load(last).progress["step"]
    assert step == 6
    kept = f"{last} is that of step {step}"
    asked = ": 80 bytes more were requested" if "80" in str(error) else ""
    advice = "make --batch-size, --hidden-dim or --wordvec-dim smaller"
    said = capsys.readouterr().err.rpartition("\r")[2]  # behind a bar of progress
    assert said == f"error: not enough memory{asked}; {advice}; {kept}\n"
    monkeypatch.setattr(trainer, "train_step", train_step)
    assert_same(fit(replace(config, resume="last")), fit(config))


def test_a_damaged_checkpoint_is_written_anew_at_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there are two whole ones again before anything else can go wrong."""
    run = fit(config)
    last, before = run / "last.safetensors", run / "last.previous.safetensors"
    kept = checkpoints.load(before)
    last.write_bytes(last.read_bytes()[:-1])
    monkeypatch.setattr(trainer, "_train", lambda *_: None)
    monkeypatch.setattr(report, "closing", lambda *_: None)
    fit(replace(config, resume="last", epochs=4))
    for path in (last, before):
        found = checkpoints.load(path)
        assert found.progress == kept.progress
        assert all(torch.equal(found.weights[name], weight) for name, weight in kept.weights.items())


def test_a_gradient_that_is_no_number_has_no_caption(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(
        NonFiniteError, match=r"step 1: the gradient's norm is inf; .*; each row separately has a finite loss"
    ):
        fit(config)


def test_weights_that_are_no_numbers_are_not_saved(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """A step may come to them from a loss and gradient that are finite."""
    config = replace(config, lr=1e39, lr_schedule="constant", checkpoint_every=1, clip=0.0)
    assert guarded(lambda: fit(config)) == 1
    err = capsys.readouterr().err
    run = runs.find(config.out)
    assert re.fullmatch(r"error: after step 1: .*contains NaN or infinity; .*last\.\w+ is that of step 0; .*\n", err)
    assert checkpoints.load(run / "last.safetensors").progress["step"] == 0


def test_a_gradient_that_is_no_number_leaves_the_weights(data: CocoData) -> None:
    model = model_of(data)
    model.W_proj.register_hook(lambda gradient: gradient * math.inf)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    features, captions = next(iter(batches(data["train"], 6)))
    with pytest.raises(NonFiniteError, match="the gradient's norm is "):
        train_step(model, torch.optim.AdamW(model.parameters()), features, captions, clip=1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("options", [{}, EVERY_OPTION | {"scheduled_sampling": 0.0}], ids=["plain", "options"])
def test_mixed_precision_stays_near(config: TrainConfig, cell_type: str, options: dict[str, Any]) -> None:
    config = replace(config, **options)
    full, mixed = (fit(replace(config, cell_type=cell_type, amp=amp)) for amp in ("none", "bf16"))
    for ours, theirs in zip(runs.read(full), runs.read(mixed), strict=True):
        assert theirs["train_loss"] == pytest.approx(ours["train_loss"], rel=1e-2)
        assert theirs["val_loss"] == pytest.approx(ours["val_loss"], rel=1e-2)
    assert not weights_equal(full, mixed)
    assert all(weight.dtype == torch.float32 for weight in weights_of(mixed).values())


def test_what_the_model_says_itself_goes_with_mixed_precision(config: TrainConfig) -> None:
    config = replace(config, epochs=2, amp="bf16")
    begun = fit(replace(config, scheduled_sampling=0.5))
    run = fit(replace(config, objective="scst", init_from=begun))
    assert all(weight.dtype == torch.float32 for weight in weights_of(run).values())


@pytest.mark.parametrize("cell_type", CELLS)
@pytest.mark.parametrize("options", [{}, EVERY_OPTION], ids=["plain", "options"])
def test_hand_and_automatic_gradients_train_alike(
    config: TrainConfig, directory: Path, cell_type: str, options: dict[str, Any]
) -> None:
    data = data_for(cell_type, directory)
    config = replace(config, cell_type=cell_type, dtype="float64", **options)

    def losses(gradients: str) -> Iterator[float]:
        state = begin(replace(config, gradients=gradients), data, CPU)
        loader = batches(data["train"], 5, seed=0)
        step = 0
        while step < 100:
            for features, captions in loader:
                step += 1
                yield train_step(state.model, state.optimizer, features, captions, clip=5.0)[0]

    hand, auto = list(losses("hand")), list(losses("auto"))
    assert hand == pytest.approx(auto, rel=1e-9)
    assert hand[-1] < 0.7 * hand[0]


def test_progress_says_when_to_end() -> None:
    config = TrainConfig(epochs=10, patience=3)
    assert not trainer.finished(Progress(), config)
    assert not trainer.finished(Progress(epoch=4, best_epoch=2), config)
    assert trainer.finished(Progress(epoch=5, best_epoch=2), config)
    assert trainer.finished(Progress(epoch=10, best_epoch=10), config)
    assert not trainer.finished(Progress(epoch=9, best_epoch=0), replace(config, patience=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"checkpoint_every": -1}, "--checkpoint-every must be at least 0, not -1"),
        ({"workers": -1}, "--workers must be at least 0, not -1"),
        ({"max_train": 0}, "--max-train must be at least 1, not 0"),
        ({"lr": math.nan}, "--lr must be a positive number, not nan"),
        ({"clip": -1.0}, "--clip must be 0 or a positive number, not -1.0"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, not 1.0"),
        ({"label_smoothing": -0.1}, "--label-smoothing must be at least 0 and below 1, not -0.1"),
        ({"ema": 1.0}, "--ema must be at least 0 and below 1, not 1.0"),
        ({"scheduled_sampling": 1.5}, "--scheduled-sampling must be from 0 to 1, not 1.5"),
        ({"warm_up": -1}, "--warm-up must be at least 0, not -1"),
        ({"objective": "scst"}, "--objective scst starts from a trained model: name it with --init-from"),
        (
            SCST | {"score_images": 0},
            "--objective scst keeps the best CIDEr's weights: --score-images must not be 0",
        ),
        (
            SCST | {"tied": True, "hidden_dim": 9, "wordvec_dim": 9},
            "--tied with --hidden-dim equal to --wordvec-dim needs --temperature 1 in self-critical training",
        ),
        (SCST | {"temperature": 0.0}, "--temperature must be a positive number, not 0.0"),
        (SCST | {"label_smoothing": 0.1}, "--label-smoothing needs --objective xe, not scst"),
        (SCST | {"scheduled_sampling": 0.1}, "--scheduled-sampling needs --objective xe, not scst"),
        ({"seed": -1}, "--seed must be at least 0 and below 2^63, not -1"),
        ({"amp": "bf16", "dtype": "float64"}, "--amp bf16 needs --dtype float32, not with float64"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(TrainConfig(**change))
    assert str(refused.value) == message


def test_settings_survive_a_checkpoint() -> None:
    config = TrainConfig(data="x", out=Path("a") / "b", max_train=3, tensorboard=False, init_from=Path("c") / "d")
    plain = json.loads(json.dumps(config.plain()))
    assert TrainConfig.from_plain(plain | {"setting_of_another_version": 1}) == config
    assert TrainConfig.from_plain({}) == TrainConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": "30"}, "the saved setting of --max-length cannot be '30'"),
        ({"hidden_dim": True}, "the saved setting of --hidden-dim cannot be True"),
        ({"hidden_dim": 2.0}, "the saved setting of --hidden-dim cannot be 2.0"),
        ({"cell_type": "gru"}, "the saved setting of --cell-type cannot be 'gru'"),
        ({"data": None}, "the saved setting of --data cannot be None"),
        ({"out": 3}, "the saved setting of --out cannot be 3"),
        ({"tensorboard": 1}, "the saved setting of --tensorboard cannot be 1"),
        ({"max_length": 10**12}, "--max-length must be at most 1000, not 1000000000000"),
        ({"max_length": 0}, "--max-length must be at least 1, not 0"),
    ],
)
def test_settings_of_another_kind_come_from_no_checkpoint(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        TrainConfig.from_plain(change)
    assert str(refused.value) == message


def test_settings_that_are_shared_name_no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config = TrainConfig(
        data=str(tmp_path / "coco"), out=tmp_path / "runs", init_from=tmp_path / "x", lr=0.5, threads=2
    )
    assert str(tmp_path) not in json.dumps(config.shared())
    assert TrainConfig.from_plain(config.shared()) == TrainConfig(data=str(tmp_path / "coco"), lr=0.5)
