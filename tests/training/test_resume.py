"""Stopped and killed runs resume to the bit; what cannot be resumed is refused."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.rings import ringed
from tests.helpers.tiny_data import write_tiny
from tests.helpers.training import CPU, EVERY_OPTION, Killed, assert_same, failing, records_of
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData
from torch_caption.errors import CheckpointError, NonFiniteError, WorkerLost
from torch_caption.io import files
from torch_caption.io.exits import Stopped
from torch_caption.training import report, trainer
from torch_caption.training.log import Log, read_log
from torch_caption.training.state import resume, source
from torch_caption.training.trainer import fit, train_step, validate

SCST: dict[str, Any] = {"objective": "scst"}
RESUMED: list[tuple[str, int, list[int], dict[str, Any]]] = [  # cell, workers, after which steps, options
    ("rnn", 0, [7], {}),
    ("rnn", 0, [2, 7, 10], EVERY_OPTION),
    ("lstm", 2, [8], EVERY_OPTION),
    ("attention", 0, [5], SCST | {"ema": 0.9}),
    ("rnn", 0, [5], {}),
    ("lstm", 0, [3, 9], {}),
    ("rnn", 2, [8], {}),
    ("attention", 2, [10], {}),
    ("attention", 0, [7], EVERY_OPTION),
    ("rnn", 0, [2, 3, 7], SCST | {"ema": 0.9}),
    ("lstm", 2, [5], SCST),
]


@pytest.mark.parametrize("case", ringed(range(len(RESUMED)), range(4)))
def test_a_resumed_run_ends_as_if_never_stopped(
    config: TrainConfig, stopping: Callable[[int], None], capsys: pytest.CaptureFixture[str], case: int
) -> None:
    cell_type, workers, steps, options = RESUMED[case]
    config = replace(config, cell_type=cell_type, workers=workers, dropout=0.5)
    if options.get("objective") == "scst":  # three steps an epoch
        options = options | {"init_from": fit(config), "lr": 1e-3}
    config = replace(config, **options)
    whole = fit(config)
    assert bool(checkpoints.load(whole / "last.safetensors").average) is ("ema" in options)
    resumed = config
    done = 0
    for step in steps:
        stopping(step - done)
        with pytest.raises(KeyboardInterrupt):
            fit(resumed)
        assert f"stopped after step {step}, which is saved" in capsys.readouterr().out
        resumed, done = replace(config, resume="last"), step
    stopping(0)
    torch.manual_seed(99)  # a new process has another random state
    run = fit(resumed)
    assert run != whole
    assert_same(whole, run)


def test_a_finished_run_resumes_for_more_epochs(config: TrainConfig) -> None:
    config = replace(config, lr_schedule="constant", epochs=2)
    run = fit(config)
    assert fit(replace(config, resume="last")) == run
    assert len(read_log(run)) == 2
    fit(replace(config, resume="last", epochs=3))
    assert records_of(run) == records_of(fit(replace(config, epochs=3)))


def test_moving_average_and_weight_decay_may_change_on_resume(config: TrainConfig, data: CocoData) -> None:
    run = fit(replace(config, epochs=1, lr_schedule="constant"))
    fit(replace(config, epochs=2, lr_schedule="constant", ema=0.5, resume="last"))
    assert checkpoints.load(run / "last.safetensors").average
    fit(replace(config, epochs=3, lr_schedule="constant", resume="last"))
    assert not checkpoints.load(run / "last.safetensors").average
    config = replace(config, weight_decay=0.25, resume="last")
    found = source(config)
    assert found is not None
    state, _ = resume(config, data, CPU, found)
    assert [group["weight_decay"] for group in state.optimizer.param_groups] == [0.25, 0.0]


def test_incompatible_runs_are_not_resumed(
    config: TrainConfig, stopping: Callable[[int], None], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no run in"):
        fit(replace(config, resume="last"))
    stopping(2)
    with pytest.raises(KeyboardInterrupt):
        fit(config)
    for change in ({"hidden_dim": 17}, {"cell_type": "lstm"}, {"dtype": "float64"}, {"batch_size": 6}, {"seed": 5}):
        (name,) = change
        with pytest.raises(CheckpointError, match=f"has --{name.replace('_', '-')} "):
            fit(replace(config, resume="last", **change))
    with pytest.raises(CheckpointError, match="no run 'elsewhere'"):
        fit(replace(config, resume="elsewhere"))
    wide = write_tiny(tmp_path / "wide", width=9)
    with pytest.raises(CheckpointError, match=r"trained on features of width 8, but those of .*wide have 9"):
        fit(replace(config, resume="last", data=str(wide)))
    run = runs.find(config.out)
    best = checkpoints.load(run / "last.safetensors")
    checkpoints.save(run / "last.safetensors", replace(best, random={}))
    with pytest.raises(CheckpointError, match="without its training state"):
        fit(replace(config, resume="last"))


@pytest.mark.parametrize("every", ringed([0, 2], [0]))
def test_a_run_killed_between_two_files_loses_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Killed before each file that is written, and before each record."""
    config = replace(config, epochs=2, ema=0.5, checkpoint_every=every)
    whole = fit(config)
    written, victim = 0, 0

    def dying(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            nonlocal written
            written += 1
            if written == victim:
                raise Killed
            write(*args, **kwargs)

        return wrapped

    monkeypatch.setattr("torch_caption.io.files.replace", dying(files.replace))
    monkeypatch.setattr(Log, "write", dying(Log.write))
    dead = config.out / "other"
    while True:
        victim, written = victim + 1, 0
        shutil.rmtree(dead, ignore_errors=True)
        try:
            run = fit(replace(config, out=dead))
            break
        except Killed:
            pass
        begun = (dead / runs.POINTER).exists()
        run = fit(replace(config, out=dead, resume="last" if begun else None))
        assert_same(whole, run)
    assert_same(whole, run)
    assert victim > 10


@pytest.mark.parametrize("name", ringed(["validate", "score"], ["validate"]))
def test_a_signal_interrupts_validation_which_is_repeated_on_resume(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(config)
    calls = iter(range(9))
    judge = getattr(trainer, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("validation was not interrupted")
        return judge(*args, **kwargs)

    monkeypatch.setattr(trainer, name, interrupted)
    with pytest.raises(Stopped):
        fit(config)
    run = runs.find(config.out)
    progress = checkpoints.load(run / "last.safetensors").progress
    assert (progress["epoch"], progress["position"], progress["step"]) == (1, 5, 10)
    assert "stopped after step 10, which is saved" in capsys.readouterr().out
    monkeypatch.setattr(trainer, name, judge)
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.parametrize("call", ringed([1, 2, 3], [1]))
def test_a_signal_while_saving_waits_for_the_save(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The signal comes while the run saves within an epoch, after its last step, and at its end."""
    config = replace(config, epochs=1, checkpoint_every=3)
    whole = fit(config)
    save, calls = checkpoints.save, iter(range(99))

    def interrupted(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "last.safetensors" and next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        save(path, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(Stopped):
        fit(config)
    run = runs.find(config.out)
    progress = checkpoints.load(run / "last.safetensors").progress
    assert (progress["step"], progress["epoch"]) == {1: (4, 0), 2: (5, 0), 3: (5, 1)}[call]
    monkeypatch.setattr(checkpoints, "save", save)
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")
@pytest.mark.parametrize("signalled", [False, True])
def test_a_lost_worker_stops_the_run_after_a_whole_step(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], signalled: bool
) -> None:
    """`signalled`: the run has the signal as well, as when a batch system stops all processes of a job."""
    config = replace(config, workers=2, batch_size=2)
    whole = fit(config)
    steps = iter(range(10**6))

    def struck(*args: Any, **kwargs: Any) -> tuple[float, float]:
        if next(steps) == 14:
            if signalled:
                signal.raise_signal(signal.SIGTERM)
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGTERM)
                worker.join()
        return train_step(*args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", struck)
    lost = r"^process \d+.* of --workers was killed or has exited; .*last.safetensors is that of step 1[4-8]$"
    kind, message = (Stopped, "SIGTERM") if signalled else (WorkerLost, lost)
    capsys.readouterr()
    with pytest.raises(kind, match=message):
        fit(config)
    saved = checkpoints.load(runs.find(config.out) / "last.safetensors").progress["step"]
    assert 14 <= saved <= 18  # each of two workers may have had two batches ready
    assert f"stopped after step {saved}, which is saved; `python -m" in capsys.readouterr().out
    assert not multiprocessing.active_children()
    assert_same(whole, fit(replace(config, resume="last")))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not sent to processes there")
def test_a_signal_to_all_processes_between_two_epochs_stops_the_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker exits before the main process has handled the signal."""
    config = replace(config, workers=2)
    whole = fit(config)

    def struck(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
            worker.join()

    with monkeypatch.context() as patch:
        patch.setattr(report, "epoch", struck)
        with pytest.raises(Stopped, match="SIGTERM"):
            fit(config)
    assert_same(whole, fit(replace(config, resume="last")))


def test_an_epoch_is_saved_before_its_validation(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run killed in its validation loses no step, and no step is saved twice."""
    whole = fit(config)
    saves: list[int] = []
    save = checkpoints.save

    def counted(path: Path, saved: Checkpoint, **kwargs: Any) -> None:
        if path.name == "last.safetensors":
            saves.append(saved.progress["step"])
        save(path, saved, **kwargs)

    monkeypatch.setattr(checkpoints, "save", counted)
    fit(replace(config, checkpoint_every=5, epochs=2))
    assert saves == [0, 5, 5, 10, 10]
    monkeypatch.setattr(trainer, "validate", failing(validate, 1, Killed()))
    with pytest.raises(Killed):
        fit(config)
    saves.clear()
    monkeypatch.setattr(trainer, "validate", validate)
    assert_same(whole, fit(replace(config, resume="last")))
    assert saves == [5, 10, 10, 15, 15]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_no_descriptor_is_left_open(config: TrainConfig, stopping: Callable[..., None]) -> None:
    """By stopped, resumed and diverged runs, with DataLoader workers and TensorBoard."""

    def once() -> int:
        stopping(7)
        with pytest.raises(Stopped):
            fit(loud)
        stopping(0)
        fit(replace(loud, resume="last"))
        with pytest.raises(NonFiniteError):
            fit(replace(loud, lr=1e39, clip=0.0, lr_schedule="constant"))
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    loud = replace(config, workers=2, tensorboard=True, epochs=2)
    first = once()
    assert once() <= first  # fewer: an earlier test's workers have ended meanwhile
