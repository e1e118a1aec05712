"""Verification of the files of a data directory by the sizes and SHA-256 in its manifest.

HDF5 detects a truncated file. A damaged byte inside may change numbers, or give zeros for a block whose address is
lost; neither can be distinguished from valid numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from torch_caption.data import hdf5
from torch_caption.errors import DataError
from torch_caption.io.files import sha256_of
from torch_caption.io.text import shown

ENTRY = "files"
"""The manifest's entry: for each file's name its `bytes` and its `sha256`."""


def marks(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """The manifest's entry for files, by their final names."""
    return {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in sorted(files.items())}


def named(directory: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The files with an entry in the directory's manifest.

    Raises:
        DataError: the entry is invalid.
    """
    found = manifest.get(ENTRY, {})
    if not isinstance(found, Mapping):
        raise DataError(f"{directory / 'manifest.json'}: {ENTRY} is {shown(found)}, not an object; write it again")
    for name, mark in found.items():
        plain = PurePath(name).name == name not in ("", "..") and "\\" not in name
        if not (plain and isinstance(mark, Mapping) and _is_one(mark)):
            raise DataError(
                f"{directory / 'manifest.json'}: {ENTRY} has {shown(mark)} for {shown(name)}, not the bytes and the "
                "sha256 of a file of the folder; write it again"
            )
    return [directory / name for name in found]


def check(directory: Path, manifest: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Raise DataError for the first file that does not match its entry in the manifest; files without one are accepted.

    A file that another process is writing is reported as such.

    Args:
        files: of the directory.
    """
    known = {path.name: manifest[ENTRY][path.name] for path in named(directory, manifest)}
    for path in files:
        mark = known.get(path.name)
        if mark is None or path.parent != directory:
            continue
        try:
            size = path.stat().st_size
            same = size == mark["bytes"] and sha256_of(path) == mark["sha256"]
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:  # not a valid file name
            raise DataError(
                f"{directory / 'manifest.json'}: {ENTRY} has {shown(path.name)}, not the name of a file"
            ) from None
        if not same:
            if path.suffix == ".h5":
                hdf5.check_free(path)
            found = (
                "another SHA-256 than" if size == mark["bytes"] else f"{size:,} bytes, not the {mark['bytes']:,} that"
            )
            raise DataError(
                f"{path}: {found} manifest.json has; it is damaged or incomplete: restore the original file (or, if "
                "it was changed on purpose, remove its entry from manifest.json)"
            )


def _is_one(mark: Mapping[str, Any]) -> bool:
    size, digest = mark.get("bytes"), mark.get("sha256")
    return type(size) is int and isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None
