"""Mutation testing of torch_caption/functions: does a test fail for every single thing that could be derived wrong?

    python tests/faults/mutants.py --resume DIR              all of them; verdicts in DIR of earlier runs are kept
    python tests/faults/mutants.py rnn.py lstm.py            of these files
    python tests/faults/mutants.py --sample 50               fifty of them, drawn at random
    python tests/faults/mutants.py --most 10 --resume DIR    with ten seconds of tests each; the others another time
    python tests/faults/mutants.py --ring inner              by the tests not marked exhaustive

No test notices what it prints as survivors, and the exit status is then 1, unless `equivalent.toml` says why a change
makes no difference to any result. `judges` says how a mutant is tested. Needs a system that can fork.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.faults.judges import FUNCTIONS, SURVIVED, UNDECIDED, Broken, Cache, Change, Verdict, judged, name_of  # noqa: E402
from tests.faults.mutations import mutants  # noqa: E402

EQUIVALENT = HERE / "equivalent.toml"
EXCUSED = "equivalent"
UNDERIVED = ("matmul.py", "reference.py")  # which derive nothing
TESTS = (
    "tests/functions",
    "tests/test_known_answers.py",
    "tests/model/test_cells.py",
    "tests/model/test_captioner.py",
    "tests/verify/test_compare.py",
    "tests/cs231n/test_layers.py",
    "tests/model/test_dropout.py",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="of torch_caption/functions; all of them without any")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files and folders; those that run the functions")
    parser.add_argument("--ring", choices=("all", "inner"), default="all", help="of tests; each its own --resume")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--sample", type=int, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--find", default="", help="only those whose description holds this text")
    parser.add_argument("--most", type=float, default=float("inf"), help="seconds of tests; no verdict beyond them")
    parser.add_argument("--resume", type=Path, help="a folder for verdicts, which a later run keeps if nothing changed")
    parser.add_argument("--report", action="store_true", help="print what --resume holds, test nothing")
    parser.add_argument("--list", action="store_true", help="print the mutants, test nothing")
    flags = parser.parse_args(arguments)
    work = [change for change in of_files(flags.files) if flags.find in str(change)]
    if flags.sample is not None:
        work = random.Random(flags.seed).sample(work, min(flags.sample, len(work)))
    if flags.list:
        print("\n".join(map(str, work)))
        return 0
    excused = excuses()
    verdicts = [Verdict(change, EXCUSED) for change in work if change.place in excused]
    rest = [change for change in work if change.place not in excused]
    kept = Cache(flags.resume, [*flags.tests, *(["-m", "not exhaustive"] if flags.ring == "inner" else [])])
    if flags.report:
        return report([*verdicts, *(kept.verdict(change) or Verdict(change, UNDECIDED) for change in rest)])
    try:
        verdicts += judged(rest, kept, flags.jobs, flags.most)
    except Broken as broken:
        print(broken, file=sys.stderr)
        return 2
    return report(verdicts)


def of_files(names: Sequence[str] = ()) -> Iterator[Change]:
    """The mutants of the files named, or of all."""
    derived = [path for path in sorted(FUNCTIONS.rglob("*.py")) if path.name not in UNDERIVED]
    for path in [FUNCTIONS / name for name in names] or derived:
        count: Counter[tuple[str, str, str]] = Counter()
        source = path.read_text(encoding="utf-8")
        for mutant in mutants(source):
            change = Change(name_of(path), mutant, mutant.apply(source))
            count[change.place] += 1
            yield replace(change, number=count[change.place])


def excuses() -> dict[tuple[str, str, str], str]:
    """The reason why a mutant is no other program, by file, function and change."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["mutant"]
    return {(e["file"], e["function"], change): e["reason"] for e in entries for change in e["changes"]}


def report(verdicts: Sequence[Verdict]) -> int:
    """Print the table and the survivors; 1 if there are any, or if a verdict is missing."""
    others = (EXCUSED, SURVIVED, UNDECIDED)
    print(f"{'file':<22}{'mutants':>9}{'killed':>9}" + "".join(f"{kind:>12}" for kind in others))
    for file in [*sorted({v.change.file for v in verdicts}), "all"]:
        count = Counter(v.by if v.by in others else "killed" for v in verdicts if file in (v.change.file, "all"))
        print(f"{file:<22}{count.total():>9,}{count['killed']:>9,}" + "".join(f"{count[kind]:>12,}" for kind in others))
    left = [v for v in verdicts if v.by in (SURVIVED, UNDECIDED)]
    for verdict in left:
        print(f"{verdict.by}: {verdict.change}")
    return int(bool(left))


if __name__ == "__main__":
    raise SystemExit(main())
