"""Checkpoints: all that a run needs to go on and that a caption needs to be made, in one file.

The file is `torch.save`'s, of tensors and plain values only, and is read with `weights_only=True`: a checkpoint from a
stranger runs no code. It is written beside its place, flushed to the disk and renamed, so that a run that dies while
saving leaves the previous checkpoint whole.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_caption import __version__
from torch_caption.captioner import CaptioningRNN
from torch_caption.vocabulary import Vocabulary

FORMAT = "torch_caption checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names the file and says why."""


@dataclass
class Checkpoint:
    """Attributes:
    weights: the model's parameters by name.
    config: the run's settings (`TrainConfig.plain`).
    words: the vocabulary, in the order of the ids.
    manifest: how the features were made, the recipe of `torch_caption.data.recipe`, as far as the data says.
    model: the constructor's arguments of `CaptioningRNN` without the vocabulary.
    progress: how far training has come.
    optimizer, random: the optimizer's state and the random generators'; None where training is not to go on.
    average: the moving average of the weights, where training keeps one to go on with.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]
    words: list[str]
    manifest: dict[str, Any]
    model: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    random: dict[str, Any] | None = None
    average: dict[str, Tensor] | None = None


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint in place of whatever is at `path`, all of it or nothing.

    Raises:
        CheckpointError: it holds something other than tensors and plain values.
        OSError: the file cannot be written.
    """
    path = Path(path)
    content = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    for name, value in content.items():
        _check_plain(value, f"{path}: {name}")
    content |= {"format": FORMAT, "version": VERSION, "library": __version__}
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except RuntimeError as error:  # torch's own writer does not raise OSError
        raise OSError(f"{path}: could not be written: {_first_line(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: it is missing, cut short, damaged, no checkpoint, of another version, or holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes raise whatever they like
        raise CheckpointError(
            f"{path}: refused, for it is damaged or holds more than tensors and plain values"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of torch_caption")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: a checkpoint of format version {content.get('version')!r} (torch_caption "
            f"{content.get('library')}); this is torch_caption {__version__}, which reads version {VERSION}"
        )
    return _from_content(path, content)


def build_model(checkpoint: Checkpoint, path: str | Path = "checkpoint") -> CaptioningRNN:
    """The model with the checkpoint's weights, on the CPU, in the weights' own precision.

    Raises:
        CheckpointError: model, vocabulary and weights do not fit together; `path` names the file in the message.
    """
    try:
        word_to_idx = Vocabulary(tuple(checkpoint.words)).word_to_idx
        with torch.device("meta"):  # sizes only: nothing is allocated before the weights are known to fit
            model = CaptioningRNN(word_to_idx, **checkpoint.model)
        model.load_state_dict(checkpoint.weights, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: model, vocabulary and weights do not fit together: {reason}") from error
    return model


def check_fits(checkpoint: Checkpoint, vocabulary: Vocabulary, feature_dim: int, *, path: object, data: object) -> None:
    """Raise CheckpointError unless the data's vocabulary and feature width are those the model was trained with."""
    if tuple(checkpoint.words) != vocabulary.words:
        raise CheckpointError(f"{path}: its vocabulary is not that of {data}: {_difference(checkpoint, vocabulary)}")
    width = checkpoint.model.get("input_dim")
    if width != feature_dim:
        raise CheckpointError(f"{path}: trained on features of width {width}, but those of {data} have {feature_dim}")


def _difference(checkpoint: Checkpoint, vocabulary: Vocabulary) -> str:
    if len(checkpoint.words) != len(vocabulary):
        return f"{len(checkpoint.words)} words against {len(vocabulary)}"
    pairs = enumerate(zip(checkpoint.words, vocabulary.words, strict=True))
    idx, (ours, theirs) = next((idx, pair) for idx, pair in pairs if pair[0] != pair[1])
    return f"word {idx} is {ours!r} against {theirs!r}"


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(key, f"{where}, key {key!r}")
            _check_plain(entry, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            _check_plain(entry, f"{where}[{place}]")
    elif type(value) not in (str, int, float, bool, type(None)) and not isinstance(value, Tensor):
        raise CheckpointError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")


def _check_archive(path: Path) -> None:
    """The file is a whole archive, stored and not compressed, and every record has the checksum written with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            compressed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            broken = compressed[0].filename if compressed else archive.testzip()
    except Exception as error:  # a stranger's bytes raise whatever they like
        raise CheckpointError(f"{path}: cut short, damaged or not a checkpoint") from error
    if broken is not None:
        raise CheckpointError(f"{path}: damaged at its record {broken!r}")


def _from_content(path: Path, content: dict[str, Any]) -> Checkpoint:
    for f in dataclasses.fields(Checkpoint):
        value = content.get(f.name)
        right = isinstance(value, list if f.name == "words" else dict)
        if not right and not (value is None and f.default is None):
            raise CheckpointError(f"{path}: not a whole checkpoint: {f.name} is missing or is no {f.type}")
    for name, weight in [*content["weights"].items(), *(content.get("average") or {}).items()]:
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            raise CheckpointError(f"{path}: not a whole checkpoint: the weight {name!r} is no tensor")
    strange = next((word for word in content["words"] if not isinstance(word, str)), None)
    if strange is not None:
        raise CheckpointError(f"{path}: not a whole checkpoint: {strange!r} in its vocabulary is no word")
    parts: dict[str, Any] = {f.name: content.get(f.name) for f in dataclasses.fields(Checkpoint)}
    return Checkpoint(**parts)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
