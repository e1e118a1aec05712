"""One process in a run's directory, and one run in a process: a second is refused while the first trains.

A directory's lock is the operating system's own, on an open file, and goes with the process however it ends. The file
stays.
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
_trains: dict[int, object] = {}  # by process: of a fork the parent's run is not its own


@contextmanager
def alone_in_process() -> Iterator[None]:
    """Train in this process, and let no other thread of it train meanwhile.

    All threads share torch's global generator, which a run seeds and draws from: of two runs at once neither would be
    that of its seed.

    Raises:
        RunInUse: another thread does.
    """
    process, this = os.getpid(), object()
    try:
        if _trains.setdefault(process, this) is not this:  # atomic
            raise RunInUse(
                "another run trains in this process, and both would draw from PyTorch's global random generator: wait "
                "until it ends, or train in a process of its own"
            )
        yield
    finally:
        if _trains.get(process) is this:
            del _trains[process]


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
