"""Contenders timed in turns, in one process: medians and quartiles, with the machine's own peak among them."""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from torch_caption.functions.matmul import prefer_onednn


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: what the tables call it.
        run: does the work once; what it returns goes to the check.
        precision: "float32", "bfloat16" or "tf32"; with the name it is one of a kind in a race.
        weight: its share of the time of a race, and of the least number of turns: more for what a claim rests on.
        rest: seconds of pause after it, for threads of another pool to fall asleep in.
    """

    name: str
    run: Callable[[], Any]
    precision: str = "float32"
    weight: float = 1.0
    rest: float = 0.0

    @property
    def key(self) -> Key:
        return self.name, self.precision


Key = tuple[str, str]
Check = Callable[[Any, Any], None]


@dataclass(frozen=True)
class Times:
    """The seconds of each repetition of one contender."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.seconds, (25, 75))
        return float(low), float(high)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: of one race, shared among its contenders by their weights.
        least: turns of a contender of weight 1, whatever its share allows.
        most: turns of any contender.
        burst: seconds of a turn. What takes less than that runs several times in its turn, as steps of training do, and
            the first of them, which finds in the caches what the one before left there, is not timed.
        patience: a contender whose first run takes more seconds is not repeated: that run is its time. The first
            contender, ours, always is.
        product: M of the (M, M) products that the machine's peak is measured by.
    """

    seconds: float = 5.0
    least: int = 2
    most: int = 15
    burst: float = 0.1
    patience: float = 8.0
    product: int = 4096


QUICK = Effort(seconds=0.0, least=1, most=1, burst=0.0, product=64)


def race(
    contenders: Sequence[Contender],
    effort: Effort,
    *,
    check: Check | None = None,
    wait: Callable[[], None] | None = None,
    label: str = "",
) -> dict[Key, Times]:
    """Run every contender once, which warms it up, and check what it returns; then time them all in turns.

    Args:
        contenders: the order of a turn; every second turn goes backwards, so that nobody always follows the same one.
        check: takes a contender and what its run returned, and raises where that is wrong.
        wait: returns when the device has done all that it was given; a GPU needs it.
        label: names the race on the progress bar.
    """
    with tqdm(desc=label, total=len(contenders), unit="turn", leave=False, disable=None) as bar, _no_collection():
        first = []
        for contender in contenders:
            first.append(_warm_up(contender, effort, check, wait))
            bar.update()
        a_weight = effort.seconds / sum(c.weight for c in contenders)
        plans = [plan(c, took, effort, a_weight) for c, took in zip(contenders, first, strict=True)]
        plans[1:] = [(0, 0) if took > effort.patience else p for p, took in zip(plans[1:], first[1:], strict=True)]
        counts = [count for count, _ in plans]
        bar.total += sum(counts)
        seconds: list[list[float]] = [[] if count else [took] for count, took in zip(counts, first, strict=True)]
        for place in turns(counts):
            contender, runs = contenders[place], plans[place][1]
            taken = [timed(contender, wait)[1] for _ in range(runs)]
            seconds[place] += taken[1:] or taken
            bar.update()
    return {c.key: Times(tuple(taken)) for c, taken in zip(contenders, seconds, strict=True)}


def _warm_up(contender: Contender, effort: Effort, check: Check | None, wait: Callable[[], None] | None) -> float:
    """Run a contender and check it; the seconds that a run takes."""
    result, took = timed(contender, wait)
    if check is not None:
        check(contender, result)
    if took < 10 * effort.burst:  # the very first run may have loaded or tuned something
        took = min(took, timed(contender, wait)[1])
    return took


def timed(contender: Contender, wait: Callable[[], None] | None = None) -> tuple[Any, float]:
    """What one run returns, and its seconds."""
    if wait is not None:
        wait()
    begin = time.perf_counter()
    result = contender.run()
    if wait is not None:
        wait()
    took = time.perf_counter() - begin
    if contender.rest:
        time.sleep(contender.rest)
    return result, took


def plan(contender: Contender, first: float, effort: Effort, a_weight: float) -> tuple[int, int]:
    """How many turns a contender gets whose first run took `first` seconds, and how many runs each of them has.

    Args:
        a_weight: seconds that a contender of weight 1 may take.
    """
    runs = 1 if first > effort.burst else 1 + min(5, max(1, int(effort.burst / first)))
    affordable = int(contender.weight * a_weight / (first * runs))
    return max(round(effort.least * contender.weight), min(effort.most, affordable)), runs


def turns(counts: Sequence[int]) -> Iterator[int]:
    """Whose turn it is: place k comes up counts[k] times, evenly spread over max(counts) rounds."""
    rounds = max(counts, default=0)
    for turn in range(rounds):
        due = [k for k, count in enumerate(counts) if (turn + 1) * count // rounds > turn * count // rounds]
        yield from due if turn % 2 == 0 else reversed(due)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected in the middle of a repetition."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# The machine's peak --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def onednn() -> Iterator[None]:
    """Products of float32 go to oneDNN, if it is as exact as MKL: what `prefer_onednn` does, for a block."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = settings.fp32_precision
    if onednn_is_exact():
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


@functools.cache
def onednn_is_exact() -> bool:
    """Whether `prefer_onednn` chooses oneDNN here."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    before = settings.fp32_precision
    chosen = prefer_onednn()
    settings.fp32_precision = before
    return chosen


def products_note() -> str:
    """Whose products a race of training steps is of."""
    ours = "oneDNN's, as train.py chooses" if onednn_is_exact() else "torch's default"
    return f"float32 products: ours are {ours} (torch_caption.functions.matmul), those of the others torch's default"


@functools.cache
def operands(size: int, precision: str, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Two (M, M) factors, and the memory of their product."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
    return a, b, torch.empty_like(a)


PRODUCT_WEIGHT = 1.5


def peak_contenders(effort: Effort, precisions: Sequence[str] = ("float32", "bfloat16")) -> list[Contender]:
    """Products whose speed stands for the machine's peak: torch's own, and in float32 oneDNN's if it is as accurate."""

    def product(precision: str) -> None:
        a, b, out = operands(effort.product, precision)
        torch.mm(a, b, out=out)

    def by_onednn() -> None:
        with onednn():
            product("float32")

    made = [Contender("product", functools.partial(product, of), of, PRODUCT_WEIGHT) for of in precisions]
    if "float32" in precisions and onednn_is_exact():
        made.append(Contender("product, oneDNN", by_onednn, "float32", PRODUCT_WEIGHT))
    return made


def peak(times: Mapping[Key, Times], precision: str, effort: Effort) -> float:
    """Flops a second of the fastest product of that precision in a race."""
    return 2 * effort.product**3 / times[fastest_product(times, precision)].median


def fastest_product(times: Mapping[Key, Times], precision: str) -> Key:
    """Which of the products of that precision has the least median."""
    products = [(name, of) for name, of in times if name.startswith("product") and of == precision]
    return min(products, key=lambda key: times[key].median)
