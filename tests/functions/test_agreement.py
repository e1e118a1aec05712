"""Every function on random arguments: sizes, layouts, lengths, masks, options and choices of what requires grad."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.random_arguments import FLOATS, PACKED, arguments, assert_all_agree, packed_arguments, tiny
from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.verify.gradcheck import assert_derivatives


@pytest.mark.parametrize("function", [*FLOATS, *PACKED])
@given(data=st.data())
def test_all_derivatives_are_the_oracles(function, data):
    args = data.draw(packed_arguments(function) if function in PACKED else arguments(function))
    assert_all_agree(getattr(functions, function), getattr(reference, function), args)


@pytest.mark.parametrize("function", ringed(FLOATS, {"word_embedding", "dot_product_attention"}))
@settings(max_examples=25)  # of up to two seconds each; the other functions have quick cases of their own
@given(data=st.data())
def test_all_derivatives_are_those_of_finite_differences(function, data):
    assert_derivatives(getattr(functions, function), data.draw(tiny(function, L=3, V=3)))
