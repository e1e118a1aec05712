"""Photographs a second: `prepare` and `sample`, against a plain loop of torchvision or timm over a DataLoader."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.options import Options
from benchmarks.tables import Column, Table
from benchmarks.timing import QUICK, Contender, Effort, race
from benchmarks.workload import word_to_idx
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.encoders.encoder import Encoder, build
from torch_caption.encoders.extractor import feature_extractor
from torch_caption.encoders.registry import backbone
from torch_caption.encoders.stream import BATCH, stream
from torch_caption.encoders.torchvision_backbones import torchvision
from torch_caption.inference.captions import caption_images
from torch_caption.inference.photographs import read
from torch_caption.io.images import load_image
from torch_caption.model.captioner import CaptioningRNN

SIZE = 500, 375
COLUMNS = (
    *(Column("encoder"), Column("what"), Column("photographs/s", ",.1f"), Column("over the plain loop", ".2f")),
    *(Column("encoder's share of the time", ".0%"), Column("runs", "d")),
)
NETWORK, PREPARE, SAMPLE, PLAIN = "the network alone", "prepare", "sample, with captions", "plain loop"
NOTES = (
    f"JPEGs of {SIZE[0]} x {SIZE[1]} pixels, batches of {BATCH}, the same random weights in all; grids are not kept",
    "prepare and sample check each file first, and read with two threads; the plain loop reads with two processes of a "
    "DataLoader, which it starts once",
)


def tables(options: Options) -> Iterator[Table]:
    count, names = (BATCH, ("resnet18",)) if options.quick else (8 * BATCH, ("mobilenet_v2", "efficientnet_lite2"))
    effort = QUICK if options.quick else Effort(20 * options.seconds, least=3, most=5, patience=120)
    with tempfile.TemporaryDirectory() as folder:
        paths = [photograph(Path(folder) / f"{number}.jpg", number) for number in range(count)]
        rows = [row for name in names for row in measure(name, paths, effort)]
    yield Table("photographs", f"{count} photographs", COLUMNS, tuple(rows), NOTES)


def photograph(path: Path, seed: int) -> Path:
    """A JPEG with about the detail of a photograph."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1] // 5, SIZE[0] // 5, 3), np.uint8)
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def measure(name: str, paths: list[Path], effort: Effort) -> Iterator[tuple[Any, ...]]:
    """The rows of one encoder. All compute the same vectors, except `sample`, which goes on to captions."""
    weights = paths[0].with_name(f"{name}.pt")
    torch.save(backbone(name).model().state_dict(), weights)
    encoder = build(name, weights)
    prepared = [encoder.prepare(load_image(path)) for path in paths]

    def network() -> Tensor:
        starts = range(0, len(prepared), BATCH)
        return torch.cat([encoder.encode(torch.stack(prepared[k : k + BATCH]), grids=False).vectors for k in starts])

    work: dict[str, Callable[[], Tensor | None]] = {
        PREPARE: lambda: streamed(encoder, paths),
        SAMPLE: sampled(encoder, paths),
        NETWORK: network,
    }
    if name != "efficientnet_lite2" or find_spec("timm"):
        work[PLAIN] = plain_loop(encoder, weights, paths)
    expected = network()

    def check(contender: Contender, result: Any) -> None:
        if result is not None:
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))

    times = race([Contender(label, run) for label, run in work.items()], effort, check=check, label=name)
    seconds = {label: spent.median for (label, _), spent in times.items()}
    for (label, _), spent in times.items():
        over = seconds[PLAIN] / spent.median if PLAIN in seconds and label in (PREPARE, SAMPLE) else None
        yield name, label, len(paths) / spent.median, over, seconds[NETWORK] / spent.median, len(spent.seconds)


def streamed(encoder: Encoder, paths: list[Path]) -> Tensor:
    """As `prepare` computes them."""
    batches = stream(paths, lambda path: encoder.prepare(load_image(path)))
    return torch.cat([encoder.encode(torch.stack([*b.read.values()]), grids=False).vectors for b in batches])


def sampled(encoder: Encoder, paths: list[Path]) -> Callable[[], None]:
    """As `sample` captions them, with a model of random weights."""
    extractor = feature_extractor(encoder.recipe | {"features": "vgg16_fc7"})
    width = encoder.encode(encoder.prepare(load_image(paths[0]))[None]).vectors.shape[1]
    words = word_to_idx(2000)
    model = CaptioningRNN(words, width, wordvec_dim=256, hidden_dim=512, cell_type="lstm").eval()
    vocabulary = Vocabulary(tuple(words))

    def run() -> None:
        found = read(paths, [extractor], vocabulary, failed=lambda name, error: None)
        assert found is not None
        caption_images(model, found, range(found.num_images))

    return run


class Pictures(Dataset[Tensor]):
    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as picture:
            return self._transform(picture.convert("RGB"))


def plain_loop(encoder: Encoder, weights: Path, paths: list[Path]) -> Callable[[], Tensor]:
    """The library's own model and transform, in its usual memory format."""
    model, transform = library(encoder, torch.load(weights))
    loader = DataLoader(Pictures(paths, transform), batch_size=BATCH, num_workers=2, persistent_workers=True)

    def run() -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(pictures) for pictures in loader])

    return run


def library(encoder: Encoder, state: dict[str, Tensor]) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """The same network from timm or torchvision, with the weights `state`, and its transform."""
    vision = torchvision()
    own = encoder.transform
    transforms = vision.transforms
    transform = transforms.Compose(
        [
            transforms.Resize(own.resize, transforms.InterpolationMode(own.interpolation)),
            *(transforms.CenterCrop(own.crop), transforms.ToTensor(), transforms.Normalize(own.mean, own.std)),
        ]
    )
    if encoder.name != "efficientnet_lite2":
        model = vision.models.get_model(encoder.name, weights=None)
        setattr(model, [*model._modules][-1], nn.Identity())  # the classifier
        model.load_state_dict(state, strict=False)
    else:
        import timm

        model = timm.create_model("tf_efficientnet_lite2", num_classes=0)
        renamed = dict(zip(model.state_dict(), state.values(), strict=True))  # in the same order
        model.load_state_dict(renamed)
    return model.eval(), transform
