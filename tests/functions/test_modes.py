"""What torch can do with any function of its own it can do with each of these, and with the whole captioner.

Each mode is tried on fixed arguments, those of the comparison, and on random ones: sizes, layouts, lengths, masks and
choices of what requires grad. The oracle is `torch_caption.functions.reference`, outside of the mode.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter
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
from tests.helpers.rings import ringed
from torch_caption import functions
from torch_caption.functions import reference
from torch_caption.verify import compare
from torch_caption.verify.compare import Case
from torch_caption.verify.gradcheck import (
    MODES,
    assert_agrees,
    assert_derivatives,
    differences,
    gradients,
    leaves,
    needs_grad,
    of_inputs,
    random_like,
)

SIZES = {"N": 2, "T": 3, "D": 3, "H": 2, "P": 1, "V": 5, "L": 3}
CASES = {case.label: case for case in compare.cases(SIZES)}
SINGLE = {case.label: case for case in compare.cases(SIZES, torch.float32)}
# Sizes of which none is another by chance, and then another batch.
DISTINCT = {"N": 4, "T": 2, "D": 5, "H": 3, "P": 9, "V": 6, "L": 8}
SMALLER = {case.label: case for case in compare.cases(DISTINCT)}
LARGER = {case.label: case for case in compare.cases({**DISTINCT, "N": 7})}
FUNCTIONS = [label for label in CASES if "Captioning" not in label]
WITHOUT_OPTIONS = [label for label in CASES if "," not in label]
QUICK = {"rnn", "dot_product_attention", "temporal_affine_softmax_loss"}  # of each kind the quickest
WEIGHTS = {"w", "W", "b", "bn", "Wx", "Wh", "Wr", "Wattn"}  # shared by all rows of a batch
Choose = Callable[[list], Any]


def wanted(args: tuple) -> tuple[int, ...]:
    """The indices of the arguments that require grad."""
    return tuple(k for k, arg in enumerate(args) if needs_grad(arg))


def by_autograd(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Outputs, then gradients for random gradients of the outputs."""
    outs = leaves(function(*args))
    return *outs, *gradients(outs, filter(needs_grad, args))


def by_func_grad(function: Callable, places: tuple[int, ...]) -> Callable:
    """The same as a function of all arguments, by torch.func.grad of those at `places`, for vmap and jvp."""

    def loss(*args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        outs = tuple(leaves(function(*args)))
        return mixed(outs, [random_like(out, k) for k, out in enumerate(outs)]), outs

    def derived(*args: Any) -> tuple[Tensor, ...]:
        grads, outs = torch.func.grad(loss, places, has_aux=True)(*args)
        return *outs, *grads

    return derived


def with_gradients_of_sums(function: Callable) -> Callable:
    """Outputs, then the gradients of their sum; no random numbers, which a trace would keep."""

    def derived(*args: Any) -> tuple[Tensor, ...]:
        outs, inputs = leaves(function(*args)), [arg for arg in args if needs_grad(arg)]
        nothing = [0 * x.sum() for x in inputs]  # a path from every input, also where T is 0
        return *outs, *torch.autograd.grad(torch.stack([out.sum() for out in outs] + nothing).sum(), inputs)

    return derived


def labels(case: Case, tensors: tuple[Tensor, ...]) -> list[str]:
    """Names of outputs and gradients: out0, ..., dx, ..."""
    grads = [f"d{case.names[k]}" for k in wanted(case.args)]
    return [*(f"out{k}" for k in range(len(tensors) - len(grads))), *grads]


def assert_as_oracle(case: Case, found: tuple[Tensor, ...]) -> None:
    assert_same(found, by_autograd(case.auto, case.args), labels(case, found))


def assert_alike(found: tuple[Tensor, ...], real: tuple[Tensor, ...]) -> None:
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in real]


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


# The modes: of a case, and of a choice among several forms where there are some ---------------------------------------


def func_grad(case: Case, _: Choose) -> None:
    assert_as_oracle(case, by_func_grad(case.hand, wanted(case.args))(*detached(case.args)))


def vmap(case: Case, choose: Choose) -> None:
    """Over batches of all arguments, or of some: what is not mapped is plain, and in-place work would mix the rows."""
    axis = choose([[0, -1], [0, -1, None]])
    axes = tuple(choose(axis) if isinstance(arg, Tensor) else None for arg in case.args)
    if all(axis is None for axis in axes):
        axes = tuple(0 if needs_grad(arg) else None for arg in case.args)
    several = zip(*(detached(other(case.args, seed)) for seed in range(3)), strict=True)
    assert_maps(
        case, axes, tuple(xs[0] if a is None else torch.stack(xs, a) for xs, a in zip(several, axes, strict=True))
    )


def assert_maps(case: Case, axes: tuple[int | None, ...], batched: tuple) -> None:
    """`hand` mapped over `axes` equals a loop of `auto`, in outputs and gradients."""
    places = wanted(case.args)
    mapped = torch.func.vmap(by_func_grad(case.hand, places), axes, randomness="same")(*batched)
    (B,) = {x.shape[axis] for x, axis in zip(batched, axes, strict=True) if axis is not None}
    assert {len(x) for x in mapped} == {B}
    for n in range(B):
        row = (x if axis is None else x.select(axis, n) for x, axis in zip(batched, axes, strict=True))
        assert_same([x[n] for x in mapped], by_func_grad(case.auto, places)(*row), labels(case, mapped))


def per_sample_gradients(case: Case, _: Choose) -> None:
    """Of each row of the batch alone, the weights being shared, as differential privacy takes them."""
    pairs = [*zip(case.names, case.args, strict=False)]
    axes = tuple(0 if isinstance(arg, Tensor) and name not in WEIGHTS else None for name, arg in pairs)

    def of_row(function: Callable) -> Callable:
        return lambda *row: function(
            *(x if axis is None else x.unsqueeze(0) for x, axis in zip(row, axes, strict=True))
        )

    assert_maps(replace(case, hand=of_row(case.hand), auto=of_row(case.auto)), axes, detached(case.args))


def jvp(case: Case, _: Choose) -> None:
    """Tangents of the outputs and, forward over reverse, of the gradients."""
    places = wanted(case.args)
    found, expected = (tangents(by_func_grad(f, places), case.args) for f in (case.hand, case.auto))
    assert_same(found, expected, [f"tangent of {name}" for name in labels(case, found)])


def hessian(case: Case, choose: Choose) -> None:
    """Forward over reverse, or twice in reverse."""
    case = expanding(case)
    (hand, inputs), (auto, _) = scalar(case.hand, case.args), scalar(case.auto, case.args)
    every = tuple(range(len(inputs)))
    names = [case.names[k] for k in wanted(case.args)]
    expected = torch.func.hessian(auto, every)(*inputs)
    for outer in choose([[torch.func.jacrev, torch.func.jacfwd], [torch.func.jacrev], [torch.func.jacfwd]]):
        found = outer(torch.func.jacrev(hand, every), every)(*inputs)
        assert_same(found, expected, [f"d{second} d{first}" for first in names for second in names])


def forward_over_forward(case: Case, _: Choose) -> None:
    """The second derivative along a direction, which torch gets wrong for a Function of its own."""

    def twice(function: Callable) -> tuple[Tensor, ...]:
        call, inputs = of_inputs(function, case.args)
        along = tuple(random_like(x, 7) for x in inputs)

        def once(*xs: Tensor) -> tuple[Tensor, ...]:
            return torch.func.jvp(call, xs, along)[1]

        return torch.func.jvp(once, detached(inputs), along)[1]

    assert_same(twice(case.hand), twice(case.auto))


def functional_call(case: Case, _: Choose) -> None:
    """With the module's own parameters, and with others in their place."""
    module = Module(case)
    outs = module(*case.args)
    assert_as_oracle(case, (*outs, *gradients(outs, module.parameters())))
    case = replace(case, args=other(case.args, 1))
    inputs = {f"own.{k}": case.args[k] for k in wanted(case.args)}
    outs = torch.func.functional_call(module, inputs, detached(case.args))
    assert_as_oracle(case, (*outs, *gradients(outs, inputs.values())))


class Module(nn.Module):
    """A function whose arguments that require grad are parameters; those of a call in their places are unused."""

    def __init__(self, case: Case):
        super().__init__()
        self.function = case.hand
        self.own = nn.ParameterDict({str(k): nn.Parameter(case.args[k].detach()) for k in wanted(case.args)})

    def forward(self, *args: Any) -> list[Tensor]:
        return leaves(self.function(*(self.own.get(str(k), arg) for k, arg in enumerate(args))))


def meta(case: Case, choose: Choose) -> None:
    """Shapes and dtypes of outputs and gradients, as on the CPU."""
    dtype = choose([torch.float64, torch.float32, torch.bfloat16])
    args = changed(case.args, lambda x: x.to(dtype))

    def on_meta(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    found = by_autograd(case.hand, changed(args, on_meta, on_meta))
    assert all(x.is_meta for x in found)
    assert_alike(found, by_autograd(case.hand, args))


def fake_tensors(case: Case, _: Choose) -> None:
    derived = with_gradients_of_sums(case.hand)
    with FakeTensorMode() as mode:
        found = derived(*(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in case.args))
    assert_alike(found, derived(*case.args))


def traced_by_make_fx(case: Case, _: Choose) -> None:
    """Traced on some values, run on others."""
    hand, auto = map(with_gradients_of_sums, (case.hand, case.auto))
    found = make_fx(hand)(*case.args)(*other(case.args, 1))
    assert_same(found, auto(*other(case.args, 1)), labels(case, found))


def exported(case: Case, choose: Choose) -> None:
    class Called(nn.Module):
        def forward(self, *args: Any) -> tuple[Tensor, ...]:
            return tuple(leaves(case.hand(*args)))

    program = torch.export.export(Called(), case.args, strict=choose([False, True])).module()
    for args in (case.args, other(case.args, 1)):
        assert_same(program(*args), case.auto(*args))


def compiled(case: Case, _: Choose) -> None:
    """Forward and backward, in one graph."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    assert_as_oracle(case, by_autograd(torch.compile(flat(case.hand), fullgraph=True, backend=backend), case.args))
    assert backend.frame_count == 1


def float32(case: Case, _: Choose) -> None:
    assert_as_oracle(case, by_autograd(case.hand, case.args))


def autocast(case: Case, choose: Choose) -> None:
    """float32 gradients, no further from the truth than the oracle's; the backward runs in or out of autocast.

    A single number may be right by luck, so the oracle errs as much as the worst of several: under autocast, and in
    bfloat16 throughout, as torch.nn.RNN computes under autocast, from arguments that are rounded up or down.
    """
    inside = choose([True, False])
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


# On fixed arguments, in the first form of each mode -------------------------------------------------------------------

FIRST: Choose = itemgetter(0)


def every(*checks: Callable) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)


@every(func_grad, vmap, meta, fake_tensors)
@pytest.mark.parametrize("label", CASES)
def test_mode(check, label):
    check(CASES[label], FIRST)


@every(jvp, hessian, forward_over_forward, functional_call)
@pytest.mark.parametrize("label", FUNCTIONS)
def test_mode_of_a_function(check, label):
    check(CASES[label], FIRST)


@every(float32, autocast)
@pytest.mark.parametrize("label", CASES)
def test_mode_in_float32(check, label):
    check(SINGLE[label], FIRST)


@pytest.mark.parametrize("label", FLOATS)
def test_per_sample_gradients(label):
    per_sample_gradients(CASES[label], FIRST)


@pytest.mark.parametrize("label", ringed(CASES, WITHOUT_OPTIONS))
def test_make_fx(label):
    traced_by_make_fx(CASES[label], FIRST)


@pytest.mark.parametrize(
    "label", ringed(FUNCTIONS, {"affine", "packed_rnn", "packed_lstm", "packed_gru", "packed_attention_lstm"})
)
def test_export(label):
    exported(CASES[label], FIRST)


@pytest.mark.parametrize("label", ringed(CASES, FUNCTIONS))
def test_vmap_over_each_argument_alone(label):
    """What is not mapped is plain, and in-place work on it would mix the rows."""
    case = CASES[label]
    for place, arg in enumerate(case.args):
        if isinstance(arg, Tensor):
            rows = torch.stack([detached(other(case.args, seed))[place] for seed in range(3)])
            args = detached(case.args)

            def call(row: Tensor, args: tuple = args, place: int = place) -> tuple[Tensor, ...]:
                return tuple(leaves(case.hand(*args[:place], row, *args[place + 1 :])))

            looped = zip(*map(call, rows), strict=True)
            assert_same(torch.func.vmap(call)(rows), tuple(map(torch.stack, looped)))


@pytest.mark.parametrize("label", FUNCTIONS)
def test_batched_incoming_gradients(label):
    """`is_grads_batched` maps the backward alone."""
    case = CASES[label]
    outs = leaves(case.hand(*case.args))
    inputs = [arg for arg in case.args if needs_grad(arg)]
    douts = [torch.stack([random_like(out, seed) for seed in range(3)]) for out in outs]
    mapped = torch.autograd.grad(outs, inputs, douts, is_grads_batched=True, retain_graph=True)
    looped = [torch.autograd.grad(outs, inputs, dout, retain_graph=True) for dout in zip(*douts, strict=True)]
    assert_same(mapped, tuple(map(torch.stack, zip(*looped, strict=True))))


@pytest.mark.parametrize("label", ringed(FUNCTIONS, QUICK))
def test_expanded_inside(label):
    """Every input repeats its first entry; gradcheck takes no such input, so it is made inside."""
    case = CASES[label]

    def of_first(*args: Any) -> Any:
        return case.hand(
            *(arg.expand(whole.shape) if needs_grad(whole) else arg for arg, whole in zip(args, case.args, strict=True))
        )

    firsts = tuple(arg[:1].detach().requires_grad_() if needs_grad(arg) else arg for arg in case.args)
    call, inputs = of_inputs(of_first, firsts)
    for mode in ("gradcheck", "gradgradcheck", "forward"):
        MODES[mode](call, inputs)


COMPILED = {
    "word_embedding",
    "rnn",
    "lstm_step",
    "dot_product_attention",
    "temporal_affine_softmax_loss",
    "packed_lstm",
}


@pytest.mark.parametrize("label", ringed(CASES, QUICK | {"CaptioningRNN, rnn, every option"}))
def test_compile(label):
    """Once for any batch size, forward and backward; packed rows for theirs."""
    case = SMALLER[label]
    larger = case if label.startswith("packed") else LARGER[label]
    torch._dynamo.reset()
    compiled = torch.compile(flat(case.hand), fullgraph=True, backend="aot_eager", dynamic=True)
    assert_agrees(compiled, flat(case.auto), case.args, case.names)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_agrees(compiled, flat(larger.auto), larger.args, larger.names)


@pytest.mark.parametrize("label", ringed(CASES, {"temporal_affine", "temporal_softmax_loss"}))
def test_compile_without_gradients(label):
    case = CASES[label]
    torch._dynamo.reset()
    compiled = torch.compile(flat(case.hand), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(*case.args), case.hand(*case.args))


@pytest.mark.exhaustive
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor needs a C++ compiler")
def test_compile_with_inductor():
    case = CASES["rnn_step"]
    torch._dynamo.reset()
    assert_agrees(torch.compile(case.hand, fullgraph=True), case.auto, case.args, case.names)


@pytest.mark.parametrize("label", CASES)
def test_backward_under_an_autocast_that_began_later(label):
    case = SINGLE[label]
    outs = leaves(case.hand(*case.args))
    with torch.autocast("cpu", torch.bfloat16):
        grads = gradients(outs, [arg for arg in case.args if needs_grad(arg)])
    assert {grad.dtype for grad in grads} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cuda(dtype):
    sizes = {"N": 8, "T": 16, "D": 32, "H": 64, "V": 500, "P": 16, "L": 49}
    for case in compare.cases(sizes, dtype, "cuda"):
        found = differences(case.hand, case.auto, case.args, case.names)
        assert [f"{case.label}: {d}" for d in found if not d.agrees] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("label", CASES)
def test_cuda_derivatives(label):
    (case,) = (case for case in compare.cases({**SIZES, "D": 1, "H": 1}, device="cuda") if case.label == label)
    assert_derivatives(case.hand, case.args)


# On random arguments, in a random form --------------------------------------------------------------------------------


def check_random(check: Callable, function: str, data: st.DataObject, **limits: Any) -> None:
    hand, auto = getattr(functions, function), getattr(reference, function)
    names = tuple(inspect.signature(hand).parameters)
    case = Case(function, hand, auto, data.draw(arguments(function, **limits)), names)
    if check in (per_sample_gradients, hessian) and function.endswith("loss"):
        assume(case.args[0].numel())  # torch maps no arithmetic of scalars over nothing
    if check is autocast:
        assume("relu" not in case.args)  # near 0 its slope depends on the rounding
    check(case, lambda options: data.draw(st.sampled_from(options)))


@pytest.mark.exhaustive
@every(func_grad, vmap, per_sample_gradients, jvp, functional_call, meta, fake_tensors)
@pytest.mark.parametrize("function", FLOATS)
@given(data=st.data())
def test_mode_of_random_arguments(check, function, data):
    check_random(check, function, data)


@pytest.mark.exhaustive
@pytest.mark.parametrize("function", FLOATS)
@given(data=st.data())
def test_hessian_of_random_arguments(function, data):
    check_random(hessian, function, data, most=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("function", FLOATS)
@given(data=st.data())
def test_jvp_of_arguments_that_expand_inside(function, data):
    check_random(jvp, function, data, layouts=["expanded"])


@pytest.mark.exhaustive
@every(float32, autocast)
@pytest.mark.parametrize("function", FLOATS)
@given(data=st.data())
def test_mode_of_random_arguments_in_float32(check, function, data):
    check_random(check, function, data, dtype=torch.float32)


@pytest.mark.exhaustive
@every(traced_by_make_fx, exported, compiled)
@pytest.mark.parametrize("function", FLOATS)
@settings(max_examples=15)  # of up to half a second each
@given(data=st.data())
def test_trace_of_random_arguments(check, function, data):
    check_random(check, function, data)
