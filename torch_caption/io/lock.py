"""Locks: one process per run directory, and one run per process.

The lock of a directory is an operating system lock on an open file, and is released when the process exits in any way.
The file remains.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from torch_caption.errors import RunInUse
from torch_caption.io import files

NAME = "lock"
_trains: dict[int, object] = {}  # by process: a fork does not own the run of its parent


@contextmanager
def alone_in_process() -> Iterator[None]:
    """In the block, no other thread of this process can train.

    All threads share torch's global generator, which a run seeds and uses: two concurrent runs would not be determined
    by their seeds.

    Raises:
        RunInUse: another thread trains.
    """
    process, this = os.getpid(), object()
    try:
        if _trains.setdefault(process, this) is not this:  # atomic
            raise RunInUse(
                "another run trains in this process, and both would use PyTorch's global random generator: wait "
                "until it ends, or train in another process"
            )
        yield
    finally:
        if _trains.get(process) is this:
            del _trains[process]


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """In the block, no other process can train in the run's directory.

    Raises:
        RunInUse: another process trains there.
        OSError: the lock cannot be written.
    """
    path = run / NAME
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise RunInUse(f"{run}: {_holder(path)} trains there; wait until it ends, or stop it") from None
    try:
        if os.name == "posix":  # on other systems a locked file cannot be read
            with files.writing(path, "free disk space, and start again"):
                path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    holder = path.read_text(encoding="utf-8", errors="replace").strip() if os.name == "posix" else ""
    return holder or "another process"
