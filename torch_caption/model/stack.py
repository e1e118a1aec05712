"""Layers of one kind of cell, one above the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_caption.decoding import State
from torch_caption.model.cell import Cell, Views, Weights
from torch_caption.model.dropout import dropout


class Stack(Cell):
    """Layers of one kind of cell: the first reads the input, each other one the hidden states of the one below.

        h1[t] = cell(x[t], h1[t-1]; Wx, Wh, b)                     (N, D) -> (N, H)
        h2[t] = cell(h1[t], h2[t-1]; Wx_l2, Wh_l2, b_l2)           (N, H) -> (N, H), and so on

    All layers begin in the same state, that of the image. The state is that of the last layer, whose h is the output,
    then those of the layers below, downwards, then what is constant, which all layers share.

    Args:
        cell: of each layer.
        num_layers: at least 2.
        layer_dropout: the dropout probability between two layers in `sequence` and `packed`, as in torch.nn.LSTM.
    """

    def __init__(self, cell: Cell, num_layers: int, layer_dropout: float = 0.0):
        super().__init__(cell.gradients)
        self.gates, self.attends, self.constant = cell.gates, cell.attends, cell.constant
        self.cell = cell
        self.layer_dropout = layer_dropout
        suffixes = ["", *(f"_l{k}" for k in range(2, num_layers + 1))]  # layer 1 has the names of a single one
        self._names = [{name: name + suffix for name in cell.names} for suffix in suffixes]
        self.names = tuple(name for names in self._names for name in names.values())

    def weights(self, input_dim: int, hidden_dim: int) -> dict[str, Tensor]:
        """Those of each layer, with D = H in all but the first."""
        weights: dict[str, Tensor] = {}
        for k, names in enumerate(self._names):
            new = self.cell.weights(hidden_dim if k else input_dim, hidden_dim)
            weights |= {names[name]: weight for name, weight in new.items()}
        return weights

    def begin(self, image: Tensor) -> State:
        return self._repeated(self.cell.begin(image))

    def begin_(self, image: Tensor) -> State:
        return self._repeated(self.cell.begin_(image))

    def _repeated(self, state: State) -> State:
        """The state of one layer as that of all; copies, since `step_` overwrites them."""
        own, constant = self._split(state)
        return (*own, *(part.clone() for _ in self._names[1:] for part in own), *constant)

    def _split(self, state: State) -> tuple[State, State]:
        """The part of the state that steps change, and what is constant."""
        n = len(state) - self.constant
        return state[:n], state[n:]

    def layers(self, state: State, weights: Weights) -> list[tuple[Cell, State, Weights]]:
        changing, constant = self._split(state)
        size = len(changing) // len(self._names)  # tensors of a layer
        parts = [changing[k : k + size] + constant for k in range(0, len(changing), size)]
        own = [{name: weights[full] for name, full in names.items()} for names in self._names]
        return [(self.cell, part, named) for part, named in zip(reversed(parts), own, strict=True)]

    def step(self, x: Tensor, state: State, weights: Weights) -> State:
        _, after = self._split(state)
        for cell, part, own in self.layers(state, weights):
            changed, _ = self._split(cell.step(x, part, own))
            x, after = changed[0], changed + after
        return after

    def views(self, a: Tensor) -> Views:
        """Of one layer: all use the same memory in turn."""
        return self.cell.views(a)

    def step_(self, views: Views, state: State, weights: Weights) -> None:
        below: State = ()
        for cell, part, own in self.layers(state, weights):
            if below:
                torch.addmm(own["b"], below[0], own["Wx"], out=views[0])
            cell.step_(views, part, own)
            below = part

    def sequence(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None = None) -> Tensor:
        for k, (cell, part, own) in enumerate(self.layers(state, weights)):
            x = cell.sequence(dropout(x, self.layer_dropout) if k else x, part, own, lengths)
        return x

    def packed(
        self, x: Tensor, state: State, weights: Weights, batch_sizes: int | Sequence[int], index: Tensor | None = None
    ) -> Tensor:
        for k, (cell, part, own) in enumerate(self.layers(state, weights)):
            x, index = (dropout(x, self.layer_dropout), None) if k else (x, index)
            x = cell.packed(x, part, own, batch_sizes, index)
        return x
