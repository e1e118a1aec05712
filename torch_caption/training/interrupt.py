"""Stop requests: Ctrl-C, SIGTERM and other signals end a run between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from torch_caption.io.exits import SIGNALS, Stopped
from torch_caption.training import distributed

T = TypeVar("T")


class _Cut(BaseException):
    """Raised by a signal in a function without side effects."""


class Interrupt:
    """In the block the first of `SIGNALS` only sets `requested`, so that a step is completed; the second has its usual
    effect at once. Ignored signals stay ignored, as SIGHUP under `nohup`.

    Attributes:
        requested: this process has a stop request.
    """

    def __init__(self) -> None:
        self.requested = False
        self._agreed = False
        self._number: int = signal.SIGINT
        self._may_cut = False
        self._before: dict[int, Any] = {}

    @property
    def agreed(self) -> bool:
        """Whether to stop after this step. If any rank has a request, all stop after the same step."""
        return self.requested if distributed.size() == 1 else self._agreed

    def agree(self, requested: bool) -> None:
        """Set whether some rank had a request before the step."""
        self._agreed = requested

    def unless_requested(self, compute: Callable[[], T]) -> T | None:
        """The result of `compute`, which must have no side effects; None if a stop request comes first.

        With several ranks `compute` always completes, since the ranks wait for each other.
        """
        try:
            self._may_cut = distributed.size() == 1
            found = compute()
            self._may_cut = False
        except _Cut:
            return None
        finally:
            self._may_cut = False
        return found

    @contextmanager
    def printing(self) -> Iterator[None]:
        """In the block, failed output is ignored after a stop request: the same Ctrl-C ended its reader, or the
        terminal was closed."""
        try:
            yield
        except OSError:
            if not self.requested:
                raise

    def stopped(self) -> Stopped:
        """The exception to raise after saving."""
        return Stopped(self._number)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # other threads cannot handle signals
            ignored = signal.SIG_IGN, None  # None is a handler of C code, which could not be restored
            heeded = [number for number in SIGNALS if signal.getsignal(number) not in ignored]
            self._before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._number = number
        self.__exit__()
        if self._may_cut:
            raise _Cut
