"""What `torch_caption` itself offers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import torch_caption


def test_the_package_has_the_names_that_it_declares() -> None:
    for name in torch_caption.__all__:
        assert getattr(torch_caption, name).__name__.removeprefix("torch_caption.") == name
    assert set(torch_caption.__all__) <= {*dir(torch_caption)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = torch_caption.nothing


def test_its_import_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, torch_caption; assert 'torch' not in sys.modules"], check=True)


def test_it_is_typed() -> None:
    assert (Path(torch_caption.__file__).parent / "py.typed").is_file()
