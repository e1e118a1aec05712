"""All kinds of faults, in the order of the table."""

from __future__ import annotations

from figures import Family

FAMILIES: tuple[Family, ...] = ()
