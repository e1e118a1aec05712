"""Interrupted runs of `prepare`, complete directories and two runs at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data_directory import contents
from tests.helpers.photo_folder import error_of
from tests.helpers.small_encoder import CHANNELS
from torch_caption.__main__ import main
from torch_caption.data.dataset import open_data
from torch_caption.encoders import pca
from torch_caption.prepare import encoding, prepare
from torch_caption.prepare.prepare import PrepareConfig


def test_ctrl_c_ends_with_a_line_on_how_to_resume(photos, tmp_path, capsys, monkeypatch):
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding.Encoding, "run", stop)
    assert main(photos.arguments(tmp_path / "out")) == 130
    assert capsys.readouterr().err == "stopped: the same command continues\n"


def run_and_kill(args: list[str], out: Path, after: int) -> None:
    """Start the program, and kill it when it has saved the progress of so many photographs."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from tests.helpers import small_encoder; small_encoder.install()\n"
        "from torch_caption.__main__ import main; from torch_caption.prepare import encoding\n"
        "from torch_caption.encoders.encoder import Encoder; encoding.SAVE_SECONDS = 0\n"
        "encode = Encoder.encode\n"
        "import time\n"
        "Encoder.encode = lambda *a, **k: (time.sleep(0.2), encode(*a, **k))[1]\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            done = json.loads((out / ".preparing" / "progress.json").read_text())["done"]
        except (OSError, ValueError):
            done = {}
        if sum(done.values()) >= after:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_resumes_to_the_same_files(photos, tmp_path):
    (photos.images / "train_2.png").write_bytes(b"")
    more = ["--grid", "--pca", "3", "--grid-pca", "4"]
    assert main(photos.arguments(tmp_path / "whole", *more)) == 0
    out = tmp_path / "out"
    run_and_kill(photos.arguments(out, *more), out, 4)
    assert not (out / "coco2014_captions.h5").exists()
    with pytest.raises(ValueError, match="coco2014_vocab"):
        open_data(out)
    with (out / ".preparing" / "train_vectors").open("ab") as file:
        file.write(b"half a row")
    run_and_kill(photos.arguments(out, *more), out, 13)
    assert main(photos.arguments(out, *more)) == 0
    assert contents(out) == contents(tmp_path / "whole")


class Stop(Exception):
    """The end of a run."""


STOPS = {
    "after the first batches": (encoding.Encoding, "_save", 1),
    "before the PCA": (encoding.Encoding, "_fit", 1),
    "in the PCA": (pca, "fit", 1),
    "before the last split": (encoding.Encoding, "_encode", 2),
    "in the writing": (prepare, "write_hdf5", 3),
    "in the moving": (Path, "replace", 0),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_run_resumes_to_the_same_files_wherever_it_stopped(stop, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "FIT_BYTES", 6 * 4 * CHANNELS * 7 * 7)
    config = photos.config(tmp_path / "out", pca=3, grid=True, grid_pca=4)
    prepare.prepare(replace(config, out=tmp_path / "whole"))
    owner, name, count = STOPS[stop]
    original, calls = getattr(owner, name), []

    def stopping(*args: Any, **options: Any) -> Any:
        moving = name == "replace" and args[0].parent.name == "ready" and args[1].parent == tmp_path / "out"
        calls.extend([1] if name != "replace" or moving else [])
        if len(calls) == (count or 4):
            raise Stop
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stopping)
        patch.setattr(encoding, "SAVE_SECONDS", 0)
        with pytest.raises(Stop):
            prepare.prepare(config)
    assert not (tmp_path / "out" / "coco2014_captions.h5").exists()
    prepare.prepare(config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_complete_directory_is_not_changed(photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    same = ["--pca", "3"]
    assert main(photos.arguments(out, *same)) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare.prepare(photos.config(out, pca=3)) == out  # from the command line it was 3.0
    (out / ".preparing").mkdir()  # of a run that was killed at its end
    monkeypatch.setattr(prepare, "_make", None)
    assert main(photos.arguments(out, *same)) == 0
    assert f"{out} is complete: nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    for change in (["--pca", "2"], ["--transform", "caffe"], ["--max-words", "9"], ["--min-count", "14"]):
        message = error_of(photos.arguments(out, *same, *change), capsys)
        assert message.endswith("contains other data, or data of other settings; name another --out")


def test_a_stopped_run_is_not_resumed_with_other_settings(photos, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_write", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare.prepare(photos.config(tmp_path / "out"))
    message = error_of(photos.arguments(tmp_path / "out", "--grid"), capsys)
    assert "left by an interrupted run with other settings or photographs; repeat its command" in message
    (tmp_path / "out" / ".preparing" / "progress.json").write_text("{")
    assert "left by an interrupted run, and damaged" in error_of(photos.arguments(tmp_path / "out"), capsys)


def test_a_second_process_is_refused(photos, tmp_path, capsys, monkeypatch):
    messages: list[str] = []
    make = prepare._make

    def meanwhile(config: PrepareConfig, *args: Any) -> None:
        if not messages:
            messages.append("")
            messages.append(error_of(photos.arguments(tmp_path / "out"), capsys))
        make(config, *args)

    monkeypatch.setattr(prepare, "_make", meanwhile)
    assert main(photos.arguments(tmp_path / "out")) == 0
    assert messages[1].endswith("out: in use by another process")
