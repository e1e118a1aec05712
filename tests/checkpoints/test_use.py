"""What is done with a checkpoint: a model is built of it, and data are compared with those that it was trained on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.saved_checkpoint import CONFIG, WORDS, D, forged, make
from torch_caption.checkpoints import format as checkpoints
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import CheckpointError


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_is_built_with_its_weights(tmp_path: Path, dtype: str) -> None:
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in make().weights.items()}
    config = dataclasses.replace(CONFIG, dtype=dtype)
    path = tmp_path / "best.safetensors"
    checkpoints.save(path, checkpoints.Checkpoint(weights, config, WORDS, {}, D))
    model = checkpoints.build_model(checkpoints.load(path))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.dtype == weights["Wx"].dtype
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    features = torch.randn(2, D, dtype=getattr(torch, dtype))
    model(features, torch.tensor([[1, 4, 2], [1, 5, 2]])).backward()
    assert model.Wh.grad.norm() > 0


def test_a_checkpoint_from_before_layers_has_one(tmp_path: Path) -> None:
    settings = {name: value for name, value in CONFIG.plain().items() if name not in ("num_layers", "layer_dropout")}
    path = tmp_path / "last.safetensors"
    path.write_bytes(forged(metadata={"config": settings}))
    model = checkpoints.build_model(checkpoints.load(path))
    assert (model.num_layers, model.layer_dropout) == (1, 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"hidden_dim": 10**9}}, "size mismatch"),  # found before a model of that size is made
        ({"config": {"cell_type": "nonesuch"}}, "nonesuch"),
        ({"config": {"cell_type": "lstm"}}, "size mismatch"),
        ({"config": {"tied": True}}, "W_vocab"),
        ({"config": {"num_layers": 2}}, "Wx_l2"),
        ({"config": {"dropout": 1.5}}, "dropout"),
        ({"input_dim": 10**30}, ""),
        ({"input_dim": 0}, ""),
        ({"words": [*WORDS, "b"]}, ""),
        ({"weights": {}}, ""),
    ],
    ids=repr,
)
def test_inconsistent_parts_make_no_model(changes: dict[str, Any], words: str) -> None:
    if "config" in changes:
        changes = {"config": dataclasses.replace(CONFIG, **changes["config"])}
    message = rf"^x: settings, vocabulary and weights do not match: .*{words}"
    with pytest.raises(CheckpointError, match=message) as refused:
        checkpoints.build_model(make(**changes), "x")
    assert "\n" not in str(refused.value)


RECIPE = {
    "encoder": "resnet18",
    "features": "vgg16_fc7_pca",
    "transform": {"crop": 224, "channels": "RGB"},
    "weights": {"sha256": "a" * 64, "path": "~/w.pt"},
    "projection": {"mean": torch.arange(4.0), "components": torch.arange(12.0).view(4, 3)},
}
MEAN = torch.tensor([True, False, True])  # torch does not subtract truth values


def check_fits(manifest: dict[str, Any], other: dict[str, Any], words: list[str] = WORDS, width: int = 3) -> None:
    checkpoints.check_fits(make(manifest=manifest), Vocabulary(tuple(words)), width, other, path="x", data="here")


@pytest.mark.parametrize(
    ("words", "width", "message"),
    [
        ([*WORDS, "blue"], 3, "x: not the vocabulary of here: 7 words against 8"),
        ([*WORDS[:5], "blue", "circle"], 3, "x: not the vocabulary of here: word 5 is 'red' against 'blue'"),
        (WORDS, 4, "x: trained on features of width 3, but those of here have 4"),
    ],
)
def test_data_of_another_vocabulary_or_width_are_refused(words: list[str], width: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        check_fits({}, {}, words, width)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"weights": {"sha256": "a" * 64, "path": "elsewhere/w.pt"}},
        {"encoder": None, "weights": None, "projection": None},
        {"projection": {name: x * 1.000001 for name, x in RECIPE["projection"].items()}},
    ],
)
def test_features_of_the_same_recipe_fit(change: dict[str, Any]) -> None:
    check_fits(RECIPE, RECIPE | change)
    check_fits({"projection": {"mean": MEAN}}, {"projection": {"mean": MEAN.float()}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": {"crop": 224, "channels": "BGR"}}, "features with transform {'channels': 'RGB', 'crop': 224},"),
        ({"encoder": "vgg16"}, "features with encoder 'resnet18', but those of here have 'vgg16'"),
        ({"features": "vgg16_fc7"}, "features with kind 'vgg16_fc7_pca', but those of here have 'vgg16_fc7'"),
        ({"weights": {"sha256": "b" * 64}}, "features with weights of SHA-256 'aaa"),
        (
            {"projection": {"mean": torch.arange(4.0), "components": -torch.arange(12.0).view(4, 3)}},
            "another projection",
        ),
        ({"projection": {"mean": torch.arange(5.0), "components": torch.zeros(5, 3)}}, "another projection"),
        ({"projection": {"mean": ~MEAN}}, "another projection"),
    ],
)
def test_features_of_another_recipe_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_fits(RECIPE, RECIPE | change)
