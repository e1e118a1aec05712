"""A server on this machine with one photograph, and with answers that are faulty, hostile or endless."""

from __future__ import annotations

import contextlib
import http.server
import io
import shutil
import ssl
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
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


def png(width: int, height: int, depth: int, colour: int, pixels: bytes = b"", clear: bytes = b"") -> bytes:
    """A PNG that Pillow does not write: 16-bit colour, a transparent colour, false sizes."""
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
        with contextlib.suppress(OSError):  # the client has closed the connection
            getattr(self, f"answer_{urlsplit(self.path).path.split('/')[1]}", self.answer_missing)()

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def drip(self, chunk: bytes = b"x") -> None:
        while not self.server.closing.wait(0.02):
            self.wfile.write(chunk)

    def flood(self, piece: bytes = bytes(2**14)) -> None:
        while not self.server.closing.is_set():
            self.wfile.write(piece)

    def send(self, content: bytes = b"", **headers: object) -> None:
        self.head(**headers)
        self.wfile.write(content)

    def answer_photo(self) -> None:
        self.send(PHOTO, Content_Length=len(PHOTO), Content_Type="image/png")

    def answer_unmeasured(self) -> None:
        self.send(PHOTO)

    def answer_chunked(self) -> None:
        pieces = [PHOTO[start : start + 50] for start in range(0, len(PHOTO), 50)]
        content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        self.send(content + b"0\r\n\r\n", Transfer_Encoding="chunked")

    def answer_missing(self) -> None:
        self.head(404, Content_Length=0)

    def answer_empty(self) -> None:
        self.send(Content_Length=0)

    def answer_page(self) -> None:
        self.send(b"<html>", Content_Length=6, Content_Type="image/png")

    def answer_short(self) -> None:
        self.send(PHOTO, Content_Length=len(PHOTO) + 1)

    def answer_short_chunk(self) -> None:
        self.send(b"ffff\r\n" + PHOTO, Transfer_Encoding="chunked")

    def answer_compressed(self) -> None:
        self.send(PHOTO, Content_Length=len(PHOTO), Content_Encoding="gzip")

    def answer_giant(self) -> None:
        self.head(Content_Length=10 * 2**30)
        self.drip()

    def answer_endless(self) -> None:
        self.head()
        self.flood()

    def answer_drip(self) -> None:
        self.head(Content_Length=10_000)
        self.drip()

    def answer_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.drip(b"X")

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

    def answer_negative_chunk(self) -> None:
        self.send(b"-1\r\n", Transfer_Encoding="chunked")
        self.flood()

    def answer_flooding_redirect(self) -> None:
        self.head(302, Location="/photo")
        self.flood()

    def answer_trailers(self) -> None:
        self.send(b"%x\r\n%b\r\n0\r\n" % (len(PHOTO), PHOTO), Transfer_Encoding="chunked")
        self.flood(b"X: y\r\n" * 2**10)

    def answer_long_header(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.flood(b"y" * 2**14)

    def answer_to_http(self) -> None:
        self.head(302, Location=f"http://{self.headers['Host']}/photo")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    request_queue_size = 64

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
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server until the end of the block; over TLS with a context."""
    with Server() as server:
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
    """A self-signed certificate for a host; None where no openssl program makes one."""
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
