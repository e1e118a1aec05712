"""Checkpoints: all that a run needs to go on and that a caption needs to be made, in one file.

The file is `torch.save`'s, of tensors and plain values only, sealed with a checksum of all its bytes
(`checksum`). `load` reads it into memory, verifies the checksum, holds what the file declares against what is there
(`archive`), and only then gives the same bytes to `torch.load(weights_only=True)`: a damaged file is refused, and a
stranger's runs no code and fills no memory.

It is written beside its place, flushed to the disk and renamed, and the one before is kept (`torch_caption.io.files`):
a run that dies while saving leaves a whole checkpoint.

`save_weights` writes what captions need as safetensors, which other programs read; `load` takes that as well.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor

from torch_caption import __version__
from torch_caption.checkpoints import archive
from torch_caption.checkpoints import checksum as seal
from torch_caption.config import OF_THE_MODEL, TrainConfig
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.errors import CheckpointError
from torch_caption.io import files
from torch_caption.io.files import previous
from torch_caption.model.captioner import CaptioningRNN

FORMAT = "torch_caption checkpoint"
VERSION = 2
MOST_BYTES = 8 * 2**30
"""The largest file that is written or read."""
SAFETENSORS = ".safetensors"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = frozenset(archive.STORAGES.values())
_SHARED = ("words", "config", "model", "manifest")  # what captions need beside the weights
_INSIDE = "manifest/"  # before the names of the recipe's own tensors, in safetensors


class NumberNotFinite(CheckpointError):
    """A tensor of it is no number any more somewhere."""


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
    data: by the name of a split, the digest of its captions that training is to go on with (`Split.digest`).
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
    data: dict[str, str] | None = None


def save(path: str | Path, checkpoint: Checkpoint, *, keep: bool = True) -> None:
    """Write the checkpoint in place of whatever is at `path`, all of it or nothing.

    Args:
        keep: leave the checkpoint that was there, if it is whole, at `previous(path)`.

    Raises:
        CheckpointError: it holds what would be refused when it is read: something other than tensors and plain values,
            or a tensor with a number that is not finite.
        OSError: the file cannot be written; the message says how large it is.
    """
    path = Path(path)
    content = _content(checkpoint, f"{path}: not saved")
    size = sum(tensor.nbytes for _, tensor in _tensors(content))
    if size > MOST_BYTES - archive.MOST_PICKLE:
        raise CheckpointError(f"{path}: not saved: {_megabytes(size)} are more than {_megabytes(MOST_BYTES)}")
    content |= {"format": FORMAT, "version": VERSION, "library": __version__}
    _replace(path, lambda file: _write(file, content), size, keep=seal.is_whole if keep else None)


def save_weights(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write the weights as safetensors, in place of whatever is at `path`, all of it or nothing.

    Vocabulary, settings, the model's arguments, the recipe of its features and the library's version are in the
    metadata, as JSON.

    Raises:
        CheckpointError: as for `save`.
        OSError: the file cannot be written; the message says how large it is.
    """
    path = Path(path)
    content = _content(checkpoint, f"{path}: not saved")
    inside, manifest = _apart(content["manifest"], _INSIDE)
    plain = {name: content[name] for name in _SHARED} | {"manifest": manifest}
    try:
        metadata = {name: json.dumps(value, allow_nan=False) for name, value in plain.items()}
        metadata |= {"format": "pt", "kind": FORMAT, "version": str(VERSION), "library": __version__}
        pieces = seal.sealed_weights(safetensors.torch.save({**content["weights"], **inside}, metadata))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not saved: {error}") from error
    _replace(path, lambda file: file.writelines(pieces), sum(map(len, pieces)), keep=None)


def load(path: str | Path, *, unsealed: bool = False) -> Checkpoint:
    """Read a checkpoint, or weights that `save_weights` wrote, onto the CPU.

    It takes up to twice the file's size of memory.

    Args:
        unsealed: take a checkpoint of version 1 as well, which has no checksum of its whole, only of its parts.

    Raises:
        CheckpointError: it is missing, cut short, damaged, no checkpoint, of another version, holds code or numbers
            that are not finite, or declares what is not there.
    """
    path = Path(path)
    data = _read(path)
    if path.suffix == SAFETENSORS:
        content = _from_weights(path, data)
    elif unsealed and not _is_sealed(data):
        content = _from_archive(path, data, version=1)
    else:
        content = _from_archive(path, _verified(path, data))
    _check(content, str(path))
    parts: dict[str, Any] = {f.name: content.get(f.name) for f in dataclasses.fields(Checkpoint)}
    return Checkpoint(**parts)


def load_latest(path: str | Path) -> tuple[Checkpoint, Path, str | None]:
    """The checkpoint at `path`, or the one before it where that is missing or cannot be used.

    Returns:
        the checkpoint, the file that it is from, and a line that says what was wrong if that is not `path`.

    Raises:
        CheckpointError: neither can be used; the message says why.
    """
    path = Path(path)
    try:
        return load(path), path, None
    except CheckpointError as error:
        before = previous(path)
        if not before.exists():
            raise
        try:
            found = load(before)
        except CheckpointError as other:
            raise CheckpointError(f"{error}; nor can the one before it be used: {other}") from error
        reached = f"of step {short(found.progress['step'])}" if "step" in found.progress else "whole"
        return found, before, f"{error}; taking the one before it, {before}, which is {reached}"


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
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: model, vocabulary and weights do not fit together: {reason}") from error
    return model


def check_sizes(checkpoint: Checkpoint, path: object) -> None:
    """Raise CheckpointError unless the settings name the model whose weights these are.

    So a model that is made by the settings takes no more memory than the file says.
    """
    build_model(checkpoint, str(path))
    settings = TrainConfig.from_plain(checkpoint.config)
    dtype = next(iter(checkpoint.weights.values())).dtype
    theirs = checkpoint.model | {"dtype": str(dtype).removeprefix("torch.")}
    for name in OF_THE_MODEL:
        ours = getattr(settings, name)
        if name in theirs and theirs[name] != ours:
            raise CheckpointError(f"{path}: its settings have {name} {ours!r}, but its model {short(theirs[name])}")


def check_fits(
    checkpoint: Checkpoint,
    vocabulary: Vocabulary,
    feature_dim: int,
    recipe: Mapping[str, Any],
    *,
    path: object,
    data: object,
) -> None:
    """Raise CheckpointError unless vocabulary and features of the data are those the model was trained with.

    Args:
        feature_dim: the width of the data's features.
        recipe: how they were made; what it or the checkpoint does not say is not compared.
    """
    if tuple(checkpoint.words) != vocabulary.words:
        raise CheckpointError(f"{path}: its vocabulary is not that of {data}: {_difference(checkpoint, vocabulary)}")
    width = checkpoint.model.get("input_dim")
    if width != feature_dim:
        raise CheckpointError(f"{path}: trained on features of width {width}, but those of {data} have {feature_dim}")
    ours, theirs = _made_by(checkpoint.manifest), _made_by(recipe)
    for name in ours:  # in an order that every process has
        if name in theirs and ours[name] != theirs[name]:
            raise CheckpointError(
                f"{path}: trained on features with {name} {short(ours[name])}, but those of {data} have "
                f"{short(theirs[name])}"
            )
    if not _same_projection(checkpoint.manifest.get("projection"), recipe.get("projection")):
        raise CheckpointError(f"{path}: trained on features of another projection than those of {data}")


def _made_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What tells features apart, by what a message calls it."""
    weights = recipe.get("weights")
    told = {"encoder": recipe.get("encoder"), "kind": recipe.get("features"), "transform": recipe.get("transform")}
    told["recipe of scenes"] = recipe.get("recipe")
    told["weights of SHA-256"] = weights.get("sha256") if isinstance(weights, Mapping) else None
    return {name: value for name, value in told.items() if value is not None}


def _same_projection(ours: Any, theirs: Any) -> bool:
    """But for what another machine rounds otherwise; True where one of them is not known."""
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


# Writing -------------------------------------------------------------------------------------------------------------


def _content(checkpoint: Checkpoint, where: str) -> dict[str, Any]:
    """What goes into a file."""
    seen: set[int] = set()
    parts = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    content = {name: _plain(value, f"{where}: {name}", seen) for name, value in parts.items()}
    _check(content, where)
    return content


def _plain(value: Any, where: str, seen: set[int]) -> Any:
    """The same in containers of its own, every tensor in a storage of its own and of its size."""
    if isinstance(value, dict):
        strange = [key for key in value if type(key) not in (str, int)]
        if strange:
            raise CheckpointError(f"{where} has the key {strange[0]!r}: keys are strings and whole numbers")
        return {key: _plain(entry, f"{where}[{key!r}]", seen) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_plain(entry, f"{where}[{place}]", seen) for place, entry in enumerate(value)]
        return entries if isinstance(value, list) else tuple(entries)
    if isinstance(value, Tensor) and value.layout is torch.strided and value.dtype in _DTYPES:
        own = value.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        return own
    if type(value) not in (str, int, float, bool, type(None)):
        raise CheckpointError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values only")
    return value


def _apart(value: dict[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, by the keys that lead to them with slashes between, and the rest."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Tensor):
            tensors[f"{where}{key}"] = entry
        elif isinstance(entry, dict):
            inner, rest[key] = _apart(entry, f"{where}{key}/")
            tensors |= inner
        else:
            rest[key] = entry
    return tensors, rest


def _write(file: BinaryIO, content: dict[str, Any]) -> None:
    sealing = seal.Sealing(file)
    try:
        torch.save(content, cast(BinaryIO, sealing))
    except RuntimeError as error:  # torch's own writer does not pass on what it was told
        if isinstance(error.__context__, KeyboardInterrupt):  # a signal found the program in the middle of a write
            raise error.__context__ from None
        raise sealing.failed or OSError(_first_line(error)) from error
    sealing.finish()


def _replace(path: Path, write: Callable[[BinaryIO], None], size: int, *, keep: Callable[[Path], bool] | None) -> None:
    with files.writing(path, f"it takes {_megabytes(size)}"):
        files.replace(path, write, keep=keep)


# Reading -------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    """All of the file, once: what is verified is what is used."""
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_BYTES:
                raise CheckpointError(f"{path}: {_megabytes(size)}; {_megabytes(MOST_BYTES)} are the most that is read")
            return file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path}: {_megabytes(size)} do not fit into the memory") from error


def _verified(path: Path, data: bytes) -> bytes:
    """The bytes, if they are those that were sealed."""
    if not _is_sealed(data):
        if _is_of_version_1(data):
            raise CheckpointError(
                f"{path}: of format version 1, which has no checksum; `python -m torch_caption convert {path} NEW.pt` "
                f"writes it anew in version {VERSION}"
            )
        raise CheckpointError(f"{path}: cut short, damaged or not a checkpoint")
    if not seal.archive_is_whole(data):
        raise CheckpointError(f"{path}: damaged: its content is not that of its checksum")
    return data


def _is_sealed(data: bytes) -> bool:
    return data[-seal.SEAL_SIZE :].startswith(seal.SEAL)


def _is_of_version_1(data: bytes) -> bool:
    try:
        content = archive.examine(data, views=True)
    except archive.ArchiveError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") == 1


def _from_archive(path: Path, data: bytes, version: int = VERSION) -> dict[str, Any]:
    try:
        comment = 0 if version == 1 else seal.SEAL_SIZE
        content = archive.examine(data, comment, views=version == 1)
        if version == 1:
            _check_parts(path, data)
    except archive.ArchiveError as error:
        raise CheckpointError(f"{path}: refused, for it holds {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of torch_caption")
    if content.get("version") != version:
        raise CheckpointError(
            f"{path}: a checkpoint of format version {short(content.get('version'))} (torch_caption "
            f"{short(content.get('library'))}); this is torch_caption {__version__}, which reads version {version}"
        )
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's bytes raise whatever they like
        raise CheckpointError(f"{path}: refused by torch.load: {short(_first_line(error))}") from error


def _check_parts(path: Path, data: bytes) -> None:
    """Every record, of an archive that was examined, has the checksum that was written with it."""
    with zipfile.ZipFile(io.BytesIO(data)) as records:
        broken = records.testzip()
    if broken is not None:
        raise CheckpointError(f"{path}: damaged at its record {short(broken)}")


def _from_weights(path: Path, data: bytes) -> dict[str, Any]:
    whole = seal.weights_are_whole(data)
    if whole is None:
        raise CheckpointError(f"{path}: cut short, damaged or not weights of torch_caption")
    if not whole:
        raise CheckpointError(f"{path}: damaged: its content is not that of its checksum")
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["kind"] != FORMAT or metadata["version"] != str(VERSION):
            raise CheckpointError(f"{path}: not weights of torch_caption in version {VERSION}")
        content = {name: json.loads(metadata[name]) for name in _SHARED}
        for name in [name for name in tensors if name.startswith(_INSIDE)]:
            *keys, last = name.removeprefix(_INSIDE).split("/")
            inner = content["manifest"]
            for key in keys:
                inner = inner[key]
            inner[last] = tensors.pop(name)
    except CheckpointError:
        raise
    except Exception as error:  # a stranger's bytes raise whatever they like
        raise CheckpointError(f"{path}: refused, for it is no sound safetensors file of torch_caption") from error
    return content | {"weights": tensors, "progress": {}}


# Content -------------------------------------------------------------------------------------------------------------


def _check(content: dict[str, Any], where: str) -> None:
    """All parts are there and of their kind, every tensor of a dtype that a checkpoint has, every number of it one."""
    for f in dataclasses.fields(Checkpoint):
        value = content.get(f.name)
        right = isinstance(value, list if f.name == "words" else dict)
        if not right and not (value is None and f.default is None):
            raise CheckpointError(f"{where}: not a whole checkpoint: {f.name} is missing or is no {f.type}")
    _check_weights(content["weights"], where)
    if content.get("average") is not None:
        _check_weights(content["average"], where)
    strange = next((word for word in content["words"] if not isinstance(word, str)), None)
    if strange is not None:
        raise CheckpointError(f"{where}: not a whole checkpoint: {short(strange)} in its vocabulary is no word")
    try:
        Vocabulary(tuple(content["words"]))
        TrainConfig.from_plain(content["config"])
    except ValueError as error:
        raise CheckpointError(f"{where}: not a whole checkpoint: {error}") from error
    for name, tensor in _tensors(content):
        if tensor.dtype not in _DTYPES:  # safetensors has more of them, and torch cannot compute with all
            raise CheckpointError(f"{where}: {name} is of dtype {tensor.dtype}, which no checkpoint holds")
        if tensor.is_floating_point() and tensor.numel() and not _finite(tensor):
            raise NumberNotFinite(f"{where}: {name} holds a number that is not finite")


def _check_weights(weights: dict[str, Any], where: str) -> None:
    first = next(iter(weights.values()), None)
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            raise CheckpointError(f"{where}: not a whole checkpoint: the weight {short(name)} is no tensor")
        if weight.dtype not in _FLOATS or (isinstance(first, Tensor) and weight.dtype != first.dtype):
            raise CheckpointError(f"{where}: the weight {short(name)} is of dtype {weight.dtype}")


def _tensors(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with the name of its place."""
    if depth > archive.MOST_DEPTH:
        raise CheckpointError(f"{where[:40]}... holds values within values, more than {archive.MOST_DEPTH} deep")
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _tensors(entry, f"{where}[{short(key)}]" if where else str(key), depth + 1)
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            if isinstance(entry, dict | list | tuple | Tensor):
                yield from _tensors(entry, f"{where}[{place}]", depth + 1)


def _finite(tensor: Tensor) -> bool:
    """Without a temporary of its size."""
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
