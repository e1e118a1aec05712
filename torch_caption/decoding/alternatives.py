"""The probability of each word of a given caption, and the most probable words at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_caption.decoding.beam import best_words
from torch_caption.decoding.filters import LogProbs, excluded
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Stepper, TokenIds, select


@dataclass(frozen=True)
class Alternatives:
    """The next-word probabilities at each step of given captions (teacher forcing).

    Attributes:
        words: (N, T, k) int64, the k most probable words at each step in descending order, never <START> or <NULL>;
            <NULL> past the end of a caption and if fewer words are possible.
        probs: (N, T, k) float64, their probabilities, softmax over all words; 0 for <NULL>.
        log_probs: (N, T) float64, of the caption's words, including <END>; 0 past the end. Their sum is the
            caption's log-probability.
    """

    words: Tensor
    probs: Tensor
    log_probs: Tensor


@torch.no_grad()
def alternatives(stepper: Stepper, features: Tensor, words: Tensor, ids: TokenIds, k: int = 5) -> Alternatives:
    """The most probable words at each step of given captions.

    Args:
        stepper: as in `decoding.decode`.
        features: (N, ...) as in `stepper.begin`. For several captions of one image repeat its features.
        words: (N, T) integers, one caption per row as decoding returns them; it ends at its first <END> or <NULL>.
        ids: of the special tokens.
        k: words per step, at most V.

    Raises:
        ValueError: words are not (N, T), an id is out of range, or k < 1.
    """
    if words.dim() != 2 or len(words) != len(features):
        raise ValueError(f"words must be ({len(features)}, T), one caption per row, but are {tuple(words.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    words = words.long()
    others = words.new_full((*words.shape, k), ids.null)
    probs = torch.zeros(others.shape, dtype=torch.float64, device=words.device)
    own = torch.zeros(words.shape, dtype=torch.float64, device=words.device)
    lengths = _lengths(words, ids.end, ids.null)
    log_probs = LogProbs(excluded(ids, DecodingOptions()))
    state, rows = stepper.begin(features), torch.arange(len(words), device=words.device)
    last = torch.full_like(rows, ids.start)
    for t in range(int(lengths.max()) if len(words) else 0):
        going = (lengths[rows] > t).nonzero().squeeze(1)
        rows, last, state = rows[going], last[going], select(state, going)
        logits, state = stepper.step(last, state)
        if t == 0:
            _check_ids(words, lengths, logits.shape[1])
        log_p, last = log_probs(logits), words[rows, t]
        own[rows, t] = log_p.gather(1, last[:, None]).squeeze(1).double()
        best, values = best_words(log_p, min(k, log_p.shape[1]))
        possible = values > -math.inf
        others[rows, t, : best.shape[1]] = best.where(possible, ids.null)
        probs[rows, t, : best.shape[1]] = values.double().exp()
    return Alternatives(others, probs, own)


def _lengths(words: Tensor, end: int | None, null: int) -> Tensor:
    """(N,) the number of words of each caption, including <END>."""
    nothing = torch.zeros_like(words, dtype=torch.bool)
    ends = nothing if end is None else words == end
    padding = nothing if null == end else words == null
    over = (ends.cumsum(1) - ends.long() + padding.cumsum(1)) > 0
    return (~over).sum(1)


def _check_ids(words: Tensor, lengths: Tensor, V: int) -> None:
    """Raise ValueError for a word id outside 0..V-1."""
    spoken = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
    bad = (spoken & ((words < 0) | (words >= V))).nonzero()
    if len(bad):
        row, t = bad[0].tolist()
        raise ValueError(f"words[{row}, {t}] is {int(words[row, t])}, but there are {V} words (0 to {V - 1})")
