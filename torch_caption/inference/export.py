"""A trained captioner as one file that runs without this package: `python -m torch_caption export CHECKPOINT`.

The file contains the greedy captioner, from features to word ids, and the vocabulary. An .onnx file is for onnxruntime
and other programs that read ONNX, a .pt2 file (torch.export) for torch. Its captions equal `CaptioningRNN.sample`.
A grid of features is passed with flattened positions, (N, D, a, a) as (N, D, L).
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from torch_caption import __version__
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.decoding import DecodingOptions
from torch_caption.decoding.filters import excluded
from torch_caption.errors import ConfigError
from torch_caption.model.captioner import CaptioningRNN

FEATURES, IDS = "features", "ids"
WORDS, MAX_LENGTH, RECIPE = "words", "max_length", "features"
"""Metadata of the file, in JSON: the words in the order of their ids; the maximum length of a caption; the recipe of
the features, if the checkpoint has one."""


class Greedy(nn.Module):
    """A captioner with unrolled steps, for tracing: the captions of `CaptioningRNN.sample`.

    Args:
        model: unchanged; only its loss has dropout.
        max_length: maximum length of a caption in words, including <END>.
        no_unk: exclude <UNK>.

    Raises:
        ValueError: max_length < 1, or the vocabulary has no <START>.
    """

    never: Tensor

    def __init__(self, model: CaptioningRNN, max_length: int = 30, *, no_unk: bool = False):
        super().__init__()
        options = DecodingOptions(max_length=max_length, no_unk=no_unk)
        options.resolve()
        self.model, self.max_length = model, max_length
        self.ids = model.token_ids()
        ids = [k for k in excluded(self.ids, options) if 0 <= k < model.vocab_size]
        never = torch.zeros_like(model.b_vocab, requires_grad=False)
        never[ids] = -math.inf
        self.register_buffer("never", never)

    def forward(self, features: Tensor) -> Tensor:
        """Word ids (N, max_length) int64 from features of the model, <NULL> after <END>."""
        end = self.ids.end
        state = self.model.begin(features)
        last = torch.full_like(state[0][:, 0], self.ids.start, dtype=torch.int64)  # (N,)
        ended = torch.zeros_like(last, dtype=torch.bool)
        words = []
        for _ in range(self.max_length):
            logits, state = self.model.step(last, state)
            last = (logits + self.never).argmax(1).masked_fill(ended, self.ids.null)
            ended = ended | (last == end) if end is not None else ended
            words.append(last)
        return torch.stack(words, 1)


def trace(model: CaptioningRNN, max_length: int = 30, *, no_unk: bool = False) -> ExportedProgram:
    """The greedy captioner as a graph of tensor operations, for any number of images.

    Raises:
        ValueError: as `Greedy`.
    """
    greedy = Greedy(model, max_length, no_unk=no_unk)
    example = model.blank(2, positions=3)
    sizes = {axis: Dim(letter, min=least) for axis, (letter, least) in _free_axes(example).items()}
    with torch.no_grad():
        return torch.export.export(greedy, (example,), dynamic_shapes=(sizes,))


def _free_axes(features: Tensor) -> dict[int, tuple[str, int]]:
    """The symbolic axes of features, with name and minimum size: images, and positions of a grid."""
    return {0: ("N", 0)} if features.dim() == 2 else {0: ("N", 0), 2: ("L", 1)}


def save(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    """Write a graph and its metadata to an .onnx or a .pt2 file.

    Raises:
        ConfigError: the suffix is another one, or the packages that write it are missing.
        OSError: it cannot be written.
    """
    check_kind(path)
    path.write_bytes(_pt2(program, about) if path.suffix == ".pt2" else _onnx(program, about))


def _pt2(program: ExportedProgram, about: dict[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={f"{name}.json": value for name, value in about.items()})
    return content.getvalue()


def _onnx(program: ExportedProgram, about: dict[str, str]) -> bytes:
    (example,), _ = program.example_inputs
    with warnings.catch_warnings():
        # a warning of torch itself
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[FEATURES],
            output_names=[IDS],
            dynamic_shapes={FEATURES: {axis: letter for axis, (letter, _) in _free_axes(example).items()}},
            verbose=False,
        )
    assert made is not None  # since no file is named
    made.model.metadata_props.update(about)
    return made.model_proto.SerializeToString()


def check_kind(path: Path) -> None:
    """Raise ConfigError unless a file with this suffix can be written."""
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"--out {path}: the name must end in .onnx or .pt2")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ConfigError(
            f"--out {path}: needs {' and '.join(missing)}: python -m pip install -r requirements-export.txt"
        )


def about(saved: Checkpoint, max_length: int) -> dict[str, str]:
    """The metadata of the file."""
    facts: dict[str, Any] = {WORDS: saved.words, MAX_LENGTH: max_length, "torch_caption": __version__}
    facts |= {RECIPE: saved.manifest} if saved.manifest else {}
    return {name: json.dumps(fact) for name, fact in facts.items()}
