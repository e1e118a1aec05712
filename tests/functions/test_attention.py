"""Attention over the places of an image, and the LSTM that looks before each step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.random_arguments import LAYOUTS, arguments, assert_all_agree, example, tangents, tensor, tiny
from torch_caption.functions import (
    AttentionLSTM,
    attention_lstm,
    attention_lstm_step,
    dot_product_attention,
    lstm_step,
    packed_attention_lstm,
    reference,
)
from torch_caption.functions.packing import steps_of
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives

N, T, D, H, L = 2, 3, 4, 5, 7  # of `example`


@given(arguments("dot_product_attention"))
def test_attention_agrees(args):
    assert_all_agree(dot_product_attention, reference.dot_product_attention, args)


@given(arguments("attention_lstm_step"))
def test_step_agrees(args):
    assert_all_agree(attention_lstm_step, reference.attention_lstm_step, args)


@given(arguments("attention_lstm"))
def test_sequence_agrees(args):
    assert_all_agree(attention_lstm, reference.attention_lstm, args)


@given(tiny("dot_product_attention", L=3))
def test_attention_derivatives(args):
    assert_derivatives(dot_product_attention, args)


@pytest.mark.exhaustive
@settings(max_examples=25)  # of up to a second each
@given(tiny("attention_lstm_step"))
def test_step_derivatives(args):
    assert_derivatives(attention_lstm_step, args)


@pytest.mark.exhaustive
@settings(max_examples=15)  # of up to two seconds each
@given(tiny("attention_lstm"))
def test_sequence_derivatives(args):
    assert_derivatives(attention_lstm, args)


@pytest.mark.parametrize(("N", "T", "D", "H", "L"), [(2, 3, 1, 2, 3), (1, 2, 2, 1, 4), (3, 1, 1, 2, 1)])
def test_derivatives_of_distinct_sizes(N, T, D, H, L):
    args = example("attention_lstm", N=N, T=T, D=D, H=H, L=L)
    assert_derivatives(attention_lstm, tuple(args.values()))


def test_step_derivatives_of_distinct_sizes():
    args = example("attention_lstm_step", N=1, D=1, H=2, L=3)
    assert_derivatives(attention_lstm_step, tuple(args.values()))


@pytest.mark.parametrize("lengths", [None, [2, 0], [1, 2]])
def test_derivatives_of_all_outputs(lengths):
    args = tuple(example("attention_lstm", T=2, D=1, H=1, L=2).values())
    assert_derivatives(attention_lstm, (*args, lengths and torch.tensor(lengths), first(2, 1), first(2, 1), True, True))


def first(N: int, H: int) -> Tensor:
    return tensor(torch.Generator().manual_seed(1), (N, H)).requires_grad_()


def test_a_thousand_steps():
    args = tuple(example("attention_lstm", T=1024, H=8).values())
    assert_agrees(attention_lstm, reference.attention_lstm, args)
    options = (torch.tensor([1000, 3]), first(2, 8), None, True, True)
    assert_agrees(attention_lstm, reference.attention_lstm, (*args, *options))


# What it means -------------------------------------------------------------------------------------------------------


def of_the_assignment(prev_h: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The course's words in loops: a softmax over a x a of <prev_h, A[:, i, j]> / sqrt(H), then the weighted sum."""
    N, H, a, _ = A.shape
    attn, weights = np.zeros((N, H)), np.zeros((N, a, a))
    for n in range(N):
        for i in range(a):
            for j in range(a):
                weights[n, i, j] = np.exp(sum(prev_h[n, k] * A[n, k, i, j] for k in range(H)) / np.sqrt(H))
        weights[n] /= weights[n].sum()
        for i in range(a):
            for j in range(a):
                attn[n] += weights[n, i, j] * A[n, :, i, j]
    return attn, weights


def test_attention_is_the_assignments(randn):
    prev_h, A = randn(N, H), randn(N, H, 4, 4)
    attn, weights = dot_product_attention(prev_h, A)
    expected = of_the_assignment(prev_h.detach().numpy(), A.detach().numpy())
    np.testing.assert_allclose(attn.detach(), expected[0], rtol=1e-12)
    np.testing.assert_allclose(weights.detach(), expected[1], rtol=1e-12)


def test_sequence_is_the_assignments(randn):
    """h0 = c0 = the mean of A; then a = x Wx + prev_h Wh + attn Wattn + b, cut into i f o g."""
    x, A, Wx, Wh, Wattn, b = (p.detach().numpy() for p in example("attention_lstm").values())
    A = randn(N, H, 4, 4).detach().numpy()
    h = c = A.mean(axis=(2, 3))

    def sigmoid(a: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-a))

    found, looked = attention_lstm(*map(torch.tensor, (x, A, Wx, Wh, Wattn, b)), return_weights=True)
    for t in range(T):
        attn, weights = of_the_assignment(h, A)
        np.testing.assert_allclose(looked[:, t], weights, rtol=1e-12)
        a = x[:, t] @ Wx + h @ Wh + attn @ Wattn + b
        i, f, o, g = sigmoid(a[:, :H]), sigmoid(a[:, H : 2 * H]), sigmoid(a[:, 2 * H : 3 * H]), np.tanh(a[:, 3 * H :])
        c = f * c + i * g
        h = o * np.tanh(c)
        np.testing.assert_allclose(found[:, t], h, rtol=1e-11)


def test_attention_is_that_of_torch_nn(randn):
    """scaled_dot_product_attention of one query; forward, and its gradients."""
    prev_h, A = randn(N, H), randn(N, H, L)

    def its(prev_h: Tensor, A: Tensor) -> Tensor:
        places = A.mT
        return nn.functional.scaled_dot_product_attention(prev_h.unsqueeze(1), places, places).squeeze(1)

    assert_agrees(lambda *args: dot_product_attention(*args)[0], its, (prev_h, A), ("prev_h", "A"))


def test_weights_are_a_mean():
    prev_h, A = example("dot_product_attention").values()
    _, weights = dot_product_attention(prev_h, A)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(N, dtype=torch.float64))


def test_what_asks_for_nothing_sees_all_alike():
    _, A = example("dot_product_attention").values()
    attn, weights = dot_product_attention(torch.zeros(N, H, dtype=torch.float64), A)
    torch.testing.assert_close(attn, A.mean(2))
    torch.testing.assert_close(weights, torch.full((N, L), 1 / L, dtype=torch.float64))


def test_great_scores_do_not_overflow():
    prev_h, A = (1e4 * x for x in example("dot_product_attention", dtype=torch.float32).values())
    attn, weights = dot_product_attention(prev_h, A)
    assert attn.isfinite().all()
    assert (weights.amax(1) == 1).all()


def test_the_order_of_the_places_does_not_matter():
    prev_h, A = example("dot_product_attention").values()
    order = torch.randperm(L, generator=torch.Generator().manual_seed(0))
    attn, weights = dot_product_attention(prev_h, A)
    shuffled, its = dot_product_attention(prev_h, A[:, :, order])
    torch.testing.assert_close(shuffled, attn)
    torch.testing.assert_close(its, weights[:, order])


def test_a_grid_is_a_row_of_places(randn):
    """Rows one after the other; outputs and gradients, and the weights keep the grid's shape."""
    x, _, *layer = example("attention_lstm").values()
    grid = randn(N, H, 3, 2)

    def in_a_row(x: Tensor, A: Tensor, *layer: Tensor) -> tuple[Tensor, Tensor]:
        h, weights = attention_lstm(x, A.flatten(2), *layer, return_weights=True)
        return h, weights.reshape(N, T, 3, 2)

    def as_grid(*args: Tensor) -> tuple[Tensor, Tensor]:
        return attention_lstm(*args, return_weights=True)

    assert_agrees(as_grid, in_a_row, (x, grid, *layer), ("x", "A", "Wx", "Wh", "Wattn", "b"))
    prev_h = first(N, H)
    assert dot_product_attention(prev_h, grid)[1].shape == (N, 3, 2)
    step = attention_lstm_step(x[:, 0], prev_h, prev_h, grid, *layer)
    torch.testing.assert_close(step, attention_lstm_step(x[:, 0], prev_h, prev_h, grid.flatten(2), *layer))


def test_a_step_is_attention_and_then_a_step_of_the_lstm():
    def parts(x, prev_h, prev_c, A, Wx, Wh, Wattn, b):
        attn, _ = dot_product_attention(prev_h, A)
        return lstm_step(torch.cat([x, attn], 1), prev_h, prev_c, torch.cat([Wx, Wattn]), Wh, b)

    args = example("attention_lstm_step")
    assert_agrees(attention_lstm_step, parts, tuple(args.values()), tuple(args))


def test_a_sequence_is_steps():
    def steps(x: Tensor, A: Tensor, *layer: Tensor) -> tuple:
        h = c = A.mean(2)
        hs, looked = [], []
        for x_t in x.unbind(1):
            looked.append(dot_product_attention(h, A)[1])
            h, c = attention_lstm_step(x_t, h, c, A, *layer)
            hs.append(h)
        return torch.stack(hs, 1), (h, c), torch.stack(looked, 1)

    def whole(*args: Tensor) -> tuple:
        return attention_lstm(*args, return_state=True, return_weights=True)

    args = example("attention_lstm")
    assert_agrees(whole, steps, tuple(args.values()), tuple(args))


def test_without_wattn_it_is_the_lstm():
    from torch_caption.functions import lstm

    args = example("attention_lstm")
    args["Wattn"] = torch.zeros_like(args["Wattn"])
    mean = args["A"].mean(2)
    expected = lstm(args["x"], mean, args["Wx"], args["Wh"], args["b"], c0=mean)
    torch.testing.assert_close(attention_lstm(**args), expected)


def test_state_after_the_last_step_and_on_from_there():
    args, h0, c0 = example("attention_lstm"), first(N, H), first(N, H)
    whole, (whole_h, whole_c) = attention_lstm(**args, h0=h0, c0=c0, return_state=True)
    x, A, *layer = args.values()
    h, (last_h, last_c) = attention_lstm(
        x, A, *layer, torch.tensor([2, 0]), h0=h0, c0=c0, return_state=True, return_weights=False
    )
    assert torch.equal(last_h, torch.stack([h[0, 1], h0[1]]))
    assert torch.equal(last_c[1], c0[1])
    more, (_, c) = attention_lstm(x[:1, 2:], A[:1], *layer, h0=last_h[:1], c0=last_c[:1], return_state=True)
    torch.testing.assert_close(more[0, -1], whole[0, -1])
    torch.testing.assert_close(c[0], whole_c[0])
    assert torch.equal(whole_h, whole[:, -1])


def test_nothing_past_the_end_matters():
    """Neither to the output, which is zero there, nor to a derivative; not even where x is not a number."""
    x, *others = (arg.detach() for arg in example("attention_lstm").values())
    lengths = torch.tensor([1, 2])
    past = torch.arange(T) >= lengths.unsqueeze(1)
    inputs = [arg.clone().requires_grad_() for arg in (x.masked_fill(past.unsqueeze(2), torch.nan), *others)]
    h, (last_h, last_c), weights = attention_lstm(*inputs, lengths, None, None, True, True)
    assert (h[past] == 0).all()
    assert (h[~past] != 0).all()
    assert (weights[past] == 0).all()
    assert (weights[~past] > 0).all()
    loss = h.square().sum() + last_h.sum() + last_c.square().sum() + weights.square().sum()
    dx, *rest = torch.autograd.grad(loss, inputs)
    assert (dx[past] == 0).all()
    assert all(grad.isfinite().all() for grad in (dx, *rest))
    pushed = tangents(lambda *args: attention_lstm(*args, lengths, return_weights=True), tuple(inputs))
    assert all((t[past] == 0).all() and t.isfinite().all() for t in pushed)
    for n, length in enumerate(lengths):
        alone = attention_lstm(x[n : n + 1, :length], others[0][n : n + 1], *others[1:])
        torch.testing.assert_close(h[n, :length], alone[0])


def test_images_of_rows_that_end_at_once_have_no_gradient():
    x, A, *layer = example("attention_lstm").values()
    (dA,) = torch.autograd.grad(attention_lstm(x, A, *layer, torch.tensor([0, 2])).sum(), A)
    assert not dA[0].any()
    assert dA[1].all()


# Packed --------------------------------------------------------------------------------------------------------------


@st.composite
def packed_arguments(draw: st.DrawFn) -> tuple:
    """With an index and first states, or without; some need grad."""
    N, D, H, L = (draw(st.integers(low, 4)) for low in (0, 1, 1, 1))
    sizes = tuple(sorted(draw(st.lists(st.integers(0, N), max_size=4)), reverse=True))
    steps = draw(st.sampled_from([sizes, len(sizes)]))
    r = sum(steps_of(steps, torch.empty(N, 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    index = torch.randint(0, 3, (r,), generator=generator) if draw(st.booleans()) else None
    shapes = [(r if index is None else 3, D), (N, H, L), (D, 4 * H), (H, 4 * H), (H, 4 * H), (4 * H,)]
    args: list = [tensor(generator, s, draw(st.sampled_from(LAYOUTS))) for s in shapes]
    for arg in draw(st.sets(st.sampled_from(args), min_size=1)):
        arg.requires_grad_()
    states = [tensor(generator, (N, H)).requires_grad_() if draw(st.booleans()) else None for _ in range(2)]
    return (*args, steps, index, *states)


@given(packed_arguments())
def test_packed_agrees(args):
    assert_all_agree(packed_attention_lstm, reference.packed_attention_lstm, args)


def test_packed_and_padded_are_the_same():
    """The second where lengths cannot be read, as under vmap."""
    args, lengths = example("attention_lstm", N=3, T=4), torch.tensor([2, 4, 3])

    def with_lengths(lengths: Tensor, *args: Tensor) -> tuple:
        return attention_lstm(*args, lengths, return_weights=True)

    def padded(*args: Tensor) -> tuple:
        whole = torch.func.vmap(lambda lengths: with_lengths(lengths, *args))
        return tuple(part.squeeze(0) for part in whole(lengths.unsqueeze(0)))

    assert_agrees(lambda *args: with_lengths(lengths, *args), padded, tuple(args.values()), tuple(args))


def test_every_state_is_an_output_of_the_class():
    """The public functions hide all cells but the last; their gradients hold all the same."""
    sizes = (2, 1, 1)

    def plain(x, h, A, Wx, Wh, Wattn, b, c) -> tuple:
        hs, cs, looked = [], [], []
        for x_t in x.split(sizes):
            n = len(x_t)
            looked.append(reference.dot_product_attention(h[:n], A[:n])[1])
            h, c = reference.attention_lstm_step(x_t, h[:n], c[:n], A[:n], Wx, Wh, Wattn, b)
            hs.append(h)
            cs.append(c)
        return tuple(map(torch.cat, (hs, cs, looked)))

    x, A, *layer = example("attention_lstm").values()
    args = (x.detach()[0].repeat(2, 1)[: sum(sizes)].requires_grad_(), first(N, H), A, *layer, first(N, H))
    for cache in (None, {}):  # plainly, and in place

        def hand(*args: Tensor, cache: dict | None = cache) -> tuple:
            return AttentionLSTM.apply(*args, None, sizes, cache)

        assert_agrees(hand, plain, args, ("x", "h0", "A", "Wx", "Wh", "Wattn", "b", "c0"))


# Refusals ------------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "attention_lstm": attention_lstm,
    "attention_lstm_step": attention_lstm_step,
    "packed_attention_lstm": packed_attention_lstm,
    "dot_product_attention": dot_product_attention,
}


def right(function: str) -> dict:
    if function != "packed_attention_lstm":
        return example(function)
    args = example("attention_lstm")
    return {**args, "x": args["x"].detach()[0].repeat(2, 1), "batch_sizes": (2, 2, 2)}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("A", "error", "message"),
    [
        (torch.ones(2, 5), ValueError, r"A must be \(N, H, L\) with (N = 2|N = 2, H = 5|H = 5), but is \(2, 5\)"),
        (torch.ones(2, 5, 0), ValueError, r"A must have at least one position, but is \(2, 5, 0\)"),
        (torch.ones(2, 5, 3, 0), ValueError, r"A must have at least one position, but is \(2, 5, 3, 0\)"),
        (
            *(torch.ones(3, 5, 2), ValueError),
            r"(A must be \(N, H, L\) with N = 2, .* but is \(3, 5, 2\)|h0 must be \(N, H\) with N = 3)",
        ),
        (torch.ones(2, 5, 2).float(), TypeError, r"A is float32, but (x|prev_h) is float64"),
        (torch.ones(2, 5, 2).long(), TypeError, r"A must be floating-point, but is int64"),
        ([1.0], TypeError, r"A must be a tensor, but is a list"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(function, A, error, message):
    args = right(function)
    if function == "packed_attention_lstm":
        args["h0"] = first(2, 5)  # else A alone says how many sequences there are
    FUNCTIONS[function](**args)
    if isinstance(A, Tensor) and error is ValueError:
        A = A.double()
    with pytest.raises(error, match=f"^{function}: {message}"):
        FUNCTIONS[function](**{**args, "A": A})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Wattn": torch.ones(4, 20).double()}, ValueError, r"Wattn must be \(H, 4H\) with H = 5, 4H = 20, but is"),
        ({"h0": torch.ones(2, 4).double()}, ValueError, r"h0 must be \(N, H\) with N = 2, H = 5, but is \(2, 4\)"),
        ({"c0": torch.ones(3, 5).double()}, ValueError, r"c0 must be \(N, H\) with N = 2, H = 5, but is \(3, 5\)"),
        ({"lengths": torch.tensor([1, 4])}, IndexError, r"lengths\[1\] is 4, but x has 3 timesteps \(0 to 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    with pytest.raises(error, match=f"^attention_lstm: {message}"):
        attention_lstm(**{**example("attention_lstm"), **change})
