"""`share`: a folder for a model hub, which `load` opens."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.command import refusal
from tests.helpers.saved_checkpoint import make
from torch_caption import load
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli.share import ShareConfig, run
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.encoders.extractor import SCENES
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.scenes import dataset as scenes

FILES = ["README.md", "best.safetensors", "config.json", "recipe.json", "vocab.json"]
CROP = {"resize": 256, "crop": 224, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


def front_matter(card: str) -> list[str]:
    assert card.startswith("---\n")
    return card.split("---\n")[1].splitlines()


def test_the_folder_opens_as_the_run(in_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny-captioner"
    assert main(["share", "runs", "--to", str(out)]) == 0
    assert re.match(rf"{re.escape(str(out))}: \d\.\d MB; complete README\.md, then `hf ", capsys.readouterr().out)
    assert sorted(path.name for path in out.iterdir()) == FILES
    ours, theirs = load("runs", device="cpu"), load(out, device="cpu")
    assert all(torch.equal(weight, theirs.checkpoint.weights[name]) for name, weight in ours.checkpoint.weights.items())
    features = ours.open_data()["test"].features_of([3, 5])
    assert theirs.caption(features) == ours.caption(features)
    assert Vocabulary.load(out / "vocab.json").words == ours.vocabulary.words
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["cell_type"], config["data"], config["hidden_dim"]) == ("lstm", "tiny", 16)
    assert json.loads((out / "recipe.json").read_text(encoding="utf-8")) == {"features": "vgg16_fc7"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)[:2] == ["library_name: torch_caption", "pipeline_tag: image-to-text"]
    log = (in_folder / "runs" / "tiny-lstm-1" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    best = json.loads(log[ours.checkpoint.progress["best_epoch"] - 1])
    assert f"| CIDEr | {best['CIDEr']:.4f} |" in card
    assert f"| val_loss | {best['val_loss']:.4f} |" in card


@pytest.mark.usefixtures("in_folder")
def test_the_card_has_the_scores_of_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs", "--format", "json", "--meteor", "no"]) == 0
    printed = capsys.readouterr().out
    scores = tmp_path / "scores.json"
    scores.write_text(printed, encoding="utf-8")
    assert main(["share", "--to", str(tmp_path / "out"), "--scores", str(scores)]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Of 12 images of val, with 24 reference captions; beam search, 5 wide; tokens words." in card
    found = json.loads(printed)
    low, high = found["intervals"]["ROUGE-L"]
    assert f"| ROUGE-L | {found['scores']['ROUGE-L']:.4f} | {low:.4f} to {high:.4f} |" in card


def test_nothing_of_the_machine_is_shared(tmp_path: Path) -> None:
    """The folders of the data and of the weights, the training state, and entries that are not of the recipe."""
    weights = {"name": "mine.pt", "sha256": "0" * 64, "path": "/home/someone/mine.pt", "seed": None}
    recipe = {"encoder": "resnet18", "layers": "x", "transform": CROP, "weights": weights, "features": "vgg16_fc7_pca"}
    recipe |= {"projection": {"mean": torch.zeros(3), "components": torch.ones(3, 3)}, "images": "/home/someone/images"}
    saved = make(manifest=recipe)
    saved.config = dataclasses.replace(
        saved.config, data="/home/someone/secret/birds", init_from=Path("/home/someone/x")
    )
    checkpoints.save(tmp_path / "last.safetensors", saved)
    run(ShareConfig(str(tmp_path / "last.safetensors"), to=tmp_path / "out"))
    assert all(b"someone" not in path.read_bytes() for path in (tmp_path / "out").iterdir())
    shared = checkpoints.load(tmp_path / "out" / "best.safetensors")
    assert (shared.optimizer, shared.random, shared.average, shared.data) == ({}, {}, {}, {})
    assert all(torch.equal(shared.weights[name], average) for name, average in saved.average.items())
    assert shared.manifest["weights"] == {**weights, "path": "mine.pt"}
    assert torch.equal(shared.manifest["projection"]["components"], torch.ones(3, 3))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Data: `birds`." in card
    assert "`vgg16_fc7_pca` of `resnet18`, of width 3, projected;" in card
    assert "`--weights` names the file `mine.pt`." in card
    assert "None are known." in card


def test_a_shared_model_captions_photographs(
    tmp_path: Path, scenes_shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    assert main(["sample", "--checkpoint", str(scenes_shared), str(tmp_path / "red.png")]) == 0
    assert capsys.readouterr().out.startswith(f"{scenes_shared / 'best.safetensors'}\n")
    assert "image encoder" not in (scenes_shared / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def scenes_shared(tmp_path: Path) -> Path:
    recipe = {"encoder": SCENES, "recipe": scenes.VERSION, "features": "grid"}
    saved = make(manifest=recipe)
    config = dataclasses.replace(saved.config, cell_type="attention", data="scenes")
    pixels = torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()
    width = scenes.grid(pixels).shape[0]
    model = CaptioningRNN(Vocabulary(tuple(saved.words)).word_to_idx, width, **config.model_arguments())
    parts = {"weights": dict(model.state_dict()), "config": config, "input_dim": width}
    made = make(manifest=recipe, average={}, optimizer={}, random={}, **parts)
    checkpoints.save(tmp_path / "best.safetensors", made)
    run(ShareConfig(str(tmp_path), to=tmp_path / "shared"))
    return tmp_path / "shared"


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--to", "tiny"], "--to tiny: exists and is not an empty folder; name a new one"),
        (["--to", "runs/last.txt"], "--to runs/last.txt: exists and is not an empty folder"),
        (["--to", "no/where"], "--to no/where: there is no folder no"),
        (["tiny", "--to", "x"], "best.safetensors: no such checkpoint"),
        (["--to", "x", "--scores", "nowhere.json"], "nowhere.json: cannot be read: No such file"),
        (["--to", "x", "--scores", "tiny/coco2014_vocab.json"], "not the output of `evaluate --format json`: "),
        (["--to", "x", "--scores", "list.json"], "list.json: not the output of `evaluate --format json`: "),
        (["--to", "x", "--scores", "partial.json"], "partial.json: not the output of `evaluate --format json`: "),
        (["--to", "x", "--scores", "other.json"], "other.json: has the scores of y, not of runs"),
    ],
)
def test_invalid_arguments_are_one_line(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = {"checkpoint": "y", "decoding": {}, "images": 2, "reference_count": 3, "split": "val", "tokenizer": "words"}
    whole = {**other, "scores": {}, "intervals": {}}
    without = {key: value for key, value in whole.items() if key != "tokenizer"}
    files = {"other": whole, "list": {**whole, "intervals": []}, "partial": without}
    for name, content in files.items():
        Path(f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert words in refusal(["share", *args], capsys)
    assert not Path("x").exists()
