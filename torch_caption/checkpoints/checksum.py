"""A checksum of a whole file within the file, which stays an ordinary file of its kind.

Of an archive (`torch.save`'s is a ZIP file) the SHA-256 of all bytes before it stands in 64 hexadecimal digits at the
end of the archive's comment, which is the end of the file. Of safetensors it is an entry of the header,
`"sha256":"..."`, and is that of the file with zeros in the digits' place. So there is no byte that could change unseen,
and no length at which the file could be cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

SEAL = b"torch_caption sha256 "
DIGITS = 64
SEAL_SIZE = len(SEAL) + DIGITS
MOST_HEADER = 16 * 2**20
NO_DIGITS = "0" * DIGITS
_END_SIZE = 22  # of an archive without a comment
_ENTRY = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_CHUNK = 2**20


class Sealing:
    """A file for `torch.save` that hashes what goes through it, and seals it in the end.

    Attributes:
        failed: what the file beneath raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._end = b""  # held back: an archive's end says how long its comment is
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write through; all but the last 22 bytes, which may be the archive's end."""
        view = memoryview(data).cast("B")
        if len(view) >= _END_SIZE:
            self._pass(self._end)
            self._pass(view[:-_END_SIZE])
            self._end = bytes(view[-_END_SIZE:])
        else:
            held = self._end + bytes(view)
            self._pass(held[:-_END_SIZE])
            self._end = held[-_END_SIZE:]
        return len(view)

    def flush(self) -> None:
        """Nothing is held back but the end."""

    def finish(self) -> None:
        """Write the archive's end and its comment, the seal.

        Raises:
            OSError: what was written is no archive, or the file cannot be written.
        """
        if not self._end.startswith(b"PK\5\6") or not self._end.endswith(b"\0\0"):
            raise OSError("what was written does not end as an archive does")
        self._pass(self._end[:-2] + SEAL_SIZE.to_bytes(2, "little") + SEAL)
        self._file.write(self._hash.hexdigest().encode("ascii"))

    def _pass(self, data: Any) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.failed = error
            raise
        self._hash.update(data)


def is_whole(path: str | Path) -> bool:
    """Whether an archive is sealed and its content is that which was sealed; a mebibyte of it at a time in memory."""
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - DIGITS
            digest = hashlib.sha256()
            while left > 0 and (piece := file.read(min(left, _CHUNK))):
                digest.update(piece)
                left -= len(piece)
            return file.read() == digest.hexdigest().encode("ascii")
    except OSError:
        return False


def archive_is_whole(data: bytes) -> bool:
    """The same of an archive in memory that ends with a seal."""
    return data[-DIGITS:] == _digest(memoryview(data)[:-DIGITS])


def sealed_weights(data: bytes) -> tuple[bytes, memoryview]:
    """safetensors with their checksum, in two pieces: the header, and the numbers as they are.

    The header is the same for the same content, which the library does not promise of its own.

    Raises:
        ValueError: the header is longer than what is read.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {}) | {"sha256": NO_DIGITS}
    header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    head, body = len(text).to_bytes(8, "little") + text, memoryview(data)[8 + size :]
    place = _entry(head)
    if place is None:
        raise ValueError(f"a header of {len(text):,} bytes, and {MOST_HEADER:,} are the most")
    digits = _digest(head[:place], NO_DIGITS.encode("ascii"), head[place + DIGITS :], body)
    return head[:place] + digits + head[place + DIGITS :], body


def weights_are_whole(data: bytes) -> bool | None:
    """Whether safetensors are those which were sealed; None where they are not sealed."""
    place = _entry(data)
    if place is None:
        return None
    view = memoryview(data)
    digits = _digest(view[:place], NO_DIGITS.encode("ascii"), view[place + DIGITS :])
    return data[place : place + DIGITS] == digits


def _entry(data: bytes) -> int | None:
    """Where the digits are in the header."""
    size = int.from_bytes(data[:8], "little")
    if size > min(MOST_HEADER, len(data) - 8):
        return None
    found = [match.start(1) for match in _ENTRY.finditer(data, 8, 8 + size)]
    return found[0] if len(found) == 1 else None


def _digest(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode("ascii")
