"""Files that are replaced whole or not at all, and the one before that is kept.

What is new is written beside its place under a name of its own, flushed to the disk and renamed. Whoever dies in
between, at any moment, leaves at the file's place either the old one or the new one, whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from itertools import count
from pathlib import Path
from time import sleep
from typing import BinaryIO

_numbers = count()
_being_written: set[Path] = set()  # by this process: others of its names were left by one that had its number
WINDOWS = os.name == "nt"
_NO_MATTER_OF_ROOM = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
_PAUSES = (0.02, 0.1, 0.5, 1.0, 2.0)


def previous(path: str | Path) -> Path:
    """Where the file before the one at `path` is kept: `last.previous.safetensors` for `last.safetensors`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def at_home(path: str) -> str:
    """The path with `~` for the user's own folder, which others need not know and have elsewhere."""
    try:
        return f"~/{Path(path).relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):  # it is elsewhere, or there is no such folder
        return path


def from_home(path: str) -> str:
    """The inverse of `at_home`, for the user who asks."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~/") else path
    except RuntimeError:
        return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: str | Path, advice: str, elsewhere: str = "") -> Iterator[None]:
    """In the block, what the file system refuses is told with the file that was written.

    Args:
        advice: what to do, unless it is certain that more room would not help.
        elsewhere: what to do then.

    Raises:
        OSError: so it is, of the same number.
    """
    try:
        yield
    except OSError as error:
        what = elsewhere if error.errno in _NO_MATTER_OF_ROOM else advice
        told = OSError("; ".join(filter(None, [f"{path}: could not be written: {error.strerror or error}", what])))
        told.errno = error.errno
        raise told from error


def replace(
    path: str | Path, write: Callable[[BinaryIO], object], *, keep: Callable[[Path], bool] | None = None
) -> None:
    """Put what `write` writes in the place of whatever is at `path`, all of it or nothing.

    At no moment is there no whole file at `path`, once there was one; nor at `previous(path)`, once there was one. What
    other processes left half written when they died is removed.

    Args:
        write: fills the file it is given.
        keep: says whether the file at `path` is worth keeping; then it stays as `previous(path)`. None keeps nothing.

    Raises:
        OSError: the file cannot be written; those that were there are as before.
    """
    path = Path(path)
    with _beside(path) as beside:
        with open(beside, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.is_file() and keep(path):
            _keep(path)
        _rename(beside, path)
    _flush_folder(path.parent)


def replace_text(path: str | Path, text: str, *, keep: bool = False) -> None:
    """`replace` with a text, in UTF-8 and with its ends of lines as they are."""
    replace(path, lambda file: file.write(text.encode("utf-8")), keep=lambda _: keep)


def _keep(path: Path) -> None:
    """Give the file at `path` the name `previous(path)` as well; a copy where the file system has one name a file."""
    kept = previous(path)
    with _beside(kept) as beside:
        try:
            os.link(path, beside)
        except OSError:
            with open(path, "rb") as source, open(beside, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        _rename(beside, kept)  # where both name one file already it does nothing, and the name beside goes


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free name beside `path`, and nothing under it afterwards."""
    _sweep(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
    _being_written.add(beside)
    try:
        beside.unlink(missing_ok=True)  # of a process that had this one's number
        yield beside
    finally:
        beside.unlink(missing_ok=True)
        _being_written.discard(beside)


def _sweep(path: Path) -> None:
    """Remove what processes that are no more left beside `path`."""
    name = re.compile(re.escape(path.name) + r"\.(\d+)\.\d+\.tmp")
    for found in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        match = name.fullmatch(found.name)
        if match and found not in _being_written and not _lives(int(match[1])):
            try:
                found.unlink(missing_ok=True)
            except PermissionError:  # on Windows a file that somebody writes cannot go
                if not WINDOWS:
                    raise


def _lives(process: int) -> bool:
    """Whether another process of that number runs; where that cannot be asked, no: its open file refuses to go."""
    if process == os.getpid() or WINDOWS:  # there, os.kill kills whatever the signal
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _rename(source: Path, target: Path) -> None:
    """`os.replace`, which Windows refuses while somebody reads the target: then again, for some seconds."""
    for pause in _PAUSES if WINDOWS else ():
        try:
            os.replace(source, target)
        except PermissionError:
            sleep(pause)
        else:
            return
    os.replace(source, target)


def _flush_folder(folder: Path) -> None:
    """Bring the new names to the disk too, where a folder can be flushed."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a network's file system may not know how
            raise
    finally:
        os.close(descriptor)
