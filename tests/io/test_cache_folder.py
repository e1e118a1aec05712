"""The user's folders for what can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from torch_caption.io import cache_folder

XDG = ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the folders have other places there")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*XDG, "MPLCONFIGDIR", cache_folder.CACHE, "HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who is not among the accounts."""
    pwd = pytest.importorskip("pwd")

    def getpwuid(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv(cache_folder.CACHE, str(tmp_path))
    assert cache_folder.cache() == tmp_path


@linux
def test_the_cache_is_in_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder.cache() == tmp_path / ".cache" / "torch_caption"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder.cache() == tmp_path / "xdg" / "torch_caption"


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("named", [None, "~/mine"])
def test_without_a_home_the_error_names_the_variable(named, monkeypatch):
    if named is not None:
        monkeypatch.setenv(cache_folder.CACHE, named)
    with pytest.raises(OSError, match="no home folder; set TORCH_CAPTION_CACHE to a folder that can be written"):
        cache_folder.cache()


@pytest.mark.usefixtures("homeless")
def test_matplotlib_gets_a_folder_of_its_own_without_a_home(monkeypatch, tmp_path):
    given = Path(cache_folder.for_matplotlib()["MPLCONFIGDIR"])
    cache_folder._remove(str(given), os.getpid() + 1)  # a fork of this process
    assert given.is_dir()
    cache_folder._remove(str(given), os.getpid())
    assert not given.exists()


@linux
@pytest.mark.parametrize("name", XDG)
def test_matplotlib_gets_a_folder_of_its_own_where_it_cannot_write(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder.for_matplotlib() == {}
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv(name, str(tmp_path / "file"))
    given = cache_folder.for_matplotlib()
    assert given.keys() == {"MPLCONFIGDIR"}
    cache_folder._remove(given["MPLCONFIGDIR"], os.getpid())


@pytest.mark.usefixtures("homeless")
def test_matplotlibs_own_variable_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    assert cache_folder.for_matplotlib() == {}
