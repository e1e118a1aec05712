"""Sizes and SHA-256 of the files of a data directory, in its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torch_caption.__main__ import main
from torch_caption.data import manifest as manifests
from torch_caption.data.dataset import open_data
from torch_caption.errors import DataError

KINDS = {"vgg16_fc7_pca": {"pca": True}, "vgg16_fc7": {"pca": False}, "grid": {"grids": True}}


@pytest.fixture
def marked(coco_directory: Callable[..., Path]) -> Path:
    """A directory with every kind of features, names, and marks of all that is in it."""
    directory = coco_directory(kinds=("_pca", ""), grid=(2, 2))
    (directory / "train2014_images.txt").write_text("".join(f"{k}.jpg\n" for k in range(7)), encoding="utf-8")
    (directory / "captions_val2014.json").write_text("{}", encoding="utf-8")
    mark(directory, manifests.marks({path.name: path for path in directory.iterdir()}))
    return directory


def mark(directory: Path, files: Any) -> None:
    (directory / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_marks_are_sizes_and_sha256(tmp_path):
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "a").write_bytes(b"")
    found = manifests.marks({"later": tmp_path / "b", "a": tmp_path / "a"})
    assert list(found) == ["a", "later"]
    assert found["later"] == {"bytes": 3, "sha256": hashlib.sha256(b"two").hexdigest()}


def test_a_changed_byte_of_any_file_is_found(marked, capsys):
    for path in sorted(marked.iterdir()):
        if path.name == "manifest.json":
            continue
        for place in (0, path.stat().st_size // 2, -1):
            flip(path, place)
            assert main(["check-data", str(marked)]) == 2, (path, place)
            assert capsys.readouterr().err == (
                f"error: {path}: another SHA-256 than manifest.json has; it is damaged or incomplete: restore "
                "the original file (or, if it was changed on purpose, remove its entry from manifest.json)\n"
            )
            flip(path, place)
    assert main(["check-data", str(marked)]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_verified_where_they_are_used(marked, kind):
    path = marked / f"val2014_{kind}.h5"
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    for other, which in KINDS.items():
        if other == kind:
            with pytest.raises(DataError) as raised:
                open_data(marked, **which)
            message = f"{path}: {len(content) - 8:,} bytes, not the {len(content):,} that manifest.json has; "
            assert str(raised.value).startswith(message)
        else:
            open_data(marked, **which)


def test_check_data_finds_a_missing_file_that_open_data_does_not_read(marked, capsys):
    (marked / "captions_val2014.json").unlink()
    open_data(marked)  # which does not read it
    assert main(["check-data", str(marked)]) == 2
    assert capsys.readouterr().err == (
        f"error: {marked / 'captions_val2014.json'}: cannot be read: No such file or directory\n"
    )


def test_a_changed_file_is_accepted_without_its_entry(marked):
    path = marked / "train2014_images.txt"
    path.write_text("other.jpg\n" * 7, encoding="utf-8")
    with pytest.raises(DataError, match="train2014_images"):
        open_data(marked)
    files = json.loads((marked / "manifest.json").read_text(encoding="utf-8"))["files"]
    del files["train2014_images.txt"]
    mark(marked, files)
    assert open_data(marked)["train"].image_name(3) == "other.jpg"


SOUND = {"bytes": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"files is \[\], not an object"),
        ({"a": 5}, "files has 5 for 'a', not the bytes and the sha256 of a file of the folder"),
        ({"../a": SOUND}, "for '../a'"),
        ({"..": SOUND}, r"for '\.\.'"),
        ({"a\\b": SOUND}, r"for 'a\\\\b'"),
        ({"a": SOUND | {"bytes": True}}, "for 'a'"),
        ({"a": SOUND | {"sha256": "0" * 64 + "\n"}}, "for 'a'"),
    ],
)
def test_invalid_marks_are_refused(coco_directory, files, message):
    directory = coco_directory()
    mark(directory, files)
    with pytest.raises(DataError, match=rf"manifest\.json: .*{message}.*; write it again$"):
        open_data(directory)


def test_a_mark_of_an_impossible_file_name_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: files has .*, not the name of a file"):
        manifests.check(tmp_path, {"files": {"a\0b": SOUND}}, [tmp_path / "a\0b"])
