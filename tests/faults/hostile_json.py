"""Vocabularies, manifests, annotations and references that are made to mislead, and sound ones that were changed."""

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
    "truncated": raw(lambda b: b[: len(b) // 2]),
    "empty": raw(lambda b: b""),
    "UTF-16": raw(lambda b: b.decode().encode("utf-16")),
    "Latin-1": raw(lambda b: b[:-1] + ', "é": 1}'.encode("latin-1")),
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
    "NaN": raw(lambda b: b[:-1] + b', "x": NaN}'),
    "minus infinity": raw(lambda b: b[:-1] + b', "x": [{"y": -Infinity}]}'),
    "a number of 5,000 digits": raw(lambda b: b[:-1] + b', "x": ' + b"9" * 5000 + b"}"),
    "a key twice": raw(lambda b: b[:-1] + b', "x": 1, "y": 2, "x": 3}'),
    "a comma too many": raw(lambda b: b[:-1] + b",}"),
    "single quotes": raw(lambda b: b.replace(b'"', b"'")),
    "a pipe": instead(os.mkfifo),
    "a folder": instead(Path.mkdir),
    "endless": instead(lambda path: path.symlink_to("/dev/zero")),
    "1 GiB of nothing": too_large,
}


# What is wrong with one of them --------------------------------------------------------------------------------------


def inside(change: Change) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return make


def words(change: Callable[[list[Any]], object]) -> Callable[[Path], object]:
    """Another list of words; their ids follow."""

    def both(content: Value) -> None:
        change(content["idx_to_word"])
        content["word_to_idx"] = {word: idx for idx, word in enumerate(content["idx_to_word"])}

    return inside(both)


def ids(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return inside(lambda content: change(content["word_to_idx"]))


def nested(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def image(**changes: Any) -> Callable[[Path], object]:
    return inside(lambda content: content["images"][1].update(changes))


def annotation(**changes: Any) -> Callable[[Path], object]:
    return inside(lambda content: content["annotations"][3].update(changes))


OF_ANNOTATIONS: dict[str, Callable[[Path], object]] = {
    "no images": inside(lambda c: c.pop("images")),
    "no annotations": inside(lambda c: c.update(annotations={"0": 1})),
    "no caption anywhere": inside(lambda c: c.update(annotations=[])),
    "an image that is a list": inside(lambda c: c["images"].append([1, 2])),
    "an image's id that is true": image(id=True),
    "an image's id that is a fraction": image(id=1.5),
    "an image's id again": image(id=0),
    "a name that is a number": image(file_name=3),
    "a name that leads out": image(file_name="../../etc/passwd"),
    "a name on Windows": image(file_name="C:\\photo.jpg"),
    "a name with a zero byte": image(file_name="a\0.jpg"),
    "a name again, written otherwise": inside(
        lambda c: c["images"][1].update(file_name="./" + c["images"][0]["file_name"])
    ),
    "an annotation that is null": inside(lambda c: c["annotations"].insert(0, None)),
    "an annotation of no image": annotation(image_id=11),
    "an annotation of a list": annotation(image_id=[10]),
    "an annotation's id that is none": annotation(id={}),
    "an annotation again": inside(lambda c: c["annotations"].append(c["annotations"][0])),
    "a caption that is a number": annotation(caption=3),
    "half of a character": annotation(caption="a \ud83d photograph"),
    "what rules a terminal": annotation(caption="a \x1b[2J photograph"),
    "what is no object, at length": inside(lambda c: c["images"].insert(0, "x" * 10**6)),
}
ONE: dict[str, dict[str, Callable[[Path], object]]] = {
    VOCABULARY: {
        "no words": inside(lambda c: c.pop("idx_to_word")),
        "words as an object": inside(lambda c: c.update(idx_to_word=c["word_to_idx"])),
        "no ids": inside(lambda c: c.pop("word_to_idx")),
        "ids as a list": inside(lambda c: c.update(word_to_idx=c["idx_to_word"])),
        "a word twice": words(lambda w: w.append(w[5])),
        "a word that is a number": words(lambda w: w.append(5)),
        "a word that is null": words(lambda w: w.append(None)),
        "a word that is a list": inside(lambda c: c["idx_to_word"].append([])),
        "no <UNK>": words(lambda w: w.__setitem__(3, "unk")),
        "half of a character": words(lambda w: w.append("\ud83d")),
        "what rules a terminal": words(lambda w: w.append("\x1b[2J")),
        "ids moved": ids(lambda i: i.update({word: idx + 1 for word, idx in i.items()})),
        "ids as fractions": ids(lambda i: i.update({word: float(idx) for word, idx in i.items()})),
        "ids as strings": ids(lambda i: i.update({word: str(idx) for word, idx in i.items()})),
        "an id that is true": ids(lambda i: i.update({word: True for word, idx in i.items() if idx == 1})),
        "a word without id": ids(lambda i: i.popitem()),
        "an id without word": ids(lambda i: i.update(more=10**30)),
    },
    MANIFEST: {
        "images that are a number": inside(lambda c: c.update(images=3)),
        "folders of splits that are numbers": inside(lambda c: c.update(images={"train": 3})),
        "a tokenizer that is none": inside(lambda c: c.update(tokenizer=["words"])),
        "images with a zero byte": inside(lambda c: c.update(images="a\0b")),
        "lists 40 deep": inside(lambda c: c.update(x=nested(40))),
        "half of a character": inside(lambda c: c.update(encoder="\ud83d")),
        "beyond float": raw(lambda b: b[:-1] + b', "x": 1e999}'),
    },
    ANNOTATIONS: OF_ANNOTATIONS,
    "references.json": OF_ANNOTATIONS,
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
    kinds = [(file, name, make) for file in FILES for name, make in (ANY | ONE[file]).items()]
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
