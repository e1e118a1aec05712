"""Sequences without their padding: rows step after step, longest sequence first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.random_arguments import FLOATS, LAYOUTS, example, shape_of, tensor
from torch_caption import functions
from torch_caption.functions.packing import (
    Pack,
    Packing,
    Unpack,
    first_step,
    last_rows,
    lengths_from_mask,
    scatter_sum,
    shifted_states,
    split_steps,
    steps_of,
)
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives

LENGTHS = torch.tensor([2, 4, 3])


def test_the_example_of_the_docstring():
    packed = Packing.of(3, 4, LENGTHS)
    assert packed.sorted_indices.tolist() == [1, 2, 0]
    assert packed.batch_sizes == (3, 3, 2, 1)
    letters = torch.tensor([[*b"ab.."], [*b"efgh"], [*b"ijk."]])
    assert bytes(packed.pack_integers(letters).tolist()) == b"eiafjbgkh"


def test_without_lengths_steps_are_whole():
    packed = Packing.of(2, 3)
    assert (packed.batch_sizes, packed.sorted_indices, packed.indices, packed.padding) == (3, None, None, None)
    assert steps_of(3, torch.empty(2, 5)) == (2, 2, 2)
    assert packed.pack_integers(torch.tensor([[1, 2, 3], [4, 5, 6]])).tolist() == [1, 4, 2, 5, 3, 6]


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(5, 6), st.integers(1, 3))
def test_unpacking_is_the_inverse_of_packing(lengths, T, D):
    N = len(lengths)
    packed = Packing.of(N, T, torch.tensor(lengths, dtype=torch.int64))
    x = torch.randn(N, T, D)
    past = torch.arange(T) >= torch.tensor(lengths, dtype=torch.int64).reshape(-1, 1)
    rows = packed.pack(x)
    assert len(rows) == sum(lengths) == sum(packed.batch_sizes)
    assert torch.equal(packed.unpack(rows), x.masked_fill(past.unsqueeze(2), 0))
    assert torch.equal(packed.sort(x[:, 0]), x[:, 0][packed.sorted_indices])
    assert list(packed.batch_sizes) == sorted(packed.batch_sizes, reverse=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_taken_and_put_back_have_every_derivative(layout):
    indices = torch.tensor([4, 0, 3])
    generator = torch.Generator().manual_seed(0)

    def take(x: Tensor) -> Tensor:
        return Pack.apply(x, indices)

    def put(x: Tensor) -> Tensor:
        return Unpack.apply(x, indices, 5)

    x = tensor(generator, (5, 2), layout).requires_grad_()
    assert_agrees(take, lambda x: x[indices], (x,))
    y = tensor(generator, (3, 2), layout).requires_grad_()
    assert_agrees(put, lambda y: torch.zeros(5, 2, dtype=y.dtype).index_put((indices,), y), (y,))


def test_rows_taken_and_put_back_in_every_mode(randn):
    packed = Packing.of(3, 4, LENGTHS)
    assert_derivatives(packed.pack, (randn(3, 4, 2),))
    assert_derivatives(packed.unpack, (randn(9, 2),))


def test_padding_is_in_no_product():
    """Not even where it is not a number; and what it holds is not read."""
    x, h0, Wx, Wh, b = example("rnn", N=3, T=4).values()
    seen = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
                seen.append(max(arg.shape[0] for arg in args if isinstance(arg, Tensor) and arg.dim() == 2))
            return func(*args, **(kwargs or {}))

    with Watched():
        functions.rnn(x, h0, Wx, Wh, b, LENGTHS).sum().backward()
    assert max(seen) == int(LENGTHS.sum())  # of 12 positions


def test_a_length_ends_at_the_last_real_word():
    real = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert lengths_from_mask(real).tolist() == [3, 0, 4]
    assert lengths_from_mask(real[:, :0]).tolist() == [0, 0, 0]
    assert lengths_from_mask(real[:0]).tolist() == []


def test_previous_states():
    h0, h = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[4.0], [5.0], [6.0], [7.0], [8.0]])
    assert shifted_states(h0, h, (2, 2, 1)).squeeze(1).tolist() == [1, 2, 4, 5, 6]
    assert shifted_states(h0, h[:0], ()).shape == (0, 1)


ENDS = [(4, 3, 1), (3, 3, 3), (2, 2, 0), (0, 0), (), 2]


@pytest.mark.parametrize("batch_sizes", ENDS, ids=str)
def test_last_rows(batch_sizes):
    """Of N = 4 sequences: each one's last of h, or its first state."""
    first = torch.arange(4).unsqueeze(1)
    steps = steps_of(batch_sizes, first)
    h = torch.cat([torch.arange(n) + 10 * t for t, n in enumerate(steps, 1)] or [first[:0, 0]]).unsqueeze(1)
    length = [sum(k < n for n in steps) for k in range(4)]
    assert last_rows(first, h, batch_sizes).squeeze(1).tolist() == [10 * t + k for k, t in enumerate(length)]


def test_last_rows_in_every_mode(randn):
    assert_derivatives(lambda first, h: last_rows(first, h, (3, 1, 1)), (randn(4, 2), randn(5, 2)))


def test_last_rows_are_a_copy(randn):
    """Not a view, which would keep all of h in memory."""
    first, h = randn(2, 3).detach(), randn(4, 3).detach()
    assert last_rows(first, h, 2).untyped_storage().nbytes() == first.untyped_storage().nbytes()


def test_no_steps():
    """T = 0: nothing to go through, no row to begin with."""
    assert split_steps(torch.empty(0, 2), ()) == ()
    assert first_step(torch.ones(3, 2), ()).shape == (0, 2)
    assert torch.equal(first_step(torch.arange(6).reshape(3, 2), (2, 1)), torch.tensor([[0, 1], [2, 3]]))


def test_scatter_sum_under_vmap_over_the_index():
    """Under vmap over the index alone: what comes back is the same for all examples, and has no axis of theirs."""
    dout, index = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[0, 1, 1], [3, 3, 3]])
    each = torch.func.vmap(lambda index: scatter_sum(dout, index, 4))(index)
    assert each.squeeze(2).tolist() == [[1, 6, 0, 0], [0, 0, 0, 7]]


INCREASING = "batch_sizes must not increase, from at most N = 2 to 0 or more, but are "


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_sizes": (2, 3)}, ValueError, f"{INCREASING}[2, 3]"),
        ({"batch_sizes": (3, 2)}, ValueError, f"{INCREASING}[3, 2]"),
        ({"batch_sizes": (2, -1)}, ValueError, f"{INCREASING}[2, -1]"),
        ({"batch_sizes": (2, 1)}, ValueError, "batch_sizes add up to 3, but x has 4 rows"),
        ({"batch_sizes": 3}, ValueError, "batch_sizes add up to 6, but x has 4 rows"),
        ({"index": torch.tensor([0, 4, 1, 1])}, IndexError, "index[1] is 4, but x has 4 rows (0 to 3)"),
        ({"index": torch.tensor([0, 1, 1])}, ValueError, "index must be (r) with r = 4, but is (3,)"),
        ({"index": torch.ones(4)}, TypeError, "index must hold integers, but is float32"),
    ],
)
@pytest.mark.parametrize("function", ["packed_rnn", "packed_lstm", "packed_gru"])
def test_wrong_batch_sizes_and_indices_are_refused(function, changes, error, message):
    specs = FLOATS[function.removeprefix("packed_")]
    args = {name: torch.ones(shape_of(spec, {"N": 2, "T": 2, "D": 2, "H": 3})) for name, spec in specs.items()}
    args |= {"x": torch.ones(4, 2), "batch_sizes": (2, 2)}
    getattr(functions, function)(**args)
    with pytest.raises(error) as raised:
        getattr(functions, function)(**{**args, **changes})
    assert str(raised.value) == f"{function}: {message}"
