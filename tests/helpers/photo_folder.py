"""Small photographs with captions in COCO's format, and the arguments of `prepare` for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from torch_caption.__main__ import main
from torch_caption.prepare.prepare import PrepareConfig

SPLITS = {"train": 13, "val": 5}
SENTENCES = ("A dog runs.", "The brown dog, it runs fast!", "a dog", "a very long sentence about this dog " * 3)


@dataclass
class Photos:
    """Photographs and annotations."""

    images: Path
    annotations: dict[str, Path]

    def arguments(self, out: Path, *more: str) -> list[str]:
        files = [str(path) for path in self.annotations.values()]
        args = ["prepare", "--images", str(self.images), "--annotations", *files, "--out", str(out)]
        args += ["--encoder", "resnet18", "--weights", "random", "--min-count", "2", "--batch-size", "4"]
        return [*args, "--device", "cpu", *more]

    def config(self, out: Path, **changes: Any) -> PrepareConfig:
        config = PrepareConfig(
            images=(str(self.images),),
            annotations=tuple(str(path) for path in self.annotations.values()),
            out=out,
            encoder="resnet18",
            weights="random",
            min_count=2,
            batch_size=4,
            device="cpu",
        )
        return replace(config, **changes)


def write(tmp_path: Path) -> Photos:
    images = tmp_path / "images"
    images.mkdir()
    annotations = {}
    for first, (split, count) in enumerate(SPLITS.items()):
        entries, captions = [], []
        for k in range(count):
            identity = 100 * first + k
            entries.append({"id": identity, "file_name": f"{split}_{k}.png", "flickr_url": f"http://x.example/{k}"})
            texts = [f"{sentence} {k}" if number == 2 else sentence for number, sentence in enumerate(SENTENCES)]
            captions += [{"id": 4 * k + n, "image_id": identity, "caption": text} for n, text in enumerate(texts)]
            small = np.random.default_rng(identity).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(small).resize((48, 40)).save(images / f"{split}_{k}.png")
        annotations[split] = tmp_path / f"captions_{split}.json"
        annotations[split].write_text(json.dumps({"images": entries, "annotations": captions}), encoding="utf-8")
    return Photos(images, annotations)


def stored(path: Path, name: str = "features") -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][()]


def error_of(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that fails."""
    assert main(args) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    return last
