"""What is run: the model solution with mistakes in it, and a student's solution in one of three dialects.

Each turns a case of an exercise into named results: the outputs, and for each differentiable input x its gradient dx.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import model
from .exercises import END, NULL, START, Case, Exercise
from .mistakes import Mistake

Results = dict[str, Tensor]


class Subject(Protocol):
    """What answers an exercise."""

    def run(self, exercise: Exercise, case: Case) -> Results:
        """The named results of a case."""


# The model solution --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The model solution with some mistakes.

    Attributes:
        mistakes: the lines that are replaced.
        automatic: take gradients by autograd of the forward, as a solution without a backward does.
    """

    mistakes: tuple[Mistake, ...] = ()
    automatic: bool = False
    functions: Mapping[str, Callable[..., Any]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", _changed(self.mistakes))

    def run(self, exercise: Exercise, case: Case) -> Results:
        if exercise.name.startswith("CaptioningRNN"):
            return self._captioner(exercise, case)
        if exercise.name == "temporal_softmax_loss":
            return self._loss(case)
        if self.automatic or exercise.name in ("dot_product_attention", "attention"):
            return differentiated(exercise, case, lambda *args: self._outputs(exercise, args))
        forward, backward = (self.functions[f"{exercise.name}_{way}"] for way in ("forward", "backward"))
        *outputs, cache = forward(*case.inputs.values())
        grads = backward(*case.douts.values(), cache)
        return named(exercise, outputs, grads if isinstance(grads, tuple) else (grads,))

    def _outputs(self, exercise: Exercise, args: Iterable[Any]) -> tuple[Tensor, ...]:
        if exercise.name == "dot_product_attention":
            return tuple(self.functions[exercise.name](*args))
        found = self.functions[f"{exercise.name}_forward"](*args)
        return found[: len(exercise.outputs)] if isinstance(found, tuple) else (found,)

    def _loss(self, case: Case) -> Results:
        x, y, mask = case.inputs["x"].clone().requires_grad_(), case.inputs["y"], case.inputs["mask"]
        loss, dx = self.functions["temporal_softmax_loss"](x, y, mask)
        if self.automatic:
            (dx,) = torch.autograd.grad(loss, x)
        return {"loss": loss.detach(), "dx": dx.detach()}

    def _captioner(self, exercise: Exercise, case: Case) -> Results:
        cell = exercise.name.split()[-1]
        params = {name: case.inputs[name].clone().requires_grad_() for name in exercise.inputs}
        features = case.inputs["features"]
        if "sample" in exercise.name:
            sample = self.functions["captioner_sample"]
            with torch.no_grad():
                return {"captions": until_end(sample(features, LONGEST, params, cell, NULL, START, END))}
        by_autograd = self.automatic or cell == "attention"
        loss, grads = self.functions["captioner_loss"](
            features, case.inputs["captions"], params, cell, NULL, not by_autograd
        )
        if by_autograd:
            found = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
            grads = dict(zip(params, found, strict=True))
        return {"loss": loss.detach(), **{f"d{name}": grads[name].detach() for name in params}}


LONGEST = 9  # words of a sampled caption


@cache
def _changed(mistakes: tuple[Mistake, ...]) -> dict[str, Callable[..., Any]]:
    """The functions of `model` with the mistakes in them."""
    if not mistakes:
        return vars(model)
    namespace = dict(vars(model))
    for name in {mistake.function for mistake in mistakes}:
        source = _source(name)
        for mistake in mistakes:
            if mistake.function == name:
                source = source.replace(mistake.right, mistake.wrong)
        exec("from __future__ import annotations\n" + source, namespace)
    # The functions that call the changed ones find them in their own globals.
    for name, value in vars(model).items():
        if inspect.isfunction(value) and value.__module__ == model.__name__ and namespace[name] is value:
            namespace[name] = type(value)(value.__code__, namespace, name, value.__defaults__)
    return namespace


@cache
def _source(name: str) -> str:
    return inspect.getsource(getattr(model, name))


def differentiated(exercise: Exercise, case: Case, function: Callable[..., Sequence[Tensor]]) -> Results:
    """The results of a function of tensors without a backward of its own, by autograd."""
    args = {
        name: value.clone().requires_grad_() if name in exercise.inputs else value
        for name, value in case.inputs.items()
    }
    outputs = function(*args.values())
    for (name, dout), out in zip(case.douts.items(), outputs, strict=True):
        if out.shape != dout.shape:
            raise ValueError(f"{name} has the shape {tuple(out.shape)}; it must be {tuple(dout.shape)}")
    paths = [(out, dout) for out, dout in zip(outputs, case.douts.values(), strict=True) if out.requires_grad]
    inputs = [args[name] for name in exercise.inputs]
    if not paths:
        return named(exercise, outputs, [torch.zeros_like(x) for x in inputs])
    outs, douts = zip(*paths, strict=True)
    grads = torch.autograd.grad(
        outs, inputs, [d.to(o.dtype) for o, d in zip(outs, douts, strict=True)], materialize_grads=True
    )
    return named(exercise, outputs, grads)


def named(exercise: Exercise, outputs: Sequence[Any], grads: Sequence[Any]) -> Results:
    if len(grads) != len(exercise.inputs):
        wanted = ", ".join(f"d{name}" for name in exercise.inputs)
        raise ValueError(f"the number of gradients is {len(grads)}; the backward must return {wanted}")
    return {
        **{name: detached(out) for name, out in zip(exercise.outputs, outputs, strict=True)},
        **{f"d{name}": detached(grad) for name, grad in zip(exercise.inputs, grads, strict=True)},
    }


def until_end(captions: Tensor) -> Tensor:
    """Sampled captions (N, T) with <NULL> after the first <END>: what follows it is the student's choice."""
    if captions.dim() != 2:
        return captions
    ended = captions == END
    return captions.masked_fill(ended.cumsum(1) - ended.long() > 0, NULL)


def detached(value: Any) -> Tensor:
    """A tensor of its own of a tensor, an array or a number."""
    return value.detach().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
