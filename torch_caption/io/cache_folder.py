"""The user's cache folders, and the handling of missing or read-only ones."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CACHE = "TORCH_CAPTION_CACHE"
"""The environment variable for the folder that `cache` returns."""


def cache() -> Path:
    """This library's cache folder: from the environment, else in the platform's cache directory.

    Raises:
        OSError: the user has no home folder.
    """
    named = os.environ.get(CACHE)
    if named:
        return _expanded(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(base) / "torch_caption"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OSError(f"{path}: this user has no home folder; set {CACHE} to a folder that can be written") from None


def for_matplotlib() -> dict[str, str]:
    """Additions to the environment before Matplotlib is imported.

    Matplotlib needs a configuration folder and a cache folder. If one cannot be written it prints a warning, or fails
    for a user without a home folder. It then gets a folder that is removed when this process exits.
    """
    if "MPLCONFIGDIR" in os.environ:
        return {}
    if not sys.platform.startswith(("linux", "freebsd")):
        folders = [Path("~/.matplotlib")]
    else:
        bases = {"XDG_CONFIG_HOME": "~/.config", "XDG_CACHE_HOME": "~/.cache"}
        folders = [Path(os.environ.get(name) or base) / "matplotlib" for name, base in bases.items()]
    if all(map(_can_be_written, folders)):
        return {}
    with suppress(OSError):  # without disk space the warning remains
        folder = tempfile.mkdtemp(prefix="torch_caption-")
        atexit.register(_remove, folder, os.getpid())
        return {"MPLCONFIGDIR": folder}
    return {}


def _can_be_written(folder: Path) -> bool:
    """Whether the folder can be written; it is created if it is missing, as Matplotlib does."""
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    except (RuntimeError, OSError):  # RuntimeError: there is no home folder
        return False


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in a fork of the process
        shutil.rmtree(folder, ignore_errors=True)
