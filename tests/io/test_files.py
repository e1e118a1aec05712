"""Atomic replacement of files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from torch_caption.io import files


def put(path: Path, content: bytes, *, keep: bool = True) -> None:
    files.replace(path, lambda file: file.write(content), keep=(lambda old: True) if keep else None)  # type: ignore[arg-type]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("path", "previous"),
    [("last.pt", "last.previous.pt"), ("a.b/last.best.pt", "a.b/last.best.previous.pt"), ("last", "last.previous")],
)
def test_the_name_of_the_previous_file(path, previous):
    assert files.previous(path) == Path(previous)


def test_a_file_is_replaced_and_the_previous_kept_if_wanted(tmp_path):
    path = tmp_path / "last.pt"
    for content in (b"1", b"2", b"3"):
        put(path, content)
    assert content_of(tmp_path) == {"last.pt": b"3", "last.previous.pt": b"2"}
    put(path, b"4", keep=False)
    assert content_of(tmp_path) == {"last.pt": b"4", "last.previous.pt": b"2"}
    files.replace(path, lambda file: None, keep=lambda old: old.read_bytes() != b"4")  # not worth keeping
    assert content_of(tmp_path) == {"last.pt": b"", "last.previous.pt": b"2"}


def test_a_failed_write_changes_nothing(tmp_path):
    path = tmp_path / "last.pt"
    put(path, b"1")
    put(path, b"2")
    before = content_of(tmp_path)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.replace(path, fail, keep=lambda old: True)
    assert content_of(tmp_path) == before


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    put(path, b"1")
    done: list[str] = []

    def noted(step: str) -> None:
        original = getattr(os, step)

        def run(*args: Any) -> Any:
            if step == "fsync":
                kind = "folder" if stat.S_ISDIR(os.fstat(args[0]).st_mode) else "file"
                done.append(f"flush {kind} of {os.fstat(args[0]).st_size}" if kind == "file" else "flush folder")
            else:
                done.append(f"{step} {Path(args[-1]).name.partition('.tmp')[0].split('.' + str(os.getpid()))[0]}")
            return original(*args)

        monkeypatch.setattr(os, step, run)

    for step in ("fsync", "link", "replace"):
        noted(step)
    put(path, b"22")
    flushed = [] if os.name == "nt" else ["flush folder"]
    before = ["link last.previous.pt", "replace last.previous.pt"]
    assert done == ["flush file of 2", *before, "replace last.pt", *flushed]


@pytest.mark.parametrize("step", ["replace", "link", "fsync"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_error_of_the_system_leaves_whole_files(tmp_path, monkeypatch, step, which):
    path = tmp_path / "last.pt"
    put(path, b"1")
    put(path, b"2")
    original, calls = getattr(os, step), []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > which:
            raise OSError(errno.EIO, "Input/output error")
        return original(*args)

    monkeypatch.setattr(os, step, fail)
    try:
        put(path, b"3")
    except OSError:
        assert path.read_bytes() in (b"2", b"3")
    else:
        assert path.read_bytes() == b"3"
    assert files.previous(path).read_bytes() in (b"1", b"2")
    assert len(content_of(tmp_path)) == 2


def test_the_previous_file_is_copied_where_links_are_refused(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_a_file_is_replaced_and_the_previous_kept_if_wanted(tmp_path)


def test_a_process_killed_between_the_two_renames_does_no_harm(tmp_path):
    """`rename` does nothing where both names are of one file."""
    path = tmp_path / "last.pt"
    put(path, b"1")
    os.link(path, files.previous(path))
    put(path, b"2")
    assert content_of(tmp_path) == {"last.pt": b"2", "last.previous.pt": b"1"}


def test_temporary_files_of_ended_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    path = tmp_path / "last.pt"
    put(path, b"1")
    left = [f"last.pt.{dead.pid}.0.tmp", f"last.previous.pt.{dead.pid}.3.tmp", f"last.pt.{os.getpid()}.999999.tmp"]
    others = [f"last.pt.{living}.0.tmp", "last.pt.tmp", "best.pt.1.0.tmp", f"last.pt.{dead.pid}.x.tmp", "last.pt.old"]
    for name in left + others:
        (tmp_path / name).write_bytes(b"half")
    put(path, b"2")
    assert content_of(tmp_path).keys() == {"last.pt", "last.previous.pt", *others}


def test_two_writers_at_once_write_whole_files(tmp_path):
    path = tmp_path / "last.pt"

    def write(file: BinaryIO) -> None:
        file.write(b"outer")
        put(path, b"inner")

    files.replace(path, write, keep=lambda old: True)
    assert content_of(tmp_path) == {"last.pt": b"outer", "last.previous.pt": b"inner"}


def test_paths_in_the_home_folder_are_stored_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert files.at_home(str(tmp_path / "data" / "coco")) == "~/data/coco"
    assert files.from_home("~/data/coco") == str(tmp_path / "data" / "coco")
    for other in ("scenes", "data/coco", str(tmp_path.parent), "~somebody/x"):
        assert files.at_home(other) == files.from_home(other) == other
