"""The download of cs231n's archive, from a server on this machine that misbehaves on request."""

from __future__ import annotations

import io
import os
import re
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.data_directory import contents
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.errors import DownloadError
from torch_caption.io import download, http
from torch_caption.io.download import Source


@dataclass
class Server:
    """What the server does, and the requests to it.

    Attributes:
        content: of the answer.
        etag, modified: validators, sent and honoured where given.
        ranges: whether it serves ranges; "blindly" also when If-Range forbids it.
        cut: bytes after which it closes the connection; None never.
        length: the header Content-Length; None is the true one, "" none.
        status, location: of an answer other than the content.
        asked: the Range and If-Range of each request.
    """

    content: bytes = b""
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool | str = True
    cut: int | None = None
    length: str | None = None
    status: int = 200
    location: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers["Range"], request.headers["If-Range"]
        self.asked.append(asked)
        if self.status != 200:
            request.send_response(self.status)
            if self.location is not None:
                request.send_header("Location", self.location)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start, status = 0, 200
        valid = asked[1] in (None, self.etag, self.modified) or self.ranges == "blindly"
        if asked[0] and self.ranges and valid:
            start, status = int(asked[0].removeprefix("bytes=").removesuffix("-")), 206
        if status == 206 and start >= len(self.content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        self._send(request, start, status)

    def _send(self, request: BaseHTTPRequestHandler, start: int, status: int) -> None:
        body = self.content[start:]
        headers = {"Content-Length": str(len(body)) if self.length is None else self.length, "ETag": self.etag}
        headers["Last-Modified"] = self.modified
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        request.send_response(status)
        for name, value in {**headers, **self.extra}.items():
            if value:
                request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body if self.cut is None else body[: self.cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        behaviour.url = f"http://127.0.0.1:{http.server_port}/coco_captioning.zip"
        yield behaviour
        http.shutdown()
        thread.join()


def packed(directory: Path, folder: str = "coco_captioning/", **extra: bytes) -> bytes:
    """The archive of a data directory; `extra` holds further entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if folder:
            archive.writestr(folder, b"")
        for path in sorted(directory.iterdir()):
            archive.writestr(folder + path.name, path.read_bytes())
        for name, content in extra.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def source(coco_directory: Callable[..., Path]) -> Path:
    directory = coco_directory({"train": 200, "val": 20}, name="source")
    (directory / "val2014_urls.txt").write_text("http://host/x.jpg\n" * 20, encoding="utf-8")
    return directory


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "coco"


def part_of(target: Path) -> Path:
    return target / "coco_captioning.zip.part"


def run(target: Path, url: str, capsys) -> tuple[int, str, str]:
    status = main(["download", str(target), "--url", url])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out, output.err


def assert_fails(target: Path, url: str, capsys, message: str, status: int = 2) -> None:
    """The command fails in one line, and leaves nothing that would be taken for data."""
    found, out, err = run(target, url, capsys)
    assert (found, out) == (status, "")
    assert re.fullmatch(rf"error: [^\n]*({message})[^\n]*\n", err), err
    assert not (target / "coco2014_captions.h5").exists()
    assert not (target / ".unpacking").exists()


# A sound server


def test_the_archive_is_downloaded_and_unpacked(server, source, target, capsys):
    server.content = packed(source)
    status, out, err = run(target, server.url, capsys)
    assert (status, err) == (0, "")
    assert out.startswith(f"{target}: valid, 10 words\n")
    assert contents(target) == contents(source)  # and nothing else
    assert server.asked == [(None, None)]


def test_a_complete_directory_is_not_downloaded_again(server, source, target, capsys):
    server.content = packed(source)
    run(target, server.url, capsys)
    part_of(target).write_bytes(b"left over")
    status, out, _ = run(target, server.url, capsys)
    assert status == 0
    assert out.startswith(f"{target} is complete: nothing to download\n")
    assert len(server.asked) == 1
    assert contents(target) == contents(source)


@pytest.mark.parametrize("folder", ["", "coco_captioning/", "other/"])
def test_only_known_files_are_unpacked_and_others_kept(server, source, target, capsys, folder):
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("mine", encoding="utf-8")
    extra = {"readme.txt": b"x", "__MACOSX/._a.h5": b"x", "a/b/coco2014_vocab.json": b"{}", f"{folder}evil.py": b"x"}
    server.content = packed(source, folder, **extra)
    assert run(target, server.url, capsys)[0] == 0
    assert (target / "notes.txt").read_text(encoding="utf-8") == "mine"
    (target / "notes.txt").unlink()
    assert contents(target) == contents(source)


# Resuming


@pytest.mark.parametrize(
    ("etag", "modified", "asked"),
    [
        ('"one"', None, '"one"'),
        ('"one"', "Mon, 01 Jan 2024 00:00:00 GMT", '"one"'),
        (None, "Mon, 01 Jan 2024 00:00:00 GMT", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ('W/"one"', None, None),  # a weak validator does not promise the same bytes
        (None, None, None),
    ],
)
def test_a_download_resumes_after_a_lost_connection(server, source, target, capsys, etag, modified, asked):
    server.content, server.etag, server.modified, server.cut = packed(source), etag, modified, 1000
    assert_fails(
        target, server.url, capsys, rf"cut off, {len(server.content) - 1000:,} bytes are missing; run the same"
    )
    assert part_of(target).read_bytes() == server.content[:1000]
    server.cut = 700
    assert_fails(target, server.url, capsys, rf"cut off, {len(server.content) - 1700:,} bytes are")
    server.cut = None
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)
    assert server.asked == [(None, None), ("bytes=1000-", asked), ("bytes=1700-", asked)]


@pytest.mark.parametrize("ranges", [True, False, "blindly"])
@pytest.mark.parametrize("same_etag", [True, False])
def test_a_changed_archive_is_downloaded_from_its_beginning(server, source, target, capsys, ranges, same_etag):
    server.content, server.cut, server.ranges = packed(source, "old/"), 1000, ranges
    assert_fails(target, server.url, capsys, "cut off")
    server.content, server.cut = packed(source, "much_newer/"), None
    if not same_etag:
        server.etag = '"two"'
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)


def test_a_shorter_archive_is_downloaded_whole(server, source, target, capsys):
    server.content, server.cut = packed(source, filler=os.urandom(9000)), len(packed(source)) + 5000
    assert_fails(target, server.url, capsys, "cut off")
    server.content, server.cut = packed(source), None  # the server responds 416
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)


@pytest.mark.parametrize("note", [None, "[]", '{"url": "other", "length": 1000, "validator": null}'])
def test_a_part_of_unknown_origin_is_downloaded_from_its_beginning(server, source, target, capsys, note):
    server.content = packed(source)
    target.mkdir(parents=True)
    part_of(target).write_bytes(b"rubbish")
    if note is not None:
        part_of(target).with_name("coco_captioning.zip.part.json").write_text(note)
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)


def test_a_whole_part_is_only_unpacked(server, source, target, capsys):
    content = packed(source)
    target.mkdir(parents=True)
    part_of(target).write_bytes(content)
    download._write_source(part_of(target), Source(server.url, len(content), None))
    (target / ".unpacking").mkdir()  # of a run that was killed
    (target / ".unpacking" / "coco2014_vocab.json").write_bytes(b"half")
    (target / "coco2014_vocab.json").write_bytes(b"half")
    assert run(target, server.url, capsys)[0] == 0
    assert server.asked == []
    assert contents(target) == contents(source)


class _InterruptedBar(download.tqdm):
    """A progress bar at which the user presses Ctrl-C."""

    def update(self, size: int = 1) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["download", "unpack"])
def test_a_download_resumes_after_ctrl_c(server, source, target, capsys, monkeypatch, phase):
    server.content = packed(source)
    bar = download.tqdm
    monkeypatch.setattr(download, "CHUNK", 512)
    monkeypatch.setattr(http, "CHUNK", 512)
    monkeypatch.setattr(
        download, "tqdm", lambda **kwargs: (_InterruptedBar if kwargs["desc"] == phase else bar)(**kwargs)
    )
    status, _, err = run(target, server.url, capsys)
    assert status == 130
    assert err == f"stopped: {target} keeps the partial download; run the same command again to continue\n"
    kept = part_of(target).stat().st_size
    assert 0 < kept <= (len(server.content) if phase == "unpack" else 512)
    assert not (target / ".unpacking").exists()
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)
    assert server.asked[1:] == ([] if phase == "unpack" else [(f"bytes={kept}-", '"one"')])


# Faults


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"status": 404}, "the server responds 404 Not Found; choose another --url"),
        ({"status": 206}, "the server sends a part that was not requested"),
        ({"status": 302, "location": "ftp://127.0.0.1/x"}, "redirected to ftp://127.0.0.1/x: only http and https"),
        ({"length": "99999999999999999"}, r"more than 4,294,967,296 bytes"),
        ({"length": "40"}, "not a valid archive .*not a zip file"),
        (
            {"length": "", "extra": {"Transfer-Encoding": "chunked"}},
            "cannot be fetched: IncompleteRead.*; run the same command again",
        ),
        ({"length": "", "cut": 1000}, "not a valid archive .*; it is removed: run again"),
    ],
)
def test_a_faulty_answer_is_one_line_and_leaves_no_trace(server, source, target, capsys, behaviour, message):
    server.content = packed(source)
    for name, value in behaviour.items():
        setattr(server, name, value)
    assert_fails(target, server.url, capsys, message)
    server.__dict__.update(Server(content=server.content, url=server.url).__dict__)
    assert run(target, server.url, capsys)[0] == 0
    assert contents(target) == contents(source)


def test_a_server_that_does_not_answer_is_an_error(target, capsys, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x.zip"
        assert_fails(target, url, capsys, "cannot be fetched: timed out; run the same command again")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://"])
def test_an_invalid_url_is_refused(target, capsys, url):
    assert_fails(target, url, capsys, "(only http and https|without a host|not a URL).*; choose another --url")


@pytest.mark.parametrize(
    "name",
    [
        "../coco2014_captions.h5",
        "coco_captioning/../../coco2014_vocab.json",
        "/etc/x",
        "..\\coco2014_vocab.json",
        "C:coco2014_vocab.json",
    ],
)
def test_an_entry_outside_the_folder_is_refused(server, source, target, tmp_path, capsys, name):
    before = sorted(tmp_path.rglob("*"))
    server.content = packed(source, **{name: b"hostile"})
    assert_fails(target, server.url, capsys, r"the entry '[^\n]*' leads out of the directory")
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [target.parent, target]


def flipped(source: Path) -> bytes:
    """One byte in the packed data of the captions."""
    content = bytearray(packed(source))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("coco_captioning/coco2014_captions.h5")
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    return bytes(content)


def bzip2(source: Path) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("coco2014_vocab.json", b"{}")
    return out.getvalue()


def unsound(source: Path) -> bytes:
    (source / "val2014_urls.txt").write_text("one line\n", encoding="utf-8")
    return packed(source)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda source: packed(source, **{"other/coco2014_vocab.json": b"{}"}), "it has coco2014_vocab.json twice"),
        (bzip2, "it has coco2014_vocab.json compressed by method 12"),
        (flipped, "Bad CRC-32 for file|Error -3 while decompressing"),
        (unsound, r"\(val2014_urls.txt: has 1 lines, but the split's features have 20 rows"),
        (lambda source: b"<html>moved</html>", "not a zip file"),
        (lambda source: packed(source.parent / "nothing"), "it has none of cs231n's files"),
    ],
)
def test_a_damaged_archive_is_removed(server, source, target, capsys, make, message):
    (source.parent / "nothing").mkdir()
    good = packed(source)
    server.content = make(source)
    assert_fails(
        target, server.url, capsys, f"not a valid archive .*({message}).*it is removed: run again to download it"
    )
    assert list(target.iterdir()) == []
    server.content = good
    assert run(target, server.url, capsys)[0] == 0


def test_the_sizes_of_archive_and_files_are_limited(server, source, target, capsys, monkeypatch):
    server.content = packed(source)
    monkeypatch.setattr(download, "UNPACKED_LIMIT", 10_000)
    assert_fails(target, server.url, capsys, r"its files would take [\d,]+ bytes, more than the 10,000 allowed")
    monkeypatch.setattr(download, "ARCHIVE_LIMIT", 1000)
    assert_fails(target, server.url, capsys, "more than 1,000 bytes; choose another --url")
    server.length = ""
    assert_fails(target, server.url, capsys, "more than 1,000 bytes")


def test_too_little_room_keeps_the_archive(server, source, target, capsys, monkeypatch):
    server.content = packed(source)
    usage = download.shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    assert_fails(target, server.url, capsys, r"needs [\d,]+ bytes, but 1,000 are free; free disk space")
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run(target, server.url, capsys)[0] == 0
    assert len(server.asked) == 1  # the partial download is kept


def test_damaged_data_are_not_overwritten(server, source, target, capsys):
    server.content = packed(source)
    target.mkdir(parents=True)
    (target / "coco2014_vocab.json").write_text("mine", encoding="utf-8")
    assert_fails(
        target, server.url, capsys, r"coco2014_vocab.json: not JSON in UTF-8: .*; or download into another folder"
    )
    assert (target / "coco2014_vocab.json").read_text(encoding="utf-8") == "mine"
    assert server.asked == []


def test_an_interrupted_move_leaves_no_data(server, source, target, monkeypatch):
    server.content = packed(source)
    move = Path.replace

    def stop(self: Path, to: Path) -> Path:
        if self.name == "coco2014_vocab.json":
            raise OSError(5, "Input/output error")
        return move(self, to)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(DownloadError, match="Input/output error; the partial download is kept"):
        download.download(target, server.url, open_data)
    assert not (target / "coco2014_captions.h5").exists()
    monkeypatch.setattr(Path, "replace", move)
    download.download(target, server.url, open_data)
    assert contents(target) == contents(source)
    assert len(server.asked) == 1
