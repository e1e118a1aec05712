"""A server on this machine, of one photograph and of all that goes wrong with photographs on the web."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (200, 30, 20), (10, 150, 60), (30, 40, 180), (255, 255, 255)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def quarters() -> Image.Image:
    """12 x 8: red and green above, blue and white below."""
    pixels = np.empty((8, 12, 3), np.uint8)
    pixels[:4, :6], pixels[:4, 6:], pixels[4:, :6], pixels[4:, 6:] = RED, GREEN, BLUE, WHITE
    return Image.fromarray(pixels)


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes = b"", clear: bytes = b"") -> bytes:
    """A PNG by hand: what Pillow does not write, 16-bit colour, perhaps a clear one, and sizes that are not true."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = (
        chunk(b"IHDR", header)
        + (chunk(b"tRNS", clear) if clear else b"")
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


PHOTO = encoded(quarters(), "PNG")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client went away, as it should
            getattr(self, f"answer_{self.words[0]}", self.answer_missing)()

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def drip(self, chunk: bytes = b"x") -> None:
        while not self.server.closing.wait(0.02):
            self.wfile.write(chunk)

    def flood(self, piece: bytes, times: int | None = None) -> None:
        """The same without end, or so many times, as fast as the client takes it."""
        sent = 0
        while not self.server.closing.is_set() and sent != times:
            self.wfile.write(piece)
            sent += 1

    @property
    def words(self) -> list[str]:
        """Of the path, still escaped."""
        return urlsplit(self.path).path.strip("/").split("/")

    def answer_photo(self) -> None:
        self.head(Content_Length=len(PHOTO), Content_Type="image/png")
        self.wfile.write(PHOTO)

    def answer_unmeasured(self) -> None:
        self.head()
        self.wfile.write(PHOTO)

    def answer_chunked(self) -> None:
        self.head(Transfer_Encoding="chunked")
        for start in range(0, len(PHOTO), 50):
            piece = PHOTO[start : start + 50]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def answer_missing(self) -> None:
        self.head(404, Content_Length=0)

    def answer_empty(self) -> None:
        self.head(Content_Length=0)

    def answer_page(self) -> None:
        self.head(Content_Length=6, Content_Type="image/png")
        self.wfile.write(b"<html>")

    def answer_short(self) -> None:
        self.head(Content_Length=len(PHOTO) + 1)
        self.wfile.write(PHOTO)

    def answer_short_chunk(self) -> None:
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"ffff\r\n" + PHOTO)

    def answer_compressed(self) -> None:
        self.head(Content_Length=len(PHOTO), Content_Encoding="gzip")
        self.wfile.write(PHOTO)

    def answer_giant(self) -> None:
        self.head(Content_Length=10 * 2**30)
        self.drip()

    def answer_endless(self) -> None:
        self.head()
        while not self.server.closing.is_set():
            self.wfile.write(bytes(2**14))

    def answer_endless_chunks(self) -> None:
        self.head(Transfer_Encoding="chunked")
        while not self.server.closing.is_set():
            self.wfile.write(b"4000\r\n" + bytes(2**14) + b"\r\n")

    def answer_drip(self) -> None:
        self.head(Content_Length=10_000)
        self.drip()

    def answer_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.drip(b"X: y\r\n" if "lines" in self.path else b"X")

    def answer_silence(self) -> None:
        self.server.closing.wait(30)

    def answer_nonsense(self) -> None:
        self.wfile.write(b"\x1b[31mnot\r\nHTTP\r\n\r\n")

    def answer_hangup(self) -> None:
        pass

    def answer_to(self) -> None:
        self.head(int(urlsplit(self.path).path.split("/")[2]), Location=parse_qs(urlsplit(self.path).query)["url"][0])

    def answer_hops(self) -> None:
        left = int(self.path.split("/")[2])
        self.head(302, Location=f"/hops/{left - 1}" if left > 1 else "/photo")

    def answer_round(self) -> None:
        self.head(307, Location="/round")

    def answer_lost(self) -> None:
        self.head(302)

    def answer_status(self) -> None:
        """/status/206"""
        self.head(int(self.words[1]), Content_Length=len(PHOTO))
        self.wfile.write(PHOTO)

    def answer_length(self) -> None:
        """/length/-5, and the photograph whatever it says."""
        self.head(Content_Length=self.words[1])
        self.wfile.write(PHOTO)

    def answer_long_length(self) -> None:
        self.head(Content_Length="9" * 20_000)
        self.wfile.write(PHOTO)

    def answer_two_lengths(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + PHOTO)

    def answer_encoding(self) -> None:
        """/encoding/gzip: half a gigabyte of zeros, packed twice."""
        packed = gzip.compress(gzip.compress(bytes(2**20)) * 512)
        self.head(Content_Length=len(packed), Content_Encoding=self.words[1])
        self.wfile.write(packed)

    def answer_transfer(self) -> None:
        """/transfer/gzip, chunked"""
        self.head(Transfer_Encoding=unquote(self.words[1]))
        self.wfile.write(gzip.compress(PHOTO))

    def answer_chunk(self) -> None:
        """/chunk/-1: one chunk that says so of its length, and rubbish without end."""
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(unquote(self.words[1]).encode("latin-1") + b"\r\n")
        self.flood(bytes(2**14))

    def answer_long_chunk(self) -> None:
        self.head(Transfer_Encoding="chunked")
        self.flood(b"0" * 2**14)

    def answer_wasteful_chunks(self) -> None:
        """A byte each, in a kilobyte of extensions."""
        self.head(Transfer_Encoding="chunked")
        self.flood(b"1;" + b"x" * 1000 + b"\r\nx\r\n")

    def answer_chunk_drip(self) -> None:
        self.head(Transfer_Encoding="chunked")
        self.drip(b"1\r\nx\r\n")

    def answer_trailers(self) -> None:
        self.head(Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b\r\n0\r\n" % (len(PHOTO), PHOTO))
        self.flood(b"X: y\r\n" * 2**10)

    def answer_many_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n" + PHOTO)

    def answer_long_header(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.flood(b"y" * 2**16, 2**14)

    def answer_long_status(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 ")
        self.flood(b"K" * 2**16, 2**14)

    def answer_continues(self) -> None:
        self.flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 2**9)

    def answer_reset(self) -> None:
        """/reset/9: after so many bytes."""
        self.head(Content_Length=len(PHOTO))
        self.wfile.write(PHOTO[: int(self.words[1])])
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def answer_raw(self) -> None:
        """As HTTP/0.9 did: the content alone."""
        self.wfile.write(PHOTO)

    def answer_version(self) -> None:
        """/version/HTTP%2F9.9"""
        self.wfile.write(unquote(self.words[1]).encode("latin-1") + b" 200 OK\r\n\r\n" + PHOTO)

    def answer_flooding_redirect(self) -> None:
        self.head(302, Location="/flooding_redirect")
        self.flood(bytes(2**14))

    def answer_far_redirect(self) -> None:
        self.head(302, Location="/" + "a" * 60_000)

    def answer_secure(self) -> None:
        """From https to http, on the same port."""
        self.head(302, Location=f"http://{self.headers['Host']}/photo")

    def answer_file(self) -> None:
        """/file/jpeg%20scans: of tests/helpers/hostile_photos.py"""
        from tests.helpers import hostile_photos  # it needs this module

        content = hostile_photos.made(unquote(self.words[1]))
        self.head(Content_Length=len(content), Content_Type="image/png")
        self.wfile.write(content)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    request_queue_size = 64

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((address, port), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    def handle_error(self, *args: object) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(address: str = "127.0.0.1", port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """The server, at its work until the end of the block; over TLS with a context."""
    with Server(address, port) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


def certificate(folder: Path, name: str = "photos.example") -> Path | None:
    """A certificate of our own for a host's name; None where there is no openssl program that makes one."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    path = folder / "certificate.pem"
    command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -addext subjectAltName=DNS:{name}"
    files = ["-keyout", str(path.with_name("key.pem")), "-out", str(path)]
    made = subprocess.run([openssl, *command.split(), *files], capture_output=True, check=False)
    return None if made.returncode else path


def server_context(path: Path) -> ssl.SSLContext:
    """Of the server that has that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_name("key.pem"))
    return context
