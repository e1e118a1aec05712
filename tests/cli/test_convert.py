"""python -m torch_caption convert: nobody loses a run to a new format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.saved_checkpoint import make, plain
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Of version 1, with a view among its tensors, which version 2 has not."""
    content = plain(make(), version=1, manifest={"projection": {"components": torch.arange(12.0).view(3, 4).T}})
    torch.save(content, tmp_path / "old.pt")
    return tmp_path / "old.pt"


def test_version_1_becomes_version_2(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = old.with_name("new.pt")
    assert main(["convert", str(old), str(new)]) == 0
    assert capsys.readouterr().out == f"{old}: 140 weights, 7 words; written to {new}\n"
    ours, theirs = checkpoints.load(new), checkpoints.load(old, unsealed=True)
    assert ours.progress == theirs.progress
    assert all(torch.equal(ours.weights[name], weight) for name, weight in theirs.weights.items())
    assert torch.equal(ours.manifest["projection"]["components"], torch.arange(12.0).view(3, 4).T)
    assert old.exists()


def test_any_becomes_safetensors(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = old.with_name("best.safetensors")
    assert main(["convert", str(old), str(weights)]) == 0
    assert checkpoints.load(weights).words == make().words
    again = old.with_name("again.pt")
    assert main(["convert", str(weights), str(again)]) == 0
    assert torch.equal(checkpoints.load(again).weights["Wx"], make().weights["Wx"])
    capsys.readouterr()


def test_mistakes_are_one_line(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(old), str(old)]) == 2
    assert capsys.readouterr().err == f"error: {old}: is there already; name another file to write\n"
    assert main(["convert", str(old.with_name("none.pt")), str(old.with_name("new.pt"))]) == 2
    assert capsys.readouterr().err == f"error: {old.with_name('none.pt')}: there is no such checkpoint\n"
    broken = bytearray(old.read_bytes())
    broken[-5000] ^= 1
    old.write_bytes(broken)
    assert main(["convert", str(old), str(old.with_name("new.pt"))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not old.with_name("new.pt").exists()
