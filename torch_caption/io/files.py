"""Atomic replacement of files, with an optional copy of the previous one.

A new file is written under a temporary name in the same folder, flushed to the disk and renamed. If the process is
killed at any moment, the path has either the complete old or the complete new file.
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
_being_written: set[Path] = set()  # by this process: other such names were left by a process with the same id
WINDOWS = os.name == "nt"
_PATH_ERRORS = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}
_PAUSES = (0.02, 0.1, 0.5, 1.0, 2.0)


def previous(path: str | Path) -> Path:
    """The path of the previous file of `path`: `last.previous.safetensors` for `last.safetensors`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def at_home(path: str) -> str:
    """The path with `~` for the user's home folder."""
    try:
        return f"~/{Path(path).relative_to(Path.home()).as_posix()}"
    except (ValueError, RuntimeError):  # it is outside, or there is no home folder
        return path


def from_home(path: str) -> str:
    """The inverse of `at_home` for the current user."""
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
    """In the block, errors of the file system get a message with the path of the file.

    Args:
        advice: for errors that more disk space may solve.
        elsewhere: for the other errors.

    Raises:
        OSError: with the same number.
    """
    try:
        yield
    except OSError as error:
        what = elsewhere if error.errno in _PATH_ERRORS else advice
        named = OSError("; ".join(filter(None, [f"{path}: could not be written: {error.strerror or error}", what])))
        named.errno = error.errno
        raise named from error


def replace(
    path: str | Path, write: Callable[[BinaryIO], object], *, keep: Callable[[Path], bool] | None = None
) -> None:
    """Replace the file at `path` atomically.

    An existing `path`, and `previous(path)`, is a complete file at every moment. Incomplete files of killed processes
    are removed.

    Args:
        write: writes the content to a file object.
        keep: whether to keep the file at `path` as `previous(path)`; None does not keep it.

    Raises:
        OSError: the file cannot be written; existing files are unchanged.
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
    """`replace` with a text, in UTF-8 and with unchanged line endings."""
    replace(path, lambda file: file.write(text.encode("utf-8")), keep=lambda _: keep)


def _keep(path: Path) -> None:
    """Link the file at `path` as `previous(path)`, or copy it if the file system has no hard links."""
    kept = previous(path)
    with _beside(kept) as beside:
        try:
            os.link(path, beside)
        except OSError:
            with open(path, "rb") as source, open(beside, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
                copy.flush()
                os.fsync(copy.fileno())
        _rename(beside, kept)  # no effect if both names are the same file; the temporary name remains


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A free temporary name beside `path`; a file of this name is removed at the end."""
    _sweep(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.{next(_numbers)}.tmp")
    _being_written.add(beside)
    try:
        beside.unlink(missing_ok=True)  # of a process that had the same id
        yield beside
    finally:
        beside.unlink(missing_ok=True)
        _being_written.discard(beside)


def _sweep(path: Path) -> None:
    """Remove the temporary files of killed processes beside `path`."""
    name = re.compile(re.escape(path.name) + r"\.(\d+)\.\d+\.tmp")
    for found in path.parent.glob(f"{escape(path.name)}.*.tmp"):
        match = name.fullmatch(found.name)
        if match and found not in _being_written and not _lives(int(match[1])):
            try:
                found.unlink(missing_ok=True)
            except PermissionError:  # on Windows an open file cannot be removed
                if not WINDOWS:
                    raise


def _lives(process: int) -> bool:
    """Whether another process with this id runs. False on Windows, where an open file cannot be removed."""
    if process == os.getpid() or WINDOWS:  # there, os.kill kills with every signal
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _rename(source: Path, target: Path) -> None:
    """`os.replace`, repeated for some seconds, since Windows refuses it while another process reads the target."""
    for pause in _PAUSES if WINDOWS else ():
        try:
            os.replace(source, target)
        except PermissionError:
            sleep(pause)
        else:
            return
    os.replace(source, target)


def _flush_folder(folder: Path) -> None:
    """Flush the new names to the disk, if the system can flush a folder."""
    if WINDOWS:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a network file system may not support it
            raise
    finally:
        os.close(descriptor)
