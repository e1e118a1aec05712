"""`sample.py PHOTO|FOLDER|URL...`: photographs with the features that the model learnt from; bad ones in one line."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.hostile_photos import made as hostile
from tests.helpers.photo_server import PHOTO, Server, encoded, png, serving
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli import sample as sampling
from torch_caption.cli.sample import run as sample
from torch_caption.cli.sample import sample_config
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.data.recipe import record
from torch_caption.encoders import extractor as recipes
from torch_caption.encoders import torchvision_encoder as features
from torch_caption.inference import photographs
from torch_caption.inference.captions import caption_images
from torch_caption.io.exits import guarded
from torch_caption.io.images import load_image
from torch_caption.prepare import prepare
from torch_caption.prepare.prepare import PrepareConfig
from torch_caption.scenes import dataset as scenes
from torch_caption.training.trainer import fit

SMALL = {"hidden_dim": 16, "wordvec_dim": 8, "epochs": 1, "score_images": 0, "tensorboard": False, "device": "cpu"}
SIZES = {"train": 60, "val": 6, "test": 6, "novel": 4}


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of scenes, and a run that has learnt from them for a moment."""
    folder = tmp_path_factory.mktemp("scenes")
    directory = scenes.ensure(folder, sizes=SIZES, progress=False)
    return directory, fit(TrainConfig(data=str(directory), out=folder / "runs", lr=0.02, **SMALL))


@pytest.fixture(scope="module")
def looking_run(scenes_run: tuple[Path, Path]) -> tuple[Path, Path]:
    """The same with attention, over grids."""
    directory, run = scenes_run
    return directory, fit(TrainConfig(data=str(directory), out=run.parent, lr=0.02, cell_type="attention", **SMALL))


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory made of a dozen small photographs, and a run on its projected vectors."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    images, annotations = [], []
    for k in range(12):
        small = np.random.default_rng(k).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(small).resize((70, 50)).save(folder / "images" / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png"})
        annotations.append({"image_id": k, "caption": f"a photograph of {'red' if k % 2 else 'blue'} things"})
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}), encoding="utf-8")
    config = PrepareConfig(
        images=(str(folder / "images"),), annotations=(str(path),), out=folder / "data", encoder="resnet18",
        weights="random", pca=5, min_count=1, val_share=0.25, batch_size=4, device="cpu",
    )  # fmt: skip
    prepare.prepare(config)
    return folder / "data", fit(TrainConfig(data=str(folder / "data"), out=folder / "runs", lr=0.02, **SMALL))


def call(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = guarded(lambda: sample(sample_config(args)))
    return status, *capsys.readouterr()


def mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status, out, err = call(args, capsys)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]*\n", err)
    return err


# The same features as in training


def made(run: Path, sources: list[str], **options: Any) -> photographs.Photographs:
    """What sample.py makes of photographs."""
    saved = checkpoints.load(run / "best.safetensors")
    config = sampling.SampleConfig(photographs=tuple(sources), checkpoint=run, device="cpu", **options)
    subject = sampling._photographs(config, run / "best.safetensors", saved, saved.config)
    return subject.split


def test_features_of_photographs_are_those_of_training(photo_run: tuple[Path, Path]) -> None:
    directory, run = photo_run
    data = open_data(directory)
    for split in data.splits.values():
        idxs = [*range(split.num_images)]
        ours = made(run, [str(split.image_path(idx)) for idx in idxs]).features_of(idxs)
        theirs = split.features_of(idxs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_features_of_drawings_are_those_of_training(scenes_run: tuple[Path, Path]) -> None:
    directory, run = scenes_run
    split = open_data(directory)["test"]
    idxs = [*range(split.num_images)]
    assert torch.equal(
        made(run, [str(split.image_path(idx)) for idx in idxs]).features_of(idxs), split.features_of(idxs)
    )


@pytest.mark.parametrize("which", ["scenes_run", "photo_run"])
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
    picture = load_image(tmp_path / "g.png")
    assert picture.width > 600


def test_drawn_by_chance_and_as_json(scenes_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory, run = scenes_run
    name = str(directory / "images" / "test_00001.png")
    args = [name, name, "--checkpoint", str(run), "--samples", "3", "--format", "json"]
    status, out, _ = call(args, capsys)
    assert status == 0
    images = json.loads(out)["images"]
    assert [len(image["captions"]) for image in images] == [3, 3]
    assert call(args, capsys)[1] == out


def test_a_picture_of_another_size_and_kind(scenes_run: tuple[Path, Path], tmp_path: Path) -> None:
    directory, run = scenes_run
    drawn = load_image(directory / "images" / "test_00000.png")
    drawn.resize((333, 333)).save(tmp_path / "large.jpg", quality=95)
    ours = made(run, [str(tmp_path / "large.jpg")]).features_of([0])
    theirs = open_data(directory)["test"].features_of([0])
    assert torch.nn.functional.cosine_similarity(ours, theirs).item() > 0.9


def test_many_photographs_are_made_in_batches(photo_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, run = photo_run
    names = [str(directory.parent / "images" / f"{k}.png") for k in range(12)]
    whole = made(run, names).features_of(range(12))
    monkeypatch.setattr(photographs, "BATCH", 5)
    pieces = made(run, names).features_of(range(12))
    torch.testing.assert_close(whole, pieces, rtol=0, atol=1e-4 * float(whole.abs().max()))


# Where the recipe is, and where it is not


def test_the_checkpoint_needs_no_data_directory(photo_run: tuple[Path, Path], tmp_path: Path) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    checkpoints.save(tmp_path / "best.safetensors", saved)
    assert saved.manifest["projection"]["components"].shape == (512, 5)
    name = str(directory.parent / "images" / "0.png")
    for path in directory.iterdir():
        path.rename(path.with_name(f"hidden-{path.name}"))
    try:
        assert made(tmp_path, [name]).feature_dim == 5
    finally:
        for path in [*directory.iterdir()]:
            path.rename(path.with_name(path.name.removeprefix("hidden-")))


def test_a_checkpoint_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    run = fit(TrainConfig(data=str(tmp_path / "tiny"), out=tmp_path / "runs", **SMALL))
    capsys.readouterr()
    photo = str(tmp_path / "tiny" / "images" / "red_circle.png")
    for more, source in (([], run / "best.safetensors"), (["--data", str(tmp_path / "tiny")], tmp_path / "tiny")):
        message = mistake([photo, "--checkpoint", str(run), *more], capsys)
        assert f"error: {source}: does not say how its features were made" in message
        assert "--data" in message
        assert "--recover-pca" in message


def test_a_directory_may_say_it_instead(photo_run: tuple[Path, Path], tmp_path: Path) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    saved.manifest = {}
    checkpoints.save(tmp_path / "best.safetensors", saved)
    name = str(directory.parent / "images" / "0.png")
    ours = made(tmp_path, [name], data=str(directory)).features_of([0])
    assert torch.equal(ours, made(run, [name]).features_of([0]))


def change(recipe: dict[str, Any], **entries: Any) -> dict[str, Any]:
    return {**recipe, **entries}


RECIPES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "other weights": (
        lambda r: change(r, weights={**r["weights"], "sha256": "0" * 64}),
        "random: not the weights of the features: SHA-256 ",
    ),
    "weights that are nowhere": (
        lambda r: change(r, weights={"name": "mine.pt", "sha256": "ab" * 32, "path": "/gone/mine.pt"}),
        "the weights of resnet18, mine.pt (SHA-256 abababababab...), are not found; name their file with --weights",
    ),
    "cs231n's own weights": (
        lambda r: change(r, **features.caffe_vgg16()),
        "the weights of vgg16, VGG_ILSVRC_16_layers, are not found; name their file with --weights",
    ),
    "another width": (lambda r: change(r, features="vgg16_fc7", projection=None), "takes features of width 5, but "),
    "half a projection": (lambda r: change(r, projection={"mean": torch.zeros(512)}), "not a projection"),
    "half a recipe": (lambda r: change(r, transform={"resize": 3}), "not a recipe of features"),
    "another version of scenes": (
        lambda r: {"encoder": recipes.SCENES, "recipe": 99},
        "features of scenes 99; this version has scenes 2",
    ),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_that_cannot_be_followed(
    kind: str, photo_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    make, message = RECIPES[kind]
    saved.manifest = make(saved.manifest)
    checkpoints.save(tmp_path / "best.safetensors", saved)
    photo = str(directory.parent / "images" / "0.png")
    assert message in mistake([photo, "--checkpoint", str(tmp_path), "--device", "cpu"], capsys)


def test_weights_may_be_said(photo_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, run = photo_run
    saved = checkpoints.load(run / "best.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = features._model("resnet18").state_dict()
    torch.save(weights, tmp_path / "w.pt")
    sha256 = features.file_sha256(tmp_path / "w.pt")
    saved.manifest["weights"] = {"name": "gone.pt", "sha256": sha256, "path": "/gone/gone.pt"}
    checkpoints.save(tmp_path / "best.safetensors", saved)
    photo = str(directory.parent / "images" / "0.png")
    assert "are not found" in mistake([photo, "--checkpoint", str(tmp_path)], capsys)
    ours = made(tmp_path, [photo], weights=tmp_path / "w.pt").features_of([0])
    torch.testing.assert_close(ours, made(run, [photo]).features_of([0]))


@pytest.mark.parametrize(
    ("flags", "name"), [(["--split", "val"], "split"), (["--images", "1"], "images"), (["--references"], "references")]
)
def test_flags_of_a_split(flags: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(["a.png", *flags], capsys) == f"error: --{name} is for the images of a split, not for photographs\n"


# Bad photographs


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_image
    monkeypatch.setattr(photographs, "load_image", lambda source, **options: load(source, timeout=0.5, **options))


def animated() -> bytes:
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in (250, 10)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "truncated.png": (PHOTO[:-30], "damaged: "),
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"a man rides a horse\n", "not a picture in JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF or HEIC format"),
    "huge.png": (png(30_000, 30_000, 1, 0, bytes(30_000 * 3_751)), "more than 67108864 pixels"),
    "directory.jpg": (None, "a folder without a picture in it"),
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
    """Sources, and what is wrong with them."""
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
    good[1].write_bytes(animated())
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


@pytest.mark.usefixtures("_hasty")
def test_nothing_but_bad_photographs(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = scenes_run
    bad = write_bad(tmp_path)
    status, out, err = call([*bad, "--checkpoint", str(run)], capsys)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == len(bad) + 1
    assert err.splitlines()[-1] == "error: none of the 6 photographs can be captioned"
    for source, message in bad.items():
        line = mistake([source, "--checkpoint", str(run)], capsys)
        assert line.startswith(f"error: {source}: ")
        assert message in line


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("photo", "127.0.0.1, not a public address"),
        ("to/302?url=http://10.0.0.1/x.jpg", "127.0.0.1, not a public address"),
    ],
)
def test_private_addresses_take_a_flag(
    scenes_run: tuple[Path, Path], server: Server, path: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = scenes_run
    asked = len(server.requests)
    assert message in mistake([f"{server.url}/{path}", "--checkpoint", str(run)], capsys)
    assert len(server.requests) == asked


def test_a_redirect_to_a_private_address(
    scenes_run: tuple[Path, Path], server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a public one, for which this machine stands in."""
    _, run = scenes_run
    monkeypatch.setattr("torch_caption.io.http.is_public", lambda address: address == "127.0.0.1")
    message = mistake([f"{server.url}/to/302?url=http://10.0.0.1/x.jpg", "--checkpoint", str(run)], capsys)
    assert "/to/302?url=http://10.0.0.1/x.jpg: leads to 10.0.0.1, not a public address" in message
    assert call([f"{server.url}/photo", "--checkpoint", str(run)], capsys)[0] == 0


def test_a_gallery_shows_what_came_from_a_url(
    scenes_run: tuple[Path, Path], server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = scenes_run
    args = [f"{server.url}/photo", "--checkpoint", str(run), "--allow-private", "--gallery", str(tmp_path / "g.png")]
    assert call(args, capsys)[0] == 0
    colours = np.asarray(load_image(tmp_path / "g.png")).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - (10, 150, 60)).max(1) < 3).sum() > 1000  # the photograph's green quarter


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_of_any_letters(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the table, in JSON and in the gallery, and as errors; one that is no UTF-8 comes back from JSON as it was."""
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


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures under names in no order, other files, and folders with more."""
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


def test_a_folder_s_pictures_are_captioned_in_the_order_of_their_numbers(
    scenes_run: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call([str(folder), "--checkpoint", str(scenes_run[1])], capsys)
    assert (status, captioned(out, folder)) == (0, ORDERED)
    assert err.splitlines() == [
        f"skipped {folder}: not pictures: film.mp4, notes.txt",
        f"skipped {folder}: folders, into which --recursive looks: day 9, day 10",
    ]


def test_recursive_takes_the_folders_inside(
    scenes_run: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = call([str(folder), "--recursive", "--checkpoint", str(scenes_run[1])], capsys)
    inside = [str(Path("day 9", "deep", "a.png")), str(Path("day 10", "b.png"))]
    assert (status, captioned(out, folder)) == (0, [*ORDERED, *inside])
    assert err == f"skipped {folder}: not pictures: film.mp4, notes.txt\n"


def test_many_other_files_are_one_line(
    scenes_run: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(100):
        (folder / f"{number}.doc").touch()
    status, _, err = call([str(folder), "--recursive", "--checkpoint", str(scenes_run[1])], capsys)
    assert status == 0
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
        f"error: {tmp_path / 'empty'}: a folder without a picture in it",
        f"error: {tmp_path / 'none.jpg'}: no such file",
    ]


def test_a_folder_without_pictures_is_one_error(
    scenes_run: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    args = ["--checkpoint", str(scenes_run[1])]
    told = (
        f"error: {tmp_path / 'empty'}: a folder without a picture in it; --recursive looks into its folders: inside\n"
    )
    assert mistake([str(tmp_path / "empty"), *args], capsys) == told
    (tmp_path / "empty" / "a.txt").touch()
    told = f"error: {tmp_path / 'empty'}: a folder without a picture in it, only a.txt\n"
    assert mistake([str(tmp_path / "empty"), "--recursive", *args], capsys) == told


def test_recursive_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(["--recursive"], capsys) == "error: --recursive is for a folder of photographs: name one\n"


def test_a_jpeg_whose_end_is_missing_is_captioned_with_a_warning(
    scenes_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (400, 300), "teal"), "JPEG")[:-50])
    status, out, err = call([str(path), "--checkpoint", str(scenes_run[1])], capsys)
    assert (status, len(out.splitlines())) == (0, 3)
    assert err == f"warning: {path}: truncated; the missing part is grey\n"


# Real photographs


@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["vgg16_fc7_pca", "vgg16_fc7", "grid"])
def test_features_of_a_training_photograph(kind: str, shared_data: Path, tmp_path: Path) -> None:
    """Through sample.py they are those that prepare wrote into the file from which the model learnt."""
    folder = shared_data / "flickr8k"
    content = json.loads((folder / "captions_val.json").read_text(encoding="utf-8"))
    content["images"] = content["images"][:40]
    known = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in known]
    (tmp_path / "captions.json").write_text(json.dumps(content), encoding="utf-8")
    out = tmp_path / "data"
    config = PrepareConfig(
        images=(str(folder / "images"),), annotations=(str(tmp_path / "captions.json"),), out=out,
        encoder="mobilenet_v2", weights=str(shared_data / "weights" / "mobilenet_v2.pt"), pca=16, grid=True,
        grid_pca=64, device="cpu",
    )  # fmt: skip
    prepare.prepare(config)
    data = open_data(out, pca=kind == "vgg16_fc7_pca")
    file = out / f"train2014_{kind}.h5"
    extractor = recipes.feature_extractor(record(out, data.manifest, file), device="cpu")
    names = [data["train"].image_path(idx) for idx in range(data["train"].num_images)]
    found = photographs.read(
        [str(name) for name in names], extractor, data.vocabulary, failed=lambda source, _: pytest.fail(source)
    )
    ours = found.features_of(range(len(names)))
    with h5py.File(file) as content:
        theirs = torch.from_numpy(content["features"][()])
    scale = float(theirs.abs().max())
    if kind == "grid":
        assert theirs.dtype == torch.float16
        assert (ours != theirs).float().mean() < 0.01  # but for roundings that went the other way
        torch.testing.assert_close(ours, theirs.float(), rtol=2**-10, atol=1e-4 * scale)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * scale)
    cell_type = "attention" if kind == "grid" else "lstm"
    pca = "yes" if kind == "vgg16_fc7_pca" else "no"
    run = fit(TrainConfig(data=str(out), out=tmp_path / "runs", pca_features=pca, cell_type=cell_type, **SMALL))
    assert torch.equal(made(run, [str(name) for name in names]).features_of(range(len(names))), ours)
