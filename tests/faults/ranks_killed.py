"""One of several processes ends: the others must end soon, say which one it was, and leave what was saved."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.helpers import torchrun
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints

SOON = 30.0
PATIENCE = 120.0


def lost(cases: int, seed: int, folder: Path) -> Figures:
    """In turn by SIGKILL, by an error and by SIGKILL of torchrun, at a random moment of two or three ranks' run."""
    figures = Figures()
    figures.expect("orphans", "not named", "status 0", "checkpoints lost")
    rng = random.Random(seed)
    write_tiny(folder / "tiny")
    for number in range(cases):
        ranks = rng.choice([2, 2, 3])
        rank, moment = rng.randrange(ranks), rng.random()
        by = (_by_kill, _by_error, _by_orphaning)[number % 3]
        by(figures, f"seed {seed}, case {number}: rank {rank} of {ranks}", folder, ranks, rank, moment)
        figures.cases += 1
    return figures


def _by_kill(figures: Figures, name: str, folder: Path, ranks: int, rank: int, moment: float) -> None:
    process, own = _start(folder, figures.cases, ranks)
    try:
        _wait(lambda: any(own.glob("runs/*/last.safetensors")), process)
        time.sleep(moment)
        pid = torchrun.pids(own)[rank]
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _end(figures, name, process, own, begun, f"Signal 9 (SIGKILL) received by PID {pid}")
        figures.saw("killed")
    finally:
        process.kill()
        process.communicate()


def _by_error(figures: Figures, name: str, folder: Path, ranks: int, rank: int, moment: float) -> None:
    process, own = _start(folder, figures.cases, ranks, f"{rank} {10 + int(40 * moment)} features.h5: cannot be read")
    try:
        _wait(lambda: any(own.glob("runs/*/last.safetensors")), process)
        _end(figures, name, process, own, time.monotonic(), f"RankError: rank {rank}: features.h5: cannot be read")
        figures.saw("failed")
    finally:
        process.kill()
        process.communicate()


def _by_orphaning(figures: Figures, name: str, folder: Path, ranks: int, rank: int, moment: float) -> None:
    """Without torchrun the ranks save and stop."""
    process, own = _start(folder, figures.cases, ranks)
    try:
        _wait(lambda: any(own.glob("runs/*/last.safetensors")), process)
        time.sleep(moment)
        begun = time.monotonic()
        process.kill()
        _end(figures, f"{name}, of torchrun", process, own, begun)
        figures.saw("launcher killed")
    finally:
        process.kill()
        process.communicate()


def _start(folder: Path, number: int, ranks: int, fail: str = "") -> tuple[subprocess.Popen[str], Path]:
    own = folder / f"case-{number}"
    own.mkdir()
    flags = ("--data", str(folder / "tiny"), "--epochs", "100000", "--patience", "0")
    return torchrun.start(own, *flags, ranks=ranks, fail=fail), own


def _wait(until: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not until() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


def _end(figures: Figures, name: str, process: subprocess.Popen[str], own: Path, begun: float, cause: str = "") -> None:
    """Wait for all to end, whose output is open until then, and look at what they leave.

    Args:
        cause: what torchrun's report has last; without torchrun nothing is said.
    """
    _, stderr = process.communicate(timeout=PATIENCE)
    figures.measured("s to end", time.monotonic() - begun, SOON)
    report = stderr.rpartition("Root Cause (first observed failure)")[2]
    if not (cause in report if cause else torchrun.errors(stderr) == []) or 'train.py", line' in stderr:
        figures.wrong("not named", f"{name}: {cause!r} is expected; {stderr[-600:]!r}")
    if process.returncode == 0:
        figures.wrong("status 0", name)
    end = time.monotonic() + 5  # an orphan that has ended stays in the table until somebody asks for its status
    while (left := [pid for pid in torchrun.pids(own).values() if _lives(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    if left:
        figures.wrong("orphans", f"{name}: {left}")
    try:
        (last,) = own.glob("runs/*/last.safetensors")
        checkpoints.load(last)
    except ValueError as error:
        figures.wrong("checkpoints lost", f"{name}: {error}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text(encoding="utf-8", errors="replace").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


LOST = Family("ranks lost", lost, short=2, full=21)
