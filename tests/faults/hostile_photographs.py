"""Fault: files that are photographs at a price, or only pretend to be.

Each is read in a process of limited memory, which watches what the reading does; when it dies, another goes on behind
the file that killed it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.faults.figures import Family, Figures
from tests.helpers.hostile_photos import QUICK, SLOW, SOUND

CLIENT = Path(__file__).with_name("photo_client.py")
SECONDS = 20.0  # of any file; those of 67 million pixels take most
MEMORY = 1536.0  # MiB beyond what the process takes anyway
PATIENCE = 60.0  # seconds after which a process is given up


def names(cases: int) -> Iterator[list]:
    """What the client makes its files from: a kind, or a kind to damage and a number."""
    slow = list(SLOW) if cases > len(QUICK) + len(SLOW) else []
    yield from ([kind] for kind in QUICK)
    yield from ([kind] for kind in slow)
    for number in range(cases - len(QUICK) - len(slow)):
        yield [[*SOUND][number % len(SOUND)], number // len(SOUND)]


def run(cases: int, seed: int, folder: Path) -> Figures:
    figures = Figures()
    figures.expect("tracebacks", "crashes", "programs run", "files written", "leaked descriptors")
    left = [*islice(names(cases), cases)]
    while left:
        process = subprocess.Popen(
            [sys.executable, str(CLIENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, text=True, encoding="utf-8",
        )  # fmt: skip
        try:
            out, err = process.communicate(json.dumps({"seed": seed, "cases": left}), PATIENCE + len(left))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        answers = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
        for case, answer in zip(left, answers, strict=False):
            _judge(f"{case}, seed {seed}", answer, figures)
        figures.cases += len(answers)
        left = left[len(answers) :]
        if process.returncode or err:
            what = left[0] if left else "at the end"
            figures.wrong("crashes", f"{what}, seed {seed}: status {process.returncode}: {err[-300:]}")
            figures.cases += bool(left)
            left = left[1:]
    return figures


def _judge(where: str, answer: dict, figures: Figures) -> None:
    figures.measured("s", answer["seconds"], SECONDS)
    figures.measured("MiB memory", answer["memory"], MEMORY)
    figures.saw(answer["outcome"])
    if answer["outcome"] == "other errors" or not answer["said"].isprintable():
        figures.wrong("tracebacks", f"{where}: {answer['said']!a}")
    for name in ("programs run", "files written", "leaked descriptors"):
        if answer[name]:
            figures.wrong(name, f"{where}: {answer[name]}")


FAMILY = Family("hostile photographs", run, short=len(QUICK) + len(SLOW), full=600)
