"""Features of photographs are those of training, wherever their recipe is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from tests.helpers.training import SMALL
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli import sample as sampling
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.data.recipe import record
from torch_caption.encoders import extractor as recipes
from torch_caption.inference import photographs
from torch_caption.inference.load import load
from torch_caption.prepare import prepare
from torch_caption.prepare.prepare import PrepareConfig
from torch_caption.training.trainer import fit


def made(run: Path, sources: list[str], **options: Any) -> photographs.Photographs:
    """The features that `sample` makes of photographs."""
    config = sampling.SampleConfig(photographs=tuple(sources), checkpoint=run, device="cpu", **options)
    captioner = load(run, device="cpu", data=config.data, encoder_weights=config.weights)
    split = sampling._photographs(config, captioner).split
    assert isinstance(split, photographs.Photographs)
    return split


def test_features_of_photographs_are_those_of_training(photo_run: tuple[Path, Path]) -> None:
    directory, run = photo_run
    data = open_data(directory)
    for split in data.splits.values():
        idxs = [*range(split.num_images)]
        ours = made(run, [str(split.image_path(idx)) for idx in idxs]).features_of(idxs)
        theirs = split.features_of(idxs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_features_of_scenes_are_those_of_training(scenes_run: tuple[Path, Path]) -> None:
    directory, run = scenes_run
    split = open_data(directory)["test"]
    idxs = [*range(split.num_images)]
    assert torch.equal(
        made(run, [str(split.image_path(idx)) for idx in idxs]).features_of(idxs), split.features_of(idxs)
    )


def test_batches_of_photographs_give_the_same_features(
    photo_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, run = photo_run
    names = [str(directory.parent / "images" / f"{k}.png") for k in range(12)]
    whole = made(run, names).features_of(range(12))
    monkeypatch.setattr(photographs, "BATCH", 5)
    pieces = made(run, names).features_of(range(12))
    torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_the_checkpoint_needs_no_data_directory(photo_run: tuple[Path, Path], tmp_path: Path) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    checkpoints.save(tmp_path / "best.safetensors", saved)
    assert saved.manifest["projection"]["components"].shape == (512, 5)
    name = str(directory.parent / "images" / "0.png")
    for path in directory.iterdir():
        path.rename(path.with_name(f"hidden-{path.name}"))
    try:
        assert made(tmp_path, [name]).feature_dim == 5
    finally:
        for path in [*directory.iterdir()]:
            path.rename(path.with_name(path.name.removeprefix("hidden-")))


def test_the_recipe_may_come_from_a_data_directory(photo_run: tuple[Path, Path], tmp_path: Path) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    saved.manifest = {}
    checkpoints.save(tmp_path / "best.safetensors", saved)
    name = str(directory.parent / "images" / "0.png")
    ours = made(tmp_path, [name], data=str(directory)).features_of([0])
    assert torch.equal(ours, made(run, [name]).features_of([0]))


@pytest.mark.exhaustive
@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["vgg16_fc7_pca", "vgg16_fc7", "grid"])
def test_features_of_real_photographs_are_those_of_training(kind: str, shared_data: Path, tmp_path: Path) -> None:
    """`sample` makes the features that `prepare` wrote."""
    folder = shared_data / "flickr8k"
    content = json.loads((folder / "captions_val.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:40]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in known]
    (tmp_path / "captions.json").write_text(json.dumps(content), encoding="utf-8")
    out = tmp_path / "data"
    config = PrepareConfig(
        images=(str(folder / "images"),), annotations=(str(tmp_path / "captions.json"),), out=out,
        encoder="mobilenet_v2", weights=str(shared_data / "weights" / "mobilenet_v2.pt"), pca=16, grid=True,
        grid_pca=64, device="cpu",
    )  # fmt: skip
    prepare.prepare(config)
    data = open_data(out, pca=kind == "vgg16_fc7_pca")
    file = out / f"train2014_{kind}.h5"
    extractor = recipes.feature_extractor(record(out, data.manifest, file), device="cpu")
    names = [data["train"].image_path(idx) for idx in range(data["train"].num_images)]
    found = photographs.read(
        [str(name) for name in names], [extractor], data.vocabulary, failed=lambda source, _: pytest.fail(source)
    )
    ours = found.features_of(range(len(names)))
    with h5py.File(file) as content:
        theirs = torch.from_numpy(content["features"][()])
    scale = float(theirs.abs().max())
    if kind == "grid":
        assert theirs.dtype == torch.float16
        assert (ours != theirs).float().mean() < 0.01  # differ by rounding
        torch.testing.assert_close(ours, theirs.float(), rtol=2**-10, atol=1e-4 * scale)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
    cell_type = "attention" if kind == "grid" else "lstm"
    pca = "yes" if kind == "vgg16_fc7_pca" else "no"
    run = fit(TrainConfig(data=str(out), out=tmp_path / "runs", pca_features=pca, cell_type=cell_type, **SMALL))
    assert torch.equal(made(run, [str(name) for name in names]).features_of(range(len(names))), ours)
