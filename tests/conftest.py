"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from tests.helpers.data_directory import coco_directory, replace  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run, on machines of any speed; nothing is written beside the tests. The inner ring alone
# takes the first 20 of them, except in .ci/run.
settings.register_profile(
    "exhaustive",
    max_examples=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("inner", settings.get_profile("exhaustive"), max_examples=20)
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))


def pytest_configure(config: pytest.Config) -> None:
    inner = config.getoption("markexpr") == "not exhaustive" and "CI" not in os.environ
    settings.load_profile("inner" if inner else "exhaustive")


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
