"""The report at the end of a run, and what is checked for it before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The report is what is tested."""


@pytest.fixture
def config(drawn: Path, tmp_path: Path) -> TrainConfig:
    """One epoch of drawn scenes, in a folder that may be damaged."""
    shutil.copytree(drawn, tmp_path / "drawn")
    return TrainConfig(
        data=str(tmp_path / "drawn"), out=tmp_path / "runs", hidden_dim=8, wordvec_dim=8, epochs=1, score_images=0,
        max_length=6, tensorboard=False, device="cpu",
    )  # fmt: skip


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "truncated": lambda scenes: None,
    "a scene less": lambda scenes: scenes["novel"].pop(),
    "a split less": lambda scenes: scenes.pop("novel"),
    "another colour": lambda scenes: scenes["test"][0]["first"].update(colour="white"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scenes_are_refused_before_the_first_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """By the digest of their file in the manifest, and by their content where an older manifest has no digests."""
    folder = Path(config.data)
    path, manifest = folder / "scenes.json", folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    DAMAGES[damage](content)
    path.write_text(json.dumps(content)[: -1 if damage == "truncated" else None], encoding="utf-8")
    monkeypatch.setattr(trainer, "train_step", lambda *_, **__: pytest.fail("a step was taken"))
    for _ in range(2):
        assert guarded(lambda: fit(config)) == 2
        printed = capsys.readouterr().err
        assert printed.startswith(f"error: {path}: ")
        assert printed.count("\n") == 1
        assert not config.out.exists()
        entries = json.loads(manifest.read_text(encoding="utf-8"))
        manifest.write_text(json.dumps(entries | {"files": {}}), encoding="utf-8")


def fail(*_: Any, **__: Any) -> None:
    raise OSError("no room")


ENDS = {
    "the scenes": (scenes, "judge_split", ["test", "novel", "gallery.png"]),
    "the curves": (report.plots, "loss_curves", ["loss.png"]),
    "the gallery": (report.plots, "gallery", ["gallery.png"]),
    "captions": (report, "caption_images", ["test", "novel", "gallery.png"]),
    "records": (report, "read_log", ["loss.png"]),
}


@pytest.mark.parametrize("what", ENDS)
def test_a_failed_part_of_the_report_leaves_the_others(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    owner, name, lacking = ENDS[what]
    with monkeypatch.context() as patch:
        patch.setattr(report, "closing", lambda *_: None)
        run = fit(config)
    capsys.readouterr()
    monkeypatch.setattr(owner, name, fail)
    report.closing(run, config, open_data(config.data), torch.device("cpu"))
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == len(lacking)
    for line, part in zip(lines, lacking, strict=True):
        assert line.startswith("warning: ")
        assert line.endswith("no room")
        assert part in line
    firsts = [line.split()[0] for line in printed.out.splitlines()]
    expected = ["best", "test:", "novel:", "weights", "curves", "gallery", "`python"]
    lost = {"test": "test:", "novel": "novel:", "loss.png": "curves", "gallery.png": "gallery"}
    assert firsts == [first for first in expected if first not in {lost[part] for part in lacking}]


def test_a_closed_output_ends_the_report_without_a_warning(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(report.plots, "gallery", gone)
    with pytest.raises(BrokenPipeError):
        fit(config)
    assert "warning" not in capsys.readouterr().err
