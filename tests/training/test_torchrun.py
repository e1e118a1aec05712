"""Whole programs with several ranks, started by torchrun: one model, one output, one end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import torchrun
from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.cli.train import train_config


def ended(folder: Path, *flags: str, **options: Any) -> tuple[int, str, str]:
    """The exit status and what was printed."""
    process = torchrun.start(folder, *flags, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for_an_epoch(process: subprocess.Popen[str]) -> None:
    assert any(line.startswith("epoch  ") for line in iter(process.stdout.readline, ""))


def saved_by(folder: Path, out: str) -> checkpoints.Checkpoint:
    """The checkpoint of the step that the output names."""
    (line,) = [line for line in out.splitlines() if line.startswith("stopped after step ")]
    saved = checkpoints.load(runs.find(folder / "runs") / "last.safetensors")
    assert line.startswith(f"stopped after step {saved.progress['step']}, which is saved")
    return saved


def test_torchrun_trains_one_model(tmp_path: Path) -> None:
    """Rank 0 prints and writes for all. A signal stops all after the same step."""
    data = write_tiny(tmp_path / "tiny")
    flags = ["--data", str(data), "--threads", "1", "--workers", "1", "--epochs", "100000", "--patience", "0"]
    process = torchrun.start(tmp_path, *flags)
    wait_for_an_epoch(process)
    assert set(torchrun.pids(tmp_path)) == {0, 1}
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert torchrun.errors(err) == []
    run = runs.find(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == [run.name]
    saved = saved_by(tmp_path, out)
    assert saved.random.keys() == {"0/torch", "1/torch"}


@pytest.mark.exhaustive
@pytest.mark.skipif(os.name != "posix", reason="there are no such signals")
@pytest.mark.parametrize(("name", "whom"), [("SIGUSR1", "ranks"), ("SIGHUP", "torchrun")])
def test_all_ranks_stop_at_a_signal_of_a_terminal_or_a_batch_system(tmp_path: Path, name: str, whom: str) -> None:
    data = write_tiny(tmp_path / "tiny")
    process = torchrun.start(tmp_path, "--data", str(data), "--threads", "1", "--epochs", "100000", "--patience", "0")
    wait_for_an_epoch(process)
    for pid in torchrun.pids(tmp_path).values() if whom == "ranks" else [process.pid]:
        os.kill(pid, getattr(signal, name))
    out, err = process.communicate(timeout=120)
    assert torchrun.errors(err) == []
    saved_by(tmp_path, out)


@pytest.mark.exhaustive
@pytest.mark.parametrize("lost", ["where they meet", "another"])
def test_two_machines_train_together(tmp_path: Path, lost: str) -> None:
    """As two torchruns with a process each; one ends when the other's process is killed."""
    data = write_tiny(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = ("--nnodes", "2", "--rdzv-id", "tiny", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    flags = ["--data", str(data), "--threads", "1", "--epochs", "100000", "--patience", "0"]
    machines = [torchrun.start(tmp_path, *flags, ranks=1, meet=meet)]
    until(lambda: listens(port), machines)
    machines.append(torchrun.start(tmp_path, *flags, ranks=1, meet=meet))
    until((tmp_path / "runs" / "last.txt").exists, machines)
    victim = torchrun.started_by(tmp_path, machines[lost == "another"].pid)
    os.kill(torchrun.pids(tmp_path)[victim], signal.SIGKILL)
    outputs = [machine.communicate(timeout=120) for machine in machines]
    assert all(machine.returncode for machine in machines)
    (line,) = [line for _, err in outputs for line in torchrun.errors(err)]
    assert line.startswith(f"error: rank {1 - victim} has lost another rank, which torchrun names: ")
    assert any("Signal 9 (SIGKILL) received" in err for _, err in outputs)
    checkpoints.load(runs.find(tmp_path / "runs") / "last.safetensors")


@pytest.mark.exhaustive
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
@pytest.mark.parametrize("lost", ["a rank killed", "a rank failed", "torchrun killed"])
def test_the_other_ranks_end_within_seconds(tmp_path: Path, lost: str) -> None:
    """torchrun's report has the root cause last, the output has no traceback, and the checkpoint stays."""
    flags = ["--data", str(write_tiny(tmp_path / "tiny")), "--epochs", "100000", "--patience", "0"]
    fail = "1 30 features.h5: cannot be read" if lost == "a rank failed" else ""
    process = torchrun.start(tmp_path, *flags, ranks=3, fail=fail)
    until(lambda: any(tmp_path.glob("runs/*/last.safetensors")), [process])
    ranks = torchrun.pids(tmp_path)
    started = time.monotonic()
    if lost == "a rank killed":
        os.kill(ranks[1], signal.SIGKILL)
    elif lost == "torchrun killed":
        process.kill()
    _, err = process.communicate(timeout=120)  # whose end is that of all ranks
    assert time.monotonic() - started < 30
    assert process.returncode != 0
    cause = {
        "a rank killed": f"Signal 9 (SIGKILL) received by PID {ranks[1]}",
        "a rank failed": "RankError: rank 1: features.h5: cannot be read",
        "torchrun killed": "",
    }[lost]
    assert cause in err.rpartition("Root Cause (first observed failure)")[2]
    assert cause or torchrun.errors(err) == []
    assert 'train.py", line' not in err
    checkpoints.load(runs.find(tmp_path / "runs") / "last.safetensors")


def listens(port: int) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def until(happens: Callable[[], bool], machines: list[Any], seconds: float = 120) -> None:
    """Wait for it, as long as all of them run."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        assert all(machine.poll() is None for machine in machines), [m.communicate() for m in machines]
        time.sleep(0.05)


@pytest.mark.exhaustive
def test_an_error_in_the_data_is_a_line_of_each_rank_that_meets_it(tmp_path: Path) -> None:
    status, out, err = ended(tmp_path, "--data", str(tmp_path / "nowhere"))
    assert status != 0
    lines = torchrun.errors(err)
    assert lines
    for line in lines:
        assert re.fullmatch(rf"error: rank [01]: {tmp_path / 'nowhere'}: no such folder; .*", line)
    assert "in open_data" not in err  # in torchrun's report neither
    assert out == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_alone_reports_an_invalid_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit) as end:
        train_config(["--hiden-dim", "16"])
    assert end.value.code == 2
    assert ("hiden-dim" in capsys.readouterr().err) is (rank == 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nccl(tmp_path: Path) -> None:
    """As many ranks as there are GPUs, two at most; more are refused."""
    data = write_tiny(tmp_path / "tiny")
    count = torch.cuda.device_count()
    status, _, err = ended(tmp_path, "--data", str(data), "--device", "cuda", ranks=count + 1)
    assert status != 0
    assert f"{count + 1} processes on a machine with {count} GPUs" in torchrun.errors(err)[0]
    if count < 2:
        pytest.skip("one GPU: two ranks need two")
    (tmp_path / "two").mkdir()
    status, _, err = ended(tmp_path / "two", "--data", str(data), "--device", "cuda", "--epochs", "2")
    assert status == 0, err
