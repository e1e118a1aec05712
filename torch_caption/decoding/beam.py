"""Beam search: several hypotheses of every image side by side, and the likeliest captions among them.

A hypothesis is a caption as far as it has been written. A step extends all hypotheses of all images by every word, in
one call of the stepper, and each image keeps the best: it has `beam_size` slots. A hypothesis that ends keeps its slot
for good, and the search of an image is over when all its slots hold hypotheses that have ended, or at `max_length`
(Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks"). So those that compete for a slot are
always equally long, and lengths are compared only in the end, among what was found, by the scores.

The score of a caption Y is `log P(Y) / lp(|Y|)`, with `|Y|` its number of words, <END> counted:

    lp(n) = 1                        length_penalty 0: the likeliest caption, which tends to be a short one
    lp(n) = ((5 + n) / 6)^alpha      length_penalty alpha > 0: eq. 14 of Wu et al. 2016, "Google's Neural Machine
                                     Translation System", where 0.6 to 0.7 is usual
    lp(n) = n                        length_penalty "mean": the mean log-probability of a word

Example: one image, beam_size 2, length_penalty 0, and a model that knows the words a and b:

    after <START>   a .6   b .4
    after a         a .2   b .35   <END> .2   (the rest is <NULL> and <START>, which are never chosen)
    after b         a .05  b .05   <END> .9

    t   live (probability)      extensions, best first                    kept               slots that ended
    0   <START> 1               a .6, b .4                                a, b               -
    1   a .6, b .4              b <END> .36, a b .21, a a .12, ...        b <END>, a b       b <END> .36
    2   a b .21                 a b <END> .189, a b a .0105, ...          a b <END>          both: the search is over

b <END> (.36) is returned first, a b <END> (.189) second. Greedy decoding takes a at first and finds only the second.
At t = 1 the rows of the state are reordered: the one live hypothesis that goes on continues row 0, so
`select` takes rows [0] of the state.

Log-probabilities stay on the model's device. What stands in which slot is little, and NumPy keeps it on the host: a
step brings the best words there and takes back which rows go on.
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
    """The captions with the best scores that a beam of `beam_size` hypotheses an image finds.

    Equally good hypotheses stand in the order of those that they continue, then of their words' ids. An image's result
    does not depend on its batch. With fewer captions asked for (`n_best`) an image is done as soon as nothing that
    could still come has a better score than the n_best that ended. What has not ended at `max_length` is a caption all
    the same.

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
        ends = last == ids.end  # none where there is no end
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
    """The hypotheses that go on, those of an image one after another, the likeliest first.

    Attributes:
        image: (r,) integers, whose each is, in order.
        words: (r, max_length) integers, as far as they have come.
        sums: (r,) float64, their log-probabilities.
    """

    image: np.ndarray
    words: np.ndarray
    sums: np.ndarray

    def take(self, rows: np.ndarray) -> _Live:
        """Those rows, by their numbers (m,) or as a mask (r,)."""
        return _Live(self.image[rows], self.words[rows], self.sums[rows])


class _Found:
    """The hypotheses that have their place for good: those that ended, and at the last those that were cut off."""

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
        """Give each its place."""
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
        """(N,) boolean: no live hypothesis can come to a better score than the n_best best of its image.

        A hypothesis loses log-probability with every word and may be divided by at most the penalty of max_length.
        """
        if n_best == self.beam_size:  # then every live hypothesis is among the best
            return np.zeros(len(self.counts), dtype=bool)
        starts = _groups(live.image).starts
        best = np.full(len(self.counts), -math.inf)
        best[live.image[starts]] = live.sums[starts]  # the likeliest stands first
        return np.sort(self.scores, axis=1)[:, -n_best] >= best / _penalty(self.max_length, self.length_penalty)

    def best(self, n_best: int, device: torch.device) -> Decoded:
        """The n_best of each image in order."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :n_best]
        words = np.take_along_axis(self.words, order[:, :, None], 1)
        rest = (np.take_along_axis(part, order, 1) for part in (self.sums, self.scores, self.lengths, self.ended))
        return Decoded(*(torch.from_numpy(part).to(device) for part in (words, *rest)))


def _extend(log_p: Tensor, live: _Live, found: _Found, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best continuations: for each image as many as it has free places, if there are so many.

    Returns:
        rows (m,): which of the live hypotheses each continues; words (m,): by which word; sums (m,) float64.
    """
    groups = _groups(live.image)
    images = live.image[groups.starts]
    free = found.beam_size - found.counts[images]  # (n,)
    K = min(int(free.max()), log_p.shape[1])  # of no hypothesis more than its image has places
    words, gained = (part.cpu().numpy() for part in best_words(log_p, K))  # (r, K)
    sums = np.full((len(images), groups.counts.max(), K), -math.inf)
    sums[groups.group, groups.rank] = live.sums[:, None] + gained
    sums = sums.reshape(len(images), -1)
    best = sums.max(1)  # NaN, if there is one
    # An image that has found something may have nothing to go on with.
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
    """The k likeliest words of each row of log_p (n, V), the first of equals first, and their log-probabilities.

    Both are (n, k). `log_p` is written over: what was chosen is -inf.
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
    """The state of those rows, but for its last `stay` parts, which stay as they are."""
    changing = len(state) - stay
    return (*select(state[:changing], rows), *state[changing:])


class _Groups(NamedTuple):
    """Runs of equal entries in a sorted array (r,).

    Attributes:
        starts: (n,) where each of the n runs begins.
        counts: (n,) how many entries it has.
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
