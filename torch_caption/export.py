"""A trained captioner as one file that runs without this package: `python -m torch_caption.export CHECKPOINT`.

The file holds the greedy captioner, features in, word ids out, and the words. An .onnx file is for onnxruntime and
whatever else reads ONNX, a .pt2 file (torch.export) for torch alone. Its captions are those of `CaptioningRNN.sample`.
A grid of features goes in with its places in a row, (N, D, a, a) as (N, D, L).
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from tyro.conf import FlagCreatePairsOff, Positional, arg

from torch_caption import __version__
from torch_caption import checkpoint as checkpoints
from torch_caption.captioner import CaptioningRNN
from torch_caption.config import ConfigError, check_length
from torch_caption.decoding import never_chosen
from torch_caption.ending import guarded
from torch_caption.sampling import find_checkpoint

FEATURES, IDS = "features", "ids"
WORDS, MAX_LENGTH, RECIPE = "words", "max_length", "features"
"""What the file says of itself, in JSON: its words in the order of their ids; the most words of a caption; how the
features were made, as far as the checkpoint knows."""


class Greedy(nn.Module):
    """A captioner whose every step is written out, so that it can be traced: the captions of `CaptioningRNN.sample`.

    Args:
        model: nothing of it is changed; dropout is of its loss alone.
        max_length: the most words of a caption, <END> counted.
        no_unk: never say <UNK>.

    Raises:
        ValueError: max_length < 1, or the vocabulary has no <START>.
    """

    never: Tensor

    def __init__(self, model: CaptioningRNN, max_length: int = 30, *, no_unk: bool = False):
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {max_length}")
        self.model, self.max_length = model, max_length
        self.ids = model.special()
        ids = [k for k in never_chosen(**self.ids, avoid=model.avoided(no_unk)) if 0 <= k < model.vocab_size]
        never = torch.zeros_like(model.b_vocab, requires_grad=False)
        never[ids] = -math.inf
        self.register_buffer("never", never)

    def forward(self, features: Tensor) -> Tensor:
        """Word ids (N, max_length) int64 of features as the model takes them, <NULL> after <END>."""
        start, end, null = self.ids["start"], self.ids["end"], self.ids["null"]
        state = self.model.begin(features)
        last = torch.full_like(state[0][:, 0], start, dtype=torch.int64)  # (N,)
        ended = torch.zeros_like(last, dtype=torch.bool)
        words = []
        for _ in range(self.max_length):
            scores, state = self.model.step(last, state)
            last = (scores + self.never).argmax(1).masked_fill(ended, null)
            ended = ended | (last == end) if end is not None else ended
            words.append(last)
        return torch.stack(words, 1)


def trace(model: CaptioningRNN, max_length: int = 30, *, no_unk: bool = False) -> ExportedProgram:
    """The greedy captioner as a graph of tensor operations, for any number of images.

    Raises:
        ValueError: as `Greedy`.
    """
    greedy = Greedy(model, max_length, no_unk=no_unk)
    example = model.blank(2, places=3)
    sizes = {axis: Dim(letter, min=least) for axis, (letter, least) in _free_axes(example).items()}
    with torch.no_grad():
        return torch.export.export(greedy, (example,), dynamic_shapes=(sizes,))


def _free_axes(features: Tensor) -> dict[int, tuple[str, int]]:
    """The axes of features whose size is free, by name and least size: the images, and places if there are any."""
    return {0: ("N", 0)} if features.dim() == 2 else {0: ("N", 0), 2: ("L", 1)}


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Write a graph and what is to be known about it to a .onnx or a .pt2 file.

    Raises:
        ValueError: the file is of another kind, or the packages that write it are missing.
        OSError: it cannot be written.
    """
    _check_kind(path)
    path.write_bytes(_pt2(program, about) if path.suffix == ".pt2" else _onnx(program, about))


def _pt2(program: ExportedProgram, about: dict[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={f"{name}.json": value for name, value in about.items()})
    return content.getvalue()


def _onnx(program: ExportedProgram, about: dict[str, str]) -> bytes:
    (example,), _ = program.example_inputs
    with warnings.catch_warnings():
        # torch's own
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[FEATURES],
            output_names=[IDS],
            dynamic_shapes={FEATURES: {axis: letter for axis, (letter, _) in _free_axes(example).items()}},
            verbose=False,
        )
    assert made is not None  # as it is where no file is named
    made.model.metadata_props.update(about)
    return made.model_proto.SerializeToString()


def _check_kind(path: Path) -> None:
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"--out {path}: the name must end in .onnx or .pt2")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ConfigError(
            f"--out {path}: needs {' and '.join(missing)}: python -m pip install -r requirements-export.txt"
        )


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained captioner to one file that runs without this package: features in, word ids out."""

    checkpoint: Annotated[Path | None, Positional, arg(metavar="CHECKPOINT")] = None
    """A checkpoint, a run's directory or a folder of runs; the last run in `runs` without it."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("captioner.onnx")
    """The file to write, .onnx or .pt2."""
    max_length: Annotated[int | None, arg(metavar="INT")] = None
    """Longest caption, in words; as in training without it."""
    no_unk: Annotated[bool, FlagCreatePairsOff] = False
    """Never say <UNK>."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"--max-length must be at least 1, not {self.max_length}")
        check_length(self.max_length)
        if not self.out.parent.is_dir():
            raise ConfigError(f"--out {self.out}: there is no folder {self.out.parent}")
        _check_kind(self.out)


def run(config: ExportConfig) -> None:
    """Export as the configuration says, and print what the file takes and gives.

    Raises:
        ValueError: a setting or the checkpoint cannot be used.
    """
    config.check()
    path = find_checkpoint(config.checkpoint)
    saved = checkpoints.load(path)
    model = checkpoints.build_model(saved, path)
    max_length = config.max_length or saved.config.max_length
    save(trace(model, max_length, no_unk=config.no_unk), config.out, about(saved, max_length))
    kind = str(model.W_proj.dtype).removeprefix("torch.")
    size = config.out.stat().st_size / 1e6
    shape = f"(N, {model.input_dim}{', L' if model.cell.looks else ''})"
    print(f"{config.out}: {FEATURES} {shape} {kind} -> {IDS} (N, {max_length}) int64, {size:.1f} MB")


def about(saved: checkpoints.Checkpoint, max_length: int) -> dict[str, str]:
    """What the file says of itself."""
    facts: dict[str, Any] = {WORDS: saved.words, MAX_LENGTH: max_length, "torch_caption": __version__}
    facts |= {RECIPE: saved.manifest} if saved.manifest else {}
    return {name: json.dumps(fact) for name, fact in facts.items()}


def main(args: Sequence[str] | None = None) -> int:
    """The command line. Exit status: 0, 2 for a mistake of the user's, 130 on Ctrl-C."""
    return guarded(lambda: run(tyro.cli(ExportConfig, args=args, prog="python -m torch_caption.export")))


if __name__ == "__main__":
    sys.exit(main())
