"""safetensors files whose header begins with a SHA-256 of the whole file.

A safetensors file is the length of its header (8 bytes, little-endian), the header (JSON: metadata, and the dtype,
shape and offsets of each tensor), and the tensors' bytes. Here the header begins with the checksum:

    {"__metadata__":{"sha256":"<64 hexadecimal digits>", ...

It is the SHA-256 of the file with zeros instead of these digits, so that any changed or missing byte is detected. All
programs that read safetensors can read these files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from torch_caption.errors import CheckpointError
from torch_caption.io.text import parse_json

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The permitted dtypes, with their names in safetensors."""
HEADER_LIMIT = 4 * 2**20
"""Maximum size of a header in bytes: parsed JSON takes up to thirty times its length."""
_PREFIX = b'{"__metadata__":{"sha256":"'
_DIGITS = slice(8 + len(_PREFIX), 8 + len(_PREFIX) + 64)
_ZEROS = b"0" * 64
_PICKLES = (b"PK\3\4", b"\x80")  # the first bytes of files of torch.save: a ZIP archive, or a pickle before torch 1.6
_CHUNK = 2**20


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A file's bytes in consecutive pieces; those of tensors share their memory.

    Args:
        tensors: dense, on the CPU, of `DTYPES`.

    Raises:
        CheckpointError: the header is longer than `HEADER_LIMIT`.
    """
    header: dict[str, Any] = {"__metadata__": {"sha256": _ZEROS.decode("ascii"), **metadata}}
    body: list[memoryview] = []
    offset = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # which aligns each of them
        tensor = tensors[name].detach().contiguous()
        end = offset + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [offset, end]}
        body.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        raise CheckpointError(f"its header would have {len(text):,} bytes; at most {HEADER_LIMIT:,} are read")
    head = len(text).to_bytes(8, "little") + text
    return [head[: _DIGITS.start] + _digest(head, *body) + head[_DIGITS.stop :], *body]


def decode(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file, after verification of its checksum.

    Returns:
        Tensors on the CPU, each in its own memory, and the metadata without the checksum.

    Raises:
        CheckpointError: the bytes do not match the checksum, or are not a valid safetensors file.
    """
    if data[8 : _DIGITS.start] != _PREFIX:
        if data.startswith(_PICKLES):
            raise CheckpointError(
                "a file of torch.save, or another archive or pickle, which can contain code and is not opened; a "
                "checkpoint is a safetensors file, such as best.safetensors"
            )
        raise CheckpointError("truncated, damaged or not a checkpoint of torch_caption")
    if data[_DIGITS] != _digest(data):
        raise CheckpointError("truncated or damaged: the SHA-256 of its bytes is not the one in its header")
    size = int.from_bytes(data[:8], "little")
    if size > min(HEADER_LIMIT, len(data) - 8):
        raise CheckpointError(f"its header has {size:,} bytes; at most {min(HEADER_LIMIT, len(data) - 8):,} are read")
    metadata = parse_json(data[8 : 8 + size].decode("utf-8"), "its header")["__metadata__"]
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # for a malicious file, the library's own errors and others
        raise CheckpointError(f"not a valid safetensors file: {' '.join(str(error).split())[:200]}") from error
    for name, tensor in tensors.items():
        tensors[name] = tensor.clone()  # in memory aligned by torch: rounding of products may depend on the alignment
    return tensors, {name: text for name, text in metadata.items() if name != "sha256"}


def is_whole(path: Path) -> bool:
    """Whether a file matches its checksum. Reads a mebibyte at a time."""
    try:
        with open(path, "rb") as file:
            head = file.read(_DIGITS.stop)
            if head[8 : _DIGITS.start] != _PREFIX:
                return False
            digest = hashlib.sha256(head[: _DIGITS.start] + _ZEROS)
            while piece := file.read(_CHUNK):
                digest.update(piece)
            return head[_DIGITS] == digest.hexdigest().encode("ascii")
    except OSError:
        return False


def _digest(head: bytes, *more: memoryview) -> bytes:
    """The checksum of the file `head` + `more`, for any digits in `head`."""
    digest = hashlib.sha256(head[: _DIGITS.start] + _ZEROS)
    for piece in (memoryview(head)[_DIGITS.stop :], *more):
        digest.update(piece)
    return digest.hexdigest().encode("ascii")
