"""Affine layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.random_arguments import assert_all_agree, tensor
from torch_caption.functions import affine, reference
from torch_caption.verify.gradcheck import assert_derivatives


@given(st.lists(st.integers(0, 3), max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_any_leading_axes(leading, D, M):
    """None, or several; and a width of 0."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(*leading, D), (D, M), (M,)]
    args = tuple(tensor(generator, shape).requires_grad_() for shape in shapes)
    assert affine(*args).shape == (*leading, M)
    assert_all_agree(affine, reference.affine, args)


@pytest.mark.parametrize("leading", [(), (1,), (2, 1, 3)])
def test_derivatives_of_any_leading_axes(leading, randn):
    assert_derivatives(affine, (randn(*leading, 2), randn(2, 3), randn(3)))
