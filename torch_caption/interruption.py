"""Stopping between two steps: Ctrl-C and SIGTERM ask a run to end, and cut nothing in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from torch_caption import distributed
from torch_caption.ending import Cut, Stopped

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Within the block the first Ctrl-C or SIGTERM only sets `asked`, so that no step is cut in two; the second acts at
    once, as it would have done without the block.

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
        except Cut:
            return None
        finally:
            self._only_looking = False
        return found

    def stopped(self) -> Stopped:
        """What to raise once all is saved."""
        return Stopped(self._number)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be caught
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._number = number
        self.__exit__()
        if self._only_looking:
            raise Cut
