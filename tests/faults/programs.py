"""Runs of train.py that begin at once: forks of a process that has loaded torch, and everything else, already.

From the fork on they are what `python train.py` is: they run train.py itself under the name `__main__`, in a session of
their own, and end as Python ends.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train.py"
PATIENCE = 120.0


@dataclass
class Program:
    """A run of train.py, and where its output goes."""

    pid: int
    out: Path
    err: Path
    status: int | None = None

    def output(self) -> str:
        return self.out.read_text(encoding="utf-8")

    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def left(self) -> list[int]:
        """The processes of its session that still run."""
        return [pid for pid, session in _sessions() if session == self.pid]


class Programs:
    """Starts runs in `folder`; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __enter__(self) -> Programs:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        # A shell turns Ctrl-C off for what it runs in the background, and a new process begins as this one is.
        self._before = signal.signal(signal.SIGINT, signal.default_int_handler)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True, encoding="utf-8", **pipes
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(PATIENCE)
        self._server.stdout.close()
        signal.signal(signal.SIGINT, self._before)

    @property
    def pid(self) -> int:
        """The process of which they are forks, and whose limits they have."""
        return self._server.pid

    def start(self, *args: str) -> Program:
        """Begin `train.py ARGS`."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        command = {"args": [str(TRAIN), *args], "folder": str(self._folder), "out": str(out), "err": str(err)}
        return Program(self._ask(command), out, err)

    def wait(self, program: Program, seconds: float = PATIENCE) -> int | None:
        """The exit status, negative where a signal killed it; None if it still runs."""
        if program.status is None:
            program.status = self._ask({"wait": program.pid, "seconds": seconds})
        return program.status

    def run(self, *args: str) -> tuple[int | None, Program, float]:
        """From beginning to end: status, program, seconds."""
        begun = time.monotonic()
        program = self.start(*args)
        return self.wait(program), program, time.monotonic() - begun

    def _ask(self, command: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _sessions() -> list[tuple[int, int]]:
    """Every process that runs, with its session."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = place.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found.append((int(place.parent.name), int(session)))
    return found


# The process that forks ----------------------------------------------------------------------------------------------


def serve() -> list[str] | None:
    """Fork as asked for; returns the arguments in every fork, and None in the end."""
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            print(json.dumps(_status(command["wait"], command["seconds"])), flush=True)
            continue
        ready, begun = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ready)
            _become(command)
            os.write(begun, b"!")
            os.close(begun)
            return command["args"]  # type: ignore[no-any-return]
        os.close(begun)
        os.read(ready, 1)
        os.close(ready)
        print(pid, flush=True)
    return None


def _status(pid: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def _become(command: dict[str, Any]) -> None:
    """A process as a shell would have started it."""
    os.setsid()
    os.chdir(command["folder"])
    for descriptor, path in enumerate((os.devnull, command["out"], command["err"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def load() -> None:
    """Load what train.py loads, some of it only when it is first used."""
    import torch

    from torch_caption import plots
    from torch_caption.cli import train as command_line
    from torch_caption.training import tensorboard, trainer

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1)])
    plots.loss_curves([{"epoch": 1, "step": 1, "train_loss": 1.0, "val_loss": 1.0}], os.devnull, "")
    assert command_line.train_config
    assert tensorboard.Curves
    assert trainer.fit


if __name__ == "__main__":
    load()
    arguments = serve()
    if arguments is not None:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
