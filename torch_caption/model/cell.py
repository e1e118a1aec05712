"""The interface of a recurrent cell.

A `Cell` has no weights of its own. It computes the initial state, one step, or a whole sequence from weights that it is
given by name: Wx, Wh, b, and others of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

from torch_caption import functions
from torch_caption.decoding import State
from torch_caption.functions import reference

GRADIENTS: dict[str, ModuleType] = {"hand": functions, "auto": reference}

Weights = Mapping[str, Tensor]  # by their names in `functions`; of a `Stack`, with the layer's number
Views = tuple[Tensor, ...]  # of one tensor


class Cell:
    """The interface of a recurrent cell. Its state is a tuple of tensors, the first of them the hidden state h (N, H).

    Args:
        gradients: a name in `GRADIENTS`: the module with the recurrence and its gradient.

    Attributes:
        names: of its weights.
        gates: how many blocks of H columns they have.
        attends: whether it attends to the spatial positions of an image (N, L, H); else its h0 is the image (N, H).
        constant: how many tensors at the end of the state belong to the image: no step changes them.
    """

    names: tuple[str, ...] = ("Wx", "Wh", "b")
    gates: int
    attends: bool = False
    constant: int = 0

    def __init__(self, gradients: str = "hand"):
        self.gradients = gradients

    @property
    def ops(self) -> ModuleType:
        """The module of functions; found by name, since modules can be neither copied nor pickled."""
        return GRADIENTS[self.gradients]

    def weights(self, input_dim: int, hidden_dim: int) -> dict[str, Tensor]:
        """New Wx (D, GH), Wh (H, GH), b (GH,), initialised as in cs231n: normal over sqrt(fan-in), b zero.

        They are on torch's default device and of its default dtype, as the weights of torch.nn's layers are.
        """
        width = self.gates * hidden_dim
        return {
            "Wx": torch.randn(input_dim, width) / input_dim**0.5,
            "Wh": torch.randn(hidden_dim, width) / hidden_dim**0.5,
            "b": torch.zeros(width),
        }

    def begin(self, image: Tensor) -> State:
        """The state before the first step, from h0 (N, H), or positions (N, L, H) for a cell that attends."""
        raise NotImplementedError

    def begin_(self, image: Tensor) -> State:
        """`begin` without a gradient; `image` may become part of the state, which `step_` overwrites."""
        return self.begin(image)

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        """The state after the input x (N, D)."""
        raise NotImplementedError

    def views(self, a: Tensor) -> Views:
        """The views of pre-activations a (N, GH) that `step_` takes, made once for many steps; `a` is the first."""
        return (a,)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        """`step` without a gradient, in place: a = views[0] holds x Wx + b, and the next state is written over `state`.

        `a` may be overwritten. This one calls `step` with the identity as Wx; a cell overrides it for speed.
        """
        a = views[0]
        identity = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        after = self.step(a, state, {**weights, "Wx": identity, "b": torch.zeros_like(a[0])})
        for part, next_part in zip(state, after, strict=True):
            part.copy_(next_part)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        """The hidden states (N, T, H) after each input of x (N, T, D)."""
        raise NotImplementedError

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        """The hidden states (r, H) of packed sequences: see `functions.packed_rnn`."""
        raise NotImplementedError

    def layers(self, state: State, weights: Weights) -> list[tuple[Cell, State, Weights]]:
        """Each layer's cell, its part of the state, and its weights, from the input up; a cell is one layer."""
        return [(self, state, weights)]


def check_sizes(owner: str, **sizes: int) -> None:
    """Check the sizes of a module.

    Raises:
        ValueError: one is not an integer of at least 1.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:  # NumPy's integers too
            raise ValueError(f"{owner}: {name} must be an integer of at least 1, but is {size!r}")
