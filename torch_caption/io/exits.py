"""How a program begins and ends: with streams that can be written, with an exit status, and with one line about what
went wrong.

Nothing heavy is imported here, so that a program can be told to stop while it still loads torch.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import cast

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""What asks a program to end: Ctrl-C, `kill`, a lost terminal, and what batch systems send before a job's limit."""

TO_ALL = tuple(number for number in SIGNALS if number != signal.SIGTERM)
"""Those that a terminal or a batch system sends to every process of a program."""


class Failure(Exception):
    """What ends a program with one line, and is no mistake of its user's.

    Attributes:
        status: the exit status.
    """

    status = 1

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class OutOfMemory(Failure):
    """What the program was asked to do takes more memory than there is."""


class Cut(BaseException):
    """A signal ended what only looks, and changes nothing, from within."""


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end: one of `SIGNALS`, SIGINT being Ctrl-C.

    Attributes:
        number: the signal's.
        status: the exit status, 128 and that number, as shells have it.
        advice: what to tell the user of it, "" where that has been said.
    """

    def __init__(self, number: int = signal.SIGINT, advice: str = "") -> None:
        super().__init__(advice or signal.Signals(number).name)
        self.number = number
        self.status = 128 + number
        self.advice = advice

    @classmethod
    def advising(cls, stopped: KeyboardInterrupt, advice: str) -> Stopped:
        """The same stop, with advice."""
        return cls(stopped.number if isinstance(stopped, Stopped) else signal.SIGINT, advice)


def one_line(error: object) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def exit_status(error: BaseException) -> int:
    """Of a program that ends by the error: 2 for a mistake of the user's, 1 for a run that failed."""
    if isinstance(error, Failure):
        return error.status
    return 2 if isinstance(error, ValueError | OSError) else 1


# torch has a RuntimeError for each way in which memory cannot be had, and a name for one of them alone.
_NO_MEMORY = re.compile(
    "can(no|')t allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED"
    "|(size calculation|integer multiplication) overflow",
    re.IGNORECASE,
)
_ASKED_FOR = re.compile(r"allocate (\d[\d.]*) (\w+)")


def lacks_memory(error: Exception) -> bool:
    """Whether memory was asked for, of the machine or of a GPU, that could not be had."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


@contextmanager
def within_memory(*smaller: str, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """In the block, whatever is raised where memory does not suffice becomes one line.

    Args:
        smaller: the flags of what takes the memory.
        kept: what to say of the work that was done before.

    Raises:
        OutOfMemory: how much was asked for, and what to do.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, Failure) or not lacks_memory(error):
            raise
        names = " or ".join(filter(None, (", ".join(smaller[:-1]), *smaller[-1:])))
        advice = f"make {names} smaller" if smaller else "it takes a machine with more"
        raise OutOfMemory("; ".join([_shortage(str(error)), advice, *([kept()] if kept else [])])) from error


def _shortage(message: str) -> str:
    where = " on the GPU" if "CUDA" in message else ""
    asked = _ASKED_FOR.search(message)
    if asked is None:
        return f"not enough memory{where}"
    amount = f"{int(asked[1]):,}" if asked[1].isdecimal() else asked[1]
    return f"not enough memory{where}: {amount} {asked[2]} more were asked for"


def guarded(main: Callable[[], object]) -> int:
    """Run `main`; the exit status: 0, or 2 for a mistake of the user's, 1 for a run that failed, 128 and the number of
    a signal that ended it (130 for Ctrl-C, 143 for SIGTERM), 141 where nobody reads the output any longer.

    What went wrong goes to stderr as one line; of Ctrl-C, what there is to say of it. A stream that was closed before
    the program began goes nowhere.

    Args:
        main: parses the command line too, for what that prints is output like any other. It may raise SystemExit.
    """
    _open_streams()
    try:
        with _terminable(), _heeded(), within_memory():
            try:
                main()
            except SystemExit:  # of `--help`, say
                sys.stdout.flush()
                raise
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        return 141
    except KeyboardInterrupt as stopped:
        if not isinstance(stopped, Stopped):
            return Stopped().status
        if stopped.advice:
            _say(f"stopped: {stopped.advice}")
        return stopped.status
    except (Failure, ValueError, OSError, ArithmeticError) as error:
        _say(f"error: {one_line(error)}")
        return exit_status(error)
    finally:
        _drop_unwritten()
        atexit.unregister(_die_of_it)
        atexit.register(_die_of_it)  # the last to be registered, after all that `main` has loaded, is called first
    return 0


def is_watched() -> bool:
    """Whether a terminal shows what goes to stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def _open_streams() -> None:
    """Open the standard streams that were closed when Python started, which are None, on the null device.

    Their descriptors are opened as well, or the next file would get one of them, and C code that prints would write
    into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest that is free, which is this one
            os.set_inheritable(nowhere, True)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        stream = getattr(sys, name)
        if stream is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", newline="\n", closefd=False))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a word the terminal cannot show must not end the program


def _say(line: str) -> None:
    """Print a line to stderr, if it can be written."""
    with suppress(OSError):
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one piece, as several ranks print


def _drop_unwritten() -> None:
    """Discard output that cannot be written, or Python would fail once more when it flushes at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _terminable() -> Iterator[None]:
    """In the block a signal raises, as Ctrl-C does, so that what is open is closed; unless it has a handler already, or
    is ignored, as SIGHUP is under `nohup`."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    try:
        for number in numbers:
            signal.signal(number, _stop)
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is _stop:  # a rank of several that has its say lets nothing stop it
                signal.signal(number, signal.SIG_DFL)


@contextmanager
def _heeded() -> Iterator[None]:
    """In the block a stop that Python would only report is raised once more, a moment later.

    It may be raised in the callback of a weak reference or in a `__del__`, and what is raised there goes no further.
    """
    report = sys.unraisablehook

    def heed(unraisable: sys.UnraisableHookArgs) -> None:
        stopped = unraisable.exc_value
        if isinstance(stopped, KeyboardInterrupt):
            number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
            threading.Timer(0.1, _send, (number,)).start()  # when this has returned, or it goes no further either
        elif not isinstance(stopped, Cut):
            report(unraisable)

    sys.unraisablehook = heed
    try:
        yield
    finally:
        sys.unraisablehook = report


def _send(number: int) -> None:
    """The signal to the main thread, whatever it waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(cast(int, threading.main_thread().ident), number)
    else:
        signal.raise_signal(number)


def _die_of_it() -> None:
    """While Python ends, let a further Ctrl-C end the process at once; Python would report it with a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
