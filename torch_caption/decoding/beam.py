"""Beam search: several hypotheses per image in parallel, and the captions with the best scores among them.

A hypothesis is a partial caption. A step extends all hypotheses of all images by every word, in one call of the
stepper, and each image keeps the best: it has `beam_size` slots. A finished hypothesis (one with <END>) keeps its slot,
and the search of an image ends when all its slots are finished, or at `max_length` (Sutskever et al. 2014, "Sequence to
Sequence Learning with Neural Networks"). So hypotheses that compete for a slot have equal length, and captions of
different length are compared only at the end, by their scores.

The score of a caption Y is `log P(Y) / lp(|Y|)`, with `|Y|` its number of words, including <END>:

    lp(n) = 1                        length_penalty 0: the most probable caption, which tends to be short
    lp(n) = ((5 + n) / 6)^alpha      length_penalty alpha > 0: eq. 14 of Wu et al. 2016, "Google's Neural Machine
                                     Translation System", where 0.6 to 0.7 is usual
    lp(n) = n                        length_penalty "mean": the mean log-probability of a word

Example: one image, beam_size 2, length_penalty 0, and a model with the words a and b:

    after <START>   a .6   b .4
    after a         a .2   b .35   <END> .2   (the rest is <NULL> and <START>, which are excluded)
    after b         a .05  b .05   <END> .9

    t   live (probability)      extensions, best first                    kept               finished slots
    0   <START> 1               a .6, b .4                                a, b               -
    1   a .6, b .4              b <END> .36, a b .21, a a .12, ...        b <END>, a b       b <END> .36
    2   a b .21                 a b <END> .189, a b a .0105, ...          a b <END>          both: the search ends

b <END> (.36) is returned first, a b <END> (.189) second. Greedy decoding chooses a first and finds only the second.
At t = 1 the rows of the state are reordered: the only live hypothesis continues row 0, so `select` takes rows [0] of
the state.

Log-probabilities stay on the model's device. The slots are small and in NumPy on the host: a step copies the best words
to the host, and the rows to continue back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_caption.decoding.filters import LogProbs, excluded, logit_filters
from torch_caption.decoding.options import DecodingOptions, LengthPenalty
from torch_caption.decoding.protocol import Decoded, State, Stepper, TokenIds, no_choice, select


@torch.no_grad()
def beam_search(
    stepper: Stepper,
    features: Tensor,
    ids: TokenIds,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Decoded:
    """The captions with the best scores that a beam of `beam_size` hypotheses per image finds.

    Hypotheses of equal score are in the order of those that they continue, then of their words' ids. An image's result
    does not depend on its batch. With `n_best` below `beam_size` the search of an image ends as soon as no live
    hypothesis can reach a better score than the n_best finished ones. An unfinished hypothesis at `max_length` is a
    caption too.

    Args: as `torch_caption.decoding.decode`; nothing is random.

    Returns:
        log_probs and scores float64.
    """
    n_best, max_length = options.n_best or options.beam_size, options.length
    N, device = features.shape[0], features.device
    found = _Found(N, options.beam_size, max_length, ids.null, options.length_penalty)
    live = _Live(np.arange(N), np.full((N, max_length), ids.null), np.zeros(N))
    last = np.full(N, ids.start)  # (r,) the last words
    log_probs, filters = LogProbs(excluded(ids, options)), logit_filters(ids, options)
    state = stepper.begin(features)
    for t in range(max_length):
        if len(last) == 0:
            break
        logits, state = stepper.step(torch.from_numpy(last).to(device), state)  # (r, V)
        log_p = log_probs(logits)
        for logit_filter in filters:
            logit_filter(log_p, live.words[:, :t])
        rows, last, sums = _extend(log_p, live, found, t)
        before, live = live, _Live(live.image[rows], live.words[rows], sums)
        live.words[:, t] = last
        ends = last == ids.end  # none if there is no <END>
        if ends.any():
            found.add(live.take(ends), t + 1, ended=True)
        if found.any:
            going = ~(ends | found.settled(live.take(~ends), n_best)[live.image])
            rows, last, live = rows[going], last[going], live.take(going)
        same = np.array_equal(before.image, live.image)
        state = _follow(state, torch.from_numpy(rows).to(device), stepper.constant if same else 0)
    found.add(live, max_length, ended=False)
    return found.best(n_best, device)


@dataclass
class _Live:
    """The live (unfinished) hypotheses, grouped by image, the most probable first.

    Attributes:
        image: (r,) integers, the image of each, in order.
        words: (r, max_length) integers, the words so far.
        sums: (r,) float64, their log-probabilities.
    """

    image: np.ndarray
    words: np.ndarray
    sums: np.ndarray

    def take(self, rows: np.ndarray) -> _Live:
        """The given rows, as indices (m,) or as a mask (r,)."""
        return _Live(self.image[rows], self.words[rows], self.sums[rows])


class _Found:
    """The finished hypotheses, and at the end those cut off at max_length."""

    def __init__(self, N: int, beam_size: int, max_length: int, null: int, length_penalty: LengthPenalty):
        self.beam_size, self.max_length, self.length_penalty = beam_size, max_length, length_penalty
        self.any = False
        self.counts = np.zeros(N, dtype=np.int64)
        self.words = np.full((N, beam_size, max_length), null)
        self.sums = np.full((N, beam_size), -math.inf)
        self.scores = self.sums.copy()
        self.lengths = np.zeros((N, beam_size), dtype=np.int64)
        self.ended = np.zeros((N, beam_size), dtype=bool)

    def add(self, those: _Live, length: int, *, ended: bool) -> None:
        """Store each in a free slot of its image."""
        groups = _groups(those.image)
        slots = those.image, self.counts[those.image] + groups.rank
        self.words[slots] = those.words
        self.sums[slots] = those.sums
        self.scores[slots] = those.sums / _penalty(length, self.length_penalty)
        self.lengths[slots] = length
        self.ended[slots] = ended
        self.counts[those.image[groups.starts]] += groups.counts
        self.any = True

    def settled(self, live: _Live, n_best: int) -> np.ndarray:
        """(N,) boolean: no live hypothesis can reach a better score than the n_best best of its image.

        Log-probability falls with every word, and the divisor is at most the penalty of max_length.
        """
        if n_best == self.beam_size:  # then every live hypothesis is among the best
            return np.zeros(len(self.counts), dtype=bool)
        starts = _groups(live.image).starts
        best = np.full(len(self.counts), -math.inf)
        best[live.image[starts]] = live.sums[starts]  # the most probable is first
        return np.sort(self.scores, axis=1)[:, -n_best] >= best / _penalty(self.max_length, self.length_penalty)

    def best(self, n_best: int, device: torch.device) -> Decoded:
        """The n_best of each image in descending order."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :n_best]
        words = np.take_along_axis(self.words, order[:, :, None], 1)
        rest = (np.take_along_axis(part, order, 1) for part in (self.sums, self.scores, self.lengths, self.ended))
        return Decoded(*(torch.from_numpy(part).to(device) for part in (words, *rest)))


def _extend(log_p: Tensor, live: _Live, found: _Found, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best continuations: for each image at most as many as it has free slots.

    Returns:
        rows (m,): the live hypothesis that each continues; words (m,): its new word; sums (m,) float64.
    """
    groups = _groups(live.image)
    images = live.image[groups.starts]
    free = found.beam_size - found.counts[images]  # (n,)
    K = min(int(free.max()), log_p.shape[1])  # no hypothesis needs more than its image has slots
    words, gained = (part.cpu().numpy() for part in best_words(log_p, K))  # (r, K)
    sums = np.full((len(images), groups.counts.max(), K), -math.inf)
    sums[groups.group, groups.rank] = live.sums[:, None] + gained
    sums = sums.reshape(len(images), -1)
    best = sums.max(1)  # NaN, if there is one
    # An image with a finished hypothesis may have no continuation.
    stuck = ~(best > -math.inf) & ~((best == -math.inf) & (free < found.beam_size))
    if stuck.any():
        raise no_choice(images[stuck][0], t)
    order = np.argsort(-sums, axis=1, kind="stable")[:, : found.beam_size]
    sums = np.take_along_axis(sums, order, 1)
    kept = (np.arange(sums.shape[1]) < free[:, None]) & (sums > -math.inf)
    chosen = order[kept]
    rows = groups.starts[kept.nonzero()[0]] + chosen // K
    return rows, words[rows, chosen % K], sums[kept]


def best_words(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable words of each row of log_p (n, V), of equals the first, and their log-probabilities.

    Both are (n, k). `log_p` is modified: chosen entries become -inf.
    """
    words = log_p.new_empty((len(log_p), k), dtype=torch.int64)
    values = log_p.new_empty((len(log_p), k))
    rows = torch.arange(len(log_p), device=log_p.device)
    # For the k of a beam this is faster than topk, whose order of equals is undefined; and faster again in NumPy.
    if log_p.device.type == "cpu":
        _take_best(*(part.numpy() for part in (log_p, words, values, rows)))
    else:
        _take_best(log_p, words, values, rows)
    return words, values


def _take_best(log_p: Any, words: Any, values: Any, rows: Any) -> None:
    """`best_words` of four tensors, or of four arrays."""
    for k in range(words.shape[1]):
        words[:, k] = chosen = log_p.argmax(1)
        values[:, k] = log_p[rows, chosen]
        log_p[rows, chosen] = -math.inf


def _follow(state: State, rows: Tensor, stay: int) -> State:
    """The state of the given rows; its last `stay` tensors are unchanged."""
    changing = len(state) - stay
    return (*select(state[:changing], rows), *state[changing:])


class _Groups(NamedTuple):
    """Runs of equal entries in a sorted array (r,).

    Attributes:
        starts: (n,) the first index of each of the n runs.
        counts: (n,) its number of entries.
        group: (r,) the run of each entry.
        rank: (r,) its position in the run.
    """

    starts: np.ndarray
    counts: np.ndarray
    group: np.ndarray
    rank: np.ndarray


def _groups(image: np.ndarray) -> _Groups:
    """The runs of a sorted array (r,): the hypotheses of each image."""
    first = np.ones(len(image), dtype=bool)
    first[1:] = image[1:] != image[:-1]
    starts, group = first.nonzero()[0], first.cumsum() - 1
    return _Groups(starts, np.bincount(group), group, np.arange(len(image)) - starts[group])


def _penalty(length: int, length_penalty: LengthPenalty) -> float:
    """lp(length), see the head of this module."""
    return float(length) if length_penalty == "mean" else ((5 + length) / 6) ** float(length_penalty)
