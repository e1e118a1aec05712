"""Files that are replaced whole or not at all."""

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


def there(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("path", "before"),
    [("last.pt", "last.previous.pt"), ("a.b/last.best.pt", "a.b/last.best.previous.pt"), ("last", "last.previous")],
)
def test_the_name_of_the_one_before(path: str, before: str) -> None:
    assert files.previous(path) == Path(before)


def test_replaced_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    for content in (b"1", b"2", b"3"):
        put(path, content)
    assert there(tmp_path) == {"last.pt": b"3", "last.previous.pt": b"2"}
    put(path, b"4", keep=False)
    assert there(tmp_path) == {"last.pt": b"4", "last.previous.pt": b"2"}
    files.replace(path, lambda file: None, keep=lambda old: old.read_bytes() != b"4")  # not worth keeping
    assert there(tmp_path) == {"last.pt": b"", "last.previous.pt": b"2"}


def test_a_failure_leaves_everything(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    put(path, b"1")
    put(path, b"2")
    before = there(tmp_path)

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        files.replace(path, fail, keep=lambda old: True)
    assert there(tmp_path) == before


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_failure_of_the_system_leaves_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, which: int
) -> None:
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
    assert len(there(tmp_path)) == 2


def test_where_a_file_has_one_name_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    test_replaced_and_kept(tmp_path)


def test_a_process_that_died_between_the_two_names(tmp_path: Path) -> None:
    """`rename` of one name of a file over another name of it does nothing, and leaves both."""
    path = tmp_path / "last.pt"
    put(path, b"1")
    os.link(path, files.previous(path))
    put(path, b"2")
    assert there(tmp_path) == {"last.pt": b"2", "last.previous.pt": b"1"}


def test_what_the_dead_left_is_removed(tmp_path: Path) -> None:
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
    assert there(tmp_path).keys() == {"last.pt", "last.previous.pt", *others}


def test_two_that_write_at_once_write_both(tmp_path: Path) -> None:
    """Neither takes the other's half file for a dead one's, nor writes into it."""
    path = tmp_path / "last.pt"

    def write(file: BinaryIO) -> None:
        file.write(b"outer")
        put(path, b"inner")

    files.replace(path, write, keep=lambda old: True)
    assert there(tmp_path) == {"last.pt": b"outer", "last.previous.pt": b"inner"}


def test_windows_refuses_while_somebody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is tried again, for some seconds; and an open file that cannot go is left."""
    original, refused, pauses = os.replace, [], []

    def refuse(source: Path, target: Path) -> None:
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        original(source, target)

    def refuse_to_go(path: Path, missing_ok: bool = False) -> None:
        if path.name == "last.pt.77.0.tmp":
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        unlink(path, missing_ok)

    unlink = Path.unlink
    path = tmp_path / "last.pt"
    put(path, b"1")
    (tmp_path / "last.pt.77.0.tmp").write_bytes(b"of somebody who writes")
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse_to_go)
    monkeypatch.setattr(files, "sleep", pauses.append)
    put(path, b"2")
    assert path.read_bytes() == b"2"
    assert len(refused) == len(pauses) == 3
    assert (tmp_path / "last.pt.77.0.tmp").exists()
    refused[:] = []
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no", "last.pt")))
    with pytest.raises(PermissionError):
        put(path, b"3")
    assert path.read_bytes() == b"2"


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("descriptors are listed in Linux's /proc")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        put(tmp_path / "last.pt", bytes([number]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_folders_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert files.at_home(str(tmp_path / "data" / "coco")) == "~/data/coco"
    assert files.from_home("~/data/coco") == str(tmp_path / "data" / "coco")
    for other in ("scenes", "data/coco", str(tmp_path.parent), "~somebody/x"):
        assert files.at_home(other) == files.from_home(other) == other


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "none" / "last.pt", b"1")
