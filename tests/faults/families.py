"""All kinds of faults, in the order of the table."""

from __future__ import annotations

import damaged
import ranks_killed
from figures import Family

FAMILIES: tuple[Family, ...] = (damaged.FLIPPED, damaged.TRUNCATED, ranks_killed.LOST)
