"""Photographs and their captions, read from the files of common datasets.

    COCO's annotations       {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
    Karpathy's dataset_*.json    {"images": [{"split", "filepath", "filename", "sentences": [{"raw"}]}]}
    Flickr8k.token.txt       name.jpg#0, a tab, the caption
    captions.txt, Kaggle's   CSV with the header image,caption

The format is detected from the content, not from the name.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from torch_caption.data import file_names
from torch_caption.data.file_names import Names
from torch_caption.errors import DataError, InputError
from torch_caption.io.text import invalid_character, lines, parse_json, read_text, shown

SPLITS = ("train", "val", "test")
ANNOTATIONS_LIMIT = 2**30
"""Maximum size of an annotation file in bytes (1 GiB); COCO's has 64 MB, Karpathy's of COCO 144 MB."""

_MEND = "write it as COCO does"
_AS_KARPATHY = "write it as Karpathy's files do"
_KARPATHYS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
"""The splits of Karpathy's files, and the splits they become."""
_TOKEN = re.compile(r"([^\t]+)#(\d+)\t(.*)", re.DOTALL)
_FORMATS = (
    "the formats are COCO's annotations, Karpathy's dataset_*.json, Flickr8k.token.txt (name#number, tab, caption) and "
    "CSV with the header image,caption"
)


@dataclass(frozen=True)
class Photograph:
    """One entry of an annotation file.

    Attributes:
        id: as in the file.
        file_name: below the folder of photographs, with slashes.
        url: its source; "" if the file has none.
        captions: (annotation id, text), in the order of the file.
        path: the file; None before `locate`, or if it is missing.
        split: its split in the annotation file; None if that has no splits.
        nearest: the existing file with the most similar name, if the file is missing.
    """

    id: int | str
    file_name: str
    url: str = ""
    captions: list[tuple[int | str, str]] = field(default_factory=list)
    path: Path | None = None
    split: str | None = None
    nearest: str | None = None


def read_splits(
    files: Sequence[str],
    val_share: float,
    seed: int,
    lists: Sequence[str] = (),
) -> dict[str, list[Photograph]]:
    """The photographs with captions of each split, train first. Photographs in no list are reported on stderr.

    Args:
        files: `FILE` or `SPLIT=FILE`. A file that contains splits has those, or only the given one. Of several other
            files each is the split in its name, train, val (or dev) or test. A single one is divided by the lists, or
            randomly into train and val, unless a split is given.
        val_share: the fraction of the photographs that become val in a random division.
        seed: of the random division.
        lists: `FILE` or `SPLIT=FILE` with the names of a split's photographs, one per line.

    Raises:
        DataError: a file is invalid, or its split is unknown.
    """
    if lists and len(files) > 1:
        raise DataError(f"--splits divides one file of --annotations, not {len(files)}; name one, or omit --splits")
    splits: dict[str, list[Photograph]] = {}
    for file in files:
        split, path = _named(file)
        found = [photograph for photograph in read(path) if photograph.captions]
        if not found:
            raise DataError(f"{path}: no photograph in it has a caption")
        parts = _parts(found, split, path, lists, alone=len(files) == 1)
        twice = next((name for name in parts or {} if name in splits), None)
        if twice is not None:
            raise DataError(f"{path}: a second file of the split {twice}; name the splits, such as val={path}")
        splits |= _divided(found, path, val_share, seed) if parts is None else parts
    if "train" not in splits:
        raise DataError(f"no file of the split train; name it, such as train={_named(files[0])[1]}")
    return {name: splits[name] for name in SPLITS if name in splits} | splits


def _parts(
    photographs: list[Photograph],
    split: str | None,
    path: Path,
    lists: Sequence[str],
    *,
    alone: bool,
) -> dict[str, list[Photograph]] | None:
    """The splits of a file's photographs, from the file, the lists or its name; None if none of these has them."""
    if any(photograph.split for photograph in photographs):
        if lists:
            raise DataError(f"{path}: contains splits itself; omit --splits")
        return {split: of_split(photographs, split, path)} if split else _by_split(photographs)
    if lists:
        return _listed(photographs, path, lists)
    if split is None and not alone:
        split = _split_in(path.name)
        if split is None:
            raise DataError(f"{path}: no split in its name; write train={path} or val={path}")
    return None if split is None else {split: photographs}


def _by_split(photographs: Iterable[Photograph]) -> dict[str, list[Photograph]]:
    splits: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        splits.setdefault(photograph.split or "", []).append(photograph)
    return splits


def of_split(photographs: Sequence[Photograph], split: str, path: Path) -> list[Photograph]:
    """The photographs of a split; all of them if the file has no splits.

    Raises:
        DataError: the file has splits, but no photograph of this one.
    """
    found = [photograph for photograph in photographs if photograph.split in (None, split)]
    if photographs and not found:
        raise DataError(f"{path}: has no photograph of the split {split}; it has {', '.join(_by_split(photographs))}")
    return found


def _named(file: str) -> tuple[str | None, Path]:
    """Split and path of `SPLIT=PATH` or `PATH`."""
    split, equals, name = file.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9_-]+", split):
        return split, Path(name)
    return None, Path(file)


def _split_in(name: str) -> str | None:
    """The only split that occurs in a name; dev is val."""
    found = [split for split in SPLITS if split in name.lower()]
    if not found and "dev" in name.lower():
        found = ["val"]
    return found[0] if len(found) == 1 else None


def _listed(photographs: list[Photograph], path: Path, lists: Sequence[str]) -> dict[str, list[Photograph]]:
    """The photographs that each list names, in the order of their file."""
    splits: dict[str, list[Photograph]] = {}
    known = Names([photograph.file_name for photograph in photographs])
    listed: set[str] = set()
    for file in lists:
        split, source = _named(file)
        split = split or _split_in(source.name)
        if split is None:
            raise DataError(f"{source}: no split in its name; write train={source} or val={source}")
        if split in splits:
            raise DataError(f"{source}: a second list of the split {split}; name the splits, such as val={source}")
        meant = {name: known.meant(name) for name in _names_in(source)}
        chosen = {found[0] for found in meant.values() if len(found) == 1}
        missing = [name for name, found in meant.items() if len(found) != 1]
        if not chosen:
            first = next(iter(missing), "")
            raise DataError(
                f"{source}: names no photograph of {path}; the first line is {shown(first)}"
                + file_names.hint(known.nearest(first, guess=True), "has captions")
            )
        if missing:
            _report(
                f"left out  {len(missing):,} of the names in {source}: without captions, first {shown(missing[0])}"
                + file_names.hint(known.nearest(missing[0]), "has captions")
            )
        splits[split] = [photograph for photograph in photographs if photograph.file_name in chosen]
        listed |= chosen
    unlisted = [photograph.file_name for photograph in photographs if photograph.file_name not in listed]
    if unlisted:
        _report(f"left out  {len(unlisted):,} of the photographs of {path}: in no list, first {shown(unlisted[0])}")
    return splits


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _names_in(path: Path) -> list[str]:
    """The names in a list, one per line."""
    try:
        return [name for name in lines(read_text(path)) if name.strip()]
    except InputError as error:
        raise DataError(f"{error}; name a list of photographs' names, one per line") from None


def named_folders(images: Sequence[str]) -> dict[str | None, Path]:
    """The folders of photographs by split, from `[SPLIT=]DIR`; with key None the folder of all splits.

    Raises:
        DataError: two folders have one split, or one of several has none.
    """
    folders: dict[str | None, Path] = {}
    for name in images:
        split, folder = (None, Path(name)) if Path(name).is_dir() else _named(name)
        if split is None and len(images) > 1:
            split = _split_in(folder.name)
            if split is None:
                raise DataError(f"--images {name}: each of several folders needs a split; write train={name}")
        if split in folders:
            raise DataError(
                f"--images {name}: a second folder of the split {split}; name the splits, such as val={name}"
            )
        folders[split] = folder
    return folders


def _divided(photographs: list[Photograph], path: Path, val_share: float, seed: int) -> dict[str, list[Photograph]]:
    count = round(val_share * len(photographs))
    if not 0 < count < len(photographs):
        raise DataError(
            f"--val-share {val_share:g}: of the {len(photographs)} photographs of {path} {count} would be val, and "
            f"{len(photographs) - count} train; choose another fraction"
        )
    order = np.random.default_rng(seed).permutation(len(photographs)).tolist()
    return {
        "train": [photographs[index] for index in sorted(order[count:])],
        "val": [photographs[index] for index in sorted(order[:count])],
    }


def read(path: Path) -> list[Photograph]:
    """All photographs of a file of captions, in its order, with their captions.

    Raises:
        DataError: the file has no known format, or is invalid; the message names the entry and its value.
    """
    try:
        text = read_text(path, ANNOTATIONS_LIMIT)
    except InputError as error:
        raise DataError(f"{error}; name a file of captions in UTF-8") from None
    try:
        content = parse_json(text, path) if text.lstrip()[:1] in ("{", "[") else None
    except InputError as error:
        raise DataError(f"{error}; {_FORMATS}") from None
    if content is None:
        return _read_lines(text, path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {type(content).__name__}, not an object with images and annotations; {_MEND}")
    images = content.get("images")
    if "annotations" not in content and isinstance(images, list) and any(map(_has_sentences, images)):
        return _read_karpathy(images, path)
    return _read_coco(content, path)


def _read_coco(content: dict[str, Any], path: Path) -> list[Photograph]:
    entries = enumerate(_list(content, "images", path))
    found = _distinct((_of_coco(entry, f"{path}: images[{index}]") for index, entry in entries), path)
    indices: dict[tuple[int | str, int | str], int] = {}
    for index, entry in enumerate(_list(content, "annotations", path)):
        where = f"{path}: annotations[{index}]"
        image, caption = _get(entry, "image_id", where), _get(entry, "caption", where)
        if not _is_id(image) or image not in found:
            raise DataError(f"{where}.image_id is {shown(image)}, which no image of the file has; {_MEND}")
        _check_caption(caption, f"{where}.caption")
        identity = entry.get("id", index)
        _check_id(identity, f"{where}.id")
        other = indices.setdefault((image, identity), index)
        if other != index:
            raise DataError(f"{where}.id is {identity!r}, as in annotations[{other}] of the same image; remove one")
        found[image].captions.append((identity, caption))
    return [*found.values()]


def _of_coco(entry: Any, where: str) -> Photograph:
    identity, name = _get(entry, "id", where), _get(entry, "file_name", where)
    _check_id(identity, f"{where}.id")
    _check_name(name, f"{where}.file_name")
    url = entry.get("coco_url") or entry.get("flickr_url") or entry.get("url") or ""
    return Photograph(identity, name, url.strip() if isinstance(url, str) and not _breaks_line(url.strip()) else "")


def _read_karpathy(images: list[Any], path: Path) -> list[Photograph]:
    """Karpathy and Fei-Fei's splits (2015) of COCO, where photographs have a cocoid and a filepath, and of Flickr."""
    found = (_of_karpathy(entry, f"{path}: images[{index}]") for index, entry in enumerate(images))
    return [*_distinct(found, path).values()]


def _has_sentences(entry: Any) -> bool:
    return isinstance(entry, dict) and "sentences" in entry


def _of_karpathy(entry: Any, where: str) -> Photograph:
    name, split, sentences = (_get(entry, key, where, _AS_KARPATHY) for key in ("filename", "split", "sentences"))
    folder = entry.get("filepath", "")
    number = "cocoid" if "cocoid" in entry else "imgid"
    identity = _get(entry, number, where, _AS_KARPATHY)
    _check_id(identity, f"{where}.{number}", _AS_KARPATHY)
    for key, value in {"filename": name, "filepath": folder}.items():
        if not isinstance(value, str):
            raise DataError(f"{where}.{key} is {shown(value)}, not a string; {_AS_KARPATHY}")
    if not isinstance(split, str) or split not in _KARPATHYS:
        raise DataError(f"{where}.split is {shown(split)}, not one of {', '.join(_KARPATHYS)}; {_AS_KARPATHY}")
    if not isinstance(sentences, list):
        raise DataError(f"{where}.sentences is {shown(sentences)}, not a list; {_AS_KARPATHY}")
    name, keys = (f"{folder}/{name}", "filepath/filename") if folder else (name, "filename")
    _check_name(name, f"{where}.{keys}", _AS_KARPATHY)
    captions = []
    for index, sentence in enumerate(sentences):
        at = f"{where}.sentences[{index}]"
        caption, sentence_id = (_get(sentence, key, at, _AS_KARPATHY) for key in ("raw", "sentid"))
        _check_caption(caption, f"{at}.raw", _AS_KARPATHY)
        _check_id(sentence_id, f"{at}.sentid", _AS_KARPATHY)
        captions.append((sentence_id, caption))
    return Photograph(identity, name, captions=captions, split=_KARPATHYS[split])


def _read_lines(text: str, path: Path) -> list[Photograph]:
    """A file with a photograph's name beside each caption; photographs are numbered in the order of the file."""
    first = text.lstrip("\n\r").partition("\n")[0].rstrip("\r")
    if _TOKEN.fullmatch(first):
        entries = _token_lines(text, path)
    elif [field.strip(' "').lower() for field in first.split(",")] == ["image", "caption"]:
        entries = _csv_rows(text, path)
    else:
        begins = f"begins with {shown(first)}" if first else "is empty"
        raise DataError(f"{path}: {begins}, in an unknown format; {_FORMATS}")
    found: dict[str, Photograph] = {}
    for line, name, caption in entries:
        where, key = f"{path}: line {line}", file_names.plain(name)
        if key not in found:
            _check_name(name, f"{where}: the name", "write the name of a photograph")
            found[key] = Photograph(len(found), name)
        _check_caption(caption, f"{where}: the caption")
        found[key].captions.append((line, caption))
    return [*found.values()]


def _token_lines(text: str, path: Path) -> Iterable[tuple[int, str, str]]:
    """Line number, name and caption."""
    seen: dict[tuple[str, str], int] = {}
    for line, content in enumerate(lines(text), 1):
        if not content.strip():
            continue
        parts = _TOKEN.fullmatch(content)
        if parts is None:
            raise DataError(f"{path}: line {line} is {shown(content)}, not name#number, tab, caption; mend it")
        name, number, caption = parts.groups()
        other = seen.setdefault((name, number), line)
        if other != line:
            raise DataError(f"{path}: line {line} is of {shown(f'{name}#{number}')}, as line {other}; remove one")
        yield line, name, caption


def _csv_rows(text: str, path: Path) -> Iterable[tuple[int, str, str]]:
    """Line number, name and caption."""
    rows = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    try:
        header = False
        for row in rows:
            if not row or not header:
                header = header or bool(row)
                continue
            if len(row) != 2:
                raise DataError(
                    f"{path}: line {rows.line_num} has {len(row)} fields, not image,caption; put quotes around a "
                    "caption with a comma in it"
                )
            yield rows.line_num, row[0], row[1]
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num} is not CSV: {error}; mend its quotes") from None


def _check_id(value: Any, where: str, mend: str = _MEND) -> None:
    if not _is_id(value):
        raise DataError(f"{where} is {shown(value)}, neither a number nor a string; {mend}")


def _check_name(name: Any, where: str, mend: str = _MEND) -> None:
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} is {shown(name)}, not a name; {mend}")
    fault = file_names.fault(name)
    if fault:
        raise DataError(f"{where} is {shown(name)}, {fault}")


def _check_caption(caption: Any, where: str, mend: str = _MEND) -> None:
    if not isinstance(caption, str):
        raise DataError(f"{where} is {shown(caption)}, not a string; {mend}")
    if found := invalid_character(caption):
        raise DataError(f"{where} is {shown(caption)}; {found!r} is not a text character: remove it")


def _distinct(photographs: Iterable[Photograph], path: Path) -> dict[int | str, Photograph]:
    """The photographs by their ids.

    Raises:
        DataError: two photographs have the same id or name.
    """
    found: dict[int | str, Photograph] = {}
    names: dict[str, int] = {}
    for index, photograph in enumerate(photographs):
        where = f"{path}: images[{index}]"
        if photograph.id in found:
            raise DataError(f"{where} has the id {shown(photograph.id)}, as an earlier image; remove one")
        other = names.setdefault(file_names.plain(photograph.file_name), index)
        if other != index:
            raise DataError(f"{where} has the name {shown(photograph.file_name)}, as images[{other}]; remove one")
        found[photograph.id] = photograph
    return found


def _list(content: dict[str, Any], name: str, path: Path) -> list[Any]:
    if not isinstance(content.get(name), list):
        raise DataError(f"{path}: no list named {name}; {_MEND}")
    return content[name]


def _get(entry: Any, name: str, where: str, mend: str = _MEND) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {shown(entry)}, not an object; {mend}")
    if name not in entry:
        raise DataError(f"{where} has no {name}: {shown(entry, 200)}; {mend}")
    return entry[name]


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and not invalid_character(value))


def _breaks_line(text: str) -> bool:
    return invalid_character(text) is not None or "\n" in text or "\r" in text


def locate(splits: Mapping[str, list[Photograph]], folders: Mapping[str | None, Path]) -> dict[str, list[Photograph]]:
    """The photographs with their paths; None for missing ones.

    A photograph is searched for by its name below the folder, in any Unicode normalisation, then in the subfolders, as
    COCO's train2014 and val2014; of several files, the one with the split in its path is used. If its name contains
    folders, it may also lie without them, unless two photographs would share that file.

    Args:
        splits: the result of `read_splits`.
        folders: the result of `named_folders`.

    Raises:
        DataError: a split has no folder, a folder no split, a folder is missing, contains a name twice, or contains no
            photograph of a split, or two photographs have the same file.
    """
    odd = [split for split in (*splits, *folders) if (split in splits) != (split in folders)]
    if None not in folders and odd:
        split = odd[0]
        what = "names no folder of the split" if split in splits else "names a folder for the unknown split"
        raise DataError(f"--images {what} {split}; the splits are {', '.join(splits)}")
    by_split = {split: folders.get(split) or folders[None] for split in splits}
    located: dict[str, list[Photograph]] = {}
    for folder in dict.fromkeys(by_split.values()):
        located |= _below(folder, {split: splits[split] for split in splits if by_split[split] == folder})
    _check_apart(located, by_split)
    return {split: located[split] for split in splits}


def _below(folder: Path, splits: Mapping[str, list[Photograph]]) -> dict[str, list[Photograph]]:
    """`locate` for splits that share a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of photographs")
    names = [photograph.file_name for photographs in splits.values() for photograph in photographs]
    wanted = Names([*dict.fromkeys(names)])
    there: Names | None = None
    located: dict[str, list[Photograph]] = {}
    for split, photographs in splits.items():
        located[split] = []
        for photograph in photographs:
            name = photograph.file_name
            nearest = None
            if not (folder / name).is_file():
                there = Names.below(folder) if there is None else there
                found = _candidates(there, name, split, wanted)
                if len(found) > 1:
                    raise DataError(
                        f"{folder}: contains {name!r} twice, as {found[0]} and as {found[1]}; remove one, or "
                        f"name the folder of each split, such as --images {split}=DIR"
                    )
                nearest = None if found else there.nearest(name)
                name = found[0] if found else name
            path = folder / name
            exists = path.is_file() or path.is_dir()
            located[split].append(
                replace(photograph, file_name=name, path=path if exists else None, nearest=None if exists else nearest)
            )
        if not any(photograph.path for photograph in located[split]):
            first = photographs[0].file_name
            hint = file_names.hint(there.nearest(first, guess=True) if there else None)
            raise DataError(
                f"{folder}: contains no photograph of {split}; the first would be {shown(first, 300)}{hint}"
            )
    return located


def _candidates(there: Names, name: str, split: str, wanted: Names) -> list[str]:
    """The files that may be the photograph of this name, one of the wanted names."""
    found = there.meant(name) or there.in_folders(name)
    if len(found) > 1:
        of_split = [path for path in found if split.lower() in path.lower().rpartition("/")[0]]
        return of_split if len(of_split) == 1 else found
    return found or there.without_folders(name, wanted)


def _check_apart(splits: Mapping[str, list[Photograph]], folders: Mapping[str, Path]) -> None:
    """Raise DataError if two photographs have the same file."""
    owner: dict[Path, tuple[str, Photograph]] = {}
    for split, photographs in splits.items():
        folder = folders[split].resolve()
        for photograph in photographs:
            if photograph.path is None:
                continue
            other, first = owner.setdefault(folder / photograph.file_name, (split, photograph))
            if other != split:
                raise DataError(
                    f"the photograph {photograph.file_name!r} is in {other} and in {split}: training and validation "
                    "data must not overlap; remove it from one, or, if there are two of this name, name a folder for "
                    f"each: --images {other}=DIR {split}=DIR"
                )
            if first is not photograph:
                raise DataError(
                    f"the photograph {photograph.file_name!r} is in {split} twice, with the ids {shown(first.id)} and "
                    f"{shown(photograph.id)}; remove one"
                )
