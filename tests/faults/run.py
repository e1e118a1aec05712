"""Every kind of fault, injected for real, and the table of what came of it.

    python tests/faults/run.py                    all of them: half an hour on two cores
    python tests/faults/run.py "hostile HDF5"     of this kind
    python tests/faults/run.py --short            the few cases that the tests run

The exit status is 1 if anything happened that must not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.faults.families import FAMILIES  # noqa: E402
from tests.faults.figures import Figures, table  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {family.name: family for family in FAMILIES}
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(known)}; all without any")
    parser.add_argument("--short", action="store_true", help="the few cases of the suite of tests")
    parser.add_argument("--cases", type=int, help="so many of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    flags = parser.parse_args(arguments)
    if unknown := set(flags.kinds) - known.keys():
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    results: dict[str, tuple[Figures, float]] = {}
    for family in [known[kind] for kind in flags.kinds] or FAMILIES:
        cases = flags.cases or (family.short if flags.short else family.full)
        print(f"{family.name}: {cases:,} cases ...", file=sys.stderr, flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures = family.run(cases, flags.seed, Path(folder))
        results[family.name] = figures, time.monotonic() - started
        for line in figures.failures:
            print(f"{family.name}: {line}", file=sys.stderr, flush=True)
    print(table(results))
    if flags.json:
        plain = {name: dataclasses.asdict(figures) | {"seconds": s} for name, (figures, s) in results.items()}
        flags.json.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    return 0 if all(figures.sound for figures, _ in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
