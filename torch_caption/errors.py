"""The errors of this package for causes outside its code, each with the exit status of a command.

    TorchCaptionError
      UsageError (2)   ConfigError, RunInUse
      InputError (2)   DataError, CheckpointError, ImageError, EncoderError, DownloadError
      RunFailure (1)   NonFiniteError, OutOfMemory, WorkerLost, RankError

The message of each is one line: what is wrong, where (file, dataset, row, value), and what to do. A command prints that
line alone. Functions and modules raise Python's own TypeError, ValueError and IndexError for wrong arguments; those and
every other exception show a bug when they end a command, which then prints the traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "EncoderError",
    "ImageError",
    "InputError",
    "NonFiniteError",
    "OutOfMemory",
    "RankError",
    "RunFailure",
    "RunInUse",
    "TorchCaptionError",
    "UsageError",
    "WorkerLost",
]


class TorchCaptionError(Exception):
    """The base of all errors that are not bugs of this package.

    Attributes:
        status: the exit status of a command that ends with it.
    """

    status: int = 1


class UsageError(TorchCaptionError, ValueError):
    """The request itself cannot be carried out."""

    status = 2


class ConfigError(UsageError):
    """A command, flag, setting or argument has a value that cannot be used here, or something it needs is missing."""


class RunInUse(UsageError):
    """Another process trains in the run's directory, or another run trains in this process."""


class InputError(TorchCaptionError, ValueError):
    """A file, or the response of a server, is missing or cannot be used.

    Raised itself if the kind of file is unknown, as by readers of text and JSON.
    """

    status = 2


class DataError(InputError):
    """A data directory, an annotation file, or a dataset in one of them, is missing, damaged or inconsistent."""


class CheckpointError(InputError):
    """A run or a checkpoint is missing or damaged, or does not fit the settings or the data."""


class ImageError(InputError):
    """A picture cannot be read, decoded or fetched."""


class EncoderError(InputError):
    """An image encoder, its weights or its library is missing, damaged, or not the one that made the features."""


class DownloadError(InputError):
    """A download failed, or its content cannot be used; the same command resumes it."""


class RunFailure(TorchCaptionError):
    """The request and its input were accepted, and the work failed."""


class NonFiniteError(RunFailure):
    """The loss, its gradient or a weight is NaN or infinite.

    Args:
        rows: the rows of the batch with a non-finite loss, if known.
        advice: a possible remedy.
    """

    def __init__(self, message: str, rows: Sequence[int] = (), *, advice: str = "a lower --lr may help") -> None:
        super().__init__(message)
        self.rows = rows
        self.advice = advice


class OutOfMemory(RunFailure):
    """The machine or its GPU has too little memory."""


class WorkerLost(RunFailure):
    """A process that loads batches was killed or has exited."""


class RankError(RunFailure):
    """One of several training processes failed; the message has its rank.

    Args:
        status: of the error that ended it.
    """

    def __init__(self, message: str, status: int = RunFailure.status) -> None:
        super().__init__(message)
        self.status = status
