"""`python -m torch_caption check-data` as its user meets it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_caption.__main__ import main
from torch_caption.data import dataset

CAPTIONS = "coco2014_captions.h5"


def test_every_split_and_kind_is_told(coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_fault_in_any_kind_is_found(
    coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    directory = coco_directory(kinds=("_pca", ""), grid=(2,))
    path = directory / f"val2014_{kind}.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["check-data", str(directory)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {path}: not a readable HDF5 file")


def test_a_kind_that_one_split_lacks_is_a_fault(
    coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = coco_directory(kinds=("_pca", ""))
    (directory / "val2014_vgg16_fc7.h5").unlink()
    dataset.open_data(directory)  # it takes the other
    assert main(["check-data", str(directory)]) == 2
    assert "val2014_vgg16_fc7.h5: no such file" in capsys.readouterr().err


def test_a_directory_of_grids_alone(coco_directory: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(coco_directory(kinds=(), grid=(5,)))]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["train", "21", "6", "7", "3", "x", "5"]


def test_as_a_program(coco_directory: Callable[..., Path]) -> None:
    directory = coco_directory()
    command = [sys.executable, "-m", "torch_caption", "check-data"]
    sound = subprocess.run([*command, str(directory)], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (sound.returncode, sound.stderr) == (0, "")
    (directory / CAPTIONS).unlink()
    faulty = subprocess.run([*command, str(directory)], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (faulty.returncode, faulty.stdout, faulty.stderr.count("\n")) == (2, "", 1)
    assert faulty.stderr.startswith(f"error: {directory / CAPTIONS}: no such file; ")
    without = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert without.returncode == 2
    assert "Traceback" not in without.stderr
