"""What `python -m benchmarks` is told. Nothing here imports torch or NumPy: their threads are set before they start."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import arg

from torch_caption.errors import ConfigError
from torch_caption.io.text import flag_of

Part = Literal[
    "step",
    "layers",
    "modes",
    "decoding",
    "loading",
    "growth",
    "memory",
    "epoch",
    "distributed",
    "checkpoint",
    "photographs",
    "gpu",
]
Cell = Literal["rnn", "lstm"]
THREAD_VARIABLES = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
PARTS: tuple[Part, ...] = get_args(Part)
BY_NAME_ALONE: tuple[Part, ...] = "layers", "modes", "distributed", "checkpoint", "photographs"
"""Measured where they are asked for, so that all the others take less than ten minutes."""
DEFAULT: tuple[Part, ...] = tuple(part for part in PARTS if part not in BY_NAME_ALONE)
CELLS: tuple[Cell, ...] = get_args(Cell)


@dataclass(frozen=True)
class Options:
    """Measure torch_caption against torch.nn, torch.compile and NumPy: same weights, batch and threads, in turns.

    Outputs and gradients are compared before anything is timed; one that differs ends the run with status 1;
    in bfloat16 a peer that differs is left out of the table, with the difference in its notes.
    """

    only: tuple[Part, ...] = DEFAULT
    """The parts to measure; without it all but layers, modes, distributed, checkpoint and photographs."""
    cells: tuple[Cell, ...] = CELLS
    """The recurrent cells to measure."""
    quick: bool = False
    """Tiny sizes, one repetition: shows that everything runs, and says nothing about speed."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all figures to this file as well."""
    threads: Annotated[int | None, arg(metavar="INT")] = None
    """Processor threads of PyTorch and of NumPy's BLAS alike; PyTorch's own choice without it."""
    seconds: float = 5.0
    """Time for the repetitions of a training step, its peers' included; long ones are repeated all the same."""
    compile_seconds: float = 60.0
    """Time for torch.compile in all; what is not compiled by then is left out, 0 leaves all of it out."""
    data: str = "scenes"
    """What the epoch is of: `scenes`, the built-in drawn pictures, or a directory in cs231n's layout."""
    epoch_steps: int = 40
    """Steps of the epoch that are run."""
    epochs: int = 0
    """Whole epochs, in place of --epoch-steps."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        least = {"threads": 1, "seconds": 0, "compile_seconds": 0, "epoch_steps": 1, "epochs": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise ConfigError(f"{flag_of(name)} must be at least {low}, but is {value}")
        for name in ("only", "cells"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} names nothing to measure")
        if self.json and not self.json.parent.is_dir():
            raise ConfigError(f"--json {self.json}: there is no folder {self.json.parent}")

    def small(self) -> Options:
        """The same for a smoke run, which compiles nothing."""
        return replace(self, seconds=0.0, compile_seconds=0.0, epoch_steps=min(self.epoch_steps, 4), epochs=0)
