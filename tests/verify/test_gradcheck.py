"""The checks themselves: that they fail where a derivative is wrong, and name it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_caption.verify.gradcheck import (
    MODES,
    assert_agrees,
    assert_derivatives,
    difference,
    differences,
    gradients,
    leaves,
    random_like,
    run_modes,
)


class Square(Function):
    """x^2 with faults to choose from: factors on each derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, first: float, second: float, tangent: float) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.first, ctx.second, ctx.tangent = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        right = 2 * x * dout
        # Right in value; its own derivative by x is off by the factor.
        dx = ctx.second * right + (1 - ctx.second) * (2 * x.detach() * dout)
        return ctx.first * dx, None, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return ctx.tangent * 2 * x * tx


def square(x: Tensor, first: float = 1.0, second: float = 1.0, tangent: float = 1.0) -> Tensor:
    return Square.apply(x, first, second, tangent)


def right(x: Tensor, *_: float) -> Tensor:
    return x * x


def failing(**faults: float) -> set[str]:
    x = torch.tensor([0.5, -1.5], dtype=torch.float64, requires_grad=True)
    return {mode for mode, fault in run_modes(lambda x: square(x, **faults), (x,)).items() if fault}


@pytest.mark.parametrize(
    ("faults", "modes"),
    [
        ({}, set()),
        ({"first": 1.0001}, {"gradcheck"}),  # the default tolerances of gradcheck pass five times as much
        ({"second": 1.001}, {"gradgradcheck", "forward over reverse"}),
        ({"tangent": 1.001}, {"forward"}),
    ],
)
def test_each_wrong_derivative_fails_in_its_modes(faults, modes):
    assert failing(**faults) == modes


def test_a_missing_vmap_fails(monkeypatch):
    monkeypatch.setattr(Square, "generate_vmap_rule", False)
    assert "vmap" in failing()


def test_a_wrong_vmap_fails(randn):
    class Unmapped(Square):
        generate_vmap_rule = False

        @staticmethod
        def vmap(info: Any, in_dims: tuple, x: Tensor, *faults: float) -> tuple[Tensor, int]:
            return Square.apply(x.movedim(in_dims[0], 0)[:1].expand(x.shape), *faults), 0

    faults = run_modes(lambda x: Unmapped.apply(x, 1.0, 1.0, 1.0), (randn(3),))
    assert faults["vmap"].startswith("vmap differs from a loop in tensor 0")


def test_failing_modes_are_named():
    x = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"^forward: Jacobian .* mismatch for output 0") as caught:
        assert_derivatives(lambda x: square(x, tangent=1.1), (x,))
    assert "\n" not in str(caught.value)


def test_an_error_without_a_message_is_a_fault(randn):
    def silent(x: Tensor) -> Tensor:
        raise AssertionError

    assert run_modes(silent, (randn(1),)) == dict.fromkeys(MODES, "AssertionError")


def test_disagreement_is_named(randn):
    x = randn(2, 3)
    assert_agrees(square, right, (x,))
    with pytest.raises(AssertionError, match=r"^dx: max error \d.\de-\d\d, relative 1.0e-11$"):
        assert_agrees(lambda x: square(x, first=1 + 1e-11), right, (x,))
    with pytest.raises(AssertionError, match=r"^out: max error .*; dx: max error .*, relative 1.0e-03$"):
        assert_agrees(lambda x: 1.001 * square(x), right, (x,))


@pytest.mark.parametrize(("dtype", "passes", "fails"), [(torch.float64, 1e-13, 1e-11), (torch.float32, 1e-5, 1e-3)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_tolerance_is_relative_to_the_greatest_entry(randn, dtype, passes, fails, scale):
    x = (scale * randn(4)).detach().to(dtype).requires_grad_()
    assert_agrees(lambda x: square(x, first=1 + passes), right, (x,))
    with pytest.raises(AssertionError, match="dx"):
        assert_agrees(lambda x: square(x, first=1 + fails), right, (x,))


def test_tolerance_is_absolute_where_all_is_zero():
    zero = torch.zeros(3, dtype=torch.float64)
    assert difference("dx", zero + 5e-13, zero).agrees
    assert not difference("dx", zero + 5e-12, zero).agrees
    assert difference("dx", zero[:0], zero[:0]).agrees


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_values_do_not_agree(bad):
    x, y = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    assert not difference("dx", y, x).agrees
    assert not difference("dx", x, y).agrees


def test_another_shape_or_dtype_does_not_agree():
    x = torch.ones(2, 3)
    assert not any(difference("dx", y, x).agrees for y in (x.T, x.double(), x[:1]))  # the last would broadcast


def test_names_come_from_the_signature_or_are_given(randn):
    args = (randn(2), 2.0)

    def hand(x: Tensor, power: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return x**power, (x + 1, x + 2)

    found = [d.name for d in differences(hand, hand, args)]
    assert found == ["out0", "out1", "out2", "dx"]
    assert differences(hand, hand, args, ("u", "v"))[-1].name == "du"


def test_a_gradient_without_a_path_is_zero(randn):
    x, y = randn(2), randn(3)
    dx, dy = gradients([x * 2], [x, y])
    assert dx.any()
    assert torch.equal(dy, torch.zeros(3, dtype=torch.float64))
    assert not gradients([y.detach()], [x])[0].any()


def test_each_output_has_the_same_gradient_whichever_require_one(randn):
    """Two functions agree although only one of them tells torch that an output is constant."""
    x = randn(2)

    def connected(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * x, x * x

    def constant(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(2, dtype=torch.float64), x * x

    assert_agrees(connected, constant, (x,))


def test_leaves_and_random_like():
    x = torch.ones(2, 2, dtype=torch.float32)
    assert [leaf.item() for leaf in leaves((x[0, 0], (x[0, 1] * 2, (x[1, 0] * 3,))))] == [1, 2, 3]
    assert torch.equal(random_like(x, 3), random_like(x, 3))
    assert not torch.equal(random_like(x, 3), random_like(x, 4))
    assert random_like(x, 3).dtype == torch.float32
