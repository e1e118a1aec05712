"""Settings of training: their checks, and what a checkpoint keeps of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from torch_caption.config import TrainConfig
from torch_caption.errors import ConfigError
from torch_caption.model.cells import CELLS
from torch_caption.training.trainer import fit

SCST: dict[str, Any] = {"objective": "scst", "init_from": Path("somewhere")}


def test_the_cells_are_those_of_the_flag() -> None:
    assert get_args(get_type_hints(TrainConfig)["cell_type"]) == tuple(CELLS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_dim": 10**20}, "--hidden-dim must be at most 2147483648, not 100000000000000000000"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"workers": -1}, "--workers must be at least 0, not -1"),
        ({"lr": math.nan}, "--lr must be a positive number, not nan"),
        ({"clip": -1.0}, "--clip must be 0 or a positive number, not -1.0"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1, not 1.0"),
        ({"num_layers": 0}, "--num-layers must be at least 1, not 0"),
        ({"num_layers": 101}, "--num-layers must be at most 100, not 101"),
        ({"num_layers": 2, "layer_dropout": 1.0}, "--layer-dropout must be at least 0 and below 1, not 1.0"),
        ({"layer_dropout": 0.5}, "--layer-dropout needs --num-layers of at least 2"),
        ({"scheduled_sampling": 1.5}, "--scheduled-sampling must be from 0 to 1, not 1.5"),
        ({"objective": "scst"}, "--objective scst starts from a trained model: name it with --init-from"),
        (
            SCST | {"score_images": 0},
            "--objective scst keeps the best CIDEr's weights: --score-images must not be 0",
        ),
        (
            SCST | {"tied": True, "hidden_dim": 9, "wordvec_dim": 9},
            "--tied with --hidden-dim equal to --wordvec-dim needs --temperature 1 in self-critical training",
        ),
        (SCST | {"samples": 1}, "--samples must be at least 2, not 1"),
        (SCST | {"temperature": 0.0}, "--temperature must be a positive number, not 0.0"),
        (SCST | {"label_smoothing": 0.1}, "--label-smoothing needs --objective xe, not scst"),
        ({"seed": -1}, "--seed must be at least 0 and below 2^63, not -1"),
        ({"amp": "bf16", "dtype": "float64"}, "--amp bf16 needs --dtype float32, not float64"),
    ],
)
def test_invalid_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(TrainConfig(**change))
    assert str(refused.value) == message


def test_settings_of_a_checkpoint_are_those_that_were_saved() -> None:
    config = TrainConfig(data="x", out=Path("a") / "b", max_train=3, tensorboard=False, init_from=Path("c") / "d")
    plain = json.loads(json.dumps(config.plain()))
    assert TrainConfig.from_plain(plain | {"setting_of_another_version": 1}) == config
    assert TrainConfig.from_plain({}) == TrainConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": "30"}, "the saved setting of --max-length cannot be '30'"),
        ({"hidden_dim": True}, "the saved setting of --hidden-dim cannot be True"),
        ({"cell_type": "nonesuch"}, "the saved setting of --cell-type cannot be 'nonesuch'"),
        ({"data": None}, "the saved setting of --data cannot be None"),
        ({"out": 3}, "the saved setting of --out cannot be 3"),
        ({"tensorboard": 1}, "the saved setting of --tensorboard cannot be 1"),
        ({"num_layers": 10**9}, "--num-layers must be at most 100, not 1000000000"),
        ({"max_length": 10**12}, "--max-length must be at most 1000, not 1000000000000"),
    ],
)
def test_invalid_settings_of_a_checkpoint_are_refused(change: dict[str, Any], message: str) -> None:
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
