"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from tests.helpers.data_directory import coco_directory, replace  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run, on machines of any speed; nothing is written beside the tests.
settings.register_profile(
    "torch_caption",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))
settings.load_profile("torch_caption")


# A signal that is ignored, as SIGHUP is under nohup, would be so in every program that a test starts.
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests run side by side, one process a core."""
    torch.set_num_threads(1)


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """`randn(*shape)`: float64 numbers that require grad, the same in every run; dtype may be given."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, outside the repository."""
    folder = Path(os.environ.get("TORCH_CAPTION_SHARED") or ROOT.parent / "shared" / "data")
    if not (folder / "flickr8k_cs231n").is_dir():
        pytest.skip(f"no real data at {folder}; TORCH_CAPTION_SHARED names another place")
    return folder


def _open_here() -> Iterator[Path]:
    """The files that this process has open or mapped."""
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            yield Path(os.readlink(descriptor))
        except OSError:  # the listing's own
            continue
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, slash, name = line.partition("/")
        if slash:
            yield Path(slash + name)


def _refuse_open(path: Any, dir_fd: int | None = None) -> None:
    """Raise Windows' error if the file, or one within the folder, is open."""
    folder = Path.cwd() if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}"))
    place = folder / os.fsdecode(path)
    place = place.parent.resolve() / place.name  # a link is removed itself
    held = next((name for name in _open_here() if name == place or place in name.parents), None)
    if held is not None:
        reason = "The process cannot access the file because it is being used by another process"
        raise PermissionError(13, reason, str(path))


@pytest.fixture
def windows_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as Windows has them: what is open or mapped in this process can be neither removed, renamed nor replaced,
    a folder with such a file neither, and a rename onto what exists is refused.

    Everything that removes or renames ends in these functions of `os`. Windows itself needs no emulation; elsewhere,
    without a /proc that tells of open files, the test runs without it.
    """
    if sys.platform == "win32" or not Path("/proc/self/maps").exists():
        return
    unlink, rename, replace = os.unlink, os.rename, os.replace  # noqa: F811

    def removed(path: Any, *, dir_fd: int | None = None) -> None:
        _refuse_open(path, dir_fd)
        unlink(path, dir_fd=dir_fd)

    def renamed(source: Any, target: Any, **folders: Any) -> None:
        _refuse_open(source, folders.get("src_dir_fd"))
        if os.path.lexists(target):
            raise FileExistsError(17, "Cannot create a file when that file already exists", str(source))
        rename(source, target, **folders)

    def replaced(source: Any, target: Any, **folders: Any) -> None:
        _refuse_open(source, folders.get("src_dir_fd"))
        _refuse_open(target, folders.get("dst_dir_fd"))
        if Path(target).is_dir():
            raise PermissionError(13, "Access is denied", str(source))
        replace(source, target, **folders)

    monkeypatch.setattr("shutil._use_fd_functions", False)  # as there: by name, not by descriptors of folders
    monkeypatch.setattr(os, "unlink", removed)
    monkeypatch.setattr(os, "remove", removed)
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
