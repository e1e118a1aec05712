"""How a program ends: statuses, and one line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from torch_caption.ending import Failure, Stopped, guarded

ROOT = Path(__file__).resolve().parent.parent


class Gone(Failure, OSError):
    pass


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no\n such"), 2, "error: no such\n"),
        (OSError("no room"), 2, "error: no room\n"),
        (ArithmeticError("nan"), 1, "error: nan\n"),
        (Failure("lost"), 1, "error: lost\n"),
        (Failure("lost", 7), 7, "error: lost\n"),
        (KeyboardInterrupt(), 130, ""),
        (Stopped(signal.SIGINT), 130, ""),
        (Stopped(signal.SIGTERM), 143, ""),
        (Stopped.advising(Stopped(signal.SIGTERM), "run it again"), 143, "stopped: run it again\n"),
        (Stopped.advising(KeyboardInterrupt(), "run it again"), 130, "stopped: run it again\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (Gone("the server is gone"), 1, "error: the server is gone\n"),
    ],
    ids=repr,
)
def test_what_went_wrong_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == status
    assert capsys.readouterr().err == line


def test_a_program_is_told_to_end_and_closes_what_is_open() -> None:
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_heeded_wherever_it_finds_the_program(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What is raised in the callback of a weak reference goes no further."""

    class Thing:
        pass

    def main() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
        del thing
        assert reference() is None
        time.sleep(20)
        pytest.fail("it went on")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert guarded(main) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_other_errors_there_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        pass

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)

    def main() -> None:
        thing = Thing()
        reference = weakref.ref(thing, lambda _: 1 / 0)
        del thing
        assert reference() is None

    assert guarded(main) == 0
    assert len(reported) == 1


def test_who_cares_for_the_signal_already_is_left_alone() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        assert guarded(lambda: signal.raise_signal(signal.SIGTERM)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_ctrl_c_is_heeded_before_torch_is_loaded() -> None:
    """Neither train.py nor what it needs to be told to stop imports it."""
    code = "import runpy, sys; runpy.run_path('train.py', run_name='x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there a process has no signal that it died of")
@pytest.mark.parametrize("ending", ["pass", "raise KeyboardInterrupt"])
def test_ctrl_c_ends_the_end_of_python_without_a_word(ending: str) -> None:
    """It finds what torch has registered for then; a second one in an impatient moment does."""
    code = f"""
import atexit, signal, sys
from torch_caption.ending import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)
def main():
    atexit.register(signal.raise_signal, signal.SIGINT)
    {ending}
sys.exit(guarded(main))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        guarded(lambda: {}["x"])
