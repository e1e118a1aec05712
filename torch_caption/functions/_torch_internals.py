"""All private names of torch that this package uses.

torch has no public names for these, or calls them experimental. Each has a test of its own in
tests/functions/test_torch_internals.py, which fails by its name where torch takes the name away or gives it another
meaning. All but `scan` decide which path a function takes; `_common` and `packing` use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as scan_of_dynamo
from torch._higher_order_ops.scan import scan_op
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import has_static_value

__all__ = [
    "has_static_value",
    "in_forward_mode",
    "in_nested_forward_mode",
    "in_torch_func",
    "is_mapped",
    "is_mapped_by_autograd",
    "is_traced",
    "is_wrapped",
    "scan",
    "unwrapped",
]


def is_wrapped(x: Tensor) -> bool:
    """Whether torch.func stands around x: it is mapped, or a derivative is taken with respect to it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_mapped(x: Tensor) -> bool:
    """Whether x, which is wrapped, is mapped by torch.vmap at its outermost level."""
    return torch._C._functorch.is_batchedtensor(x)


def is_mapped_by_autograd(x: Tensor) -> bool:
    """Whether x is mapped by torch.autograd.grad(is_grads_batched=True), whose tensors are of another kind."""
    return torch._C._functorch.is_legacy_batchedtensor(x)


def unwrapped(x: Tensor) -> Tensor:
    """What stands within x, one level of torch.func taken off."""
    return torch._C._functorch.get_unwrapped(x)


def in_torch_func() -> bool:
    """Whether a transform of torch.func, vmap or grad for example, is active, for any tensors."""
    return torch._C._functorch.maybe_current_level() is not None


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is entered: any tensor may come with a tangent."""
    return forward_ad._current_level >= 0


def in_nested_forward_mode() -> bool:
    """Whether two levels of torch.func.jvp are active, or more: jacfwd of jacfwd, for example."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1


def is_traced() -> bool:
    """Whether fake tensors, proxies or torch.jit.trace record what is done, as under torch.export and make_fx."""
    modes = torch._C._TorchDispatchModeKey
    recorded = any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY))
    return recorded or torch.jit.is_tracing()


def scan(
    step: Callable[[tuple, tuple, tuple], tuple[tuple, tuple]],
    state: tuple[Tensor, ...],
    sequences: Sequence[Tensor],
    constants: tuple[Tensor, ...],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Carry a state along the first axis of `sequences`, as one operator of a graph.

    `step` takes the state, one row of each sequence and the constants; it returns the next state and its outputs.
    torch's own scan compiles the step with Dynamo and keeps what it compiled, with the guards of that trace. Outside of
    Dynamo the operator is therefore called as such.

    Returns:
        the last state, and the outputs of all steps, stacked.
    """

    def body(state: tuple, rows: tuple, constants: tuple = constants) -> tuple[tuple, tuple]:
        state, out = step(state, rows, constants)
        return state, tuple(x.clone() for x in out)  # scan takes no tensor as state and output

    if torch.compiler.is_dynamo_compiling():
        return scan_of_dynamo(body, state, tuple(sequences))
    n, m = len(state), len(state) + len(sequences)

    def flat(*args: Tensor) -> list[Tensor]:
        state, out = body(args[:n], args[n:m], args[m:])
        return [*state, *out]

    results = tuple(scan_op(flat, [*state], [*sequences], constants))
    return results[:n], results[n:]
