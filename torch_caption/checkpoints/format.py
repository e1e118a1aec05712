"""Checkpoints: everything to resume a run, or to caption with a model, in one safetensors file.

Tensors (weights, their moving average, the optimizer's moments, the random state) are the file's tensors; vocabulary,
settings, recipe of the features and progress are JSON in its metadata. The header has a SHA-256 of the file
(`torch_caption.checkpoints.checksum`), which `load` verifies before it uses anything. A file contains no code, and
cannot cause allocations beyond its own size.

A file is written under a temporary name, flushed to the disk and renamed, and the previous one is kept
(`torch_caption.io.files`): a run that is killed while saving leaves a complete checkpoint.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_caption import __version__
from torch_caption.checkpoints import checksum
from torch_caption.config import TrainConfig
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import CheckpointError
from torch_caption.io import files
from torch_caption.io.files import previous
from torch_caption.io.text import parse_json, shown
from torch_caption.model.captioner import CaptioningRNN

KIND = "torch_caption checkpoint"
VERSION = 1
SIZE_LIMIT = 8 * 2**30
"""Maximum size of a file in bytes, in writing and reading."""
DEPTH_LIMIT = 32
"""Maximum nesting depth of the metadata."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""The names of AdamW's state of a parameter."""
_PARTS = ("average", "optimizer", "random", "manifest")  # whose tensors have the part's name as a prefix
_JSON = {"words": list, "config": dict, "manifest": dict, "input_dim": int, "progress": dict, "data": dict}
_RANDOM = re.compile(r"\d{1,6}/(torch|cuda)")


class NonFiniteTensor(CheckpointError):
    """A tensor of the checkpoint contains NaN or infinity."""


@dataclass
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        weights: the model's parameters by name, all of `config.dtype`.
        config: the run's settings.
        words: the vocabulary, in the order of the ids.
        manifest: the recipe of the features (`torch_caption.data.recipe`), as far as the data has one.
        input_dim: D, the width of the features.
        progress: of training (`torch_caption.training.progress.Progress.plain`).
        average: the moving average of the weights, by the same names; empty without `--ema`.
        optimizer: AdamW's state, "W_embed/exp_avg" and so on (`MOMENTS`); empty before the first step.
        random: the random state of each rank, "0/torch" and "0/cuda" and so on, uint8; empty in a checkpoint for
            inference.
        data: by the name of a split, the digest of its captions (`Split.digest`), for resuming.
    """

    weights: dict[str, Tensor]
    config: TrainConfig
    words: list[str]
    manifest: dict[str, Any]
    input_dim: int
    progress: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


class Found(NamedTuple):
    """A loaded checkpoint.

    Attributes:
        path: its file.
        warning: the reason for using the previous file instead; None otherwise.
        version: of the file, to detect its replacement.
    """

    checkpoint: Checkpoint
    path: Path
    warning: str | None
    version: tuple[int, int]

    def is_current(self) -> bool:
        """Whether the file has not been replaced since."""
        return self.version == _version(self.path)


def save(path: str | Path, checkpoint: Checkpoint, *, keep: bool = True) -> None:
    """Write the checkpoint to `path` atomically.

    Without a random state it is a checkpoint for inference, and its settings are written without the folders of this
    machine (`TrainConfig.shared`).

    Args:
        keep: keep an existing complete checkpoint as `previous(path)`.

    Raises:
        CheckpointError: its content could not be loaded.
        OSError: the file cannot be written; the message has its size.
    """
    path = Path(path)
    try:
        _check(checkpoint)
        pieces = checksum.encode(*_flat(checkpoint))
    except (TypeError, ValueError) as error:
        kind = NonFiniteTensor if isinstance(error, NonFiniteTensor) else CheckpointError
        raise kind(f"{path}: not saved: {error}") from error
    size = sum(map(len, pieces))
    if size > SIZE_LIMIT:
        raise CheckpointError(f"{path}: not saved: {_megabytes(size)}; at most {_megabytes(SIZE_LIMIT)} are written")
    with files.writing(path, f"it takes {_megabytes(size)}"):
        files.replace(path, lambda file: file.writelines(pieces), keep=checksum.is_whole if keep else None)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. It takes up to twice the file's size of memory.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, not a checkpoint, of another version, or contains NaN,
            infinity or inconsistent parts.
    """
    path = Path(path)
    data = _read(path)
    try:
        checkpoint = _from_flat(*checksum.decode(data))
        _check(checkpoint)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return checkpoint


def find(path: str | Path) -> Found:
    """`load`, with the path."""
    version = _version(Path(path))
    return Found(load(path), Path(path), None, version)


def find_latest(path: str | Path) -> Found:
    """The checkpoint at `path`, or the previous one if that is missing or cannot be used.

    Raises:
        CheckpointError: neither can be used; the message has the reasons.
    """
    try:
        return find(path)
    except CheckpointError as error:
        before = previous(path)
        if not before.exists():
            raise
        try:
            found = find(before)
        except CheckpointError as other:
            raise CheckpointError(f"{error}; the previous one cannot be used either: {other}") from error
        step = found.checkpoint.progress.get("step")
        return found._replace(warning=f"{error}; using the previous one, {before}, of step {short(step)}")


def build_model(checkpoint: Checkpoint, path: str | Path = "checkpoint") -> CaptioningRNN:
    """The model with the checkpoint's weights, on the CPU, in the weights' own precision.

    Raises:
        CheckpointError: settings, vocabulary and weights do not match; `path` names the file in the message.
    """
    try:
        word_to_idx = Vocabulary(tuple(checkpoint.words)).word_to_idx
        with torch.device("meta"):  # sizes only: no allocation before the weights are checked
            model = CaptioningRNN(word_to_idx, checkpoint.input_dim, **checkpoint.config.model_arguments())
        model.load_state_dict(checkpoint.weights, assign=True)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: settings, vocabulary and weights do not match: {reason}") from error
    return model


def check_fits(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    feature_dim: int,
    recipe: Mapping[str, Any],
    *,
    path: object,
    data: object,
) -> None:
    """Raise CheckpointError unless the data has the vocabulary and features that the model was trained with.

    Args:
        feature_dim: the width of the data's features.
        recipe: of the features; entries that it or the checkpoint lacks are not compared.
    """
    check_vocabulary(checkpoint, vocabulary, path=path, data=data)
    width = checkpoint.input_dim
    if width != feature_dim:
        raise CheckpointError(f"{path}: trained on features of width {width}, but those of {data} have {feature_dim}")
    ours, theirs = _made_by(checkpoint.manifest), _made_by(recipe)
    for name in ours:  # in an order that is the same in all processes
        if name in theirs and ours[name] != theirs[name]:
            raise CheckpointError(
                f"{path}: trained on features with {name} {short(ours[name])}, but those of {data} have "
                f"{short(theirs[name])}"
            )
    if not _same_projection(checkpoint.manifest.get("projection"), recipe.get("projection")):
        raise CheckpointError(f"{path}: trained on features of another projection than those of {data}")


def check_vocabulary(checkpoint: Checkpoint, vocabulary: Vocabulary, *, path: object, data: object) -> None:
    """Raise CheckpointError unless these are the words that the model was trained with, in the same order."""
    if tuple(checkpoint.words) != vocabulary.words:
        raise CheckpointError(f"{path}: not the vocabulary of {data}: {_difference(checkpoint, vocabulary)}")


def same_recipe(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two recipes of features are equal in every entry and array."""
    (arrays, rest), (others, other_rest) = _split(ours, ""), _split(theirs, "")
    return (
        rest == other_rest
        and arrays.keys() == others.keys()
        and all(torch.equal(x, others[name]) for name, x in arrays.items())
    )


def _made_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of features, by names for a message."""
    weights = recipe.get("weights")
    identity = {"encoder": recipe.get("encoder"), "kind": recipe.get("features"), "transform": recipe.get("transform")}
    identity["version of scenes"] = recipe.get("recipe")
    identity["weights of SHA-256"] = weights.get("sha256") if isinstance(weights, Mapping) else None
    return {name: value for name, value in identity.items() if value is not None}


def _same_projection(ours: Any, theirs: Any) -> bool:
    """Equality up to rounding on another machine; True if one of them is unknown."""
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return True
    pairs = [(ours.get(name), theirs.get(name)) for name in ("mean", "components")]
    return all(_near(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor))


def _near(x: Tensor, y: Tensor) -> bool:
    x, y = x.double(), y.double()
    return x.shape == y.shape and (not x.numel() or bool((x - y).abs().max() <= 0.01 * x.abs().max()))


def _difference(checkpoint: Checkpoint, vocabulary: Vocabulary) -> str:
    if len(checkpoint.words) != len(vocabulary):
        return f"{len(checkpoint.words)} words against {len(vocabulary)}"
    pairs = enumerate(zip(checkpoint.words, vocabulary.words, strict=True))
    idx, (ours, theirs) = next((idx, pair) for idx, pair in pairs if pair[0] != pair[1])
    return f"word {idx} is {ours!r} against {theirs!r}"


# Content of a file ---------------------------------------------------------------------------------------------------


def _flat(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata.

    Raises:
        TypeError, ValueError: a value other than a tensor is not JSON.
    """
    arrays, manifest = _split(checkpoint.manifest, "manifest/")
    tensors = {**_tensors(checkpoint), **arrays}
    config = checkpoint.config.plain() if checkpoint.random else checkpoint.config.shared()
    plain = {name: getattr(checkpoint, name) for name in _JSON} | {"manifest": manifest, "config": config}
    metadata = {"format": "pt", "kind": KIND, "version": str(VERSION), "library": __version__}
    return tensors, metadata | {name: json.dumps(value, allow_nan=False) for name, value in plain.items()}


def _from_flat(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """The inverse of `_flat`."""
    if metadata.get("kind") != KIND:
        raise CheckpointError("not a checkpoint of torch_caption")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"of format version {shown(metadata.get('version'))}, written by torch_caption "
            f"{shown(metadata.get('library'))}; this is torch_caption {__version__}, which reads version {VERSION}"
        )
    plain: dict[str, Any] = {}
    for name, kind in _JSON.items():
        if name not in metadata:
            raise CheckpointError(f"its metadata lacks {name!r}")
        plain[name] = parse_json(metadata[name], f"its {name}")
        if type(plain[name]) is not kind:
            raise CheckpointError(f"its {name} is of type {type(plain[name]).__name__}, not {kind.__name__}")
    parts: dict[str, Any] = {"weights": {}, **{name: {} for name in _PARTS}}
    for name, tensor in tensors.items():
        part, slash, rest = name.partition("/")
        if slash and part not in _PARTS:
            raise CheckpointError(f"unknown tensor {shown(name)}")
        parts[part if slash else "weights"][rest or name] = tensor
    _join(plain["manifest"], parts.pop("manifest"))
    plain["config"] = TrainConfig.from_plain(plain["config"])
    return Checkpoint(**parts, **plain)


def _split(tree: Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of nested dicts, named by their path of keys, and the rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            inner, rest[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner
        else:
            rest[key] = value
    return tensors, rest


def _join(tree: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Insert the tensors into nested dicts by the paths in their names."""
    for name, tensor in tensors.items():
        *keys, last = name.split("/")
        inner: Any = tree
        for key in keys:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last in inner:
            raise CheckpointError(f"its manifest does not fit the tensor {shown('manifest/' + name)}")
        inner[last] = tensor


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors except those of the manifest, by their names in a file."""
    others = ("average", "optimizer", "random")
    named = {f"{part}/{name}": x for part in others for name, x in getattr(checkpoint, part).items()}
    return {**checkpoint.weights, **named}


def _check(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless all tensors are finite and match the weights in name, shape and dtype."""
    Vocabulary(tuple(checkpoint.words))
    _check_depth(checkpoint.manifest)
    dtype = getattr(torch, checkpoint.config.dtype)
    shapes = {name: tuple(weight.shape) for name, weight in checkpoint.weights.items()}
    moments = {f"{name}/{moment}": shape for name, shape in shapes.items() for moment in MOMENTS}
    moments |= {name: () for name in moments if name.endswith("/step")}
    for part, wanted in {"weights": shapes, "average": shapes, "optimizer": moments}.items():
        found = getattr(checkpoint, part)
        for name in sorted(wanted.keys() | found.keys()) if found else ():
            named = f"tensor {shown(name if part == 'weights' else f'{part}/{name}')}"
            if name not in wanted or name not in found:
                raise CheckpointError(f"unknown {named}" if name in found else f"the {named} is missing")
            tensor, shape = found[name], tuple(found[name].shape)
            if shape != wanted[name]:
                raise CheckpointError(f"the {named} has shape {shape}, not {wanted[name]}")
            if tensor.dtype != dtype and not (name.endswith("/step") and tensor.is_floating_point()):
                raise CheckpointError(f"the {named} is of {tensor.dtype}, not {dtype}")
    for name, state in checkpoint.random.items():
        if not _RANDOM.fullmatch(name) or f"{name.partition('/')[0]}/torch" not in checkpoint.random:
            raise CheckpointError(f"unknown tensor {shown(f'random/{name}')}")
        if state.dtype != torch.uint8:
            raise CheckpointError(f"the tensor {shown(f'random/{name}')} is of {state.dtype}, not {torch.uint8}")
    for name, tensor in {**_tensors(checkpoint), **_split(checkpoint.manifest, "manifest/")[0]}.items():
        if tensor.dtype not in checksum.DTYPES or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"the tensor {shown(name)} is of {tensor.dtype} and {tensor.layout}, which cannot be saved"
            )
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            raise NonFiniteTensor(f"the tensor {shown(name)} contains NaN or infinity")


def _check_depth(value: Any, depth: int = 0) -> None:
    if depth > DEPTH_LIMIT:
        raise CheckpointError(f"its manifest is nested more than {DEPTH_LIMIT} levels deep")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        _check_depth(inner, depth + 1)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all entries are finite, without a temporary of the same size."""
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


# Files ---------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """The content of the file, read once: the verified bytes are the used ones."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > SIZE_LIMIT:
                raise CheckpointError(f"{path}: {_megabytes(size)}; at most {_megabytes(SIZE_LIMIT)} are read")
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: {_megabytes(size)} do not fit into memory") from error


def _version(path: Path) -> tuple[int, int]:
    """An identity of the file that changes if it is replaced."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
