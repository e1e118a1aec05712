"""Recipes of features; tests/inference/test_photographs.py applies them to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import photo_folder
from tests.helpers.tiny_data import write_tiny
from torch_caption.data.dataset import open_data
from torch_caption.data.projection import Projection
from torch_caption.data.recipe import record
from torch_caption.encoders import extractor as recipes
from torch_caption.encoders.encoder import Encoded
from torch_caption.encoders.registry import BACKBONES
from torch_caption.encoders.torchvision_backbones import torchvision
from torch_caption.encoders.transform import IMAGENET, Transform
from torch_caption.errors import DataError
from torch_caption.io.images import load_image
from torch_caption.prepare.prepare import prepare


@pytest.mark.parametrize("size", [(90, 60), (61, 90), (64, 64), (400, 300)])
@pytest.mark.parametrize("transform", [IMAGENET, Transform(40, 40, (0.0,) * 3, (1.0,) * 3)])
def test_the_visible_part_of_a_picture_is_what_the_transform_keeps(size, transform):
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    picture = Image.fromarray(np.stack([x, y, x], -1).round().astype(np.uint8))
    kept = transform(picture).permute(1, 2, 0).numpy() * transform.std + transform.mean
    seen = recipes.visible({"transform": {"resize": transform.resize, "crop": transform.crop}}, picture)
    assert abs(seen.size[0] - seen.size[1]) <= 1
    again = np.asarray(seen.resize((transform.crop, transform.crop), Image.Resampling.BILINEAR)) / 255
    assert np.abs(again - kept).max() < 0.03  # a pixel of the smallest picture is 0.016
    assert recipes.visible({"transform": "none"}, picture) is picture  # as of a scene


FAST = ("efficientnet_lite0", "mobilenet_v2")
EVERY = [*BACKBONES, "timm:resnet18", "timm:vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.exhaustive) for name in EVERY]
)
def test_features_of_a_new_photograph_are_those_of_its_row(name, tmp_path):
    """For every encoder: what `prepare` writes is what `sample` computes from the recipe."""
    if name.startswith("timm:"):
        torchvision()
        pytest.importorskip("timm")
    photos = photo_folder.write(tmp_path)
    annotations = (f"train={photos.annotations['val']}",)
    prepare(
        photos.config(tmp_path / "out", encoder=name, annotations=annotations, grid=True, grid_dtype="float32", pca=2)
    )
    for grids in (False, True):
        data = open_data(tmp_path / "out", pca=False, grids=grids)
        split, extractor = data["train"], recipes.feature_extractor(data.recipe)
        prepared = [extractor.prepare(load_image(split.image_path(row))) for row in range(split.num_images)]
        made, stored = extractor.make(prepared), split.features_of(range(split.num_images))
        assert made.shape == stored.shape
        assert made.dim() == (4 if grids else 2)
        torch.testing.assert_close(made, stored, rtol=0, atol=1e-5 * float(stored.abs().max()))


def test_a_recorded_recipe_has_no_path_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    weights = {"name": "w.pt", "sha256": "0" * 64, "path": str(tmp_path / "models" / "w.pt"), "seed": None}
    manifest = {
        "encoder": "vgg16",
        "weights": weights,
        "images": str(tmp_path / "photographs"),
        "annotations": [str(tmp_path / "captions.json")],
        "notes": str(tmp_path),
    }
    kept = record(tmp_path, manifest, tmp_path / "train2014_vgg16_fc7.h5")
    assert kept == {"encoder": "vgg16", "weights": weights | {"path": "~/models/w.pt"}, "features": "vgg16_fc7"}
    assert manifest["weights"] is weights  # as it was
    assert str(tmp_path) not in str(kept)


@pytest.mark.parametrize("entries", [{"encoder": ["vgg16"]}, {"features": {}}])
def test_a_recipe_is_recognised(entries):
    recipe = {"encoder": "vgg16", "features": "vgg16_fc7"}
    assert recipes.is_one(recipe)
    assert not recipes.is_one(recipe | entries)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"mean": torch.ones(3), "components": [1]}, "not a projection"),
        (
            {"mean": torch.ones(3), "components": torch.ones(4, 2)},
            r"a mean of shape \(3,\) with components of shape \(4, 2\)",
        ),
    ],
)
def test_an_invalid_projection_is_refused(arrays, reason):
    with pytest.raises(DataError, match=reason):
        recipes._projection(arrays)


def test_a_projection_of_another_input_width_is_refused():
    class Stub:
        name = "vgg16"

        def encode(self, pictures: torch.Tensor, *, grids: bool) -> Encoded:
            return Encoded(torch.ones(len(pictures), 5), None)

    extractor = recipes._Photographs(Stub(), False, Projection(torch.zeros(3), torch.ones(3, 2)), False)
    with pytest.raises(DataError, match="a projection of width 3, but vgg16 makes 5"):
        extractor.make([torch.ones(3, 4, 4)])
    extractor = recipes._Photographs(Stub(), False, Projection(torch.zeros(5), torch.ones(5, 2)), False)
    assert torch.equal(extractor.make([torch.ones(3, 4, 4)]), torch.full((1, 2), 5.0))


@pytest.mark.parametrize(("resize", "crop"), [("x", 3), (-1, 1e308), (256, 10**400), (3, 4), (True, True)])
def test_invalid_sizes_of_a_transform_are_refused(resize, crop):
    with pytest.raises(DataError, match="transform has resize"):
        recipes.visible({"transform": {"resize": resize, "crop": crop}}, Image.new("RGB", (4, 4)))


def test_a_projection_of_another_output_width_or_without_a_name_is_refused(tmp_path):
    directory = write_tiny(tmp_path / "tiny")
    for file in directory.glob("*_fc7.h5"):
        file.rename(file.with_name(file.name.replace("_fc7", "_fc7_pca")))
    with pytest.raises(DataError, match=r"manifest\.json: projections names ''"):
        record(directory, {"projections": {"vector": ""}}, directory / "train2014_vgg16_fc7_pca.h5")
    (directory / "manifest.json").write_text('{"projections": {"vector": "pca.npz"}}', encoding="utf-8")
    Projection(torch.zeros(20), torch.zeros(20, 5)).save(directory / "pca.npz")
    with pytest.raises(DataError, match=r"manifest\.json: its projection of vgg16_fc7_pca gives 5 .* have 8"):
        open_data(directory)
    Projection(torch.zeros(20), torch.zeros(20, 8)).save(directory / "pca.npz")
    assert open_data(directory).recipe["projection"]["components"].shape == (20, 8)
