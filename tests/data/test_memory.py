"""How much memory data may take."""

from __future__ import annotations

import os

import pytest

from tests.helpers.tiny_data import write_tiny
from torch_caption.data import _memory
from torch_caption.data.dataset import open_data
from torch_caption.errors import DataError


def test_data_of_any_size_is_loaded_where_the_memory_is_unknown(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert _memory.available() is None
    _memory.check_room(2**80, "all", "leave it")


def test_features_of_all_splits_together_take_at_most_half_of_the_memory(tmp_path, monkeypatch):
    directory = write_tiny(tmp_path / "tiny", width=1000)
    size = 3 * 12 * 1000 * 4
    monkeypatch.setattr(_memory, "available", lambda: 2 * size)
    for how in ("yes", "auto"):
        assert open_data(directory, in_memory=how)["val"].in_memory
    monkeypatch.setattr(_memory, "available", lambda: 2 * size - 2)
    message = rf"tiny: the features of all splits would take {size:,} bytes .* half of the .* here; read them in slices"
    with pytest.raises(DataError, match=message):
        open_data(directory, in_memory="yes")
    for how in ("auto", "no"):
        assert not open_data(directory, in_memory=how)["val"].in_memory


def test_captions_of_all_splits_together_take_at_most_half_of_the_memory(tmp_path, monkeypatch):
    directory = write_tiny(tmp_path / "tiny")
    size = 3 * 24 * (7 + 1) * 8
    monkeypatch.setattr(_memory, "available", lambda: 2 * size)
    open_data(directory, in_memory="no")
    monkeypatch.setattr(_memory, "available", lambda: 2 * size - 2)
    message = rf"captions\.h5: the captions of all splits would take {size:,} bytes .*; remove captions"
    with pytest.raises(DataError, match=message):
        open_data(directory, in_memory="no")
