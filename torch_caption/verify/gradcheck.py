"""Gradient checks: two functions compared in value and gradient, and a function's derivatives in every mode.

`torch_caption.verify.compare` and the tests use the same checks.

A finite-difference check alone is weak: `torch.autograd.gradcheck` at its default tolerances passes a gradient that is
wrong by up to 0.1 %. The comparison with a second implementation in float64 is the primary check; gradcheck, at tighter
tolerances, is independent of errors in a reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

# Relative to the largest entry of the automatic gradient.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}
# Of finite differences in float64; gradcheck's own defaults are 1e-3 and 1e-5.
RTOL, ATOL = 1e-6, 1e-8


@dataclass(frozen=True)
class Difference:
    """The difference of a hand-derived tensor from the automatic one.

    Attributes:
        name: "out" for the output itself, "dWh" for the gradient of Wh.
        shape: of the tensor.
        absolute: max|hand - auto|.
        relative: `absolute` over max|auto|; `absolute` if the automatic one is all zero.
        agrees: relative <= TOLERANCE of the dtype.
    """

    name: str
    shape: tuple[int, ...]
    absolute: float
    relative: float
    agrees: bool

    def __str__(self) -> str:
        return f"{self.name}: max error {self.absolute:.1e}, relative {self.relative:.1e}"


def difference(name: str, hand: Tensor, auto: Tensor) -> Difference:
    """Compare two tensors; a non-finite entry where the other is finite is a difference."""
    if hand.shape != auto.shape or hand.dtype != auto.dtype:
        return Difference(name, tuple(hand.shape), float("inf"), float("inf"), False)
    tolerance = TOLERANCE[hand.dtype]
    hand, auto = hand.detach().double(), auto.detach().double()
    absolute = (hand - auto).abs().max().item() if hand.numel() else 0.0
    scale = auto.abs().max().item() if auto.numel() else 0.0
    relative = absolute / scale if scale else absolute
    return Difference(name, tuple(hand.shape), absolute, relative, relative <= tolerance)


def differences(hand: Callable, auto: Callable, args: tuple, names: Sequence[str] = ()) -> list[Difference]:
    """Compare the outputs and every gradient of two functions, for random gradients of the outputs.

    Args:
        hand, auto: functions of the same `args`, each returning a tensor or nested tuples of tensors.
        args: tensors and other values; gradients are taken of the tensors that require grad.
        names: of the arguments; by default those in the signature of `hand`.

    Returns:
        first the outputs, then the gradients in the order of the arguments.
    """
    names = names or tuple(inspect.signature(hand).parameters)
    inputs = {f"d{name}": arg for name, arg in zip(names, args, strict=False) if needs_grad(arg)}
    hand_outs, auto_outs = leaves(hand(*args)), leaves(auto(*args))
    labels = ["out"] if len(hand_outs) == 1 else [f"out{k}" for k in range(len(hand_outs))]
    pairs = [*zip(labels, hand_outs, auto_outs, strict=True)]
    if inputs:
        pairs += zip(inputs, gradients(hand_outs, inputs.values()), gradients(auto_outs, inputs.values()), strict=True)
    return [difference(*pair) for pair in pairs]


def gradients(outs: Sequence[Tensor], inputs: Iterable[Tensor], create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradients of `inputs` for fixed random gradients of `outs`; zero without a path."""
    inputs = tuple(inputs)
    paths = [(out, random_like(out, seed)) for seed, out in enumerate(outs) if out.requires_grad]
    if not paths:
        return tuple(torch.zeros_like(x) for x in inputs)
    outs, douts = zip(*paths, strict=True)
    return torch.autograd.grad(outs, inputs, douts, create_graph=create_graph, materialize_grads=True)


def assert_agrees(hand: Callable, auto: Callable, args: tuple, names: Sequence[str] = ()) -> None:
    """Fail by name unless outputs and gradients agree to TOLERANCE; arguments as in `differences`.

    Raises:
        AssertionError: such as "dWh: max error 3.1e-02, relative 2.4e-02".
    """
    wrong = [str(d) for d in differences(hand, auto, args, names) if not d.agrees]
    if wrong:
        raise AssertionError("; ".join(wrong))


def assert_derivatives(function: Callable, args: tuple) -> None:
    """Fail unless `function` passes every mode of `MODES` at the float64 `args`.

    Raises:
        AssertionError: with the modes and their errors.
    """
    wrong = [f"{mode}: {fault}" for mode, fault in run_modes(function, args).items() if fault]
    if wrong:
        raise AssertionError("; ".join(wrong))


def run_modes(function: Callable, args: tuple) -> dict[str, str | None]:
    """The name of each mode in `MODES`, with None or its error."""
    call, inputs = of_inputs(function, args)
    faults: dict[str, str | None] = {}
    for mode, check in MODES.items():
        try:
            check(call, inputs)
            faults[mode] = None
        except (RuntimeError, AssertionError) as error:  # gradcheck's GradcheckError is a RuntimeError
            first, *_ = [*str(error).strip().splitlines(), type(error).__name__]  # the rest is complete Jacobians
            faults[mode] = first.rstrip(",:")
    return faults


def of_inputs(function: Callable, args: tuple) -> tuple[Callable, tuple[Tensor, ...]]:
    """`function` as a function of its arguments that require grad, with a flat tuple as result; and these arguments."""
    indices = [k for k, arg in enumerate(args) if needs_grad(arg)]

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        filled = list(args)
        for index, value in zip(indices, inputs, strict=True):
            filled[index] = value
        return tuple(leaves(function(*filled)))

    return call, tuple(args[index] for index in indices)


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, in order."""
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in leaves(part)]


def needs_grad(arg: Any) -> bool:
    """Whether `arg` is a tensor that requires grad."""
    return isinstance(arg, Tensor) and arg.requires_grad


def random_like(x: Tensor, seed: int) -> Tensor:
    """Normal numbers in the shape, dtype and on the device of `x`; the same for one seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x)


def _reverse(call: Callable, inputs: tuple[Tensor, ...]) -> None:
    gradcheck(call, inputs, rtol=RTOL, atol=ATOL, check_batched_grad=True)


def _forward(call: Callable, inputs: tuple[Tensor, ...]) -> None:
    gradcheck(
        call,
        inputs,
        rtol=RTOL,
        atol=ATOL,
        check_forward_ad=True,
        check_backward_ad=False,
        check_undefined_grad=False,
        check_batched_forward_grad=True,
    )


def _reverse_over_reverse(call: Callable, inputs: tuple[Tensor, ...]) -> None:
    gradgradcheck(call, inputs, rtol=RTOL, atol=ATOL, check_batched_grad=True)


def _forward_over_reverse(call: Callable, inputs: tuple[Tensor, ...]) -> None:
    gradgradcheck(
        call,
        inputs,
        rtol=RTOL,
        atol=ATOL,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


def _vmap(call: Callable, inputs: tuple[Tensor, ...]) -> None:
    """torch.func.vmap of outputs, gradients and tangents equals a loop."""
    detached = tuple(x.detach() for x in inputs)
    batched = tuple(torch.stack([x, x + 0.1 * random_like(x, 1), random_like(x, 2)]) for x in detached)
    tangents = tuple(random_like(x, 3) for x in detached)
    douts = tuple(random_like(out, k) for k, out in enumerate(call(*detached)))

    def everything(*xs: Tensor) -> tuple[Tensor, ...]:
        outs, pullback = cast(tuple[tuple[Tensor, ...], Callable], torch.func.vjp(call, *xs))
        _, pushed = cast(tuple[tuple[Tensor, ...], tuple[Tensor, ...]], torch.func.jvp(call, xs, tangents))
        return *outs, *pullback(douts), *pushed

    looped = [everything(*xs) for xs in zip(*batched, strict=True)]
    mapped = torch.func.vmap(everything)(*batched)
    for k, values in enumerate(zip(*looped, strict=True)):
        found = difference(f"tensor {k}", mapped[k], torch.stack(values))
        assert found.agrees, f"vmap differs from a loop in {found}"


MODES: dict[str, Callable[[Callable, tuple[Tensor, ...]], None]] = {
    "gradcheck": _reverse,
    "gradgradcheck": _reverse_over_reverse,
    "forward": _forward,
    "forward over reverse": _forward_over_reverse,
    "vmap": _vmap,
}
