"""How much memory there is, and whether what data declares may take its share of it."""

from __future__ import annotations

import os

from torch_caption.errors import DataError


def has_room(size: int) -> bool:
    """Whether so many bytes are at most half of the memory of this machine."""
    memory = available()
    return memory is None or size <= memory // 2


def check_room(size: int, where: str, remedy: str) -> None:
    """Raise DataError if there is no room for so many bytes."""
    if not has_room(size):
        raise DataError(
            f"{where} would take {size:,} bytes of memory, more than half of the {available():,} here; {remedy}"
        )


def available() -> int | None:
    """Bytes of the machine; None where the system does not say. The limit of a container is not read."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return None
