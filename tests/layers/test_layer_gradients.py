"""Gradients of recurrent layers, ours beside torch.nn's, as torch's own tests verify them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from tests.helpers.torch_layers import (
    CELLS,
    NAMES,
    SEQUENCES,
    D,
    N,
    P,
    T,
    arguments,
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


@pytest.mark.parametrize("name", NAMES)
def test_a_retained_graph(name: str) -> None:
    module, args = make(layers, name, **({} if is_cell(name) else {"num_layers": 2})), arguments(name, 2)
    loss = loss_of(module(*args))
    first = gradients(loss, module, args, retain_graph=True)
    for _ in range(3):
        close(gradients(loss, module, args, retain_graph=True), first, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_one_output_alone(name: str) -> None:
    theirs, ours = pair(name)
    args = arguments(name)
    for expected, found in zip(tensors(theirs(*args)), tensors(ours(*args)), strict=True):
        wanted = gradients(loss_of(expected), theirs, args, retain_graph=True)
        dx, *rest = gradients(loss_of(found), ours, args, retain_graph=True)
        close((dx, *rest), wanted)
        assert dx.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_one_weight_alone(name: str) -> None:
    module, args = make(layers, name), [x.detach() for x in arguments(name)[:1]]
    weights = dict(sorted(module.named_parameters()))
    expected = dict(zip(weights, gradients(loss_of(module(*args)), module, ()), strict=True))
    for key, weight in weights.items():
        module.requires_grad_(False)
        weight.requires_grad_(True)
        close(gradients(loss_of(module(*args)), module, ()), [expected[key]], atol=1e-12)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", NAMES)
def test_numerical_derivatives(name: str, bias: bool) -> None:
    """First and second, with respect to the input, the states and all weights."""
    module = make(layers, name, 2, 4 if "projected" in name else 2, bias=bias)
    width = module.hidden_size
    lead = (1,) if is_cell(name) else (1, 1)
    hx = [normal(*lead, P if "projected" in name else width, seed=2)]
    hx += [normal(*lead, width, seed=3)] if name.startswith("LSTM") else []
    names, weights = zip(*module.named_parameters(), strict=True)

    def f(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx, given = rest[: -len(names)], dict(zip(names, rest[-len(names) :], strict=True))
        return tuple(tensors(torch.func.functional_call(module, given, (x, hx if len(hx) == 2 else hx[0]))))

    args = (normal(*((1, 2) if is_cell(name) else (2, 1, 2))), *hx, *weights)
    assert gradcheck(f, args)
    assert gradgradcheck(f, args)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "LSTM projected", "GRU"])
def test_double_backward_of_many_layers(name: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(name, num_layers=6, batch_first=True)
    results = []
    for module, dtype_of in ((theirs, torch.float64), (ours, dtype)):
        x = normal(N, T, D).detach().to(dtype_of).requires_grad_()
        module.to(dtype_of)
        (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        assert dx.dtype == dtype_of
        results.append((dx, *gradients(dx.square().sum(), module, (x,))))
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    for expected, found in zip(*results, strict=True):
        scale = 1.0 if dtype == torch.float64 else max(expected.abs().max().item(), 1e-4)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * scale)


def spread(x: Tensor) -> Tensor:
    """x with a stride of 2 in its last axis, as a leaf."""
    return x.detach().repeat_interleave(2, dim=-1)[..., ::2].requires_grad_()


@pytest.mark.parametrize(
    ("name", "batch_first"), [*itertools.product(SEQUENCES, [False, True]), *((name, False) for name in CELLS)]
)
def test_non_contiguous_tensors(name: str, batch_first: bool) -> None:
    """Inputs, states and incoming gradients, each of them contiguous or not."""
    options = {} if is_cell(name) else {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    theirs, ours = pair(name, **options)
    x, hx = arguments(name, 4)
    x = x.detach().transpose(0, 1).contiguous().requires_grad_() if batch_first else x
    incoming = [normal(*out.shape, seed=9).detach() for out in tensors(theirs(x, hx))]

    def results(module: nn.Module, x: Tensor, hx: Any, incoming: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = list(tensors(module(x, hx)))
        return (*outputs, *torch.autograd.grad(outputs, [x, *tensors(hx), *module.parameters()], incoming))

    expected = results(theirs, x, hx, incoming)
    strided = spread(x), tuple(spread(h) for h in hx) if isinstance(hx, tuple) else spread(hx)
    assert not strided[0].is_contiguous()
    for args, grads in itertools.product([(x, hx), strided], [incoming, [spread(g) for g in incoming]]):
        close(results(ours, *args, grads), expected)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("name", SEQUENCES)
def test_memory_of_results(name: str, batch_first: bool) -> None:
    """Outputs have the strides of torch.nn's; gradients of weights are contiguous in `.grad`."""
    theirs, ours = pair(name, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = normal(T, N, D)
    for module in (theirs, ours):
        module.to(memory_format=torch.contiguous_format)
    for expected, found in zip(tensors(theirs(x)), tensors(ours(x)), strict=True):
        assert found.stride() == expected.stride()
    loss_of(ours(x)).backward()
    assert all(p.grad is not None and p.grad.is_contiguous() for p in ours.parameters())
