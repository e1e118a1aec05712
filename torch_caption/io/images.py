"""Photographs from files, bytes and http(s) URLs as upright RGB pictures of 8 bits, safe for untrusted sources.

There is no temporary file. Formats, bytes and pixels are limited; the number of pixels is read from the header before
decoding, and metadata is removed before the decoder. `http` has the rules for URLs.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from torch_caption.errors import ImageError
from torch_caption.io.exits import one_line
from torch_caption.io.http import FetchError, read_url
from torch_caption.io.strip_metadata import bare
from torch_caption.io.strip_metadata import orientation as tiff_orientation
from torch_caption.io.text import printable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # and HEIC, if pillow-heif is installed
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
}
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
MAX_SIDE = 2**16 - 1  # as in JPEG; a picture of few, very long rows takes Pillow minutes

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRIP = 2**20  # pixels that are composited at a time
_WARNINGS = threading.Lock()
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEADS = re.compile(rb"(?s)\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II\*\0|MM\0\*|....ftyp")
_BITS, _PHOTOMETRIC = 258, 262  # of a TIFF


def load_image(
    source: str | Path | bytes | Image.Image,
    *,
    allow_private: bool = False,
    timeout: float = 10.0,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    truncated: Callable[[str], object] | None = None,
) -> Image.Image:
    """A photograph as an upright RGB picture of 8 bits a channel, without metadata.

    EXIF rotation is applied, transparency becomes white, CMYK, palettes, grey and 16 bits become RGB; of an animation
    the first frame is used, of a TIFF the first page. Colour profiles are ignored.

    Args:
        source: a file, its bytes, an http(s) URL, or a Pillow image of any size. JPEG, PNG, WEBP, GIF, BMP, TIFF and
            AVIF are read, and HEIC if pillow-heif is installed.
        allow_private: also read from addresses that are not public (this machine, the local network). Do not set it
            for untrusted URLs.
        timeout: total seconds for a URL.
        max_bytes: maximum size of a file or a URL.
        max_pixels: maximum width x height, with no side above 65,535; Pillow's limit, twice
            `Image.MAX_IMAGE_PIXELS`, holds too.
        truncated: called with a warning for a truncated JPEG, whose missing part is grey; None refuses such JPEGs.

    Raises:
        ImageError: the source cannot be read or fetched, is empty, too large, in another format, or damaged.
    """
    if isinstance(source, Image.Image):
        return _rgb(ImageOps.exif_transpose(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decoded(bytes(source), "the picture's bytes", max_bytes, max_pixels, truncated)
    name = printable(source)
    if isinstance(source, str) and is_url(source):
        try:
            content = read_url(source, timeout=timeout, most=max_bytes, allow_private=allow_private)
        except FetchError as error:
            raise ImageError(f"{name}: {error}") from error
    else:
        content = _file_content(Path(source), name, max_bytes)
    return _decoded(content, name, max_bytes, max_pixels, truncated)


def is_picture(path: Path) -> bool:
    """Whether a file begins like a photograph for `load_image`, or at least has such a suffix."""
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
    """Whether `load_image` treats it as a URL, of any scheme, and not as the name of a file."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source) is not None


def _file_content(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        _check_regular(path.stat(), name)  # before opening, which has effects on some devices
        with open(path, "rb", opener=_open_now) as file:
            _check_regular(os.fstat(file.fileno()), name)  # it may have been replaced
            return file.read(max_bytes + 1) or b""  # None for an empty file of the kernel
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except ImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(
            f"{name}: cannot be read: {printable(getattr(error, 'strerror', None) or one_line(error))}"
        ) from error


def _open_now(path: str, flags: int) -> int:
    """A descriptor; does not wait for the writer of a pipe."""
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
        content += _JPEG_END  # the missing part becomes grey
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
            if picture.format == "AVIF":  # from its container, since its metadata is removed
                orientation = tiff_orientation(picture.info.get("exif", b""))
            whole: Image.Image = _of_tiff(picture, name) if picture.format == "TIFF" else picture
            whole = _rgb(whole.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else whole)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{name}: damaged: {printable(one_line(error))}") from error
    if not ends and truncated is not None:
        truncated(f"{name}: truncated; the missing part is grey")
    return whole


def _opened(content: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """The picture with size and mode, before decoding."""
    try:
        with _quiet():
            if _is_heic(content):
                return _heif(name)(io.BytesIO(content))
            _silence_libtiff()
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.format == "TIFF":
                picture.getexif()  # again, when warnings are no longer suppressed
            return picture
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture in {', '.join(FORMATS)} or HEIC format") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: more than {min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))} pixels") from None
    except ImageError:
        raise
    except Exception as error:  # a decoder can raise any error for damaged data
        raise ImageError(f"{name}: damaged: {printable(one_line(error))}") from error


def _is_heic(content: bytes) -> bool:
    """Whether the first box of a file declares HEVC pictures, not AV1."""
    found = _brands(content)
    return content[4:8] == b"ftyp" and bool(found & _HEIC) and not found & _AVIF


def _brands(content: bytes) -> set[bytes]:
    """The brands in the first box of a file of boxes."""
    brands = content[8 : min(int.from_bytes(content[:4]), 256)]
    return {brands[at : at + 4] for at in range(0, len(brands), 4)}


def _heif(name: str) -> type[ImageFile.ImageFile]:
    """pillow-heif's plugin for Pillow. It rotates pictures itself."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(f"{name}: a HEIC picture needs pillow-heif: `python -m pip install pillow-heif`") from None
    return pillow_heif.HeifImageFile


@cache
def _silence_libtiff() -> None:
    """Suppress libtiff's output to stderr, for which Pillow has no option. Not possible if Pillow hides its libtiff, as
    on Windows."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def _of_tiff(picture: ImageFile.ImageFile, name: str) -> Image.Image:
    """Grey of more than 8 bits scaled to 8, which Pillow would clip; modes without a defined range are refused."""
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
    """RGB of 8 bits, with white for transparency."""
    if picture.mode.startswith("I;16"):  # Pillow's conversion clips everything above 255 to white
        grey, key = np.asarray(picture), picture.info.get("transparency")
        picture = Image.fromarray((grey >> 8).astype(np.uint8))
        if key is not None:
            picture.putalpha(Image.fromarray((grey != key) * np.uint8(255)))
    picture = _on_white(picture) if picture.has_transparency_data else picture.convert("RGB")
    picture.info.clear()  # a remaining orientation would rotate it again
    return picture


def _on_white(picture: Image.Image) -> Image.Image:
    """In strips, since complete layers would need three times the memory of the picture."""
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
    """Suppress Pillow's warnings about metadata; the filters are global to the process, hence the lock."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
