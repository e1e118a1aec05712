"""A run's curves in a TensorBoard event file.

`torch.utils.tensorboard.SummaryWriter` writes in a thread, whose errors are a traceback on stderr. One record per epoch
does not need a thread: here errors are raised by `write`.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_numbers = itertools.count()


class Curves:
    """A new file in `folder`, which is created.

    Args:
        purge_step: entries of other files from this step on are hidden.

    Attributes:
        path: the file; TensorBoard reads the files of a folder in the order of their names.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        host = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in platform.node())
        name = f"events.out.tfevents.{int(time.time()):010d}.{host}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        self._write(
            Event(file_version="brain.Event:2"),
            Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each name.

        Raises:
            OSError: it cannot be written.
        """
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=points)))

    def _write(self, *events: Event) -> None:
        with open(self.path, "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                event.wall_time = time.time()
                writer.write(event.SerializeToString())
