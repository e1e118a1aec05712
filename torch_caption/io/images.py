"""Photographs from files, bytes and http(s) URLs: upright, RGB, 8 bits, and nothing that a hostile one could do.

No temporary file. Formats, bytes, pixels and seconds are limited; the pixels are counted from the header, before any is
decoded, and metadata are taken off before a decoder sees the file. A URL is fetched only from public addresses: the
host is resolved once, all its addresses are checked, and the connection goes to a checked address, so a name cannot
change its mind in between; each redirect goes the same way. Proxies of the environment are not used, for behind one the
address could not be checked.
"""

from __future__ import annotations

import ctypes
import http.client
import io
import ipaddress
import os
import queue
import re
import socket
import ssl
import stat
import threading
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from torch_caption.io.strip_metadata import bare
from torch_caption.io.strip_metadata import orientation as tiff_orientation

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # and HEIC, where pillow-heif is installed
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
}
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
MAX_SIDE = 2**16 - 1  # as JPEG's; a picture of few, very long rows takes Pillow minutes
MAX_REDIRECTS = 5
MAX_URL = 2**13
FRAMING = 2**20  # bytes that headers and chunks may take beside the content, all redirects together

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRIP = 2**20  # pixels that are laid on white together
_REDIRECTS = (301, 302, 303, 307, 308)
_UNICAST = ipaddress.ip_network("2000::/3")  # all that is given out of IPv6
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in the last 32 bits
# Nobody's machines, though some versions of Python take them for public.
_NOBODYS = [ipaddress.ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "5f00::/16")]
_WARNINGS = threading.Lock()
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEADS = re.compile(rb"(?s)\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II\*\0|MM\0\*|....ftyp")
_BITS, _PHOTOMETRIC = 258, 262  # of a TIFF
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


class ImageError(ValueError):
    """A photograph that cannot be had; the message is one line and begins with the photograph's name."""


def load_image(
    source: str | Path | bytes,
    *,
    allow_private: bool = False,
    timeout: float = 10.0,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    truncated: Callable[[str], object] | None = None,
) -> Image.Image:
    """A photograph as an upright RGB picture of 8 bits a channel, without metadata.

    EXIF rotation is applied, transparency becomes white, CMYK, palettes, grey and 16 bits become RGB; of an animation
    the first frame is taken, of a TIFF the first page. Colour profiles are ignored.

    Args:
        source: a file, the bytes of one, or an http(s) URL. JPEG, PNG, WEBP, GIF, BMP, TIFF and AVIF are read, and HEIC
            where pillow-heif is installed.
        allow_private, timeout, max_bytes: as in `fetch`; the bytes of a file are limited as well.
        max_pixels: the most width x height, with no side above 65,535; beside it Pillow refuses twice its own
            `Image.MAX_IMAGE_PIXELS`.
        truncated: takes a JPEG whose end is missing, grey where it is, and is given a line that names it; None refuses
            it.

    Raises:
        ImageError: the source cannot be read or fetched, is empty, too large, in another format, or damaged.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(bytes(source), "the picture's bytes", max_bytes, max_pixels, truncated)
    name = shown(source)
    if isinstance(source, str) and is_url(source):
        content = fetch(source, allow_private=allow_private, timeout=timeout, max_bytes=max_bytes)
    else:
        content = _file_content(Path(source), name, max_bytes)
    return _decoded(content, name, max_bytes, max_pixels, truncated)


def is_picture(path: Path) -> bool:
    """Whether a file begins as a photograph does that `load_image` reads, or at least is named like one."""
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        _check_regular(path.stat(), "")
        with open(path, "rb", opener=_open_now) as file:
            head = file.read(256)
    except (OSError, ValueError):
        return False
    brands = re.fullmatch(rb"(?s)....ftyp(.*)", head)
    return bool(_HEADS.match(head)) and (brands is None or bool(_brands(head) & (_AVIF | _HEIC)))


def is_url(source: str) -> bool:
    """Whether `load_image` takes it for a URL, of whatever scheme, and not for a file's name."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def fetch(url: str, *, allow_private: bool = False, timeout: float = 10.0, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes that an http(s) URL answers, after at most 5 redirects.

    Args:
        allow_private: also fetch from addresses that are not public (this machine, the local network). Never set it for
            URLs that come from strangers.
        timeout: seconds for everything together: the name, all connections, headers, redirects, the last byte.
        max_bytes: the most the answer may hold.

    Raises:
        ImageError: not an http(s) URL, one with a user's name in it, an address that is not public, a redirect from
            https to http, no answer in time, an answer that is not 200, too large, compressed or cut short.
    """
    allowance = _Allowance(time.monotonic() + timeout, max_bytes + FRAMING)
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        name = shown(url) if here == url else f"{shown(url)}: redirected to {shown(here)}"
        try:
            answer = _get(here, name, allowance, allow_private, max_bytes)
        except ImageError:
            raise
        except TimeoutError:
            raise ImageError(f"{name}: not here within {timeout:g} seconds") from None
        except _TooMuch:
            raise ImageError(f"{name}: more than {max_bytes + FRAMING} bytes with all headers") from None
        except ssl.SSLCertVerificationError as error:
            raise ImageError(f"{name}: the certificate is not valid: {_line(error.verify_message)}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a chunk of -1 bytes, for one
            raise ImageError(f"{name}: cannot be fetched: {_line(error)}") from error
        if isinstance(answer, bytes):
            return answer
        here = answer
    raise ImageError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")


def _get(url: str, name: str, allowance: _Allowance, allow_private: bool, max_bytes: int) -> bytes | str:
    """One request: the body, or where it redirects to."""
    parts, host, port = _parsed(url, name)
    addresses = _resolved(host, port, allowance)
    if not allow_private:
        for *_, (address, *_) in addresses:
            if not is_public(address):
                resolved = "" if host == address else f"{host} is "
                raise ImageError(f"{name}: {resolved}{address}, not a public address")
    context = ssl.create_default_context() if parts.scheme == "https" else None
    with _connected(addresses, allowance) as plain:
        plain.settimeout(allowance.seconds())
        with context.wrap_socket(plain, server_hostname=host) if context else plain as sock:
            kind = http.client.HTTPSConnection if context else http.client.HTTPConnection  # for the default port
            connection = kind(host, port)
            connection.sock = cast(socket.socket, _Wire(sock, allowance))
            connection.request("GET", _target(parts), headers={"User-Agent": "torch_caption", "Connection": "close"})
            with connection.getresponse() as response:
                location = response.getheader("Location")
                if response.status in _REDIRECTS and location:
                    return _joined(url, location, name)
                return _body(response, name, max_bytes)


def _joined(url: str, location: str, name: str) -> str:
    try:
        target = urljoin(url, location)
        schemes = urlsplit(url).scheme, urlsplit(target).scheme
    except ValueError as error:
        raise ImageError(f"{name}: redirected to what is no URL, {shown(location)}: {_line(error)}") from None
    if schemes == ("https", "http"):
        raise ImageError(f"{name}: redirected from https to {shown(target)}, which nobody vouches for")
    return target


def _body(response: http.client.HTTPResponse, name: str, max_bytes: int) -> bytes:
    if response.status != http.client.OK:
        phrase = http.client.responses.get(response.status, "")
        raise ImageError(f"{name}: the server answers {response.status} {phrase}".rstrip())
    encoding = response.getheader("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise ImageError(f"{name}: sent compressed ({_line(encoding)}), which was not asked for")
    body = bytearray()
    while len(body) + (response.length or 0) <= max_bytes:
        chunk = response.read(2**16)
        if not chunk:
            if response.length:
                raise ImageError(f"{name}: cut short after {len(body)} of {len(body) + response.length} bytes")
            return bytes(body)
        body += chunk
    raise ImageError(f"{name}: more than {max_bytes} bytes")


def _parsed(url: str, name: str) -> tuple[SplitResult, str, int]:
    if len(url) > MAX_URL:
        raise ImageError(f"{name}: a URL of more than {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ImageError(f"{name}: not a URL: {_line(error)}") from None
    if parts.scheme not in ("http", "https"):
        raise ImageError(f"{name}: only http and https URLs are fetched")
    if not host or re.search(r"[\x00-\x20\x7f]", host):
        raise ImageError(f"{name}: a URL without a host")
    if "@" in parts.netloc:  # http://public.example@localhost/ reads as if it were public.example's
        raise ImageError(f"{name}: a URL with a user's name before its host; leave it out")
    return parts, host, port if port is not None else 443 if parts.scheme == "https" else 80


def _target(parts: SplitResult) -> str:
    """Path and query with all that a request line may not hold escaped, and nothing escaped twice."""
    safe = "/%:@!$&'()*+,;=~[]?"
    target = quote(parts.path or "/", safe=safe)
    return f"{target}?{quote(parts.query, safe=safe)}" if parts.query else target


def _resolved(host: str, port: int, allowance: _Allowance) -> list[tuple[Any, ...]]:
    """`socket.getaddrinfo` in a thread of its own, for it knows no time limit."""
    answers: queue.SimpleQueue[list[tuple[Any, ...]] | Exception] = queue.SimpleQueue()

    def resolve() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name can be written so
            answers.put(error)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        answer = answers.get(timeout=allowance.seconds())
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise OSError(f"no address is known for {shown(host)}") from answer
    return answer


def is_public(address: str) -> bool:
    """Whether an IP address is one machine's on the public internet; one that wraps an IPv4 address is as that is."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of another family than IP
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip.sixtofour
        if wrapped is None and ip not in _UNICAST:
            return False
        ip = wrapped or ip
    return ip.is_global and not ip.is_multicast and not any(ip in block for block in _NOBODYS)


def _connected(addresses: list[tuple[Any, ...]], allowance: _Allowance) -> socket.socket:
    """Connected to the first address that answers; each gets its share of the time that is left."""
    failure: OSError = OSError("no address")
    for tried, (family, kind, protocol, _, address) in enumerate(addresses):
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # a family that this machine does not speak
            failure = error
            continue
        try:
            sock.settimeout(allowance.seconds() / (len(addresses) - tried))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


class _TooMuch(Exception):
    """More bytes than a fetch may take."""


class _Allowance:
    """The seconds and bytes that are left of a fetch, all of its connections together."""

    def __init__(self, deadline: float, size: int) -> None:
        self._deadline = deadline
        self._bytes = size

    def seconds(self) -> float:
        """Until the deadline, or TimeoutError."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def take(self, size: int) -> None:
        """So many bytes have come."""
        self._bytes -= size
        if self._bytes < 0:
            raise _TooMuch


class _Wire:
    """What http.client asks of a socket; a socket's own timeout would begin anew with every byte that drips in."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._sock = sock
        self._allowance = allowance

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._allowance.seconds())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._allowance))

    def close(self) -> None:
        """http.client closes before it reads the body; the socket's owner closes it."""


class _Reader(io.RawIOBase):
    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._sock = sock
        self._allowance = allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._allowance.seconds())
        size = self._sock.recv_into(buffer)
        self._allowance.take(size)
        return size


def _file_content(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        _check_regular(path.stat(), name)  # before it is opened, for that alone does something to some devices
        with open(path, "rb", opener=_open_now) as file:
            _check_regular(os.fstat(file.fileno()), name)  # another may have come into its place
            return file.read(max_bytes + 1) or b""  # None of a file of the kernel's that has nothing to say
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name}: cannot be read: {_line(getattr(error, 'strerror', None) or error)}") from error


def _open_now(path: str, flags: int) -> int:
    """A descriptor; a pipe that nobody writes to is not waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(found: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{name}: a directory, not a picture")
    if not stat.S_ISREG(found.st_mode):  # a pipe or device may block or never end
        raise ImageError(f"{name}: not a regular file")


def _decoded(
    content: bytes, name: str, max_bytes: int, max_pixels: int, truncated: Callable[[str], object] | None
) -> Image.Image:
    if not content:
        raise ImageError(f"{name}: empty")
    if len(content) > max_bytes:
        raise ImageError(f"{name}: more than {max_bytes} bytes")
    try:
        content, orientation = bare(content)
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from None
    ends = not content.startswith(_JPEG) or content.endswith(_JPEG_END)
    if not ends and truncated is not None:
        content += _JPEG_END  # what is missing before it comes out grey
    with _opened(content, name, max_pixels) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise ImageError(f"{name}: {width} x {height} pixels are more than {max_pixels}")
        if max(width, height) > MAX_SIDE:
            raise ImageError(f"{name}: {width} x {height} pixels, a side of more than {MAX_SIDE}")
        deep = any("16" in str(tile.args) for tile in picture.tile)
        try:
            picture.load()
            key = picture.info.get("transparency")
            if deep and isinstance(key, tuple):  # Pillow has kept the upper 8 of the 16 bits
                picture.info["transparency"] = tuple(value >> 8 for value in key)
            if picture.format == "AVIF":  # from how its container turns it, for its own metadata are off
                orientation = tiff_orientation(picture.info.get("exif", b""))
            whole: Image.Image = _of_tiff(picture, name) if picture.format == "TIFF" else picture
            whole = _rgb(whole.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else whole)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{name}: damaged: {_line(error)}") from error
    if not ends and truncated is not None:
        truncated(f"{name}: its end is missing; what it held is grey")
    return whole


def _opened(content: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """The picture with its size and mode known, and no pixel decoded."""
    try:
        with _quiet():
            if _is_heic(content):
                return _heif(name)(io.BytesIO(content))
            _silence_libtiff()
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.format == "TIFF":
                picture.getexif()  # asked for once more where warnings are no longer held back
            return picture
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in {', '.join(FORMATS)} or HEIC format") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))} pixels") from None
    except ImageError:
        raise
    except Exception as error:  # a decoder fed with damage raises almost anything
        raise ImageError(f"{name}: damaged: {_line(error)}") from error


def _is_heic(content: bytes) -> bool:
    """Whether a file of boxes says in its first one that it holds pictures of HEVC, and not of AV1."""
    found = _brands(content)
    return content[4:8] == b"ftyp" and bool(found & _HEIC) and not found & _AVIF


def _brands(content: bytes) -> set[bytes]:
    """Of a file of boxes, the kinds of pictures or films that its first box names."""
    brands = content[8 : min(int.from_bytes(content[:4]), 256)]
    return {brands[at : at + 4] for at in range(0, len(brands), 4)}


def _heif(name: str) -> type[ImageFile.ImageFile]:
    """What pillow-heif has for Pillow. It turns pictures itself."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            f"{name}: a HEIC picture, for which pillow-heif is needed: `python -m pip install pillow-heif` installs it"
        ) from None
    return pillow_heif.HeifImageFile


@cache
def _silence_libtiff() -> None:
    """It prints to stderr what it finds wrong, beside telling Pillow, which has no switch for that. Where Pillow hides
    its own libtiff, as on Windows, it goes on to print."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def _of_tiff(picture: ImageFile.ImageFile, name: str) -> Image.Image:
    """Grey of more than 8 bits as 8, which Pillow would cut off; what has no certain black and white is refused."""
    tags = cast(Any, picture).tag_v2
    if picture.mode in ("I", "F", "LAB"):
        held = {"I": "integers that may be negative", "F": "floating-point numbers", "LAB": "CIE L*a*b* colours"}
        raise ImageError(f"{name}: a TIFF of {held[picture.mode]}; save it as RGB or grey of 8 or 16 bits")
    if picture.mode == "La":
        return picture.convert("LA")
    if not picture.mode.startswith("I;16"):
        return picture
    bits = tags.get(_BITS, (16,))[0]
    grey = np.asarray(picture).astype(np.uint16) >> (bits - 8)
    return Image.fromarray((255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey).astype(np.uint8))


def _rgb(picture: Image.Image) -> Image.Image:
    """8 bits of red, green and blue, on white where it is transparent."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion cuts everything above 255 to white
        grey, key = np.asarray(picture), picture.info.get("transparency")
        picture = Image.fromarray((grey >> 8).astype(np.uint8))
        if key is not None:
            picture.putalpha(Image.fromarray((grey != key) * np.uint8(255)))
    picture = _on_white(picture) if picture.has_transparency_data else picture.convert("RGB")
    picture.info.clear()  # an orientation left behind would turn it again
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """In strips, for whole layers would take the memory of the picture three times more."""
    whole = Image.new("RGB", picture.size)
    rows = max(1, STRIP // picture.width)
    for top in range(0, picture.height, rows):
        layer = picture.crop((0, top, picture.width, min(top + rows, picture.height))).convert("RGBA")
        strip = Image.new("RGBA", layer.size, "white")
        strip.alpha_composite(layer)
        whole.paste(strip.convert("RGB"), (0, top))
    return whole


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings about odd metadata; the filters belong to the whole process, hence the lock."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shown(source: object) -> str:
    """A file's or URL's name as a message may hold it: nothing that a terminal obeys, one line, not endless.

    Blanks of any width stay, and what joins two letters or emoji.
    """
    name = "".join(letter if _is_shown(letter) else "\N{REPLACEMENT CHARACTER}" for letter in str(source))
    return name if len(name) <= 300 else f"{name[:300]}..."


def _is_shown(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def _line(error: object) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__)
