"""The checksum in the file. That no byte can change unseen: tests/faults/damaged.py."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from torch_caption.checkpoints import checksum as seal


def test_what_is_written_in_any_pieces_is_sealed_alike(tmp_path: Path) -> None:
    plain = io.BytesIO()
    torch.save({"w": torch.arange(1000.0)}, plain)
    data = plain.getvalue()
    made = []
    for size in (1, 7, 21, 22, 23, 100, len(data)):
        file = io.BytesIO()
        sealing = seal.Sealing(file)
        for start in range(0, len(data), size):
            assert sealing.write(data[start : start + size]) == len(data[start : start + size])
        sealing.finish()
        made.append(file.getvalue())
    assert len(set(made)) == 1
    (whole,) = set(made)
    assert whole[-64:] == hashlib.sha256(whole[:-64]).hexdigest().encode()
    assert len(whole) == len(data) + seal.SEAL_SIZE
    assert seal.archive_is_whole(whole)
    assert torch.equal(torch.load(io.BytesIO(whole), weights_only=True)["w"], torch.arange(1000.0))
    (tmp_path / "x.pt").write_bytes(whole)
    assert seal.is_whole(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"0" * 64, b"x" * 63, b"x" * 200])
def test_what_is_not_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    assert not seal.is_whole(tmp_path / "x.pt")
    assert not seal.is_whole(tmp_path / "none.pt")
    assert not seal.is_whole(tmp_path)


def test_what_is_no_archive_is_not_sealed() -> None:
    sealing = seal.Sealing(io.BytesIO())
    sealing.write(b"no archive")
    with pytest.raises(OSError, match="does not end as an archive does"):
        sealing.finish()


def test_sealed_safetensors_are_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(3, dtype=torch.int64)}
    tricky = {"words": json.dumps(['"sha256":"' + "0" * 64 + '"', "ä"], ensure_ascii=False), "format": "pt"}
    made = {b"".join(seal.sealed_weights(safetensors.torch.save(tensors, tricky))) for _ in range(5)}
    (whole,) = made  # the same bytes, in whatever order the library writes its metadata
    assert seal.weights_are_whole(whole)
    (tmp_path / "x.safetensors").write_bytes(whole)
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        metadata = file.metadata()
        assert np.array_equal(file.get_tensor("a"), np.arange(6, dtype=np.float32).reshape(2, 3))
        assert np.array_equal(file.get_tensor("b"), np.arange(3))
    digits = metadata.pop("sha256")
    assert metadata == tricky
    assert digits == hashlib.sha256(whole.replace(digits.encode(), b"0" * 64)).hexdigest()


def test_others_safetensors_are_not_sealed() -> None:
    assert seal.weights_are_whole(safetensors.torch.save({"a": torch.ones(1)})) is None
    assert seal.weights_are_whole(b"") is None
    assert seal.weights_are_whole(b"\xff" * 100) is None
