"""Runs on scenes and on photographs, which the tests of photographs share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.training import SMALL
from torch_caption.config import TrainConfig
from torch_caption.prepare import prepare
from torch_caption.prepare.prepare import PrepareConfig
from torch_caption.scenes import dataset as scenes
from torch_caption.training.trainer import fit

SIZES = {"train": 60, "val": 6, "test": 6, "novel": 4}


@pytest.fixture(scope="session")
def scenes_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scenes, and a run of one epoch on them."""
    folder = tmp_path_factory.mktemp("scenes")
    directory = scenes.ensure(folder, sizes=SIZES, progress=False)
    return directory, fit(TrainConfig(data=str(directory), out=folder / "runs", lr=0.02, **SMALL))


@pytest.fixture(scope="session")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory made of a dozen small photographs, and a run on its projected vectors."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    images, annotations = [], []
    for k in range(12):
        small = np.random.default_rng(k).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(small).resize((70, 50)).save(folder / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png"})
        annotations.append({"image_id": k, "caption": f"a photograph of {'red' if k % 2 else 'blue'} things"})
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    config = PrepareConfig(
        images=(str(folder / "images"),), annotations=(str(path),), out=folder / "data", encoder="resnet18",
        weights="random", pca=5, min_count=1, val_share=0.25, batch_size=4, device="cpu",
    )  # fmt: skip
    prepare.prepare(config)
    return folder / "data", fit(TrainConfig(data=str(folder / "data"), out=folder / "runs", lr=0.02, **SMALL))
