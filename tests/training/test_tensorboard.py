"""The event file of a run, as TensorBoard reads it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torch_caption.training.tensorboard import Curves


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_point_of_each_name(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "tensorboard"
    curves = Curves(folder, purge_step=1)
    curves.write(5, {"val_loss": 0.5, "CIDEr": 1})
    curves.write(10, {"val_loss": 0.25})
    assert read(folder) == {"val_loss": [(5, 0.5), (10, 0.25)], "CIDEr": [(5, 1.0)]}
    assert [path.name for path in folder.iterdir()] == [curves.path.name]


def test_a_later_file_hides_the_points_that_it_repeats(tmp_path: Path) -> None:
    for purge_step, value in ((1, 0.5), (10, 7.0)):
        curves = Curves(tmp_path, purge_step=purge_step)
        for step in (5, 10, 15):
            if step >= purge_step:
                curves.write(step, {"loss": value})
    assert read(tmp_path) == {"loss": [(5, 0.5), (10, 7.0), (15, 7.0)]}


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_truncated_record_hides_no_other(tmp_path: Path, whole: int) -> None:
    curves = Curves(tmp_path, purge_step=1)
    sizes = [curves.path.stat().st_size]
    for step in (1, 2):
        curves.write(step, {"loss": 1.0})
        sizes.append(curves.path.stat().st_size)
    content = curves.path.read_bytes()
    curves.path.write_bytes(content[: sizes[whole] + 3])
    assert sum(map(len, read(tmp_path).values())) == whole


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_full_disk_is_an_error_of_the_write(tmp_path: Path) -> None:
    import resource

    curves = Curves(tmp_path, purge_step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (curves.path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            curves.write(5, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
