"""What torch can do with any function of its own it can do with each of these, and with the whole captioner.

The cases are the comparison's own: every function, with and without its options, and both captioners.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers.operator_log import Watch
from tests.helpers.random_arguments import assert_same, flat, mixed, scalar
from tests.helpers.rings import ringed
from torch_caption.verify import compare
from torch_caption.verify.gradcheck import (
    MODES,
    assert_agrees,
    assert_derivatives,
    difference,
    differences,
    gradients,
    leaves,
    needs_grad,
    of_inputs,
    random_like,
)

SIZES = {"N": 2, "T": 3, "D": 3, "H": 2, "V": 5, "L": 3}
CASES = {case.label: case for case in compare.cases(SIZES)}
SINGLE = {case.label: case for case in compare.cases(SIZES, torch.float32)}
# Sizes of which none is another by chance, and then another batch.
DISTINCT = {"N": 4, "T": 2, "D": 5, "H": 3, "V": 6, "L": 8}
SMALLER = {case.label: case for case in compare.cases(DISTINCT)}
LARGER = {case.label: case for case in compare.cases({**DISTINCT, "N": 7})}
STEPWISE = {label for label in CASES if label.startswith("packed")}  # whose rows are not of a batch
BATCHED = {"x", "A", "h0", "prev_h", "prev_c", "c0", "h", "lengths", "y", "mask", "features", "captions"}
BATCHED |= {"read", "weights"}
FUNCTIONS = [label for label in CASES if "Captioning" not in label]


@pytest.fixture(params=CASES)
def case(request) -> compare.Case:
    return CASES[request.param]


def test_func_grad(case):
    hand, inputs = scalar(case.hand, case.args)
    auto, _ = scalar(case.auto, case.args)
    every = tuple(range(len(inputs)))
    assert_same(torch.func.grad(hand, every)(*inputs), torch.func.grad(auto, every)(*inputs))


@pytest.mark.parametrize("label", FUNCTIONS)
def test_hessian(label):
    case = CASES[label]
    hand, inputs = scalar(case.hand, case.args)
    auto, _ = scalar(case.auto, case.args)
    every = tuple(range(len(inputs)))
    assert_same(torch.func.hessian(hand, every)(*inputs), torch.func.hessian(auto, every)(*inputs))
    twice = torch.func.jacrev(torch.func.jacrev(hand, every), every)
    assert_same(twice(*inputs), torch.func.hessian(hand, every)(*inputs))


def batch_of_three(arg: Any) -> Any:
    """Three different values in the place of one."""
    if not isinstance(arg, Tensor):
        return arg
    if arg.is_floating_point():
        return torch.stack([arg, *(arg + random_like(arg, seed) for seed in (1, 2))]).detach()
    return torch.stack([arg, arg.flip(0), torch.zeros_like(arg)])


def test_vmap_over_everything(case):
    """Outputs and gradients, over batches of all arguments, those of integers and masks too."""
    batched = tuple(map(batch_of_three, case.args))
    axes = tuple(0 if isinstance(arg, Tensor) else None for arg in case.args)
    wanted = tuple(k for k, arg in enumerate(case.args) if needs_grad(arg))

    douts = [random_like(out, k) for k, out in enumerate(leaves(case.hand(*case.args)))]

    def loss(*args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        outs = tuple(leaves(case.hand(*args)))
        return mixed(outs, douts), outs

    def everything(*args: Any) -> tuple[Tensor, ...]:
        grads, outs = torch.func.grad(loss, wanted, has_aux=True)(*args)
        return *grads, *outs

    rows = [tuple(x[n] if axis == 0 else x for x, axis in zip(batched, axes, strict=True)) for n in range(3)]
    looped = zip(*(everything(*row) for row in rows), strict=True)
    assert_same(torch.func.vmap(everything, axes)(*batched), tuple(map(torch.stack, looped)))


def test_vmap_over_each_argument_alone(case):
    """What is not mapped is plain, and in-place work on it would mix the rows."""
    for place, arg in enumerate(case.args):
        if isinstance(arg, Tensor):
            rows = batch_of_three(arg)
            args = tuple(x.detach() if isinstance(x, Tensor) else x for x in case.args)

            def call(row: Tensor, args: tuple = args, place: int = place) -> tuple[Tensor, ...]:
                return tuple(leaves(case.hand(*args[:place], row, *args[place + 1 :])))

            looped = zip(*map(call, rows), strict=True)
            assert_same(torch.func.vmap(call)(rows), tuple(map(torch.stack, looped)))


def test_batched_incoming_gradients(case):
    """`is_grads_batched` maps the backward alone."""
    outs = leaves(case.hand(*case.args))
    inputs = [arg for arg in case.args if needs_grad(arg)]
    douts = [torch.stack([random_like(out, seed) for seed in range(3)]) for out in outs]
    mapped = torch.autograd.grad(outs, inputs, douts, is_grads_batched=True, retain_graph=True)
    looped = [torch.autograd.grad(outs, inputs, dout, retain_graph=True) for dout in zip(*douts, strict=True)]
    assert_same(mapped, tuple(map(torch.stack, zip(*looped, strict=True))))


@pytest.mark.parametrize("label", FUNCTIONS)
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


def test_meta(case):
    args = tuple(arg.to("meta") if isinstance(arg, Tensor) else arg for arg in case.args)
    outs = leaves(case.hand(*args))
    assert all(out.is_meta for out in outs)
    assert [out.shape for out in outs] == [out.shape for out in leaves(case.hand(*case.args))]


def test_fake_tensors(case):
    with FakeTensorMode() as mode:
        args = tuple(mode.from_tensor(arg) if isinstance(arg, Tensor) else arg for arg in case.args)
        outs = leaves(case.hand(*args))
        inputs = [arg for arg in args if needs_grad(arg)]
        grads = torch.autograd.grad([out.sum() for out in outs], inputs)
    assert [out.shape for out in outs] == [out.shape for out in leaves(case.hand(*case.args))]
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]


def test_make_fx(case):
    def first_gradients(*args: Any) -> tuple[Tensor, ...]:
        outs = leaves(case.hand(*args))
        return *outs, *torch.autograd.grad([out.sum() for out in outs], [arg for arg in args if needs_grad(arg)])

    traced = make_fx(first_gradients)(*case.args)
    assert_same(traced(*case.args), first_gradients(*case.args))


def of_two_batches(case: compare.Case) -> tuple[compare.Case, compare.Case]:
    """A case of two sizes of batch; of one where the steps, which are constants to a tracer, tell the size."""
    return SMALLER[case.label], (SMALLER if case.label in STEPWISE else LARGER)[case.label]


@pytest.mark.parametrize(
    "case",
    ringed(CASES, {"affine", "temporal_softmax_loss", "packed_rnn", "packed_lstm", "packed_attention_lstm"}),
    indirect=True,
)
@pytest.mark.parametrize("strict", ringed([False, True], {False}))
def test_export(case, strict):
    """For any batch size, tried on another than it was traced with."""

    class Module(nn.Module):
        def forward(self, *args: Any) -> tuple[Tensor, ...]:
            return tuple(leaves(case.hand(*args)))

    case, larger = of_two_batches(case)
    N = torch.export.Dim("N")
    names = zip(case.names, case.args, strict=False)
    shapes = None if larger is case else (tuple({0: N} if name in BATCHED else None for name, _ in names),)
    exported = torch.export.export(Module(), case.args, dynamic_shapes=shapes, strict=strict).module()
    assert_same(exported(*case.args), case.hand(*case.args))
    assert_same(exported(*larger.args), larger.hand(*larger.args))


@pytest.mark.parametrize(
    "case",
    ringed(
        CASES,
        {"word_embedding", "rnn", "lstm_step", "dot_product_attention", "temporal_affine_softmax_loss", "packed_lstm"},
    ),
    indirect=True,
)
def test_compile(case):
    """Once for any batch size, forward and backward."""
    case, larger = of_two_batches(case)
    torch._dynamo.reset()
    compiled = torch.compile(flat(case.hand), fullgraph=True, backend="aot_eager", dynamic=True)
    assert_agrees(compiled, flat(case.auto), case.args, case.names)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_agrees(compiled, flat(larger.auto), larger.args, larger.names)


@pytest.mark.parametrize("case", ringed(CASES, {"temporal_affine", "temporal_softmax_loss"}), indirect=True)
def test_compile_without_gradients(case):
    torch._dynamo.reset()
    compiled = torch.compile(flat(case.hand), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(*case.args), case.hand(*case.args))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="inductor needs a C++ compiler")
def test_compile_with_inductor():
    case = CASES["rnn_step"]
    torch._dynamo.reset()
    assert_agrees(torch.compile(case.hand, fullgraph=True), case.auto, case.args, case.names)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("label", SINGLE)
def test_autocast(label, inside):
    """bfloat16 autocast: float32 gradients, no further from the truth than the oracle's own under autocast."""
    case = SINGLE[label]

    def run(function: Callable) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            outs = leaves(function(*case.args))
            if inside:
                return [*outs, *gradients(outs, inputs)]
        return [*outs, *gradients(outs, inputs)]

    inputs = [arg for arg in case.args if needs_grad(arg)]
    exact = CASES[label]  # the same numbers before they were rounded
    outs = leaves(exact.auto(*exact.args))
    truth = [*outs, *gradients(outs, [arg for arg in exact.args if needs_grad(arg)])]
    hand, auto = run(case.hand), run(case.auto)
    assert {grad.dtype for grad in hand[len(outs) :]} == {torch.float32}
    eps = torch.finfo(torch.bfloat16).eps
    for found, oracle, true in zip(hand, auto, truth, strict=True):
        allowed = 2 * (oracle - true).abs().max() + 4 * eps * true.abs().max()
        assert (found - true).abs().max() <= allowed


def test_backward_under_an_autocast_that_began_later(case):
    case = SINGLE[case.label]
    outs = leaves(case.hand(*case.args))
    with torch.autocast("cpu", torch.bfloat16):
        grads = gradients(outs, [arg for arg in case.args if needs_grad(arg)])
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_float32(case):
    case = SINGLE[case.label]
    assert_agrees(case.hand, case.auto, case.args, case.names)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cuda(dtype):
    sizes = {"N": 8, "T": 16, "D": 32, "H": 64, "V": 500, "L": 49}
    for case in compare.cases(sizes, dtype, "cuda"):
        found = differences(case.hand, case.auto, case.args, case.names)
        assert [f"{case.label}: {d}" for d in found if not d.agrees] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("label", CASES)
def test_cuda_derivatives(label):
    (case,) = (case for case in compare.cases({**SIZES, "D": 1, "H": 1}, device="cuda") if case.label == label)
    assert_derivatives(case.hand, case.args)


# What the backward does, and does not ---------------------------------------------------------------------------------

T = SIZES["T"]
# Matrix products forward and back: those that every gradient needs, and those of each gradient alone.
PRODUCTS = {
    "affine": (1, {"x": 1, "w": 1, "b": 0}),
    "temporal_affine": (1, {"x": 1, "w": 1, "b": 0}),
    "word_embedding": (0, {"W": 0}),
    "rnn_step": (2, {"x": 1, "prev_h": 1, "Wx": 1, "Wh": 1, "b": 0}),
    "rnn": (1 + T + T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 1, "b": 0}),
    "lstm_step": (2 + 2, {"x": 1, "prev_h": 1, "prev_c": 0, "Wx": 1, "Wh": 1, "b": 0}),
    "lstm": (1 + T + T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 1, "b": 0}),
    "dot_product_attention": (2 + 1, {"prev_h": 1, "A": 0}),
    "attention_lstm_step": (
        *(1 + 2 + 2 + 2,),
        {"x": 1, "prev_h": 0, "prev_c": 0, "A": 1, "Wx": 1, "Wh": 1, "Wattn": 1, "b": 0},
    ),
    "temporal_softmax_loss, weights": (0, {"x": 0, "mask": 0}),
    "temporal_affine_softmax_loss": (1, {"h": 1, "w": 1, "b": 0}),
}


@pytest.mark.parametrize("label", PRODUCTS)
def test_no_gradient_is_computed_that_nobody_asked_for(label):
    case = CASES[label]
    common, single = PRODUCTS[label]

    def products(wanted: set[str]) -> int:
        pairs = zip(case.names, case.args, strict=False)
        args = [arg.detach().requires_grad_(name in wanted) if needs_grad(arg) else arg for name, arg in pairs]
        with Watch() as watch:
            gradients(leaves(case.hand(*args)), [arg for arg in args if needs_grad(arg)])
        return watch.products

    assert {name: products({name}) - common for name in single} == single
    assert products(set(single)) == common + sum(single.values())


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("label", FUNCTIONS)
def test_each_gradient_is_the_same_alone(label, create_graph):
    """In place, and plainly."""
    case = CASES[label]
    wanted = [k for k, arg in enumerate(case.args) if needs_grad(arg)]
    together = gradients(leaves(case.hand(*case.args)), [case.args[k] for k in wanted], create_graph=create_graph)
    for k, expected in zip(wanted, together, strict=True):
        args = [arg.detach() if isinstance(arg, Tensor) else arg for arg in case.args]
        args[k].requires_grad_()
        (alone,) = gradients(leaves(case.hand(*args)), [args[k]], create_graph=create_graph)
        assert difference(case.names[k], alone, expected).agrees


def test_no_gradient_is_computed_where_none_can_be_asked_for():
    """The fused loss derives its gradients in forward."""
    case = CASES["temporal_affine_softmax_loss"]
    with torch.no_grad(), Watch() as watch:
        case.hand(*case.args)
    assert watch.products == 1


@pytest.mark.parametrize("label", CASES)
def test_both_paths_give_the_same(label):
    """In place where nobody differentiates the gradient again, plainly where somebody does; in float32 too."""
    for case in (CASES[label], SINGLE[label]):
        outs = leaves(case.hand(*case.args))
        inputs = [arg for arg in case.args if needs_grad(arg)]
        in_place = gradients(outs, inputs)
        outs = leaves(case.hand(*case.args))
        plain = gradients(outs, inputs, create_graph=True)
        for k, (one, other) in enumerate(zip(in_place, plain, strict=True)):
            assert difference(f"gradient {k}", one, other).agrees, difference(f"gradient {k}", one, other)


def test_nothing_is_read_that_was_not_written(case):
    """torch then fills memory that nobody has written with NaN."""

    def results() -> list[Tensor]:
        outs = leaves(case.hand(*case.args))
        return [*outs, *gradients(outs, [arg for arg in case.args if needs_grad(arg)])]

    expected = results()
    torch.use_deterministic_algorithms(True)
    try:
        found = results()
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, expected)


def test_backward_leaves_everything_as_it_was(case):
    """Inputs, outputs and incoming gradients, in value and in version; so a second backward gives the same."""
    args = tuple(
        arg.detach().clone().requires_grad_(arg.requires_grad) if isinstance(arg, Tensor) else arg for arg in case.args
    )
    outs = leaves(case.hand(*args))
    inputs = [arg for arg in args if needs_grad(arg)]
    douts = [random_like(out, k) for k, out in enumerate(outs)]
    present = [arg for arg in args if isinstance(arg, Tensor)] + outs + douts
    before = [(x.detach().clone(), x._version) for x in present]
    first = torch.autograd.grad(outs, inputs, douts, retain_graph=True)
    for x, (value, version) in zip(present, before, strict=True):
        assert torch.equal(x, value)
        assert x._version == version
    second = torch.autograd.grad(outs, inputs, douts)
    assert all(map(torch.equal, first, second))


def test_gradients_are_not_views_of_what_arrives(case):
    """Whoever changes a gradient in place, as clipping does, must not change another one."""
    outs = leaves(case.hand(*case.args))
    inputs = [arg for arg in case.args if needs_grad(arg)]
    douts = [random_like(out, k) for k, out in enumerate(outs)]
    grads = torch.autograd.grad(outs, inputs, douts)
    memory = [x.untyped_storage().data_ptr() for x in (*grads, *douts)]
    assert len(set(memory)) == len(memory)


def test_no_derivative_of_torch_runs(case):
    """The backward is made of forward operators alone, for the functions; the captioner's is made of theirs."""
    outs = leaves(case.hand(*case.args))
    with Watch() as watch:
        gradients(outs, [arg for arg in case.args if needs_grad(arg)])
    assert [name for name in watch.operators if "backward" in name] == []
    outs = leaves(case.auto(*case.args))
    with Watch() as watch:
        gradients(outs, [arg for arg in case.args if needs_grad(arg)])
    seen = any("backward" in name for name in watch.operators)
    assert seen == (case.label not in ("affine", "temporal_affine", "word_embedding"))  # those of the oracle are seen


@pytest.mark.parametrize("label", FUNCTIONS)
def test_forward_mode_over_a_backward_without_a_graph(label):
    case = CASES[label]

    def pushed(function: Callable) -> list[Tensor]:
        call, inputs = of_inputs(function, case.args)
        with torch.autograd.forward_ad.dual_level():
            duals = [torch.autograd.forward_ad.make_dual(x, random_like(x, k)) for k, x in enumerate(inputs)]
            grads = gradients(call(*duals), duals)
            tangents = [torch.autograd.forward_ad.unpack_dual(grad).tangent for grad in grads]
        return [torch.zeros_like(g) if t is None else t for g, t in zip(grads, tangents, strict=True)]

    assert_same(pushed(case.hand), pushed(case.auto))
