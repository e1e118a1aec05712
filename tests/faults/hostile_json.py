"""Vocabularies, manifests, annotations and references that are made to exhaust, and sound ones that were changed.

tests/data has those that name wrong words, ids, images and captions.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import victims
from tests.faults.figures import Family, Figures
from tests.faults.hostile_hdf5 import mutate
from tests.faults.victims import Case
from tests.helpers.tiny_data import write_tiny

VOCABULARY, MANIFEST, ANNOTATIONS = "coco2014_vocab.json", "manifest.json", "annotations.json"
FILES = {VOCABULARY: "check", MANIFEST: "check", ANNOTATIONS: "prepare", "references.json": "references"}
SECONDS, MIB = 20.0, 400.0

Value = Any
Change = Callable[[Value], object]


def write_base(folder: Path) -> Path:
    """A directory with one of each file, all of them sound."""
    write_tiny(folder, pictures=True)
    names = sorted(path.name for path in (folder / "images").iterdir())
    annotations = {
        "info": {"year": 2026},
        "images": [
            {"id": 10 * n, "file_name": name, "coco_url": f"http://a.example/{n}"} for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n, "image_id": 10 * (n // 2), "caption": f"A photograph, number {n // 2}!\n"} for n in range(24)
        ],
    }
    for name in (ANNOTATIONS, "references.json"):
        (folder / name).write_text(json.dumps(annotations), encoding="utf-8")
    manifest = {"data": "photographs", "encoder": "vgg16", "images": "images", "transform": {"resize": 256}}
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "out").mkdir()
    return folder


# What is wrong with any file of JSON ---------------------------------------------------------------------------------


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def instead(write: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.unlink()
        write(path)

    return make


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30 + 2)


ANY: dict[str, Callable[[Path], object]] = {
    "zero bytes": raw(lambda b: bytes(len(b))),
    "packed": raw(gzip.compress),
    "a page": raw(lambda b: b"<html>404</html>"),
    "twice": raw(lambda b: b + b),
    "a list": raw(lambda b: b"[" + b + b"]"),
    "a string": raw(lambda b: json.dumps(b.decode()).encode()),
    "null": raw(lambda b: b"null"),
    "lists 100,000 deep": raw(lambda b: b[:-1] + b', "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "objects 100,000 deep": raw(lambda b: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "not closed, 10,000,000 deep": raw(lambda b: b"[" * 10_000_000),
    "a number of 5,000 digits": raw(lambda b: b[:-1] + b', "x": ' + b"9" * 5000 + b"}"),
    "a pipe": instead(os.mkfifo),
    "a folder": instead(Path.mkdir),
    "endless": instead(lambda path: path.symlink_to("/dev/zero")),
    "1 GiB of nothing": too_large,
}


def inside(change: Change) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return make


ONE: dict[str, Callable[[Path], object]] = {  # of the manifest alone
    "a tokenizer that is none": inside(lambda c: c.update(tokenizer=["words"])),
    "images with a zero byte": inside(lambda c: c.update(images="a\0b")),
    "half of a character": inside(lambda c: c.update(encoder="\ud83d")),
    "beyond float": raw(lambda b: b[:-1] + b', "x": 1e999}'),
}

# Sound ones, changed at a random place -------------------------------------------------------------------------------

VALUES: tuple[Value, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "a", "<END>", "\x00", "\ud83d"),
    *("../x", "é" * 50, [], {}, [[]], {"id": 1}, ["<NULL>", "<START>", "<END>", "<UNK>"], "x" * 5000),
)


def places(value: Value) -> list[tuple[Any, Any]]:
    """Every container with every key of it."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def changed(content: Value, rng: random.Random) -> Value:
    """One to three values replaced, removed, repeated or exchanged."""
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(places(content) or [([None], 0)])
        way = rng.randrange(5)
        if way == 0:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        elif way == 1:
            del container[key]
        elif way == 2 and isinstance(container, list):
            container.insert(rng.randrange(len(container)), copy.deepcopy(container[key]))
        elif way == 3 and isinstance(container, dict):
            container[rng.choice((*container, "x"))] = copy.deepcopy(container[key])
        else:
            other, where = rng.choice(places(content))
            container[key] = copy.deepcopy(other[where])
    return content


def mutated(path: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        path.write_bytes(mutate(bytearray(path.read_bytes()), rng))
    else:
        content = changed(json.loads(path.read_text(encoding="utf-8")), rng)
        path.write_text(json.dumps(content), encoding="utf-8")


# The family ----------------------------------------------------------------------------------------------------------


def case(name: str, directory: Path, file: str, refused: bool | None) -> Case:
    path, program = directory / file, FILES[file]
    arguments = {
        "check": (str(directory),),
        "prepare": (str(path), str(directory / "images"), str(directory / "out")),
        "references": (str(path), str(directory)),
    }
    return Case(f"{file}, {name}", program, arguments[program], refused, str(path if refused else directory))


def run(cases: int, seed: int, folder: Path) -> Figures:
    """All that is made by hand in the full set, some of it in the short one; the rest is mutations."""
    base = write_base(folder / "base")
    kinds = [(file, name, make) for file in FILES for name, make in (ANY | (ONE if file == MANIFEST else {})).items()]
    chosen = kinds if cases >= len(kinds) else random.Random(seed).sample(kinds, cases // 2)
    made = [case("as it is", base, file, False) for file in FILES]
    for place, (file, name, make) in enumerate(chosen):
        directory = folder / str(place)
        shutil.copytree(base, directory)
        make(directory / file)
        made.append(case(name, directory, file, True))
    for number in range(cases - len(made)):
        directory = folder / f"mutated {number}"
        shutil.copytree(base, directory)
        file = [*FILES][number % len(FILES)]
        mutated(directory / file, random.Random(seed * 1_000_003 + number))
        made.append(case(f"mutated({seed * 1_000_003 + number})", directory, file, None))
    figures = victims.judge(made, folder, seconds=SECONDS, mib=MIB)
    figures.seen["kinds"] = len({name for _, name, _ in chosen})
    return figures


JSON = Family("hostile JSON", run, short=40, full=600)
