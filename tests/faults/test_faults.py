"""A few cases of every kind of fault; `python tests/faults/run.py` injects them by the hundred."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.families import FAMILIES
from tests.faults.figures import Figures, table
from tests.helpers.rings import ringed

BY_NAME = {family.name: family for family in FAMILIES}
FAST = ("hostile-checkpoints", "hostile HDF5", "hostile JSON")


@pytest.mark.parametrize("name", ringed(BY_NAME, FAST))
def test_faults_lose_nothing_and_are_refused(name: str, tmp_path: Path) -> None:
    family = BY_NAME[name]
    figures = family.run(family.short, 0, tmp_path)
    assert figures.cases >= family.short
    assert figures.sound, "\n".join([table({family.name: (figures, 0.0)}), *figures.failures])


def test_figures_are_sound_only_without_a_failure() -> None:
    figures = Figures()
    figures.expect("lost")
    figures.measured("s", 1.5, 2)
    assert figures.sound
    figures.measured("s", 2.5, 2)
    assert not figures.sound
    assert "s 2.5 of 2" in table({"slow": (figures, 1.0)})
    gone = Figures()
    gone.wrong("lost", "seed 3: step 7")
    assert not gone.sound
    assert gone.failures == ["lost: seed 3: step 7"]
