"""`sample PHOTO|FOLDER|URL...`: photographs are captioned, and each bad one is one line."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command import refusal
from tests.helpers.hostile_photos import made as hostile
from tests.helpers.photo_server import PHOTO, Server, encoded, png, serving
from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import SMALL
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.encoders import extractor as recipes
from torch_caption.inference import photographs
from torch_caption.inference.captions import caption_images
from torch_caption.io.images import load_image
from torch_caption.training.trainer import fit


def call(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["sample", *args])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("which", ringed(["scenes_run", "photo_run"], ["scenes_run"]))
def test_captions_are_those_of_the_split(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, run = request.getfixturevalue(which)
    split = open_data(directory)["val"]
    names = [str(split.image_path(idx)) for idx in (2, 0)]
    capsys.readouterr()
    files = ["--json", str(tmp_path / "c.json"), "--gallery", str(tmp_path / "g.png")]
    status, out, err = call([*names, "--checkpoint", str(run), *files, "--device", "cpu"], capsys)
    assert (status, err) == (0, "")
    model = checkpoints.build_model(checkpoints.load(run / "best.safetensors")).eval()
    expected = [caption for (caption,) in caption_images(model, split, [2, 0]).values()]
    lines = out.splitlines()
    assert lines[0] == str(run / "best.safetensors")
    for line, name, caption in zip(lines[2:], names, expected, strict=True):
        label, log_prob, *words = line.split()
        assert label == name
        assert " ".join(words) == caption.text
        assert float(log_prob) == pytest.approx(caption.log_prob, abs=0.02)
    kept = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in kept["images"]] == names
    assert "failed" not in kept
    assert load_image(tmp_path / "g.png").width > 600


def test_a_checkpoint_without_a_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    run = fit(TrainConfig(data=str(tmp_path / "tiny"), out=tmp_path / "runs", **SMALL))
    capsys.readouterr()
    photo = str(tmp_path / "tiny" / "images" / "red_circle.png")
    for more, source in (([], run / "best.safetensors"), (["--data", str(tmp_path / "tiny")], tmp_path / "tiny")):
        message = refusal(["sample", photo, "--checkpoint", str(run), *more], capsys)
        assert f"error: {source}: has no recipe of its features" in message
        assert "--data" in message
        assert "--recover-pca" in message


RECIPES: dict[str, tuple[dict[str, Any], str]] = {
    "weights that are not found": (
        {"weights": {"name": "mine.pt", "sha256": "ab" * 32, "path": "/gone/mine.pt"}},
        "the weights of resnet18, mine.pt (SHA-256 abababababab...), are not found; name their file with --weights",
    ),
    "another width": ({"features": "vgg16_fc7", "projection": None}, "needs features of width 5, but "),
    "half a recipe": ({"transform": {"resize": 3}}, "not a recipe of features"),
    "another version of scenes": (
        {"encoder": recipes.SCENES, "recipe": 99},
        "features of scenes 99; this version has scenes 2",
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_that_cannot_be_followed_is_refused(
    kind: str, photo_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    change, message = RECIPES[kind]
    saved.manifest |= change
    checkpoints.save(tmp_path / "best.safetensors", saved)
    photo = str(directory.parent / "images" / "0.png")
    assert message in refusal(["sample", photo, "--checkpoint", str(tmp_path), "--device", "cpu"], capsys)


@pytest.mark.parametrize(
    ("flags", "name"), [(["--split", "val"], "split"), (["--images", "1"], "images"), (["--references"], "references")]
)
def test_flags_for_the_images_of_a_split_are_refused(
    flags: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        refusal(["sample", "a.png", *flags], capsys)
        == f"error: --{name} is for the images of a split, not for photographs\n"
    )


# Bad photographs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_image
    monkeypatch.setattr(photographs, "load_image", lambda source, **options: load(source, timeout=0.5, **options))


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "truncated.png": (PHOTO[:-30], "damaged: "),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"a man rides a horse\n", "not a picture in JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC format"),
    "huge.png": (png(30_000, 30_000, 1, 0, bytes(30_000 * 3_751)), "more than 67108864 pixels"),
    "directory.jpg": (None, "a folder without pictures"),
    "missing.jpg": (None, "no such file"),
}
BAD_URLS = {
    "to/302?url=file:///etc/passwd": "Redirection to url 'file:///etc/passwd' is not allowed",
    "drip": "not received within 0.5 seconds",
    "silence": "not received within 0.5 seconds",
    "giant": "more than 67,108,864 bytes",
    "endless": "more than 67,108,864 bytes",
    "page": "not a picture in JPEG",
    "nothing": "the server responds 404 Not Found",
}


def write_bad(folder: Path) -> dict[str, str]:
    """Sources, and what the message of each holds."""
    for name, (content, _) in BAD_FILES.items():
        if content is not None:
            (folder / name).write_bytes(content)
    (folder / "directory.jpg").mkdir()
    return {str(folder / name): message for name, (_, message) in BAD_FILES.items()}


@pytest.mark.usefixtures("_hasty")
def test_bad_photographs_are_one_line_each(
    scenes_run: tuple[Path, Path], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The good ones among them are captioned, and the exit status is 0."""
    directory, run = scenes_run
    good = [directory / "images" / "test_00000.png", tmp_path / "animated.gif", directory / "images" / "test_00001.png"]
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in (250, 10)]
    frames[0].save(good[1], save_all=True, append_images=frames[1:], duration=40)
    bad = write_bad(tmp_path) | {f"{server.url}/{path}": message for path, message in BAD_URLS.items()}
    sources = [str(good[0]), *bad, str(good[1]), f"{server.url}/photo", str(good[2])]
    args = ["--checkpoint", str(run), "--allow-private", "--json", str(tmp_path / "c.json")]
    status, out, err = call([*sources, *args], capsys)
    assert status == 0
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for line, (source, message) in zip(lines, bad.items(), strict=True):
        assert line.startswith(f"error: {source}: ")
        assert message in line
    assert [line.split()[0] for line in out.splitlines()[2:]] == [s for s in sources if s not in bad]
    kept = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in kept["failed"]] == [*bad]
    assert [f"error: {entry['error']}" for entry in kept["failed"]] == lines


def test_bad_photographs_alone_are_an_error(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = scenes_run
    bad = write_bad(tmp_path)
    status, out, err = call([*bad, "--checkpoint", str(run)], capsys)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == len(bad) + 1
    assert err.splitlines()[-1] == "error: none of the 6 photographs can be captioned"
    source, message = next(iter(bad.items()))
    line = refusal(["sample", source, "--checkpoint", str(run)], capsys)
    assert line.startswith(f"error: {source}: {message}")


def test_private_addresses_need_a_flag(
    scenes_run: tuple[Path, Path], server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as the target of a redirect from a public address, for which this machine stands in."""
    args = ["sample", "--checkpoint", str(scenes_run[1])]
    redirect = f"{server.url}/to/302?url=http://10.0.0.1/x.jpg"
    requests = len(server.requests)
    for url in (f"{server.url}/photo", redirect):
        assert "127.0.0.1, not a public address" in refusal([*args, url], capsys)
    assert len(server.requests) == requests
    monkeypatch.setattr("torch_caption.io.http.is_public", lambda address: address == "127.0.0.1")
    assert f"{redirect}: leads to 10.0.0.1, not a public address" in refusal([*args, redirect], capsys)
    assert main([*args, f"{server.url}/photo"]) == 0


def test_a_gallery_shows_a_photograph_from_a_url(
    scenes_run: tuple[Path, Path], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = scenes_run
    args = [f"{server.url}/photo", "--checkpoint", str(run), "--allow-private", "--gallery", str(tmp_path / "g.png")]
    assert call(args, capsys)[0] == 0
    colours = np.asarray(load_image(tmp_path / "g.png")).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - (10, 150, 60)).max(1) < 3).sum() > 1000  # the photograph's green quarter


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_file_names_of_any_characters_are_printable(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the table, in JSON, in the gallery and in errors."""
    _, run = scenes_run
    names = [
        f"{tmp_path}/{name}.png" for name in ("a\nb", "\x1b[31m", "\udcff", "é 🦊", "*", "-a", "$x$_{", "%s", "{}")
    ]
    for name in names:
        Path(name).write_bytes(PHOTO)
    files = ["--json", str(tmp_path / "c.json"), "--gallery", str(tmp_path / "g.png")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the gallery's font has no fox
        status, out, err = call([*names, f"{tmp_path}/\udcfe\n.png", "--checkpoint", str(run), *files], capsys)
    assert status == 0
    assert re.fullmatch(r"error: [^\n]*/\ufffd\ufffd\.png: no such file\n", err)
    assert len(out.splitlines()) == 2 + len(names)
    assert all(line.isprintable() for line in out.split("\n"))
    kept = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert [image["name"] for image in kept["images"]] == names
    assert load_image(tmp_path / "g.png").width > 600


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, other files, and folders with more."""
    folder = tmp_path / "holiday"
    (folder / "day 10").mkdir(parents=True)
    (folder / "day 9" / "deep").mkdir(parents=True)
    (folder / ".trash").mkdir()
    for name in ("img10.png", "img9.png", "IMG2.PNG", "no suffix", "day 10/b.png", "day 9/deep/a.png", ".trash/x.png"):
        (folder / name).write_bytes(PHOTO)
    (folder / "page.tiff").write_bytes(encoded(Image.new("RGB", (9, 9), "red"), "TIFF"))
    (folder / "small.avif").write_bytes(encoded(Image.new("RGB", (9, 9), "red"), "AVIF"))
    (folder / "notes.txt").write_text("sun", encoding="utf-8")
    (folder / "film.mp4").write_bytes(hostile("film"))
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "._img9.png").write_bytes(b"\0\5\x16\7")
    return folder


def captioned(out: str, folder: Path) -> list[str]:
    """The names in a table, from the folder on."""
    return [line.strip().split("  ")[0].removeprefix(f"{folder}{os.sep}") for line in out.splitlines()[2:]]


ORDERED = ["IMG2.PNG", "img9.png", "img10.png", "no suffix", "page.tiff", "small.avif"]


def test_the_pictures_of_a_folder_are_captioned_in_the_order_of_their_numbers(
    scenes_run: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call([str(folder), "--checkpoint", str(scenes_run[1])], capsys)
    assert (status, captioned(out, folder)) == (0, ORDERED)
    assert err.splitlines() == [
        f"skipped {folder}: not pictures: film.mp4, notes.txt",
        f"skipped {folder}: subfolders, which --recursive includes: day 9, day 10",
    ]


def test_recursive_captions_the_folders_inside(
    scenes_run: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        (folder / f"{number}.doc").touch()
    status, out, err = call([str(folder), "--recursive", "--checkpoint", str(scenes_run[1])], capsys)
    inside = [str(Path("day 9", "deep", "a.png")), str(Path("day 10", "b.png"))]
    assert (status, captioned(out, folder)) == (0, [*ORDERED, *inside])
    assert err == f"skipped {folder}: not pictures: 0.doc, 1.doc, 2.doc, 3.doc, 4.doc and 97 more\n"


def test_files_and_folders_may_be_mixed(
    scenes_run: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    first = folder / "img10.png"
    sources = [str(first), str(tmp_path / "empty"), str(folder), str(tmp_path / "none.jpg")]
    status, out, err = call([*sources, "--checkpoint", str(scenes_run[1])], capsys)
    assert status == 0
    assert captioned(out, folder) == ["img10.png", *ORDERED]  # what is named twice is captioned twice
    assert err.splitlines()[2:] == [
        f"error: {tmp_path / 'empty'}: a folder without pictures",
        f"error: {tmp_path / 'none.jpg'}: no such file",
    ]


def test_a_folder_without_pictures_is_one_error(
    scenes_run: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    args = ["--checkpoint", str(scenes_run[1])]
    line = f"error: {tmp_path / 'empty'}: a folder without pictures; --recursive includes its subfolders: inside\n"
    assert refusal(["sample", str(tmp_path / "empty"), *args], capsys) == line
    (tmp_path / "empty" / "a.txt").touch()
    line = f"error: {tmp_path / 'empty'}: a folder without pictures, only a.txt\n"
    assert refusal(["sample", str(tmp_path / "empty"), "--recursive", *args], capsys) == line


def test_recursive_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    line = "error: --recursive is for a folder of photographs: name one\n"
    assert refusal(["sample", "--recursive"], capsys) == line


def test_a_jpeg_whose_end_is_missing_is_captioned_with_a_warning(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (400, 300), "teal"), "JPEG")[:-50])
    status, out, err = call([str(path), "--checkpoint", str(scenes_run[1])], capsys)
    assert (status, len(out.splitlines())) == (0, 3)
    assert err == f"warning: {path}: truncated; the missing part is grey\n"
