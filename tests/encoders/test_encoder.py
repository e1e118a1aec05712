"""Encoders and their recipes, with resnet18: weights from files, random weights, the same encoder again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.resnet_weights import picture, plain_model, save_weights, whole_forward
from torch_caption.encoders.encoder import Encoder, build, from_recipe
from torch_caption.encoders.torchvision_backbones import TorchvisionBackbone
from torch_caption.encoders.transform import IMAGENET
from torch_caption.encoders.weights import Weights, file_sha256
from torch_caption.errors import EncoderError


def line(error: pytest.ExceptionInfo[EncoderError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return build("resnet18", "random")


def wrapped(state: dict[str, Tensor]) -> dict[str, object]:
    """A checkpoint of a parallel model without the layer that classifies and without counts of batches."""
    kept = {k: v for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k}
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in kept.items()}}


KINDS: dict[str, Callable[[dict[str, Tensor]], object] | None] = {
    "as torchvision saves it": None,
    "another number of classes": lambda state: state.update(
        {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.ones(7)}
    ),
    "wrapped": wrapped,
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_read_from_a_file(kind, tmp_path):
    encoder = build("resnet18", save_weights(tmp_path / "w.pt", KINDS[kind]))
    x = torch.stack([encoder.prepare(picture())])
    expected = whole_forward("resnet18", plain_model("resnet18", 1), x)
    torch.testing.assert_close(encoder.encode(x).vectors, expected, rtol=1e-4, atol=1e-5)
    assert encoder.weights.name == "w.pt"
    assert encoder.weights.sha256 == file_sha256(tmp_path / "w.pt")
    assert encoder.transform == IMAGENET


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('taken', 'w')",)


BAD_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda path: None, "there is no such file of weights"),
    "text": (lambda path: path.write_text("weights"), "refused: damaged, or not only tensors"),
    "code": (lambda path: torch.save({"w": Hostile()}, path), "refused: damaged, or not only tensors"),
    "numbers": (lambda path: torch.save({"lr": 0.1}, path), "not a state dict of resnet18"),
    "missing": (
        lambda path: save_weights(
            path, lambda s: {k: v for k, v in s.items() if k not in ("conv1.weight", "bn1.bias")}
        ),
        "not the weights of resnet18; missing: conv1.weight, bn1.bias",
    ),
    "unexpected": (
        lambda path: save_weights(path, lambda state: state.update({f"extra.{k}": torch.zeros(1) for k in range(5)})),
        "not the weights of resnet18; unexpected: extra.0, extra.1, extra.2 and 2 more",
    ),
    "sparse": (
        lambda path: save_weights(path, lambda state: state | {"bn1.bias": state["bn1.bias"].to_sparse()}),
        "bn1.bias has no plain real numbers",
    ),
    "complex": (
        lambda path: save_weights(path, lambda state: state | {"bn1.bias": state["bn1.bias"] + 0j}),
        "bn1.bias has no plain real numbers",
    ),
    "another shape": (
        lambda path: save_weights(path, lambda state: state.update({"conv1.weight": torch.zeros(64, 1, 7, 7)})),
        "conv1.weight has the shape (64, 1, 7, 7), not (64, 3, 7, 7)",
    ),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = BAD_WEIGHTS[kind]
    make(tmp_path / "w.pt")
    with pytest.raises(EncoderError) as error:
        build("resnet18", tmp_path / "w.pt")
    assert line(error).startswith(str(tmp_path / "w.pt"))
    assert message in line(error)
    assert not (tmp_path / "taken").exists()


def test_non_finite_features_are_an_error(tmp_path):
    path = save_weights(tmp_path / "w.pt", lambda state: state | {"bn1.bias": torch.full((64,), torch.nan)})
    with pytest.raises(EncoderError, match=r"non-finite features.*--weights") as error:
        build("resnet18", path)
    line(error)


def test_random_weights_depend_on_the_seed_alone(resnet):
    state = torch.get_rng_state()
    for encoder in (resnet, build("resnet18", "random", seed=1)):
        assert from_recipe(encoder.recipe).weights == encoder.weights
    assert encoder.weights.sha256 != resnet.weights.sha256
    assert torch.equal(torch.get_rng_state(), state)
    recipe = {**resnet.recipe, "weights": {"name": "random", "sha256": "0" * 64, "seed": 0}}
    with pytest.raises(EncoderError, match="random: not the weights of the features"):
        from_recipe(recipe)


@pytest.mark.parametrize("arguments", [{"name": "resnet9"}, {"name": "resnet18", "transform": "other"}])
def test_unknown_names_are_refused(arguments):
    with pytest.raises(EncoderError, match="choose one of"):
        build(**arguments)


# Recipes


def test_a_recipe_makes_the_same_encoder(tmp_path):
    encoder = build("resnet18", save_weights(tmp_path / "w.pt"), transform="caffe")
    again = from_recipe(encoder.recipe)
    assert again.recipe == encoder.recipe
    x = torch.stack([again.prepare(picture())])
    assert torch.equal(x[0], encoder.prepare(picture()))
    assert torch.equal(encoder.encode(x).vectors, again.encode(x).vectors)


def test_weights_are_found_by_their_content(tmp_path, monkeypatch):
    path = save_weights(tmp_path / "w.pt")
    recipe = build("resnet18", path).recipe
    near = tmp_path / "near"
    near.mkdir()
    save_weights(path, seed=2)  # other weights at the same path
    with pytest.raises(EncoderError, match=r"the weights of resnet18, w.pt \(SHA-256 \w{12}...\), are not found") as e:
        from_recipe(recipe, near=[near])
    assert "--weights" in line(e)
    with pytest.raises(EncoderError, match="not the weights of the features"):
        from_recipe(recipe, weights=path)
    save_weights(near / "w.pt")
    assert from_recipe(recipe, near=[near]).weights.sha256 == recipe["weights"]["sha256"]
    moved = (near / "w.pt").rename(near / "another name.pt")
    assert from_recipe(recipe, weights=moved).weights.sha256 == recipe["weights"]["sha256"]
    monkeypatch.setenv("HOME", str(near))
    monkeypatch.setenv("USERPROFILE", str(near))
    recipe["weights"] |= {"path": "~/another name.pt"}
    assert from_recipe(recipe).weights.sha256 == recipe["weights"]["sha256"]


TRANSFORM = {"resize": 256, "crop": 224, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    ("weights", "transform", "reason"),
    [
        ({"x": 1}, {}, "TypeError"),
        ({"name": "../w.pt"}, {}, r"name of its weights '\.\./w\.pt'"),
        ({"name": "a\\w.pt"}, {}, "name of its weights"),
        ({"path": 3}, {}, "path of its weights is 3"),
        ({"seed": -1}, {}, "with seed -1"),
        ({}, {"resize": 10**9}, "resize 1000000000 and crop 224; the maximum is 4096 pixels"),
        ({}, {"crop": 300}, "crop 300"),
        ({}, {"resize": 256.5}, r"resize 256\.5"),
        ({}, {"mean": [0.5]}, "not three numbers"),
        ({}, {"mean": [10**400, 0, 0]}, "not three numbers below a million"),
        ({"name": "\x1b[31mw"}, {}, "name of its weights"),
        ({}, {"std": [0.5, 0.5, 0]}, "std"),
        ({}, {"channels": "GBR"}, "channels 'GBR'"),
    ],
)
def test_invalid_recipes_are_refused(weights, transform, reason):
    """A recipe comes with a checkpoint, which may be from an untrusted source."""
    recipe = {"encoder": "resnet18", "weights": {"name": "w.pt"} | weights, "transform": TRANSFORM | transform}
    with pytest.raises(EncoderError, match=f"not a recipe of features: .*{reason}"):
        from_recipe(recipe)


@pytest.mark.parametrize("path", ["//host/share/w.pt", r"\\host\share\w.pt", "/dev/zero", "w\0.pt"])
def test_weights_are_not_read_from_another_machine(path, monkeypatch):
    """Windows would send it the name of the user."""
    examined: list[Path] = []
    is_file = Path.is_file

    def noted(path: Path) -> bool:
        examined.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", noted)
    recipe = {"encoder": "resnet18", "weights": {"name": "w.pt", "path": path}, "transform": TRANSFORM}
    with pytest.raises(EncoderError, match="are not found; name their file with --weights"):
        from_recipe(recipe)
    assert not any("host" in str(path) for path in examined)


@pytest.mark.parametrize("name", ["__class__", "mro", "__members__"])
def test_a_recipe_does_not_reach_other_attributes(name):
    recipe = {"encoder": "resnet18", "weights": {"name": name, "sha256": "0" * 64}, "transform": TRANSFORM}
    with pytest.raises(EncoderError, match=f"torchvision has no weights {name} of resnet18"):
        from_recipe(recipe)


def test_other_layers_are_refused(resnet):
    recipe = resnet.recipe | {"layers": {"vector": "mean over the positions of layer3", "grid": "layer3"}}
    with pytest.raises(EncoderError, match="its layers of resnet18 are not those of this version"):
        from_recipe(recipe)


def test_a_picture_that_the_network_does_not_take_is_refused():
    recipe = build("efficientnet_lite0", "random").recipe
    assert from_recipe(recipe).blank.vectors.shape == (1, 1280)
    with pytest.raises(EncoderError, match="resnet18 does not take pictures of 224 x 224 pixels: a reason"):
        Encoder(Refusing(), torch.nn.Linear(1, 1), Weights("random"), IMAGENET, torch.device("cpu"))


class Refusing(TorchvisionBackbone):
    def __init__(self) -> None:
        super().__init__("resnet18", "layer4")

    def features(self, model: torch.nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("a reason")
