"""Runs that the tests of the commands share."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.helpers.command import SMALL
from tests.helpers.tiny_data import write_tiny
from torch_caption.__main__ import main


def train(folder: Path, *args: str) -> str:
    """What `train` prints in the folder."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        assert main(["train", *SMALL, *args]) == 0
    return out.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with data and a run of it, and what `train` printed."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny(folder / "tiny", pictures=True)
    return folder, train(folder, "--data", "tiny", "--epochs", "8", "--cell-type", "lstm")


@pytest.fixture(scope="session")
def attending(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grids and a run of attention over them."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny(folder / "grids", pictures=True, grids=True)
    train(folder, "--data", "grids", "--epochs", "2", "--cell-type", "attention")
    return folder


@pytest.fixture
def in_folder(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of `trained` is the current one."""
    monkeypatch.chdir(trained[0])
    return trained[0]
