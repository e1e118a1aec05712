"""The form of the commands of this package, for help and messages."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = ("train.py", "sample.py")
"""The scripts beside the package in a checkout."""


def typed(command: str) -> str:
    """A command in the form that started this program, such as `torch-caption train` or `python train.py`."""
    started = Path(sys.argv[0])
    if started.stem == "torch-caption":
        return f"torch-caption {command}"
    if started.name in SCRIPTS and f"{command}.py" in SCRIPTS:
        return f"python {command}.py"
    return f"python -m torch_caption {command}"
