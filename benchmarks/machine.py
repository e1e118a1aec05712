"""What the figures depend on: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import torch

from benchmarks.options import THREAD_VARIABLES
from torch_caption import __version__


def describe() -> dict[str, str]:
    """Names and values, for the head of the output."""
    return {
        "torch_caption": __version__,
        "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "PyTorch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "NumPy": f"{np.__version__}, {_blas()}",
        "processor": processor(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch finds",
        "threads": f"{torch.get_num_threads()} of PyTorch's; NumPy's BLAS: {_blas_threads()}",
    }


def processor() -> str:
    """The processor's name, as far as the system tells it, and how many cores it has."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def used() -> tuple[float, float]:
    """Seconds of processor time that anyone has used since the system started, and that this process has."""
    own = sum(os.times()[:4])
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:]]
    except OSError:
        return own, own
    idle = sum(ticks[3:5])  # idle, and idle for want of a disk
    return (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK"), own


def others(before: tuple[float, float], seconds: float) -> float:
    """The share of all cores that other processes have had since `used` returned `before`, `seconds` ago."""
    anyone, own = (now - then for now, then in zip(used(), before, strict=True))
    return max(0.0, anyone - own) / (seconds * (os.cpu_count() or 1))


def _blas() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _blas_threads() -> str:
    """NumPy offers no way to ask: what the environment tells its BLAS, one thread a core where it says nothing."""
    told = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    return ", ".join(told) or f"not set, so one a core, {os.cpu_count()}"
