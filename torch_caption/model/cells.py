"""Recurrent cells behind one interface, and the layers made of them.

A `Cell` has no weights of its own. It computes the initial state, one step, or a whole sequence from weights that it is
given by name: Wx, Wh, b, and others of its own. `CELLS` maps a cell's name to its class; no other code compares names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor, nn

from torch_caption import functions
from torch_caption.decoding import State
from torch_caption.functions import reference
from torch_caption.functions._common import autocast, check_floats
from torch_caption.functions._inplace.lstm import step_ as lstm_step_

GRADIENTS: dict[str, ModuleType] = {"hand": functions, "auto": reference}

Weights = Mapping[str, Tensor]  # by their names in `functions`


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

    names: ClassVar[tuple[str, ...]] = ("Wx", "Wh", "b")
    gates: ClassVar[int]
    attends: ClassVar[bool] = False
    constant: ClassVar[int] = 0

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

    def step_(self, a: Tensor, state: State, weights: Weights) -> None:
        """`step` without a gradient, in place: a (N, GH) holds x Wx + b, and the next state is written over `state`.

        `a` is overwritten.
        """
        raise NotImplementedError

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        """The hidden states (N, T, H) after each input of x (N, T, D)."""
        raise NotImplementedError

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        """The hidden states (r, H) of packed sequences: see `functions.packed_rnn`."""
        raise NotImplementedError


class RNNCell(Cell):
    """The vanilla RNN; its state is (h,)."""

    gates = 1

    def begin(self, image: Tensor) -> State:
        return (image,)

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        return (self.ops.rnn_step(x, *state, **weights),)

    def step_(self, a: Tensor, state: State, weights: Weights) -> None:
        (h,) = state
        torch.tanh(a.addmm_(h, weights["Wh"]), out=h)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        (h0,) = state
        return self.ops.rnn(x, h0, **weights, lengths=lengths)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        (h0,) = state
        return self.ops.packed_rnn(x, h0, **weights, batch_sizes=batch_sizes, index=index)


class LSTMCell(Cell):
    """The LSTM; its state is (h, c), and c begins at zero."""

    gates = 4

    def begin(self, image: Tensor) -> State:
        return image, torch.zeros_like(image)

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        return self.ops.lstm_step(x, *state, **weights)

    def step_(self, a: Tensor, state: State, weights: Weights) -> None:
        h, c = state
        a.addmm_(h, weights["Wh"])
        lstm_step_(a[:, : 3 * h.shape[1]], a.chunk(4, dim=1), prev_c=c, h=h, c=c, tanh_c=h, tanh=torch.tanh_)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        h0, c0 = state
        return self.ops.lstm(x, h0, **weights, lengths=lengths, c0=c0)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        h0, c0 = state
        return self.ops.packed_lstm(x, h0, **weights, batch_sizes=batch_sizes, index=index, c0=c0)


class AttentionCell(Cell):
    """An LSTM that attends to the image at each step; its state is (h, c, A), and h and c begin at the mean of A.

    The positions A (N, L, H) are constant; they are in the state so that selecting rows of the state selects theirs.
    """

    names = (*Cell.names, "Wattn")
    gates = 4
    attends = True
    constant = 1

    def weights(self, input_dim: int, hidden_dim: int) -> dict[str, Tensor]:
        """As `Cell.weights`, and Wattn (H, 4H)."""
        width = self.gates * hidden_dim
        return {
            **super().weights(input_dim, hidden_dim),
            "Wattn": torch.randn(hidden_dim, width) / hidden_dim**0.5,
        }

    def begin(self, image: Tensor) -> State:
        mean, _ = self.ops.dot_product_attention(torch.zeros_like(image[:, 0]), image.mT)  # a zero query: the mean
        return mean, mean.clone(), image

    def begin_(self, image: Tensor) -> State:
        mean = image.mean(1)
        return mean, mean.clone(), image

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        h, c, A = state
        return *self.ops.attention_lstm_step(x, h, c, A.mT, **weights), A

    def step_(self, a: Tensor, state: State, weights: Weights) -> None:
        h, c, A = state
        logits = torch.bmm(A, h.unsqueeze(2)).mul_(h.shape[1] ** -0.5)  # (N, L, 1)
        attn = torch.bmm(torch.softmax(logits, 1).mT, A).squeeze(1)
        a.addmm_(h, weights["Wh"]).addmm_(attn, weights["Wattn"])
        lstm_step_(a[:, : 3 * h.shape[1]], a.chunk(4, dim=1), prev_c=c, h=h, c=c, tanh_c=h, tanh=torch.tanh_)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        h0, c0, A = state
        return self.ops.attention_lstm(x, A.mT, **weights, lengths=lengths, h0=h0, c0=c0)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        h0, c0, A = state
        return self.ops.packed_attention_lstm(x, A.mT, **weights, batch_sizes=batch_sizes, index=index, h0=h0, c0=c0)


CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell, "attention": AttentionCell}


class Recurrent(nn.Module):
    """A recurrent layer with hand-derived gradients, for use outside the captioner.

    Args:
        input_dim: D.
        hidden_dim: H.
        cell_type: a name in `CELLS`.

    Parameters are Wx (D, GH), Wh (H, GH) and b (GH,), with G = 1 for "rnn" and 4 for "lstm" and "attention", and with
    "attention" Wattn (H, 4H), on torch's default device and of its default dtype.

    Raises:
        ValueError: there is no such cell, or a size is not an integer of at least 1.
    """

    Wx: Tensor
    Wh: Tensor
    b: Tensor

    def __init__(self, input_dim: int, hidden_dim: int, cell_type: str = "rnn"):
        super().__init__()
        check_sizes("Recurrent", input_dim=input_dim, hidden_dim=hidden_dim)
        self.input_dim, self.hidden_dim = input_dim, hidden_dim
        self.cell = make_cell(cell_type)
        for name, weight in self.cell.weights(input_dim, hidden_dim).items():
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, h0: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        """Hidden states (N, T, H) of x (N, T, D), from h0 (N, H), zero unless given; zero past `lengths` (N,).

        "attention" takes the positions of its images (N, L, H) instead of h0.

        Raises:
            TypeError: a value is not a tensor of the right kind, or a dtype or device differs.
            ValueError: a shape does not fit, or a layer that attends has no positions.
        """
        sizes = {"D": self.input_dim, "H": self.hidden_dim}
        gates = f"{self.cell.gates}H" if self.cell.gates > 1 else "H"
        x, b = autocast(x, self.b)
        check_floats("Recurrent", sizes, x=(x, "N T D"), b=(b, gates))
        if h0 is None:
            if self.cell.attends:
                raise ValueError("Recurrent: this cell attends to an image: give its positions (N, L, H)")
            h0 = x.new_zeros(x.shape[0], self.hidden_dim)
        (h0,) = autocast(h0)
        check_floats("Recurrent", sizes, h0=(h0, "N L H" if self.cell.attends else "N H"), b=(b, gates))
        if 0 in h0.shape[1:]:
            raise ValueError(f"Recurrent: h0 must have at least one spatial position, but is {tuple(h0.shape)}")
        return self.cell.sequence(x, self.cell.begin(h0), dict(self.named_parameters()), lengths)


def check_sizes(owner: str, **sizes: int) -> None:
    """Check the sizes of a module.

    Raises:
        ValueError: one is not an integer of at least 1.
    """
    for name, size in sizes.items():
        if not isinstance(size, Integral) or size < 1:  # NumPy's integers too
            raise ValueError(f"{owner}: {name} must be an integer of at least 1, but is {size!r}")


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
