"""A second process that would train where another does; runs that begin in one moment; descriptors left open."""

from __future__ import annotations

import gc
import io
import os
import random
import re
import signal
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.faults.kills_in_training import SMALL, epochs_of
from tests.faults.programs import Program, Programs
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import run_folder as runs
from torch_caption.config import TrainConfig
from torch_caption.errors import NonFiniteError
from torch_caption.io.exits import Stopped
from torch_caption.training.log import read_log
from torch_caption.training.trainer import fit

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


# Descriptors ---------------------------------------------------------------------------------------------------------


def descriptors(cases: int, seed: int, folder: Path) -> Figures:
    """Whole runs, runs that fail and runs that are stopped and go on, in one process."""
    figures, rng = Figures(), random.Random(seed)
    figures.expect("leaked")
    if not Path("/proc/self/fd").exists():
        figures.cases = cases
        figures.saw("skipped")
        return figures
    data = str(write_tiny(folder / "tiny", grids=True))
    base = TrainConfig(data=data, out=folder / "runs", hidden_dim=8, wordvec_dim=8, batch_size=5, epochs=2)
    with redirect_stdout(io.StringIO()):
        _run(replace(base, workers=2, score_images=4), "whole")  # whatever a first run opens for good
    for number in range(cases):
        config = replace(
            base,
            cell_type=rng.choice(("rnn", "lstm", "attention")),
            workers=rng.choice((0, 2)),
            in_memory=rng.choice(("yes", "no")),
            tensorboard=rng.random() < 0.5,
            score_images=4,
        )
        how = ("whole", "stopped", "diverged")[number % 3]
        before = _open()
        with redirect_stdout(io.StringIO()):
            _run(config, how)
        if more := _open() - before:
            figures.wrong("leaked", f"case {number} of seed {seed}: {how}: {more}")
        figures.cases += 1
        figures.saw(how)
    return figures


def _run(config: TrainConfig, how: str) -> None:
    if how == "diverged":
        try:
            fit(replace(config, lr=1e39, clip=0.0, lr_schedule="constant"))
        except NonFiniteError:
            return
    if how == "whole":
        fit(config)
        return
    handler = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        fit(replace(config, epochs=100_000, patience=0))
    except Stopped:
        run = runs.find(config.out)
        epochs = len(read_log(run)) + 1
        fit(replace(config, resume="last", epochs=epochs))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def _stop(*_: object) -> None:
    """Tell the run in this process to end, as soon as it listens."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        signal.raise_signal(signal.SIGTERM)


def _open() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


SECOND = Family("second-runs", second, short=1, full=10)
DESCRIPTORS = Family("descriptors", descriptors, short=3, full=30)
