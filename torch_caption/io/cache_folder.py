"""The user's folders for what can be made again, and what to do where there are none or they cannot be written."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

CACHE = "TORCH_CAPTION_CACHE"
"""The environment's name for the folder that `cache` returns."""


def cache() -> Path:
    """This library's folder: the environment's, else one in the platform's place for caches.

    Raises:
        OSError: the user has no home.
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
    """What to add to the environment before Matplotlib is imported.

    It has a folder in the user's configuration and one in the cache. Where either cannot be written it prints a
    warning, or fails of a user without a home. Then it gets a folder that goes with this process.
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
    with suppress(OSError):  # without room for one the warning stays
        folder = tempfile.mkdtemp(prefix="torch_caption-")
        atexit.register(_remove, folder, os.getpid())
        return {"MPLCONFIGDIR": folder}
    return {}


def _can_be_written(folder: Path) -> bool:
    """Whether the folder can be written; it is made if it is not there, as Matplotlib does."""
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK)
    except (RuntimeError, OSError):  # RuntimeError: there is no home
        return False


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a fork leaves it to its parent
        shutil.rmtree(folder, ignore_errors=True)
