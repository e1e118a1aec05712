from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.hostile_photos import QUICK, damaged, made, shorts, tiff
from tests.helpers.photo_server import BLUE, GREEN, PHOTO, RED, WHITE, encoded, png, quarters
from torch_caption.errors import ImageError
from torch_caption.io import images
from torch_caption.io.images import load_image


def rows_of_16_bits(*values: int) -> bytes:
    """One row of pixels with its filter byte."""
    return b"\0" + struct.pack(f">{len(values)}H", *values)


# Conversion


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, BLUE)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def palette(transparent: bool) -> bytes:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *GREEN])
    picture.putpixel((1, 0), 1)
    return encoded(picture, "PNG", **({"transparency": 1} if transparent else {}))


def grey_alpha() -> Image.Image:
    return Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[255, 0]], np.uint8))])


def grey_16() -> Image.Image:
    return Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))


def rgba() -> Image.Image:
    return Image.fromarray(np.array([[(*RED, 255), (*RED, 0), (0, 0, 0, 128)]], np.uint8))


KINDS: dict[str, tuple[Callable[[], bytes], list[tuple[int, int, int]], int]] = {  # bytes, the first pixels, tolerance
    "jpeg": (lambda: encoded(Image.new("RGB", (9, 9), RED), "JPEG", quality=95), [RED], 4),
    "jpeg cmyk": (lambda: encoded(Image.new("RGB", (9, 9), RED).convert("CMYK"), "JPEG", quality=95), [RED], 8),
    "png": (lambda: PHOTO, [RED], 0),
    "png palette with a transparent colour": (lambda: palette(True), [RED, WHITE], 0),
    "png with a transparent colour": (lambda: encoded(quarters(), "PNG", transparency=RED), [WHITE], 0),
    "png alpha": (lambda: encoded(rgba(), "PNG"), [RED, WHITE, (127, 127, 127)], 1),
    "png grey alpha": (lambda: encoded(grey_alpha(), "PNG"), [(100, 100, 100), WHITE], 0),
    "png grey 16": (lambda: encoded(grey_16(), "PNG"), [(0,) * 3, (100,) * 3, WHITE], 0),
    "png colour 16": (lambda: png(1, 1, 16, 2, rows_of_16_bits(51400, 7710, 5140)), [RED], 1),
    "png alpha 16": (lambda: png(2, 1, 16, 6, rows_of_16_bits(0, 0, 0, 0, 51400, 7710, 5140, 65535)), [WHITE, RED], 1),
    "png grey 16 with a transparent colour": (
        lambda: png(3, 1, 16, 0, rows_of_16_bits(1000, 1001, 25700), struct.pack(">H", 1000)),
        [WHITE, (3, 3, 3), (100, 100, 100)],
        0,
    ),
    "png colour 16 with a transparent colour": (
        lambda: png(
            2, 1, 16, 2, rows_of_16_bits(1000, 2000, 3000, 51400, 7710, 5140), struct.pack(">3H", 1000, 2000, 3000)
        ),
        [WHITE, RED],
        1,
    ),
    "webp": (lambda: encoded(quarters(), "WEBP", lossless=True), [RED], 0),
    "gif": (lambda: encoded(Image.new("RGB", (3, 3), RED), "GIF"), [RED], 0),
    "gif animation": (lambda: animation("GIF"), [RED], 0),
    "bmp": (lambda: encoded(quarters(), "BMP"), [RED], 0),
    "tiff cmyk": (lambda: encoded(Image.new("RGB", (9, 9), RED).convert("CMYK"), "TIFF"), [RED], 1),
    "tiff palette": (lambda: encoded(quarters().convert("P"), "TIFF"), [RED], 60),
    "tiff grey 16, white is 0": (
        lambda: tiff(
            {256: shorts(3), 257: shorts(1), 258: shorts(16), 262: shorts(0)}, struct.pack("<3H", 65535, 39835, 0)
        ),
        [(0,) * 3, (100,) * 3, WHITE],
        0,
    ),
    "tiff grey 12": (
        lambda: tiff({256: shorts(2), 257: shorts(1), 258: shorts(12)}, bytes([0x64, 0x0F, 0xFF])),
        [(100,) * 3, WHITE],
        0,
    ),
    "tiff of several pages": (lambda: animation("TIFF"), [RED], 0),
    "avif": (lambda: encoded(Image.new("RGB", (32, 32), RED), "AVIF", quality=95), [RED], 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_and_mode_becomes_rgb(kind):
    make, colours, tolerance = KINDS[kind]
    picture = load_image(make())
    assert picture.mode == "RGB"
    for x, colour in enumerate(colours):
        assert np.abs(np.subtract(picture.getpixel((x, 0)), colour)).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_once(kind, orientation):
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = inverse
    turned = encoded(quarters(), "PNG", exif=exif)
    stored = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))  # as a camera stores it
    exif[0x0112] = orientation
    picture = load_image(encoded(Image.fromarray(np.asarray(stored)), kind, exif=exif, quality=100))
    assert picture.size == (12, 8)
    wrong = np.abs(np.asarray(picture).astype(int) - np.asarray(quarters()))
    assert np.median(wrong) <= 2  # lossy kinds blur the edges of the quarters
    assert ImageOps.exif_transpose(picture).tobytes() == picture.tobytes()


def test_damaged_exif_data_are_ignored():
    photo = encoded(quarters(), "JPEG", quality=100, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    assert load_image(photo).size == (12, 8)


def test_a_path_a_name_and_bytes_are_read(tmp_path):
    path = tmp_path / "a photo é.PNG"
    path.write_bytes(PHOTO)
    for source in (path, str(path), PHOTO, bytearray(PHOTO)):
        assert load_image(source).tobytes() == quarters().tobytes()


# Bad files


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path | str | bytes], str]] = {
    "missing": (lambda at: at / "none.jpg", "none.jpg: no such file"),
    "directory": (lambda at: at, "a directory, not a picture"),
    "null byte": (lambda at: "a\0.jpg", "cannot be read: .*null"),
    "empty bytes": (lambda at: b"", "the picture's bytes: empty"),
    "text": (lambda at: write(at / "a.jpg", b"a man on a horse\n" * 9), "a.jpg: not a picture in JPEG, .* HEIC"),
    "format that is not allowed": (lambda at: encoded(quarters(), "PPM"), "not a picture"),
    "tiff of floats": (lambda at: encoded(Image.new("F", (3, 3)), "TIFF"), "a TIFF of floating-point numbers; save"),
    "tiff of 32 bits": (lambda at: encoded(Image.new("I", (3, 3)), "TIFF"), "a TIFF of integers that may be negative"),
    "tiff in L*a*b*": (lambda at: encoded(Image.new("LAB", (3, 3)), "TIFF"), r"a TIFF of CIE L\*a\*b\* colours"),
    "tiff in zstd": (
        lambda at: encoded(quarters(), "TIFF", compression="zstd"),
        "a TIFF of the unsupported compression 50000",
    ),
    "bigtiff": (lambda at: made("bigtiff"), "such as BigTIFF; save it as plain TIFF"),
    "truncated jpeg": (lambda at: encoded(quarters(), "JPEG")[:-40], "damaged: .*truncated"),
    "truncated png": (lambda at: PHOTO[:-30], "damaged"),
    "wrong checksum": (lambda at: PHOTO[:60] + bytes([PHOTO[60] ^ 255]) + PHOTO[61:], "damaged"),
    "huge": (lambda at: png(30_000, 30_000, 8, 2), "more than 67108864 pixels"),
    "large": (lambda at: png(9_000, 9_000, 8, 2), "9000 x 9000 pixels are more than 67108864"),
    "long": (lambda at: png(2**16, 4, 8, 2), "65536 x 4 pixels, a side of more than 65535"),
    "no pixels": (lambda at: png(0, 5, 8, 2), "damaged|not a picture"),
    "other scheme": (lambda at: "file:///etc/passwd", "only http and https"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_one_line(kind, tmp_path, recwarn):
    make, message = BAD_FILES[kind]
    source = make(tmp_path)
    with pytest.raises(ImageError, match=message) as error:
        load_image(source)
    assert "\n" not in str(error.value)
    assert not recwarn.list


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_file_replaced_by_a_pipe_after_the_check_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", PHOTO)
    checked = images._check_regular

    def exchange(found: os.stat_result, name: str) -> None:
        checked(found, name)
        path.unlink()
        os.mkfifo(path)

    monkeypatch.setattr(images, "_check_regular", exchange)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(path)


@pytest.mark.parametrize(
    ("path", "message"), [("/dev/zero", "not a regular file"), ("/proc/self/mem", "cannot be read|no such file")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
def test_files_of_the_kernel_are_refused(path, message):
    with pytest.raises(ImageError, match=f"^{path}: ({message})"):
        load_image(path)


def test_bytes_and_pixels_are_limited_before_decoding(tmp_path, monkeypatch):
    path = write(tmp_path / "a.png", PHOTO)
    load_image(path, max_bytes=len(PHOTO), max_pixels=96)

    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for source in (path, PHOTO):
        with pytest.raises(ImageError, match=f"more than {len(PHOTO) - 1} bytes"):
            load_image(source, max_bytes=len(PHOTO) - 1)
        with pytest.raises(ImageError, match="12 x 8 pixels are more than 95"):
            load_image(source, max_pixels=95)


def test_libtiff_prints_nothing(capfd):
    whole = encoded(quarters().resize((120, 80)), "TIFF", compression="tiff_adobe_deflate")
    with pytest.raises(ImageError, match="damaged"):
        load_image(whole[:40] + bytes(40) + whole[80:])
    for kind in (kind for kind in QUICK if "tiff" in kind):
        with contextlib.suppress(ImageError):
            load_image(made(kind))
    if sys.platform == "linux":
        assert capfd.readouterr().err == ""


# Truncated JPEGs


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 300])
def test_a_truncated_jpeg_is_read_where_it_is_allowed(missing, progressive):
    whole = encoded(quarters().resize((240, 160)), "JPEG", quality=95, progressive=progressive)
    with pytest.raises(ImageError, match=r"damaged: .*truncated"):
        load_image(whole[:-missing])
    warnings: list[str] = []
    picture = load_image(whole[:-missing], truncated=warnings.append)
    assert warnings == ["the picture's bytes: truncated; the missing part is grey"]
    assert picture.size == (240, 160)
    assert np.abs(np.subtract(picture.getpixel((10, 10)), RED)).max() <= 12
    warnings.clear()
    load_image(whole, truncated=warnings.append)
    assert not warnings


def test_a_truncated_jpeg_without_pixels_and_other_formats_are_refused():
    whole = encoded(quarters(), "JPEG")
    with pytest.raises(ImageError, match=r"damaged|not a picture"):
        load_image(whole[:60], truncated=lambda line: None)
    with pytest.raises(ImageError, match="damaged"):
        load_image(PHOTO[:-30], truncated=lambda line: None)


# HEIC


@pytest.fixture
def heic() -> Callable[..., bytes]:
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC is read where pillow-heif is installed")

    def make(picture: Image.Image, **options: object) -> bytes:
        file = io.BytesIO()
        pillow_heif.from_pillow(picture).save(file, quality=95, **options)
        return file.getvalue()

    return make


@pytest.mark.parametrize("orientation", [3, 6])
def test_heic_is_rotated_once(heic, orientation):
    picture = quarters().resize((120, 80), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif))))
    found = load_image(heic(picture, exif=exif.tobytes()))
    assert found.size == expected.size
    assert np.median(np.abs(np.asarray(found).astype(int) - np.asarray(expected))) <= 4


def test_heic_has_the_same_limits(heic):
    content = heic(quarters().resize((120, 80)))
    picture = load_image(content)
    assert (picture.mode, picture.size) == ("RGB", (120, 80))
    with pytest.raises(ImageError, match="120 x 80 pixels are more than 9599"):
        load_image(content, max_pixels=9599)
    draw = random.Random(0)
    for _ in range(60):
        with contextlib.suppress(ImageError):
            load_image(damaged(content, draw), max_pixels=2**20)


def test_heic_without_pillow_heif_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="a HEIC picture needs pillow-heif: `python -m pip install"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
