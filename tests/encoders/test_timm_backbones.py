"""timm's models: vectors, grids, transforms, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.resnet_weights import picture
from torch_caption.encoders.encoder import build, from_recipe
from torch_caption.errors import EncoderError

pytestmark = pytest.mark.exhaustive  # timm is in requirements-dev.txt
SHAPES = {  # of vectors and grids: of convolutions, of tokens, of windows with the channels last
    "timm:resnet18": ((512,), (512, 7, 7)),
    "timm:mobilenetv3_small_050": ((1024,), (288, 7, 7)),
    "timm:vit_tiny_patch16_224": ((192,), (192, 14, 14)),
    "timm:swin_tiny_patch4_window7_224": ((768,), (768, 7, 7)),
}


@pytest.fixture(scope="module", autouse=True)
def timm():
    from torch_caption.encoders.torchvision_backbones import torchvision

    torchvision()  # as imported by the package, beside a CPU build of torch
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_timms_own(name, timm, tmp_path):
    model = timm.create_model(name.removeprefix("timm:"), num_classes=0).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = build(name, tmp_path / "weights.pt")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    pictures = [picture(*size) for size in ((300, 260), (97, 412), (224, 224), (16, 250))]
    x = torch.stack([encoder.prepare(each) for each in pictures])
    assert torch.equal(x, torch.stack([transform(each) for each in pictures]))
    encoded = encoder.encode(x)
    with torch.inference_mode():
        vectors = model(x)
    torch.testing.assert_close(encoded.vectors, vectors, rtol=0, atol=1e-4 * float(vectors.abs().max()))
    assert (encoded.vectors.shape[1:], encoded.grids.shape[1:]) == SHAPES[name]
    assert from_recipe(encoder.recipe).weights == encoder.weights
    assert "timm" in encoder.versions


def test_weights_from_a_file(tmp_path, timm):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model("resnet18")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = model.eval().forward_head(model.forward_features(x), pre_logits=True)
    for file in ("w.pth", "w.safetensors"):
        encoder = build("timm:resnet18", tmp_path / file)
        torch.testing.assert_close(encoder.encode(x).vectors, expected, rtol=0, atol=1e-4 * float(expected.max()))
        assert encoder.weights.name == file


def hub_folder(folder: Path, timm) -> None:
    """The cache of the model hub as after a download of resnet18."""
    from safetensors.torch import save_file

    repository = folder / "hub" / f"models--timm--resnet18.{timm.get_pretrained_cfg('resnet18').tag}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    torch.manual_seed(1)
    save_file(timm.create_model("resnet18").state_dict(), snapshot / "model.safetensors")


def test_published_weights_are_those_of_the_hub(tmp_path, monkeypatch, timm):
    from huggingface_hub import constants

    hub_folder(tmp_path, timm)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    encoder = build("timm:resnet18")
    tag = timm.get_pretrained_cfg("resnet18").tag
    assert (encoder.weights.name, encoder.weights.path) == (f"resnet18.{tag}", None)
    torch.manual_seed(1)
    assert torch.equal(encoder._model.conv1.weight, timm.create_model("resnet18").conv1.weight)
    again = from_recipe(encoder.recipe)
    assert (again.weights, again.transform) == (encoder.weights, encoder.transform)
    (file,) = tmp_path.rglob("model.safetensors")
    assert from_recipe(encoder.recipe, weights=file).weights.name == file.name  # a copy, on a machine without the hub
    for name in ("resnet50.a1_in1k", "local-dir:x"):
        with pytest.raises(EncoderError, match=f"'{name}' are not weights of timm:resnet18"):
            from_recipe(encoder.recipe | {"weights": {"name": name, "sha256": "0" * 64}})
    file.write_bytes(b"damaged" * 6)
    with pytest.raises(EncoderError, match="the weights of timm:resnet18 were not loaded"):
        build("timm:resnet18")


def test_errors_name_the_model(tmp_path, monkeypatch, timm):
    from huggingface_hub import constants

    with pytest.raises(EncoderError, match=r"has no model 'resnet19'; near: .*resnet18"):
        build("timm:resnet19", "random")
    with pytest.raises(EncoderError, match="Invalid pretrained tag"):
        build("timm:resnet18.bogus", "random")
    with pytest.raises(EncoderError, match="cropped by 'squash'; only the centre is supported"):
        build("timm:dm_nfnet_f0", "random")
    with pytest.raises(EncoderError, match="does not take pictures of 224 x 224 pixels"):
        build("timm:vit_tiny_patch16_384", "random", transform="imagenet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"timm:resnet18 were not loaded .*name a file with --weights"):
        build("timm:resnet18")
