"""How much memory data may take: of the machine, or of the container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.tiny_data import write_tiny
from torch_caption.data import _memory
from torch_caption.data.dataset import DataError, open_data

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """64 GiB of memory, and the folder of control groups, which is empty."""
    sizes = {"SC_PHYS_PAGES": 64 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    monkeypatch.setattr(_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(_memory, "OWN_CGROUPS", tmp_path / "own")
    return tmp_path


def limit(machine: Path, group: str, text: str) -> None:
    path = machine / "cgroup" / group
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="ascii")


def test_the_machine_where_nothing_limits_it(machine: Path) -> None:
    assert _memory.available() == 64 * GIB
    limit(machine, "memory.max", "max")
    assert _memory.available() == 64 * GIB
    limit(machine, "memory/memory.limit_in_bytes", "9223372036854771712")
    assert _memory.available() == 64 * GIB


@pytest.mark.parametrize("group", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_container_where_that_has_less(machine: Path, group: str) -> None:
    """It sees its own group as the root, whatever the group is called from within."""
    limit(machine, group, str(2 * GIB))
    assert _memory.available() == 2 * GIB
    (machine / "own").write_text("3:cpu,memory:/docker/7\n0::/../../x\nno such line\n", encoding="utf-8")
    assert _memory.available() == 2 * GIB
    limit(machine, group, str(128 * GIB))
    assert _memory.available() == 64 * GIB


@pytest.mark.parametrize(
    ("line", "group"),
    [("0::/user/job", "user/job/memory.max"), ("7:memory:/user/job", "memory/user/job/memory.limit_in_bytes")],
)
def test_the_least_of_the_groups_around_this_process(machine: Path, line: str, group: str) -> None:
    (machine / "own").write_text(f"1:cpu:/other\n{line}\n", encoding="utf-8")
    limit(machine, group, str(3 * GIB))
    assert _memory.available() == 3 * GIB
    limit(machine, group.replace("user/job", "user"), str(GIB))
    assert _memory.available() == GIB
    limit(machine, group.replace("user/job", "other"), "1")
    assert _memory.available() == GIB


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert _memory.available() is None
    _memory.check_room(2**80, "all", "leave it")
    limit(machine, "memory.max", str(GIB))
    with pytest.raises(
        DataError, match=r"^all would take 2,147,483,648 bytes .* half of the 1,073,741,824 here; leave"
    ):
        _memory.check_room(2 * GIB, "all", "leave it")


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
        DataError, match=rf"captions\.h5: the captions of all splits would take {size:,} bytes .*; leave captions out"
    ):
        open_data(directory, in_memory="no")
