"""Checkpoints made to exhaust the memory, or never to end, whose checksum is correct.

tests/checkpoints/test_format.py has the files that hold code or wrong values.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import victims
from tests.faults.figures import Family, Figures
from tests.faults.victims import Case
from tests.helpers.saved_checkpoint import CONFIG, forged, framed, sealed
from torch_caption.checkpoints.checksum import HEADER_LIMIT

SECONDS, MIB = 10.0, 400.0
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


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(forged(**EMPTY))
        file.truncate(2**40)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a file of a tebibyte that takes no room": sparse,
    "a pipe that nobody writes": os.mkfifo,
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def hostile(cases: int, seed: int, folder: Path) -> Figures:
    """So many files, each kind in turn, a sound one, and what is not a file."""
    rng = random.Random(seed)
    made = [Case("sound", "resume", (str(folder / "sound.safetensors"),), refused=False)]
    (folder / "sound.safetensors").write_bytes(forged(**EMPTY))
    for number in range(cases):
        what, path = list(KINDS)[number % len(KINDS)], folder / f"{number}.safetensors"
        path.write_bytes(KINDS[what](rng))
        made.append(Case(f"{what} (case {number} of seed {seed})", "resume", (str(path),), named=str(path)))
    for what, make in NO_FILES.items():
        path = folder / f"{what}.safetensors"
        make(path)
        made.append(Case(what, "resume", (str(path),), named=str(path)))
    figures = victims.judge(made, folder, seconds=SECONDS, mib=MIB)
    figures.seen["kinds"] = len(KINDS) + len(NO_FILES)
    return figures


HOSTILE = Family("hostile-checkpoints", hostile, short=len(KINDS), full=20 * len(KINDS))
