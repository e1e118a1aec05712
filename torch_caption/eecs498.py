"""The names of Michigan's EECS 498 (Deep Learning for Computer Vision), recurrent captioning, over this package.

The notebooks run with `from rnn_lstm_attention_captioning import *` (of 2019 and 2020) or `from rnn_lstm_captioning
import *` (from 2022 on) replaced by `from torch_caption.eecs498 import *`.

Functions and modules take tensors and keep their graph: `out.backward(dout)` works after each. The gradients are
hand-derived: autograd calls the backward of `torch_caption.functions`. Bad shapes, dtypes and word indices are the
errors of that module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_caption import functions
from torch_caption.data.vocabulary import END, NULL, START

__all__ = [
    "LSTM",
    "RNN",
    "AttentionLSTM",
    "CaptioningRNN",
    "WordEmbedding",
    "attention_forward",
    "dot_product_attention",
    "lstm_forward",
    "lstm_step_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "temporal_softmax_loss",
]

Cache = tuple[Callable[..., Any], tuple[Tensor, ...]]
"""The function of a forward and its inputs, at which its backward computes the gradients."""


def _with_cache(function: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, Cache]:
    return function(*inputs), (function, tuple(x.detach().clone() for x in inputs))


def _backward(dout: Tensor, cache: Cache) -> tuple[Tensor, ...]:
    function, inputs = cache
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    with torch.enable_grad():
        out = function(*leaves)
    return torch.autograd.grad(out, leaves, dout.to(out.dtype))


def rnn_step_forward(x: Tensor, prev_h: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Cache]:
    """One tanh step: x (N, D), prev_h (N, H), Wx (D, H), Wh (H, H), b (H,) -> next_h (N, H), cache."""
    return _with_cache(functions.rnn_step, x, prev_h, Wx, Wh, b)


def rnn_step_backward(dnext_h: Tensor, cache: Cache) -> tuple[Tensor, ...]:
    """dx, dprev_h, dWx, dWh, db from dnext_h (N, H)."""
    return _backward(dnext_h, cache)


def rnn_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> tuple[Tensor, Cache]:
    """A vanilla RNN over a sequence: x (N, T, D), h0 (N, H), weights as in `rnn_step_forward` -> h (N, T, H), cache."""
    return _with_cache(functions.rnn, x, h0, Wx, Wh, b)


def rnn_backward(dh: Tensor, cache: Cache) -> tuple[Tensor, ...]:
    """dx, dh0, dWx, dWh, db from dh (N, T, H), the gradient that reaches each step from outside the recurrence."""
    return _backward(dh, cache)


def lstm_step_forward(
    x: Tensor,
    prev_h: Tensor,
    prev_c: Tensor,
    Wx: Tensor,
    Wh: Tensor,
    b: Tensor,
    attn: Tensor | None = None,
    Wattn: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step, gates i, f, o, g along 4H, with attn Wattn added to its pre-activations where given.

    Args:
        x: (N, D). prev_h, prev_c, attn: (N, H). Wx: (D, 4H). Wh, Wattn: (H, 4H). b: (4H,).

    Returns:
        next_h and next_c (N, H).
    """
    if attn is not None and Wattn is not None:  # [x attn] [Wx; Wattn] = x Wx + attn Wattn
        x, Wx = torch.cat([x, attn], dim=1), torch.cat([Wx, Wattn])
    return functions.lstm_step(x, prev_h, prev_c, Wx, Wh, b)


def lstm_forward(x: Tensor, h0: Tensor, Wx: Tensor, Wh: Tensor, b: Tensor) -> Tensor:
    """An LSTM over a sequence, its first cell state zero: x (N, T, D), h0 (N, H) -> h (N, T, H)."""
    h: Any = functions.lstm(x, h0, Wx, Wh, b)
    return h


def dot_product_attention(prev_h: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention: prev_h (N, H), A (N, H, a, a) -> attn (N, H), weights (N, a, a)."""
    return functions.dot_product_attention(prev_h, A)


def attention_forward(x: Tensor, A: Tensor, Wx: Tensor, Wh: Tensor, Wattn: Tensor, b: Tensor) -> Tensor:
    """An LSTM that attends to A (N, H, a, a) at each step; h and c begin with its mean: x (N, T, D) -> h (N, T, H)."""
    h: Any = functions.attention_lstm(x, A, Wx, Wh, Wattn, b)
    return h


def temporal_softmax_loss(x: Tensor, y: Tensor, ignore_index: int | None = None) -> Tensor:
    """Cross entropy summed over time and averaged over the N captions.

    Args:
        x: scores (logits) (N, T, V). y: correct words (N, T), integers.
        ignore_index: the word that does not count; None: all count.

    Returns:
        loss, a scalar.
    """
    mask = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    return functions.temporal_softmax_loss(x, y, mask)


class _Cell(nn.Module):
    """The weights of a cell: Wx (D, gates H), Wh (H, gates H), b (gates H,), and with attention Wattn (H, gates H)."""

    gates = 1

    def __init__(
        self, input_dim: int, hidden_dim: int, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        width = self.gates * hidden_dim
        self.Wx = _normal(input_dim, width, device, dtype)
        self.Wh = _normal(hidden_dim, width, device, dtype)
        self.b = nn.Parameter(torch.zeros(width, device=device, dtype=dtype))


def _normal(fan_in: int, width: int, device: Any, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.randn(fan_in, width, device=device, dtype=dtype) / fan_in**0.5)


class RNN(_Cell):
    """A vanilla RNN of D inputs and H hidden units."""

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        """x (N, T, D), h0 (N, H) -> h (N, T, H)."""
        return functions.rnn(x, h0, self.Wx, self.Wh, self.b)

    def step_forward(self, x: Tensor, prev_h: Tensor) -> Tensor:
        """x (N, D), prev_h (N, H) -> next_h (N, H)."""
        return functions.rnn_step(x, prev_h, self.Wx, self.Wh, self.b)


class LSTM(_Cell):
    """An LSTM of D inputs and H hidden units."""

    gates = 4

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        """x (N, T, D), h0 (N, H) -> h (N, T, H)."""
        return lstm_forward(x, h0, self.Wx, self.Wh, self.b)

    def step_forward(self, x: Tensor, prev_h: Tensor, prev_c: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D), prev_h and prev_c (N, H) -> next_h and next_c (N, H)."""
        return functions.lstm_step(x, prev_h, prev_c, self.Wx, self.Wh, self.b)


class AttentionLSTM(_Cell):
    """An LSTM of D inputs and H hidden units that attends to an image of H channels."""

    gates = 4

    def __init__(
        self, input_dim: int, hidden_dim: int, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(input_dim, hidden_dim, device, dtype)
        self.Wattn = _normal(hidden_dim, 4 * hidden_dim, device, dtype)

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        """x (N, T, D), A (N, H, a, a) -> h (N, T, H)."""
        return attention_forward(x, A, self.Wx, self.Wh, self.Wattn, self.b)

    def step_forward(self, x: Tensor, prev_h: Tensor, prev_c: Tensor, attn: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, D), prev_h, prev_c and attn (N, H) -> next_h and next_c (N, H)."""
        return lstm_step_forward(x, prev_h, prev_c, self.Wx, self.Wh, self.b, attn, self.Wattn)


class WordEmbedding(nn.Module):
    """Word vectors W_embed (V, D)."""

    def __init__(
        self, vocab_size: int, embed_size: int, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.W_embed = _normal(vocab_size, embed_size, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, T) integers -> (N, T, D)."""
        return functions.word_embedding(x, self.W_embed)


class CaptioningRNN(nn.Module):
    """The course's captioner.

    Args:
        word_to_idx: word -> id, with <NULL>, and <START> for sampling.
        input_dim: D of the features. wordvec_dim: W. hidden_dim: H.
        cell_type: "rnn", "lstm", or "attention" (also "attn"), which needs grids (N, D, a, a).
        image_encoder: images -> features (N, D) or grids (N, D, a, a), which are averaged where the cell does not
            attend; None: the images are features already.
        ignore_index: the word that does not count in the loss, such as that of <NULL>.

    Raises:
        ValueError: another cell type.
    """

    def __init__(
        self,
        word_to_idx: Mapping[str, int],
        input_dim: int = 512,
        wordvec_dim: int = 128,
        hidden_dim: int = 128,
        cell_type: str = "rnn",
        image_encoder: nn.Module | None = None,
        ignore_index: int | None = None,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        cells: dict[str, Any] = {"rnn": RNN, "lstm": LSTM, "attention": AttentionLSTM, "attn": AttentionLSTM}
        if cell_type not in cells:
            raise ValueError(f'Invalid cell_type "{cell_type}"; there are {", ".join(cells)}')
        self.cell_type = cell_type
        self.word_to_idx = word_to_idx
        self.idx_to_word = {idx: word for word, idx in word_to_idx.items()}
        self._null, self._start, self._end = word_to_idx[NULL], word_to_idx.get(START), word_to_idx.get(END)
        self.ignore_index = ignore_index
        self.image_encoder = nn.Identity() if image_encoder is None else image_encoder
        made = {"device": device, "dtype": dtype}
        V = len(word_to_idx)
        self.W_proj = _normal(input_dim, hidden_dim, device, dtype)
        self.b_proj = nn.Parameter(torch.zeros(hidden_dim, **made))
        self.word_embedding = WordEmbedding(V, wordvec_dim, **made)
        self.cell = cells[cell_type](wordvec_dim, hidden_dim, **made)
        self.W_vocab = _normal(hidden_dim, V, device, dtype)
        self.b_vocab = nn.Parameter(torch.zeros(V, **made))

    def _image(self, images: Tensor) -> Tensor:
        """h0 (N, H), or for attention A (N, H, a, a)."""
        features = self.image_encoder(images)
        if isinstance(self.cell, AttentionLSTM):
            grid = functions.temporal_affine(features.flatten(2).mT, self.W_proj, self.b_proj)  # (N, a a, H)
            return grid.mT.reshape(len(features), -1, *features.shape[2:])
        features = features.mean((2, 3)) if features.dim() == 4 else features
        return functions.affine(features, self.W_proj, self.b_proj)

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        """The loss of predicting captions[:, 1:] from captions[:, :-1]: captions (N, T) integers -> a scalar."""
        words, targets = captions[:, :-1], captions[:, 1:]
        h = self.cell(self.word_embedding(words), self._image(images))
        scores = functions.temporal_affine(h, self.W_vocab, self.b_vocab)
        return temporal_softmax_loss(scores, targets, ignore_index=self.ignore_index)

    @torch.no_grad()
    def sample(self, images: Tensor, max_length: int = 15) -> Any:
        """The most probable word at each of `max_length` time steps, which is the next input.

        Returns:
            (N, max_length) int64, without <START>; with attention also the weights (N, max_length, a, a).

        Raises:
            ValueError: the vocabulary has no <START>.
        """
        if self._start is None:
            raise ValueError(f"sampling starts with {START}, which the vocabulary lacks")
        image = self._image(images)
        attends = isinstance(self.cell, AttentionLSTM)
        h = image.mean((2, 3)) if attends else image
        c = h if attends else torch.zeros_like(h)
        word = torch.full((len(h),), self._start, device=h.device)
        words, maps = [], []
        for _ in range(max_length):
            x = self.word_embedding(word.unsqueeze(1)).squeeze(1)
            if attends:
                attn, weights = dot_product_attention(h, image)
                maps.append(weights)
                h, c = self.cell.step_forward(x, h, c, attn)
            elif isinstance(self.cell, LSTM):
                h, c = self.cell.step_forward(x, h, c)
            else:
                h = self.cell.step_forward(x, h)
            word = functions.affine(h, self.W_vocab, self.b_vocab).argmax(1)
            words.append(word)
        captions = torch.stack(words, 1) if words else word.new_zeros(len(h), 0)
        return (captions, torch.stack(maps, 1)) if attends and maps else captions
