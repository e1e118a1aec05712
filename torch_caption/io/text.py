"""Reading untrusted text and JSON."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any, NoReturn

from torch_caption.errors import InputError
from torch_caption.io.exits import one_line

TEXT_LIMIT = 2**26
"""Default maximum size of a file in bytes (64 MiB)."""

_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")


def invalid_character(text: str) -> str | None:
    """The first character that is not text: a control character or a surrogate; None if there is none."""
    found = _NO_TEXT.search(text)
    return found[0] if found else None


def read_text(path: Path, most: int = TEXT_LIMIT) -> str:
    """The content of a file in UTF-8, without a byte order mark.

    Raises:
        InputError: it is not a file, larger than `most` bytes, or not UTF-8; the message names it.
    """
    try:
        if path.exists() and not path.is_file():  # such as a pipe or a device, which may be endless
            raise InputError(f"{path}: not a file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise InputError(f"{path}: has {size:,} bytes, more than the limit {most:,}")
            content = file.read(most)
        return content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text in UTF-8: {error}") from None


def lines(text: str) -> list[str]:
    r"""The lines of a text: only \n and \r\n end a line, since names may contain other line separators of Unicode."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found if found[-1] else found[:-1]


def read_json(path: Path, most: int = TEXT_LIMIT) -> Any:
    """The content of a JSON file. Duplicate keys of an object and NaN are errors.

    Raises:
        InputError: the file is invalid; the message names it.
    """
    return parse_json(read_text(path, most), path)


def parse_json(text: str, path: object) -> Any:
    """As `read_json`, from the text of the file; `path` names it in messages."""
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise InputError(f"{path}: not JSON in UTF-8: nested too deep") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON in UTF-8: {one_line(error)}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        values = [shown(value) for key, value in pairs if key == twice]
        raise InputError(f"an object has the key {shown(twice)} twice, with {values[0]} and with {values[1]}")
    return made


def _constant(name: str) -> NoReturn:
    raise InputError(f"{name} is not valid JSON")


def shown(value: Any, most: int = 80) -> str:
    """A value for a message: the beginning of its repr."""
    try:
        return printable(repr(value), most)
    except RecursionError:
        return f"a {type(value).__name__}, nested too deep"


def flag_of(name: str) -> str:
    """The flag of a setting: `--max-length` for `max_length`."""
    return "--" + name.replace("_", "-")


def printable(text: object, most: int = 300) -> str:
    """A text for a message, such as a file's name or a URL: one line of at most `most` characters, without control
    characters. Blanks of any width and joiners of letters or emoji are kept."""
    shown = "".join(
        letter if _is_printable(letter) else "\N{REPLACEMENT CHARACTER}" for letter in str(text)[: most + 1]
    )
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _is_printable(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def json_text(content: object, *, indent: int | None = None, encoding: str | None = "utf-8") -> str:
    """JSON text; characters outside the encoding are escaped, such as those of names that are not UTF-8."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    try:
        text.encode(encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent)
    return text
