"""Saving the checkpoints of a run."""

from __future__ import annotations

from pathlib import Path

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint, Found
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData
from torch_caption.errors import NonFiniteError
from torch_caption.training import distributed
from torch_caption.training.state import TrainingState, for_inference, snapshot


class CheckpointManager:
    """A run's checkpoints: `last.safetensors`, for resuming, and the best weights.

    The best weights are written after the `last.safetensors` of the same step. If the process is killed in between,
    `last.safetensors` is the end of the best epoch, and `start` writes the best weights again.

    Attributes:
        step: the step of `last.safetensors`; -1 if there is none.
    """

    def __init__(self, run: Path, state: TrainingState, config: TrainConfig, data: CocoData) -> None:
        self._run, self._state, self._config, self._data = run, state, config, data
        self.step = self._tried = -1

    @property
    def kept(self) -> str:
        """The step of `last.safetensors`, for a message."""
        return f"{self._run / runs.LAST} is that of step {self.step}" if self.step >= 0 else "nothing is saved yet"

    def start(self, found: Found | None) -> None:
        """Save the initial state, so that the run can be resumed.

        Args:
            found: the checkpoint that the state was restored from; only missing files are written.
        """
        if found is None or found.path != self._run / runs.LAST:
            self.save()
            return
        self.step = self._tried = self._state.progress.step
        if distributed.first() and self._state.progress.ends_best_epoch():
            self._save_best(found.checkpoint)

    def save_steps(self) -> None:
        """`save` if there is a step since the last attempt."""
        if self._state.progress.step > self._tried:
            self.save()

    def save(self) -> None:
        """Save the state, and its weights as the best if this is the end of the best epoch. Rank 0 writes; all ranks
        must call it.

        Raises:
            NonFiniteError: the weights or the optimizer's moments are non-finite.
            OSError: it cannot be written; previous checkpoints are unchanged.
        """
        self._tried = self._state.progress.step
        saved = snapshot(self._state, self._config, self._data)
        if distributed.first():
            try:
                checkpoints.save(self._run / runs.LAST, saved)
            except checkpoints.NonFiniteTensor as error:
                raise NonFiniteError(f"after step {self._tried}: {error}") from error
        self.step = self._tried
        if distributed.first() and self._state.progress.ends_best_epoch():
            self._save_best(saved)

    def _save_best(self, saved: Checkpoint) -> None:
        checkpoints.save(self._run / runs.BEST, for_inference(saved), keep=False)
