"""`sample` on the images of a split: table, JSON, gallery, attention, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
from PIL import Image

from tests.cli.conftest import train
from tests.helpers.command import refusal
from tests.helpers.tiny_data import write_tiny
from torch_caption import plots
from torch_caption.__main__ import main
from torch_caption.cli.sample import run as sample
from torch_caption.cli.sample import sample_config


@pytest.mark.usefixtures("in_folder")
def test_sample_writes_json_and_a_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--split", "val", "--images", "3", "5", "3", "--samples", "3", "--temperature", "2", "--references"]
    args += ["--json", str(tmp_path / "c.json"), "--gallery", str(tmp_path / "g.png"), "--format", "json"]
    assert main(["sample", *args]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == printed
    assert printed["split"] == "val"
    assert [image["index"] for image in printed["images"]] == [3, 5]
    first = printed["images"][0]
    assert first["name"] == "green_circle.png"
    assert first["references"] == ["a green circle", "one green circle is here"]
    assert len(first["captions"]) == 3
    assert all(caption["log_prob"] < 0 for caption in first["captions"])
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    again = [image.captions for image in sample(replace(sample_config(args), json=None, gallery=None))]
    assert [[c.text for c in captions] for captions in again] == [
        [c["caption"] for c in image["captions"]] for image in printed["images"]
    ]


@pytest.mark.usefixtures("in_folder")
def test_a_table_of_samples_and_references(capsys: pytest.CaptureFixture[str]) -> None:
    sample(sample_config(["--checkpoint", "runs", "--images", "11", "--samples", "2", "--top-k", "3", "--references"]))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 4
    assert rows[0].split()[0] == "11"
    assert rows[2].split() == ["ref", "a", "grey", "star"]
    sample(sample_config(["--checkpoint", "runs/tiny-lstm-1", "--images", "11"]))
    sample(sample_config(["--checkpoint", "runs/tiny-lstm-1/last.safetensors", "--images", "11"]))
    out = capsys.readouterr().out
    assert out.count(", test of tiny") == 2


@pytest.mark.usefixtures("in_folder")
def test_the_n_best_captions_of_beam_search_have_scores(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--images", "11", "4", "--beam-size", "4", "--n-best", "3", "--length-penalty", "mean", "--references"]
    described = sample(sample_config(args))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["image", "log", "p", "score", "caption"]
    assert len(lines) == 2 + 2 * (3 + 2)
    assert all(re.fullmatch(r" +\d* +-\d+\.\d\d +-\d+\.\d\d  [a-z ]+", line) for line in lines[2:5])
    assert lines[5].index("a grey star") == lines[2].index(described[0].captions[0].text)
    sample(sample_config([*args, "--format", "json"]))
    for image in json.loads(capsys.readouterr().out)["images"]:
        assert len(image["captions"]) == 3
        for caption in image["captions"]:
            words = len(caption["caption"].split()) + caption["ended"]
            assert caption["score"] == pytest.approx(caption["log_prob"] / words)


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    "method", [[], ["--beam-size", "3"], ["--samples", "2", "--top-k", "4", "--seed", "5"]], ids=" ".join
)
def test_an_ensemble_of_a_run_with_itself(method: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Photographs may follow --checkpoint."""
    args = ["--images", "11", "4", *method]
    alone = sample(sample_config(["--checkpoint", "runs", *args]))
    capsys.readouterr()
    both = sample(sample_config(["--checkpoint", "runs/tiny-lstm-1", "--checkpoint", "runs", *args]))
    path = Path("runs", "tiny-lstm-1", "best.safetensors")
    assert capsys.readouterr().out.startswith(f"{path} + {path}, test of tiny\n")
    assert [[c.text for c in image.captions] for image in both] == [[c.text for c in image.captions] for image in alone]
    config = sample_config(["--checkpoint", "a", "dog.jpg", "--checkpoint", "b"])
    assert ([*map(str, config.checkpoint)], config.photographs) == (["a", "b"], ("dog.jpg",))


def test_vectors_and_grids_are_an_ensemble(
    attending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path, "--data", str(attending / "grids"), "--epochs", "8", "--cell-type", "lstm")
    args = ["sample", "--checkpoint", "runs", "--checkpoint", str(attending / "runs"), "--images", "3", "5"]
    args += ["--data", str(attending / "grids")]
    assert main([*args, "--beam-size", "3", "--gallery", "g.png", "--references"]) == 0
    assert "ref         a green star\n" in capsys.readouterr().out
    line = "error: --show-attention: an ensemble has no attention of its own; name one checkpoint\n"
    assert refusal([*args, "--show-attention", "x.png"], capsys) == line
    write_tiny(tmp_path / "short", wordings=1)
    train(tmp_path, "--data", "short", "--epochs", "1")
    line = refusal(["sample", "--checkpoint", "runs", "--checkpoint", str(attending / "runs")], capsys)
    ours, theirs = Path("runs", "short-rnn-1"), attending / "runs" / "grids-attention-1"
    assert f"{theirs / 'best.safetensors'}: not the vocabulary of {ours / 'best.safetensors'}: " in line


@pytest.mark.usefixtures("in_folder")
def test_json_tells_whether_a_caption_ended(capsys: pytest.CaptureFixture[str]) -> None:
    for length, ended in (("1", False), ("9", True)):
        sample(sample_config(["--images", "0", "--max-length", length, "--format", "json"]))
        (image,) = json.loads(capsys.readouterr().out)["images"]
        assert image["captions"][0]["ended"] is ended


def test_show_attention_draws_over_the_part_of_the_picture_that_the_model_sees(
    attending: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(attending)
    args = ["sample", "--images", "3", "5", "--samples", "2", "--show-attention", str(tmp_path / "maps.png")]
    assert main(args) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    shutil.copytree(attending / "grids", tmp_path / "grids")
    (tmp_path / "grids" / "manifest.json").write_text('{"transform": {"resize": 40, "crop": 20}}', encoding="utf-8")
    picture = Image.new("RGB", (30, 16), "white")
    picture.paste("red", (11, 4, 19, 12))
    for path in (tmp_path / "grids" / "images").iterdir():
        picture.save(path)
    drawn: list[plots.AttentionItem] = []
    monkeypatch.setattr(plots, "attention", lambda items, path: drawn.extend(items))
    sample(sample_config(["--data", str(tmp_path / "grids"), "--images", "3", "--show-attention", "x.png"]))
    assert drawn[0].picture.getcolors() == [(64, (255, 0, 0))]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--checkpoint", "plain", "--show-attention", "x.png"], "cell lstm, which has no attention; `python -m"),
        (["--show-attention", "missing/x.png"], "--show-attention missing/x.png: there is no folder missing"),
        (["--data", "bare", "--show-attention", "x.png"], "--show-attention: bare has no pictures of test"),
        (["--data", "vectors"], "train2014_grid.h5: no such file; "),
        (["--data", "a_row", "--show-attention", "x.png"], "features of test have no rows and columns"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_attention_that_cannot_be_shown_is_one_line(
    args: list[str],
    words: str,
    trained: tuple[Path, str],
    attending: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(attending)
    data = {"bare": {"grids": True}, "vectors": {}, "a_row": {"grids": True, "pictures": True}}
    if args[1] in data:
        write_tiny(attending / args[1], **data[args[1]])
    if "a_row" in args:
        for path in (attending / "a_row").glob("*_grid.h5"):
            with h5py.File(path, "a") as file:
                grids = file["features"][:]
                del file["features"]
                file["features"] = grids.reshape(*grids.shape[:2], -1)
    if "plain" in args:
        folder, _ = trained
        args = ["--checkpoint", str(folder / "runs"), "--data", str(folder / "tiny"), *args[2:]]
    assert words in refusal(["sample", *args], capsys)
    assert not (attending / "x.png").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint"),
        (["--checkpoint", "tiny/coco2014_vocab.json"], "not a checkpoint"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "wide"], "trained on features of width 8, but those of wide have 9"),
        (["--split", "novel"], "no split 'novel'; choose one of train, val, test"),
        (["--images", "12"], "there is no image 12"),
        (["--max-length", "1001"], "--max-length must be at most 1000, not 1001"),
        (["--seed", str(2**64)], f"--seed must be at least 0 and below 2^63, not {2**64}"),
        (["--method", "greedy", "--min-p", "0.1"], "--min-p 0.1 is an option of sampling, but --method "),
        (["--min-length", "6"], "--min-length must be below --max-length, which is 6 and counts <END>, not 6"),
        (["--avoid", "dgo"], "--avoid: the vocabulary has no word 'dgo'"),
        (["--data", "bare", "--gallery", "x.png"], "--gallery: bare has no pictures of test"),
        (["--json", "missing/x.json"], "missing"),
        (["--checkpoint", "runs", "runs"], "runs: is a run, not photographs; an ensemble is `--checkpoint A --che"),
        (["--checkpoint", "runs", "runs/tiny-lstm-1"], "runs/tiny-lstm-1: is a run, not photographs; "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_one_line(
    args: list[str], words: str, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in {"wide": {"width": 9}, "bare": {}}.items():
        if name in args:
            write_tiny(in_folder / name, **kind)
    assert words in refusal(["sample", *args], capsys)


def test_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(["sample"], capsys) == "error: no run in runs yet; `python -m torch_caption train` starts one\n"
