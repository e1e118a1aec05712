"""Stopping between two steps: Ctrl-C, SIGTERM and their like ask a run to end, and cut nothing in two."""

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
    """A signal ends a function that changes nothing, from within."""


class Interrupt:
    """Within the block the first of `SIGNALS` only sets `asked`, so that no step is cut in two; the second acts at
    once, as it would have done without the block. One that is ignored stays so, as SIGHUP under `nohup`.

    Attributes:
        asked: this process was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._agreed = False
        self._number: int = signal.SIGINT
        self._only_looking = False
        self._before: dict[int, Any] = {}

    @property
    def agreed(self) -> bool:
        """Whether to stop after this step. If any of several ranks was asked, all stop, and after the same step."""
        return self.asked if distributed.size() == 1 else self._agreed

    def agree(self, asked: bool) -> None:
        """Some rank was asked before the step."""
        self._agreed = asked

    def unless_asked(self, look: Callable[[], T]) -> T | None:
        """What `look` returns; None if this process is asked to stop before it does. So `look` must change nothing.

        Several ranks look to the end, for each has to be where the others wait for it.
        """
        try:
            self._only_looking = distributed.size() == 1
            found = look()
            self._only_looking = False
        except _Cut:
            return None
        finally:
            self._only_looking = False
        return found

    @contextmanager
    def printing(self) -> Iterator[None]:
        """In the block, output that cannot be written is no error once this process was asked to stop: the same Ctrl-C
        stopped its reader, or its terminal is gone."""
        try:
            yield
        except OSError:
            if not self.asked:
                raise

    def stopped(self) -> Stopped:
        """What to raise once all is saved."""
        return Stopped(self._number)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be caught
            ignored = signal.SIG_IGN, None  # None is a handler of another language's, which could not be set again
            heeded = [number for number in SIGNALS if signal.getsignal(number) not in ignored]
            self._before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._number = number
        self.__exit__()
        if self._only_looking:
            raise _Cut
