"""All kinds of faults, in the order of the table."""

from __future__ import annotations

from tests.faults import (
    full_disks,
    hostile_checkpoints,
    hostile_hdf5,
    hostile_json,
    hostile_photographs,
    kills_in_training,
)
from tests.faults.figures import Family

FAMILIES: tuple[Family, ...] = (
    kills_in_training.KILLED,
    full_disks.FULL,
    hostile_checkpoints.HOSTILE,
    hostile_photographs.FAMILY,
    hostile_hdf5.HDF5,
    hostile_json.JSON,
)
