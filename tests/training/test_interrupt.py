"""Signals between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from torch_caption.io.exits import Stopped
from torch_caption.training.interrupt import SIGNALS, Interrupt


def act(number: int, frame: object) -> None:
    raise Stopped(number)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """All signals raise, whatever those who ran the tests had made of them."""
    before = {number: signal.signal(number, act) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_stays_so(number: signal.Signals) -> None:
    """As SIGHUP of what `nohup` has begun."""
    signal.signal(number, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(number)
        assert not interrupt.asked
    assert signal.getsignal(number) == signal.SIG_IGN


def test_output_that_cannot_be_written_is_no_error_once_asked_to_stop() -> None:
    with Interrupt() as interrupt:
        with pytest.raises(OSError, match="gone"), interrupt.printing():
            raise OSError("the terminal is gone")
        signal.raise_signal(SIGNALS[-1])
        with interrupt.printing():
            raise OSError("the terminal is gone")


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_the_first_asks_and_the_second_acts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with Interrupt() as interrupt:
        assert not interrupt.agreed
        signal.raise_signal(first)
        assert interrupt.asked
        assert interrupt.agreed
        assert interrupt.stopped().status == 128 + first
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(second)
        assert stopped.value.status == 128 + second
    assert all(signal.getsignal(number) is act for number in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_only_looks_is_cut_off(number: signal.Signals) -> None:
    seen = []

    def look() -> str:
        seen.append("begun")
        signal.raise_signal(number)
        seen.append("ended")
        return "record"

    with Interrupt() as interrupt:
        assert interrupt.unless_asked(lambda: "record") == "record"
        assert not interrupt.asked
        assert interrupt.unless_asked(look) is None
        assert seen == ["begun"]
        assert interrupt.stopped().status == 128 + number


def test_what_goes_wrong_while_looking_is_told() -> None:
    def look() -> str:
        raise ArithmeticError("nan")

    with Interrupt() as interrupt:
        with pytest.raises(ArithmeticError):
            interrupt.unless_asked(look)
        signal.raise_signal(signal.SIGTERM)  # no longer within it: it asks, and cuts nothing
        assert interrupt.asked


def test_elsewhere_than_in_the_main_thread_nothing_is_caught() -> None:
    def enter() -> None:
        with Interrupt() as interrupt:
            asked.append(interrupt.asked)

    asked: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert asked == [False]
    assert all(signal.getsignal(number) is act for number in SIGNALS)
