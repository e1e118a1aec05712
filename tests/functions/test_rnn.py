"""The vanilla RNN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.helpers.random_arguments import arguments, assert_all_agree, example, tangents, tiny
from torch_caption.functions import reference, rnn, rnn_step
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives


@given(arguments("rnn_step"))
def test_step_agrees(args):
    assert_all_agree(rnn_step, reference.rnn_step, args)


@given(arguments("rnn"))
def test_sequence_agrees(args):
    assert_all_agree(rnn, reference.rnn, args)


@given(tiny("rnn_step"))
def test_step_derivatives(args):
    assert_derivatives(rnn_step, args)


@pytest.mark.exhaustive
@given(tiny("rnn"))
def test_sequence_derivatives(args):
    assert_derivatives(rnn, args)


@pytest.mark.parametrize("lengths", [None, [3, 0], [1, 2]])
def test_derivatives_of_distinct_sizes(lengths):
    args = tuple(example("rnn", D=1, H=2).values())
    assert_derivatives(rnn, (*args, lengths and torch.tensor(lengths)))


def test_a_thousand_steps():
    args = tuple(example("rnn", T=1024, H=8).values())
    assert_agrees(rnn, reference.rnn, args)
    assert_agrees(rnn, reference.rnn, (*args, torch.tensor([1000, 3])))


def test_a_sequence_is_steps():
    x, h0, Wx, Wh, b = example("rnn").values()

    def steps(x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
        hs = []
        for x_t in x.unbind(1):
            h = rnn_step(x_t, h, Wx, Wh, b)
            hs.append(h)
        return torch.stack(hs, 1)

    assert_agrees(rnn, steps, (x, h0, Wx, Wh, b))


def test_nothing_past_the_end_matters():
    """Neither to the output, which is zero there, nor to a derivative; not even where x is not a number."""
    x, h0, Wx, Wh, b = (arg.detach() for arg in example("rnn").values())
    lengths = torch.tensor([1, 2])
    past = torch.arange(3) >= lengths.unsqueeze(1)
    inputs = [arg.clone().requires_grad_() for arg in (x.masked_fill(past.unsqueeze(2), torch.nan), h0, Wx, Wh, b)]
    h = rnn(*inputs, lengths)
    assert (h[past] == 0).all()
    assert (h[~past] != 0).all()
    dx, *others = torch.autograd.grad(h.square().sum(), inputs)
    assert (dx[past] == 0).all()
    assert all(grad.isfinite().all() for grad in (dx, *others))
    pushed = tangents(lambda *args: rnn(*args, lengths), tuple(inputs))[0]
    assert (pushed[past] == 0).all()
    assert pushed.isfinite().all()
    for n, length in enumerate(lengths):
        alone = rnn(x[n : n + 1, :length], h0[n : n + 1], Wx, Wh, b)
        torch.testing.assert_close(h[n, :length], alone[0])


def nn_rnn(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None = None) -> Tensor:
    """torch.nn's, over packed sequences where there are lengths."""
    layer = nn.RNN(*Wx.shape, batch_first=True, dtype=x.dtype)
    weights = {"weight_ih_l0": Wx.T, "weight_hh_l0": Wh.T, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
    if lengths is None:
        return torch.func.functional_call(layer, weights, (x, h0.unsqueeze(0)))[0]
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, _ = torch.func.functional_call(layer, weights, (packed, h0.unsqueeze(0)))
    return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0]


@pytest.mark.parametrize("lengths", [None, [4, 1, 3, 6, 6]])
def test_agrees_with_torch_nn(lengths):
    args = tuple(example("rnn", N=5, T=6).values())
    assert_agrees(rnn, nn_rnn, (*args, lengths and torch.tensor(lengths)))
