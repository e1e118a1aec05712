"""What test_modes.py tries on fixed cases, on random sizes, layouts, lengths, masks and choices of what requires grad.

A hundred examples a function and mode; fewer where torch traces, which takes up to a second. The oracle is
`torch_caption.functions.reference`, outside of the mode that is tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers.random_arguments import (
    FLOATS,
    arguments,
    assert_same,
    expanded_inside,
    flat,
    mixed,
    scalar,
    tangents,
)
from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.verify.compare import Case
from torch_caption.verify.gradcheck import gradients, leaves, needs_grad, random_like

WEIGHTS = {"w", "W", "b", "Wx", "Wh", "Wattn"}  # shared by all rows of a batch

pytestmark = pytest.mark.exhaustive
every_function = pytest.mark.parametrize("function", FLOATS)


def cases(function: str, **limits: Any) -> st.SearchStrategy[Case]:
    hand, auto = getattr(functions, function), getattr(reference, function)
    names = tuple(inspect.signature(hand).parameters)
    return arguments(function, **limits).map(lambda args: Case(function, hand, auto, args, names))


def wanted(args: tuple) -> tuple[int, ...]:
    """The places of the arguments that require grad."""
    return tuple(k for k, arg in enumerate(args) if needs_grad(arg))


def by_autograd(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Outputs, then gradients for random gradients of the outputs."""
    outs = leaves(function(*args))
    return *outs, *gradients(outs, filter(needs_grad, args))


def by_func_grad(function: Callable, places: tuple[int, ...]) -> Callable:
    """The same as a function of all arguments, by torch.func.grad of those at `places`; can be mapped and pushed."""

    def loss(*args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        outs = tuple(leaves(function(*args)))
        return mixed(outs, [random_like(out, k) for k, out in enumerate(outs)]), outs

    def derived(*args: Any) -> tuple[Tensor, ...]:
        grads, outs = torch.func.grad(loss, places, has_aux=True)(*args)
        return *outs, *grads

    return derived


def labels(case: Case, tensors: tuple[Tensor, ...]) -> list[str]:
    """Names of outputs and gradients: out0, ..., dx, ..."""
    grads = [f"d{case.names[k]}" for k in wanted(case.args)]
    return [*(f"out{k}" for k in range(len(tensors) - len(grads))), *grads]


def assert_as_oracle(case: Case, found: tuple[Tensor, ...]) -> None:
    assert_same(found, by_autograd(case.auto, case.args), labels(case, found))


def expanding(case: Case) -> Case:
    """The same of the first rows of the expanded arguments."""
    (hand, args), (auto, _) = (expanded_inside(function, case.args) for function in (case.hand, case.auto))
    return replace(case, hand=hand, auto=auto, args=args)


def detached(args: tuple) -> tuple:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)


def changed(args: tuple, floats: Callable, integers: Callable = lambda x: x) -> tuple:
    """`args` with their tensors of numbers, and those of integers and booleans, made into others."""

    def change(arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        if not arg.is_floating_point():
            return integers(arg)
        return floats(arg.detach()).requires_grad_(arg.requires_grad)

    return tuple(map(change, args))


def other(args: tuple, seed: int) -> tuple:
    """`args` with other values, as valid; `args` themselves for 0."""
    return changed(args, lambda x: x * (-0.9) ** seed, lambda x: x.roll(seed, 0))


# torch.func ----------------------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_func_grad(function, data):
    case = data.draw(cases(function))
    assert_as_oracle(case, by_func_grad(case.hand, wanted(case.args))(*detached(case.args)))


def assert_maps(case: Case, axes: tuple[int | None, ...], batched: tuple) -> None:
    """`hand` mapped over `axes` equals a loop of `auto`, in outputs and gradients."""
    places = wanted(case.args)
    mapped = torch.func.vmap(by_func_grad(case.hand, places), axes, randomness="same")(*batched)
    (B,) = {x.shape[axis] for x, axis in zip(batched, axes, strict=True) if axis is not None}
    assert {len(x) for x in mapped} == {B}
    for n in range(B):
        row = (x if axis is None else x.select(axis, n) for x, axis in zip(batched, axes, strict=True))
        assert_same([x[n] for x in mapped], by_func_grad(case.auto, places)(*row), labels(case, mapped))


@every_function
@given(data=st.data())
def test_vmap(function, data):
    """Over batches of all arguments, or of some: what is not mapped is plain, and in-place work would mix the rows."""
    case = data.draw(cases(function))
    axis = st.sampled_from(data.draw(st.sampled_from([[0, -1], [0, -1, None]])))
    axes = tuple(data.draw(axis) if isinstance(arg, Tensor) else None for arg in case.args)
    if all(axis is None for axis in axes):
        axes = tuple(0 if needs_grad(arg) else None for arg in case.args)
    several = zip(*(detached(other(case.args, seed)) for seed in range(3)), strict=True)
    batched = tuple(xs[0] if axis is None else torch.stack(xs, axis) for xs, axis in zip(several, axes, strict=True))
    assert_maps(case, axes, batched)


@every_function
@given(data=st.data())
def test_per_sample_gradients(function, data):
    """Of each row of the batch alone, the weights being shared, as differential privacy takes them."""
    case = data.draw(cases(function))
    pairs = [*zip(case.names, case.args, strict=False)]
    assume(case.args[0].shape[0] or not function.endswith("loss"))  # torch maps no scalar arithmetic over nothing
    axes = tuple(0 if isinstance(arg, Tensor) and name not in WEIGHTS else None for name, arg in pairs)

    def of_row(function: Callable) -> Callable:
        return lambda *row: function(
            *(x if axis is None else x.unsqueeze(0) for x, axis in zip(row, axes, strict=True))
        )

    assert_maps(replace(case, hand=of_row(case.hand), auto=of_row(case.auto)), axes, detached(case.args))


def assert_tangents(case: Case) -> None:
    """Those of the outputs and, forward over reverse, those of the gradients are the oracle's."""
    places = wanted(case.args)
    found, expected = (tangents(by_func_grad(f, places), case.args) for f in (case.hand, case.auto))
    assert_same(found, expected, [f"tangent of {name}" for name in labels(case, found)])


@every_function
@given(data=st.data())
def test_jvp(function, data):
    assert_tangents(data.draw(cases(function)))


@every_function
@given(data=st.data())
def test_hessian(function, data):
    case = expanding(data.draw(cases(function, most=2)))
    assume(case.args[0].numel() or not function.endswith("loss"))  # torch maps no arithmetic of scalars over nothing
    (hand, inputs), (auto, _) = scalar(case.hand, case.args), scalar(case.auto, case.args)
    every = tuple(range(len(inputs)))
    names = [case.names[k] for k in wanted(case.args)]
    found, expected = (torch.func.hessian(f, every)(*inputs) for f in (hand, auto))
    assert_same(found, expected, [f"d{second} d{first}" for first in names for second in names])


class Module(nn.Module):
    """A function whose arguments that require grad are parameters; it takes, and leaves alone, what stands for them."""

    def __init__(self, case: Case):
        super().__init__()
        self.function = case.hand
        self.own = nn.ParameterDict({str(k): nn.Parameter(case.args[k].detach()) for k in wanted(case.args)})

    def forward(self, *args: Any) -> list[Tensor]:
        return leaves(self.function(*(self.own.get(str(k), arg) for k, arg in enumerate(args))))


@every_function
@given(data=st.data())
def test_functional_call(function, data):
    """With the module's own parameters, and with others in their place."""
    case = data.draw(cases(function))
    module = Module(case)
    outs = module(*case.args)
    assert_as_oracle(case, (*outs, *gradients(outs, module.parameters())))
    case = replace(case, args=other(case.args, 1))
    inputs = {f"own.{k}": case.args[k] for k in wanted(case.args)}
    outs = torch.func.functional_call(module, inputs, detached(case.args))
    assert_as_oracle(case, (*outs, *gradients(outs, inputs.values())))


# Expanded inputs -----------------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_expanded_inside_forward_over_reverse(function, data):
    assert_tangents(data.draw(cases(function, layouts=["expanded"])))


@every_function
@given(data=st.data())
def test_expanded_inside_vmap(function, data):
    """Batches of what expands inside; three different ones, or one expanded to three."""
    case = expanding(data.draw(cases(function, layouts=["expanded"])))
    several = zip(*(detached(other(case.args, seed)) for seed in range(3)), strict=True)

    def batch(xs: tuple) -> Any:
        if not isinstance(xs[0], Tensor):
            return xs[0]
        return xs[0].expand(3, *xs[0].shape) if data.draw(st.booleans(), label="expanded") else torch.stack(xs)

    axes = tuple(0 if isinstance(arg, Tensor) else None for arg in case.args)
    assert_maps(case, axes, tuple(map(batch, several)))


# Tensors without values ----------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_meta(function, data):
    """Shapes and dtypes of outputs and gradients, as on the CPU."""
    case = data.draw(cases(function, dtype=data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))))

    def on_meta(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    found = by_autograd(case.hand, changed(case.args, on_meta, on_meta))
    assert all(x.is_meta for x in found)
    assert_alike(found, by_autograd(case.hand, case.args))


def assert_alike(found: tuple[Tensor, ...], real: tuple[Tensor, ...]) -> None:
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in real]


def with_gradients_of_sums(function: Callable) -> Callable:
    """Outputs, then the gradients of their sum; no random numbers, which a trace would keep."""

    def derived(*args: Any) -> tuple[Tensor, ...]:
        outs, inputs = leaves(function(*args)), [arg for arg in args if needs_grad(arg)]
        nothing = [0 * x.sum() for x in inputs]  # a path from every input, also where T is 0
        return *outs, *torch.autograd.grad(torch.stack([out.sum() for out in outs] + nothing).sum(), inputs)

    return derived


@every_function
@given(data=st.data())
def test_fake_tensors(function, data):
    case = data.draw(cases(function))
    derived = with_gradients_of_sums(case.hand)
    with FakeTensorMode() as mode:
        found = derived(*(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in case.args))
    assert_alike(found, derived(*case.args))


# Traces --------------------------------------------------------------------------------------------------------------


@every_function
@settings(max_examples=25)  # of up to a third of a second each
@given(data=st.data())
def test_make_fx(function, data):
    """Traced on some values, run on others."""
    case = data.draw(cases(function))
    hand, auto = map(with_gradients_of_sums, (case.hand, case.auto))
    found = make_fx(hand)(*case.args)(*other(case.args, 1))
    assert_same(found, auto(*other(case.args, 1)), labels(case, found))


@every_function
@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=12)  # of up to half a second each
@given(data=st.data())
def test_export(function, strict, data):
    case = data.draw(cases(function))
    exported = torch.export.export(Called(case.hand), case.args, strict=strict).module()
    for args in (case.args, other(case.args, 1)):
        assert_same(exported(*args), case.auto(*args))


class Called(nn.Module):
    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        return tuple(leaves(self.function(*args)))


@every_function
@settings(max_examples=12)  # of up to half a second each
@given(data=st.data())
def test_compile(function, data):
    """Forward and backward, in one graph, traced anew for each example."""
    case = data.draw(cases(function))
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flat(case.hand), fullgraph=True, backend=backend)
    assert_as_oracle(case, by_autograd(compiled, case.args))
    assert backend.frame_count == 1


# Other precisions ----------------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_float32(function, data):
    case = data.draw(cases(function, dtype=torch.float32))
    assert_as_oracle(case, by_autograd(case.hand, case.args))


@every_function
@pytest.mark.parametrize("inside", [True, False])
@given(data=st.data())
def test_autocast(function, inside, data):
    """float32 gradients, no further from the truth than the oracle's; the backward runs in or out of autocast.

    A single number may be right by luck, so the oracle errs as much as the worst of several: under autocast, and in
    bfloat16 throughout, as torch.nn.RNN computes under autocast, from arguments that are rounded up or down.
    """
    case = data.draw(cases(function, dtype=torch.float32))
    inputs = [arg for arg in case.args if needs_grad(arg)]
    eps = torch.finfo(torch.bfloat16).eps
    rounding = torch.finfo(torch.float32).eps  # of terms that cancel: of one word, p - q = 1 - s - (1 - s) is zero

    def run(function: Callable) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            outs = leaves(function(*case.args))
            if inside:
                return *outs, *gradients(outs, inputs)
        return *outs, *gradients(outs, inputs)

    def rounded(seed: int) -> tuple:
        return changed(case.args, lambda x: (x * (1 + eps * random_like(x, seed).clamp(-1, 1))).bfloat16())

    hand = run(case.hand)
    assert {grad.dtype for grad in hand[-len(inputs) :]} == {torch.float32}
    oracles = zip(run(case.auto), *(by_autograd(case.auto, rounded(seed)) for seed in range(2)), strict=True)
    truth = by_autograd(case.auto, changed(case.args, Tensor.double))
    for name, found, oracle, true in zip(labels(case, hand), hand, oracles, truth, strict=True):
        allowed = 2 * max(error(x, true) for x in oracle) + 4 * eps * error(torch.zeros_like(true), true)
        assert error(found, true) <= allowed + rounding, name


def error(found: Tensor, true: Tensor) -> float:
    return (found - true).detach().abs().max().item() if true.numel() else 0.0
