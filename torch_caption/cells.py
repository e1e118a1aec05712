"""Recurrent cells behind one interface, and the layers made of them.

A `Cell` has no weights of its own: it says how a state begins, how it goes one step on, and how it goes through a
sequence, given the weights Wx, Wh, b. `CELLS` maps a cell's name to its class, and nobody else asks for the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from torch_caption import functions, reference
from torch_caption.functions._common import tanh_
from torch_caption.functions.lstm import gates_

GRADIENTS: dict[str, ModuleType] = {"hand": functions, "auto": reference}

State = tuple[Tensor, ...]  # (N, H) each; the first is the hidden state h


class Cell:
    """What the captioner asks of a recurrent cell.

    Args:
        gradients: a name in `GRADIENTS`: where the recurrence and its gradient come from.
    """

    gates: ClassVar[int]
    constant: ClassVar[int] = 0
    """How many parts at the end of the state are the image's own: no step changes them."""

    def __init__(self, gradients: str = "hand"):
        self.gradients = gradients

    @property
    def ops(self) -> ModuleType:
        """The functions themselves; looked up by name, for a module can be neither copied nor pickled."""
        return GRADIENTS[self.gradients]

    def weights(self, input_dim: int, hidden_dim: int) -> dict[str, Tensor]:
        """New Wx (D, GH), Wh (H, GH), b (GH,), drawn as cs231n draws them: normal over sqrt(fan-in), b zero."""
        width = self.gates * hidden_dim
        return {
            "Wx": torch.randn(input_dim, width) / input_dim**0.5,
            "Wh": torch.randn(hidden_dim, width) / hidden_dim**0.5,
            "b": torch.zeros(width),
        }

    def begin(self, h0: Tensor) -> State:
        """The state before the first step, of h0 (N, H)."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor) -> State:
        """The state after the input x (N, D)."""
        raise NotImplementedError

    def step_(self, a: Tensor, state: State, Wh: Tensor) -> None:
        """`step` without a gradient, in place: a (N, GH) holds x Wx + b, and the next state is written over `state`.

        What is in `a` is lost.
        """
        raise NotImplementedError

    def sequence(
        self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        """The hidden states (N, T, H) after each input of x (N, T, D)."""
        raise NotImplementedError

    def packed(
        self,
        x: Tensor,
        state: State,
        Wx: Tensor,
        Wh: Tensor,
        b: Tensor,
        sizes: int | Sequence[int],
        index: Tensor | None = None,
    ) -> Tensor:
        """The hidden states (r, H) of packed sequences: see `functions.packed_rnn`."""
        raise NotImplementedError


class RNNCell(Cell):
    """The vanilla RNN; its state is (h,)."""

    gates = 1

    def begin(self, h0: Tensor) -> State:
        return (h0,)

    def step(self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor) -> State:
        return (self.ops.rnn_step(x, *state, Wx, Wh, b),)

    def step_(self, a: Tensor, state: State, Wh: Tensor) -> None:
        (h,) = state
        h.copy_(tanh_(a.addmm_(h, Wh)))

    def sequence(
        self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        (h0,) = state
        return self.ops.rnn(x, h0, Wx, Wh, b, lengths)

    def packed(
        self,
        x: Tensor,
        state: State,
        Wx: Tensor,
        Wh: Tensor,
        b: Tensor,
        sizes: int | Sequence[int],
        index: Tensor | None = None,
    ) -> Tensor:
        (h0,) = state
        return self.ops.packed_rnn(x, h0, Wx, Wh, b, sizes, index)


class LSTMCell(Cell):
    """The LSTM; its state is (h, c), and c begins at zero."""

    gates = 4

    def begin(self, h0: Tensor) -> State:
        return h0, torch.zeros_like(h0)

    def step(self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor) -> State:
        return self.ops.lstm_step(x, *state, Wx, Wh, b)

    def step_(self, a: Tensor, state: State, Wh: Tensor) -> None:
        h, c = state
        i, f, o, g = gates_(a.addmm_(h, Wh))
        c.mul_(f).addcmul_(i, g)
        tanh_(h.copy_(c)).mul_(o)

    def sequence(
        self, x: Tensor, state: State, Wx: Tensor, Wh: Tensor, b: Tensor, lengths: Tensor | None = None
    ) -> Tensor:
        h0, c0 = state
        return self.ops.lstm(x, h0, Wx, Wh, b, lengths, c0)

    def packed(
        self,
        x: Tensor,
        state: State,
        Wx: Tensor,
        Wh: Tensor,
        b: Tensor,
        sizes: int | Sequence[int],
        index: Tensor | None = None,
    ) -> Tensor:
        h0, c0 = state
        return self.ops.packed_lstm(x, h0, Wx, Wh, b, sizes, index, c0)


CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell}


class Recurrent(nn.Module):
    """A recurrent layer with hand-derived gradients, for use outside the captioner.

    Args:
        input_dim: D.
        hidden_dim: H.
        cell_type: a name in `CELLS`.

    Parameters are Wx (D, GH), Wh (H, GH) and b (GH,), with G = 1 for "rnn" and 4 for "lstm".

    Raises:
        ValueError: there is no such cell.
    """

    Wx: Tensor
    Wh: Tensor
    b: Tensor

    def __init__(self, input_dim: int, hidden_dim: int, cell_type: str = "rnn"):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.cell = make_cell(cell_type)
        for name, weight in self.cell.weights(input_dim, hidden_dim).items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, h0: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Hidden states (N, T, H) of x (N, T, D), from h0 (N, H), zero unless given; zero past `lengths` (N,)."""
        h0 = x.new_zeros(x.shape[0], self.hidden_dim) if h0 is None else h0
        return self.cell.sequence(x, self.cell.begin(h0), self.Wx, self.Wh, self.b, lengths)


def make_cell(cell_type: str, gradients: str = "hand") -> Cell:
    """The cell of that name, with the derivatives of `torch_caption.functions` ("hand") or torch.autograd's ("auto").

    Raises:
        ValueError: there is no such cell, or no such gradients.
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, but is {gradients!r}")
    if cell_type not in CELLS:
        raise ValueError(f"cell_type must be one of {', '.join(CELLS)}, but is {cell_type!r}")
    return CELLS[cell_type](gradients)
