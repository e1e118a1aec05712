"""All kinds of faults, in the order of the table."""

from __future__ import annotations

import hostile_hdf5
import hostile_json
from figures import Family

FAMILIES: tuple[Family, ...] = (
    hostile_hdf5.HDF5,
    hostile_json.JSON,
)
