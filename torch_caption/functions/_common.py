"""What every function shares: its checks, autocast, the choice of class and of path."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._torch_internals import (
    in_forward_mode,
    in_nested_forward_mode,
    is_mapped,
    is_mapped_by_autograd,
    is_traced,
    is_wrapped,
    unwrapped,
)


def apply(function: type[Function], with_jvp: type[Function], *args: Any) -> Any:
    """Apply `with_jvp`, the subclass that adds forward mode, or plain `function` where torch.compile traces.

    Dynamo refuses a Function that has a jvp once an input requires grad. Within nested forward mode torch takes the
    tangents of a jvp as constants (pytorch/pytorch#197867): there its own derivatives of the forward are used.
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    forward: Any = function.forward
    if in_forward_mode() and in_nested_forward_mode():
        return forward(*args)
    if not hasattr(forward, "__signature__"):  # which torch would take apart at every call, for 10 microseconds
        forward.__signature__ = inspect.signature(forward)
    return with_jvp.apply(*args)


def flatten_rows(x: Tensor) -> Tensor:
    """(..., D) as (rows, D): a weight gradient sums over time and batch."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def padding_mask(lengths: Tensor | None, T: int) -> Tensor | None:
    """(N, T, 1) boolean, True where t >= lengths[n]; None where every row is T long."""
    if lengths is None:
        return None
    return (torch.arange(T, device=lengths.device) >= lengths.long().unsqueeze(1)).unsqueeze(2)


def zero_padding(x: Tensor, padding: Tensor | None) -> Tensor:
    """`x` (N, T, D) with zeros where `padding` (N, T, 1), even if it held NaN."""
    return x if padding is None else x.masked_fill(padding, 0)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast would cast the operands of a product.

    The cast comes before the Function, so that its forward and backward have one dtype whether or not the backward
    runs under autocast; `torch.amp.custom_fwd` does not work with `setup_context`. float64 stays, as in torch.
    """
    device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(t: Tensor) -> Tensor:
        eligible = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        return t.to(dtype) if eligible else t

    return tuple(map(cast, tensors))


def may_overwrite(*inputs: Tensor | None) -> bool:
    """Whether what was just computed from `inputs` may be overwritten: nothing differentiates, maps or traces it."""
    return not torch.is_grad_enabled() and untransformed(*inputs)


def untransformed(*inputs: Tensor | None) -> bool:
    """Whether `inputs` are plain tensors in memory: not dual, not mapped by torch.func or vmap, not traced."""
    if torch.compiler.is_compiling() or in_forward_mode() or is_traced():
        return False
    return not any(t is not None and (is_wrapped(t) or is_mapped_by_autograd(t) or t.is_meta) for t in inputs)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision cast to float32: a sum over thousands of words needs it."""
    return x if x.dtype == torch.float64 else x.float()


def batch_size(y: Tensor) -> int:
    """N, and 1 where N is 0: an empty batch has the loss 0."""
    return max(y.shape[0], 1)


def new_cache(*inputs: Tensor | None) -> dict[str, Any] | None:
    """A cache of intermediates that a forward fills for its backward, or None where it has to take the plain path.

    Its tensors are constants to a second derivative, which therefore computes them again.
    """
    return {} if untransformed(*inputs) else None


def check_tensor(function: str, name: str, value: object) -> None:
    """Check that `value` is a tensor.

    Raises:
        TypeError: it is something else; for a NumPy array or a PackedSequence with the conversion to tensors.
    """
    if isinstance(value, Tensor):
        return
    advice = {
        "ndarray": "a NumPy array; torch.from_numpy makes a tensor of it",
        "PackedSequence": "a PackedSequence; torch.nn.utils.rnn.pad_packed_sequence makes a tensor and lengths of it",
    }
    kind = type(value).__name__
    raise TypeError(f"{function}: {name} must be a tensor, but is {advice.get(kind, f'a {kind}')}")


def check_floats(function: str, axes: dict[str, int], **tensors: tuple[Tensor, str]) -> None:
    """Check tensors against shapes such as "N T D" or "D 4H"; new letters are bound in `axes`.

    Raises:
        TypeError: a value is not a tensor, is not floating-point, or its dtype or device differs.
        ValueError: a shape does not fit.

    The message names the tensor without which the others agree; where that is an input or a weight, the input.
    """
    first: Tensor | None = None
    for name, (tensor, _) in tensors.items():
        check_tensor(function, name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{function}: {name} must be floating-point, but is {_short(tensor.dtype)}")
        first = tensor if first is None else first
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise _mixed(function, {name: value for name, (value, _) in tensors.items() if isinstance(value, Tensor)})
    before = dict(axes)
    for tensor, spec in tensors.values():
        if not _fits(tensor, spec, axes):
            raise _misfit(function, tensors, before)


def check_shape(function: str, name: str, tensor: Tensor, spec: str, axes: dict[str, int]) -> None:
    """Check one shape; "..." in front of `spec` stands for any leading axes.

    Raises:
        ValueError: a shape does not fit.
    """
    if not _fits(tensor, spec, axes):
        raise _wrong_shape(function, name, tensor, spec, axes)


def _fits(tensor: Tensor, spec: str, axes: dict[str, int]) -> bool:
    """Whether the shape is `spec`. Of a tensor with as many axes, new letters are bound in `axes`."""
    letters, shape = spec.split(), tuple(tensor.shape)
    if letters[0] == "...":
        letters = letters[1:]
        shape = shape[-len(letters) :]
    if len(shape) != len(letters):
        return False
    fits = True
    for letter, size in zip(letters, shape, strict=True):
        factor, symbol = _factor(letter)
        if symbol not in axes and size % factor == 0:
            axes[symbol] = size // factor
        fits = fits and symbol in axes and size == factor * axes[symbol]
    return fits


def _suspects(names: Collection[str]) -> list[str]:
    """Arguments in the order in which they are suspected: inputs before weights, later ones before earlier ones."""
    backwards = [*names][::-1]
    return [name for name in backwards if not _is_weight(name)] + [name for name in backwards if _is_weight(name)]


def _is_weight(name: str) -> bool:
    """Wx, Wh, w, b and their like; everything else comes from the caller's data."""
    return name[0] in "Wwb"


def _mixed(function: str, tensors: dict[str, Tensor]) -> TypeError:
    """The error for tensors of mixed dtypes or devices."""
    of = {name: f"is {_short(tensor.dtype)}" for name, tensor in tensors.items()}
    if len(set(of.values())) == 1:
        of = {name: f"is on {tensor.device}" for name, tensor in tensors.items()}
    for suspect in _suspects(of):
        others = [name for name in of if name != suspect]
        if len({of[name] for name in others}) == 1:
            return TypeError(f"{function}: {suspect} {of[suspect]}, but {others[0]} {of[others[0]]}")
    weight = _suspects(of)[-1]  # several differ: the first that does from the first weight
    suspect = next(name for name in of if of[name] != of[weight])
    return TypeError(f"{function}: {suspect} {of[suspect]}, but {weight} {of[weight]}")


def _misfit(function: str, tensors: dict[str, tuple[Tensor, str]], axes: dict[str, int]) -> ValueError:
    """The error for shapes that do not agree."""
    for suspect in _suspects(tensors):
        bound, others = dict(axes), [tensors[name] for name in tensors if name != suspect]
        if all(_fits(*other, bound) for other in others):
            return _wrong_shape(function, suspect, *tensors[suspect], bound)
    # Several are wrong: the first one, by the shapes of the weights.
    bound = dict(axes)
    _bind([tensors[name] for name in tensors if _is_weight(name)], bound)
    suspect = next(name for name in tensors if not _fits(*tensors[name], dict(bound)))
    return _wrong_shape(function, suspect, *tensors[suspect], bound)


def _bind(tensors: Sequence[tuple[Tensor, str]], axes: dict[str, int]) -> None:
    """Bind the letters of all that have as many axes as letters, in order."""
    for tensor, spec in tensors:
        _fits(tensor, spec, axes)


def _wrong_shape(function: str, name: str, tensor: Tensor, spec: str, axes: dict[str, int]) -> ValueError:
    letters = spec.split()
    factors = {letter: _factor(letter) for letter in letters if letter != "..."}
    known = ", ".join(f"{letter} = {k * axes[symbol]}" for letter, (k, symbol) in factors.items() if symbol in axes)
    wanted = ", ".join(letters)
    return ValueError(
        f"{function}: {name} must be ({wanted}){known and f' with {known}'}, but is {tuple(tensor.shape)}"
    )


def check_integers(function: str, name: str, x: Tensor, spec: str, axes: dict[str, int], like: Tensor) -> None:
    """Check that `x` holds integers, in a shape that fits, on the device of `like`.

    Raises:
        TypeError: not a tensor, not integers, another device.
        ValueError: a shape does not fit.
    """
    check_tensor(function, name, x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must hold integers, but is {_short(x.dtype)}")
    if x.device != like.device:
        raise TypeError(f"{function}: {name} is on {x.device}, but the weights are on {like.device}")
    check_shape(function, name, x, spec, axes)


def check_range(function: str, name: str, x: Tensor, high: int, meaning: str) -> None:
    """Check 0 <= x < high where the values can be read; elsewhere do nothing.

    `meaning` describes the limit in the message, with {high} or {top}, which is high - 1. It is filled in for a
    message alone: a size that is put into a string is a constant to a tracer.

    Raises:
        IndexError: a value is out of range; the message names the first one and where it stands.
    """
    if not readable(x) or x.numel() == 0:
        return
    values = x.long()  # what is unsigned compares with nothing; past 2^63 it comes out negative
    bad = (values < 0) | (values >= high)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        where = ", ".join(map(str, index))
        meaning = meaning.format(high=high, top=high - 1)
        raise IndexError(f"{function}: {name}[{where}] is {int(x[index])}, but {meaning} (0 to {high - 1})")


def check_choice(function: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Check that `value` is one of `choices`.

    Raises:
        ValueError: it is another.
    """
    if value not in choices:
        raise ValueError(f"{function}: {name} must be {' or '.join(choices)}, but is {value!r}")


def check_lengths(function: str, lengths: Tensor | None, axes: dict[str, int], like: Tensor) -> None:
    """Check that `lengths`, unless None, holds N integers from 0 to T.

    Raises:
        IndexError: a length is out of range.
        TypeError: not a tensor of integers, or on another device than `like`.
        ValueError: the shape is not (N,).
    """
    if lengths is not None:
        check_integers(function, "lengths", lengths, "N", axes, like)
        check_range(function, "lengths", lengths, axes["T"] + 1, "x has {top} timesteps")


def readable(x: Tensor) -> bool:
    """Whether the values of `x` can be read: not under compile, export, vmap, graph capture, on meta or fake."""
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    while is_wrapped(x):
        if is_mapped(x):
            return False
        x = unwrapped(x)
    return not is_traced() and type(x) in (Tensor, torch.nn.Parameter)  # the tensors of tracing modes are subclasses


def _factor(letter: str) -> tuple[int, str]:
    """ "4H" is (4, "H")."""
    return int(letter[:-1] or 1), letter[-1]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
