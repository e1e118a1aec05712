"""cs231n's archive: download over HTTP, resuming, checks, and atomic unpacking."""

from __future__ import annotations

import http
import http.client
import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from torch_caption.errors import DownloadError, InputError
from torch_caption.io.exits import Stopped, is_interactive, one_line
from torch_caption.io.http import CHUNK, FetchError, open_url, pieces
from torch_caption.io.text import printable

ARCHIVE = "http://cs231n.stanford.edu/coco_captioning.zip"

# Moved in this order: without captions a directory is not accepted as data, so they are last.
MEMBERS = (
    *(f"{split}2014_{kind}.txt" for split in ("train", "val") for kind in ("images", "urls")),
    *(f"{split}2014_vgg16_fc7{kind}.h5" for split in ("train", "val") for kind in ("", "_pca")),
    "coco2014_vocab.json",
    "coco2014_captions.h5",
)
ARCHIVE_LIMIT = 2**32
"""Maximum size of an archive in bytes (4 GiB); cs231n's has about 1 GB."""
UNPACKED_LIMIT = 2**33
"""Maximum total size of an archive's files in bytes (8 GiB)."""

_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """The identity of the archive on the server, to detect changes after an interruption.

    Attributes:
        url: its URL.
        length: its size in bytes; None if the server does not send it.
        validator: its strong ETag, or else its date; None if the server sends neither.
    """

    url: str
    length: int | None
    validator: str | None


def download(directory: Path, url: str, check: Callable[[Path], object]) -> None:
    """Download and unpack cs231n's archive into a directory; valid data in it is not changed.

    Args:
        directory: created if it is missing. Until the files are complete and checked it contains only the partial
            archive. Existing invalid data files are not overwritten.
        url: http or https.
        check: raises an InputError if the data in a directory is invalid.

    Raises:
        DownloadError: it cannot be downloaded or is invalid.
        KeyboardInterrupt: by Ctrl-C; its message has the command to continue.
    """
    archive = directory / "coco_captioning.zip.part"
    try:
        check(directory)
    except InputError as error:
        found = [name for name in MEMBERS if (directory / name).exists()]
        if found and not archive.exists():  # beside an archive they are the files of an interrupted move
            raise DownloadError(f"{one_line(error)}; or download into another folder") from None
    else:
        _discard(archive)
        print(f"{directory} is complete: nothing to download")
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fetch(url, archive)
        unpack(archive, directory, check)
    except KeyboardInterrupt as stopped:
        advice = f"{directory} keeps the partial download; run the same command again to continue"
        raise Stopped.advising(stopped, advice) from None
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{directory}: {error.strerror or one_line(error)}; the partial download is kept") from None


def fetch(url: str, part: Path) -> None:
    """Download a URL into the file `part`; resume a partial download if the content on the server is unchanged.

    Raises:
        DownloadError: the server refuses, cannot be reached, ends the connection, or sends more than the limit.
    """
    source = _read_source(part)
    have = part.stat().st_size if part.is_file() else 0
    if source is None or source.url != url or (source.length is not None and have > source.length):
        source, have = None, 0
    if source is not None and have == source.length:
        return
    try:
        _fetch(url, part, source, have)
    except FetchError as error:
        advice = "run the same command again to continue" if error.again else "choose another --url"
        raise DownloadError(f"{printable(url)}: {error}; {advice}") from None


def _fetch(url: str, part: Path, source: Source | None, have: int) -> None:
    with _answer(url, source, have) as response:
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            start, length = _content_range(response)
            if source is None:
                raise FetchError("the server sends a part that was not requested")
            if start != have or length != (source.length or length):  # other content, or another part of it
                response.close()
                return _fetch(url, part, None, 0)
        else:
            start, length = 0, response.length
            part.unlink(missing_ok=True)  # the note must describe these bytes only
            _write_source(part, Source(url, length, _validator(response)))
        bar = tqdm(
            initial=start, total=length, unit="B", unit_scale=True, desc="download", disable=not is_interactive()
        )
        with part.open("ab") as file, bar:
            for piece in pieces(response, ARCHIVE_LIMIT - start):
                file.write(piece)
                bar.update(len(piece))
    have = part.stat().st_size
    if length is not None and have != length:  # the part ends before the end of the content
        raise FetchError(f"cut off after {have:,} of {length:,} bytes", again=True)
    return None


def _answer(url: str, source: Source | None, have: int) -> http.client.HTTPResponse:
    headers = {}
    if source is not None and have > 0 and (source.validator or source.length):
        headers["Range"] = f"bytes={have}-"
        if source.validator:
            headers["If-Range"] = source.validator
    try:
        return open_url(url, timeout=_TIMEOUT, headers=headers)
    except FetchError as error:
        if error.status != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not headers:
            raise
        return _answer(url, None, 0)


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The start of the part, and the total length."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if not found:
        return -1, None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _validator(response: http.client.HTTPResponse) -> str | None:
    """The value for If-Range: not a weak ETag."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_source(part: Path) -> Source | None:
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
        source = Source(str(note["url"]), note["length"], note["validator"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    known = isinstance(source.length, int | None) and isinstance(source.validator, str | None)
    return source if known else None


def _write_source(part: Path, source: Source) -> None:
    _note(part).write_text(json.dumps(asdict(source)), encoding="utf-8", newline="\n")


def unpack(archive: Path, directory: Path, check: Callable[[Path], object]) -> None:
    """Unpack the known files, check them, then move them into the directory, and remove the archive.

    Raises:
        DownloadError: the archive is damaged or malicious, or its files are invalid; it is removed.
    """
    folder = directory / ".unpacking"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    folder.mkdir()
    try:
        names = _extract(archive, folder)
        check(folder)
        (directory / MEMBERS[-1]).unlink(missing_ok=True)
        for name in names:
            (folder / name).replace(directory / name)
    except DownloadError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        _discard(archive)
        reason = one_line(error).replace(f"{folder}{os.sep}", "")
        raise DownloadError(
            f"{archive}: not a valid archive ({reason}); it is removed: run again to download it"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _discard(archive)


def _discard(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    _note(archive).unlink(missing_ok=True)


def _extract(archive: Path, folder: Path) -> list[str]:
    """Write the archive's known files into the folder and check their CRCs; their names in the order of moving."""
    with zipfile.ZipFile(archive) as content:
        found = _known(content)
        total = sum(info.file_size for info in found.values())
        if total > UNPACKED_LIMIT:
            raise InputError(f"its files would take {total:,} bytes, more than the {UNPACKED_LIMIT:,} allowed")
        free = shutil.disk_usage(folder).free
        if total > free:
            raise DownloadError(f"{folder.parent}: needs {total:,} bytes, but {free:,} are free; free disk space")
        with tqdm(total=total, unit="B", unit_scale=True, desc="unpack", disable=not is_interactive()) as bar:
            for name, info in found.items():
                with content.open(info) as packed, (folder / name).open("wb") as file:
                    while chunk := packed.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
    return list(found)


def _known(content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries to unpack by file name, in MEMBERS' order; others, such as folders and icons, are omitted."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in content.infolist():
        parts = info.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in info.filename:
            raise InputError(f"the entry {info.filename!r} leads out of the directory")
        if parts[-1] not in MEMBERS or len(parts) > 2:
            continue
        if parts[-1] in entries:
            raise InputError(f"it has {parts[-1]} twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"it has {parts[-1]} compressed by method {info.compress_type}")
        entries[parts[-1]] = info
    if not entries:
        raise InputError("it has none of cs231n's files")
    return {name: entries[name] for name in MEMBERS if name in entries}
