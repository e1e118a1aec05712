"""What this process has taken of the machine; 0 where that cannot be told, which is everywhere but on Linux."""

from __future__ import annotations

import os
from pathlib import Path


def descriptors() -> int:
    """Open here."""
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


def memory(name: str = "VmHWM") -> float:
    """MiB: VmRSS now, VmHWM the most since the start or since `forget_the_peak`."""
    if not Path("/proc/self/status").exists():
        return 0.0
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_the_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
