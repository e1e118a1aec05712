"""How likely each word of a given caption is, and which words might have stood in its place."""

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
    """What the model thinks of captions, word by word, each after the caption's own words before it.

    Attributes:
        words: (N, T, k) int64, the k likeliest words at each place, the likeliest first; never <START> or <NULL>. Past
            the end of a caption, and where fewer words are possible, <NULL>.
        probs: (N, T, k) float64, their probabilities, softmax over all words; 0 where the word is <NULL>.
        log_probs: (N, T) float64, those of the caption's own words, <END> among them; 0 past the end. Their sum is the
            caption's log-probability.
    """

    words: Tensor
    probs: Tensor
    log_probs: Tensor


@torch.no_grad()
def alternatives(stepper: Stepper, features: Tensor, words: Tensor, ids: TokenIds, k: int = 5) -> Alternatives:
    """The likeliest words at every place of given captions, however those were found.

    Args:
        stepper: as in `decoding.decode`.
        features: (N, ...) whatever `stepper.begin` takes. For several captions of one image repeat its features.
        words: (N, T) integers, a caption a row as decoding returns them: it is over at its first <END> or <NULL>.
        ids: of the special tokens.
        k: words at each place; V of them if there are no more.

    Raises:
        ValueError: words are not (N, T), hold an id that is none, or k < 1.
    """
    if words.dim() != 2 or len(words) != len(features):
        raise ValueError(f"words must be ({len(features)}, T), a caption a row, but are {tuple(words.shape)}")
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
    """(N,) the number of words of each caption, its <END> counted."""
    nothing = torch.zeros_like(words, dtype=torch.bool)
    ends = nothing if end is None else words == end
    padding = nothing if null == end else words == null
    over = (ends.cumsum(1) - ends.long() + padding.cumsum(1)) > 0
    return (~over).sum(1)


def _check_ids(words: Tensor, lengths: Tensor, V: int) -> None:
    """Every word of a caption is one of the V that there are."""
    spoken = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
    bad = (spoken & ((words < 0) | (words >= V))).nonzero()
    if len(bad):
        row, t = bad[0].tolist()
        raise ValueError(f"words[{row}, {t}] is {int(words[row, t])}, but there are {V} words (0 to {V - 1})")
