"""A picture's file reduced to the data that its pixels need.

Small files become expensive in the decoding of metadata: EXIF entries that each contain the complete file, comments
that are joined in quadratic time, a JPEG with thousands of scans over all pixels. So metadata, later frames and later
pictures do not reach the decoder, and the remaining parts are counted before decoding. Of the metadata only the
orientation is read.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator

from torch_caption.errors import ImageError

MAX_PARTS = 2**16
"""Maximum number of segments, chunks or blocks of a file; the largest photographs have some thousands."""
MAX_SCANS = 64
"""Maximum number of scans of a JPEG, each over all pixels; progressive ones have about ten."""
MAX_RLE_PIXELS = 2**22
"""Maximum number of pixels of a compressed BMP: Pillow decompresses them one by one, in Python."""

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_TIFF_TAGS = {
    # width, length, bits, compression, photometric interpretation, bit order, strips, samples, rows of a strip
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279),
    # planes, options of fax, predictor, colours, tiles, inks, extra samples, format of samples, JPEG tables, YCbCr
    *(284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532),
}
_STRIPS, _TILES, _STRIP_SIZES, _TILE_SIZES, _TILE_SHAPE, _COMPRESSION = 273, 324, 279, 325, (322, 323), 259
_TIFF_PACKINGS = {1: "none", 2: "CCITT", 3: "fax 3", 4: "fax 4", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits"}
_TIFF_PACKINGS[32946] = "deflate"
_INTEGERS = {1: "B", 3: "H", 4: "L"}
_SAMPLES = 277
MAX_SAMPLES = 6
"""Maximum number of samples of a pixel of a TIFF, including extra samples."""
MAX_VALUES = 2**16
"""Maximum number of values of an entry of a TIFF, such as strips; a strip has at least a row."""
MAX_TILE = 2**24
"""Maximum number of pixels of a tile of a TIFF, which is decoded completely even for a small picture."""
_METADATA_ITEMS = re.compile(rb"Exif|mime|cdsc")  # cdsc: the link from a metadata item to its picture
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")  # not a stuffed byte, restart or fill byte
_XMP_OF_JPEG = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_OF_PNG = b"XML:com.adobe.xmp\0\0"  # the second null: not compressed


def bare(content: bytes) -> tuple[bytes, int]:
    """The file with the data of its pixels only, and the orientation in its metadata, by default 1.

    Content of another format than JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF and HEIC is returned unchanged.

    Raises:
        ImageError: it has too many parts, would take too long to decode, or is an unsupported kind of TIFF.
    """
    for magic, trim in _FORMATS:
        if magic.match(content):
            return trim(content)
    return content, 1


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """1 to 8, from EXIF data, else from XMP; 1 without both or for damaged ones.

    EXIF data is a TIFF file: byte order, the offset of its first directory, and there the number of entries and 12
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
    except struct.error:  # it is truncated
        pass
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


def _counted() -> Iterator[None]:
    """Count parts up to the limit."""
    for _ in range(MAX_PARTS):
        yield
    raise ImageError(f"more than {MAX_PARTS} parts")


def _jpeg(content: bytes) -> tuple[bytes, int]:
    """Up to the end of the first picture, without application segments (except JFIF's and Adobe's, which define the
    colour space) and comments."""
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
            raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
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
    """Unchanged: libwebp skips unneeded chunks."""
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
    """Header, colours, the last control block before the first frame, and everything from that frame, after which the
    decoder stops."""
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
            # without the disposal method, for which Pillow would allocate another picture
            control = content[start : start + 3] + bytes([content[start + 3] & 0xE3]) + content[start + 4 : start + 8]
    return kept + control + content[at:], 1


def _bmp(content: bytes) -> tuple[bytes, int]:
    """Unchanged, unless it is compressed and large."""
    if len(content) >= 34:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", content, 18)
        most = 2 * MAX_RLE_PIXELS
        if compression in (1, 2) and (abs(width * height) > MAX_RLE_PIXELS or len(content) > most):
            raise ImageError(f"a compressed BMP of more than {MAX_RLE_PIXELS} pixels or {most} bytes")
    return content, 1


def _tiff(content: bytes) -> tuple[bytes, int]:
    """With a new directory at the end, which has only the entries for the pixels."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None:
        raise ImageError("an unsupported kind of TIFF, such as BigTIFF; save it as plain TIFF")
    try:
        (at,) = struct.unpack_from(f"{order}L", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, at)
        kept: dict[int, bytes] = {}
        for offset in range(at + 2, at + 2 + 12 * count, 12):
            tag, _, size = struct.unpack_from(f"{order}HHL", content, offset)
            if tag in _TIFF_TAGS and tag not in kept:
                if size > MAX_VALUES:
                    raise ImageError(f"a TIFF of more than {MAX_VALUES} strips or tiles")
                kept[tag] = content[offset : offset + 12]
        _check_tiff(content, order, kept)
        last = struct.unpack_from(f"{order}L", content, at + 2 + 12 * count) == (0,)
    except struct.error:
        raise ImageError("damaged: its directory is cut off") from None
    turn = orientation(content)
    if last and len(kept) == count:
        return content, turn
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept.values()) + bytes(4)
    return content[:4] + struct.pack(f"{order}L", len(content)) + content[8:] + directory, turn


def _check_tiff(content: bytes, order: str, entries: dict[int, bytes]) -> None:
    """Raise ImageError if strips or tiles exceed the file or the picture."""

    def values(tag: int) -> tuple[int, ...]:
        if tag not in entries:
            return ()
        _, kind, size, offset = struct.unpack(f"{order}HHLL", entries[tag])
        if kind not in _INTEGERS:
            raise ImageError(f"damaged: the values of the tag {tag} are of the type {kind}")
        form = f"{order}{size}{_INTEGERS[kind]}"
        inside = struct.calcsize(form) <= 4
        return struct.unpack_from(form, entries[tag] if inside else content, 8 if inside else offset)

    if max(values(_SAMPLES), default=1) > MAX_SAMPLES:
        raise ImageError(f"a TIFF of more than {MAX_SAMPLES} numbers a pixel")
    packing = _TIFF_PACKINGS.get(code := next(iter(values(_COMPRESSION)), 1))
    if packing is None:
        raise ImageError(f"a TIFF of the unsupported compression {code}; save it with LZW or deflate")
    sizes = values(_STRIP_SIZES) + values(_TILE_SIZES)
    parts = len(values(_STRIPS)) + len(values(_TILES))
    if packing != "none" and (sum(sizes) > len(content) or len(sizes) < parts):
        raise ImageError("damaged: a TIFF whose parts exceed the file or have no sizes")
    if math.prod(max(values(tag), default=1) for tag in _TILE_SHAPE) > MAX_TILE:
        raise ImageError(f"a TIFF with a tile of more than {MAX_TILE} pixels")
    if packing == "JPEG" and content.count(b"\xff\xda") > MAX_SCANS + 4 * parts:
        raise ImageError(f"a TIFF with a JPEG of more than {MAX_SCANS} scans")


def _boxes(content: bytes) -> tuple[bytes, int]:
    """AVIF and HEIC without the links to their metadata; their rotation is stored elsewhere."""
    kept, at = [], 0
    for _ in _counted():
        if at >= len(content):
            break
        size, head = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        size = int.from_bytes(content[at + 8 : at + 16]) if size == 1 else size or len(content)
        box = content[at : at + max(8, size)]
        kept.append(box if head == b"mdat" else _METADATA_ITEMS.sub(b"free", box))
        at += max(8, size)
    return b"".join(kept), 1


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], tuple[bytes, int]]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])"), _tiff),
    (re.compile(rb"....ftyp", re.DOTALL), _boxes),
)
