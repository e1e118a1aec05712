"""All kinds of faults, in the order of the table."""

from __future__ import annotations

import damaged
import hostile_checkpoints
import kills_in_training
import ranks_killed
import saving
import second_runs
from figures import Family

FAMILIES: tuple[Family, ...] = (
    damaged.FLIPPED,
    damaged.TRUNCATED,
    hostile_checkpoints.HOSTILE,
    saving.FULL,
    saving.KILLED,
    kills_in_training.KILLED,
    second_runs.SECOND,
    second_runs.DESCRIPTORS,
    ranks_killed.LOST,
)
