"""What a family of faults comes to, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """What was done to the program, and what came of it.

    Attributes:
        cases: how many faults were injected.
        counts: what must not have happened, by name ("lost", "tracebacks", "code run"), and how often it did.
        worst: measured values, by name with the unit ("s", "MiB"), each with the most it may be.
        seen: what else happened, by name, for the reader of the table.
        failures: one line for each case that went wrong: how to repeat it, and what was seen.
    """

    cases: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def expect(self, *names: str) -> None:
        """These must not happen: they stand in the table as 0 until they do."""
        for name in names:
            self.counts.setdefault(name, 0)

    def wrong(self, name: str, line: str) -> None:
        """`name` happened, in the case that `line` describes."""
        self.counts[name] = self.counts.get(name, 0) + 1
        self.failures.append(f"{name}: {line}")

    def measured(self, name: str, value: float, most: float) -> None:
        """Keep the greatest value, beside the most that it may be."""
        self.worst[name] = max(value, self.worst.get(name, (value, most))[0]), most

    def saw(self, name: str) -> None:
        """Count what may happen."""
        self.seen[name] = self.seen.get(name, 0) + 1

    @property
    def sound(self) -> bool:
        """Nothing happened that must not, and every measured value is within its bound."""
        return not any(self.counts.values()) and all(value <= most for value, most in self.worst.values())


@dataclass(frozen=True)
class Family:
    """One kind of fault.

    Attributes:
        name: on the command line and in the table.
        run: (cases, seed, an empty folder) -> figures; the same seed injects the same faults, as far as the machine's
            clock allows.
        short: cases in the suite of tests, a few seconds' worth.
        full: cases of the whole table.
    """

    name: str
    run: Callable[[int, int, Path], Figures]
    short: int
    full: int


def table(results: Mapping[str, tuple[Figures, float]]) -> str:
    """One line a family: its cases, what must be nothing, what must be small, what else was seen, and its seconds."""
    rows: list[Sequence[str]] = [("fault", "cases", "must be 0", "at most", "seen", "s")]
    for name, (figures, seconds) in results.items():
        counts = ", ".join(f"{what} {count}" for what, count in figures.counts.items())
        worst = ", ".join(f"{what} {value:.3g} of {most:g}" for what, (value, most) in figures.worst.items())
        seen = ", ".join(f"{what} {count:,}" for what, count in figures.seen.items())
        rows.append((name, f"{figures.cases:,}", counts, worst, seen, f"{seconds:.0f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
