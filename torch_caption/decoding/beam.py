"""Beam search: several hypotheses of every image side by side, and the likeliest captions among them.

A hypothesis is a caption as far as it has been written. A step grows all hypotheses of all images at once, in one call
of the stepper (see `decoding`), by every word, and each image keeps the best. An image has `beam_size` places. A
hypothesis that ends keeps its place for good, and the search of an image is over when all its places hold hypotheses
that have ended, or at `max_length` (Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks"). So
those that compete for a place are always equally long, and lengths are compared only in the end, among what was found,
by the scores. With one place it is the greedy choice. Scores are looked through where they are; who stands where, which
is little, is kept by NumPy on the host: a step brings the best words there and takes back which rows go on.

The score of a caption Y is `log P(Y) / lp(|Y|)`, with `|Y|` its number of words, <END> counted:

    lp(n) = 1                        length_penalty 0: the likeliest caption, which tends to be a short one
    lp(n) = ((5 + n) / 6)^alpha      length_penalty alpha > 0: eq. 14 of Wu et al. 2016, "Google's Neural Machine
                                     Translation System", where 0.6 to 0.7 is usual
    lp(n) = n                        length_penalty "mean": the mean log-probability of a word
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from torch_caption.decoding.greedy import LogProbs, State, Stepper, best_words, never_chosen, no_choice, select

LengthPenalty = float | Literal["mean"]


@dataclass(frozen=True)
class Beams:
    """The best K captions of each image, best first; of equal scores the one that ended first.

    Attributes:
        words: (N, K, max_length) int64, <END> included where it was reached, <NULL> after it.
        log_probs: (N, K) float64, the sum of the model's log-probabilities of those words up to and with <END>; -inf
            where the image has fewer than K captions (a small vocabulary, few words), whose words are all <NULL>.
        scores: (N, K) float64, the same over the length penalty, what they are ordered by.
        lengths: (N, K) int64, the number of words, <END> counted; 0 where there is no caption.
        ended: (N, K) boolean: the caption came to its <END>, and was not cut off at max_length.
    """

    words: Tensor
    log_probs: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor


@torch.no_grad()
def beam_search(
    stepper: Stepper,
    features: Tensor,
    *,
    start: int,
    end: int | None,
    null: int,
    beam_size: int,
    max_length: int = 30,
    length_penalty: LengthPenalty = 0.0,
    n_best: int | None = None,
    avoid: Collection[int] = (),
    no_repeat_ngram: int | None = None,
) -> Beams:
    """The captions with the best scores that a beam of `beam_size` hypotheses an image finds.

    A word's log-probability is the model's own, whatever is not to be chosen; equally good hypotheses stand in the
    order of those that they continue, then of their words' ids. An image's result does not depend on its batch.

    Args:
        stepper: the model; put a module with dropout into `eval()` first.
        features: (N, ...) whatever `stepper.begin` takes.
        start, end, null: the ids of <START>, <END> and <NULL>; without an end (None) every caption has `max_length`.
        beam_size: hypotheses an image; 1 is `decoding.greedy`.
        max_length: the most words of a caption, <END> counted. What has not ended there is a caption all the same.
        length_penalty: 0, alpha or "mean", see the head of this module.
        n_best: K, how many captions of each image to return, `beam_size` of them without it. Fewer are found sooner:
            an image is done as soon as nothing that could still come has a better score than the n_best that ended.
        avoid: ids of other words that are never chosen, that of <UNK> for example.
        no_repeat_ngram: n, where no n words may come twice in a caption in the same order (Paulus et al. 2018, "A Deep
            Reinforced Model for Abstractive Summarization"); 1 repeats no word.

    Raises:
        ValueError: an argument is out of its range; or at some step an image has no hypothesis and no word to go on
            with (scores that are not numbers, or no word possible that may be chosen).
    """
    n_best = beam_size if n_best is None else n_best
    _check(beam_size, max_length, length_penalty, n_best, no_repeat_ngram)
    N, device = features.shape[0], features.device
    found = _Found(N, beam_size, max_length, null, length_penalty)
    live = _Live(np.arange(N), np.full((N, max_length), null), np.zeros(N))
    last = np.full(N, start)  # (r,) the last words
    log_softmax = LogProbs(never_chosen(start, end, null, avoid))
    state = stepper.begin(features)
    for t in range(max_length):
        if len(last) == 0:
            break
        scores, state = stepper.step(torch.from_numpy(last).to(device), state)  # (r, V)
        log_p = log_softmax(scores)
        if no_repeat_ngram is not None:
            _forbid_repeats(log_p, live.words[:, :t], no_repeat_ngram)
        rows, last, sums = _grow(log_p, live, found, t)
        before, live = live, _Live(live.image[rows], live.words[rows], sums)
        live.words[:, t] = last
        ends = last == end  # none where there is no end
        if ends.any():
            found.add(live.take(ends), t + 1, ended=True)
        if found.any:
            going = ~(ends | found.settled(live.take(~ends), n_best)[live.image])
            rows, last, live = rows[going], last[going], live.take(going)
        same = np.array_equal(before.image, live.image)
        state = _follow(state, torch.from_numpy(rows).to(device), getattr(stepper, "constant", 0) if same else 0)
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
        starts, counts, _, rank = _groups(those.image)
        places = those.image, self.counts[those.image] + rank
        self.words[places] = those.words
        self.sums[places] = those.sums
        self.scores[places] = those.sums / _penalty(length, self.length_penalty)
        self.lengths[places] = length
        self.ended[places] = ended
        self.counts[those.image[starts]] += counts
        self.any = True

    def settled(self, live: _Live, n_best: int) -> np.ndarray:
        """(N,) boolean: no live hypothesis can come to a better score than the n_best best of its image.

        A hypothesis loses log-probability with every word and may be divided by at most the penalty of max_length.
        """
        if n_best == self.beam_size:  # then every live hypothesis is among the best
            return np.zeros(len(self.counts), dtype=bool)
        starts, *_ = _groups(live.image)
        best = np.full(len(self.counts), -math.inf)
        best[live.image[starts]] = live.sums[starts]  # the likeliest stands first
        return np.sort(self.scores, axis=1)[:, -n_best] >= best / _penalty(self.max_length, self.length_penalty)

    def best(self, n_best: int, device: torch.device) -> Beams:
        """The n_best of each image in order."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :n_best]
        words = np.take_along_axis(self.words, order[:, :, None], 1)
        rest = (np.take_along_axis(part, order, 1) for part in (self.sums, self.scores, self.lengths, self.ended))
        return Beams(*(torch.from_numpy(part).to(device) for part in (words, *rest)))


def _grow(log_p: Tensor, live: _Live, found: _Found, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best continuations: for each image as many as it has free places, if there are so many.

    Returns:
        rows (m,): which of the live hypotheses each continues; words (m,): by which word; sums (m,) float64.
    """
    starts, counts, group, rank = _groups(live.image)
    images = live.image[starts]
    free = found.beam_size - found.counts[images]  # (n,)
    K = min(int(free.max()), log_p.shape[1])  # of no hypothesis more than its image has places
    words, gained = (part.cpu().numpy() for part in best_words(log_p, K))  # (r, K)
    sums = np.full((len(images), counts.max(), K), -math.inf)
    sums[group, rank] = live.sums[:, None] + gained
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
    rows = starts[kept.nonzero()[0]] + chosen // K
    return rows, words[rows, chosen % K], sums[kept]


def _forbid_repeats(log_p: Tensor, words: np.ndarray, n: int) -> None:
    """-inf in log_p (r, V) wherever a word would complete n words that the hypothesis (r, t) has already."""
    t = words.shape[1]
    if t < n:
        return
    grams = np.lib.stride_tricks.sliding_window_view(words, n, axis=1)  # (r, t - n + 1, n)
    begun = words[:, None, t - n + 1 :]  # (r, 1, n - 1), the last words
    rows, places = (grams[:, :, : n - 1] == begun).all(2).nonzero()
    ids = grams[rows, places, n - 1]
    log_p[torch.from_numpy(rows).to(log_p.device), torch.from_numpy(ids).to(log_p.device)] = -math.inf


def _follow(state: State, rows: Tensor, stay: int) -> State:
    """The state of those rows, but for its last `stay` parts, which stay as they are."""
    changing = len(state) - stay
    return (*select(state[:changing], rows), *state[changing:])


def _groups(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of sorted (r,): where each of the n different ones begins (n,), how many there are of it (n,); which of the n
    each is (r,), and its place among its equals (r,)."""
    first = np.ones(len(image), dtype=bool)
    first[1:] = image[1:] != image[:-1]
    starts, group = first.nonzero()[0], first.cumsum() - 1
    return starts, np.bincount(group), group, np.arange(len(image)) - starts[group]


def _penalty(length: int, length_penalty: LengthPenalty) -> float:
    """lp(length), see the head of this module."""
    return float(length) if length_penalty == "mean" else ((5 + length) / 6) ** float(length_penalty)


def _check(
    beam_size: int, max_length: int, length_penalty: LengthPenalty, n_best: int, no_repeat_ngram: int | None
) -> None:
    """Raise ValueError on the first argument that cannot be used."""
    whole = {"beam_size": beam_size, "max_length": max_length, "n_best": n_best, "no_repeat_ngram": no_repeat_ngram}
    for name, value in whole.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
    if n_best > beam_size:
        raise ValueError(f"n_best must be at most beam_size, which is {beam_size}, not {n_best}")
    if length_penalty != "mean" and not (isinstance(length_penalty, int | float) and 0 <= length_penalty < math.inf):
        raise ValueError(f'length_penalty must be 0, a positive number or "mean", not {length_penalty}')
