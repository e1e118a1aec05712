"""Random arguments of every function, drawn by hypothesis, and the comparison of all derivatives with the oracle's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from torch_caption import functions
from torch_caption.functions.packing import steps_of
from torch_caption.verify.gradcheck import (
    assert_agrees,
    difference,
    gradients,
    leaves,
    needs_grad,
    of_inputs,
    random_like,
)

# The floating-point arguments, with the letters of their shapes.
FLOATS = {
    "affine": {"x": "N D", "w": "D H", "b": "H"},
    "temporal_affine": {"x": "N T D", "w": "D H", "b": "H"},
    "word_embedding": {"W": "V D"},
    "rnn_step": {"x": "N D", "prev_h": "N H", "Wx": "D H", "Wh": "H H", "b": "H"},
    "rnn": {"x": "N T D", "h0": "N H", "Wx": "D H", "Wh": "H H", "b": "H"},
    "lstm_step": {"x": "N D", "prev_h": "N H", "prev_c": "N H", "Wx": "D 4H", "Wh": "H 4H", "b": "4H"},
    "lstm": {"x": "N T D", "h0": "N H", "Wx": "D 4H", "Wh": "H 4H", "b": "4H"},
    "projected_lstm_step": {
        **{"x": "N D", "prev_h": "N P", "prev_c": "N H"},
        **{"Wx": "D 4H", "Wh": "P 4H", "Wr": "H P", "b": "4H"},
    },
    "projected_lstm": {"x": "N T D", "h0": "N P", "Wx": "D 4H", "Wh": "P 4H", "Wr": "H P", "b": "4H"},
    "gru_step": {"x": "N D", "prev_h": "N H", "Wx": "D 3H", "Wh": "H 3H", "b": "3H", "bn": "H"},
    "gru": {"x": "N T D", "h0": "N H", "Wx": "D 3H", "Wh": "H 3H", "b": "3H", "bn": "H"},
    "dot_product_attention": {"prev_h": "N H", "A": "N H L"},
    "attention_lstm_step": {
        **{"x": "N D", "prev_h": "N H", "prev_c": "N H", "A": "N H L"},
        **{"Wx": "D 4H", "Wh": "H 4H", "Wattn": "H 4H", "b": "4H"},
    },
    "attention_lstm": {
        **{"x": "N T D", "A": "N H L"},
        **{"Wx": "D 4H", "Wh": "H 4H", "Wattn": "H 4H", "b": "4H"},
    },
    "temporal_softmax_loss": {"x": "N T V"},
    "temporal_affine_softmax_loss": {"h": "N T H", "w": "H V", "b": "V"},
}
PACKED = [name for name in functions.__all__ if name.startswith("packed_")]
# What is optional: first states, with the letters of their shapes, and options, with all that they may be.
STATES = {"h0": "N H", "c0": "N H"}
OPTIONS = {
    "return_state": (False, True),
    "return_cells": (False, True),
    "return_weights": (False, True),
    "nonlinearity": ("tanh", "relu"),
    "gate_order": ("ifog", "ifgo"),
    "label_smoothing": (0.0, 0.1, 1.0),
    "reduction": ("mean", "none"),
}
DENSE = ("contiguous", "transposed", "strided")  # gradcheck perturbs entries, which must not share memory
LAYOUTS = (*DENSE, "expanded")


# Distinct, so that no axis passes for another; T > 1, so that what comes back from the next step matters.
SIZES = {"N": 2, "T": 3, "D": 4, "H": 5, "P": 8, "V": 6, "L": 7}


def example(function: str, dtype: torch.dtype = torch.float64, **sizes: int) -> dict[str, Tensor]:
    """Arguments of `function` by name, in order; those that can require grad do. Optional ones are left out."""
    sizes = {**SIZES, **sizes}
    generator = torch.Generator().manual_seed(0)
    args = {
        name: tensor(generator, shape_of(spec, sizes)).to(dtype).requires_grad_()
        for name, spec in FLOATS[function].items()
    }
    words = torch.randint(0, sizes["V"], (sizes["N"], sizes["T"]), generator=generator)
    if function == "word_embedding":
        return {"x": words, **args}
    if function.endswith("loss"):
        args |= {"y": words, "mask": torch.rand(words.shape, generator=generator) < 0.7}
    return args


@st.composite
def arguments(
    draw: st.DrawFn,
    function: str,
    most: int = 5,
    layouts: Sequence[str] = LAYOUTS,
    dtype: torch.dtype = torch.float64,
    **limits: int,
) -> tuple:
    """Arguments of `function`, in order; at least one requires grad.

    Sizes go up to `most` (or what `limits` says of a letter), N and T down to 0, the others to 1.
    """
    sizes = {
        letter: draw(st.integers(0 if letter in "NT" else 1, limits.get(letter, most)), label=letter)
        for letter in SIZES
    }
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31), label="seed"))

    def layout() -> str:
        return draw(st.sampled_from(layouts), label="layout")

    def floats(spec: str) -> Tensor:
        requires_grad = draw(st.booleans(), label="requires_grad")
        return tensor(generator, shape_of(spec, sizes), layout(), dtype).requires_grad_(requires_grad)

    def integers(below: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return laid_out(lambda *size: torch.randint(0, below, size, generator=generator).to(dtype), shape, layout())

    N, T, V = sizes["N"], sizes["T"], sizes["V"]

    def lengths() -> Tensor | None:
        return draw(st.sampled_from([None, integers(T + 1, N), torch.zeros(N).int(), torch.full((N,), T)]))

    def mask() -> Tensor:
        masks = [integers(2, N, T, dtype=torch.bool), torch.zeros(N, T).bool(), torch.ones(N, T).bool(), floats("N T")]
        return draw(st.sampled_from(masks))

    def words() -> Tensor:
        return integers(V, N, T)

    drawn: dict[str, Callable[[], Any]] = {"x": words, "y": words, "lengths": lengths, "mask": mask}
    drawn |= {name: partial(optional, draw, partial(floats, spec)) for name, spec in STATES.items()}
    drawn |= {name: partial(draw, st.sampled_from(values)) for name, values in OPTIONS.items()}
    drawn |= {name: partial(floats, spec) for name, spec in FLOATS[function].items()}
    args = [drawn[name]() for name in names_of(function)]
    if not any(map(needs_grad, args)):
        next(arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()).requires_grad_()
    return tuple(args)


@st.composite
def packed_arguments(draw: st.DrawFn, function: str) -> tuple:
    """Arguments of a function of `PACKED`, with an index and first states or without; some require grad."""
    sizes = {letter: draw(st.integers(0 if letter == "N" else 1, 4)) for letter in SIZES}
    batch_sizes = tuple(sorted(draw(st.lists(st.integers(0, sizes["N"]), max_size=4)), reverse=True))
    steps = draw(st.sampled_from([batch_sizes, len(batch_sizes)]))
    r = sum(steps_of(steps, torch.empty(sizes["N"], 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    index = torch.randint(0, 3, (r,), generator=generator) if draw(st.booleans()) else None
    shapes = {name: shape_of(spec, sizes) for name, spec in FLOATS[function.removeprefix("packed_")].items()}
    shapes["x"] = (r if index is None else 3, sizes["D"])
    args: list = [tensor(generator, shape, draw(st.sampled_from(LAYOUTS))) for shape in shapes.values()]
    for arg in draw(st.sets(st.sampled_from(args), min_size=1)):
        arg.requires_grad_()
    args += [steps, index]
    for name in names_of(function)[len(args) :]:
        if name in STATES:
            args.append(
                optional(draw, lambda spec=STATES[name]: tensor(generator, shape_of(spec, sizes)).requires_grad_())
            )
        else:
            args.append(draw(st.sampled_from(OPTIONS[name])))
    return tuple(args)


def optional(draw: st.DrawFn, make: Callable[[], Tensor]) -> Tensor | None:
    return make() if draw(st.booleans()) else None


def names_of(function: str) -> tuple[str, ...]:
    """The names of the arguments of `function`, in order."""
    return tuple(inspect.signature(getattr(functions, function)).parameters)


def tiny(function: str, **limits: int) -> st.SearchStrategy[tuple]:
    """Arguments of `function` for finite differences: sizes up to 2 unless `limits` says more, no shared memory."""
    return arguments(function, **{"most": 2, "layouts": DENSE, **limits}).map(_all_if_empty)


def _all_if_empty(args: tuple) -> tuple:
    """Let all require grad where one is empty: gradcheck confuses gradients when some of several are constant."""
    floats = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
    if any(x.numel() == 0 for x in floats):
        for x in floats:
            x.requires_grad_()
    return args


def shape_of(spec: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that a spec such as "N 4H" means."""
    return tuple(int(letter[:-1] or 1) * sizes[letter[-1]] for letter in spec.split())


def tensor(
    generator: torch.Generator,
    shape: tuple[int, ...],
    layout: str = "contiguous",
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Normal numbers; those of a matrix over sqrt(fan-in)."""
    scale = shape[0] ** -0.5 if len(shape) == 2 and shape[0] else 1.0

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).mul_(scale).to(dtype)

    return laid_out(normal, shape, layout)


def laid_out(make: Callable[..., Tensor], shape: tuple[int, ...], layout: str) -> Tensor:
    """What `make` makes of a shape, such that it has this shape and lies in memory as `layout` says."""
    if 0 in shape:
        return make(*shape)
    if layout == "transposed":
        return make(*reversed(shape)).permute(*reversed(range(len(shape))))
    if layout == "strided":
        return make(*(2 * size for size in shape))[(slice(None, None, 2),) * len(shape)]
    if layout == "expanded":
        return make(1, *shape[1:]).expand(shape)
    return make(*shape)


def expanded_inside(function: Callable, args: tuple) -> tuple[Callable, tuple]:
    """A function of the first rows of the expanded arguments, which expands them itself, and its arguments.

    Forward mode and gradcheck take no tensor whose entries share memory. Vectors are copied: the gradient of a softmax
    by a bias that is the same everywhere is 0, and what is rounded of it is relative to nothing.
    """
    args = tuple(x.detach().clone().requires_grad_(x.requires_grad) if is_vector(x) else x for x in args)
    sizes = [arg.shape[0] if isinstance(arg, Tensor) and 0 in arg.stride()[:1] else None for arg in args]

    def call(*firsts: Any) -> Any:
        pairs = zip(firsts, sizes, strict=True)
        return function(*(x if size is None else x.expand(size, *x.shape[1:]) for x, size in pairs))

    def first(x: Tensor) -> Tensor:
        return x[:1].detach().requires_grad_(x.requires_grad)

    return call, tuple(x if size is None else first(x) for x, size in zip(args, sizes, strict=True))


def is_vector(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.dim() == 1


def flat(function: Callable) -> Callable:
    """`function`, returning all its tensors in one tuple."""
    return lambda *args: tuple(leaves(function(*args)))


def mixed(outs: Sequence[Tensor], douts: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradients are those of `outs` for the incoming gradients `douts`."""
    return torch.stack([(out * dout).sum() for out, dout in zip(outs, douts, strict=True)]).sum()


def scalar(function: Callable, args: tuple) -> tuple[Callable, tuple[Tensor, ...]]:
    """A random mix of the outputs of `function`, as a function of the inputs that require grad; and those, detached."""
    call, inputs = of_inputs(function, args)
    douts = [random_like(out, k) for k, out in enumerate(call(*inputs))]
    return lambda *inputs: mixed(call(*inputs), douts), tuple(x.detach() for x in inputs)


def assert_same(found: Any, expected: Any, names: Sequence[str] = ()) -> None:
    """Fail by name unless the tensors of two nested tuples agree to TOLERANCE."""
    pairs = [*zip(leaves(found), leaves(expected), strict=True)]
    names = names or [f"tensor {k}" for k in range(len(pairs))]
    compared = [difference(name, *pair) for name, pair in zip(names, pairs, strict=True)]
    wrong = [str(d) for d in compared if not d.agrees]
    assert not wrong, "; ".join(wrong)


def assert_all_agree(hand: Callable, auto: Callable, args: tuple) -> None:
    """Fail unless outputs, gradients, second derivatives and tangents are the oracle's."""
    assert_agrees(hand, auto, args)
    for what, derive in {"second derivative": second_derivatives, "tangent": tangents}.items():
        found, expected = derive(hand, args), derive(auto, args)
        assert_same(found, expected, [f"{what} {k}" for k in range(len(found))])


def second_derivatives(function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Derivatives of a random mix of all gradients, by the inputs and by the incoming gradients."""
    call, inputs = of_inputs(function, args)
    outs = call(*inputs)
    douts = [random_like(out, k).requires_grad_() for k, out in enumerate(outs)]
    paths = [(out, dout) for out, dout in zip(outs, douts, strict=True) if out.requires_grad]
    first: tuple[Tensor, ...] = ()
    if paths:
        reached, arriving = zip(*paths, strict=True)
        first = torch.autograd.grad(reached, inputs, arriving, create_graph=True, materialize_grads=True)
    return gradients(first, (*inputs, *douts))


def tangents(function: Callable, args: tuple) -> list[Tensor]:
    """Of all outputs, for random tangents of the inputs."""
    call, inputs = of_inputs(*expanded_inside(function, args))
    directions = tuple(random_like(x, k) for k, x in enumerate(inputs))
    _, pushed = torch.func.jvp(call, inputs, directions)
    return leaves(pushed)
