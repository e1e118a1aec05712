"""What a run tells in its end, and what of it is known before its first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_caption.config import TrainConfig
from torch_caption.data.dataset import open_data
from torch_caption.io.exits import guarded
from torch_caption.scenes import dataset as scenes
from torch_caption.training import report, trainer
from torch_caption.training.trainer import fit

SIZES = {"train": 20, "val": 4, "test": 5, "novel": 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.ensure(tmp_path_factory.mktemp("scenes"), sizes=SIZES, progress=False)


@pytest.fixture
def config(drawn: Path, tmp_path: Path) -> TrainConfig:
    """One epoch of drawn scenes, in a folder that may be damaged."""
    shutil.copytree(drawn, tmp_path / "drawn")
    return TrainConfig(
        data=str(tmp_path / "drawn"), out=tmp_path / "runs", hidden_dim=8, wordvec_dim=8, epochs=1, score_images=0,
        max_length=6, tensorboard=False, device="cpu",
    )  # fmt: skip


def unmark(folder: Path) -> None:
    """Take the marks of files out of the manifest, as older ones have none."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("damage", ["cut off", "a scene less", "a split less", "another colour"])
def test_scenes_that_cannot_judge_are_found_before_the_first_step(
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
    marked: bool,
) -> None:
    path = Path(config.data) / "scenes.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    if damage == "a scene less":
        content["novel"].pop()
    elif damage == "a split less":
        del content["novel"]
    elif damage == "another colour":
        content["test"][0]["first"]["colour"] = "white"
    text = json.dumps(content)
    path.write_text(text[:-1] if damage == "cut off" else text, encoding="utf-8")
    if not marked:
        unmark(path.parent)
    monkeypatch.setattr(trainer, "train_step", lambda *_, **__: pytest.fail("a step was taken"))
    assert guarded(lambda: fit(config)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ")
    assert said.count("\n") == 1
    assert not config.out.exists()


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no room")


ENDS = {
    "a file of scenes that went": (scenes, "score", ["test", "novel", "gallery.png"]),
    "a picture that cannot be written": (report.plots, "loss_curves", ["loss.png"]),
    "another": (report.plots, "gallery", ["gallery.png"]),
    "captions": (report, "caption_images", ["test", "novel", "gallery.png"]),
    "records": (report, "read_log", ["loss.png"]),
}


@pytest.mark.parametrize("what", ENDS)
def test_what_fails_in_the_end_takes_nothing_else_with_it(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    owner, name, lacking = ENDS[what]
    with monkeypatch.context() as patch:
        patch.setattr(report, "closing", lambda *_: None)
        run = fit(config)
    capsys.readouterr()
    monkeypatch.setattr(owner, name, fail)
    report.closing(run, config, open_data(config.data), torch.device("cpu"))
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == len(lacking)
    for line, part in zip(lines, lacking, strict=True):
        assert line.startswith("warning: ")
        assert line.endswith("no room")
        assert part in line
    firsts = [line.split()[0] for line in said.out.splitlines()]
    expected = ["best", "test:", "novel:", "weights", "curves", "gallery", "`python"]
    lost = {"test": "test:", "novel": "novel:", "loss.png": "curves", "gallery.png": "gallery"}
    assert firsts == [first for first in expected if first not in {lost[part] for part in lacking}]


def test_that_nobody_reads_the_output_is_no_warning(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(report.plots, "gallery", gone)
    with pytest.raises(BrokenPipeError):
        fit(config)
    assert "warning" not in capsys.readouterr().err
