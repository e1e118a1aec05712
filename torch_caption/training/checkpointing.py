"""A run's checkpoints on the disk: when they are written, and which there are."""

from __future__ import annotations

from pathlib import Path

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.checkpoints.format import Checkpoint, Found
from torch_caption.config import TrainConfig
from torch_caption.data.dataset import CocoData
from torch_caption.errors import NonFiniteError
from torch_caption.training import distributed
from torch_caption.training.state import State, judged, snapshot


class CheckpointManager:
    """A run's checkpoints: `last.safetensors`, to resume from, and the best weights.

    The best weights are written after the `last.safetensors` that says which they are. So a process that is killed
    between the two leaves a `last.safetensors` that is itself the end of the best epoch, and `begin` writes them again.

    Attributes:
        step: which step's state `last.safetensors` is; -1 before there is one.
    """

    def __init__(self, run: Path, state: State, config: TrainConfig, data: CocoData) -> None:
        self._run, self._state, self._config, self._data = run, state, config, data
        self.step = self._tried = -1

    @property
    def kept(self) -> str:
        """What `last.safetensors` is, for a message."""
        return f"{self._run / runs.LAST} is that of step {self.step}" if self.step >= 0 else "nothing is kept yet"

    def begin(self, found: Found | None) -> None:
        """Save the new state, so that the run can be resumed from now on.

        Args:
            found: the checkpoint that the state was restored from: only what is missing of it is written.
        """
        if found is None or found.path != self._run / runs.LAST:
            self.save()
            return
        self.step = self._tried = self._state.progress.step
        if distributed.first() and self._state.progress.ends_best_epoch():
            self._save_best(found.checkpoint)

    def save_steps(self) -> None:
        """`save`, where a step has been taken since the last time that was tried."""
        if self._state.progress.step > self._tried:
            self.save()

    def save(self) -> None:
        """Save the state, and its weights as the best if this is the end of the best epoch. Of all ranks the first
        writes; all have to call it.

        Raises:
            NonFiniteError: the weights, or what the optimizer holds, are not finite after a step.
            OSError: it cannot be written; what was saved before is as it was.
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
        checkpoints.save(self._run / runs.BEST, judged(saved), keep=False)
