"""What the backward of each function computes, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.operator_log import Watch
from tests.helpers.random_arguments import assert_same
from torch_caption.verify import compare
from torch_caption.verify.gradcheck import difference, gradients, leaves, needs_grad, of_inputs, random_like

SIZES = {"N": 2, "T": 3, "D": 3, "H": 2, "P": 1, "V": 5, "L": 3}
CASES = {case.label: case for case in compare.cases(SIZES)}
SINGLE = {case.label: case for case in compare.cases(SIZES, torch.float32)}
FUNCTIONS = [label for label in CASES if "Captioning" not in label]


@pytest.fixture(params=CASES)
def case(request) -> compare.Case:
    return CASES[request.param]


T = SIZES["T"]
# Matrix products forward and back: those that every gradient needs, and those of each gradient alone.
PRODUCTS = {
    "affine": (1, {"x": 1, "w": 1, "b": 0}),
    "temporal_affine": (1, {"x": 1, "w": 1, "b": 0}),
    "word_embedding": (0, {"W": 0}),
    "rnn_step": (2, {"x": 1, "prev_h": 1, "Wx": 1, "Wh": 1, "b": 0}),
    "rnn": (1 + T + T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 2, "b": 0}),  # Wh: of h0, and of the other states
    "lstm_step": (2 + 2, {"x": 1, "prev_h": 1, "prev_c": 0, "Wx": 1, "Wh": 1, "b": 0}),
    "lstm": (1 + T + T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 2, "b": 0}),
    "projected_lstm_step": (3 + 3, {"x": 1, "prev_h": 1, "prev_c": 0, "Wx": 1, "Wh": 1, "Wr": 1, "b": 0}),
    "projected_lstm": (1 + 2 * T + 2 * T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 1, "Wr": 1, "b": 0}),
    "gru_step": (2 + 2, {"x": 1, "prev_h": 1, "Wx": 1, "Wh": 1, "b": 0, "bn": 0}),
    "gru": (1 + T + T - 1, {"x": 1, "h0": 1, "Wx": 1, "Wh": 1, "b": 0, "bn": 0}),
    "dot_product_attention": (2 + 1, {"prev_h": 1, "A": 0}),
    "attention_lstm_step": (
        *(1 + 2 + 2 + 2,),
        {"x": 1, "prev_h": 0, "prev_c": 0, "A": 1, "Wx": 1, "Wh": 1, "Wattn": 1, "b": 0},
    ),
    "temporal_softmax_loss, weights": (0, {"x": 0, "mask": 0}),
    "temporal_affine_softmax_loss": (1, {"h": 1, "w": 1, "b": 0}),
}


@pytest.mark.parametrize("label", PRODUCTS)
def test_no_unrequired_gradient_is_computed(label):
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


def test_no_gradient_is_computed_without_grad_mode():
    """The fused loss derives its gradients in forward."""
    case = CASES["temporal_affine_softmax_loss"]
    with torch.no_grad(), Watch() as watch:
        case.hand(*case.args)
    assert watch.products == 1


@pytest.mark.parametrize("label", CASES)
def test_in_place_and_plain_gradients_are_the_same(label):
    """In place where the gradient is not differentiated again, plainly where it is; in float32 too."""
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
    """A gradient changed in place, as clipping does, changes no other."""
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
