"""`check-data`: what it prints of a sound directory, and how it names a damaged one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command import refusal
from torch_caption.__main__ import main
from torch_caption.data import dataset


def test_splits_and_kinds_are_printed(coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = coco_directory(kinds=("_pca", ""), grid=(4, 2))
    assert main(["check-data", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{directory}: valid, 10 words"
    assert [line.split() for line in lines[1:]] == [
        ["split", "captions", "length", "images", "vgg16_fc7_pca", "vgg16_fc7", "grid"],
        ["train", "21", "6", "7", "3", "3", *["3", "x", "4", "x", "2"]],
        ["val", "12", "6", "4", "3", "3", *["3", "x", "4", "x", "2"]],
    ]


@pytest.mark.parametrize("kind", ["vgg16_fc7_pca", "vgg16_fc7", "grid"])
def test_damage_of_any_kind_is_found(
    coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    directory = coco_directory(kinds=("_pca", ""), grid=(2,))
    path = directory / f"val2014_{kind}.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(["check-data", str(directory)], capsys).startswith(f"error: {path}: not a readable HDF5 file")


def test_a_kind_that_one_split_lacks_is_refused(
    coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = coco_directory(kinds=("_pca", ""))
    (directory / "val2014_vgg16_fc7.h5").unlink()
    dataset.open_data(directory)  # which reads the other
    assert "val2014_vgg16_fc7.h5: no such file" in refusal(["check-data", str(directory)], capsys)


def test_a_directory_of_grids_alone(coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(coco_directory(kinds=(), grid=(5,)))]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["train", "21", "6", "7", "3", "x", "5"]
