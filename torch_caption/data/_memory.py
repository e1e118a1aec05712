"""How much memory there is, and whether what data declares may take its share of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from torch_caption.errors import DataError

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def has_room(size: int) -> bool:
    """Whether so many bytes are at most half of the memory that this process may have."""
    memory = available()
    return memory is None or size <= memory // 2


def check_room(size: int, where: str, remedy: str) -> None:
    """Raise DataError if there is no room for so many bytes."""
    if not has_room(size):
        raise DataError(
            f"{where} would take {size:,} bytes of memory, more than half of the {available():,} here; {remedy}"
        )


def available() -> int | None:
    """Bytes of the machine, or of the container or other control group if that may have less; None where the system
    does not say."""
    sizes = [*_limits()]
    with contextlib.suppress(AttributeError, ValueError, OSError):  # as on Windows
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(sizes, default=None)


def _limits() -> Iterator[int]:
    """Of the control groups that hold this process; without a limit version 2 says "max", version 1 almost 2^63."""
    for folder, name in _groups():
        try:
            limit = (folder / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):  # a group without such a file, as the root is, or one that is not shown here
            continue
        if limit.isdecimal():
            yield int(limit)


def _groups() -> Iterator[tuple[Path, str]]:
    """The folder of each, from the root on, and which file has its limit. In a container the root is its own."""
    paths = {"memory.max": "/", "memory.limit_in_bytes": "/"}
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not kinds:
            paths["memory.max"] = path
        elif "memory" in kinds.split(","):
            paths["memory.limit_in_bytes"] = path
    for name, path in paths.items():
        root = CGROUPS if name == "memory.max" else CGROUPS / "memory"
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield root.joinpath(*parts[:depth]), name
