"""The exported captioner makes the captions of the captioner, without this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim

from tests.helpers.command import refusal
from tests.helpers.rings import ringed
from tests.helpers.steppers import captioner, images
from tests.test_docs import blocks
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints
from torch_caption.config import TrainConfig
from torch_caption.inference import export
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS

ROOT = Path(__file__).resolve().parents[2]
T = 7
PAGE_OUT = "captioner.onnx"  # what the page calls the file


MODELS = [*((cell_type, 1) for cell_type in CELLS), ("rnn", 2), ("attention", 3)]  # with numbers of layers


@pytest.fixture(params=ringed(MODELS, [("rnn", 1), ("rnn", 2)]), scope="module")
def model(request: pytest.FixtureRequest) -> CaptioningRNN:
    """Some of its captions end."""
    cell_type, num_layers = request.param
    model = captioner(cell_type, dtype=torch.float32, num_layers=num_layers).eval()
    with torch.no_grad():
        while not (model.sample(pictures(cell_type, 64), T) == 2).any():
            model.b_vocab[2] += 1
    return model


@pytest.fixture(scope="module")
def saved(model: CaptioningRNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the model, with a word that JSON has to escape."""
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    words = ["<NULL>", "<START>", "<END>", "<UNK>", 'l"jardinière"', *(f"w{k}" for k in range(5, 23))]
    config = TrainConfig(wordvec_dim=4, hidden_dim=6, cell_type=model.cell_type, num_layers=model.num_layers)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    manifest = {"encoder": "none"}
    checkpoints.save(path, checkpoints.Checkpoint(weights, config, words, manifest, 5))
    return path


def pictures(cell_type: str, n: int) -> Tensor:
    """Features of n images, places in a row if they have any."""
    features = images(cell_type, n, n, torch.float32)
    return features.flatten(2) if CELLS[cell_type].attends else features


def run(path: Path, features: Tensor) -> Tensor:
    """What onnxruntime makes of it."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
    session = onnxruntime.InferenceSession(path)
    (ids,) = session.run(None, {"features": features.numpy()})
    return torch.from_numpy(ids)


@pytest.fixture(scope="module")
def onnx_file(saved: Path) -> Path:
    """Written by the command line."""
    pytest.importorskip("onnxscript", reason="requirements-export.txt is not installed")
    path = saved.with_name(PAGE_OUT)
    assert main(["export", str(saved), "--out", str(path), "--max-length", str(T)]) == 0
    return path


def test_onnx_makes_the_same_captions(model: CaptioningRNN, onnx_file: Path) -> None:
    for n in (0, 1, 2, 9, 64):
        expected = model.sample(pictures(model.cell_type, n), T)
        assert torch.equal(run(onnx_file, pictures(model.cell_type, n)), expected)
    assert expected.unique(dim=0).shape[0] > 10  # captions differ
    assert len((expected == 2).any(1).unique()) == 2  # some end, some are truncated


def test_the_onnx_file_holds_words_length_and_recipe(onnx_file: Path, saved: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-export.txt is not installed")
    session = onnxruntime.InferenceSession(onnx_file)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert about["words"] == checkpoints.load(saved).words
    assert about["max_length"] == T
    assert about["features"] == {"encoder": "none"}
    (features,), (ids,) = session.get_inputs(), session.get_outputs()
    shape = ["N", 5, "L"] if CELLS[checkpoints.load(saved).config.cell_type].attends else ["N", 5]
    assert (features.name, features.shape, features.type) == ("features", shape, "tensor(float)")
    assert (ids.name, ids.shape, ids.type) == ("ids", ["N", T], "tensor(int64)")
    assert {path.name for path in onnx_file.parent.glob(f"{PAGE_OUT}*")} == {PAGE_OUT}  # one file, weights and all


def test_the_code_of_the_page_prints_the_captions(model: CaptioningRNN, onnx_file: Path, saved: Path) -> None:
    """Without torch and without this package."""
    (code,) = (block.content for block in blocks(ROOT / "docs" / "export.md") if "onnxruntime" in block.content)
    np.save(onnx_file.with_name("features.npy"), pictures(model.cell_type, 9).numpy())
    code += "\nimport sys\nassert not {'torch', 'torch_caption'} & {*sys.modules}\n"
    printed = alone(code, onnx_file.parent)
    words = checkpoints.load(saved).words
    expected = [
        [words[k] for k in row if k not in (0, 2)] for row in model.sample(pictures(model.cell_type, 9), T).tolist()
    ]
    assert printed.splitlines() == [" ".join(caption) for caption in expected]


def alone(code: str, folder: Path) -> str:
    """What a program prints in a folder where this package is not to be found."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True, encoding="utf-8", timeout=240)


@pytest.mark.exhaustive
def test_pt2_makes_the_same_captions_without_this_package(model: CaptioningRNN, saved: Path) -> None:
    path = saved.with_name("captioner.pt2")
    assert main(["export", str(saved), "--out", str(path), "--max-length", str(T)]) == 0
    sizes = [1, 2, 9]
    torch.save([pictures(model.cell_type, n) for n in sizes], path.with_name("pictures.pt"))
    code = """
import json, sys, torch
about = {"words.json": "", "max_length.json": ""}
program = torch.export.load("captioner.pt2", extra_files=about)
captioner = program.module()
torch.save([captioner(x) for x in torch.load("pictures.pt")], "captions.pt")
assert "torch_caption" not in sys.modules
print(len(json.loads(about["words.json"])), about["max_length.json"])
"""
    assert alone(code, path.parent) == f"23 {T}\n"
    for n, captions in zip(sizes, torch.load(path.with_name("captions.pt")), strict=True):
        assert torch.equal(captions, model.sample(pictures(model.cell_type, n), T))


def test_the_graph_makes_the_same_captions(model: CaptioningRNN) -> None:
    """In float64, of no images, without <UNK>, and of a model in training mode, whose dropout is off in the graph."""
    double = captioner(model.cell_type, num_layers=model.num_layers).double().train()
    double.dropout = 0.5
    with torch.no_grad():
        double.b_vocab[3] += 3
    for options in ({}, {"no_unk": True}):
        exported = export.trace(double, T, **options).module()
        for n in (0, 1, 5):
            features = pictures(model.cell_type, n).double()
            expected = double.beam_search(features, 1, T, **options).words.squeeze(1)
            assert torch.equal(exported(features), expected)
    assert (double.sample(pictures(model.cell_type, 5).double(), T) == 3).any()


@pytest.mark.exhaustive
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [Dim.AUTO, Dim.DYNAMIC], ids=["AUTO", "DYNAMIC"])
def test_the_greedy_captioner_is_exported_for_every_batch(model: CaptioningRNN, kind: Any, strict: bool) -> None:
    """Also of T images, whose number is the size of another axis."""
    axes = {0: kind, 2: kind} if model.cell.attends else {0: kind}
    greedy, example = export.Greedy(model, T), pictures(model.cell_type, T)
    with torch.no_grad():
        program = torch.export.export(greedy, (example,), dynamic_shapes=(axes,), strict=strict).module()
        for n in (T, 2, 9, 64):
            features = pictures(model.cell_type, n)
            assert torch.equal(program(features), model.sample(features, T))


def test_captions_without_an_end() -> None:
    model = CaptioningRNN({"<NULL>": 0, "<START>": 1, "a": 2, "b": 3}, 5, 4, 6).eval()
    features = pictures("rnn", 4)
    assert torch.equal(export.trace(model, T).module()(features), model.sample(features, T))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.safetensors", "--out", "x.pt2"], "nowhere.safetensors: no such checkpoint"),
        (["best.safetensors", "--out", "x.txt"], "--out x.txt: the name must end in .onnx or .pt2"),
        (["best.safetensors", "--out", "missing/x.pt2"], "there is no folder missing"),
        (["best.safetensors", "--out", "x.pt2", "--max-length", "0"], "--max-length must be at least 1, not 0"),
        (["best.safetensors", "--out", "folder.pt2"], "folder.pt2"),
        (["best.safetensors", "--out", "x.onnx"], "needs onnx and onnxscript: python -m pip install -r requirements-"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_one_line(
    args: list[str],
    message: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(saved, tmp_path)
    (tmp_path / "folder.pt2").mkdir()
    if args[-1] == "x.onnx":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert message in refusal(["export", *args], capsys)


def test_the_length_of_a_caption_is_at_least_1(model: CaptioningRNN) -> None:
    with pytest.raises(ValueError, match=r"^max_length must be an integer of at least 1, not 0$"):
        export.trace(model, 0)
