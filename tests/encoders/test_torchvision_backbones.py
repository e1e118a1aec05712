"""torchvision's models: layers, transforms, weights."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.resnet_weights import picture, plain_model, save_weights, whole_forward
from torch_caption.encoders import registry, torchvision_backbones
from torch_caption.encoders.encoder import Encoder, build, from_recipe
from torch_caption.encoders.torchvision_backbones import torchvision
from torch_caption.encoders.weights import file_sha256
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
NAMES = [name if name in SMALL else pytest.param(name, marks=pytest.mark.exhaustive) for name in SHAPES]


def of_the_same_weights(encoder: Encoder) -> nn.Module:
    """torchvision's own model with the weights of the encoder, except in the layers that the encoder does not use."""
    model = plain_model(encoder.name)
    model.load_state_dict(encoder._model.state_dict(), strict=False, assign=True)
    return model


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


@pytest.mark.parametrize("name", NAMES)
def test_transforms_are_torchvisions_own_bit_for_bit(name):
    for entry in torchvision().models.get_model_weights(name):
        ours = registry.backbone(name).transform(entry.name)
        for size in ((300, 260), (97, 412), (224, 224), (16, 250)):
            theirs = entry.transforms()(picture(*size))
            assert torch.equal(ours(picture(*size)), theirs)


# torchvision's own weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, empty, and a server with the weights of seed 1."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = save_weights(tmp_path / "published.pt")
    monkeypatch.setattr(torchvision_backbones, "_prefix", lambda entry: file_sha256(weights)[:8])

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
    assert "(TORCH_HOME names another folder), or name one with --weights" in str(caught.value)


@pytest.mark.exhaustive
def test_torchvision_is_imported_on_use_and_its_faults_are_named(tmp_path):
    (tmp_path / "torchvision").mkdir()
    fault = "raise RuntimeError('operator torchvision::roi_align does not exist')"
    (tmp_path / "torchvision" / "__init__.py").write_text(fault, encoding="utf-8")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch_caption.cli.sample
from torch_caption.encoders.encoder import build
from torch_caption.errors import EncoderError
assert "torchvision" not in sys.modules
try:
    build("resnet18", "random")
except EncoderError as error:
    assert "importing it fails: operator torchvision::roi_align" in str(error), error
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


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
