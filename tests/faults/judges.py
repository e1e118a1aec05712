"""Which test notices a change of the functions.

One process collects the tests. Each test file gets a fork of it, in which every test runs on the unchanged functions,
must pass, and its seconds and the lines of the functions that it runs are noted. Then each mutant gets a fork, in which
its functions take the place of the unchanged ones, and the tests that run the changed lines run in turn until one
fails; those first which for their time have noticed most changes of the same function.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

from tests.faults.mutations import Mutant, flat
from tests.faults.transplant import transplant

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ROOT / "torch_caption" / "functions"
SURVIVED, UNDECIDED = "survived", "undecided"
OPTIONS = ("--capture=no", "-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist")


class Broken(Exception):
    """Tests fail without any change: a mutant would prove nothing."""


@dataclass(frozen=True)
class Change:
    """A mutant, the name of its file, and the file's whole text with it."""

    file: str
    mutant: Mutant
    text: str
    number: int = 1
    """Which of the same changes in the same function it is."""

    @property
    def place(self) -> tuple[str, str, str]:
        """File, function and change, as `equivalent.toml` names it."""
        number = f" ({self.number})" if self.number > 1 else ""
        return self.file, self.mutant.function, f"{flat(self.mutant.before)} -> {flat(self.mutant.after)}{number}"

    @property
    def module(self) -> str:
        return f"torch_caption.functions.{self.file.removesuffix('.py').replace('/', '.')}"

    @property
    def key(self) -> str:
        return digest(f"{self.file}\n{self.text}")

    def __str__(self) -> str:
        return f"{self.file} {self.mutant}"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `by` is the test that failed, or another word such as SURVIVED."""

    change: Change
    by: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Sight:
    """What a test does with the unchanged functions: its seconds, and lines such as "rnn.py:60"."""

    seconds: float
    lines: frozenset[str]


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:20]


@cache
def content(file: Path) -> str:
    return digest(file.read_bytes())


def state_of(*files: Path) -> str:
    """Another value whenever one of these files changes, between runs."""
    return digest("".join(f"{file.name} {content(file)}\n" for file in sorted(files)))


@cache
def functions_of(file: Path) -> dict[str, str]:
    """The tests of a file, each with a value that changes when its text does."""
    source = file.read_text(encoding="utf-8")
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return {function.name: digest(ast.unparse(function)) for function in functions}


class Cache:
    """Verdicts and sights of earlier runs, in a folder; without one nothing is kept.

    A kill counts as long as the mutant's file and the test that failed are what they were, a survival as long as all of
    `tests` are; a sight while all functions and the test's file are.
    """

    def __init__(self, folder: Path | None, tests: Sequence[str]):
        self.folder, self.tests = folder, tests
        self.files = [file for file in (ROOT / "tests").rglob("*.py") if file.parent.name != "faults"]
        for file in self.files:  # as they are now, when pytest collects them
            functions_of(file), content(file)
        self.known: dict[str, dict[str, dict]] = {"verdicts": {}, "sights": {}}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, known in self.known.items():
                path = folder / f"{name}.jsonl"
                lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
                known |= {entry["key"]: entry for entry in map(json.loads, lines)}

    def verdict(self, change: Change) -> Verdict | None:
        entry = self.known["verdicts"].get(change.key)
        if entry is None or entry["tests"] != self._tests(entry["by"]):
            return None
        return Verdict(change, entry["by"], entry["seconds"])

    def keep(self, verdict: Verdict) -> None:
        tests = self._tests(verdict.by)
        entry = {"key": verdict.change.key, "by": verdict.by, "seconds": round(verdict.seconds, 1), "tests": tests}
        self._write("verdicts", {**entry, "change": str(verdict.change)})

    def sights(self, file: str) -> dict[str, Sight]:
        entry = self.known["sights"].get(file)
        if entry is None or entry["state"] != self._state(file):
            return {}
        return {name: Sight(seconds, frozenset(lines)) for name, (seconds, lines) in entry["tests"].items()}

    def keep_sights(self, file: str, sights: dict[str, Sight]) -> None:
        tests = {name: (round(sight.seconds, 3), sorted(sight.lines)) for name, sight in sights.items()}
        self._write("sights", {"key": file, "state": self._state(file), "tests": tests})

    def _write(self, name: str, entry: dict) -> None:
        if self.folder is not None:
            with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as out:
                out.write(json.dumps(entry) + "\n")

    def _tests(self, by: str) -> str | None:
        """The state of the tests on which a verdict rests; None if the test is gone."""
        if by == SURVIVED:
            return digest(" ".join((state_of(*self.files), *sorted(self.tests))))
        file, _, name = by.partition("::")
        return functions_of(ROOT / file).get(name.partition("[")[0]) if (ROOT / file).is_file() else None

    def _state(self, file: str) -> str:
        return state_of(*FUNCTIONS.rglob("*.py"), ROOT / file, ROOT / "tests" / "helpers" / "random_arguments.py")


def judged(changes: Sequence[Change], kept: Cache, jobs: int, most: float) -> list[Verdict]:
    """The verdict on each change, from `kept` where it is known there.

    Args:
        changes: the mutants.
        kept: which tests, as arguments of pytest, and where new verdicts are kept too.
        jobs: processes at a time.
        most: seconds of tests for a mutant, beyond which it is UNDECIDED.

    Raises:
        Broken: tests fail without any change.
    """
    found = {change.key: kept.verdict(change) for change in changes}
    left = [change for change in changes if found[change.key] is None]
    if left:
        court = Court(left, kept, jobs, most)
        torch.set_num_threads(1)  # and so no other thread that a fork would lose
        os.chdir(ROOT)
        options = [*OPTIONS, "-o", "addopts=--strict-markers --import-mode=importlib"]
        status = pytest.main([*options, *kept.tests], plugins=[court])
        if court.broken or status != pytest.ExitCode.OK:
            raise Broken(f"without any change these fail: {', '.join(court.broken) or 'collecting the tests'}")
        found |= {verdict.change.key: verdict for verdict in court.verdicts}
    return [verdict for verdict in found.values() if verdict is not None]


class Court:
    """A plugin of pytest that takes the place of running the tests once."""

    def __init__(self, changes: Sequence[Change], kept: Cache, jobs: int, most: float):
        self.changes, self.kept, self.jobs, self.most = changes, kept, jobs, most
        self.items: dict[str, pytest.Item] = {}
        self.sights: dict[str, Sight] = {}
        self.kills: dict[str, float] = defaultdict(float)  # by place and test; ever more of what is near
        self.tries: dict[str, float] = defaultdict(float)
        self.verdicts: list[Verdict] = []
        self.broken: list[str] = []
        self.failed = False

    def pytest_configure(self) -> None:
        """A fifth of the random examples, for nearly every mutant falls to the first; and no smaller ones of these."""
        from hypothesis import Phase, settings

        settings.register_profile("mutants", settings(phases=[Phase.explicit, Phase.generate], max_examples=20))
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            self.broken.append("collection")
            return True
        import torch._dynamo
        import torch.func  # noqa: F401 - once here, not in every fork

        self.items = {item.nodeid: item for item in session.items}
        self.look()
        if not self.broken:
            self.judge()
        return True

    # Without any change ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Fill `sights`, a fork for each file of tests whose sights are not kept."""
        files: dict[str, list[str]] = defaultdict(list)
        for name in self.items:
            files[name.partition("::")[0]].append(name)
        known = {file: self.kept.sights(file) for file in files}
        unknown = {file: [name for name in names if name not in known[file]] for file, names in files.items()}
        work = [(file, lambda say, names=names: self.witness(names, say)) for file, names in unknown.items() if names]
        for file, said, status in forks(work, self.jobs):
            known[file] |= {name: Sight(seconds, frozenset(lines)) for name, seconds, lines, _ in said}
            self.broken += [name for name, *_, failed in said if failed]
            if status or len(said) < len(unknown[file]):
                self.broken.append(f"{file} (ended by {status})")
            elif not self.broken:
                self.kept.keep_sights(file, known[file])
            print(f"looked at {file}: {sum(seconds for _, seconds, *_ in said):.0f} s", file=sys.stderr)
        self.sights = {
            name: known[file][name] for file, names in files.items() for name in names if name in known[file]
        }

    def witness(self, names: Iterable[str], say: Callable[[Any], None]) -> None:
        """Run tests and tell what each runs."""
        for name in names:
            lines: set[str] = set()
            start = time.process_time()
            with traced(lines):
                self.run(name)
            say((name, time.process_time() - start, sorted(lines), self.failed))

    def run(self, name: str) -> None:
        self.failed = False
        item = self.items[name]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    # With one --------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        start = time.monotonic()
        # Tests are put in order when a mutant's turn comes, by what is known then.
        work = ((change, lambda say, change=change: self.hear(change, say)) for change in self.changes)
        for done, (change, said, status) in enumerate(forks(work, self.jobs), start=1):
            verdict = self.verdict(change, said, status)
            self.verdicts.append(verdict)
            if verdict.by != UNDECIDED:
                self.kept.keep(verdict)
            minutes = (time.monotonic() - start) / 60
            told = f"{done} of {len(self.changes)}, {minutes:.0f} min, {verdict.seconds:.1f} s: {verdict.by}: {change}"
            print(told, file=sys.stderr)

    def hear(self, change: Change, say: Callable[[Any], None]) -> None:
        """Run the tests on a mutant until one fails, telling each name before and the outcome after."""
        transplant(importlib.import_module(change.module), change.text)
        spent = 0.0
        for name in self.order(change):
            spent += self.sights[name].seconds
            if spent > self.most:
                say(UNDECIDED)
                return
            say(name)
            limit(self.sights[name].seconds)
            self.run(name)
            if self.failed:
                say("failed")
                return
        say(SURVIVED)

    def order(self, change: Change) -> list[str]:
        """The tests that run the changed lines; the quick ones, and those that noticed much, first.

        Lines that run at import, before any test, and lines that run only while torch.export records, which no trace
        sees, are left to all tests that run any line of the file.
        """
        first = change.mutant.line
        lines = {f"{change.file}:{line}" for line in range(first, first + change.mutant.before.count("\n") + 1)}
        names = [name for name, sight in self.sights.items() if sight.lines & lines]
        if not names or lines & lines_of_import(FUNCTIONS / change.file):
            names = [n for n, s in self.sights.items() if any(line.startswith(f"{change.file}:") for line in s.lines)]

        def cost(name: str) -> float:
            chance = 0.1
            for place, weight in ((change.file, 1), (f"{change.file} {change.mutant.function}", 4)):
                chance += weight * (self.kills[f"{place} {name}"] + 0.1) / (self.tries[f"{place} {name}"] + 1)
            return (self.sights[name].seconds + 0.01) / chance

        return sorted(names, key=cost)

    def verdict(self, change: Change, said: Sequence[str], status: int) -> Verdict:
        """From what the mutant's fork said; one that died in a test was noticed by it."""
        *tests, last = said or [""]
        if status:
            assert -status in (signal.SIGPROF, signal.SIGALRM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS), (
                f"a fork ended by {status}: {change}"
            )
            tests, last = list(said), "failed"
        seconds = sum(self.sights[name].seconds for name in tests)
        for k, name in enumerate(tests, start=1):
            for place in (change.file, f"{change.file} {change.mutant.function}"):
                self.tries[f"{place} {name}"] += 1
                self.kills[f"{place} {name}"] += last == "failed" and k == len(tests)
        return Verdict(change, tests[-1] if last == "failed" else last, seconds)


def name_of(path: Path) -> str:
    """A source below `FUNCTIONS` as verdicts name it, such as "_inplace/rnn.py"."""
    return path.relative_to(FUNCTIONS).as_posix()


@cache
def lines_of_import(path: Path) -> frozenset[str]:
    """The lines of a module that run when it is imported: outside of functions, and what `def` itself evaluates."""
    bodies, lines = [compile(path.read_text(encoding="utf-8"), path, "exec")], set()
    while bodies:
        body = bodies.pop()
        lines |= {f"{name_of(path)}:{line}" for _, _, line in body.co_lines() if line}
        inside = (const for const in body.co_consts if isinstance(const, CodeType))
        bodies += [code for code in inside if not code.co_flags & inspect.CO_OPTIMIZED]
    return frozenset(lines)


class traced:
    """Collects the lines of the functions that run meanwhile."""

    def __init__(self, lines: set[str]):
        self.lines = lines
        self.files: dict[str, str | None] = {}

    def __enter__(self) -> None:
        sys.settrace(self.call)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def call(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if path not in self.files:
            self.files[path] = name_of(Path(path)) if Path(path).is_relative_to(FUNCTIONS) else None
        return self.line if self.files[path] else None

    def line(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines.add(f"{self.files[frame.f_code.co_filename]}:{frame.f_lineno}")
        return self.line


def limit(seconds: float) -> None:
    """Let this process die of a signal if a test that takes so many seconds of computing does not end, or waits."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, 10 * seconds + 5)
    signal.setitimer(signal.ITIMER_REAL, 100 * seconds + 120)


def forks(work: Iterable[tuple[Any, Callable]], jobs: int) -> Iterator[tuple[Any, list[Any], int]]:
    """Call each function in a fork of its own with `say`, some at a time: names, what was said, exit statuses.

    The status is 0, or minus the signal that ended the fork.
    """
    running: dict[Connection, tuple[Any, int, list[Any]]] = {}
    todo, more = iter(work), True
    while more or running:
        while more and len(running) < jobs:
            name, function = next(todo, (None, None))
            if function is None:
                more = False
                break
            reader, pid = forked(function)
            running[reader] = name, pid, []
        for reader in wait(list(running)) if running else ():
            name, pid, said = running[reader]  # type: ignore[index]
            try:
                said.append(reader.recv())  # type: ignore[union-attr]
            except EOFError:
                reader.close()  # type: ignore[union-attr]
                del running[reader]  # type: ignore[arg-type]
                yield name, said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(function: Callable[[Callable[[Any], None]], None]) -> tuple[Connection, int]:
    """Call `function(say)` in a silent fork; where to read what it says, and its id."""
    reader, writer = Pipe(duplex=False)
    pid = os.fork()
    if pid:
        writer.close()
        return reader, pid
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        errors = os.dup(2)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        function(writer.send)
        os._exit(0)
    except BaseException as error:
        os.write(errors, f"{type(error).__name__}: {error}\n".encode())
        raise
    finally:
        os._exit(3)
