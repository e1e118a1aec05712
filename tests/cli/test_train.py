"""`train`: what it prints, what it takes of a run that it resumes or begins with, and what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from tests.helpers.command import SMALL, refusal
from tests.helpers.tiny_data import write_tiny
from torch_caption.__main__ import main
from torch_caption.cli.train import train_config
from torch_caption.config import TrainConfig
from torch_caption.io import lock
from torch_caption.training.log import read_log
from torch_caption.training.trainer import fit

ROOT = Path(__file__).resolve().parents[2]


def test_train_prints_epochs_and_the_files_of_the_run(trained: tuple[Path, str]) -> None:
    folder, out = trained
    run = folder / "runs" / "tiny-lstm-1"
    lines = out.splitlines()
    assert "24 training, " in lines[0]
    epochs = [line for line in lines if line.startswith("epoch")]
    assert len(epochs) == 8
    pattern = r"epoch 1/8   train \d\.\d{3}   val \d\.\d{3} nats per word   BLEU-4 \S+   CIDEr \S+   \d+ s   best"
    assert re.fullmatch(pattern, epochs[0])
    for name in ("best.safetensors", "loss.png", "gallery.png"):
        assert str(Path("runs") / "tiny-lstm-1" / name) in out
    for name in ("loss.png", "gallery.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert any(path.stat().st_size > 500 for path in (run / "tensorboard").iterdir())


@pytest.mark.usefixtures("in_folder")
def test_resume_takes_the_settings_of_the_run() -> None:
    for args in (["--resume"], ["--resume", "last"], ["--resume", "tiny-lstm-1"], ["--resume", "runs/tiny-lstm-1"]):
        config, found = train_config([*args, "--epochs", "9"])
        assert found is not None
        assert found.path == Path("runs") / "tiny-lstm-1" / "last.safetensors"
        assert Path(str(config.resume)) == Path("runs") / "tiny-lstm-1"
        assert (config.cell_type, config.hidden_dim, config.data, config.epochs) == ("lstm", 16, "tiny", 9)
        assert config.out == Path("runs")
    assert train_config(["--resume", "--no-tensorboard"])[0].tensorboard is False
    assert train_config([]) == (TrainConfig(), None)


@pytest.mark.usefixtures("in_folder")
def test_init_from_takes_data_and_sizes_of_the_checkpoint_alone() -> None:
    for source in ("runs", "runs/tiny-lstm-1", "runs/tiny-lstm-1/best.safetensors"):
        config, _ = train_config(["--init-from", source, "--objective", "scst"])
        assert config.init_from == Path(source)
        assert (config.cell_type, config.hidden_dim, config.wordvec_dim, config.data) == ("lstm", 16, 8, "tiny")
        assert (config.max_length, config.batch_size, config.lr, config.highest_lr) == (6, 128, None, 2e-4)
    config, _ = train_config(["--init-from", "runs", "--max-length", "9", "--data", "other"])
    assert (config.max_length, config.data) == (9, "other")


def test_layers_are_those_of_the_run_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, resumed and continued; sampled with attention maps, and evaluated."""
    monkeypatch.chdir(tmp_path)
    write_tiny(Path("tiny"), pictures=True, grids=True)
    given = ["--data", "tiny", "--cell-type", "attention", "--num-layers", "3", "--layer-dropout", "0.1"]
    assert main(["train", *SMALL, *given, "--epochs", "1", "--no-tensorboard"]) == 0
    assert "model     attention, 3 layers, H 16, W 8, D 8 at " in capsys.readouterr().out
    assert main(["train", "--resume", "--epochs", "2"]) == 0
    config, _ = train_config(["--init-from", "runs"])
    assert (config.num_layers, config.layer_dropout) == (3, 0.0)
    assert main(["train", "--init-from", "runs", "--objective", "scst", "--epochs", "1", "--no-tensorboard"]) == 0
    assert main(["sample", "--split", "val", "--images", "1", "--beam-size", "2", "--show-attention", "map.png"]) == 0
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", "--split", "val", "--meteor", "no"]) == 0
    capsys.readouterr()
    assert "has --num-layers 3, not 2" in refusal(["train", "--init-from", "runs", "--num-layers", "2"], capsys)


@pytest.mark.usefixtures("in_folder")
def test_self_critical_training_prints_rewards(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    args = ["--init-from", "runs", "--objective", "scst", "--epochs", "2", "--out", str(tmp_path), "--no-tensorboard"]
    run = fit(*train_config(args))
    lines = capsys.readouterr().out.splitlines()
    assert "weights   of runs" in lines
    number = r"\d\.\d{3}"
    pattern = rf"epoch 1/2   reward {number}   val {number} nats per word   BLEU-4 .* CIDEr .* s   best"
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert any(re.fullmatch(r"best      epoch [12], val \S+ nats per word, CIDEr \d\.\d{4}", line) for line in lines)
    again, found = train_config(["--resume", str(run), "--epochs", "3"])
    assert (again.objective, again.init_from) == ("scst", Path("runs"))
    assert len(read_log(fit(again, found))) == 3


@pytest.mark.usefixtures("in_folder")
def test_a_second_run_in_a_run_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs") / "tiny-lstm-1"
    with lock.alone_in(run):
        message = refusal(["train", "--resume", "--epochs", "9"], capsys)
    assert re.fullmatch(rf"error: {re.escape(str(run))}: .* trains there; wait until it ends, or stop it\n", message)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", "broken"], "coco2014_captions.h5"),
        (["--data", "no-val"], "no split 'val'"),
        (["--data", "tiny", "--device", "cuda"], "--device cuda: PyTorch finds no GPU here"),
        (["--data", "tiny", "--pca-features", "yes"], "pca"),
        (["--data", "tiny", "--cell-type", "attention"], "train2014_grid.h5: no such file; "),
        (["--data", "tiny", "--cell-type", "attention", "--pca-features", "yes"], "grids of features have no PCA"),
        (["--data", "tiny", "--out", "file"], "file: File exists"),
        (["--resume", "--out", "nothing"], "no run in nothing yet"),
        (["--resume", "tiny-rnn-99"], "no run 'tiny-rnn-99', here or in"),
        (["--init-from", "tiny"], str(Path("tiny") / "best.safetensors: no such checkpoint")),
        (["--init-from", "runs", "--hidden-dim", "3"], "has --hidden-dim 16, not 3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_one_line(
    args: list[str], words: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (in_folder / "file").write_text("", encoding="utf-8")
    if "broken" in args:
        broken = write_tiny(in_folder / "broken") / "coco2014_captions.h5"
        broken.write_bytes(broken.read_bytes()[:1000])
    if "no-val" in args:
        with h5py.File(write_tiny(in_folder / "no-val") / "coco2014_captions.h5", "a") as file:
            del file["val_captions"], file["val_image_idxs"]
    assert words in refusal(["train", *args], capsys)
    assert [path.name for path in (in_folder / "runs").iterdir() if path.is_dir()] == ["tiny-lstm-1"]


def test_an_unknown_flag_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--hiden-dim", "3"])
    out, err = capsys.readouterr()
    assert out == ""
    assert "--hidden-dim" in err


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is limited by its address space")
def test_a_model_larger_than_the_memory_is_one_line(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36)); "
    code += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    args = ["--data", "tiny", "--out", "large", "--hidden-dim", "1000000"]
    ended = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "train.py"), *args],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    advice = "make --batch-size, --hidden-dim or --wordvec-dim smaller"
    assert ended.stderr == f"error: not enough memory: 4,000,000,000,000 bytes more were requested; {advice}\n"
    assert not (folder / "large").exists()
