"""The oracle has the functions' names and signatures, so that one can stand for the other."""

from __future__ import annotations

import inspect

import pytest

from torch_caption import functions
from torch_caption.functions import reference

NAMES = [name for name in functions.__all__ if name.islower()]


def test_every_function_has_an_oracle():
    own = {name for name, value in vars(reference).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert own == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_same(name):
    assert inspect.signature(getattr(functions, name)) == inspect.signature(getattr(reference, name))
