"""The weights of an encoder: their identity, and their file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from torch_caption.errors import EncoderError
from torch_caption.io.files import from_home, sha256_of
from torch_caption.io.text import printable

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # common wrappers of a state dict


@dataclass(frozen=True)
class Weights:
    """The identity of an encoder's weights.

    Attributes:
        name: that of published weights (torchvision's IMAGENET1K_V2), that of the file, or "random"; a file name.
        sha256: of the file, or of the values, where they are random or timm's; None if unknown.
        path: of the file; None for published weights, which their library or package has, and for random ones.
        seed: of random ones.
    """

    name: str
    sha256: str | None = None
    path: str | None = None
    seed: int | None = None

    def check(self) -> None:
        """Raise EncoderError for the first invalid value; the name may be from an untrusted source."""
        kinds = {"name": str, "sha256": str | None, "path": str | None, "seed": int | None}
        for field, kind in kinds.items():
            if not isinstance(getattr(self, field), kind):
                raise EncoderError(f"{field} of its weights is {getattr(self, field)!r}")
        plain = self.name and Path(self.name).name == printable(self.name) == self.name and "\\" not in self.name
        if not plain or not 0 <= (self.seed or 0) < 2**63:
            raise EncoderError(f"name of its weights {self.name!r}, with seed {self.seed}")


def short(sha256: str | None) -> str:
    """The first digits of a SHA-256, enough to distinguish files."""
    return f"{(sha256 or '')[:12]}..."


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        EncoderError: it cannot be read.
    """
    try:
        found = path.stat()
        return _digest_of(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise EncoderError(f"{path}: cannot be read: {error.strerror}") from None


@cache
def _digest_of(path: Path, _size: int, _time: int) -> str:
    """Cached: VGG-16's weights are 550 MB, and finding, verifying and loading them each need the digest."""
    return sha256_of(path)


def values_sha256(model: nn.Module) -> str:
    """The SHA-256 of the names and values of a model's weights."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode("utf-8") + value.cpu().numpy().tobytes())
    return digest.hexdigest()


def find(name: str, label: Weights, folders: Sequence[Path]) -> Path:
    """The file of weights of the encoder `name`: at its previous path, or in one of the folders.

    Raises:
        EncoderError: not found.
    """
    path_then = from_home(label.path or "")
    abroad = path_then.startswith(("\\\\", "//"))  # Windows would connect to another machine and identify the user
    recorded = [Path(path_then)] if path_then and not abroad else []
    for path in (*recorded, *(folder / label.name for folder in folders)):
        if path.is_file() and (label.sha256 is None or file_sha256(path) == label.sha256):
            return path
    known = f" (SHA-256 {short(label.sha256)})" if label.sha256 else ""
    raise EncoderError(f"the weights of {name}, {label.name}{known}, are not found; name their file with --weights")


def load(model: nn.Module, path: Path, name: str, unused: Callable[[], Container[str]]) -> None:
    """Load a file into the model: a state dict by `torch.save`, read with `weights_only=True`, or safetensors.

    Args:
        name: of the encoder, for messages.
        unused: returns names of weights that the file may have and the model has not.

    Raises:
        EncoderError: the file is damaged, or its weights are not the model's.
    """
    content = _content(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise EncoderError(f"{path}: not a state dict of {name}: it has no named weights")
    found = {str(key).removeprefix("module."): value for key, value in content.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    known = unused() if found.keys() - wanted.keys() else ()
    unexpected = [key for key in found if key not in wanted and key not in known]
    if missing or unexpected:
        parts = [f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise EncoderError(f"{path}: not the weights of {name}; {'; '.join(parts)}")
    for key, value in wanted.items():
        if key not in found:
            continue
        other = found[key]
        if other.layout != torch.strided or other.is_meta or other.is_complex():
            raise EncoderError(f"{path}: {key} has no plain real numbers; save dense tensors")
        if other.shape != value.shape:
            shapes = f"{tuple(other.shape)}, not {tuple(value.shape)}"
            raise EncoderError(f"{path}: not the weights of {name}; {key} has the shape {shapes}")
    model.load_state_dict({key: found.get(key, value) for key, value in wanted.items()})


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # untrusted bytes can raise any error
        raise EncoderError(f"{path}: refused: damaged, or not only tensors") from error


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
