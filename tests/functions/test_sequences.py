"""The recurrent layers: step by step, with lengths, packed, and from any state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.random_arguments import example, tangents, tensor
from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.functions import (
    LSTM,
    AttentionLSTM,
    ProjectedLSTM,
    attention_lstm_step,
    dot_product_attention,
    gru_step,
    lstm_step,
    projected_lstm_step,
    reference,
    rnn_step,
)
from torch_caption.verify.gradcheck import assert_agrees, assert_derivatives, leaves

N, T, H = 2, 3, 5  # of `example`
LAYERS = {
    "rnn": {},
    "lstm": {"return_state": True},
    "projected_lstm": {"return_state": True},
    "gru": {},
    "attention_lstm": {"return_state": True, "return_weights": True},
}

WITH_CELL_STATE = ["lstm", "projected_lstm", "attention_lstm"]


@pytest.fixture(params=LAYERS)
def layer(request) -> str:
    return request.param


def state(N: int, H: int) -> Tensor:
    return tensor(torch.Generator().manual_seed(1), (N, H)).requires_grad_()


def with_options(layer: str, args: tuple, lengths: list[int] | None) -> tuple:
    """`args` with lengths and every option of the layer."""
    options = {"rnn": 0, "lstm": 1, "projected_lstm": 1, "gru": 0, "attention_lstm": 2}[layer]
    states = [state(args[0].shape[0], args[-1].shape[0] // 4) for _ in range(options)]
    return (*args, lengths and torch.tensor(lengths), *states, *[True] * options)


def whole(layer: str) -> Callable[..., Any]:
    """The layer with all its outputs."""
    return lambda *args, **options: getattr(functions, layer)(*args, **options, **LAYERS[layer])


@pytest.mark.parametrize("sizes", ringed([(2, 3, 1, 2, 3), (1, 2, 2, 1, 4), (3, 1, 1, 2, 1)], {(2, 3, 1, 2, 3)}))
def test_derivatives_of_distinct_sizes(layer, sizes):
    args = example(layer, **dict(zip("NTDHL", sizes, strict=True)))
    assert_derivatives(getattr(functions, layer), tuple(args.values()))


@pytest.mark.parametrize("lengths", ringed([None, [2, 0], [1, 2]], [[2, 0]]))
def test_derivatives_of_every_option(layer, lengths):
    args = tuple(example(layer, T=2, D=1, H=1, L=2).values())
    assert_derivatives(getattr(functions, layer), with_options(layer, args, lengths))


@pytest.mark.parametrize("step", ["rnn_step", "lstm_step", "projected_lstm_step", "gru_step", "attention_lstm_step"])
def test_step_derivatives_of_distinct_sizes(step):
    assert_derivatives(getattr(functions, step), tuple(example(step, N=3, D=1, H=2, L=2).values()))


@pytest.mark.parametrize("lengths", ringed([None, [1000, 3]], [[1000, 3]]))
def test_a_thousand_steps(layer, lengths):
    args = tuple(example(layer, T=1024, H=8).values())
    assert_agrees(getattr(functions, layer), getattr(reference, layer), with_options(layer, args, lengths))


def h_steps(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of a layer whose state is h alone."""

    def steps(x: Tensor, h: Tensor, *weights: Tensor) -> Tensor:
        hs = []
        for x_t in x.unbind(1):
            h = step(x_t, h, *weights)
            hs.append(h)
        return torch.stack(hs, 1)

    return steps


def lstm_steps(x: Tensor, h: Tensor, *weights: Tensor) -> tuple:
    hs, c = [], torch.zeros_like(h)
    for x_t in x.unbind(1):
        h, c = lstm_step(x_t, h, c, *weights)
        hs.append(h)
    return torch.stack(hs, 1), (h, c)


def projected_lstm_steps(x: Tensor, h: Tensor, Wx: Tensor, Wh: Tensor, Wr: Tensor, b: Tensor) -> tuple:
    hs, c = [], Wr.new_zeros(len(h), len(Wr))
    for x_t in x.unbind(1):
        h, c = projected_lstm_step(x_t, h, c, Wx, Wh, Wr, b)
        hs.append(h)
    return torch.stack(hs, 1), (h, c)


def attention_lstm_steps(x: Tensor, A: Tensor, *weights: Tensor) -> tuple:
    h = c = A.mean(2)
    hs, attended = [], []
    for x_t in x.unbind(1):
        attended.append(dot_product_attention(h, A)[1])
        h, c = attention_lstm_step(x_t, h, c, A, *weights)
        hs.append(h)
    return torch.stack(hs, 1), (h, c), torch.stack(attended, 1)


def test_a_sequence_is_steps(layer):
    """From a cell state of zero, or from the mean of A."""
    steps = {
        "rnn": h_steps(rnn_step),
        "lstm": lstm_steps,
        "projected_lstm": projected_lstm_steps,
        "gru": h_steps(gru_step),
        "attention_lstm": attention_lstm_steps,
    }[layer]
    args = example(layer)
    assert_agrees(whole(layer), steps, tuple(args.values()), tuple(args))


@pytest.mark.parametrize("layer", WITH_CELL_STATE)
def test_a_sequence_resumes_from_its_last_state(layer):
    """The state after each row's own last step, its first state where it has none."""
    args = example(layer)
    states = {"h0": args.get("h0", state(N, H)), "c0": state(N, H)}
    run = whole(layer)
    h, (last_h, last_c), *_ = run(**{**args, **states}, lengths=torch.tensor([2, 0]))
    assert torch.equal(last_h, torch.stack([h[0, 1], states["h0"][1]]))
    assert torch.equal(last_c[1], states["c0"][1])
    all_h, (end_h, end_c), *_ = run(**{**args, **states})
    assert torch.equal(end_h, all_h[:, -1])
    rest = {name: value[:1] if name == "A" else value for name, value in args.items()}
    rest |= {"x": args["x"][:1, 2:], "h0": last_h[:1], "c0": last_c[:1]}
    more, (_, c), *_ = run(**rest)
    torch.testing.assert_close((more[0, -1], c[0]), (all_h[0, -1], end_c[0]))


def test_padding_has_no_effect(layer):
    """Neither on the outputs, which are zero there, nor on a derivative; not even where x is NaN."""
    args = {name: arg.detach() for name, arg in example(layer).items()}
    lengths = torch.tensor([1, 2])
    past = torch.arange(T) >= lengths.unsqueeze(1)
    padded = {**args, "x": args["x"].masked_fill(past.unsqueeze(2), torch.nan)}
    inputs = tuple(arg.clone().requires_grad_() for arg in padded.values())

    def run(*inputs: Tensor) -> list[Tensor]:
        return leaves(whole(layer)(*inputs, lengths=lengths))

    outs = run(*inputs)
    of_steps = [out for out in outs if out.dim() == 3]  # h, and the attention weights
    assert all((out[past] == 0).all() and (out[~past] != 0).all() for out in of_steps)
    dx, *others = torch.autograd.grad(sum(out.square().sum() for out in outs), inputs)
    assert (dx[past] == 0).all()
    assert all(grad.isfinite().all() for grad in (dx, *others))
    pushed = tangents(run, inputs)
    assert all(t.isfinite().all() and (t.dim() < 3 or (t[past] == 0).all()) for t in pushed)
    for n, length in enumerate(lengths):
        row = {name: arg[n : n + 1] if name in ("x", "h0", "A") else arg for name, arg in args.items()}
        alone = leaves(whole(layer)(**{**row, "x": row["x"][:, :length]}))
        for out, one in zip(outs, alone, strict=True):
            torch.testing.assert_close(out[n, :length] if out.dim() == 3 else out[n], one[0])


@pytest.mark.parametrize("layer", WITH_CELL_STATE)
@pytest.mark.parametrize("cache", [None, {}], ids=["plain", "in place"])
def test_every_state_is_an_output_of_the_class(layer, cache):
    """The public functions return the last cell state alone; the gradients of all hold."""
    sizes = (2, 1, 1)
    attends = layer == "attention_lstm"
    function = {"lstm": LSTM, "projected_lstm": ProjectedLSTM, "attention_lstm": AttentionLSTM}[layer]
    step = getattr(reference, f"{layer}_step")
    options = ("ifog",) if layer == "lstm" else ()

    def plain(x: Tensor, h: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        *args, c = args
        A, weights = ([args[0]], args[1:]) if attends else ([], args)
        hs, cs, attended = [], [], []
        for x_t in x.split(sizes):
            n = len(x_t)
            if attends:
                attended.append(reference.dot_product_attention(h[:n], A[0][:n])[1])
            h, c = step(x_t, h[:n], c[:n], *(a[:n] for a in A), *weights)
            hs.append(h)
            cs.append(c)
        return tuple(map(torch.cat, (hs, cs, attended) if attends else (hs, cs)))

    def hand(*args: Tensor) -> tuple[Tensor, ...]:
        return function.apply(*args, None, sizes, *options, cache)

    args = {"h0": state(N, H), **example(layer)}
    x = args.pop("x").detach()[0].repeat(2, 1)[: sum(sizes)].requires_grad_()
    args = {"x": x, "h0": args.pop("h0"), **args, "c0": state(N, H)}
    assert_agrees(hand, plain, tuple(args.values()), tuple(args))


def test_packed_and_padded_are_the_same(layer):
    """The second where lengths cannot be read, as under vmap."""
    args, lengths = example(layer, N=3, T=4), torch.tensor([2, 4, 3])

    def with_lengths(lengths: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaves(whole(layer)(*args, lengths=lengths)))

    def padded(*args: Tensor) -> tuple[Tensor, ...]:
        mapped = torch.func.vmap(lambda lengths: with_lengths(lengths, *args))(lengths.unsqueeze(0))
        return tuple(part.squeeze(0) for part in mapped)

    assert_agrees(lambda *args: with_lengths(lengths, *args), padded, tuple(args.values()), tuple(args))


@pytest.mark.parametrize("layer", ["lstm", "projected_lstm"])
def test_first_cell_state_is_zero(layer):
    args, run = example(layer), getattr(functions, layer)
    assert torch.equal(run(**args), run(**args, c0=torch.zeros(N, H, dtype=torch.float64)))
