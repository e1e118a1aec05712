"""Names of photographs: valid names, names of the same file, and the nearest existing name to a missing one.

A name is a path below a folder, with slashes. It may contain all characters of a file system, including control
characters and blanks at its ends, but must not lead out of the folder or contain a line break, since lists have one
name per line.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from torch_caption.io.text import shown

_ENDS_A_LINE = re.compile("[\n\r\0]")
_NO_TEXT = re.compile("[\ud800-\udfff]")
_LONGEST, _LONGEST_PART = 1024, 255
_COMPARED = 20_000  # names that one is compared with letter by letter


def fault(name: str) -> str | None:
    """Why a name is invalid, and what to do; None for a valid name."""
    if leads_out(name):
        return "not a name below the folder of photographs; give the path relative to that folder"
    if _ENDS_A_LINE.search(name):
        return "a name with a line break; rename the file"
    if _NO_TEXT.search(name):
        return "a name that is not Unicode text; rename the file"
    if len(name) > _LONGEST or max(len(part.encode("utf-8")) for part in name.split("/")) > _LONGEST_PART:
        return "too long for a name below the folder of photographs; shorten it"
    return None


def leads_out(name: str) -> bool:
    """Whether the name is absolute or leads to a parent folder, on any system.

    A drive alone, as in `C:x.jpg`, does so on Windows only: on other systems a colon is an ordinary character.
    """
    windows = PureWindowsPath(name)
    rooted = PurePosixPath(name).root or windows.root or (os.name == "nt" and windows.drive)
    return bool(rooted) or ".." in PurePosixPath(name).parts or ".." in windows.parts


def plain(name: str) -> str:
    """`./a//b.jpg` is `a/b.jpg`."""
    return PurePosixPath(name).as_posix()


def same(name: str) -> str:
    """Equal for names of the same file: macOS writes é in another Unicode normalisation than most systems, and tables
    lose or gain blanks at a name's ends."""
    return unicodedata.normalize("NFC", plain(name)).strip()


def forms(name: str) -> Iterable[str]:
    """The name, and other spellings of the same file."""
    return dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")), name.strip()])


def _loose(name: str) -> str:
    """Equal for names that differ in case, slashes or blanks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(PurePosixPath(folded.replace("\\", "/")).as_posix().split())


class Names:
    """A set of existing names, such as a folder's files, with lookup of other spellings."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    @classmethod
    def below(cls, folder: Path) -> Names:
        """The files in the folder and its subfolders."""
        return cls(
            [
                (Path(where) / name).relative_to(folder).as_posix()
                for where, _, names in os.walk(folder)
                for name in names
            ]
        )

    @cached_property
    def _same(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(same(name), []).append(name)
        return found

    @cached_property
    def _same_last(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self._names:
            found.setdefault(same(_parted(name)[1]), []).append(name)
        return found

    @cached_property
    def _nearly(self) -> dict[str, str]:
        """By the complete name, or else by its last part."""
        whole = {_loose(name): name for name in reversed(self._names)}
        return {_loose(_parted(name)[1]): name for name in reversed(self._names)} | whole

    def meant(self, name: str) -> list[str]:
        """The names of the same file; only the exact spelling if it exists."""
        found = self._same.get(same(name), [])
        return [name] if name in found else found

    def in_folders(self, name: str) -> list[str]:
        """The names in subfolders that end in this name."""
        folder, last = _parted(name)
        found = [
            path
            for path in self._same_last.get(same(last), [])
            if not folder or f"/{same(_parted(path)[0])}".endswith(f"/{same(folder)}")
        ]
        return [path for path in found if _parted(path)[1] == last] or found

    def without_folders(self, name: str, wanted: Names) -> list[str]:
        """The names that are the last part of this name, unless another wanted name has the same last part."""
        last = _parted(name)[1]
        return self.meant(last) if len(wanted.in_folders(last)) == 1 else []

    def nearest(self, name: str, *, guess: bool = False) -> str | None:
        """The nearest existing name: with other case, slashes or blanks, or in another folder.

        Args:
            guess: allow other letters.
        """
        loose = _loose(name)
        for wanted in (loose, _parted(loose)[1]):
            if wanted in self._nearly:
                return self._nearly[wanted]
        if not guess:
            return None
        compared = [*self._nearly][:_COMPARED]
        close = difflib.get_close_matches(loose, compared, 1) or difflib.get_close_matches(
            _parted(loose)[1], compared, 1
        )
        return self._nearly[close[0]] if close else None


def hint(nearest: str | None, what: str = "exists") -> str:
    """The end of a message about a missing name: the nearest one."""
    return f"; the nearest that {what} is {shown(nearest, 300)}" if nearest else ""


def _parted(name: str) -> tuple[str, str]:
    """The folders and the last part of a name."""
    folder, _, last = plain(name).rpartition("/")
    return folder, last
