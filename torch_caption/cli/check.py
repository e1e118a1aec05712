"""Check solutions of the assignment, and name their mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from torch_caption.io.exits import is_interactive
from torch_caption.verify.solution import process, report


@dataclass(frozen=True)
class Options:
    """Check solutions of the assignment's functions in float64, and name their mistakes.

    The functions have the names of cs231n (NumPy, 2016 to 2024; PyTorch, from 2025) or of EECS 498. Exit status 1 if
    something is wrong or missing. Each solution runs in a process of its own with limits; that is not a sandbox.
    """

    solutions: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """Python files, or folders of them; each is one solution."""
    seed: int = 0
    """Seed of the random inputs."""
    seconds: float = 60.0
    """Limit of time of a solution."""
    memory: float = 8.0
    """Limit of memory of a solution, address space in GiB."""
    jobs: int = 1
    """Solutions checked at a time."""
    json: Path | None = None
    """Write the reports to this file as JSON."""
    junit: Path | None = None
    """Write the reports to this file as JUnit's XML."""
    csv: Path | None = None
    """Write the reports to this file, a row a tensor."""


def main(args: Sequence[str], prog: str) -> None:
    """Exits with status 1 if a solution did not pass."""
    options = tyro.cli(Options, args=args, prog=prog)
    with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
        waiting = pool.map(
            lambda path: process.checked(path, options.seed, options.seconds, options.memory), options.solutions
        )
        total = len(options.solutions)
        reports = list(tqdm(waiting, desc="checking", total=total, disable=not is_interactive() or total == 1))
    print("\n\n".join(map(report.table, reports)))
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8", newline="\n")
    if options.junit:
        options.junit.write_text(report.junit(reports), encoding="utf-8", newline="\n")
    if options.csv:
        options.csv.write_text(report.comma_separated(reports), encoding="utf-8", newline="\n")
    if not all(found["passed"] for found in reports):
        sys.exit(1)
