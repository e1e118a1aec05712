"""Long short-term memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.helpers.random_arguments import arguments, assert_all_agree, example, tangents, tensor, tiny
from torch_caption.functions import LSTM, lstm, lstm_step, reference
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives


@given(arguments("lstm_step"))
def test_step_agrees(args):
    assert_all_agree(lstm_step, reference.lstm_step, args)


@given(arguments("lstm"))
def test_sequence_agrees(args):
    assert_all_agree(lstm, reference.lstm, args)


@pytest.mark.exhaustive
@given(tiny("lstm_step"))
def test_step_derivatives(args):
    assert_derivatives(lstm_step, args)


@pytest.mark.exhaustive
@given(tiny("lstm"))
def test_sequence_derivatives(args):
    assert_derivatives(lstm, args)


@pytest.mark.parametrize(("N", "T", "D", "H"), [(2, 3, 1, 2), (1, 2, 2, 3), (3, 1, 3, 1)])
def test_derivatives_of_distinct_sizes(N, T, D, H):
    args = example("lstm", N=N, T=T, D=D, H=H)
    assert_derivatives(lstm, tuple(args.values()))


def test_step_derivatives_of_distinct_sizes():
    assert_derivatives(lstm_step, tuple(example("lstm_step", N=3, D=1, H=2).values()))


def initial(N: int, H: int) -> Tensor:
    return tensor(torch.Generator().manual_seed(1), (N, H)).requires_grad_()


@pytest.mark.parametrize("lengths", [None, [2, 0], [1, 2]])
def test_derivatives_of_the_state(lengths):
    args = tuple(example("lstm", T=2, D=1, H=1).values())
    assert_derivatives(lstm, (*args, lengths and torch.tensor(lengths), initial(2, 1), True))


def test_a_thousand_steps():
    args = tuple(example("lstm", T=1024, H=8).values())
    assert_agrees(lstm, reference.lstm, args)
    assert_agrees(lstm, reference.lstm, (*args, torch.tensor([1000, 3]), initial(2, 8), True))


def test_a_sequence_is_steps():
    def steps(x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: None, c: Tensor, _: bool) -> tuple:
        hs = []
        for x_t in x.unbind(1):
            h, c = lstm_step(x_t, h, c, Wx, Wh, b)
            hs.append(h)
        return torch.stack(hs, 1), (h, c)

    assert_agrees(lstm, steps, (*example("lstm").values(), None, initial(2, 5), True))


def test_first_cell_state_is_zero():
    args = tuple(example("lstm").values())
    zero = torch.zeros(2, 5, dtype=torch.float64)
    assert torch.equal(lstm(*args), lstm(*args, c0=zero))


def test_state_after_the_last_step():
    args, c0 = example("lstm"), initial(2, 5)
    h, (last_h, last_c) = lstm(**args, c0=c0, lengths=torch.tensor([2, 0]), return_state=True)
    assert torch.equal(last_h, torch.stack([h[0, 1], args["h0"][1]]))
    assert torch.equal(last_c[1], c0[1])
    more, (_, c) = lstm(**{**args, "x": args["x"][:1, 2:], "h0": last_h[:1]}, c0=last_c[:1], return_state=True)
    whole, (_, whole_c) = lstm(**args, c0=c0, return_state=True)
    torch.testing.assert_close(more[0, -1], whole[0, -1])
    torch.testing.assert_close(c[0], whole_c[0])


def test_nothing_past_the_end_matters():
    """Neither to the output, which is zero there, nor to a derivative; not even where x is not a number."""
    x, h0, Wx, Wh, b = (arg.detach() for arg in example("lstm").values())
    lengths = torch.tensor([1, 2])
    past = torch.arange(3) >= lengths.unsqueeze(1)
    inputs = [arg.clone().requires_grad_() for arg in (x.masked_fill(past.unsqueeze(2), torch.nan), h0, Wx, Wh, b)]
    h, (last_h, last_c) = lstm(*inputs, lengths, return_state=True)
    assert (h[past] == 0).all()
    assert (h[~past] != 0).all()
    dx, *others = torch.autograd.grad(h.square().sum() + last_h.sum() + last_c.square().sum(), inputs)
    assert (dx[past] == 0).all()
    assert all(grad.isfinite().all() for grad in (dx, *others))
    pushed = tangents(lambda *args: lstm(*args, lengths, return_state=True), tuple(inputs))
    assert (pushed[0][past] == 0).all()
    assert all(t.isfinite().all() for t in pushed)
    for n, length in enumerate(lengths):
        alone, (_, alone_c) = lstm(x[n : n + 1, :length], h0[n : n + 1], Wx, Wh, b, return_state=True)
        torch.testing.assert_close(h[n, :length], alone[0])
        torch.testing.assert_close(last_c[n], alone_c[0])


def test_every_cell_state_is_an_output_of_the_class():
    """The public functions hide all but the last; their gradients hold all the same."""
    sizes = (2, 1, 1)

    def cells(x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        hs, cs = [], []
        for x_t in x.split(sizes):
            h, c = reference.lstm_step(x_t, h[: len(x_t)], c[: len(x_t)], Wx, Wh, b)
            hs.append(h)
            cs.append(c)
        return torch.cat(hs), torch.cat(cs)

    x, *others = example("lstm").values()
    args = (x.detach()[0].repeat(2, 1)[: sum(sizes)].requires_grad_(), *others, initial(2, 5))
    for cache in (None, {}):  # plainly, and in place

        def hand(*args: Tensor, cache: dict | None = cache) -> tuple[Tensor, Tensor]:
            return LSTM.apply(*args, None, sizes, cache)

        assert_agrees(hand, cells, args, ("x", "h0", "Wx", "Wh", "b", "c0"))


def nn_lstm(
    x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None, c0: Tensor, _: bool
) -> tuple:
    """torch.nn's, whose gates stand in the order i, f, g, o; over packed sequences where there are lengths."""

    def permuted(w: Tensor) -> Tensor:
        i, f, o, g = w.chunk(4, dim=-1)
        return torch.cat([i, f, g, o], dim=-1).mT if w.dim() == 2 else torch.cat([i, f, g, o])

    layer = nn.LSTM(Wx.shape[0], Wh.shape[0], batch_first=True, dtype=x.dtype)
    half = permuted(b) / 2  # its two biases add up to ours
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = dict(zip(names, (permuted(Wx), permuted(Wh), half, half), strict=True))
    state = (h0.unsqueeze(0), c0.unsqueeze(0))
    if lengths is None:
        out, (h, c) = torch.func.functional_call(layer, weights, (x, state))
        return out, (h[0], c[0])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out, (h, c) = torch.func.functional_call(layer, weights, (packed, state))
    return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], (h[0], c[0])


@pytest.mark.parametrize("lengths", [None, [4, 1, 3, 6, 6]])
def test_agrees_with_torch_nn(lengths):
    args = tuple(example("lstm", N=5, T=6).values())
    assert_agrees(lstm, nn_lstm, (*args, lengths and torch.tensor(lengths), initial(5, 5), True))
