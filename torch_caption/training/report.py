"""The console output of a run: a line per epoch, and at the end results and files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torch_caption import plots
from torch_caption.checkpoints import run_folder as runs
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData, Split
from torch_caption.data.tokenizer import readable
from torch_caption.decoding import DecodingOptions
from torch_caption.errors import TorchCaptionError
from torch_caption.inference.captions import caption_images, captioned_images, some_images
from torch_caption.inference.gallery import draw_gallery
from torch_caption.inference.load import load
from torch_caption.io.exits import one_line
from torch_caption.io.program import typed
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.scenes import dataset as scenes
from torch_caption.training.log import read_log

CURVES, GALLERY = "loss.png", "gallery.png"
SHOWN = 12  # number of pictures in the gallery


def opening(run: Path, config: TrainConfig, data: CocoData, model: CaptioningRNN) -> None:
    """Print data, model and run."""
    train, val = data["train"], data["val"]
    weights = sum(p.numel() for p in model.parameters())
    print(f"data      {data.directory}: {len(train):,} training, {len(val):,} validation captions", flush=True)
    layers = f", {config.num_layers} layers" if config.num_layers > 1 else ""
    positions = f" at {' x '.join(map(str, train.grid))} positions" if train.grid else ""
    print(
        f"model     {config.cell_type}{layers}, H {config.hidden_dim}, W {config.wordvec_dim}, D {train.feature_dim}"
        f"{positions}, V {len(data.vocabulary):,}: {weights:,} weights, gradients by {_by(config)}, "
        f"on {model.device.type}"
    )
    if config.init_from is not None:
        print(f"weights   of {config.init_from}")
    print(f"run       {run}", flush=True)


def warning(line: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def epoch(record: dict[str, Any], config: TrainConfig, *, best: bool) -> None:
    """Print one line: losses in nats per word or rewards, scores of greedy captions."""
    width = len(str(config.epochs))
    parts = [
        f"epoch {record['epoch']:{width}}/{config.epochs}",
        so_far(record),
        f"val {record['val_loss']:.3f} nats per word",
        *(f"{name} {record[name]:.3f}" for name in ("BLEU-4", "CIDEr") if name in record),
        f"{record['seconds']:.0f} s",
    ]
    print("   ".join(parts) + ("   best" if best else ""), flush=True)


def so_far(record: Mapping[str, Any]) -> str:
    """The training loss or rewards, from `Progress.means`."""
    if "reward" in record:
        return f"reward {record['reward']:.3f}"
    return f"train {record['train_loss']:.3f}"


def interrupted(run: Path, step: int) -> None:
    """Print how to resume."""
    named = "" if _is_default(run) else f" {run}"
    print(f"stopped after step {step}, which is saved; `{typed('train')} --resume{named}` continues", flush=True)


def check(data: CocoData) -> None:
    """Raise DataError before training if `closing` cannot evaluate captions of scenes."""
    images = {split.name: split.num_images for split in (*_scene_splits(data), _gallery_split(data))}
    scenes.check(data.directory, data.manifest, images)


def closing(run: Path, config: TrainConfig, data: CocoData, device: torch.device) -> None:
    """Caption with the best weights, evaluate captions of scenes, plot curves and gallery, and print the files.

    An error is only a warning, since training is complete.
    """
    best = load(run / runs.BEST, device=device.type)
    model, progress = best.model, best.checkpoint.progress
    cider = f", CIDEr {progress['best_cider']:.4f}" if config.objective == "scst" else ""
    print(f"best      epoch {progress['best_epoch']}, val {progress['best_loss']:.4f} nats per word{cider}")
    for split in _scene_splits(data):
        with _or_warned(f"{split.name} is not evaluated"):
            _report_scenes(model, data, split, config.max_length)
    print(f"weights   {run / runs.BEST}")
    with _or_warned(f"{run / CURVES} is not written"):
        plots.loss_curves(read_log(run), run / CURVES, run.name)
        print(f"curves    {run / CURVES}")
    with _or_warned(f"{run / GALLERY} is not written"):
        _show(model, data, _gallery_split(data), config, run / GALLERY)
    named = "" if _is_default(run) else f" --checkpoint {run}"
    print(f"`{typed('sample')}{named}` captions more of them", flush=True)


def _scene_splits(data: CocoData) -> list[Split]:
    return [data[name] for name in ("test", "novel") if name in data.splits]


def _gallery_split(data: CocoData) -> Split:
    """The split of the gallery."""
    return data["test"] if "test" in data.splits else data["val"]


@contextmanager
def _or_warned(what: str) -> Iterator[None]:
    """In the block, errors of the data or the disk are warnings; a closed output is not."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (TorchCaptionError, OSError) as error:
        warning(f"{what}: {one_line(error)}")


def _show(model: CaptioningRNN, data: CocoData, split: Split, config: TrainConfig, path: Path) -> None:
    """Plot a gallery of some images, or print their captions."""
    images = some_images(split, SHOWN, seed=config.seed)
    found = caption_images(model, split, images, DecodingOptions(max_length=config.max_length))
    texts = {idx: caption.text for idx, (caption,) in found.items()}
    if draw_gallery(data, split, {idx: [text] for idx, text in texts.items()}, path):
        print(f"gallery   {path}")
    else:
        print("\n".join(f"{split.name} {idx:<4} {readable(text)}" for idx, text in texts.items()))


def _report_scenes(model: CaptioningRNN, data: CocoData, split: Split, max_length: int) -> None:
    found = caption_images(model, split, captioned_images(split), DecodingOptions(max_length=max_length))
    result = scenes.judge_split(data.directory, split.name, {idx: caption.text for idx, (caption,) in found.items()})
    if result is not None:
        share = 100 * result.right / result.total
        print(
            f"{split.name + ':':9} {result.right:,} of {result.total:,} scenes described right ({share:.1f} %)",
            flush=True,
        )


def _is_default(run: Path) -> bool:
    """Whether commands find the run by default."""
    return run.parent == TrainConfig.out


def _by(config: TrainConfig) -> str:
    return {"hand": "hand", "auto": "automatic differentiation"}[config.gradients]
