"""The recurrent cells. `CELLS` maps a cell's name to its class; no other code compares names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_caption.decoding import State
from torch_caption.functions._inplace.gru import step_ as gru_step_
from torch_caption.functions._inplace.lstm import step_ as lstm_step_
from torch_caption.model.cell import GRADIENTS, Cell, Views, Weights
from torch_caption.model.stack import Stack


class RNNCell(Cell):
    """The vanilla RNN; its state is (h,)."""

    gates = 1

    def begin(self, image: Tensor) -> State:
        return (image,)

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        return (self.ops.rnn_step(x, *state, **weights),)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        (a,), (h,) = views, state
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

    def views(self, a: Tensor) -> Views:
        return lstm_views(a)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        (a, ifo, *gates), (h, c) = views, state
        a.addmm_(h, weights["Wh"])
        lstm_step_((ifo,), gates, prev_c=c, h=h, c=c, tanh_c=h, tanh=torch.tanh)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        h0, c0 = state
        return self.ops.lstm(x, h0, **weights, lengths=lengths, c0=c0)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        h0, c0 = state
        return self.ops.packed_lstm(x, h0, **weights, batch_sizes=batch_sizes, index=index, c0=c0)


def lstm_views(a: Tensor) -> Views:
    """a (n, 4H) itself, its first three blocks, and each block."""
    return a, a[:, : 3 * (a.shape[1] // 4)], *a.chunk(4, dim=1)


class GRUCell(Cell):
    """The GRU; its state is (h,)."""

    names = (*Cell.names, "bn")
    gates = 3

    def weights(self, input_dim: int, hidden_dim: int) -> dict[str, Tensor]:
        """As `Cell.weights`, and bn (H,), zero."""
        return {**super().weights(input_dim, hidden_dim), "bn": torch.zeros(hidden_dim)}

    def begin(self, image: Tensor) -> State:
        return (image,)

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        return (self.ops.gru_step(x, *state, **weights),)

    def views(self, a: Tensor) -> Views:
        """a (n, 3H) itself, its first two blocks, memory for h Wh_n + bn (n, H), and each block."""
        H = a.shape[1] // 3
        return a, a[:, : 2 * H], a.new_empty(a.shape[0], H), *a.chunk(3, dim=1)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        (_, rz, u, *gates), (h,), H = views, state, state[0].shape[1]
        torch.addmm(weights["bn"], h, weights["Wh"][:, 2 * H :], out=u)
        rz.addmm_(h, weights["Wh"][:, : 2 * H])
        gru_step_(rz, (u, *gates), h, h, torch.tanh_)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        (h0,) = state
        return self.ops.gru(x, h0, **weights, lengths=lengths)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        (h0,) = state
        return self.ops.packed_gru(x, h0, **weights, batch_sizes=batch_sizes, index=index)


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

    def views(self, a: Tensor) -> Views:
        return lstm_views(a)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        (a, ifo, *gates), (h, c, A) = views, state
        logits = torch.bmm(A, h.unsqueeze(2)).mul_(h.shape[1] ** -0.5)  # (N, L, 1)
        attn = torch.bmm(torch.softmax(logits, 1).mT, A).squeeze(1)
        a.addmm_(h, weights["Wh"]).addmm_(attn, weights["Wattn"])
        lstm_step_((ifo,), gates, prev_c=c, h=h, c=c, tanh_c=h, tanh=torch.tanh)

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        h0, c0, A = state
        return self.ops.attention_lstm(x, A.mT, **weights, lengths=lengths, h0=h0, c0=c0)

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        h0, c0, A = state
        return self.ops.packed_attention_lstm(x, A.mT, **weights, batch_sizes=batch_sizes, index=index, h0=h0, c0=c0)


CELLS: dict[str, type[Cell]] = {"rnn": RNNCell, "lstm": LSTMCell, "gru": GRUCell, "attention": AttentionCell}


def make_cell(cell_type: str, gradients: str = "hand", num_layers: int = 1, layer_dropout: float = 0.0) -> Cell:
    """The cell of that name, with the derivatives of `torch_caption.functions` ("hand") or torch.autograd's ("auto").

    Several layers are a `Stack`, with `layer_dropout` between them.

    Raises:
        ValueError: there is no such cell, or no such gradients.
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}, but is {gradients!r}")
    if cell_type not in CELLS:
        raise ValueError(f"cell_type must be one of {', '.join(CELLS)}, but is {cell_type!r}")
    cell = CELLS[cell_type](gradients)
    return cell if num_layers == 1 else Stack(cell, num_layers, layer_dropout)
