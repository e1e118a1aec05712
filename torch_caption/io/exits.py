"""The end of a command: one line about an error, exit status, signals.

Nothing heavy is imported here, so that a command can be interrupted while it loads torch.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from torch_caption.errors import TorchCaptionError
from torch_caption.io.memory import within_memory

TRACEBACK = "TORCH_CAPTION_TRACEBACK"
"""The environment variable for the traceback of every error, like the flag `--traceback`."""
_BUG = "error: this is a bug in torch_caption: please report it with your command and the traceback above"
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""The signals that end a command: of Ctrl-C, `kill`, a closed terminal, and batch systems before a job's limit."""
TO_ALL = tuple(number for number in SIGNALS if number != signal.SIGTERM)
"""Those that a terminal or a batch system sends to all processes of a command."""


class Stopped(KeyboardInterrupt):
    """Raised by one of `SIGNALS`, which ends the command.

    Attributes:
        number: of the signal.
        status: the exit status, 128 plus the number, as in shells.
        advice: a line for the user; "" if it has been printed.
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
    """The message of an error on one line; of the system's errors the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        error = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def exit_status(error: Exception) -> int:
    """The exit status for an error: that of a TorchCaptionError, 2 for an OSError, 1 for a bug."""
    if isinstance(error, TorchCaptionError):
        return error.status
    return 2 if isinstance(error, OSError) else 1


def guarded(main: Callable[[], object], *, traceback: bool = False) -> int:
    """Run `main` and return the exit status: 0; `exit_status` of an error; 128 plus the number of a signal (130 for
    Ctrl-C, 143 for SIGTERM); 141 if the reader of the output has exited.

    A TorchCaptionError and an OSError are one line on stderr. Any other exception is a bug: its traceback is printed,
    and a request for a report. Exhausted memory is an OutOfMemory.

    Args:
        main: parses the command line and runs the command. It may raise SystemExit.
        traceback: print it for every error, as the environment variable TORCH_CAPTION_TRACEBACK=1 does.
    """
    _open_streams()
    try:
        with _stopped_by_signals(), within_memory():
            try:
                main()
            except SystemExit:  # such as from `--help`
                sys.stdout.flush()
                raise
            sys.stdout.flush()
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt as stopped:
        if not isinstance(stopped, Stopped):
            return Stopped().status
        if stopped.advice:
            _print(f"stopped: {stopped.advice}")
        return stopped.status
    except Exception as error:
        is_expected = isinstance(error, (TorchCaptionError, OSError))
        if traceback or os.environ.get(TRACEBACK) or not is_expected:
            from traceback import format_exception  # a slow import

            _print("".join(format_exception(error)).rstrip())
        _print(f"error: {one_line(error)}" if is_expected else _BUG)
        return exit_status(error)
    finally:
        _drop_unwritten()
        # During Python's shutdown, another Ctrl-C ends the process at once. Registered last, this is called first.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return 0


def is_interactive() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def _open_streams() -> None:
    """Open standard streams that were closed at Python's start, which are None, on the null device.

    Their descriptors are opened as well: otherwise the next file would get one of them, and output of C code would go
    to that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
            os.set_inheritable(null, True)
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        stream = getattr(sys, name)
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", newline="\n", closefd=False))  # noqa: SIM115
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal cannot show must not end the program


def _print(line: str) -> None:
    """Print a line to stderr, if it can be written."""
    with suppress(OSError):
        print(f"{line}\n", end="", file=sys.stderr, flush=True)  # in one write, since several ranks print


def _drop_unwritten() -> None:
    """Discard output that cannot be written: Python would fail again when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """In the block a signal raises Stopped, so that open files are closed; except signals that have a handler or are
    ignored, as SIGHUP under `nohup`."""
    numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    try:
        for number in numbers:
            signal.signal(number, _stop)
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is _stop:
                signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """In the block `SIGNALS`, and that of an ended process, have no effect; after it they have their usual one."""
    numbers = [*SIGNALS, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])]
    if threading.current_thread() is not threading.main_thread():  # other threads cannot handle signals
        numbers = []
    deferred: list[int] = []
    before = {number: signal.getsignal(number) for number in numbers}
    handled = {number: handler for number, handler in before.items() if callable(handler) or handler == signal.SIG_DFL}
    for number in handled:  # blocking them would do nothing: any other thread of the process takes them
        signal.signal(number, lambda number, _: deferred.append(number))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
        for number in deferred:
            signal.raise_signal(number)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
