"""A picture's file without what its pixels do not need.

What a decoder does with metadata is where small files become expensive: EXIF entries that each hold the whole file once
more, comments joined in quadratic time, a JPEG whose scans pass over all its pixels a thousand times. So metadata,
later frames and later pictures never reach the decoder, and what remains is counted before any of it is decoded. Of
the metadata only the orientation is read, here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

MAX_PARTS = 2**16
"""The most segments, chunks or blocks of a file; the largest photographs have some thousands."""
MAX_SCANS = 64
"""The most scans of a JPEG, each of which may pass over all pixels; progressive ones have about ten."""
MAX_RLE_PIXELS = 2**22
"""The most pixels of a compressed BMP: Pillow unpacks them one by one, in Python."""

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # neither a stuffed byte, nor a restart, nor filling
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_OF_PNG = b"XML:com.adobe.xmp\0\0"  # the second null: not compressed


def bare(content: bytes) -> tuple[bytes, int]:
    """The file with what its pixels need, and the orientation that its metadata say, 1 where they say none.

    Content of another format than JPEG, PNG, WEBP, GIF and BMP comes back as it is.

    Raises:
        ValueError: it has more parts than any photograph, or would take too long to decode.
    """
    for magic, trim in _FORMATS:
        if magic.match(content):
            return trim(content)
    return content, 1


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8, of EXIF data or else of XMP; 1 where neither says it, or damaged ones.

    EXIF data are a TIFF file: its byte order, the place of its first directory, and there the number of entries and 12
    bytes for each: tag, type, count, value.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        (at,) = struct.unpack_from(f"{order}L", exif, 4) if order else (len(exif),)
        (count,) = struct.unpack_from(f"{order}H", exif, at) if order else (0,)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION and kind in (3, 4):  # SHORT, LONG
                (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'L'}", exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends before what it announces
        pass
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _counted() -> Iterator[None]:
    """So many parts may be looked at."""
    for _ in range(MAX_PARTS):
        yield
    raise ValueError(f"more than {MAX_PARTS} parts, as no photograph has")


def _jpeg(content: bytes) -> tuple[bytes, int]:
    """Up to the end of the first picture, without application segments (but JFIF's and Adobe's, which say what the
    numbers mean) and comments."""
    kept, exif, xmp = [content[:2]], bytearray(), b""
    at, scans = 2, 0
    for _ in _counted():
        found = _JPEG_MARKER.search(content, at)
        if scans:
            kept.append(content[at : found.start() if found else len(content)])
        if found is None:
            break
        code, start = found[1][0], found.end()
        at = start if code in (0x01, 0xD8, 0xD9) else start + max(2, int.from_bytes(content[start : start + 2]))
        segment = content[start + 2 : at]
        if code == 0xE1 and segment.startswith(b"Exif\0\0"):
            exif += segment[6:] if exif else segment
        elif code == 0xE1 and segment.startswith(_XMP_OF_JPEG):
            xmp = segment
        elif code not in (*range(0xE1, 0xEE), 0xEF, 0xFE):
            kept.append(content[found.start() : at])
        if code == 0xD9:
            break
        scans += code == 0xDA
        if scans > MAX_SCANS:
            raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")
    return b"".join(kept), orientation(bytes(exif), xmp)


def _png(content: bytes) -> tuple[bytes, int]:
    """Header, palette, transparency, pixels."""
    kept, exif, xmp = [content[:8]], b"", b""
    at = 8
    for _ in _counted():
        length = int.from_bytes(content[at : at + 4])
        name, start, end = content[at + 4 : at + 8], at + 8, at + 12 + length
        if name == b"eXIf":
            exif = content[start : end - 4]
        elif name == b"iTXt" and content.startswith(_XMP_OF_PNG, start):
            xmp = content[start : end - 4]
        elif name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") or len(name) < 4:
            kept.append(content[at:end])
        at = end
        if name == b"IEND" or at >= len(content):
            break
    return b"".join(kept), orientation(exif, xmp)


def _webp(content: bytes) -> tuple[bytes, int]:
    """As it is: libwebp passes over what it does not need."""
    exif, xmp = b"", b""
    at = 12
    for _ in _counted():
        if at >= len(content):
            break
        name, length = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if name == b"EXIF":
            exif = content[at + 8 : at + 8 + length]
        elif name == b"XMP ":
            xmp = content[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return content, orientation(exif, xmp)


def _gif(content: bytes) -> tuple[bytes, int]:
    """Header, colours, the last control block before the first frame, and all from that frame on, which is not read
    further than the frame."""
    flags = content[10] if len(content) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    kept, control = content[:at], b""
    parts = _counted()
    while at < len(content) and content[at] not in b",;":
        next(parts)
        if content[at] != ord("!"):
            at += 1
            continue
        start = at
        at += 2
        while at < len(content) and content[at]:
            next(parts)
            at += 1 + content[at]
        at += 1
        if content.startswith(b"!\xf9\x04", start) and at < len(content):
            # without the order of how to clear the frame away, for which Pillow would make another picture of its size
            control = content[start : start + 3] + bytes([content[start + 3] & 0xE3]) + content[start + 4 : start + 8]
    return kept + control + content[at:], 1


def _bmp(content: bytes) -> tuple[bytes, int]:
    """As it is, unless it is compressed and large."""
    if len(content) >= 34:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
        most = 2 * MAX_RLE_PIXELS
        if compression in (1, 2) and (abs(width * height) > MAX_RLE_PIXELS or len(content) > most):
            raise ValueError(f"a compressed BMP of more than {MAX_RLE_PIXELS} pixels or {most} bytes")
    return content, 1


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], tuple[bytes, int]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
)
