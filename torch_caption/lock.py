"""One process in a run's directory: a second one that would train there is refused while the first lives.

The lock is the operating system's own, on an open file, and goes with the process however it ends. The file stays.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from torch_caption import files

NAME = "lock"


class RunInUse(ValueError):
    """Another process trains in the run's directory; the message is one line that names it."""


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Train in the run's directory, and let no other process train there.

    Raises:
        RunInUse: another does.
        OSError: the lock cannot be written.
    """
    path = run / NAME
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunInUse(f"{run}: {_holder(path)} trains there; wait until it ends, or stop it") from None
    try:
        if os.name == "posix":  # elsewhere a locked file cannot be read, and so need not be written
            with files.writing(path, "make room, and begin again"):
                path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    said = path.read_text(encoding="utf-8", errors="replace").strip() if os.name == "posix" else ""
    return said or "another process"
