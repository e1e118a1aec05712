"""The PCA of cs231n's features, recovered from both kinds of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch

from tests.helpers.photo_folder import error_of, stored
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.data.projection import Projection
from torch_caption.encoders import pca, registry
from torch_caption.encoders.torchvision_backbones import TorchvisionBackbone
from torch_caption.encoders.weights import file_sha256


@pytest.fixture
def course(coco_directory: Callable[..., Path]) -> Path:
    """A directory like cs231n's, with the full features and the projected ones."""
    directory = coco_directory(images={"train": 60, "val": 9}, kinds=("",))
    generator = torch.Generator().manual_seed(0)
    moments = pca.Moments(3)
    moments.update(torch.randn(40, 3, generator=generator) + 4)
    basis = pca.fit(moments, 2, "--pca")
    for split in ("train", "val"):
        x = torch.from_numpy(stored(directory / f"{split}2014_vgg16_fc7.h5"))
        with h5py.File(directory / f"{split}2014_vgg16_fc7_pca.h5", "w") as file:
            file["features"] = basis(x).numpy()
    return directory


def test_the_pca_is_recovered_into_a_manifest(course, capsys):
    assert main(["prepare", "--recover-pca", str(course)]) == 0
    assert "3 -> 2, recovered from 60 rows" in capsys.readouterr().out
    data = open_data(course)
    recipe = data.recipe
    assert (recipe["encoder"], recipe["features"]) == ("vgg16", "vgg16_fc7_pca")
    assert recipe["transform"]["channels"] == "BGR"
    assert recipe["weights"]["sha256"] is None
    projection = Projection(recipe["projection"]["mean"], recipe["projection"]["components"])
    x = torch.from_numpy(stored(course / "val2014_vgg16_fc7.h5"))
    torch.testing.assert_close(projection(x), data["val"].features_of(range(9)), rtol=0, atol=1e-5)
    assert error_of(["prepare", "--recover-pca", str(course)], capsys).endswith("has an encoder already, vgg16")


@pytest.mark.parametrize(("transform", "channels"), [("auto", "BGR"), ("imagenet", "RGB")])
def test_weights_are_recorded_with_the_transform_of_caffe_or_the_one_given(
    course, tmp_path, monkeypatch, transform, channels
):
    """With resnet18 in place of VGG-16, which has half a gigabyte."""
    small, weights = TorchvisionBackbone("resnet18", "layer4"), tmp_path / "caffe.pt"
    torch.save(small.model().state_dict(), weights)
    monkeypatch.setitem(registry.BACKBONES, "vgg16", small)
    assert main(["prepare", "--recover-pca", str(course), "--weights", str(weights), "--transform", transform]) == 0
    recipe = open_data(course).recipe
    assert recipe["transform"]["channels"] == channels
    assert recipe["weights"]["sha256"] == file_sha256(weights)


def test_both_kinds_of_features_are_required(course, capsys):
    (course / "val2014_vgg16_fc7.h5").unlink()
    assert "val2014_vgg16_fc7.h5: no such file" in error_of(["prepare", "--recover-pca", str(course)], capsys)
    assert not (course / "manifest.json").exists()
