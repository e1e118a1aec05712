"""How much memory data may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.tiny_data import write_tiny
from torch_caption.data import _memory
from torch_caption.data.dataset import open_data
from torch_caption.errors import DataError


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert _memory.available() is None
    _memory.check_room(2**80, "all", "leave it")


def test_what_has_no_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "available", lambda: 2**30)
    _memory.check_room(2**29, "all", "leave it")
    with pytest.raises(
        DataError, match=r"^all would take 2,147,483,648 bytes .* half of the 1,073,741,824 here; leave"
    ):
        _memory.check_room(2**31, "all", "leave it")


def test_this_machine_says_something_sensible() -> None:
    if hasattr(os, "sysconf"):
        assert 2**26 < (_memory.available() or 0) < 2**50


def test_features_of_all_splits_together_take_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone would."""
    directory = write_tiny(tmp_path / "tiny", width=1000)
    size = 3 * 12 * 1000 * 4
    monkeypatch.setattr(_memory, "available", lambda: 2 * size)
    for how in ("yes", "auto"):
        assert open_data(directory, in_memory=how)["val"].in_memory
    monkeypatch.setattr(_memory, "available", lambda: 2 * size - 2)
    with pytest.raises(
        DataError, match=rf"tiny: the features of all splits would take {size:,} bytes .*; read them in slices"
    ):
        open_data(directory, in_memory="yes")
    for how in ("auto", "no"):
        assert not open_data(directory, in_memory=how)["val"].in_memory


def test_captions_of_all_splits_together_take_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_tiny(tmp_path / "tiny")
    size = 3 * 24 * (7 + 1) * 8
    monkeypatch.setattr(_memory, "available", lambda: 2 * size)
    open_data(directory, in_memory="no")
    monkeypatch.setattr(_memory, "available", lambda: 2 * size - 2)
    with pytest.raises(
        DataError, match=rf"captions\.h5: the captions of all splits would take {size:,} bytes .*; remove captions"
    ):
        open_data(directory, in_memory="no")
