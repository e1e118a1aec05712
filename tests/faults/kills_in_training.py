"""Runs that are stopped or killed at any moment and resumed: they must end as the run that was never stopped."""

from __future__ import annotations

import logging
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.faults.figures import Family, Figures
from tests.faults.programs import Program, Programs
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.errors import CheckpointError
from torch_caption.training.log import read_log

SMALL = "--data tiny --hidden-dim 16 --wordvec-dim 8 --batch-size 5 --lr 0.01 --max-length 6 --score-images 6"
EPOCHS = 12
KINDS = (
    "--cell-type rnn",
    "--cell-type lstm --workers 2",
    "--cell-type attention --scheduled-sampling 0.5",
    "--cell-type rnn --workers 2 --ema 0.9 --in-memory no",
    "--cell-type lstm --amp bf16 --tied --tensorboard",
    "--cell-type attention --workers 2 --label-smoothing 0.1",
    "--cell-type lstm --objective scst --init-from begun --lr 0.001",
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) if os.name == "posix" else ()
END = "captions more of them"  # the last words of a run: what follows, like what goes before its first, is Python's own
OF_WORKERS = 30.0
"""Seconds in which the processes that load batches find that the one they load for was killed."""


@dataclass(frozen=True)
class Moment:
    """So many seconds after the program printed the end of an epoch; after its start, where that is 0."""

    epoch: int
    seconds: float

    @classmethod
    def of(cls, rng: random.Random, seconds: float) -> Moment:
        """In a run that takes so many seconds; two of three times while it trains."""
        if rng.random() < 1 / 3:
            return cls(0, rng.uniform(0, seconds))
        return cls(rng.randrange(1, EPOCHS), rng.uniform(0, seconds / EPOCHS))

    def wait(self, programs: Programs, program: Program) -> None:
        while max(epochs_of(program.output()), default=0) < self.epoch and programs.wait(program, 0.002) is None:
            pass
        time.sleep(self.seconds)

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s after epoch {self.epoch}"


@dataclass
class Kind:
    """One kind of run, and the run of it that was never stopped."""

    flags: list[str]
    whole: Path
    seconds: float
    killed: list[Program] = field(default_factory=list)


def killed(cases: int, seed: int, folder: Path) -> Figures:
    """Each case is a signal; a run gets one to three of them before it may end."""
    figures, rng = Figures(), random.Random(seed)
    figures.expect("lost", "not bit for bit", "tracebacks", "wrong status", "processes left")
    if os.name != "posix":
        figures.cases = cases
        figures.saw("skipped")
        return figures
    write_tiny(folder / "tiny", grids=True)
    with Programs(folder) as programs:
        kinds = list(_kinds(programs, folder, min(cases, len(KINDS))))
        number = 0
        while figures.cases < cases:
            name = f"case {number} of seed {seed}"
            _stop_and_go_on(figures, programs, rng, kinds[number % len(kinds)], folder / f"case-{number}", name)
            number += 1
        _look_for_processes(figures, [program for kind in kinds for program in kind.killed])
    return figures


def _kinds(programs: Programs, folder: Path, count: int) -> Iterator[Kind]:
    for number, line in enumerate(KINDS[:count]):
        flags = [*SMALL.split(), "--epochs", str(EPOCHS), "--patience", "0", *line.split()]
        if "--tensorboard" not in flags:
            flags.append("--no-tensorboard")
        if "begun" in flags:
            programs.run(*SMALL.split(), "--cell-type", "lstm", "--epochs", "2", "--out", "begun")
        status, program, seconds = programs.run(*flags, "--out", f"whole-{number}")
        if status != 0:
            raise RuntimeError(f"train.py {' '.join(flags)}: {status}: {program.errors()}")
        yield Kind(flags, runs.find(folder / f"whole-{number}"), seconds)


def _stop_and_go_on(figures: Figures, programs: Programs, rng: random.Random, kind: Kind, out: Path, name: str) -> None:
    every = rng.choice((0, 1, 3, 8))
    flags = [*kind.flags, "--checkpoint-every", str(every), "--out", out.name]
    begun = ""
    for _ in range(rng.choice((1, 1, 2, 3))):
        number, moment = rng.choice(SIGNALS), Moment.of(rng, kind.seconds)
        all_of_it = rng.random() < 0.5
        what = f"{name}, {signal.Signals(number).name} {moment}{' to all' if all_of_it else ''}: {begun}"
        program = programs.start(*(["--resume", "--out", out.name] if begun else flags))
        moment.wait(programs, program)
        signals = _send(figures, rng, program, number, all_of_it=all_of_it)
        what = f"{what}, {len(signals)} signals"
        status = programs.wait(program)
        _look(figures, program, status, signals, out, what, kind)
        begun = _run_of(out)
    status, program, _ = programs.run(*(["--resume", "--out", out.name] if begun else flags))
    if status != 0 or program.errors():
        figures.wrong("lost", f"{name}: did not resume: {status}: {program.errors()}")
        return
    for what in differences(kind.whole, runs.find(out)):
        figures.wrong("not bit for bit", f"{name}, {' '.join(flags)}: {what}")


def _send(figures: Figures, rng: random.Random, program: Program, number: int, *, all_of_it: bool) -> list[int]:
    """Send the signal, and two of five times another one on its heels; those that were sent."""
    signals = [number]
    try:
        (os.killpg if all_of_it else os.kill)(program.pid, number)
        if number != signal.SIGKILL and rng.random() < 0.4:
            time.sleep(rng.uniform(0, 0.03))  # in the step's end, in the save or in what follows it
            signals.append(rng.choice(SIGNALS[1:]))
            os.kill(program.pid, signals[-1])
            figures.saw("two signals")
    except ProcessLookupError:
        figures.saw("ended first")
    return signals


def _run_of(out: Path) -> str:
    """The run that `--resume` finds, if it has begun."""
    return runs.find(out).name if (out / runs.POINTER).exists() else ""


def _look(
    figures: Figures, program: Program, status: int | None, signals: list[int], out: Path, what: str, kind: Kind
) -> None:
    """What a stopped program leaves behind."""
    output, errors = program.output(), program.errors()
    number = signals[0]
    if status == 0:  # it had done all
        figures.saw("ended first")
    else:
        figures.cases += 1
        figures.saw(signal.Signals(number).name)
        expected = [-number] if number == signal.SIGKILL else [128 + one for one in signals]
        if "\nrun  " not in output or END in output or len(signals) > 1:  # then Python's own end may be under way
            expected += [-one for one in signals]
        if status not in expected:
            figures.wrong("wrong status", f"{what}: {status}")
    if "Traceback" in errors or (errors and number != signal.SIGKILL):
        figures.wrong("tracebacks", f"{what}: {errors}")
    if number == signal.SIGKILL:
        kind.killed.append(program)
    elif left := _wait_for_end(program, 2):
        figures.wrong("processes left", f"{what}: {left}")
    if "\nrun  " in output:
        _look_at_checkpoint(figures, output, runs.find(out), what)


def _look_at_checkpoint(figures: Figures, output: str, run: Path, what: str) -> None:
    try:
        saved, _, warning, _ = checkpoints.find_latest(run / runs.LAST)
    except CheckpointError as error:
        figures.wrong("lost", f"{what}: {error}")
        return
    if warning:
        figures.wrong("lost", f"{what}: {warning}")
    done = max(epochs_of(output), default=0)
    if saved.progress["epoch"] < done:
        figures.wrong("lost", f"{what}: epoch {done} was done, {saved.progress['epoch']} is saved")
    steps = re.findall(r"^stopped after step (\d+), which is saved", output, re.MULTILINE)
    if steps:
        figures.saw("between two steps")
        if [str(saved.progress["step"])] != steps:
            figures.wrong("lost", f"{what}: step {steps} was saved, but it is {saved.progress['step']}")


def epochs_of(output: str) -> list[int]:
    """The epochs whose ends were printed."""
    return [int(number) for number in re.findall(r"^epoch +(\d+)/", output, re.MULTILINE)]


def _wait_for_end(program: Program, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    while (left := program.left()) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def _look_for_processes(figures: Figures, programs: list[Program]) -> None:
    end = time.monotonic() + OF_WORKERS
    for program in programs:
        if left := _wait_for_end(program, max(end - time.monotonic(), 0)):
            figures.wrong("processes left", f"after SIGKILL: {left}")


# Bit for bit ---------------------------------------------------------------------------------------------------------


def differences(whole: Path, run: Path) -> Iterator[str]:
    """What two runs should have in common, and have not."""
    for name in (runs.LAST, runs.BEST):
        ours, theirs = (_plain(checkpoints.load(r / name)) for r in (run, whole))
        for key in sorted(ours.keys() | theirs.keys()):
            if not _same(ours.get(key), theirs.get(key)):
                yield f"{key} of {name}"
    ours, theirs = ([{**record, "seconds": 0} for record in read_log(r)] for r in (run, whole))
    if ours != theirs:
        yield f"records: {[record['epoch'] for record in ours]}"
    if (run / "tensorboard").is_dir() and _curve(run) != _curve(whole):
        yield f"curves: {_curve(run)} where {_curve(whole)} is expected"


def _plain(saved: Checkpoint) -> dict[str, Any]:
    """All that two runs that are the same have in common."""
    parts = {"progress": saved.progress, "words": saved.words, "average": saved.average}
    return parts | {"weights": saved.weights, "optimizer": saved.optimizer, "random": saved.random}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _curve(run: Path) -> list[tuple[int, float]]:
    """The validation losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # that it leaves out what it should is no news
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("val_loss")]


KILLED = Family("kills-in-training", killed, short=3, full=90)
