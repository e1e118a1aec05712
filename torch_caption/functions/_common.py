"""What every function shares: its checks, autocast, the choice of class and of path."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

_ONE, _TWO, _MINUS_ONE = map(torch.tensor, (1.0, 2.0, -1.0))  # numbers in their place cost a microsecond more


def apply(function: type[Function], with_jvp: type[Function], *args: Any) -> Any:
    """Apply `with_jvp`, the subclass that adds forward mode, or plain `function` where torch.compile traces.

    Dynamo refuses a Function that has a jvp once an input requires grad.
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    forward: Any = function.forward
    if not hasattr(forward, "__signature__"):  # which torch would take apart at every call, for 10 microseconds
        forward.__signature__ = inspect.signature(forward)
    return with_jvp.apply(*args)


def rows(x: Tensor) -> Tensor:
    """(..., D) as (rows, D): time and batch are alike to a weight gradient."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def past_end(lengths: Tensor | None, T: int) -> Tensor | None:
    """(N, T, 1) boolean, True where t >= lengths[n]; None where every row is T long."""
    if lengths is None:
        return None
    return (torch.arange(T, device=lengths.device) >= lengths.long().unsqueeze(1)).unsqueeze(2)


def blank(x: Tensor, ended: Tensor | None) -> Tensor:
    """`x` (N, T, D) with zeros where `ended`, whatever stood there, NaN included."""
    return x if ended is None else x.masked_fill(ended, 0)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast would cast the operands of a product.

    The cast stands before the Function, so that its forward and backward see one dtype whether or not the backward
    runs under autocast; `torch.amp.custom_fwd` does not go with `setup_context`. float64 stays, as in torch.
    """
    device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        eligible = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if eligible else t

    return tuple(map(cast, tensors))


def may_write(*inputs: Tensor | None) -> bool:
    """Whether what was just computed from `inputs` may be written over: nobody differentiates, maps or traces it."""
    return not torch.is_grad_enabled() and untransformed(*inputs)


def untransformed(*inputs: Tensor | None) -> bool:
    """Whether `inputs` are plain numbers in memory: not dual, not mapped by torch.func or vmap, not traced."""
    if torch.compiler.is_compiling() or forward_ad._current_level >= 0 or _tracing():
        return False
    is_wrapped, is_legacy = torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor
    return not any(t is not None and (is_wrapped(t) or is_legacy(t) or t.is_meta) for t in inputs)


def take_notes(*inputs: Tensor | None) -> dict[str, Any] | None:
    """Where a forward leaves what its backward can use, or None where it has to take the plain path.

    What is left there is a constant to a second derivative, which therefore computes all of it again.
    """
    return {} if untransformed(*inputs) else None


def tanh_(a: Tensor) -> Tensor:
    """tanh, written over a.

    torch's sigmoid is five times as fast as its tanh; tanh(a) = 2 sigmoid(2a) - 1 is right to two units of precision at
    1, and so to far less than that near 0 for half precision, which takes tanh itself.
    """
    if a.dtype not in (torch.float32, torch.float64):
        return a.tanh_()
    return torch.add(_MINUS_ONE, a.mul_(_TWO).sigmoid_(), alpha=2, out=a)


def tanh_slope(h: Tensor) -> Tensor:
    """1 - h^2, the derivative of tanh where its value is `h`, rounded once: half precision would lose h^2 near 1."""
    return torch.addcmul(_ONE, h, h, value=-1)


def check_floats(function: str, sizes: dict[str, int], **tensors: tuple[Tensor, str]) -> None:
    """Check tensors against shapes such as "N T D" or "D 4H"; letters seen first are bound in `sizes`.

    Raises:
        TypeError: a value is not a tensor, is not floating-point, or differs in dtype or device from the first.
        ValueError: a shape does not fit.
    """
    first: str | None = None
    for name, (tensor, spec) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor, but is a {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{function}: {name} must be floating-point, but is {_short(tensor.dtype)}")
        first = first or name
        expected = tensors[first][0]
        if tensor.dtype != expected.dtype:
            raise TypeError(f"{function}: {name} is {_short(tensor.dtype)}, but {first} is {_short(expected.dtype)}")
        if tensor.device != expected.device:
            raise TypeError(f"{function}: {name} is on {tensor.device}, but {first} is on {expected.device}")
        check_shape(function, name, tensor, spec, sizes)


def check_shape(function: str, name: str, tensor: Tensor, spec: str, sizes: dict[str, int]) -> None:
    """Check one shape; "..." in front of `spec` stands for any leading axes.

    Raises:
        ValueError: a shape does not fit.
    """
    letters = spec.split()
    shape = tuple(tensor.shape)
    if letters[0] == "...":
        letters = letters[1:]
        shape = shape[-len(letters) :]
    fits = len(shape) == len(letters)
    for letter, size in zip(letters, shape, strict=False):
        factor, symbol = _factor(letter)
        if factor == 1:
            sizes.setdefault(symbol, size)
        fits = fits and size == factor * sizes.get(symbol, -1)
    if not fits:
        wanted = ", ".join(spec.split())
        known = ", ".join(
            f"{letter} = {_factor(letter)[0] * sizes[_factor(letter)[1]]}"
            for letter in letters
            if _factor(letter)[1] in sizes
        )
        raise ValueError(
            f"{function}: {name} must be ({wanted}){known and f' with {known}'}, but is {tuple(tensor.shape)}"
        )


def check_integers(function: str, name: str, x: Tensor, spec: str, sizes: dict[str, int], like: Tensor) -> None:
    """Check that `x` holds integers, in a shape that fits, on the device of `like`.

    Raises:
        TypeError: not a tensor, not integers, another device.
        ValueError: a shape does not fit.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, but is a {type(x).__name__}")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must hold integers, but is {_short(x.dtype)}")
    if x.device != like.device:
        raise TypeError(f"{function}: {name} is on {x.device}, but the weights are on {like.device}")
    check_shape(function, name, x, spec, sizes)


def check_range(function: str, name: str, x: Tensor, high: int, meaning: str) -> None:
    """Check 0 <= x < high where the values can be read; elsewhere do nothing.

    `meaning` says in the message what the limit is, of {high} or of {top}, which is high - 1. It is filled in for a
    message alone: a size that is put into a string is a constant to a tracer.

    Raises:
        IndexError: a value is out of range; the message names the first one and where it stands.
    """
    if not readable(x) or x.numel() == 0:
        return
    values = x.long()  # what is unsigned compares with nothing; past 2^63 it comes out negative
    bad = (values < 0) | (values >= high)
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        where = ", ".join(map(str, place))
        meaning = meaning.format(high=high, top=high - 1)
        raise IndexError(f"{function}: {name}[{where}] is {int(x[place])}, but {meaning} (0 to {high - 1})")


def check_lengths(function: str, lengths: Tensor | None, sizes: dict[str, int], like: Tensor) -> None:
    """Check that `lengths`, unless None, holds N integers from 0 to T.

    Raises:
        IndexError: a length is out of range.
        TypeError: not a tensor of integers, or on another device than `like`.
        ValueError: the shape is not (N,).
    """
    if lengths is not None:
        check_integers(function, "lengths", lengths, "N", sizes, like)
        check_range(function, "lengths", lengths, sizes["T"] + 1, "x has {top} timesteps")


def readable(x: Tensor) -> bool:
    """Whether the values of `x` can be looked at: not under compile, export, vmap, graph capture, on meta or fake."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    # torch.func has no public name for this question.
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        if torch._C._functorch.is_batchedtensor(x):
            return False
        x = torch._C._functorch.get_unwrapped(x)
    return not _tracing() and type(x) in (Tensor, torch.nn.Parameter)  # the tensors of tracing modes are subclasses


def _tracing() -> bool:
    """Whether fake tensors, proxies or torch.jit.trace record what is done."""
    modes = torch._C._TorchDispatchModeKey
    recorded = any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY))
    return recorded or torch.jit.is_tracing()


def _factor(letter: str) -> tuple[int, str]:
    """ "4H" is (4, "H")."""
    return int(letter[:-1] or 1), letter[-1]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
