"""Dropout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_caption.model.dropout import dropout

P = [0.1, 0.4, 0.5, 0.9]


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_share_and_scale(p, dtype):
    torch.manual_seed(0)
    x = torch.full((1000, 333), 2.0, dtype=dtype)
    out = dropout(x, p)
    assert out.dtype == dtype
    kept = out != 0
    n = x.numel()
    assert abs(int(kept.sum()) - (1 - p) * n) < 5 * (n * p * (1 - p)) ** 0.5  # five standard deviations
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 2 / (1 - p)), rtol=1e-2, atol=0)
    assert len(out[kept].unique()) == 1


def test_no_entry_depends_on_its_neighbours():
    """Four entries come from one number: their bits are independent all the same."""
    torch.manual_seed(0)
    kept = (dropout(torch.ones(4 * 2**16), 0.4) != 0).double().reshape(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / len(kept) ** 0.5
    expected = 0.6 ** torch.arange(5) * 0.4 ** (4 - torch.arange(5)) * torch.tensor([1, 4, 6, 4, 1])
    counts = torch.bincount(kept.sum(1).long(), minlength=5) / len(kept)
    assert (counts - expected).abs().max() < 0.01


def test_the_gradient_is_the_same_product():
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.5)
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(dx * x, out)


@given(shape=st.lists(st.integers(0, 7), max_size=3), p=st.sampled_from([0.0, 1e-9, 0.3, 1 - 1e-9]))
def test_any_shape(shape, p):
    x = torch.ones(shape)
    out = dropout(x, p)
    assert out.shape == x.shape
    assert out.isfinite().all()
    if p < 1e-6:
        assert torch.equal(out, x)


def test_what_is_not_plain_takes_the_dropout_of_torch():
    x = torch.ones(3, 4)
    assert dropout(x.to("meta"), 0.5).is_meta
    per_row = torch.func.vmap(lambda row: dropout(row, 0.5), randomness="different")(torch.ones(50, 4))
    assert len(per_row.unique(dim=0)) > 1
    compiled = torch.compile(lambda x: dropout(x, 0.5), backend="aot_eager", fullgraph=True)
    assert set(compiled(x).unique().tolist()) <= {0.0, 2.0}


def test_a_seed_repeats_it():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(dropout(torch.ones(9, 9), 0.5))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], dropout(torch.ones(9, 9), 0.5))
