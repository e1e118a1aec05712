"""Files that are photographs at a price, or only pretend to be, and sound photographs that were changed."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults import victims
from tests.faults.figures import Family, Figures
from tests.faults.victims import Case
from tests.helpers.hostile_photos import QUICK, SLOW, SOUND, damaged, made

SECONDS, MIB = 20.0, 1536.0  # of any file; those of 67 million pixels take most


def run(cases: int, seed: int, folder: Path) -> Figures:
    """All that is made by hand, without the slow ones in the short set; the rest is damaged."""
    kinds = [*QUICK, *(SLOW if cases > len(QUICK) else [])]
    contents = {kind: made(kind) for kind in kinds}
    for number in range(cases - len(kinds)):
        kind = [*SOUND][number % len(SOUND)]
        name = f"{kind}, damaged {number} of seed {seed}"
        contents[name] = damaged(SOUND[kind](), random.Random(f"{seed} {number} {kind}"))
    files = []
    for number, (name, content) in enumerate(contents.items()):
        path = folder / str(number)
        path.write_bytes(content)
        files.append(Case(name, "photograph", (str(path),), None))
    figures = victims.judge(files, folder, seconds=SECONDS, mib=MIB)
    figures.seen["kinds"] = len(kinds)
    return figures


FAMILY = Family("hostile photographs", run, short=len(QUICK), full=600)
