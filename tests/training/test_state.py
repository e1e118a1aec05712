"""The state of a run that resumes: from a checkpoint whose parts contradict each other, or with other data."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from tests.helpers.tiny_data import D, write_tiny
from tests.helpers.training import CPU
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.cli.train import train_config
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, Split, open_data
from torch_caption.errors import CheckpointError
from torch_caption.training.log import read_log
from torch_caption.training.progress import Progress
from torch_caption.training.state import TrainingState, for_inference, initial_state, resume, snapshot
from torch_caption.training.trainer import fit

UNDER_WAY = {"epoch": 1, "position": 2, "step": 7, "nats": 9.5, "words": 60, "norms": 2.5, "lr": 0.5, "seconds": 0.1}
REWARDED = {"samples": 10, "rewards": 1.5}


@pytest.fixture
def config(data: CocoData, tmp_path: Path) -> TrainConfig:
    """Five steps an epoch; three where images are rewarded."""
    return TrainConfig(
        data=str(data.directory), out=tmp_path / "runs", hidden_dim=6, wordvec_dim=5, batch_size=5, dropout=0.0
    )


def after_a_step(config: TrainConfig, data: CocoData, **progress: Any) -> TrainingState:
    """A state of this progress, whose optimizer has moments."""
    state = initial_state(config, data, CPU)
    state.model(data["train"].features_of([0]), data["train"].captions[:1]).backward()
    state.optimizer.step()
    state.progress = Progress(**UNDER_WAY | progress)
    return state


def resumed(saved: Checkpoint, config: TrainConfig, data: CocoData, path: Path) -> tuple[TrainingState, list[str]]:
    """The state of a run that resumes from the checkpoint, and its warnings."""
    checkpoints.save(path, saved, keep=False)
    return resume(replace(config, resume="last"), data, CPU, checkpoints.find(path))


def refusal(saved: Checkpoint, config: TrainConfig, data: CocoData, path: Path) -> str:
    """The one line with which a run refuses to resume from the checkpoint."""
    with pytest.raises(CheckpointError) as refused:
        resumed(saved, config, data, path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize(
    "progress",
    [
        {},
        {"position": 0, "words": 0, "nats": 0.0},
        {"epoch": 0, "position": 0, "step": 0, "words": 0},
        {"best_epoch": 1, "best_loss": 1.5, "best_cider": -math.inf},
    ],
    ids=repr,
)
def test_valid_progress_resumes(config: TrainConfig, data: CocoData, tmp_path: Path, progress: dict[str, Any]) -> None:
    state = after_a_step(config, data, **progress)
    if state.progress.step == 0:
        state = initial_state(config, data, CPU)
    found = resumed(snapshot(state, config, data), config, data, tmp_path / "last.safetensors")[0]
    assert found.progress == state.progress


def test_missing_fields_of_progress_are_defaults() -> None:
    assert Progress.from_plain({}) == Progress()
    assert Progress.from_plain({"epoch": 3, "step": 9}) == Progress(3, step=9)
    assert {*dataclasses.asdict(Progress())} == {*UNDER_WAY, *REWARDED, "best_epoch", "best_loss", "best_cider"}


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        ({"epoch": "x"}, "epoch 'x', which is not of type int"),
        ({"position": None}, "position None, which is not of type int"),
        ({"step": 2**60}, "step 1152921504606846976, which is out of range"),
        ({"words": -1}, "words -1, which is out of range"),
        ({"nats": [1.0]}, "nats [1.0], which is not of type float"),
        ({"seconds": 10**400}, "which is out of range"),
        ({"colour": 1}, "an unknown field 'colour'"),
        ({"position": 5, "words": 0}, "words 0, but position 5"),
        ({"position": 6}, "position 6, but an epoch has 5 steps"),
        ({"position": 5, "step": 4}, "position 5, but step 4"),
        ({"best_epoch": 2}, "best_epoch 2, but epoch 1"),
        ({"samples": 61}, "samples 61, but words 60"),
        (REWARDED, "samples 10, but position 2 of an epoch that rewards none"),
    ],
    ids=repr,
)
def test_invalid_progress_is_refused(
    config: TrainConfig, data: CocoData, tmp_path: Path, progress: dict[str, Any], words: str
) -> None:
    saved = snapshot(after_a_step(config, data), config, data)
    saved.progress |= progress
    message = refusal(saved, config, data, tmp_path / "last.safetensors")
    assert "cannot be resumed: its progress has " in message
    assert words in message


def test_progress_of_an_epoch_that_rewards_captions(config: TrainConfig, data: CocoData, tmp_path: Path) -> None:
    """It has fewer steps: one for each batch of images."""
    config = replace(config, objective="scst", init_from=tmp_path / "first.safetensors", temperature=1.0)
    saved = snapshot(after_a_step(config, data, **REWARDED), config, data)
    assert resumed(saved, config, data, tmp_path / "last.safetensors")[0].progress.rewards == 1.5
    for change, words in (
        ({"samples": 0}, "samples 0, but position 2 of an epoch that rewards them"),
        ({"position": 4}, "position 4, but an epoch has 3 steps"),
    ):
        saved = snapshot(after_a_step(config, data, **REWARDED | change), config, data)
        assert words in refusal(saved, config, data, tmp_path / "last.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {}}, "its optimizer has 0 tensors after step 7"),
        ({"progress": Progress().plain()}, r"its optimizer has \d+ tensors after step 0"),
        ({"random": {"0/torch": torch.zeros(5056, dtype=torch.uint8)}}, "mt19937"),
        ({"random": {"0/torch": torch.zeros(5, dtype=torch.uint8)}}, "size"),
    ],
)
def test_an_optimizer_or_random_state_that_cannot_be_restored_is_refused(
    config: TrainConfig, data: CocoData, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    saved = replace(snapshot(after_a_step(config, data), config, data), **changes)
    assert re.search(words, refusal(saved, config, data, tmp_path / "last.safetensors"))


@pytest.mark.parametrize("flag", ["--resume", "--init-from"])
def test_a_model_of_other_settings_is_refused_before_it_is_made(config: TrainConfig, data: CocoData, flag: str) -> None:
    saved = snapshot(initial_state(config, data, CPU), config, data)
    path = config.out / "run" / "last.safetensors"
    path.parent.mkdir(parents=True)
    checkpoints.save(path, replace(saved, config=replace(saved.config, hidden_dim=10**6)))
    with pytest.raises(CheckpointError) as refused:
        fit(*train_config([flag, str(path.parent if flag == "--resume" else path)]))
    assert str(refused.value).startswith(f"{path}: settings, vocabulary and weights do not match: ")


def test_training_does_not_change_the_loaded_checkpoint(config: TrainConfig, data: CocoData, tmp_path: Path) -> None:
    saved = snapshot(after_a_step(config, data), config, data)
    checkpoints.save(tmp_path / "last.safetensors", saved)
    found = checkpoints.find(tmp_path / "last.safetensors")
    state, _ = resume(replace(config, resume="last"), data, CPU, found)
    state.model(data["train"].features_of([0]), data["train"].captions[:1]).backward()
    state.optimizer.step()
    again = checkpoints.load(tmp_path / "last.safetensors")
    for part in ("weights", "optimizer"):
        ours, theirs = getattr(found.checkpoint, part), getattr(again, part)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(("flag", "name"), [("--resume", "last.safetensors"), ("--init-from", "best.safetensors")])
def test_a_checkpoint_is_read_once(
    config: TrainConfig, data: CocoData, monkeypatch: pytest.MonkeyPatch, flag: str, name: str
) -> None:
    """Again only if the file was replaced before the run had its lock."""
    run = fit(replace(config, epochs=1, score_images=0, tensorboard=False))
    loaded: list[Path] = []
    load = checkpoints.load

    def counted(path: Path) -> Checkpoint:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr(checkpoints, "load", counted)
    args = [flag, str(run), "--epochs", "2", "--out", str(config.out), "--data", config.data, "--score-images", "0"]
    fit(*train_config(args))
    assert loaded == [run / name]
    given, found = train_config(args)
    checkpoints.save(run / name, load(run / name))
    fit(given, found)
    assert loaded == [run / name] * 3


# Data that has changed -----------------------------------------------------------------------------------------------


def changed(data: CocoData, split: str = "train") -> CocoData:
    """With the first two captions of a split exchanged."""
    ours = data[split]
    rows = torch.arange(len(ours))
    rows[:2] = rows[:2].flip(0)
    other = Split(
        split, ours.vocabulary, ours.captions[rows], ours.image_idxs[rows], ours._features, (ours.num_images, D)
    )
    return replace(data, splits=data.splits | {split: other})


def test_the_digest_of_a_split_depends_on_captions_and_images(data: CocoData, tmp_path: Path) -> None:
    train = data["train"]
    assert train.digest == data["val"].digest == open_data(data.directory, in_memory="no")["train"].digest
    assert re.fullmatch("[0-9a-f]{64}", train.digest)
    assert changed(data)["train"].digest != train.digest
    captions, images = train.captions, train.image_idxs
    pairs = [(captions, images), (captions, images.flip(0)), (captions.T, images), (captions[1:], images)]
    made = [Split("train", data.vocabulary, *pair, torch.ones(12, D), (12, D)) for pair in pairs]
    assert made[0].digest == train.digest
    assert len({split.digest for split in made}) == 4
    assert open_data(data.directory, max_train=20)["train"].digest != train.digest


def test_within_an_epoch_changed_training_captions_are_refused(
    config: TrainConfig, data: CocoData, tmp_path: Path
) -> None:
    path = tmp_path / "last.safetensors"
    saved = snapshot(after_a_step(config, data), config, data)
    assert saved.data == {"train": data["train"].digest, "val": data["val"].digest}
    assert not for_inference(saved).data  # best.safetensors names none
    assert refusal(saved, config, changed(data), path).startswith(
        f"{path}: within an epoch over other captions of train than those of {data.directory}; restore "
    )
    with pytest.raises(CheckpointError, match="has --max-train None, not 20"):
        resumed(saved, replace(config, max_train=20), open_data(data.directory, max_train=20), path)
    (line,) = resumed(saved, config, changed(data, "val"), path)[1]
    assert line.startswith(f"{path}: has other captions of val than {data.directory}; ")
    assert resumed(saved, config, data, path)[1] == []
    for digests in ({}, {"test": "0"}):
        assert resumed(replace(saved, data=digests), config, changed(data), path)[1] == []


def test_between_epochs_changed_captions_are_reported(config: TrainConfig, data: CocoData, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    saved = snapshot(after_a_step(config, data, position=0, words=0), config, data)
    for other, splits in (
        (changed(changed(data), "val"), "train and val"),
        (open_data(data.directory, max_train=20), "train"),
    ):
        max_train = 20 if splits == "train" else None
        (line,) = resumed(saved, replace(config, max_train=max_train), other, path)[1]
        assert line.startswith(f"{path}: has other captions of {splits} than {data.directory}; ")
        assert "\n" not in line


def test_a_run_over_changed_captions_warns_once(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_tiny(tmp_path / "tiny")
    config = replace(config, data=str(directory), epochs=1, score_images=0, tensorboard=False)
    run = fit(config)
    with h5py.File(directory / "coco2014_captions.h5", "r+") as file:
        for name in ("captions", "image_idxs"):
            file[f"val_{name}"][...] = file[f"val_{name}"][:][::-1]
    capsys.readouterr()
    for epochs, warnings in ((2, 1), (3, 0)):
        fit(replace(config, resume="last", epochs=epochs))
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
        assert len(lines) == warnings
    assert len(read_log(run)) == 3
