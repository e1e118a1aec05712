"""A server on this machine, of one photograph and of all that goes wrong with photographs on the web."""

from __future__ import annotations

import contextlib
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

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


def png(width: int, height: int, depth: int, colour: int, pixels: bytes = b"") -> bytes:
    """A PNG by hand: what Pillow does not write, 16-bit colour and sizes that are not true."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
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
        name = urlsplit(self.path).path.strip("/").split("/")[0]
        with contextlib.suppress(OSError):  # the client went away, as it should
            getattr(self, f"answer_{name}", self.answer_missing)()

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def drip(self, chunk: bytes = b"x") -> None:
        while not self.server.closing.wait(0.02):
            self.wfile.write(chunk)

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


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()

    def handle_error(self, *args: object) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
