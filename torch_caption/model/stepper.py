"""A captioner's steps for inference: `CaptioningRNN.step`, written into memory that all steps share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from torch_caption.decoding import State
from torch_caption.functions._common import autocast
from torch_caption.model.cell import Cell


class InferenceStepper:
    """A captioner prepared for decoding; see `CaptioningRNN.stepper`. It has the weights at the time of its creation.

    Its steps differ from the captioner's in two ways. Large results are written to memory that all steps share, the
    next state over the previous one. And a word's x Wx + b is a row of a table (V, GH) of all words if that costs less:
    one product for the whole table is faster than one for each input token, and about half of the announced `words`
    become input tokens, since captions end before their limit.

    The dtype is the one that the captioner computes in when this is created: under autocast, autocast's.

    Args:
        cell: the captioner's.
        weights: all of the captioner's, by name.
        image: checks features and reshapes them for W_proj.
        words: the maximum number of input tokens, over all rows and steps.

    Attributes:
        constant: how many tensors at the end of the state belong to the image: no step changes them.
    """

    def __init__(self, cell: Cell, weights: Mapping[str, Tensor], image: Callable[[Tensor], Tensor], words: int):
        self._cell, self._image = cell, image
        self.constant = cell.constant
        weights = dict(zip(weights, autocast(*(w.detach() for w in weights.values())), strict=True))
        self._weights = {name: weights[name] for name in cell.names}
        self._Wx, self._b = weights["Wx"], weights["b"]
        self._W_proj, self._b_proj = weights["W_proj"], weights["b_proj"]
        self._W_embed, self._b_vocab = weights["W_embed"], weights["b_vocab"]
        W_vocab = weights.get("W_vocab")
        self._W_vocab = self._W_embed.T if W_vocab is None else W_vocab
        self._W_out = weights.get("W_out")
        self._table: Tensor | None = None
        V = self._W_embed.shape[0]
        if words > 2 * V:
            self._table = self._project(self._W_embed, out=self._b.new_empty(V, len(self._b)))
        self._memory: tuple[Tensor, ...] = ()
        self._n = 0  # rows of the last step

    def _project(self, x: Tensor, out: Tensor) -> Tensor:
        """x Wx + b of word vectors x (n, W), written to `out` (n, GH). (With `out`, autocast changes no dtype.)"""
        return torch.addmm(self._b, x, self._Wx, out=out)

    def _allocate(self, n: int) -> None:
        """Memory for n rows: word vectors (n, W), pre-activations (n, GH) and logits (n, V)."""
        if not self._memory or n > len(self._memory[0]):
            widths = self._W_embed.shape[1], len(self._b), len(self._b_vocab)
            self._memory = tuple(self._b.new_empty(n, width) for width in widths)
        self._x, self._a, self._logits = (part[:n] for part in self._memory)
        self._views = self._cell.views(self._a)
        self._n = n

    @torch.no_grad()
    def begin(self, features: Tensor) -> State:
        """The state before the first word, of features as the model takes them.

        Raises:
            TypeError: the features are not a floating-point tensor, or of another dtype or device.
            ValueError: the features are of another shape.
        """
        return self._cell.begin_(F.linear(self._image(features).to(self._b.dtype), self._W_proj.T, self._b_proj))

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (n, V) of the word after `words` (n,), and the next state, which is written over `state`."""
        n = words.shape[0]
        if n != self._n or not self._memory:
            self._allocate(n)
        a = self._a
        if self._table is not None:
            torch.index_select(self._table, 0, words, out=a)
        else:
            self._project(torch.index_select(self._W_embed, 0, words, out=self._x), out=a)
        self._cell.step_(self._views, state, self._weights)
        h = state[0] if self._W_out is None else torch.mm(state[0], self._W_out, out=self._x)
        return torch.addmm(self._b_vocab, h, self._W_vocab, out=self._logits), state
