"""`train.py` and `sample.py` as their user meets them."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.helpers.tiny_data import write_tiny
from torch_caption import plots
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli.sample import run as sample
from torch_caption.cli.sample import sample_config
from torch_caption.cli.train import train_config
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.io.exits import SIGNALS, guarded
from torch_caption.training import run_folder as runs
from torch_caption.training.trainer import fit

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--hidden-dim",
    "16",
    "--wordvec-dim",
    "8",
    "--batch-size",
    "5",
    "--lr",
    "0.01",
    "--max-length",
    "6",
    "--feature-dropout",
    "0",
]


def start(script: str, *args: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *args],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def call(script: str, *args: str, cwd: Path, status: int = 0) -> tuple[str, str]:
    process = start(script, *args, cwd=cwd)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    return out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with data and a run in it, and what `train.py` printed."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny(folder / "tiny", pictures=True)
    out, err = call(
        "train.py", "--data", "tiny", *SMALL, "--epochs", "8", "--dropout", "0", "--cell-type", "lstm", cwd=folder
    )
    assert err == ""
    return folder, out


def test_train_says_what_it_does_and_where_everything_is(trained: tuple[Path, str]) -> None:
    folder, out = trained
    run = folder / "runs" / "tiny-lstm-1"
    lines = out.splitlines()
    assert "24 captions to learn from" in lines[0]
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 8
    pattern = r"epoch 1/8   train \d\.\d{3}   val \d\.\d{3} nats per word   BLEU-4 \S+   CIDEr \S+   \d+ s   best"
    assert re.fullmatch(pattern, epochs[0])
    assert {path.name for path in run.iterdir()} == {
        "best.safetensors", "last.safetensors", "last.previous.safetensors", "metrics.jsonl", "loss.png", "gallery.png",
        "lock", "tensorboard",
    }  # fmt: skip
    for name in ("best.safetensors", "loss.png", "gallery.png"):
        assert str(Path("runs") / "tiny-lstm-1" / name) in out
    for name in ("loss.png", "gallery.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert any(path.stat().st_size > 500 for path in (run / "tensorboard").iterdir())
    assert (folder / "runs" / "last.txt").read_text(encoding="utf-8") == "tiny-lstm-1\n"


def test_sample_captions_with_the_last_run(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    out, err = call("sample.py", cwd=folder)
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{Path('runs') / 'tiny-lstm-1' / 'best.safetensors'}, test of tiny"
    assert len(lines) == 2 + 8
    for line in lines[2:]:
        assert re.fullmatch(r" +\d+ +-\d+\.\d\d  [a-z ]+", line)


def test_what_is_shared_names_no_folder_of_this_machine(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    run = folder / "runs" / "tiny-lstm-1"
    with safe_open(run / "best.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["config"])
    assert not {"out", "init_from", "resume"} & settings.keys()
    assert str(folder).encode() not in (run / "best.safetensors").read_bytes()


def test_sample_writes_json_and_a_gallery(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    args = ["--split", "val", "--images", "3", "5", "3", "--samples", "3", "--temperature", "2", "--references"]
    args += ["--json", str(tmp_path / "c.json"), "--gallery", str(tmp_path / "g.png"), "--format", "json"]
    assert guarded(lambda: sample(sample_config(args))) == 0
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


def test_the_log_probability_is_that_of_the_caption(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    data = open_data("tiny")
    model = checkpoints.build_model(checkpoints.load(runs.find("runs") / "best.safetensors")).eval()
    for image in sample(sample_config(["--count", "4", "--max-length", "9", "--samples", "2"])):
        for caption in image.captions:
            ids = data.vocabulary.encode(caption.text.split())
            loss = model(data["test"].features_of([image.index]), torch.tensor([ids]))
            if len(ids) < 9:  # it ended of itself
                assert caption.log_prob == pytest.approx(-loss.item(), rel=1e-4)


def test_a_table_of_samples_and_references(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    sample(sample_config(["--checkpoint", "runs", "--images", "11", "--samples", "2", "--top-k", "3", "--references"]))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 4
    assert rows[0].split()[0] == "11"
    assert rows[2].split() == ["people", "a", "grey", "star"]
    sample(sample_config(["--checkpoint", "runs/tiny-lstm-1", "--images", "11"]))
    sample(sample_config(["--checkpoint", "runs/tiny-lstm-1/last.safetensors", "--images", "11"]))
    out = capsys.readouterr().out
    assert out.count(", test of tiny") == 2


def test_beams(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The n best of a beam with their scores, in the table and in JSON; a beam of one is greedy."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    args = ["--images", "11", "4", "--beam-size", "4", "--n-best", "3", "--length-penalty", "mean", "--references"]
    described = sample(sample_config(args))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["image", "log", "p", "score", "caption"]
    assert len(lines) == 2 + 2 * (3 + 2)
    assert all(re.fullmatch(r" +\d* +-\d+\.\d\d +-\d+\.\d\d  [a-z ]+", line) for line in lines[2:5])
    assert lines[5].index("a grey star") == lines[2].index(described[0].captions[0].text)
    sample(sample_config([*args, "--format", "json"]))
    images = json.loads(capsys.readouterr().out)["images"]
    assert [len(image["captions"]) for image in images] == [3, 3]
    for image in images:
        for caption in image["captions"]:
            words = len(caption["caption"].split()) + caption["ended"]
            assert caption["score"] == pytest.approx(caption["log_prob"] / words)
        assert image["captions"] == sorted(image["captions"], key=lambda caption: -caption["score"])
    greedy = sample(sample_config(["--images", "11", "4"]))
    one = sample(sample_config(["--images", "11", "4", "--no-repeat-ngram", "6"]))
    assert [image.captions[0].text for image in one] == [image.captions[0].text for image in greedy]


def test_unk_is_left_out_by_every_way_to_decode(
    trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    saved = checkpoints.load(runs.find("runs") / "best.safetensors")
    saved.weights["b_vocab"][saved.words.index("<UNK>")] += 9
    checkpoints.save(tmp_path / "unk.safetensors", saved)
    for way in ([], ["--beam-size", "3"], ["--samples", "2"], ["--no-repeat-ngram", "1"]):
        args = ["--checkpoint", str(tmp_path / "unk.safetensors"), "--count", "3", *way]
        assert "<UNK>" in sample(sample_config(args))[0].captions[0].text
        described = sample(sample_config([*args, "--no-unk"]))
        assert not any("<UNK>" in caption.text for image in described for caption in image.captions)


def test_a_caption_that_is_cut_off_says_so(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    for way in ([], ["--beam-size", "2"]):
        for length, ended in (("1", False), ("9", True)):
            sample(sample_config(["--images", "0", "--max-length", length, "--format", "json", *way]))
            (image,) = json.loads(capsys.readouterr().out)["images"]
            assert image["captions"][0]["ended"] is ended


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with grids and a run of attention over them."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny(folder / "grids", pictures=True, grids=True)
    call("train.py", "--data", "grids", *SMALL, "--epochs", "2", "--cell-type", "attention", cwd=folder)
    return folder


def test_sample_draws_where_it_looked(
    looking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(looking)
    args = ["--images", "3", "5", "--samples", "2", "--show-attention", str(tmp_path / "looked.png")]
    assert guarded(lambda: sample(sample_config(args))) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "looked.png").read_bytes().startswith(b"\x89PNG")


def test_sample_draws_the_part_of_a_photograph_that_the_model_sees(
    looking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of a grid lie over the middle square that the transform keeps, not over all of the photograph."""
    shutil.copytree(looking / "grids", tmp_path / "grids")
    (tmp_path / "grids" / "manifest.json").write_text('{"transform": {"resize": 40, "crop": 20}}', encoding="utf-8")
    picture = Image.new("RGB", (30, 16), "white")
    picture.paste("red", (11, 4, 19, 12))
    for path in (tmp_path / "grids" / "images").iterdir():
        picture.save(path)
    drawn: list[plots.AttentionItem] = []
    monkeypatch.setattr(plots, "attention", lambda items, path: drawn.extend(items))
    monkeypatch.chdir(looking)
    sample(sample_config(["--data", str(tmp_path / "grids"), "--images", "3", "--show-attention", "x.png"]))
    assert drawn[0].picture.getcolors() == [(64, (255, 0, 0))]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--checkpoint", "plain", "--show-attention", "x.png"],
            "cell lstm, which looks at no places; `python -m",
        ),
        (["--show-attention", "missing/x.png"], "--show-attention missing/x.png: there is no folder missing"),
        (["--data", "bare", "--show-attention", "x.png"], "--show-attention: bare holds no pictures of test"),
        (["--data", "vectors"], "train2014_grid.h5: no such file; "),
        (
            ["--data", "a_row", "--show-attention", "x.png"],
            "features of test are of places without rows and columns",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_with_attention(
    args: list[str],
    words: str,
    trained: tuple[Path, str],
    looking: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(looking)
    made = {"bare": {"grids": True}, "vectors": {}, "a_row": {"grids": True, "pictures": True}}
    for name, kind in made.items():
        if name in args:
            write_tiny(looking / name, **kind)
    if "a_row" in args:
        for path in (looking / "a_row").glob("*_grid.h5"):
            with h5py.File(path, "a") as file:
                places = file["features"][:]
                del file["features"]
                file["features"] = places.reshape(*places.shape[:2], -1)
    if "plain" in args:
        folder, _ = trained
        args = ["--checkpoint", str(folder / "runs"), "--data", str(folder / "tiny"), *args[2:]]
    assert words in sample_mistake(args, capsys)
    assert not (looking / "x.png").exists()


def test_train_says_what_attention_takes(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    said = train_mistake(["--data", "tiny", "--cell-type", "attention"], capsys)
    assert "train2014_grid.h5: no such file; " in said
    assert "a grid of features for the cell attention" in said
    said = train_mistake(["--data", "tiny", "--cell-type", "attention", "--pca-features", "yes"], capsys)
    assert said == "error: grids of features have no PCA; use pca with one vector per image\n"


def test_resume_takes_the_settings_of_the_run(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    for args in (["--resume"], ["--resume", "last"], ["--resume", "tiny-lstm-1"], ["--resume", "runs/tiny-lstm-1"]):
        config, found = train_config([*args, "--epochs", "9"])
        assert found is not None
        assert found.path == Path("runs") / "tiny-lstm-1" / "last.safetensors"
        assert Path(str(config.resume)) == Path("runs") / "tiny-lstm-1"
        assert (config.cell_type, config.hidden_dim, config.data, config.epochs) == ("lstm", 16, "tiny", 9)
        assert config.out == Path("runs")
    assert train_config(["--resume", "--no-tensorboard"])[0].tensorboard is False
    assert train_config([]) == (TrainConfig(), None)


def test_init_from_takes_data_and_sizes_of_the_checkpoint(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more: how a new run learns is its own affair."""
    folder, _ = trained
    monkeypatch.chdir(folder)
    for source in ("runs", "runs/tiny-lstm-1", "runs/tiny-lstm-1/best.safetensors"):
        config, _ = train_config(["--init-from", source, "--objective", "scst"])
        assert config.init_from == Path(source)
        assert (config.cell_type, config.hidden_dim, config.wordvec_dim, config.data) == ("lstm", 16, 8, "tiny")
        assert (config.max_length, config.batch_size, config.lr, config.highest_lr) == (6, 128, None, 2e-4)
    assert train_config(["--init-from", "runs", "--max-length", "9"])[0].max_length == 9
    assert train_config(["--init-from", "runs", "--data", "other"])[0].data == "other"


def test_self_critical_training_says_what_it_does(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    args = ["--init-from", "runs", "--objective", "scst", "--epochs", "2", "--out", str(tmp_path), "--no-tensorboard"]
    run = fit(*train_config(args))
    lines = capsys.readouterr().out.splitlines()
    assert "begins    with the weights of runs" in lines
    number = r"\d\.\d{3}"
    pattern = (
        rf"epoch 1/2   reward {number}, greedy {number}   val {number} nats per word   BLEU-4 .* CIDEr .* s   best"
    )
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert any(re.fullmatch(r"best      epoch [12], val \S+ nats per word, CIDEr \d\.\d{4}", line) for line in lines)
    again, found = train_config(["--resume", str(run), "--epochs", "3"])  # it is still what it was
    assert (again.objective, again.init_from) == ("scst", Path("runs"))
    assert len(runs.read(fit(again, found))) == 3


def start_long(folder: Path) -> subprocess.Popen[str]:
    """A run that would go on for hours, after its first epoch."""
    process = start("train.py", "--data", "tiny", *SMALL, "--epochs", "100000", "--patience", "0", cwd=folder)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch      1/"):
            break
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_is_told_to_end_saves_and_resume_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    write_tiny(tmp_path / "tiny")
    process = start_long(tmp_path)
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err == ""
    step = int(re.fullmatch(r"stopped after step (\d+), which is saved; .*--resume.*", out.splitlines()[-1])[1])
    run = tmp_path / "runs" / "tiny-rnn-1"
    saved = checkpoints.load(run / "last.safetensors").progress
    assert saved["step"] == step
    out, _ = call("train.py", "--resume", "--epochs", str(saved["epoch"] + 1), cwd=tmp_path)
    assert [line.split("/")[0] for line in out.splitlines() if line.startswith("epoch")] == [
        f"epoch {saved['epoch'] + 1}"
    ]
    assert checkpoints.load(run / "last.safetensors").progress["epoch"] == saved["epoch"] + 1


def test_a_second_process_is_refused_while_the_first_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    process = start_long(tmp_path)
    try:
        said = train_mistake(["--resume"], capsys)
    finally:
        process.kill()
        process.communicate()
    holder = f"process {process.pid} on {platform.node()}" if os.name == "posix" else "another process"
    run = Path("runs") / "tiny-rnn-1"
    assert said == f"error: {run}: {holder} trains there; wait until it ends, or stop it\n"
    epochs = str(checkpoints.load(run / "last.safetensors").progress["epoch"])
    assert guarded(lambda: fit(*train_config(["--resume", "--epochs", epochs]))) == 0


def train_mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    return mistake(guarded(lambda: fit(*train_config(args))), capsys)


def sample_mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    return mistake(guarded(lambda: sample(sample_config(args))), capsys)


def mistake(status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a mistake of the user's."""
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "empty"], "coco2014_vocab.json"),
        (["--data", "broken"], "coco2014_captions.h5"),
        (["--data", "no-val"], "no split 'val'"),
        (["--data", "tiny", "--lr", "0"], "--lr must be a positive number, not 0.0"),
        (["--data", "tiny", "--device", "cuda"], "--device cuda: PyTorch finds no GPU here"),
        (["--data", "tiny", "--pca-features", "yes"], "pca"),
        (["--data", "tiny", "--out", "file"], "file"),
        (["--data", "tiny", "--hidden-dim", str(10**20)], "--hidden-dim must be at most 2147483648, not 1000"),
        (["--data", "tiny", "--batch-size", str(10**20)], "--batch-size must be at most 2147483648, not 1000"),
        (["--resume", "--out", "nothing"], "no run in nothing yet"),
        (["--resume", "tiny-rnn-99"], "there is no run 'tiny-rnn-99'"),
        (["--resume", "--hidden-dim", "3"], "has --hidden-dim 16, not 3"),
        (["--init-from", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint"),
        (["--init-from", "tiny"], str(Path("tiny") / "best.safetensors: no such checkpoint")),
        (["--init-from", "runs", "--hidden-dim", "3"], "has --hidden-dim 16, not 3"),
        (["--data", "tiny", "--objective", "scst"], "name it with --init-from"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_training(
    args: list[str],
    words: str,
    trained: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "file").write_text("", encoding="utf-8")
    if not (folder / "broken").is_dir():
        broken = write_tiny(folder / "broken") / "coco2014_captions.h5"
        broken.write_bytes(broken.read_bytes()[:1000])
    if not (folder / "no-val").is_dir():
        with h5py.File(write_tiny(folder / "no-val") / "coco2014_captions.h5", "a") as file:
            del file["val_captions"], file["val_image_idxs"]
    assert words in train_mistake(args, capsys)
    assert not (folder / "runs" / "no-val-rnn-1").exists()
    assert not (folder / "runs" / "tiny-rnn-1").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint"),
        (["--checkpoint", "tiny/coco2014_vocab.json"], "not a checkpoint"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "wide"], "trained on features of width 8, but those of wide have 9"),
        (["--data", "few"], "not the vocabulary of few: 15 words against 12"),
        (["--split", "novel"], "no split 'novel'; choose one of train, val, test"),
        (["--images", "12"], "there is no image 12"),
        (["--images", "-1"], "there is no image -1"),
        (["--samples", "0"], "--samples must be an integer of at least 1, not 0"),
        (["--temperature", "0"], "--temperature must be a positive number, not 0.0"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1, not 1.5"),
        (["--top-k", "0"], "--top-k must be an integer of at least 1, not 0"),
        (["--max-length", "1001"], "--max-length must be at most 1000, not 1001"),
        (["--seed", str(2**64)], f"--seed must be at least 0 and below 2^63, not {2**64}"),
        (["--beam-size", "0"], "--beam-size must be an integer of at least 1, not 0"),
        (["--n-best", "3"], "--n-best must be at most --beam-size, which is 1, not 3"),
        (["--no-repeat-ngram", "0"], "--no-repeat-ngram must be an integer of at least 1, not 0"),
        (["--length-penalty", "-1"], "--length-penalty must be 0, a positive number or mean, not -1.0"),
        (["--length-penalty", "nan"], "--length-penalty must be 0, a positive number or mean, not nan"),
        (
            ["--beam-size", "5", "--top-k", "3"],
            "--top-k 3 is an option of sampling, but --beam-size 5 of beam: use one of them",
        ),
        (
            ["--method", "greedy", "--min-p", "0.1"],
            "--min-p 0.1 is an option of sampling, but --method ",
        ),
        (["--min-p", "0"], "--min-p must be above 0 and at most 1, not 0.0"),
        (["--min-length", "-1"], "--min-length must be an integer of at least 0, not -1"),
        (["--min-length", "6"], "--min-length must be below --max-length, which is 6 and counts <END>, not 6"),
        (["--avoid", "dgo"], "--avoid: the vocabulary has no word 'dgo'"),
        (["--data", "bare", "--gallery", "x.png"], "--gallery: bare holds no pictures of test"),
        (["--json", "missing/x.json"], "missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_sampling(
    args: list[str],
    words: str,
    trained: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    for name, kind in {"wide": {"width": 9}, "few": {"wordings": 1}, "bare": {}}.items():
        if name in args:
            write_tiny(folder / name, **kind)  # type: ignore[arg-type]
    assert words in sample_mistake(args, capsys)


def test_no_run_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert sample_mistake([], capsys) == "error: no run in runs yet; `python -m torch_caption train` makes one\n"


def test_a_flag_that_is_not(tmp_path: Path) -> None:
    out, err = call("train.py", "--hiden-dim", "3", cwd=tmp_path, status=2)
    assert out == ""
    assert "--hidden-dim" in err
    assert "Traceback" not in err


def test_a_run_that_diverges_ends_with_one_line(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    args = ["--data", "tiny", *SMALL, "--lr", "1e38", "--out", str(tmp_path), "--lr-schedule", "constant"]
    assert guarded(lambda: fit(*train_config(args))) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: epoch 1/\d+, step \d: .*not? .*\n|error: epoch 1/\d+, step \d: the \S+ .*\n", err)


# Each command, what does its work, and flags that it takes.
DOES = {
    "train": ("torch_caption.cli.train.fit", []),
    "sample": ("torch_caption.cli.sample.run", []),
    "evaluate": ("torch_caption.cli.evaluate.run", []),
    "prepare": ("torch_caption.cli.prepare.prepare", ["--out", "x"]),
    "export": ("torch_caption.cli.export.run", []),
    "compare": ("torch_caption.cli.compare.report", []),
    "check-data": ("torch_caption.data.dataset.open_kinds", ["."]),
}


@pytest.mark.parametrize("command", DOES)
def test_every_program_says_what_takes_too_much_memory(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And names flags that it has."""

    def takes_too_much(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.")

    does, args = DOES[command]
    monkeypatch.setattr(does, takes_too_much)
    assert main([command, *args]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: not enough memory: 4,000 bytes more were requested; .*\n", said)
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert set(re.findall(r"--[\w-]+", said)) <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is limited by its address space")
def test_a_model_too_large_for_any_memory(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36)); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    args = ["train.py", "--data", "tiny", "--out", "large", "--hidden-dim", "1000000"]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / args[0]), *args[1:]],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    advice = "make --batch-size, --hidden-dim or --wordvec-dim smaller"
    assert ended.stderr == f"error: not enough memory: 4,000,000,000,000 bytes more were requested; {advice}\n"
    assert not (folder / "large").exists()


def test_every_setting_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for make in (train_config, sample_config):
        with pytest.raises(SystemExit) as left:
            make(["--help"])
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert "--data" in out
        assert "--seed INT" in out


def test_a_reader_who_leaves_is_no_error() -> None:
    """As `head` leaves."""
    code = "import sys; from torch_caption.io.exits import guarded; "
    code += "sys.exit(guarded(lambda: [print(k) for k in range(10**6)]))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, encoding="utf-8", **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
