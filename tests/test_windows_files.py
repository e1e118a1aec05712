"""Nothing is removed, renamed or replaced while it is open: Windows refuses it."""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("windows_files")


def written(path: Path, content: bytes = b"x") -> Path:
    path.write_bytes(content)
    return path


# The emulation itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unlink", "os.remove", "rename", "replace", "replaced", "shutil.move", "its folder"])
def test_what_is_open_stays(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path, other = written(folder / "a"), tmp_path / "b"
    acts = {
        "unlink": path.unlink,
        "os.remove": lambda: os.remove(path),
        "rename": lambda: path.rename(other),
        "replace": lambda: path.replace(other),
        "replaced": lambda: written(other).replace(path),
        "shutil.move": lambda: shutil.move(path, other),
        "its folder": lambda: folder.rename(tmp_path / "c"),
    }
    with path.open("rb"), pytest.raises(PermissionError):
        acts[how]()
    assert path.exists()
    acts[how]()
    assert path.exists() == (how == "replaced")


def test_trees_and_maps(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = written(folder / "a")
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with pytest.raises(PermissionError):
        shutil.rmtree(folder)
    mapped.close()
    shutil.rmtree(folder)
    assert not folder.exists()


def test_renaming_onto_what_exists(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        written(tmp_path / "a").rename(written(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    with pytest.raises(PermissionError):
        (tmp_path / "a").replace(tmp_path / "c")
    (tmp_path / "a").replace(tmp_path / "b")
