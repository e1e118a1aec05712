"""Signals between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from torch_caption.io.exits import Stopped
from torch_caption.training.interrupt import SIGNALS, Interrupt


def stop(number: int, frame: object) -> None:
    raise Stopped(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every signal raises, whatever its handler was."""
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    """As SIGHUP under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(number)
        assert not interrupt.requested
    assert signal.getsignal(number) == signal.SIG_IGN


def test_failed_output_is_no_error_after_a_signal() -> None:
    with Interrupt() as interrupt:
        with pytest.raises(OSError, match="gone"), interrupt.printing():
            raise OSError("the terminal is gone")
        signal.raise_signal(SIGNALS[-1])
        with interrupt.printing():
            raise OSError("the terminal is gone")


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", [SIGNALS[0], SIGNALS[-1]])
def test_the_first_signal_asks_and_the_second_acts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.agreed
        signal.raise_signal(first)
        assert interrupt.requested
        assert interrupt.agreed
        assert interrupt.stopped().status == 128 + first
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(second)
        assert stopped.value.status == 128 + second
    assert all(signal.getsignal(number) is stop for number in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_what_changes_nothing(number: signal.Signals) -> None:
    seen = []

    def validate() -> None:
        seen.append("started")
        signal.raise_signal(number)
        seen.append("finished")

    with Interrupt() as interrupt:
        assert interrupt.unless_requested(lambda: "record") == "record"
        assert not interrupt.requested
        assert interrupt.unless_requested(validate) is None
        assert seen == ["started"]
        assert interrupt.stopped().status == 128 + number


def test_an_error_of_what_changes_nothing_is_raised() -> None:
    with Interrupt() as interrupt:
        with pytest.raises(ZeroDivisionError):
            interrupt.unless_requested(lambda: 1 / 0)
        signal.raise_signal(signal.SIGTERM)  # outside of it a signal asks, and interrupts nothing
        assert interrupt.requested


def test_outside_the_main_thread_no_signal_is_caught() -> None:
    def enter() -> None:
        with Interrupt() as interrupt:
            requested.append(interrupt.requested)

    requested: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requested == [False]
    assert all(signal.getsignal(number) is stop for number in SIGNALS)
