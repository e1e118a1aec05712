"""Checkpoints made to exhaust the memory, or never to end, whose checksum is correct.

Each is opened in a process of limited memory, as a program that resumes from it does, and must be refused in one line.
tests/checkpoints/test_format.py has the files that hold code or wrong values.

    python tests/faults/hostile_checkpoints.py FILE...      what becomes of each of these, a line of JSON a file
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

import torch  # noqa: E402 - the rest is found beside this file

from tests.faults.figures import Family, Figures  # noqa: E402
from tests.helpers.saved_checkpoint import CONFIG, WORDS, forged, framed, sealed  # noqa: E402
from torch_caption.checkpoints import format as checkpoints  # noqa: E402
from torch_caption.checkpoints.checksum import HEADER_LIMIT  # noqa: E402
from torch_caption.data.dataset import CocoData, Split  # noqa: E402
from torch_caption.data.vocabulary import Vocabulary  # noqa: E402
from torch_caption.io.exits import guarded  # noqa: E402
from torch_caption.training import state  # noqa: E402

MOST_SECONDS, MOST_MIB = 10.0, 400.0
SPARE = 2**30  # bytes of address space a process may take beyond what it has when it begins
Make = Callable[[random.Random], bytes]
KINDS: dict[str, Make] = {}
EMPTY: dict[str, Any] = {"manifest": {}, "data": {}}  # parts that no data is needed for


def kind(make: Make) -> Make:
    """Enter a kind: rng -> the bytes of a file."""
    KINDS[make.__name__.replace("_", " ")] = make
    return make


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@kind
def lengths_of_headers(rng: random.Random) -> bytes:
    length = rng.choice((0, 1, 35, 2**20, HEADER_LIMIT + 1, 2**31, 2**40, 2**63, 2**64 - 1))
    return sealed(length.to_bytes(8, "little") + forged(**EMPTY)[8:])


@kind
def tensors_that_are_not_there(rng: random.Random) -> bytes:
    shape = rng.choice(([10**12], [10**7, 10**6], [2**62, 4], [2**64], [10**200, 10**200], [-1], [2], ["x"], [0.5], 3))
    offsets = rng.choice(([0, 4], [0, 2**60], [0, -4], [-4, 0], [4, 8], [4, 0], [2**64, 2**64 + 4], [0], None))
    dtype = rng.choice(("F32", "F64", "X9", "", None, 3))
    entry = rng.choice(
        ({"shape": shape}, {"data_offsets": offsets}, {"dtype": dtype}, {"shape": [2**40], "data_offsets": [0, 2**42]})
    )
    return framed({"__metadata__": {}, "W": F32 | entry}, bytes(4))


@kind
def headers_that_are_too_much(rng: random.Random) -> bytes:
    """Parsed, JSON takes more memory than its text; and what is nested deep, more stack."""
    first = b'{"__metadata__":{"sha256":"' + b"0" * 64 + b'"},"a":'
    size = rng.choice((HEADER_LIMIT - 200, HEADER_LIMIT * 4))
    ways = (
        *(first + b"[" * 100_000, first + b'{"a":' * 100_000, first + b"9" * 10**6 + b"}"),
        *(first + b"[" + b"[]," * (size // 3) + b"[]]}", first + b"[" + b"{}," * (size // 3) + b"{}]}"),
        *(first + b'{"a":1}' + b" " * size + b"}", first + b'"' + b"\\u0000" * (size // 6) + b'"}'),
        first[:-5]
        + b"".join(b',"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % k for k in range(size // 60))
        + b"}",
        first[:-1] + b"\xff",
    )
    return framed(rng.choice(ways))


@kind
def metadata_that_is_too_much(rng: random.Random) -> bytes:
    deep = rng.choice((40, 500, 20_000))
    texts = ("[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "9" * 10**6, "[" + "[]," * 10**6 + "[]]")
    name = rng.choice(("words", "config", "manifest", "progress", "data", "input_dim"))
    text = rng.choice(texts[:3] if name == "manifest" else texts)  # a manifest may hold long lists
    return forged(metadata={name: f'{{"a": {text}}}' if name == "manifest" else text}, **EMPTY)


@kind
def models_of_any_size(rng: random.Random) -> bytes:
    sizes = (10**9, 10**18, 10**30, 2**63, 2**61, 0, -1, 2.5, "5", None, True, [5], {})
    if rng.random() < 0.3:
        return forged(metadata={"input_dim": json.dumps(rng.choice(sizes))}, **EMPTY)
    change = {rng.choice(("hidden_dim", "wordvec_dim")): rng.choice(sizes)}
    return forged(metadata={"config": CONFIG.plain() | change}, **EMPTY)


def hostile(cases: int, seed: int, folder: Path) -> Figures:
    """So many files, each kind in turn, opened many to a process."""
    figures = Figures()
    figures.expect("accepted", "tracebacks", "killed")
    rng = random.Random(seed)
    files: dict[Path, str] = {}
    for number in range(cases):
        what = list(KINDS)[number % len(KINDS)]
        path = folder / f"{number}.safetensors"
        path.write_bytes(KINDS[what](rng))
        files[path] = f"{what} (case {number} of seed {seed})"
        figures.saw("kinds") if number < len(KINDS) else None
    files |= {path: what for path, what in _no_files(folder) if cases >= len(KINDS)}
    figures.cases = len(files)
    for outcome in _opened(list(files)):
        _judge(figures, outcome, files[Path(outcome["file"])])
    return figures


def _judge(figures: Figures, outcome: dict[str, Any], what: str) -> None:
    if outcome["status"] is None:
        figures.wrong("killed", f"{what}: {outcome['why']!r}")
        return
    if outcome["status"] == 0:
        figures.wrong("accepted", what)
    elif outcome["status"] != 2 or "Traceback" in outcome["stderr"] or outcome["stderr"].count("\n") != 1:
        figures.wrong("tracebacks", f"{what}: {outcome['stderr'][-300:]!r}")
    elif len(outcome["stderr"]) > 1500:
        figures.wrong("tracebacks", f"{what}: a line of {len(outcome['stderr'])}")
    figures.measured("s", outcome["seconds"], MOST_SECONDS)
    figures.measured("MiB", outcome["mib"], MOST_MIB)


def _no_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is no file, or is larger than any memory."""
    (folder / "folder.safetensors").mkdir()
    yield folder / "folder.safetensors", "a folder"
    if os.name == "posix":
        with open(folder / "sparse.safetensors", "wb") as file:
            file.write(forged(**EMPTY))
            file.truncate(2**40)
        yield folder / "sparse.safetensors", "a file of a tebibyte that takes no room"
        os.mkfifo(folder / "pipe.safetensors")
        yield folder / "pipe.safetensors", "a pipe that nobody writes"
        (folder / "device.safetensors").symlink_to("/dev/zero")
        yield folder / "device.safetensors", "a device without an end"
        (folder / "loop.safetensors").symlink_to("loop.safetensors")
        yield folder / "loop.safetensors", "a link to itself"


def _opened(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """What became of each, in as few processes as it takes: one that is killed has its last file against it."""
    left = [str(path) for path in paths]
    while left:
        command = [sys.executable, str(Path(__file__)), *left]
        try:
            ran = subprocess.run(command, check=False, capture_output=True, timeout=60 + MOST_SECONDS * len(left))
            out, why = ran.stdout, ran.stderr.decode("utf-8", "replace")
        except subprocess.TimeoutExpired as late:
            out, why = late.stdout or b"", "it did not end"
        outcomes = [json.loads(line) for line in out.splitlines() if line.endswith(b"}")]
        yield from outcomes
        done = len(outcomes)
        if done < len(left):
            yield {"file": left[done], "status": None, "why": why[-1000:]}
        left = left[done + 1 :]


def _use(path: Path) -> None:
    """All that a program does with a checkpoint before it computes."""
    found = checkpoints.find(path)
    state.resume(replace(found.checkpoint.config, resume="last"), _data(), torch.device("cpu"), found)
    checkpoints.build_model(found.checkpoint, path)


def _data() -> CocoData:
    """What the checkpoints are of: two captions, so that an epoch of theirs has two steps."""
    vocabulary = Vocabulary(tuple(WORDS))
    rows = torch.tensor([[1, 4, 2], [1, 5, 2]]), torch.arange(2)
    split = Split("train", vocabulary, *rows, torch.ones(2, 3), (2, 3))
    return CocoData(Path("data"), vocabulary, {}, {}, {"train": split, "val": split})


def _open_all(paths: list[str]) -> None:
    good = Path(paths[0]).parent / "good.safetensors"
    good.write_bytes(forged(**EMPTY))
    _use(good)  # what is not hostile is taken
    _limit_memory()
    for path in paths:
        before, started = _peak(reset=True), time.process_time()
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            try:
                status = guarded(lambda path=path: _use(Path(path)))
            except BaseException as error:  # what a user would see as a traceback
                status = 1
                print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
        seconds, mib = time.process_time() - started, (_peak() - before) / 2**20
        outcome = {"file": path, "status": status, "stderr": stderr.getvalue(), "seconds": seconds, "mib": mib}
        print(json.dumps(outcome), flush=True)


def _limit_memory() -> None:
    if sys.platform.startswith("linux"):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _peak(reset: bool = False) -> int:
    """The most memory that was resident, since the last reset; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


HOSTILE = Family("hostile-checkpoints", hostile, short=len(KINDS), full=20 * len(KINDS))

if __name__ == "__main__":
    _open_all(sys.argv[1:])
