"""A second process that would train where another does, and runs that begin in one moment."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.faults.kills_in_training import SMALL, epochs_of
from tests.faults.programs import Program, Programs
from tests.helpers.tiny_data import write_tiny

FOREVER = [*SMALL.split(), "--epochs", "100000", "--patience", "0", "--no-tensorboard"]


def second(cases: int, seed: int, folder: Path) -> Figures:
    """Two begin in one moment; each refuses a second process while it lives, and none after it was killed."""
    figures, rng = Figures(), random.Random(seed)
    figures.expect("let in", "shut out", "not named", "one folder for two", "tracebacks")
    if os.name != "posix":
        figures.cases = cases
        figures.saw("skipped")
        return figures
    write_tiny(folder / "tiny")
    with Programs(folder) as programs:
        for number in range(cases):
            out, workers = f"case-{number}", rng.choice(("0", "2"))
            flags = [*FOREVER, "--workers", workers, "--out", out]
            both = [programs.start(*flags), programs.start(*flags)]
            for program in both:
                _wait_for_epoch(program)
            names = [_run_of(program) for program in both]
            if len({*names}) < 2:
                figures.wrong("one folder for two", f"case {number} of seed {seed}: {names}")
            for program, name in zip(both, names, strict=True):
                _intrude(figures, programs, program, name, out, f"case {number} of seed {seed}, workers {workers}")
            figures.cases += 1
    return figures


def _intrude(figures: Figures, programs: Programs, first: Program, run: str, out: str, what: str) -> None:
    status, intruder, _ = programs.run("--resume", run, "--out", out)
    said = intruder.complained()
    if status != 2:
        figures.wrong("let in", f"{what}: {status}: {said}")
    if said.count("\n") != 1 or "Traceback" in said:
        figures.wrong("tracebacks", f"{what}: {said}")
    if f"process {first.pid} on " not in said or run not in said:
        figures.wrong("not named", f"{what}: {said}")
    os.kill(first.pid, signal.SIGKILL)
    programs.wait(first)
    successor = programs.start("--resume", run, "--out", out)  # at once: those that load batches may still live
    _wait_for_epoch(successor)
    os.kill(successor.pid, signal.SIGINT)
    if programs.wait(successor) != 130 or successor.complained():
        figures.wrong("shut out", f"{what}: {successor.status}: {successor.complained()}")


def _wait_for_epoch(program: Program) -> None:
    end = time.monotonic() + 120
    while not epochs_of(program.said()) and not program.complained() and time.monotonic() < end:
        time.sleep(0.01)


def _run_of(program: Program) -> str:
    (name,) = re.findall(r"^run +(\S+)$", program.said(), re.MULTILINE)
    return Path(name).name


SECOND = Family("second-runs", second, short=1, full=10)
