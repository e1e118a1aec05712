"""All kinds of faults, in the order of the table."""

from __future__ import annotations

import damaged
import full_disks
import hostile_checkpoints
import hostile_hdf5
import hostile_json
import hostile_photographs
import kills_in_training
import ranks_killed
import saving
import second_runs
from figures import Family

FAMILIES: tuple[Family, ...] = (
    kills_in_training.KILLED,
    saving.KILLED,
    ranks_killed.LOST,
    second_runs.SECOND,
    second_runs.DESCRIPTORS,
    damaged.FLIPPED,
    damaged.TRUNCATED,
    damaged.DATA,
    saving.FULL,
    full_disks.FULL,
    hostile_checkpoints.HOSTILE,
    hostile_photographs.FAMILY,
    hostile_hdf5.HDF5,
    hostile_json.JSON,
)
