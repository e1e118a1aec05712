"""What every program promises of its streams, of the user's folders, and of signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_data import write_tiny
from torch_caption.__main__ import COMMANDS
from torch_caption.checkpoints import format as checkpoints
from torch_caption.io.exits import SIGNALS

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ["train.py", "sample.py", "benchmarks", *COMMANDS]
SMALL = ["--data", "tiny", "--hidden-dim", "4", "--wordvec-dim", "4", "--epochs", "1", "--max-length", "4"]
# Of a user without an entry among the accounts, who has no HOME either.
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


@posix
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_for_a_reader_who_has_left_ends_without_a_word(program: str, tmp_path: Path) -> None:
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
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_without_streams_and_without_a_home(program: str, tmp_path: Path) -> None:
    """Nothing is said of either; no folder called ~ is made."""
    ended = call(closed("<&- >&-", *homeless(program, "--help")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [*tmp_path.iterdir()] == []


@posix
@pytest.mark.parametrize("program", ["train.py", "check-data"])
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_mistake_keeps_its_status_without_streams(program: str, streams: str, tmp_path: Path) -> None:
    for args in (["--no-such-flag"], {"train.py": ["--lr", "0"]}.get(program, ["nowhere"])):
        ended = call(closed(streams, *command(program, *args)), tmp_path)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert bool(ended.stderr) is ("2>&-" not in streams)


@posix
@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_run_without_streams_is_whole(streams: str, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    ended = call(closed(streams, *command("train.py", *SMALL, "--workers", "1")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert bool(ended.stdout) is (">&-" not in streams.split())
    made = {path.name for path in (tmp_path / "runs" / "tiny-rnn-1").iterdir()}
    assert made >= {"best.safetensors", "last.safetensors", "metrics.jsonl", "loss.png", "gallery.png", "tensorboard"}
    ended = call(closed(streams, *command("sample.py", "--json", "captions.json")), tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "captions.json").is_file()


@posix
def test_what_prints_past_python_reaches_no_file(tmp_path: Path) -> None:
    """A file that is opened would otherwise get the number of a stream that is closed."""
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
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_without_room_is_one_line(tmp_path: Path) -> None:
    ended = call(["sh", "-c", 'exec "$@" >/dev/full', "sh", *command("compare", "--help")], tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_training_from_python_without_streams(tmp_path: Path) -> None:
    """As under pythonw, where both are None."""
    write_tiny(tmp_path / "tiny")
    code = """
import sys
from pathlib import Path
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
def test_a_run_of_a_user_without_a_home(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", pictures=True)
    (tmp_path / "tmp").mkdir()
    ended = call(homeless("train.py", *SMALL), tmp_path, TMPDIR=str(tmp_path / "tmp"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "runs" / "tiny-rnn-1" / "gallery.png").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "runs", "tmp"}
    assert [*(tmp_path / "tmp").glob("*matplotlib*"), *(tmp_path / "tmp").glob("torch_caption*")] == []


@posix
@pytest.mark.parametrize("program", ["train.py", "scenes"])
def test_the_scenes_of_a_user_without_a_home_need_a_folder(program: str, tmp_path: Path) -> None:
    ended = call(homeless(program), tmp_path)
    assert ended.returncode == 2
    line = "error: ~/.cache: this user has no home folder; set TORCH_CAPTION_CACHE to a folder that can be written\n"
    assert ended.stderr == (line if sys.platform == "linux" else ended.stderr)
    assert "TORCH_CAPTION_CACHE" in ended.stderr


@posix
@pytest.mark.parametrize("program", ["train.py", "scenes"])
def test_a_home_that_cannot_be_written_is_told_with_what_to_set(program: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ended = call(command(program), tmp_path, HOME=str(tmp_path / "file"))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"error: {tmp_path / 'file'}")
    assert ended.stderr.endswith("; set TORCH_CAPTION_CACHE to a folder that can be written\n")


# Signals -------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("number", "ignored"), [*((number, False) for number in SIGNALS), (SIGNALS[0], True), (SIGNALS[-1], True)]
)
def test_a_signal_ends_a_program_unless_it_was_ignored_from_the_start(number: int, ignored: bool) -> None:
    """As `nohup` ignores SIGHUP, and a shell's script Ctrl-C for what runs in its background."""
    code = f"""
import signal
before = signal.signal({int(number)}, signal.SIG_IGN) if {ignored} else None
from torch_caption.io.exits import guarded
from torch_caption.training.interrupt import Interrupt
def main():
    with Interrupt() as interrupt:
        signal.raise_signal({int(number)})
        assert interrupt.asked is not {ignored}
    signal.raise_signal({int(number)})
raise SystemExit(guarded(main))
"""
    ended = call([sys.executable, "-c", code], ROOT)
    assert (ended.returncode, ended.stderr) == (0 if ignored else 128 + number, "")


def lost_terminal(line: list[str], cwd: Path) -> tuple[int, str]:
    """Run the program in a terminal of its own, which is closed after the first epoch; its status, and what it said."""
    ours, theirs = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        ["setsid", "--ctty", *line], cwd=cwd, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        while b"epoch      1/" not in said:
            said += os.read(ours, 1000)
        os.close(ours)
        return process.wait(timeout=120), said.decode("utf-8")


@posix
@pytest.mark.skipif(shutil.which("setsid") is None, reason="there is no setsid")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_whose_terminal_is_lost_saves_and_ends(workers: str, tmp_path: Path) -> None:
    """It can print no more, and nor can the bar; the processes that load batches get the signal as well."""
    write_tiny(tmp_path / "tiny")
    long = [*SMALL, "--epochs", "100000", "--patience", "0", "--batch-size", "5", "--workers", workers]
    status, _ = lost_terminal(command("train.py", *long), tmp_path)
    assert status == 128 + signal.SIGHUP
    run = tmp_path / "runs" / "tiny-rnn-1"
    saved = checkpoints.load(run / "last.safetensors").progress
    assert saved["step"] > 4
    ended = call(
        command("train.py", "--resume", f"{run / 'last.safetensors'}", "--epochs", str(saved["epoch"] + 1)), tmp_path
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@posix
@pytest.mark.parametrize("number", [number for number in SIGNALS if number not in (signal.SIGINT, signal.SIGTERM)])
def test_a_signal_to_all_processes_of_a_run_saves_the_last_whole_step(number: int, tmp_path: Path) -> None:
    """As a batch system sends it, to those that load batches as well."""
    write_tiny(tmp_path / "tiny")
    long = [*SMALL, "--epochs", "100000", "--patience", "0", "--batch-size", "5", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(
        command("train.py", *long), cwd=tmp_path, env=environment, text=True, start_new_session=True, **pipes
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch      1/"):
                break
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (128 + number, "")
    step = int(out.splitlines()[-1].split()[3].strip(","))
    assert out.splitlines()[-1].startswith(f"stopped after step {step}, which is saved; `python train.py --resume`")
    assert checkpoints.load(tmp_path / "runs" / "tiny-rnn-1" / "last.safetensors").progress["step"] == step
