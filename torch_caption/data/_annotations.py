"""Photographs and what people said of them, from annotation files in COCO's format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from torch_caption.data import _names
from torch_caption.data._errors import DataError
from torch_caption.data._names import Names
from torch_caption.texts import read_json, shown, strange

SPLITS = ("train", "val", "test")
ANNOTATIONS_LIMIT = 2**30
"""The most bytes of a file of annotations (1 GiB); COCO's has 64 MB."""

_MEND = "write it as COCO does"


@dataclass(frozen=True)
class Photograph:
    """One entry of an annotation file.

    Attributes:
        id: the file's own.
        file_name: below the folder of photographs, with slashes.
        url: where it was found; "" if the file does not say.
        captions: (annotation id, text), in the order of the file.
        path: the file; None while nobody has looked, or where there is none.
        nearest: a file that may be meant, where there is none.
    """

    id: int | str
    file_name: str
    url: str = ""
    captions: list[tuple[int | str, str]] = field(default_factory=list)
    path: Path | None = None
    nearest: str | None = None


def read_splits(files: Sequence[str], val_share: float, seed: int) -> dict[str, list[Photograph]]:
    """The photographs of each split that have captions, train first.

    Args:
        files: `FILE` or `SPLIT=FILE`. Of several, each is the split that its name holds, train, val or test. One alone
            is parted at random into train and val, unless it is given a split.
        val_share: the share of the photographs that become val then.
        seed: of that draw.

    Raises:
        DataError: a file is not as it should be, or no split can be found for it.
    """
    named = [_named(file, alone=len(files) == 1) for file in files]
    splits: dict[str, list[Photograph]] = {}
    for split, path in named:
        found = [photograph for photograph in read(path) if photograph.captions]
        if not found:
            raise DataError(f"{path}: no photograph in it has a caption")
        if split is None:
            splits |= _parted(found, path, val_share, seed)
        elif split in splits:
            raise DataError(f"{path}: a second file of the split {split}; name the splits, such as val={path}")
        else:
            splits[split] = found
    if "train" not in splits:
        raise DataError(f"no file of the split train; name it, such as train={named[0][1]}")
    return {name: splits[name] for name in SPLITS if name in splits} | splits


def _named(file: str, alone: bool) -> tuple[str | None, Path]:
    split, equals, name = file.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9_-]+", split):
        return split, Path(name)
    if alone:
        return None, Path(file)
    found = [split for split in SPLITS if split in Path(file).name.lower()]
    if len(found) != 1:
        raise DataError(f"{file}: its name does not say which split it is; write train={file} or val={file}")
    return found[0], Path(file)


def _parted(photographs: list[Photograph], path: Path, val_share: float, seed: int) -> dict[str, list[Photograph]]:
    count = round(val_share * len(photographs))
    if not 0 < count < len(photographs):
        raise DataError(
            f"--val-share {val_share:g}: of the {len(photographs)} photographs of {path} {count} would be val, and "
            f"{len(photographs) - count} train; choose another share"
        )
    order = np.random.default_rng(seed).permutation(len(photographs)).tolist()
    return {
        "train": [photographs[place] for place in sorted(order[count:])],
        "val": [photographs[place] for place in sorted(order[:count])],
    }


def read(path: Path) -> list[Photograph]:
    """Every photograph of an annotation file, in its order, with its captions.

    Raises:
        DataError: the file is not as COCO's are; the message names the entry and its value.
    """
    content = _content(path)
    found = _photographs(content, path)
    places: dict[tuple[int | str, int | str], int] = {}
    for place, entry in enumerate(_list(content, "annotations", path)):
        where = f"{path}: annotations[{place}]"
        image, caption = _get(entry, "image_id", where), _get(entry, "caption", where)
        if not _is_id(image) or image not in found:
            raise DataError(f"{where}.image_id is {shown(image)}, the id of no image of the file; {_MEND}")
        if not isinstance(caption, str):
            raise DataError(f"{where}.caption is {shown(caption)}, not a string; {_MEND}")
        if strange(caption):
            raise DataError(f"{where}.caption is {shown(caption)}; {strange(caption)!r} is in no text: take it out")
        identity = entry.get("id", place)
        if not _is_id(identity):
            raise DataError(f"{where}.id is {shown(identity)}, neither a number nor a string; {_MEND}")
        other = places.setdefault((image, identity), place)
        if other != place:
            raise DataError(f"{where}.id is {identity!r}, as that of annotations[{other}] of its image; leave one out")
        found[image].captions.append((identity, caption))
    return [*found.values()]


def _photographs(content: dict[str, Any], path: Path) -> dict[int | str, Photograph]:
    """The images of an annotation file by their ids, without captions."""
    found: dict[int | str, Photograph] = {}
    names: dict[str, int] = {}
    for place, entry in enumerate(_list(content, "images", path)):
        where = f"{path}: images[{place}]"
        photograph = _photograph(entry, where)
        if photograph.id in found:
            raise DataError(f"{where}.id is {shown(photograph.id)}, as that of an image before it; leave one out")
        other = names.setdefault(_names.plain(photograph.file_name), place)
        if other != place:
            raise DataError(
                f"{where}.file_name is {shown(photograph.file_name)}, as that of images[{other}]; leave one out"
            )
        found[photograph.id] = photograph
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path, ANNOTATIONS_LIMIT)
    except ValueError as error:
        raise DataError(f"{error}; name a file of captions in COCO's format") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, not an object with images and annotations; {_MEND}")
    return content


def _list(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    if not isinstance(content.get(name), list):
        raise DataError(f"{path}: no list named {name}; {_MEND}")
    return content[name]


def _get(entry: Any, name: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {shown(entry)}, not an object; {_MEND}")
    if name not in entry:
        raise DataError(f"{where} has no {name}: {shown(entry, 200)}; {_MEND}")
    return entry[name]


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and not strange(value))


def _photograph(entry: Any, where: str) -> Photograph:
    identity, name = _get(entry, "id", where), _get(entry, "file_name", where)
    if not _is_id(identity):
        raise DataError(f"{where}.id is {shown(identity)}, neither a number nor a string; {_MEND}")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}.file_name is {shown(name)}, not a name; {_MEND}")
    fault = _names.fault(name)
    if fault:
        raise DataError(f"{where}.file_name is {shown(name)}, {fault}; {_MEND}")
    url = entry.get("coco_url") or entry.get("flickr_url") or entry.get("url") or ""
    return Photograph(identity, name, url.strip() if isinstance(url, str) and not _strange_line(url.strip()) else "")


def _strange_line(text: str) -> bool:
    return strange(text) is not None or "\n" in text or "\r" in text


def locate(splits: dict[str, list[Photograph]], folder: Path) -> dict[str, list[Photograph]]:
    """The photographs with their paths; None where there is none.

    Below the folder by their name, in whatever form of Unicode, else where the name occurs in a folder inside, as in
    COCO's train2014 and val2014; of several, the one that has the split in its folders' names.

    Raises:
        DataError: there is no such folder, a name occurs twice in it, it holds no photograph of a split, or one file is
            two photographs.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of photographs")
    there: Names | None = None
    located: dict[str, list[Photograph]] = {}
    for split, photographs in splits.items():
        located[split] = []
        for photograph in photographs:
            name = photograph.file_name
            nearest = None
            if not (folder / name).is_file():
                there = Names.below(folder) if there is None else there
                found = _candidates(there, name, split)
                if len(found) > 1:
                    raise DataError(f"{folder}: holds {name!r} more than once, as {found[0]} and as {found[1]}")
                nearest = None if found else there.nearest(name)
                name = found[0] if found else name
            path = folder / name
            exists = path.is_file() or path.is_dir()
            located[split].append(
                replace(photograph, file_name=name, path=path if exists else None, nearest=None if exists else nearest)
            )
        if not any(photograph.path for photograph in located[split]):
            first = photographs[0].file_name
            nearest = there.nearest(first, guess=True) if there else None
            hint = f", and the nearest that is there is {shown(nearest, 300)}" if nearest else ""
            raise DataError(f"{folder}: holds no photograph of {split}; the first would be {shown(first, 300)}{hint}")
    _check_apart(located)
    return located


def _candidates(there: Names, name: str, split: str) -> list[str]:
    """The files that may be the photograph of that name."""
    found = there.meant(name) or there.in_folders(name)
    if len(found) > 1:
        of_split = [path for path in found if split.lower() in path.lower().rpartition("/")[0]]
        return of_split if len(of_split) == 1 else found
    return found


def _check_apart(splits: dict[str, list[Photograph]]) -> None:
    """Raise DataError where two photographs are one file. Of two folders they are two, whatever their names."""
    owner: dict[Path, tuple[str, Photograph]] = {}
    for split, photographs in splits.items():
        for photograph in photographs:
            if photograph.path is None:
                continue
            other, first = owner.setdefault(photograph.path, (split, photograph))
            if other != split:
                raise DataError(
                    f"the photograph {photograph.file_name!r} is in {other} and in {split}: what a model has learnt "
                    "must not validate it; take it out of one"
                )
            if first is not photograph:
                raise DataError(
                    f"the photograph {photograph.file_name!r} is two of {split}, with the ids {shown(first.id)} and "
                    f"{shown(photograph.id)}; leave one out"
                )
