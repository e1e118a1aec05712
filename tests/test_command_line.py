"""`train.py` and `sample.py` as their user meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from tiny import write_tiny

from torch_caption import checkpoint as checkpoints
from torch_caption import runs
from torch_caption.command_line import guarded, sample_config, train_config
from torch_caption.config import TrainConfig
from torch_caption.data.coco import open_data
from torch_caption.sampling import run as sample
from torch_caption.training import fit

ROOT = Path(__file__).resolve().parent.parent
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
        "best.pt", "last.pt", "metrics.jsonl", "loss.png", "gallery.png", "tensorboard",
    }  # fmt: skip
    for name in ("best.pt", "loss.png", "gallery.png"):
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
    assert lines[0] == f"{Path('runs') / 'tiny-lstm-1' / 'best.pt'}, test of tiny"
    assert len(lines) == 2 + 8
    for line in lines[2:]:
        assert re.fullmatch(r" +\d+ +-\d+\.\d\d  [a-z ]+", line)


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
    model = checkpoints.build_model(checkpoints.load(runs.find("runs") / "best.pt")).eval()
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
    sample(sample_config(["--checkpoint", "runs/tiny-lstm-1/last.pt", "--images", "11"]))
    out = capsys.readouterr().out
    assert out.count(", test of tiny") == 2


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


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--checkpoint", "plain", "--show-attention", "x.png"],
            "cell lstm, which looks at no places; `train.py",
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
    assert "a grid of features, at which the cell attention looks" in said
    said = train_mistake(["--data", "tiny", "--cell-type", "attention", "--pca-features", "yes"], capsys)
    assert said == "error: grids of features have no PCA; leave pca to cells that take one vector an image\n"


def test_resume_takes_the_settings_of_the_run(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = trained
    monkeypatch.chdir(folder)
    for args in (["--resume"], ["--resume", "last"], ["--resume", "tiny-lstm-1"], ["--resume", "runs/tiny-lstm-1"]):
        config = train_config([*args, "--epochs", "9"])
        assert Path(str(config.resume)) == Path("runs") / "tiny-lstm-1"
        assert (config.cell_type, config.hidden_dim, config.data, config.epochs) == ("lstm", 16, "tiny", 9)
        assert config.out == Path("runs")
    assert train_config(["--resume", "--no-tensorboard"]).tensorboard is False
    assert train_config([]) == TrainConfig()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process")
def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    process = start("train.py", "--data", "tiny", *SMALL, "--epochs", "100000", "--patience", "0", cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch      2/"):
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == ""
    step = int(re.fullmatch(r"stopped after step (\d+), which is saved; .*--resume.*", out.splitlines()[-1])[1])
    run = tmp_path / "runs" / "tiny-rnn-1"
    saved = checkpoints.load(run / "last.pt").progress
    assert saved["step"] == step
    out, _ = call("train.py", "--resume", "--epochs", str(saved["epoch"] + 1), cwd=tmp_path)
    assert [line.split("/")[0] for line in out.splitlines() if line.startswith("epoch")] == [
        f"epoch {saved['epoch'] + 1}"
    ]
    assert checkpoints.load(run / "last.pt").progress["epoch"] == saved["epoch"] + 1


def train_mistake(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    return mistake(guarded(lambda: fit(train_config(args))), capsys)


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
        (["--resume", "--out", "nothing"], "no run in nothing yet"),
        (["--resume", "tiny-rnn-99"], "there is no run 'tiny-rnn-99'"),
        (["--resume", "--hidden-dim", "3"], "was made with --hidden-dim 16, which 3 cannot replace"),
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
        (["--checkpoint", "nowhere.pt"], "nowhere.pt: there is no such checkpoint"),
        (["--checkpoint", "tiny/coco2014_vocab.json"], "not a checkpoint"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "wide"], "trained on features of width 8, but those of wide have 9"),
        (["--data", "few"], "its vocabulary is not that of few: 15 words against 12"),
        (["--split", "novel"], "no split 'novel'; choose one of train, val, test"),
        (["--images", "12"], "there is no image 12"),
        (["--images", "-1"], "there is no image -1"),
        (["--samples", "0"], "--samples must be at least 1, not 0"),
        (["--temperature", "0"], "--temperature must be a positive number, not 0.0"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1, not 1.5"),
        (["--top-k", "0"], "--top-k must be at least 1, not 0"),
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
    assert sample_mistake([], capsys) == "error: no run in runs yet; `python train.py` makes one\n"


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
    assert guarded(lambda: fit(train_config(args))) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: epoch 1/\d+, step \d: .*not? .*\n|error: epoch 1/\d+, step \d: the \S+ .*\n", err)


def test_every_setting_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for make in (train_config, sample_config):
        with pytest.raises(SystemExit) as left:
            make(["--help"])
        assert left.value.code == 0
        out = capsys.readouterr().out
        assert "--data" in out
        assert "--seed INT" in out
