"""The progress of a run, and the sums of the current epoch."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from torch_caption.errors import InputError


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        epoch: completed epochs.
        position: completed steps of the current epoch.
        step: completed steps of the run.
        nats, words: the training loss summed over the current epoch, and its number of words.
        norms: the sum of the gradient norms of the current epoch.
        samples, rewards: in self-critical training, the sampled captions of the current epoch so far, and the sum of
            their rewards.
        lr: the learning rate of the last step.
        seconds: the duration of the current epoch.
        best_epoch: the epoch of the best weights, by the lowest validation loss, in self-critical training by the
            highest CIDEr.
        best_loss, best_cider: its validation loss and CIDEr.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    nats: float = 0.0
    words: int = 0
    norms: float = 0.0
    samples: int = 0
    rewards: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_cider: float = -math.inf

    def plain(self) -> dict[str, Any]:
        """The fields for JSON, which has no infinity: `best_loss` and `best_cider` only if they are finite."""
        return {name: value for name, value in vars(self).items() if value not in (math.inf, -math.inf)}

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any]) -> Progress:
        """The inverse of `plain`; a missing field takes its default.

        Raises:
            InputError: a field is unknown, of another type, out of range, or inconsistent with another.
        """
        types = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        for name, value in saved.items():
            if name not in types:
                raise InputError(f"its progress has an unknown field {short(name)}")
            if type(value) not in (int, types[name]):
                raise InputError(f"its progress has {name} {short(value)}, which is not of type {types[name].__name__}")
            if not (0 <= value <= 2**53 if types[name] is int else abs(value) <= sys.float_info.max):
                raise InputError(f"its progress has {name} {short(value)}, which is out of range")
        progress = cls(**saved)
        for name, most in {"best_epoch": "epoch", "position": "step", "samples": "words"}.items():
            if getattr(progress, name) > getattr(progress, most):
                raise InputError(
                    f"its progress has {name} {getattr(progress, name)}, but {most} {getattr(progress, most)}"
                )
        if bool(progress.position) != bool(progress.words):
            raise InputError(f"its progress has words {progress.words}, but position {progress.position}")
        return progress

    def check_epoch(self, steps: int, rewarded: bool) -> None:
        """Raise InputError unless this is consistent with an epoch of this number of steps, with or without rewards."""
        if self.position > steps:
            raise InputError(f"its progress has position {self.position}, but an epoch has {steps} steps")
        if bool(self.samples) != (rewarded and self.position > 0):
            raise InputError(
                f"its progress has samples {self.samples}, but position {self.position} of an epoch that rewards "
                + ("them" if rewarded else "none")
            )

    def count(self, rows: int, loss: float, norm: float, words: int, samples: int, rewards: float) -> None:
        """Count a step: its rows, loss (mean over them), gradient's norm and words, and its `Targets.rewarded`."""
        self.position += 1
        self.step += 1
        self.nats += loss * rows
        self.words += words
        self.norms += norm
        self.samples += samples
        self.rewards += rewards

    def means(self) -> dict[str, float]:
        """The means of the current epoch: the loss of the reference captions, or the rewards of sampled ones."""
        if self.samples:
            return {"reward": self.rewards / self.samples}
        return {"train_loss": self.nats / self.words}

    def is_beaten_by(self, record: Mapping[str, Any], objective: str) -> bool:
        """Whether the record's epoch is better than the best one so far."""
        if objective == "scst":
            return record["CIDEr"] > self.best_cider
        return record["val_loss"] < self.best_loss

    def next_epoch(self) -> Progress:
        """The progress after this epoch, before the next one."""
        return Progress(
            self.epoch + 1,
            step=self.step,
            best_epoch=self.best_epoch,
            best_loss=self.best_loss,
            best_cider=self.best_cider,
        )

    def end_epoch(self, record: Mapping[str, Any], objective: str) -> Progress:
        """`next_epoch`, with this epoch as the best if its record is."""
        done = self.next_epoch()
        if self.is_beaten_by(record, objective):
            done.best_epoch, done.best_loss = done.epoch, record["val_loss"]
            done.best_cider = record.get("CIDEr", -math.inf)
        return done

    def ends_best_epoch(self) -> bool:
        """Whether the current weights are those of the best epoch."""
        return self.position == 0 and 0 < self.epoch == self.best_epoch
