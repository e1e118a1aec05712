"""How a program ends: statuses, and one line."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from torch_caption.io.exits import Failure, OutOfMemory, Stopped, guarded, within_memory

ROOT = Path(__file__).resolve().parents[2]


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
        (MemoryError(), 1, "error: not enough memory; it takes a machine with more\n"),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            1,
            "error: not enough memory; it takes a machine with more\n",
        ),
        (OutOfMemory("not enough memory"), 1, "error: not enough memory\n"),
        (Gone("the server is gone"), 1, "error: the server is gone\n"),
    ],
    ids=repr,
)
def test_what_went_wrong_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == status
    assert capsys.readouterr().err == line


ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000 bytes. Error code 12 (Cannot allocate memory)\nframe #0"
)
ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 18.5 GiB is "
    "free. Process 7 has 60.0 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(ALLOCATOR), ": 4,000,000 bytes more were asked for"),
        (torch.OutOfMemoryError(ON_A_GPU), " on the GPU: 20.00 GiB more were asked for"),
        (torch.OutOfMemoryError("of a kind of its own"), ""),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), " on the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), " on the GPU"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            ": 8 bytes more were asked for",
        ),
        (RuntimeError("std::bad_alloc"), ""),
        (RuntimeError("Storage size calculation overflowed with sizes=[148, 9223372036854775807]"), ""),
        (np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype(float)), ": 7.28 TiB more were asked for"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("smaller", "advice"),
    [
        ([], "it takes a machine with more"),
        (["--beam-size"], "make --beam-size smaller"),
        (["--a", "--b"], "make --a or --b smaller"),
        (["--a", "--b", "--c"], "make --a, --b or --c smaller"),
    ],
)
def test_too_little_memory_is_told_with_what_takes_it(
    error: Exception, line: str, smaller: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        with within_memory(*smaller):
            raise error

    assert guarded(main) == 1
    assert capsys.readouterr().err == f"error: not enough memory{line}; {advice}\n"


@pytest.mark.parametrize("size", [2**48, 2**60, 2**62], ids=hex)
def test_torch_says_so_itself_in_words_that_are_known(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine, whatever its version of torch: the smallest is the address space of a process."""
    assert guarded(lambda: torch.empty(size)) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory")


def test_what_was_kept_is_told_at_the_innermost_place() -> None:
    steps: list[int] = []

    def outer() -> None:
        with within_memory("--b"), within_memory("--a", kept=lambda: f"kept: {steps}"):
            steps.append(1)
            raise MemoryError

    with pytest.raises(OutOfMemory, match=r"^not enough memory; make --a smaller; kept: \[1\]$"):
        outer()
    for error in (RuntimeError("another"), OSError("another"), Gone("another")):
        with pytest.raises(type(error), match=r"^another$"), within_memory("--b"):
            raise error


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
from torch_caption.io.exits import guarded
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
