"""Available memory, and whether data of a declared size may use it."""

from __future__ import annotations

import os

from torch_caption.errors import DataError


def has_room(size: int) -> bool:
    """Whether `size` bytes are at most half of the memory of this machine."""
    memory = available()
    return memory is None or size <= memory // 2


def check_room(size: int, where: str, remedy: str) -> None:
    """Raise DataError unless `has_room(size)`."""
    if not has_room(size):
        raise DataError(
            f"{where} would take {size:,} bytes of memory, more than half of the {available():,} here; {remedy}"
        )


def available() -> int | None:
    """Memory of the machine in bytes; None if unknown. The limit of a container is not read."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return None
