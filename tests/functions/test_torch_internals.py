"""The private names of torch, one test each: which is missing, or means something else, is the test that fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torch_caption.functions import _torch_internals as internals


def seen(look, transform, x: Tensor) -> list[bool]:
    """What `look` says of the tensor that `transform` hands to its function."""
    said = []

    def function(y: Tensor) -> Tensor:
        said.append(look(y))
        return (y * y).sum()

    transform(function)(x)
    return said


X = torch.ones(3)


def test_is_functorch_wrapped_tensor():
    look = internals.is_wrapped
    assert not look(X)
    assert not look(X.clone().requires_grad_())
    assert seen(look, torch.func.grad, X) == [True]
    assert seen(look, torch.func.vmap, X[None]) == [True]
    assert seen(look, lambda f: lambda x: torch.func.jvp(f, (x,), (x,)), X) == [True]


def test_get_interpreter_stack():
    look = internals.in_nested_forward_mode

    def jvp(f):
        return lambda x: torch.func.jvp(f, (x,), (x,))

    assert not look()
    assert seen(lambda _: look(), jvp, X) == [False]
    assert seen(lambda _: look(), lambda f: torch.func.grad(lambda x: jvp(f)(x)[1]), X) == [False]
    assert seen(lambda _: look(), lambda f: jvp(jvp(f)), X) == [True]
    assert seen(lambda _: look(), lambda f: torch.func.jacfwd(torch.func.grad(torch.func.jacfwd(f))), X[0]) == [True]


def test_is_batchedtensor():
    look = internals.is_mapped
    assert seen(look, torch.func.grad, X) == [False]
    assert seen(look, torch.func.vmap, X[None]) == [True]
    assert seen(look, lambda f: torch.func.vmap(torch.func.grad(f)), X[None]) == [False]  # the outermost is grad's


def test_is_legacy_batchedtensor():
    look = internals.is_mapped_by_autograd
    assert not look(X)
    assert seen(look, torch.func.vmap, X[None]) == [False]
    x, said = X.clone().requires_grad_(), []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dout):
            said.append(look(dout))
            return dout

    y = Watched.apply(x)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert said == [True]


def test_get_unwrapped():
    def levels(y: Tensor) -> int:
        count = 0
        while internals.is_wrapped(y):
            y, count = internals.unwrapped(y), count + 1
        assert type(y) is Tensor
        return count

    assert seen(levels, torch.func.grad, X) == [1]
    assert seen(levels, lambda f: torch.func.vmap(torch.func.grad(f)), X[None]) == [2]


def test_current_level():
    assert not internals.in_forward_mode()
    with torch.autograd.forward_ad.dual_level():
        assert internals.in_forward_mode()
    assert not internals.in_forward_mode()
    assert seen(lambda _: internals.in_forward_mode(), lambda f: lambda x: torch.func.jvp(f, (x,), (x,)), X) == [True]


def test_maybe_current_level():
    look = lambda _: internals.in_torch_func()  # noqa: E731
    assert not look(X)
    for transform in (torch.func.grad, torch.func.vmap, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        assert seen(look, transform, X[None]) == [True]
    assert not look(X)


def test_has_static_value():
    """Of the sizes that torch.export leaves symbolic, and of the others."""
    said = []

    class Sizes(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            said.append([internals.has_static_value(size) for size in x.shape])
            return x + 1

    assert internals.has_static_value(3)
    torch.export.export(Sizes(), (torch.ones(3, 4),), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    assert said == [[True, False]]


class Sums(torch.nn.Module):
    """Sums of c * x up to each row: the last, and all."""

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        def step(state: tuple, rows: tuple, constants: tuple) -> tuple[tuple, tuple]:
            total = state[0] + constants[0] * rows[0]
            return (total,), (total,)

        (last,), (sums,) = internals.scan(step, (torch.zeros_like(c),), (x,), (c,))
        return last, sums


@pytest.mark.parametrize("strict", [None, False, True])
def test_scan(strict):
    """Eager, and as one operator of an exported program, which Dynamo makes where it is strict."""
    x, c, sums = torch.arange(6.0).reshape(3, 2), torch.tensor([1.0, -2.0]), Sums()
    if strict is not None:
        shapes = ({0: torch.export.Dim.DYNAMIC}, None)
        program = torch.export.export(sums, (x, c), dynamic_shapes=shapes, strict=strict)
        assert "higher_order.scan" in program.graph_module.code
        sums = program.module()
    for rows in (x, torch.ones(5, 2)):
        last, every = sums(rows, c)
        assert torch.equal(every, (c * rows).cumsum(0))
        assert torch.equal(last, (c * rows).sum(0))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning", "ignore:`torch.jit.trace:FutureWarning")
def test_is_tracing():
    assert seen(lambda _: internals.is_traced(), lambda f: lambda x: torch.jit.trace(f, (x,)), X)[:1] == [True]
    assert not internals.is_traced()


@pytest.mark.parametrize("mode", ["FAKE", "PROXY"])
def test_dispatch_mode_key(mode):
    """Each key is there, and without a mode there is none under it."""
    assert torch._C._get_dispatch_mode(getattr(torch._C._TorchDispatchModeKey, mode)) is None


def test_get_dispatch_mode():
    assert not internals.is_traced()
    with FakeTensorMode():
        assert internals.is_traced()
    for mode in ("real", "fake", "symbolic"):
        assert seen(lambda _: internals.is_traced(), lambda f, m=mode: make_fx(f, tracing_mode=m), X) == [True]
    assert not internals.is_traced()
