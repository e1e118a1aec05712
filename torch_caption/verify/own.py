"""Functions outside the course: their gradients checked, and the table printed that `torch-caption check` prints.

from torch_caption.verify import check_backward, check_function

check_function(mine, reference, (x, w))  # two functions of tensors
check_backward(forward, backward, (x, w))  # a backward of one's own, without a reference
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_caption.errors import ConfigError

from .gradcheck import gradients, leaves, random_like
from .solution.check import Finding, Report, findings_of
from .solution.check import check_solution as findings_of_solution
from .solution.diagnosis import CORRECT, Evidence
from .solution.dialects import NAMES, of_functions
from .solution.exercises import Case, Exercise
from .solution.report import table
from .solution.subjects import Results, detached


def check_solution(*functions: Callable) -> bool:
    """Check functions with the assignment's names, such as those of a notebook, as `torch-caption check` checks a file.

    Args:
        functions: such as rnn_step_forward and rnn_step_backward; classes, such as CaptioningRNN.

    Returns:
        whether all outputs and gradients are correct.

    Raises:
        ConfigError: no function is given, or one has none of the assignment's names.
    """
    if not functions:
        raise ConfigError("check_solution needs a function of the assignment, such as rnn_step_forward")
    by_name = {getattr(function, "__name__", repr(function)): function for function in functions}
    unknown = [name for name in by_name if name not in NAMES]
    if unknown:
        raise ConfigError(f"{unknown[0]} is none of the assignment's functions, such as rnn_step_forward")
    sources = [_source(function) for function in functions]
    solution = of_functions(by_name, sources, _folder(functions[0]))
    report = Report(", ".join(by_name), solution.dialect, tuple(findings_of_solution(solution)))
    print(table(report.plain()))
    return report.passed


def _source(function: Callable) -> str:
    """The source of a function, or of the methods of a class: `inspect` does not find a class of a notebook."""
    if not isinstance(function, type):
        return inspect.getsource(function)
    return "".join(inspect.getsource(method) for method in vars(function).values() if inspect.isfunction(method))


def _folder(function: Callable) -> Path:
    """The folder of a function's file; `inspect` finds none for a class of a notebook, but its methods have one."""
    methods = vars(function).values() if isinstance(function, type) else (inspect.unwrap(function),)
    files = [method.__code__.co_filename for method in methods if inspect.isfunction(method)]
    return Path(files[0]).parent if files else Path.cwd()


STEP = 1e-6  # of central differences in float64
OF_DIFFERENCES = 1e-6  # their tolerance, relative to the largest entry of a gradient


def check_function(mine: Callable, reference: Callable, args: Sequence[Any], names: Sequence[str] = ()) -> bool:
    """Compare outputs and gradients of two functions in float64, and print what differs and how.

    Args:
        mine, reference: functions of the same arguments, each returning a tensor or nested tuples of tensors.
        args: tensors and other values; gradients are taken of all floating-point tensors, for random gradients of the
            outputs.
        names: of the arguments; by default those in the signature of `reference`.

    Returns:
        whether all outputs and gradients agree to 1e-9 of their largest entry.

    Raises:
        Exception: what one of the functions raises.
    """
    inputs = _named(reference, args, names)
    found, expected = (_by_autograd(function, inputs) for function in (mine, reference))
    return _printed(mine, "the reference", inputs, found, expected)


def check_backward(forward: Callable, backward: Callable, args: Sequence[Any], names: Sequence[str] = ()) -> bool:
    """Compare a hand-written backward with central differences of its forward, and for tensors with autograd too.

    Args:
        forward: takes `args` and returns (out, cache), or (out1, out2, ..., cache).
        backward: takes the gradient of each output and the cache, and returns the gradients of the floating-point
            arguments, in their order: one array, or a tuple.
        args: NumPy arrays or tensors, and other values.
        names: of the arguments; by default those in the signature of `forward`.

    Returns:
        whether all gradients agree: with autograd to 1e-9 of their largest entry, with differences to 1e-6.

    Raises:
        Exception: what one of the functions raises.
    """
    inputs = _named(forward, args, names)
    numpy = not any(isinstance(value, Tensor) for value in args)
    floats = _arrays(inputs)

    def call(values: Mapping[str, Any]) -> tuple[Any, ...]:
        given = {name: _like(value, numpy) for name, value in values.items()}
        returned: tuple[Any, ...] = forward(*given.values())
        return returned

    *outputs, cache = call(inputs)
    outs = [detached(out).double() for out in outputs]
    douts = [random_like(out, k) for k, out in enumerate(outs)]
    before = [dout.clone() for dout in douts]
    given_douts = [_like(dout, numpy) for dout in douts]
    grads = backward(*given_douts, cache)
    grads = grads if isinstance(grads, tuple | list) else (grads,)
    if len(grads) != len(floats) or any(grad is None for grad in grads):
        returned = ", ".join("None" if grad is None else "an array" for grad in grads)
        wanted = ", ".join(f"d{name}" for name in floats)
        raise ConfigError(f"the backward returns {returned}; it must return {len(floats)} gradients: {wanted}")
    found = {f"d{name}": detached(grad) for name, grad in zip(floats, grads, strict=True)}
    changed = [f"dout{k}" for k, dout in enumerate(given_douts) if not torch.equal(detached(dout), before[k])]

    def value(values: Mapping[str, Any]) -> float:
        *outs, _ = call(values)
        return float(sum((detached(out).double() * dout).sum() for out, dout in zip(outs, before, strict=True)))

    expected = {f"d{name}": _differences(value, inputs, name) for name in floats}
    correct = _printed(backward, "central differences", inputs, found, expected, changed, OF_DIFFERENCES)
    if numpy:
        return correct
    automatic = _by_autograd(lambda *values: forward(*values)[:-1], inputs)
    same = {name: automatic[name] for name in found}
    return _printed(backward, "autograd", inputs, found, same) and correct


def _named(function: Callable, args: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    names = names or tuple(inspect.signature(function).parameters)
    return {name: _in_float64(value) for name, value in zip(names, args, strict=False)}


def _in_float64(value: Any) -> Any:
    """A copy in float64 of a floating-point array or tensor; other values as they are."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, np.float64 if np.issubdtype(value.dtype, np.floating) else None))
    if isinstance(value, Tensor):
        return value.detach().clone().double() if value.is_floating_point() else value.detach().clone()
    return value


def _arrays(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The floating-point ones."""
    return {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point()}


def _like(value: Any, numpy: bool) -> Any:
    """A copy of a tensor in the kind that a function takes."""
    if not isinstance(value, Tensor):
        return value
    return value.clone().numpy() if numpy else value.clone()


def _by_autograd(function: Callable, inputs: Mapping[str, Any]) -> Results:
    given = {name: x.clone().requires_grad_() if name in _arrays(inputs) else x for name, x in inputs.items()}
    outs = leaves(function(*given.values()))
    names = ["out"] if len(outs) == 1 else [f"out{k}" for k in range(len(outs))]
    floats = [given[name] for name in _arrays(inputs)]
    grads = zip(_arrays(inputs), gradients(outs, floats), strict=True)
    return {
        **{name: out.detach() for name, out in zip(names, outs, strict=True)},
        **{f"d{name}": grad for name, grad in grads},
    }


def _differences(value: Callable[[Mapping[str, Any]], float], inputs: Mapping[str, Any], name: str) -> Tensor:
    """The gradient of a number by central differences."""
    x = inputs[name]
    gradient = torch.zeros_like(x)
    for index in np.ndindex(*x.shape):
        ends = []
        for step in (STEP, -STEP):
            moved = x.clone()
            moved[index] += step
            ends.append(value({**inputs, name: moved}))
        gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


def _printed(
    function: Callable,
    other: str,
    inputs: Mapping[str, Any],
    found: Results,
    expected: Results,
    changed: Sequence[str] = (),
    tolerance: float = CORRECT,
) -> bool:
    """Whether all agree, which is printed with what differs."""
    name = getattr(function, "__name__", "function")
    exercise = Exercise(name, dict.fromkeys(_arrays(inputs), ""), {}, ())
    evidence = Evidence(exercise, [Case("as given", {}, inputs)], [found], [expected], tolerance=tolerance)
    findings = findings_of(evidence)
    findings += [Finding(name, key, "wrong", diagnosis=(f"The function modifies {key} in place.",)) for key in changed]
    report = Report(f"{name} against {other}", "", tuple(findings))
    print(table(report.plain()))
    return report.passed
