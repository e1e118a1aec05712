"""Mutation testing: what is changed, where it takes effect, and that tests fail."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.faults import mutants, mutations
from tests.faults.transplant import transplant

QUICK = [
    "tests/functions/test_modes.py::test_mode_in_float32",
    "tests/functions/test_backward.py::test_in_place_and_plain_gradients_are_the_same",
    "tests/functions/test_backward.py::test_forward_mode_over_a_backward_without_a_graph",
]
FORMULAS = """
def backward(da, x, w, beta):
    \"\"\"da - 1\"\"\"
    check_all(da, 1)
    if not x:
        raise ValueError(f"{x + 1}")
    torch.addmm(da, x.T, w, out=da)
    torch.mul(x, w, out=x).add_(da)
    zip(x, w, strict=True)
    return -da * x[2], x @ w if beta > 0 else None
"""
CHANGES = {
    "torch.addmm(da, x.T, w, out=da) -> torch.addmm(da, x.T, w, out=da, alpha=-1)",
    "torch.addmm(da, x.T, w, out=da) -> torch.addmm(da, x.T, w, out=da, alpha=0)",
    "torch.addmm(da, x.T, w, out=da) -> torch.addmm(da, x.T, w, out=da, beta=0)",
    "torch.addmm(da, x.T, w, out=da) -> pass",
    "x.T -> x",
    "torch.mul(x, w, out=x).add_(da) -> pass",
    "torch.mul(x, w, out=x).add_(da) -> torch.mul(x, w, out=x)",
    "torch.mul(x, w, out=x).add_ -> torch.mul(x, w, out=x).sub_",
    "torch.mul -> torch.div",
    "torch.mul(x, w, out=x) -> torch.mul(x, 1.0, out=x)",
    "torch.mul(x, w, out=x) -> torch.mul(w, 1.0, out=x)",
    "zip(x, w, strict=True) -> pass",
    "-da * x[2], x @ w if beta > 0 else None -> (x @ w if beta > 0 else None, -da * x[2])",
    "-da * x[2] -> ((-da) / x[2])",
    "-da * x[2] -> (-da)",
    "-da * x[2] -> x[2]",
    "-da -> da",
    "2 -> 3",
    "x @ w if beta > 0 else None -> (None if (beta > 0) else (x @ w))",
    "x @ w -> (w @ x)",
    "beta > 0 -> (beta >= 0)",
    "0 -> 1",
}


def test_every_kind_of_change_is_made() -> None:
    """And neither docstrings nor checks nor the words of errors."""
    found = {f"{mutant.before} -> {mutant.after}" for mutant in mutations.mutants(FORMULAS)}
    assert found == CHANGES


BEFORE = """
from functools import cache
STEP = 1
class Counter:
    start = 1
    @staticmethod
    def first(): return Counter.start
    @classmethod
    def second(cls): return cls.start + STEP
@cache
def third(): return 3
def fourth(x=4): return x
"""


def test_a_change_reaches_functions_already_imported(tmp_path: Path) -> None:
    path = tmp_path / "counting.py"
    module = types.ModuleType("counting")
    module.__file__ = str(path)
    exec(compile(BEFORE, path, "exec"), vars(module))

    held = [module.Counter.first, module.Counter.second, module.third, module.fourth]
    after = BEFORE.replace("= 1", "= 10").replace("return 3", "return 30").replace("=4", "=40")
    transplant(module, after)
    assert [function() for function in held] == [10, 20, 30, 40]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(mutants.__file__)), "--jobs", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, encoding="utf-8", env=environment)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
def test_a_few_mutants_are_killed(tmp_path: Path) -> None:
    """By quick tests; `python tests/faults/mutants.py` takes all mutants and all tests."""
    arguments = [*["--find=factors exchanged", "--sample=12", "--resume"], str(tmp_path), "--tests", *QUICK]
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == ["all", "12", "12", "0", "0", "0"]
    assert run(*arguments, "--report").stdout == done.stdout


def test_equivalent_mutants_exist_and_have_a_reason() -> None:
    """Each entry of equivalent.toml is a mutant of today's functions, and has a reason."""
    excused = mutants.excuses()
    assert excused.keys() <= {change.place for change in mutants.of_files()}
    assert all(excused.values())
