"""Compare hand-derived with automatic gradients, by name and in every mode."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

import torch
import tyro

from torch_caption.io.memory import within_memory
from torch_caption.verify import compare
from torch_caption.verify.compare import LETTERS, CompareConfig


def main(args: Sequence[str], prog: str) -> None:
    """Exits with status 1 if a gradient or a mode is wrong."""
    with within_memory("--N", "--T", "--H", "--V"):
        if not report(tyro.cli(CompareConfig, description=compare.__doc__, prog=prog, args=args)):
            sys.exit(1)


def report(config: CompareConfig) -> bool:
    """Compare, print, write; whether all gradients and modes are correct."""
    compare.check(config)
    warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)  # torch 2.14's about forward mode
    results = compare.run(config)
    print(f"torch {torch.__version__}, {config.device}, {config.dtype}, ", end="")
    print(", ".join(f"{letter}={getattr(config, letter)}" for letter in LETTERS))
    print(compare.table(results))
    print(compare.verdict(results))
    compare.write(config, results)
    return all(result.passed for result in results)
