"""Constructors, sizes, errors and states of recurrent layers, beside torch.nn, as torch's own tests verify them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
)

from tests.helpers.torch_layers import (
    CELLS,
    NAMES,
    SEQUENCES,
    D,
    H,
    N,
    T,
    arguments,
    assert_as_torch,
    assert_same_error,
    close,
    gradients,
    is_cell,
    loss_of,
    make,
    normal,
    pair,
    tensors,
)
from torch_caption import layers

# Constructors and old versions


def test_nonlinearity() -> None:
    """A keyword, or the fourth argument, of a cell the fourth as well; an attribute afterwards."""
    assert layers.RNN(D, H).nonlinearity == layers.RNNCell(D, H).nonlinearity == "tanh"
    assert layers.RNN(D, H, nonlinearity="relu").nonlinearity == layers.RNNCell(D, H, nonlinearity="relu").nonlinearity
    assert layers.RNN(D, H, 1, "relu").nonlinearity == layers.RNNCell(D, H, True, "relu").nonlinearity == "relu"
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        layers.RNN(D, H, nonlinearity="selu")


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_state_of_a_version_without_projections(name: str) -> None:
    """The pickled attributes of torch 1.7 have no `proj_size`."""
    theirs, ours = pair(name)
    old = dict(theirs.__dict__)
    del old["proj_size"]
    restored = make(layers, name)
    restored.__setstate__(old)
    x = normal(T, N, D)
    close(restored(x), theirs(x))
    assert restored.proj_size == ours.proj_size == 0


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("name", SEQUENCES)
def test_saved_with_its_dropout(name: str, p: float, training: bool) -> None:
    """A loaded module samples its own masks in training, and is equal to the saved one otherwise."""
    module = make(layers, name, D, 20, num_layers=2, dropout=p).train(training)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded.flatten_parameters()
    x = normal(T, N, D)
    first, second, third = (list(tensors(m(x))) for m in (module, module, loaded))
    fixed = p == 0 or not training
    assert all(torch.equal(a, b) == fixed for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) == fixed for a, b in zip(first, third, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_saved_cells(name: str) -> None:
    module, args = make(layers, name), arguments(name)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(*args), module(*args), atol=0)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_dropout_may_be_changed(name: str, training: bool) -> None:
    """It is read at each call."""
    theirs, ours = pair(name, D, 20, num_layers=2)
    theirs.train(training)
    ours.train(training)
    x = normal(T, N, D)
    for p in (0.0, 0.5, 0.0, 0.7, 1.0, 0.2):
        results = []
        for module in (theirs, ours):
            module.dropout = p
            torch.manual_seed(0)
            results.append(module(x))
        close(results[1], results[0])
        again = ours(x)
        assert torch.equal(again[0], results[1][0]) == (p in (0, 1) or not training)


# Sizes and errors


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_an_empty_batch(name: str, bidirectional: bool) -> None:
    theirs, ours = pair(name, bidirectional=bidirectional, num_layers=2)
    x = torch.zeros(T, 0, D, dtype=torch.float64, requires_grad=True)
    assert_as_torch(theirs, ours, x)
    ours(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((0, H), {}),
        ((D, 0), {}),
        ((D, -1), {}),
        ((D, 2.5), {}),
        ((D, H, 0), {}),
        ((D, H), {"proj_size": 2}),
        ((D, H), {"proj_size": H}),
        ((D, H), {"dropout": 1.1}),
        ((D, H), {"dropout": -0.1}),
        ((D, H), {"projection": 2}),
        ((D,), {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_arguments_of_a_constructor(name: str, sizes: tuple, options: dict[str, Any]) -> None:
    """Both take them, or both raise one type of exception."""
    outcomes = []
    for package in (nn, layers):
        try:
            outcomes.append(repr(getattr(package, name)(*sizes, **options)))
        except (TypeError, ValueError) as error:
            outcomes.append(type(error).__name__)
    assert outcomes[1] == outcomes[0]


@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize("sizes", [(0, D, H), (N, 0, H), (N, D, 0)], ids=["N = 0", "D = 0", "H = 0"])
@pytest.mark.parametrize("name", CELLS)
def test_cells_of_size_zero(name: str, sizes: tuple[int, int, int], has_hx: bool) -> None:
    batch, features, width = sizes
    h = torch.zeros(batch, width, dtype=torch.float64, requires_grad=True)
    hx = ((h, h.detach().requires_grad_()) if name == "LSTMCell" else h) if has_hx else None
    assert_as_torch(*pair(name, features, width), normal(batch, features), hx)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_without_steps(name: str, bidirectional: bool, batched: bool) -> None:
    x = torch.zeros((0, N, D) if batched else (0, D), dtype=torch.float64)
    for module in pair(name, bidirectional=bidirectional):
        with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
            module(x)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sizes_that_do_not_fit(name: str, packed: bool) -> None:
    """One axis at a time, of the input or of one of the states.

    For packed sequences torch.nn's LSTM does not check the states and may end the process: ours alone.
    """
    theirs, ours = pair(name, num_layers=2)
    x, hx = arguments(name, 2)
    good = tuple(tensors(hx))

    def of(x: Tensor) -> Tensor | PackedSequence:
        return pack_padded_sequence(x, [T] * x.shape[1]) if packed else x

    def assert_refused(x: Tensor, *states: Tensor) -> None:
        hx = states if len(states) == 2 else states[0]
        if packed:
            with pytest.raises(RuntimeError, match="Expected"):
                ours(of(x), hx)
        else:
            assert_same_error(theirs, ours, x, hx, kind=RuntimeError)

    assert_as_torch(theirs, ours, of(x), hx)
    assert_refused(normal(T, 7, D), *good)
    assert_refused(normal(T, N, 7), *good)
    for k, state in enumerate(good):
        for axis in range(3):
            shape = list(state.shape)
            shape[axis] = 7
            assert_refused(x, *good[:k], normal(*shape), *good[k + 1 :])


def test_a_projection_and_its_cell_have_their_own_widths() -> None:
    theirs, ours = pair("LSTM projected")
    x, (h, c) = arguments("LSTM projected")
    assert_same_error(theirs, ours, x, (c, c), kind=RuntimeError)
    assert_same_error(theirs, ours, x, (h, h), kind=RuntimeError)


@pytest.mark.parametrize("name", CELLS)
def test_cells_do_not_broadcast(name: str) -> None:
    theirs, ours = pair(name)
    x, hx = arguments(name)
    good = tuple(tensors(hx))

    def assert_refused(x: Tensor, *states: Tensor) -> None:
        assert_same_error(theirs, ours, x, states if len(states) == 2 else states[0], kind=RuntimeError)

    assert_refused(normal(N, 1), *good)
    assert_refused(normal(1, D), *good)
    for k in range(len(good)):
        for shape in ((1, H), (N, 1), (N, H + 1)):
            assert_refused(x, *good[:k], normal(*shape), *good[k + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_two_devices(name: str) -> None:
    theirs, ours = pair(name)
    x, hx = arguments(name)
    good = tuple(tensors(hx))
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not at the same device"):
        ours(x.to("meta"))
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not at the same device"):
        make(layers, name).to("meta")(x)
    for k in range(len(good)):
        mixed = (*good[:k], good[k].to("meta"), *good[k + 1 :])
        with pytest.raises(RuntimeError, match="Input and hidden tensors are not at the same device"):
            ours(x, mixed if len(good) == 2 else mixed[0])
    if not is_cell(name):
        assert_same_error(theirs, ours, x.to("meta"), kind=RuntimeError)


# States


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_the_first_state_is_zero(name: str, bidirectional: bool) -> None:
    module = make(layers, name, num_layers=2, bidirectional=bidirectional)
    x, hx = arguments(name, 4 if bidirectional else 2)
    zero = tuple(torch.zeros_like(h) for h in tensors(hx))
    close(module(x), module(x, zero if len(zero) == 2 else zero[0]), atol=0)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", CELLS)
def test_a_loop_over_a_cell(name: str, bias: bool) -> None:
    """Six steps from one input, and one gradient through all of them."""
    results = []
    for module in pair(name, bias=bias):
        x, first = arguments(name)
        hx = first
        for _ in range(6):
            hx = module(x, hx)
        results.append((*tensors(hx), *gradients(loss_of(hx), module, (x, first))))
    close(results[1], results[0])
