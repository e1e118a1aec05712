"""Photographs and what people said of them, from annotation files in COCO's format."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from torch_caption.data._errors import DataError
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
    """

    id: int | str
    file_name: str
    url: str = ""
    captions: list[tuple[int | str, str]] = field(default_factory=list)
    path: Path | None = None


def read_splits(files: Sequence[str], val_share: float, seed: int) -> dict[str, list[Photograph]]:
    """The photographs of each split that have captions, train first.

    Args:
        files: `FILE` or `SPLIT=FILE`. Of several, each is the split that its name holds, train, val or test. One alone
            is parted at random into train and val, unless it is given a split.
        val_share: the share of the photographs that become val then.
        seed: of that draw.

    Raises:
        DataError: a file is not as it should be, or no split can be found for it, or two splits share a photograph.
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
    _check_apart(splits)
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


def _check_apart(splits: dict[str, list[Photograph]]) -> None:
    owner: dict[str, str] = {}
    for split, photographs in splits.items():
        for photograph in photographs:
            other = owner.setdefault(_plain(photograph.file_name), split)
            if other != split:
                raise DataError(
                    f"the photograph {photograph.file_name!r} is in {other} and in {split}: what a model has learnt "
                    "must not validate it; take it out of one"
                )


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
        other = names.setdefault(_plain(photograph.file_name), place)
        if other != place:
            raise DataError(
                f"{where}.file_name is {shown(photograph.file_name)}, as that of images[{other}]; leave one out"
            )
        found[photograph.id] = photograph
    return found


def _plain(name: str) -> str:
    """`./a//b.jpg` is `a/b.jpg`."""
    return PurePosixPath(name).as_posix()


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
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}.file_name is {shown(name)}, not a name; {_MEND}")
    leads_out = any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))
    longest = max(len(part.encode("utf-8", "replace")) for part in name.split("/"))
    if leads_out or not name.isprintable() or longest > 255 or len(name) > 1024:  # no file system has longer ones
        raise DataError(f"{where}.file_name is {shown(name)}, not a name below the folder of photographs; {_MEND}")
    url = entry.get("coco_url") or entry.get("flickr_url") or entry.get("url") or ""
    return Photograph(identity, name, url if isinstance(url, str) and url.isprintable() else "")


def locate(splits: dict[str, list[Photograph]], folder: Path) -> dict[str, list[Photograph]]:
    """The photographs with their paths: below the folder by their name, else where the name occurs in a folder inside,
    as in COCO's train2014 and val2014; None where there is none.

    Raises:
        DataError: there is no such folder, a name occurs twice in it, or it holds no photograph of a split.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of photographs")
    elsewhere: dict[str, list[str]] | None = None
    located: dict[str, list[Photograph]] = {}
    for split, photographs in splits.items():
        located[split] = []
        for photograph in photographs:
            name = photograph.file_name
            if not (folder / name).is_file():
                elsewhere = _below(folder) if elsewhere is None else elsewhere
                found = elsewhere.get(name, [])
                if len(found) > 1:
                    raise DataError(f"{folder}: holds {name!r} more than once, as {found[0]} and as {found[1]}")
                name = found[0] if found else name
            path = folder / name
            exists = path.is_file() or path.is_dir()
            located[split].append(replace(photograph, file_name=name, path=path if exists else None))
        if not any(photograph.path for photograph in located[split]):
            raise DataError(f"{folder}: holds no photograph of {split}; the first would be {photographs[0].file_name}")
    return located


def _below(folder: Path) -> dict[str, list[str]]:
    """The files of all folders inside, by their own name."""
    found: dict[str, list[str]] = {}
    for where, _, names in os.walk(folder):
        for name in names:
            found.setdefault(name, []).append((Path(where) / name).relative_to(folder).as_posix())
    return found
