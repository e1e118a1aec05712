"""Saving that does not come to its end: processes killed at any moment of it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.faults.figures import Family, Figures
from tests.helpers.saved_checkpoint import CONFIG, WORDS, D
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.errors import CheckpointError
from torch_caption.io import files

POSIX = os.name == "posix"


def generation(number: int, size: int) -> Checkpoint:
    """A checkpoint that says which it is in its progress and in every one of `size` numbers."""
    weights = {name: torch.full((size,), float(number)) for name in ("Wx", "Wh")}
    random_state = torch.full((size,), number % 256, dtype=torch.uint8)
    return Checkpoint(weights, CONFIG, WORDS, {}, D, {"step": number}, random={"0/torch": random_state})


def of(path: Path) -> int | None:
    """The generation of a file, None where it is not whole."""
    try:
        found = checkpoints.load(path)
    except CheckpointError:
        return None
    number = found.progress["step"]
    whole = all(bool((weight == number).all()) for weight in found.weights.values())
    return number if whole and bool((found.random["0/torch"] == number % 256).all()) else None


SIZE = 10_000
STEPS = ("open", "fsync", "link", "replace", "unlink")


def killed(cases: int, seed: int, folder: Path) -> Figures:
    """A process saves one generation after the other and is killed: after a time, or at a step of the file system."""
    figures, rng = Figures(), random.Random(seed)
    figures.expect("lost", "left behind", "wrong generation")
    path = folder / "run" / "last.safetensors"
    path.parent.mkdir()
    context = multiprocessing.get_context("forkserver" if POSIX else "spawn")
    if POSIX:  # torch is imported once, and each process is a fork of that
        context.set_forkserver_preload(["__main__", "tests.faults.kills_in_saving"])
        with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
            forkserver.ensure_running()
    number = 1
    checkpoints.save(path, generation(number, SIZE))
    for case in range(cases):
        begun, done = context.Value("q", number, lock=False), context.Value("q", number, lock=False)
        at = rng.randrange(24) if case % 2 else None
        child = context.Process(target=_save_on, args=(str(path), begun, done, at))
        child.start()
        if at is None:
            _wait_until(lambda done=done, number=number: done.value > number, child)
            time.sleep(rng.uniform(0, 0.08))
            child.kill()
        child.join()
        figures.cases += 1
        figures.saw("at a step" if child.exitcode and at is not None else "after a time")
        figures.saw("with a file half written" if len(list(path.parent.iterdir())) > 2 else "between two files")
        number = _look(figures, path, begun.value, done.value, f"case {case} of seed {seed}, step {at}")
    return figures


def _look(figures: Figures, path: Path, begun: int, done: int, what: str) -> int:
    """Hold what is there against what was saved; save once more, and see that nothing else stays. Returns which."""
    latest, before = of(path), of(files.previous(path)) if files.previous(path).exists() else None
    if latest is None or (begun > 1 and before is None):
        figures.wrong("lost", f"{what}: of {begun} there are {latest} and before it {before}")
    elif latest not in (done, begun) or before not in (None, latest, latest - 1):
        figures.wrong("wrong generation", f"{what}: of {begun} there are {latest} and before it {before}")
    number = (latest or begun) + 1
    checkpoints.save(path, generation(number, SIZE))
    left = sorted(file.name for file in path.parent.iterdir())
    if left != ["last.previous.safetensors", "last.safetensors"]:
        figures.wrong("left behind", f"{what}: {left}")
    return number


def _save_on(path: str, begun: Any, done: Any, at: int | None) -> None:
    """Save generations from the next on, until killed; at that step of the file system, counted over all, if given."""
    if at is not None:
        countdown = itertools.count(-at)
        for name in STEPS:
            setattr(os, name, _fatal(getattr(os, name), countdown))
    for number in range(begun.value + 1, begun.value + 1000):
        begun.value = number
        checkpoints.save(path, generation(number, SIZE))
        done.value = number


def _fatal(step: Callable[..., Any], countdown: itertools.count[int]) -> Callable[..., Any]:
    """The step, before which the process kills itself when the countdown is over."""

    def run(*args: Any, **flags: Any) -> Any:
        if next(countdown) >= 0:
            os.kill(os.getpid(), signal.SIGKILL if POSIX else signal.SIGTERM)
        return step(*args, **flags)

    return run


def _wait_until(ready: Callable[[], bool], child: Any) -> None:
    while not ready():
        if not child.is_alive():
            raise RuntimeError(f"the process that was to save ended by itself, with {child.exitcode}")
        time.sleep(0.001)


KILLED = Family("kills-in-saving", killed, short=12, full=240)
