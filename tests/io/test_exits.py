"""Exit statuses, and errors in one line."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_caption.errors import ConfigError, DataError, InputError, NonFiniteError, OutOfMemory, RankError
from torch_caption.io.exits import Stopped, guarded

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("no\n such"), 2, "error: no such\n"),
        (OSError("no room"), 2, "error: no room\n"),
        (NonFiniteError("nan"), 1, "error: nan\n"),
        (RankError("lost"), 1, "error: lost\n"),
        (RankError("lost", 7), 7, "error: lost\n"),
        (KeyboardInterrupt(), 130, ""),
        (Stopped(signal.SIGINT), 130, ""),
        (Stopped(signal.SIGTERM), 143, ""),
        (Stopped.advising(Stopped(signal.SIGTERM), "run it again"), 143, "stopped: run it again\n"),
        (Stopped.advising(KeyboardInterrupt(), "run it again"), 130, "stopped: run it again\n"),
        (ConfigError(), 2, "error: ConfigError\n"),
        (MemoryError(), 1, "error: not enough memory; use a machine with more\n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "error: not enough memory; use a machine with more\n"),
        (OutOfMemory("not enough memory"), 1, "error: not enough memory\n"),
    ],
    ids=repr,
)
def test_an_error_is_one_line_and_its_status(error, status, line, capsys):
    assert guarded(raising(error)) == status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), ValueError("of numpy"), RuntimeError("of torch")], ids=repr
)
def test_any_other_exception_is_a_bug_and_shows_its_traceback(error, capsys):
    assert guarded(raising(error)) == 1
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert between[-1] == f"{type(error).__name__}: {error}"
    assert last == ("error: this is a bug in torch_caption: please report it with your command and the traceback above")


@pytest.mark.parametrize("variable", ["", "1"])
@pytest.mark.parametrize("flag", [False, True])
def test_the_traceback_of_every_error_on_request(flag, variable, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_CAPTION_TRACEBACK", variable)
    assert guarded(raising(DataError("x.h5: cut off")), traceback=flag) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last == "error: x.h5: cut off"
    assert before[:1] == (["Traceback (most recent call last):"] if flag or variable else [])


def test_sigterm_runs_cleanup_and_is_status_143():
    before = signal.getsignal(signal.SIGTERM)
    closed = []

    def main() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            closed.append(True)

    assert guarded(main) == 143
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_with_a_handler_keeps_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        assert guarded(lambda: signal.raise_signal(signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_train_py_handles_ctrl_c_before_it_imports_torch():
    code = "import runpy, sys; runpy.run_path('train.py', run_name='x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there a process has no signal that it died of")
@pytest.mark.parametrize("ending", ["pass", "raise KeyboardInterrupt"])
def test_ctrl_c_during_pythons_shutdown_prints_nothing(ending):
    code = f"""
import atexit, signal, sys
from torch_caption.io.exits import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)
def main():
    atexit.register(signal.raise_signal, signal.SIGINT)
    {ending}
sys.exit(guarded(main))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
