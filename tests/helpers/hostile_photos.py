"""Files that only look like photographs, or are expensive to decode: bombs, false sizes, fragments, random damage."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from collections.abc import Callable

from PIL import Image

from tests.helpers.photo_server import chunk, encoded, png, quarters

MIB = 2**20


def exif(entries: int, size: int, orientation: int | None = None) -> bytes:
    """EXIF data whose entries all hold the same `size` bytes; the tags are unknown ones."""
    tags = [struct.pack(">HHLL", 1000 + tag, 7, size, 0) for tag in range(entries)]
    if orientation is not None:
        tags.insert(0, struct.pack(">HHLHH", 0x0112, 3, 1, orientation, 0))
    head = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(tags))
    return head + b"".join(tags) + bytes(4) + bytes(max(0, size - 12 * entries))


def zeros(size: int) -> bytes:
    """So many zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(min(MIB, size - at))) for at in range(0, size, MIB)) + packer.flush()


def photo(kind: str, side: int = 24, **options: object) -> bytes:
    return encoded(quarters().resize((side, side)), kind, **options)


# JPEG ----------------------------------------------------------------------------------------------------------------


def segment(code: int, content: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*parts: bytes, **options: object) -> bytes:
    """A JPEG with more segments, behind JFIF's own."""
    whole = photo("JPEG", **options)
    place = 4 + int.from_bytes(whole[4:6])
    return whole[:place] + b"".join(parts) + whole[place:]


def jpeg_exif_bomb() -> bytes:
    """Unrolled, its entries would take 4 GB: each is the whole of the data."""
    data = exif(4000, MIB)[6:]
    return jpeg_with(*(segment(0xE1, b"Exif\0\0" + data[at : at + 65000]) for at in range(0, len(data), 65000)))


def jpeg_scans(side: int = 512, times: int = 500) -> bytes:
    """Progressive, its last scan over and over: a hundred bytes that cost a pass over all pixels each."""
    whole = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + scan * times + whole[-2:]


def jpeg_lying(width: int, height: int) -> bytes:
    whole = bytearray(photo("JPEG"))
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


# PNG -----------------------------------------------------------------------------------------------------------------


def png_with(*parts: bytes) -> bytes:
    whole = photo("PNG")
    return whole[:33] + b"".join(parts) + whole[33:]


def png_text(size: int) -> bytes:
    return chunk(b"zTXt", b"comment\0\0" + zeros(size))


# GIF, BMP, WEBP ------------------------------------------------------------------------------------------------------

GIF_HEAD = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
GIF_FRAME = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"


def gif(*parts: bytes) -> bytes:
    return GIF_HEAD + b"".join(parts) + GIF_FRAME + b";"


def bmp_packed(width: int, height: int, body: bytes) -> bytes:
    """A BMP of run lengths."""
    start = 54 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + bytes(1024) + body


def webp_animated() -> bytearray:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("blue", "red")]
    return bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))


def webp_canvas() -> bytes:
    whole = webp_animated()
    whole[24:30] = (2**24 - 1).to_bytes(3, "little") * 2
    return bytes(whole)


def webp_frames(count: int) -> bytes:
    whole = webp_animated()
    frame = whole[whole.rindex(b"ANMF") :]
    body = whole[8:] + frame * count
    return b"RIFF" + struct.pack("<I", len(body)) + bytes(body)


# TIFF ----------------------------------------------------------------------------------------------------------------


def tiff(changes: dict[int, tuple[int, int, bytes]] | None = None, data: bytes = bytes(192), more: int = 0) -> bytes:
    """8 x 8 grey pixels, which begin at 8; type, count and 4 bytes of each changed tag, and so many unknown tags."""
    tags = {256: shorts(8), 257: shorts(8), 258: shorts(8), 259: shorts(1), 262: shorts(1), 273: longs(8)}
    tags |= {277: shorts(1), 278: longs(2**32 - 1), 279: longs(64)}
    tags |= changes or {}
    tags |= {40_000 + n: (7, len(data), struct.pack("<L", 8)) for n in range(more)}
    entries = [struct.pack("<HHL", tag, kind, count) + value for tag, (kind, count, value) in sorted(tags.items())]
    at = 8 + len(data)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<L", at) + data + directory


def shorts(value: int) -> tuple[int, int, bytes]:
    return 3, 1, struct.pack("<HH", value, 0)


def longs(value: int, count: int = 1) -> tuple[int, int, bytes]:
    return 4, count, struct.pack("<L", value)


def tiff_strips(count: int, size: int) -> bytes:
    """So many strips of one row, each of which is the same `size` compressed bytes."""
    rows = struct.pack("<L", 8 + 8 * count) * count, struct.pack("<L", size) * count
    changes = {256: longs(8), 257: longs(count), 259: shorts(8), 278: longs(1)}
    changes |= {273: longs(8, count), 279: longs(8 + 4 * count, count)}
    return tiff(changes, b"".join(rows) + bytes(size))


# AVIF ----------------------------------------------------------------------------------------------------------------


def avif_lying(width: int, height: int) -> bytes:
    whole = bytearray(photo("AVIF"))
    place = whole.index(b"ispe") + 8
    whole[place : place + 8] = struct.pack(">LL", width, height)
    return bytes(whole)


def avif_exif_bomb() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its extractor unrolls it itself
        return photo("AVIF", exif=exif(4000, MIB))


def cut(kind: str, share: float, **options: object) -> bytes:
    whole = photo(kind, **options)
    return whole[: int(len(whole) * share)]


# Each takes a fraction of a second to refuse or decode.
QUICK: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"a man on a horse\n" * 99,
    "page": lambda: b"<!DOCTYPE html><title>404</title>",
    "vector": lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) system\n",
    "pickle": lambda: b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
    "jpeg cut in its pixels": lambda: cut("JPEG", 0.8),
    "jpeg of 65535 x 65535": lambda: jpeg_lying(65535, 65535),
    "jpeg exif bomb": jpeg_exif_bomb,
    "jpeg comments": lambda: jpeg_with(segment(0xFE, b"") * MIB),
    "jpeg filled": lambda: jpeg_with(b"\xff" * 4 * MIB),
    "jpeg scans": jpeg_scans,
    "png cut in its pixels": lambda: cut("PNG", 0.7),
    "png of 2 ** 31 x 1": lambda: png(2**31 - 1, 1, 1, 0),
    "png of 65536 x 9": lambda: png(65536, 9, 8, 2),
    "png of more pixels than declared": lambda: png(9, 9, 8, 2, bytes(64 * MIB)),
    "png palette without colours": lambda: png(9, 9, 8, 3, bytes(90)),
    "png text bomb": lambda: png_with(png_text(64 * MIB)),
    "png text bombs": lambda: png_with(png_text(MIB) * 200),
    "png profile bomb": lambda: png_with(chunk(b"iCCP", b"a\0\0" + zeros(64 * MIB))),
    "png exif bomb": lambda: png_with(chunk(b"eXIf", exif(4000, MIB))),
    "png chunks": lambda: png_with(chunk(b"abCd", b"") * 400_000),
    "gif of 65535 x 65535": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + GIF_FRAME,
    "gif frame beyond its screen": lambda: gif(b"," + b"\xff" * 8 + b"\0\2\2\x44\1\0"),
    "gif to be cleared beyond its screen": lambda: gif(b"!\xf9\4\x08\0\0\0\0," + b"\xff\x2f" * 4 + b"\0\2\2\x44\1\0"),
    "gif of 100,000 frames": lambda: gif(GIF_FRAME * 100_000),
    "gif comments": lambda: gif(b"!\xfe\1a\0" * 400_000),
    "gif comment": lambda: gif(b"!\xfe" + (b"\xff" + b"a" * 255) * 80_000 + b"\0"),
    "gif extensions": lambda: gif(b"!\1\0" * MIB),
    "gif rubbish": lambda: gif(bytes(MIB)),
    "bmp of 2 ** 31 x 2 ** 31": lambda: photo("BMP")[:18] + b"\xff\xff\xff\x7f" * 2 + photo("BMP")[26:],
    "bmp runs": lambda: bmp_packed(8191, 8191, b"\1\0" * MIB),
    "bmp empty lines": lambda: bmp_packed(8191, 8191, b"\1\0\0\0" * 8191),
    "tiff of 2 ** 32 x 2 ** 32": lambda: tiff({256: longs(2**32 - 1), 257: longs(2**32 - 1)}),
    "tiff of 65535 x 65535": lambda: tiff({256: longs(65535), 257: longs(65535)}),
    "tiff of 25,000 tags that hold 16 MiB each": lambda: tiff(data=bytes(16 * MIB), more=25_000),
    "tiff directory without end": lambda: b"II*\0" + struct.pack("<LH", 8, 65535) + bytes(12 * 65535) + b"\x08\0\0\0",
    "tiff directory of itself": lambda: tiff()[:-4] + tiff()[4:8],
    "tiff strips of the same 32 MiB": lambda: tiff_strips(65535, 32 * MIB),
    "tiff strips without sizes": lambda: tiff_strips(65535, 32 * MIB).replace(
        struct.pack("<HH", 279, 4), b"\0\xff\4\0"
    ),
    "tiff strips of 2 ** 32 bytes": lambda: tiff({259: shorts(8), 279: longs(2**32 - 1)}),
    "tiff of a million strips": lambda: tiff({257: longs(65535), 273: longs(8, MIB)}, bytes(4 * MIB)),
    "tiff sizes of another type": lambda: tiff({279: (16, 1, struct.pack("<L", 8)), 259: shorts(5)}),
    "tiff tile of 2 ** 31 x 2 ** 31": lambda: tiff(
        {322: longs(2**31), 323: longs(2**31), 324: longs(8), 325: longs(64), 259: shorts(5)}
    ),
    "tiff of 65535 samples": lambda: tiff({277: shorts(65535)}),
    "tiff of jpeg scans": lambda: tiff({259: shorts(7), 279: longs(MIB)}, b"\xff\xd8" + b"\xff\xda\0\2" * MIB),
    "bigtiff": lambda: b"II+\0\x08\0\0\0\x10" + bytes(60),
    "avif cut": lambda: cut("AVIF", 0.7),
    "avif of 65535 x 65535": lambda: avif_lying(65535, 65535),
    "avif exif bomb": avif_exif_bomb,
    "avif boxes": lambda: photo("AVIF") + b"\0\0\0\x08free" * 100_000,
    "film": lambda: b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(999),
    "webp cut": lambda: cut("WEBP", 0.5),
    "webp of 2 ** 24 x 2 ** 24": webp_canvas,
    "webp of 100,000 frames": lambda: webp_frames(100_000),
    "webp exif bomb": lambda: photo("WEBP", exif=exif(4000, MIB)),
}

# Photographs within the limits that take a decoder longest, and bombs of the same size.
SLOW: dict[str, Callable[[], bytes]] = {
    "png of 67 million transparent ones": lambda: png_zeros(8191, 8192, 8, 6, 4),
    "png of 67 million of 16 bits": lambda: png_zeros(8191, 8192, 16, 6, 8),
    "webp of 67 million transparent ones": lambda: encoded(Image.new("RGBA", (8191, 8191)), "WEBP", lossless=True),
    "gif of 67 million pixels": lambda: encoded(Image.new("P", (8191, 8191)), "GIF"),
    "bmp of 4 million in empty lines": lambda: bmp_packed(2048, 2048, b"\1\0\0\0" * 2048),
    "tiff of 67 million in LZW": lambda: encoded(Image.new("RGBA", (8191, 8191)), "TIFF", compression="tiff_lzw"),
    "tiff of 65535 strips": lambda: tiff(
        {256: longs(1024), 257: longs(65535), 278: longs(1), 273: longs(8, 65535), 279: longs(8, 65535)},
        struct.pack("<L", 8) * 65535,
    ),
    "avif of 67 million pixels": lambda: encoded(Image.new("RGB", (8191, 8191)), "AVIF", speed=10),
    "jpeg of 67 million in 60 scans": lambda: jpeg_scans(8191, 50),
    "jpeg of 67 million in 1,000 scans": lambda: jpeg_scans(8191, 990),
    "64 MiB of comments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * (16 * MIB - 1),
    "64 MiB of chunks": lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"abCd", b"") * (5 * MIB),
    "a byte more than 64 MiB": lambda: bytes(64 * MIB + 1),
}


def png_zeros(width: int, height: int, depth: int, colour: int, bytes_each: int) -> bytes:
    """Black, by megabytes of zeros in few bytes."""
    whole = png(width, height, depth, colour)
    place = whole.index(b"IDAT") - 4
    return whole[:place] + chunk(b"IDAT", zeros(height * (1 + width * bytes_each))) + chunk(b"IEND", b"")


SOUND: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: photo("JPEG", exif=exif(1, 60, 6)),
    "jpeg progressive": lambda: photo("JPEG", progressive=True, comment=b"a comment"),
    "jpeg cmyk": lambda: encoded(quarters().convert("CMYK"), "JPEG"),
    "png": lambda: photo("PNG", exif=exif(1, 60, 3)),
    "png 16": lambda: png(5, 5, 16, 2, bytes(155)),
    "webp animated": lambda: bytes(webp_animated()),
    "gif": lambda: photo("GIF", comment=b"a comment"),
    "gif animated": lambda: encoded(
        quarters(), "GIF", save_all=True, append_images=[Image.new("RGB", (12, 8), "red")], duration=9
    ),
    "bmp": lambda: photo("BMP"),
    "tiff": lambda: photo("TIFF"),
    "tiff turned": lambda: photo("TIFF", exif=turned(6)),
    "tiff deflate": lambda: photo("TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": lambda: photo("TIFF", compression="jpeg"),
    "tiff fax": lambda: encoded(quarters().convert("1"), "TIFF", compression="group4"),
    "tiff of two pages": lambda: encoded(
        quarters(), "TIFF", save_all=True, append_images=[Image.new("RGB", (12, 8), "red")]
    ),
    "avif turned": lambda: photo("AVIF", exif=turned(6)),
    "avif alpha": lambda: encoded(quarters().convert("RGBA"), "AVIF"),
    "bmp packed": lambda: bmp_packed(24, 24, b"\x18\5\0\0" * 24 + b"\0\1"),
}
"""Sound photographs, to be damaged."""


def turned(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or cut off; numbers in the header made extreme."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(changed) if draw.random() < 0.5 else min(60, len(changed)))
        match draw.randrange(6):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                changed[place : place + 4] = draw.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
            case 3:
                del changed[place : place + draw.randrange(1, 40)]
            case 4:
                changed[place:place] = changed[place : place + draw.randrange(1, 40)]
            case 5:
                del changed[max(1, place) :]
        if not changed:
            break
    return bytes(changed)


def made(kind: str) -> bytes:
    """The file of a name in QUICK or SLOW."""
    return (QUICK | SLOW)[kind]()
