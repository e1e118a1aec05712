"""Every program in a process of its own: its streams, the user's folders, and signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from torch_caption.__main__ import COMMANDS
from torch_caption.checkpoints import format as checkpoints

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ringed(["train.py", "sample.py", "benchmarks", *COMMANDS], ["download"])
SMALL = ["--data", "tiny", "--hidden-dim", "4", "--wordvec-dim", "4", "--epochs", "1", "--max-length", "4"]
# Runs a program as a user without an account and without HOME.
HOMELESS = """
import os, sys
os.environ.pop("HOME", None)
try:
    import pwd
except ModuleNotFoundError:
    pass
else:
    def getpwuid(number):
        raise KeyError(number)
    pwd.getpwuid = getpwuid
import runpy
program, sys.argv = sys.argv[1], sys.argv[1:]
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""
posix = pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")


def named(program: str) -> list[str]:
    """A script's path; a module and its command."""
    if program.endswith(".py"):
        return [str(ROOT / program)]
    return [program] if program == "benchmarks" else ["torch_caption", program]


def command(program: str, *args: str) -> list[str]:
    return [sys.executable, *([] if program.endswith(".py") else ["-m"]), *named(program), *args]


def homeless(program: str, *args: str) -> list[str]:
    return [sys.executable, "-c", HOMELESS, *named(program), *args]


def closed(streams: str, *line: str) -> list[str]:
    """The command with streams of its own closed, such as `>&- 2>&-`."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh", *line]


def call(line: list[str], cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MPL", "TORCH_CAPTION"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | changes
    return subprocess.run(
        line, cwd=cwd, env=environment, check=False, capture_output=True, text=True, encoding="utf-8", timeout=240
    )


# Streams -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ringed(["", "2>&-", "<&- >&- 2>&-"], [""]))
@posix
def test_train_and_sample_work_with_any_streams_closed(streams: str, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    ended = call(closed(streams, *command("train.py", *SMALL, "--workers", "1")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert bool(ended.stdout) is (">&-" not in streams.split())
    made = {path.name for path in (tmp_path / "runs" / "tiny-rnn-1").iterdir()}
    assert made >= {"best.safetensors", "last.safetensors", "metrics.jsonl", "loss.png", "gallery.png", "tensorboard"}
    ended = call(closed(streams, *command("sample.py", "--json", "captions.json")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(json.loads((tmp_path / "captions.json").read_text(encoding="utf-8"))["images"]) == 8
    ended = call(closed(streams, *command("train.py", "--lr", "0")), tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert bool(ended.stderr) is ("2>&-" not in streams)


@posix
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_for_a_closed_pipe_ends_silently(program: str, tmp_path: Path) -> None:
    """As `--help | head` may find it, at the first byte."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        ended = subprocess.run(
            command(program, "--help"),
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, stdout=writes,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", timeout=240,
        )  # fmt: skip
    finally:
        os.close(writes)
    assert (ended.returncode, ended.stderr) == (141, "")


@posix
@pytest.mark.exhaustive
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_without_streams_and_without_a_home(program: str, tmp_path: Path) -> None:
    """No message, and no folder called ~."""
    ended = call(closed("<&- >&-", *homeless(program, "--help")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [*tmp_path.iterdir()] == []


@posix
@pytest.mark.exhaustive
def test_output_of_c_code_reaches_no_file(tmp_path: Path) -> None:
    """A file that is opened must not get the descriptor of a closed stream."""
    code = """
import os
from torch_caption.io.exits import guarded
def main():
    with open("file", "wb") as file:
        assert file.fileno() > 2
        for stream in (1, 2):
            os.write(stream, b"from C")
raise SystemExit(guarded(main))
"""
    ended = call(closed("<&- >&- 2>&-", sys.executable, "-c", code), tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@posix
@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_without_room_is_one_line(tmp_path: Path) -> None:
    ended = call(["sh", "-c", 'exec "$@" >/dev/full', "sh", *command("compare", "--help")], tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "error: No space left on device\n")


@pytest.mark.exhaustive
def test_training_from_python_without_streams(tmp_path: Path) -> None:
    """As under pythonw, where both are None."""
    write_tiny(tmp_path / "tiny")
    code = """
import sys
from torch_caption.config import TrainConfig
from torch_caption.training.trainer import fit
sys.stdout = sys.stderr = None
fit(TrainConfig(data="tiny", hidden_dim=4, wordvec_dim=4, epochs=1, max_length=4, score_images=1))
"""
    ended = call([sys.executable, "-c", code], tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "runs" / "tiny-rnn-1" / "loss.png").is_file()


# The user's folders --------------------------------------------------------------------------------------------------


@posix
@pytest.mark.exhaustive
def test_a_user_without_a_home_can_train_but_must_name_a_folder_for_the_scenes(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    (tmp_path / "tmp").mkdir()
    ended = call(homeless("train.py", *SMALL), tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "runs" / "tiny-rnn-1" / "gallery.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "runs", "tmp"}
    assert [*(tmp_path / "tmp").glob("*matplotlib*"), *(tmp_path / "tmp").glob("torch_caption*")] == []
    ended = call(homeless("train.py"), tmp_path)
    assert ended.returncode == 2
    line = "error: ~/.cache: this user has no home folder; set TORCH_CAPTION_CACHE to a folder that can be written\n"
    assert ended.stderr == (line if sys.platform == "linux" else ended.stderr)
    assert "TORCH_CAPTION_CACHE" in ended.stderr
    (tmp_path / "file").write_text("", encoding="utf-8")
    ended = call(command("train.py"), tmp_path, HOME=str(tmp_path / "file"))
    assert ended.returncode == 2
    message = rf"error: {tmp_path / 'file'}.*; set TORCH_CAPTION_CACHE to a folder that can be written\n"
    assert re.fullmatch(message, ended.stderr)


# Signals -------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGTERM, False), (signal.SIGHUP, True), (signal.SIGUSR1, True)],
)
def test_a_signal_saves_the_last_whole_step_which_resumes(number: int, group: bool, tmp_path: Path) -> None:
    """`group`: all processes have the signal, as from a batch system, also the DataLoader workers."""
    write_tiny(tmp_path / "tiny")
    long = [*SMALL, "--epochs", "100000", "--patience", "0", "--batch-size", "5", "--workers", "2" if group else "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command("train.py", *long), cwd=tmp_path, env=environment, text=True, start_new_session=True, **pipes
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch      1/") for line in process.stdout)
        (os.killpg if group else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (128 + number, "")
    step = int(out.splitlines()[-1].split()[3].strip(","))
    assert out.splitlines()[-1].startswith(f"stopped after step {step}, which is saved; `python train.py --resume`")
    assert_resumes(tmp_path, step)


def assert_resumes(folder: Path, step: int | None = None) -> None:
    """The run trains to the end of the epoch after the saved one."""
    last = folder / "runs" / "tiny-rnn-1" / "last.safetensors"
    saved = checkpoints.load(last).progress
    assert step in (None, saved["step"])
    ended = call(command("train.py", "--resume", str(last), "--epochs", str(saved["epoch"] + 1)), folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert checkpoints.load(last).progress["epoch"] == saved["epoch"] + 1


@posix
@pytest.mark.exhaustive
@pytest.mark.skipif(shutil.which("setsid") is None, reason="there is no setsid")
def test_a_run_whose_terminal_is_lost_saves_and_ends(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    long = [*SMALL, "--epochs", "100000", "--patience", "0", "--batch-size", "5", "--workers", "2"]
    ours, theirs = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        ["setsid", "--ctty", *command("train.py", *long)],
        cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        output = b""
        while b"epoch      1/" not in output:
            output += os.read(ours, 1000)
        os.close(ours)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert_resumes(tmp_path)
