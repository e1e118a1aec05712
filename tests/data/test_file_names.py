"""Unusual names of photographs, from annotations through every program."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from torch_caption.__main__ import main
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.training.trainer import fit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not take")

NAMES = {
    "train": [
        "\ufeffwith a mark of order.jpg",
        "Screenshot 2024-05-01 at 10.02.00\u202fAM.jpg",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 and \u2764\ufe0f.jpg",
        " begins with a blank.jpg",
        "Cafe\u0301 im Fru\u0308hling.jpg",
        "line\u2028separator.jpg",
        "vertical\x0btab and \x0c.jpg",
        "file\x1cgroup\x1d\x1e\x1f.jpg",
        "00.jpg",
        " ",
    ],
    "val": [
        "\ufeff.jpg",
        "\x1b[31mred.jpg",
        "\u202egpj.exe",
        "quote'\".jpg",
        "back\\slash.jpg",
        "-n",
        "$HOME ~ %20 #1.jpg",
        "\u090f\u0915 \u0643\u0644\u0628 \u4e00\u53ea\u72d7.JPG",
        "00.jpg",
        "\u3000wide blanks\u3000",
    ],
}


class Prepared(NamedTuple):
    images: Path
    annotations: dict[str, Path]
    directory: Path
    run: Path
    output: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Photographs of all those names, their data directory, and a run on it."""
    folder = tmp_path_factory.mktemp("names")
    annotations = {}
    for first, (split, names) in enumerate(NAMES.items()):
        (folder / "images" / split).mkdir(parents=True)
        for k, name in enumerate(names):
            small = np.random.default_rng(100 * first + k).integers(0, 256, (5, 7, 3), np.uint8)
            where = folder / "images" / (split if name == "00.jpg" else "")
            Image.fromarray(small).resize((70, 50)).save(where / name, "PNG")
        content = {
            "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
            "annotations": [{"image_id": k, "caption": f"a photograph of {k} things"} for k in range(len(names))],
        }
        annotations[split] = folder / f"captions_{split}.json"
        annotations[split].write_text(json.dumps(content), encoding="utf-8-sig")
    args = ["--images", str(folder / "images"), "--annotations", *map(str, annotations.values())]
    args += ["--out", str(folder / "data"), "--encoder", "resnet18", "--weights", "random", "--min-count", "1"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        assert main(["prepare", *args, "--device", "cpu"]) == 0
        assert main(["check-data", str(folder / "data")]) == 0
    config = TrainConfig(
        data=str(folder / "data"), out=folder / "runs", hidden_dim=8, wordvec_dim=8, epochs=1, score_images=0,
        tensorboard=False, device="cpu",
    )  # fmt: skip
    return Prepared(folder / "images", annotations, folder / "data", fit(config), output.getvalue())


def stored(split: str) -> list[str]:
    """The names in the directory: those of two folders have their folder before them."""
    return [f"{split}/{name}" if name == "00.jpg" else name for name in NAMES[split]]


def test_prepare_omits_no_name(prepared):
    assert "left out  " not in prepared.output.replace("0 of more than 15 words left out", "")
    data = open_data(prepared.directory)
    for split in NAMES:
        rows = range(data[split].num_images)
        assert [data[split].file_name(row) for row in rows] == stored(split)
        assert [data[split].image_path(row) for row in rows] == [prepared.images / name for name in stored(split)]


def scored(prepared: Prepared, capsys: pytest.CaptureFixture[str], *more: str) -> int:
    """The images that `evaluate` finds captions of."""
    args = [str(prepared.run), "--format", "json", "--meteor", "no", "--beam-size", "1", "--draws", "2", *more]
    capsys.readouterr()
    assert main(["evaluate", *args]) == 0
    return json.loads(capsys.readouterr().out)["images"]


def test_evaluate_finds_the_captions_of_all(prepared, capsys):
    references = ["--references", str(prepared.annotations["val"])]
    assert scored(prepared, capsys) == scored(prepared, capsys, *references) == len(NAMES["val"])


def test_evaluate_finds_captions_in_another_unicode_form(prepared, tmp_path, capsys):
    content = prepared.annotations["train"].read_text(encoding="utf-8-sig").replace("e\\u0301", "\u00e9")
    (tmp_path / "a.json").write_text(content.replace("u\\u0308", "\u00fc"), encoding="utf-8")
    references = ["--references", str(tmp_path / "a.json")]
    assert scored(prepared, capsys, "--split", "train", *references) == len(NAMES["train"])


def test_evaluate_suggests_the_nearest_name(prepared, tmp_path, capsys):
    content = {"images": [{"id": 1, "file_name": "\ufeffWITH a mark of ORDER.jpg"}], "annotations": []}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    args = [str(prepared.run), "--split", "train", "--references", str(tmp_path / "a.json")]
    assert main(["evaluate", *args]) == 2
    assert "the nearest that it has captions of is '\\ufeffWITH a mark of ORDER.jpg'" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "darwin", reason="there the two forms are one name")
def test_pictures_are_found_in_another_unicode_form_and_without_blanks(prepared, tmp_path):
    data = open_data(prepared.directory)
    split = data["train"]
    split._images = tmp_path
    for name in ("Caf\u00e9 im Fr\u00fchling.jpg", "begins with a blank.jpg"):
        (tmp_path / name).touch()
    found = [split.image_path(row) for row in range(split.num_images)]
    assert [path.name for path in found if path] == ["begins with a blank.jpg", "Caf\u00e9 im Fr\u00fchling.jpg"]


def test_every_text_file_may_have_a_byte_order_mark_and_windows_line_endings(prepared, tmp_path, capsys):
    whole = open_data(prepared.directory)
    for path in prepared.directory.iterdir():
        content = path.read_bytes()
        if path.suffix in (".txt", ".json"):
            content = content.decode("utf-8-sig").replace("\n", "\r\n").encode("utf-8-sig")
        (tmp_path / path.name).write_bytes(content)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8-sig"))
    del manifest["files"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8-sig")
    marked = open_data(tmp_path)
    for split in NAMES:
        rows = range(whole[split].num_images)
        assert [marked[split].file_name(row) for row in rows] == [whole[split].file_name(row) for row in rows]
    assert scored(prepared, capsys, "--data", str(tmp_path)) == len(NAMES["val"])
