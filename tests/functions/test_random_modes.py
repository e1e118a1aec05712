"""What test_modes.py tries on fixed cases, on random sizes, layouts, lengths, masks and choices of what requires grad.

A hundred examples a function and mode; fewer where torch traces, which takes up to a second. The oracle is
`torch_caption.reference`, outside of the mode that is tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawn import FLOATS, arguments, assert_same, expanded_inside, flat, mixed, scalar, tangents
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from torch_caption import functions, reference
from torch_caption.agreement import gradients, leaves, needs_grad, of_inputs, random_like
from torch_caption.compare import Case

WEIGHTS = {"w", "W", "b", "Wx", "Wh"}  # shared by all rows of a batch

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


def detached(args: tuple) -> tuple:
    return tuple(arg.detach() if isinstance(arg, Tensor) else arg for arg in args)


def other(args: tuple, seed: int) -> tuple:
    """`args` with other values, as valid; `args` themselves for 0."""

    def value(arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        if not arg.is_floating_point():
            return arg.roll(seed, 0)
        return (arg.detach() * (-0.9) ** seed).requires_grad_(arg.requires_grad)

    return tuple(map(value, args))


# torch.func ----------------------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_func_grad(function, data):
    case = data.draw(cases(function))
    assert_as_oracle(case, by_func_grad(case.hand, wanted(case.args))(*detached(case.args)))


def assert_maps(case: Case, axes: tuple[int | None, ...], batched: tuple, hand: Callable, auto: Callable) -> None:
    """`hand` mapped over `axes` equals a loop of `auto`, in outputs and gradients."""
    places = wanted(case.args)
    mapped = torch.func.vmap(by_func_grad(hand, places), axes, randomness="same")(*batched)
    (B,) = {x.shape[axis] for x, axis in zip(batched, axes, strict=True) if axis is not None}
    assert {len(x) for x in mapped} == {B}
    for n in range(B):
        row = (x if axis is None else x.select(axis, n) for x, axis in zip(batched, axes, strict=True))
        assert_same([x[n] for x in mapped], by_func_grad(auto, places)(*row), labels(case, mapped))


@every_function
@given(data=st.data())
def test_vmap(function, data):
    """Over batches of all arguments, or of some: what is not mapped is plain, and in-place work would mix the rows."""
    case = data.draw(cases(function))
    axis = st.sampled_from(data.draw(st.sampled_from([[0, -1], [0, -1, None]])))
    axes = tuple(data.draw(axis) if isinstance(arg, Tensor) else None for arg in case.args)
    if not any(axis is not None for axis in axes):
        axes = tuple(0 if needs_grad(arg) else None for arg in case.args)
    several = zip(*(detached(other(case.args, seed)) for seed in range(3)), strict=True)
    batched = tuple(xs[0] if axis is None else torch.stack(xs, axis) for xs, axis in zip(several, axes, strict=True))
    assert_maps(case, axes, batched, case.hand, case.auto)


@every_function
@given(data=st.data())
def test_per_sample_gradients(function, data):
    """Of each row of the batch alone, the weights being shared, as differential privacy takes them."""
    case = data.draw(cases(function))
    pairs = [*zip(case.names, case.args, strict=False)]
    assume(all(len(arg) for name, arg in pairs if isinstance(arg, Tensor) and name not in WEIGHTS))  # nor maps nothing
    axes = tuple(0 if isinstance(arg, Tensor) and name not in WEIGHTS else None for name, arg in pairs)

    def of_row(function: Callable) -> Callable:
        return lambda *row: function(
            *(x if axis is None else x.unsqueeze(0) for x, axis in zip(row, axes, strict=True))
        )

    assert_maps(case, axes, detached(case.args), of_row(case.hand), of_row(case.auto))


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
    case = data.draw(cases(function, most=2))
    assume(all(case.args[k].numel() for k in wanted(case.args)))  # torch takes no hessian by nothing
    hand, inputs = scalar(*expanded_inside(case.hand, case.args))
    auto, _ = scalar(*expanded_inside(case.auto, case.args))
    every = tuple(range(len(inputs)))
    names = [case.names[k] for k in wanted(case.args)]
    found, expected = (torch.func.hessian(f, every)(*inputs) for f in (hand, auto))
    assert_same(found, expected, [f"d{second} d{first}" for first in names for second in names])


class Module(nn.Module):
    """A function with parameters in the place of the arguments that require grad."""

    def __init__(self, function: Callable, args: tuple):
        super().__init__()
        self.call, inputs = of_inputs(function, args)
        self.inputs = nn.ParameterList(nn.Parameter(x.detach()) for x in inputs)

    def forward(self) -> tuple[Tensor, ...]:
        return self.call(*self.inputs)


@every_function
@given(data=st.data())
def test_functional_call(function, data):
    """With the module's own parameters, and with others in their place."""
    case = data.draw(cases(function))
    module = Module(case.hand, case.args)
    outs = module()
    assert_as_oracle(case, (*outs, *gradients(outs, module.parameters())))
    args = tuple(new if needs_grad(arg) else arg for arg, new in zip(case.args, other(case.args, 1), strict=True))
    inputs = [args[k] for k in wanted(args)]
    outs = torch.func.functional_call(module, dict(zip(dict(module.named_parameters()), inputs, strict=True)), ())
    found = *outs, *gradients(outs, inputs)
    assert_same(found, by_autograd(case.auto, args), labels(case, found))


# Expanded inputs -----------------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_expanded_inside_forward_over_reverse(function, data):
    assert_tangents(data.draw(cases(function, layouts=["expanded"])))


@every_function
@given(data=st.data())
def test_expanded_inside_vmap(function, data):
    """What is mapped expands inside; gradients are of what it expands from."""
    case = data.draw(cases(function, layouts=["expanded"]))
    hand, firsts = expanded_inside(case.hand, case.args)
    auto, _ = expanded_inside(case.auto, case.args)
    axes = tuple(0 if needs_grad(arg) else None for arg in firsts)
    several = zip(*(detached(other(firsts, seed)) for seed in range(3)), strict=True)
    batched = tuple(xs[0] if axis is None else torch.stack(xs) for xs, axis in zip(several, axes, strict=True))
    assert_maps(case, axes, batched, hand, auto)


# Tensors without values ----------------------------------------------------------------------------------------------


@every_function
@given(data=st.data())
def test_meta(function, data):
    """Shapes and dtypes of outputs and gradients, as on the CPU."""
    case = data.draw(cases(function, dtype=data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))))

    def on_meta(arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        meta = torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="meta")
        return meta.requires_grad_(arg.requires_grad)

    found = by_autograd(case.hand, tuple(map(on_meta, case.args)))
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
@given(data=st.data())
def test_make_fx(function, data):
    """Traced on some values, run on others."""
    case = data.draw(cases(function))
    hand, auto = map(with_gradients_of_sums, (case.hand, case.auto))
    found = make_fx(hand)(*case.args)(*other(case.args, 1))
    assert_same(found, auto(*other(case.args, 1)), labels(case, found))


@every_function
@pytest.mark.parametrize("strict", [False, True])
@settings(max_examples=6)  # of a tenth of a second to a whole one each
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
@settings(max_examples=6)  # of half a second to a whole one each
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
    """float32 gradients within bfloat16's own error, with the backward in or out of autocast.

    test_modes.py holds each tensor to its own greatest entry, where nothing cancels.
    """
    case = data.draw(cases(function, dtype=torch.float32))
    inputs = [arg for arg in case.args if needs_grad(arg)]

    def run(function: Callable) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            outs = leaves(function(*case.args))
            if inside:
                return *outs, *gradients(outs, inputs)
        return *outs, *gradients(outs, inputs)

    def cast(dtype: torch.dtype) -> tuple:
        def value(arg: Any) -> Any:
            if not isinstance(arg, Tensor) or not arg.is_floating_point():
                return arg
            return arg.detach().to(dtype).requires_grad_(arg.requires_grad)

        return tuple(map(value, case.args))

    truth = by_autograd(case.auto, cast(torch.float64))
    # The oracle adds a bias of float32, and so has its tanh of float32; ours rounds all that it is given.
    oracles = run(case.auto), by_autograd(case.auto, cast(torch.bfloat16))
    hand = run(case.hand)
    assert {grad.dtype for grad in hand[-len(inputs) :]} == {torch.float32}
    unit = 4 * torch.finfo(torch.bfloat16).eps
    greatest = max(
        (x.abs().max() for x in truth if x.numel()), default=0
    )  # a sum that cancels is as exact as what it sums
    for name, found, true, *autos in zip(labels(case, hand), hand, truth, *oracles, strict=True):
        if true.numel():
            allowed = 2 * max((auto - true).abs().max() for auto in autos) + unit * greatest
            assert (found - true).abs().max() <= allowed, name
