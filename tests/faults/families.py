"""All kinds of faults, in the order of the table."""

from __future__ import annotations

import hostile_photographs
import hostile_urls
from figures import Family

FAMILIES: tuple[Family, ...] = (hostile_urls.FAMILY, hostile_photographs.FAMILY)
