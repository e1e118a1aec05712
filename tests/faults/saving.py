"""Saving that does not come to its end: no room on the disk, and processes killed at any moment of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402

from tests.faults.figures import Family, Figures  # noqa: E402
from tests.helpers.saved_checkpoint import CONFIG, WORDS, D  # noqa: E402
from torch_caption.checkpoints import format as checkpoints  # noqa: E402
from torch_caption.checkpoints.format import Checkpoint  # noqa: E402
from torch_caption.errors import CheckpointError  # noqa: E402
from torch_caption.io import files  # noqa: E402

POSIX = os.name == "posix"


def generation(number: int, size: int) -> Checkpoint:
    """A checkpoint that says which it is in its progress and in every one of `size` numbers."""
    weights = {name: torch.full((size,), float(number)) for name in ("Wx", "Wh")}
    random_state = torch.full((size,), number % 256, dtype=torch.uint8)
    return Checkpoint(
        weights,
        CONFIG,
        WORDS,
        {},
        D,
        {"step": number},
        random={"0/torch": random_state},
    )


def of(path: Path) -> int | None:
    """The generation of a file, None where it is not whole."""
    try:
        found = checkpoints.load(path)
    except CheckpointError:
        return None
    number = found.progress["step"]
    whole = all(bool((weight == number).all()) for weight in found.weights.values())
    return number if whole and bool((found.random["0/torch"] == number % 256).all()) else None


# No room -------------------------------------------------------------------------------------------------------------


def full(cases: int, seed: int, folder: Path) -> Figures:
    """The disk takes so many bytes of a file and no more; where it can be had, also a small disk that is full."""
    figures = Figures()
    figures.expect("lost", "left behind", "tracebacks")
    if not POSIX:  # there is no such limit, and no disk to be had
        figures.cases = cases
        figures.saw("skipped")
        return figures
    disk = small_disk(folder / "disk", 256)
    on_disk = cases // 4 if disk else 0
    figures.add(_fill([], cases - on_disk, seed, folder / "limit", "limit"))
    if disk:
        figures.add(_fill(disk, on_disk, seed, folder / "disk", "disk"))
        figures.seen["on a full disk"] = on_disk
    return figures


def small_disk(folder: Path, size: int) -> list[str]:
    """What to begin a command with for it to see a disk of so many KiB there; nothing if this user may mount none."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size}k tmpfs {shlex.quote(str(folder))} && exec "$@"'
    begin = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare"):
        return []
    return begin if subprocess.run([*begin, "true"], check=False, capture_output=True).returncode == 0 else []


def _fill(begin: list[str], cases: int, seed: int, folder: Path, how: str) -> Figures:
    """In a process of its own, for the limit is on a process, and the disk is there for one alone."""
    folder.mkdir(exist_ok=True)
    command = [*begin, sys.executable, __file__, str(cases), str(seed), str(folder), how]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8", timeout=600)
    return Figures(**json.loads(ran.stdout))


def _run_out_of_room(cases: int, seed: int, folder: Path, how: str) -> Figures:
    figures, rng = Figures(), random.Random(seed)
    figures.expect("lost", "left behind", "tracebacks")
    path = folder / "last.safetensors"
    for number in (1, 2):
        checkpoints.save(path, generation(number, 1000))
    whole = path.stat().st_size
    held = {file.name: file.read_bytes() for file in folder.iterdir()}
    for _ in range(cases):
        room = rng.randrange(whole)
        figures.cases += 1
        line = ""
        with Room(folder, room, how):
            try:
                checkpoints.save(path, generation(3, 1000))
            except OSError as error:
                line = str(error)
            except Exception as error:
                figures.wrong("tracebacks", f"{how} {room}: {error!r}")
        if line.count("\n") or str(path) not in line or "; it takes 1" not in line:
            figures.wrong("tracebacks", f"{how} {room}: {line!r}")
        now = {file.name: file.read_bytes() for file in folder.iterdir()}
        if now.keys() != held.keys():
            figures.wrong("left behind", f"{how} {room}: {sorted(now)}")
        if any(now.get(name) != content for name, content in held.items()):
            figures.wrong("lost", f"{how} {room}")
        figures.saw(line.partition("written: ")[2].partition(";")[0].lower() or "saved all the same")
    checkpoints.save(path, generation(3, 1000))
    if of(path) != 3 or of(files.previous(path)) != 2:
        figures.wrong("lost", "what was saved once there was room again")
    return figures


class Room:
    """Within the block there is room for so many bytes: of the folder's disk, or of each file that a process writes.

    Args:
        how: "disk" or "limit".
        of: the process that the limit is on, and on those that it starts; this one without it.
    """

    def __init__(self, folder: Path, room: int, how: str, of: int = 0) -> None:
        self._folder, self._room, self._how, self._of = folder, room, how, of
        self._filler = folder / "filler"

    def __enter__(self) -> None:
        if self._how == "limit":
            self._old = self._limit()
            self._limit((self._room, self._old[1]))
            return
        with open(self._filler, "wb") as file:
            disk = os.statvfs(self._folder)
            os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - self._room))

    def __exit__(self, *_: object) -> None:
        if self._how == "limit":
            self._limit(self._old)
        self._filler.unlink(missing_ok=True)

    def _limit(self, new: tuple[int, int] | None = None) -> tuple[int, int]:
        """What it is; set it where there is a new one."""
        import resource

        if self._of:
            return resource.prlimit(self._of, resource.RLIMIT_FSIZE, *([new] if new else []))
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        if new:
            resource.setrlimit(resource.RLIMIT_FSIZE, new)
        return old


# Killed --------------------------------------------------------------------------------------------------------------

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
        context.set_forkserver_preload(["__main__", "tests.faults.saving"])
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


FULL = Family("disk-full", full, short=8, full=60)
KILLED = Family("kills-in-saving", killed, short=12, full=240)

if __name__ == "__main__":
    count, start, place, limit = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(_run_out_of_room(int(count), int(start), Path(place), limit))))
