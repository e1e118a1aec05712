"""Photographs to features: layers, transforms, weights, recipes, streams."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from torch_caption.encoders import torchvision_encoder as features
from torch_caption.encoders.torchvision_encoder import BACKBONES, CAFFE, IMAGENET, Encoder, build, from_recipe, stream
from torch_caption.errors import EncoderError
from torch_caption.io.images import load_image

SHAPES = {  # of vectors and grids
    "vgg16": ((4096,), (512, 7, 7)),
    "resnet18": ((512,), (512, 7, 7)),
    "resnet50": ((2048,), (2048, 7, 7)),
    "resnet101": ((2048,), (2048, 7, 7)),
    "mobilenet_v2": ((1280,), (1280, 7, 7)),
    "regnet_y_400mf": ((440,), (440, 7, 7)),
    "vit_b_16": ((768,), (768, 14, 14)),
}


SMALL = ("resnet18", "mobilenet_v2")
NAMES = [name if name in SMALL else pytest.param(name, marks=pytest.mark.exhaustive) for name in BACKBONES]


def plain_model(name: str, seed: int = 0) -> nn.Module:
    """torchvision's own model, initialised as by `build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return features._torchvision().models.get_model(name, weights=None).eval()


def of_the_same_weights(encoder: Encoder) -> nn.Module:
    """torchvision's own model with the weights of the encoder, except in the layers that the encoder does not use."""
    model = plain_model(encoder.name)
    model.load_state_dict(encoder._model.state_dict(), strict=False, assign=True)
    return model


def whole_forward(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """The vector by the model's own forward without its last layer."""
    if name == "vgg16":
        model.classifier = model.classifier[:5]
    else:
        *_, (head, _) = model.named_children()
        setattr(model, head, nn.Identity())
    with torch.inference_mode():
        return model(x)


def picture(width: int = 300, height: int = 260, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def line(error: pytest.ExceptionInfo[EncoderError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def resnet() -> Encoder:
    return build("resnet18", "random")


# Layers


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    """To 1e-4 of the greatest: random weights make small features."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_those_of_the_whole_model(name):
    encoder = build(name, "random")
    model = of_the_same_weights(encoder)
    x = torch.stack([encoder.prepare(picture(seed=seed)) for seed in range(2)])
    encoded = encoder.encode(x)
    assert (encoded.vectors.shape[1:], encoded.grids.shape[1:]) == SHAPES[name]
    assert encoded.vectors.dtype == encoded.grids.dtype == torch.float32
    expected = whole_forward(name, model, x)
    assert_near(encoded.vectors, expected)
    with pytest.raises(AssertionError):
        assert_near(expected[:1], expected[1:])
    if name == "vgg16":
        assert encoded.vectors.min() == 0  # fc7 is taken after its ReLU
        assert encoded.vectors.max() > 0
    elif name == "vit_b_16":  # tokens become a grid row by row
        with torch.inference_mode():
            tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], 1))
        assert_near(encoded.grids[:, :, 2, 5], tokens[:, 1 + 2 * 14 + 5])
    else:
        assert_near(encoded.grids.mean((2, 3)), expected)
    assert encoder.encode(x[:1], grids=False).grids is None


# Transforms


@pytest.mark.parametrize("name", NAMES)
def test_transforms_are_torchvisions_own_bit_for_bit(name):
    for entry in features._torchvision().models.get_model_weights(name):
        ours = features._transform(entry, "auto")
        for size in ((300, 260), (97, 412), (224, 224), (16, 250)):
            theirs = entry.transforms()(picture(*size))
            assert torch.equal(ours(picture(*size)), theirs)


def test_caffes_transform_is_blue_green_red_minus_the_mean():
    x = CAFFE(picture())
    rgb = IMAGENET(picture()) * torch.tensor(IMAGENET.std).view(3, 1, 1) + torch.tensor(IMAGENET.mean).view(3, 1, 1)
    bgr = 255 * rgb.flip(0) - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    torch.testing.assert_close(x, bgr, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 65_535), (40, 4_000)])
def test_an_extreme_aspect_ratio_is_cropped_before_resizing(size, monkeypatch):
    resized = []
    resize = Image.Image.resize

    def watch(self: Image.Image, size: tuple[int, int], *args: object, **options: object) -> Image.Image:
        resized.append(size)
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watch)
    assert IMAGENET(Image.new("RGB", size, (9, 9, 9))).shape == (3, 224, 224)
    assert [max(size) for size in resized] == [256 * 16]


# Weights


def save_weights(path: Path, change: Callable[[dict[str, Tensor]], object] | None = None, seed: int = 1) -> Path:
    state = plain_model("resnet18", seed).state_dict()
    changed = change(state) if change else None
    torch.save(state if changed is None else changed, path)
    return path


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
    assert encoder.weights.sha256 == features.file_sha256(tmp_path / "w.pt")
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
    encoder = build("resnet18", path)
    with pytest.raises(EncoderError, match=r"non-finite features.*--weights") as error:
        encoder.encode(torch.zeros(1, 3, 224, 224))
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


# torchvision's own weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, empty, and a server with the weights of seed 1."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = save_weights(tmp_path / "published.pt")
    monkeypatch.setattr(features, "_prefix", lambda entry: features.file_sha256(weights)[:8])

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        assert url.startswith("https://download.pytorch.org/models/resnet18-")
        Path(path).write_bytes(weights.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "hub" / "checkpoints"


def test_default_weights_are_downloaded_once_and_verified(cache, monkeypatch):
    encoder = build("resnet18")
    assert encoder.weights.name == "IMAGENET1K_V1"
    assert encoder.weights.path is None
    monkeypatch.delattr(torch.hub, "download_url_to_file")
    assert build("resnet18").weights == encoder.weights
    assert from_recipe(encoder.recipe).weights == encoder.weights
    (file,) = cache.iterdir()
    assert build("resnet18", file).weights == encoder.weights  # recognised by its content
    file.write_bytes(b"half")
    with pytest.raises(EncoderError, match="damaged, its SHA-256 does not match its name; remove it"):
        build("resnet18")


def test_weights_are_not_downloaded_without_a_home(cache, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "~/.cache/torch/hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match="no home folder for the weights; set TORCH_HOME, or name"):
        build("resnet18")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")])
def test_a_failed_download_is_one_line(cache, monkeypatch, error):
    def download(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(
        EncoderError, match=r"the weights of resnet18 were not downloaded \((no route|invalid)"
    ) as caught:
        build("resnet18")
    assert "(TORCH_HOME names another folder), or name one with --weights" in line(caught)


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


# Streams


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path | None]:
    """Seven, of which the second is text and the fifth missing."""
    folder = tmp_path_factory.mktemp("photographs")
    paths: list[Path | None] = [folder / f"{number}.png" for number in range(7)]
    for place, path in enumerate(paths):
        picture(60, 50, seed=place).save(path)
    paths[1].write_text("a dog", encoding="utf-8")
    paths[4] = None
    return paths


def test_a_stream_reports_and_omits_bad_photographs(resnet, photographs):
    batches = list(stream(resnet, photographs, batch_size=3))
    assert [batch.stop for batch in batches] == [3, 6, 7]
    assert [batch.kept for batch in batches] == [[0, 2], [3, 5], [6]]
    failed = {place: reason for batch in batches for place, reason in batch.failed.items()}
    assert failed == {1: "not a picture in JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC format", 4: "no such file"}
    for batch in batches:
        for row, place in enumerate(batch.kept):
            x = torch.stack([resnet.prepare(load_image(photographs[place]))])
            torch.testing.assert_close(batch.encoded.vectors[row], resnet.encode(x).vectors[0], rtol=1e-4, atol=1e-5)


def test_a_stream_reads_at_most_two_batches_ahead(resnet, photographs, monkeypatch):
    begun, lock = [0], threading.Lock()

    def count(path: Path, **options: object) -> Image.Image:
        with lock:
            begun[0] += 1
        return picture(30, 30)

    monkeypatch.setattr(features, "load_image", count)
    batches = stream(resnet, [photographs[0]] * 40, batch_size=2, grids=False)
    for done, _ in enumerate(batches, 1):
        assert begun[0] <= 2 * (done + 2)
        if done == 5:
            break
    batches.close()
    assert begun[0] <= 14


# torchvision


@pytest.mark.exhaustive
def test_torchvision_is_imported_on_use_and_its_faults_are_named(tmp_path):
    (tmp_path / "torchvision").mkdir()
    fault = "raise RuntimeError('operator torchvision::roi_align does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(fault, encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch_caption.cli.sample
from torch_caption.encoders.torchvision_encoder import EncoderError, build
assert "torchvision" not in sys.modules
try:
    build("resnet18", "random")
except EncoderError as error:
    assert "importing it fails: operator torchvision::roi_align" in str(error), error
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


# Real photographs


@pytest.mark.exhaustive
@pytest.mark.realdata
def test_features_of_real_photographs_are_near_the_stored_ones(shared_data):
    """The photographs were saved again since."""
    import h5py

    folder = shared_data / "flickr8k_cs231n"
    encoder = build("mobilenet_v2", shared_data / "weights" / "mobilenet_v2.pt")
    names = (folder / "train2014_images.txt").read_text(encoding="utf-8").split()[:16]
    basis = np.load(folder / "pca.npz")
    with h5py.File(folder / "train2014_vgg16_fc7_pca.h5") as file:
        kept = file["features"][: len(names)]
    pictures = torch.stack([encoder.prepare(load_image(shared_data / "flickr8k" / "images" / name)) for name in names])
    ours = (encoder.encode(pictures).vectors.numpy() - basis["mean"]) @ basis["components"]
    cosines = (ours @ kept.T) / np.outer(np.linalg.norm(ours, axis=1), np.linalg.norm(kept, axis=1))
    assert np.diag(cosines).mean() > 0.9
    assert (cosines.argmax(1) == np.arange(len(names))).all()
