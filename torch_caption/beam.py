"""Beam search: several hypotheses of every image side by side, and the likeliest captions among them.

A hypothesis is a caption as far as it has been written. A step grows all hypotheses of all images at once, in one call
of the stepper (see `decoding`), by every word, and each image keeps the best. An image has `beam_size` places. A
hypothesis that ends keeps its place for good, and the search of an image is over when all its places hold hypotheses
that have ended, or at `max_length` (Sutskever et al. 2014, "Sequence to Sequence Learning with Neural Networks"). So
those that compete for a place are always equally long, and lengths are compared only in the end, among what was found,
by the scores. With one place it is the greedy choice.

The score of a caption Y is log P(Y) / lp(|Y|), with |Y| its number of words, <END> counted:

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

import torch
from torch import Tensor

from torch_caption.decoding import LogProbs, State, Stepper, best_words, check_choice, never_chosen, select

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
    found = _Found(N, beam_size, max_length, null, length_penalty, device)
    live = _Live(
        torch.arange(N, device=device),
        torch.full((N, max_length), null, device=device),
        torch.zeros(N, dtype=torch.float64, device=device),
    )
    last = torch.full_like(live.image, start)  # (r,) the last words
    log_softmax = LogProbs(never_chosen(start, end, null, avoid))
    state = stepper.begin(features)
    for t in range(max_length):
        if len(last) == 0:
            break
        scores, state = stepper.step(last, state)  # (r, V)
        log_p = log_softmax(scores)
        if no_repeat_ngram is not None:
            _forbid_repeats(log_p, live.words[:, :t], no_repeat_ngram)
        rows, last, sums = _grow(log_p, live, found, t)
        before, live = live, _Live(live.image[rows], live.words[rows], sums)
        live.words[:, t] = last
        ends = last == end if end is not None else torch.zeros_like(last, dtype=torch.bool)
        if ends.any():
            found.add(live.take(ends), t + 1, ended=True)
        if found.any:
            going = ~(ends | found.settled(live.take(~ends), n_best)[live.image])
            rows, last, live = rows[going], last[going], live.take(going)
        state = _follow(state, rows, getattr(stepper, "constant", 0), before.image, live.image)
    found.add(live, max_length, ended=False)
    return found.best(n_best)


@dataclass
class _Live:
    """The hypotheses that go on, those of an image one after another, the likeliest first.

    Attributes:
        image: (r,) int64, whose each is, in order.
        words: (r, max_length) int64, as far as they have come.
        sums: (r,) float64, their log-probabilities.
    """

    image: Tensor
    words: Tensor
    sums: Tensor

    def take(self, rows: Tensor) -> _Live:
        """Those rows, by their numbers (m,) or as a mask (r,)."""
        return _Live(self.image[rows], self.words[rows], self.sums[rows])


class _Found:
    """The hypotheses that have their place for good: those that ended, and at the last those that were cut off."""

    def __init__(
        self, N: int, beam_size: int, max_length: int, null: int, length_penalty: LengthPenalty, device: torch.device
    ):
        self.beam_size, self.max_length, self.length_penalty = beam_size, max_length, length_penalty
        self.any = False
        self.counts = torch.zeros(N, dtype=torch.int64, device=device)
        self.words = torch.full((N, beam_size, max_length), null, device=device)
        self.sums = torch.full((N, beam_size), -math.inf, dtype=torch.float64, device=device)
        self.scores = self.sums.clone()
        self.lengths = torch.zeros((N, beam_size), dtype=torch.int64, device=device)
        self.ended = torch.zeros((N, beam_size), dtype=torch.bool, device=device)

    def add(self, those: _Live, length: int, *, ended: bool) -> None:
        """Give each its place."""
        images, counts, _, rank = _groups(those.image)
        places = those.image, self.counts[those.image] + rank
        self.words[places] = those.words
        self.sums[places] = those.sums
        self.scores[places] = those.sums / _penalty(length, self.length_penalty)
        self.lengths[places] = length
        self.ended[places] = ended
        self.counts[images] += counts
        self.any = True

    def settled(self, live: _Live, n_best: int) -> Tensor:
        """(N,) boolean: no live hypothesis can come to a better score than the n_best best of its image.

        A hypothesis loses log-probability with every word and may be divided by at most the penalty of max_length.
        """
        if n_best == self.beam_size:  # then every live hypothesis is among the best
            return torch.zeros_like(self.counts, dtype=torch.bool)
        best = torch.full_like(self.scores[:, 0], -math.inf).scatter_reduce_(0, live.image, live.sums, "amax")
        return self.scores.topk(n_best).values[:, -1] >= best / _penalty(self.max_length, self.length_penalty)

    def best(self, n_best: int) -> Beams:
        """The n_best of each image in order."""
        order = self.scores.argsort(dim=1, descending=True, stable=True)[:, :n_best]
        words = self.words.gather(1, order.unsqueeze(2).expand(-1, -1, self.max_length))
        rest = (part.gather(1, order) for part in (self.sums, self.scores, self.lengths, self.ended))
        return Beams(words, *rest)


def _grow(log_p: Tensor, live: _Live, found: _Found, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations: for each image as many as it has free places, if there are so many.

    Returns:
        rows (m,): which of the live hypotheses each continues; words (m,): by which word; sums (m,) float64.
    """
    images, counts, group, rank = _groups(live.image)
    free = found.beam_size - found.counts[images]  # (n,)
    K = min(int(free.max()), log_p.shape[1])  # of no hypothesis more than its image has places
    words, gained = best_words(log_p, K)  # (r, K)
    sums = log_p.new_full((len(images), int(counts.max()), K), -math.inf, dtype=torch.float64)
    sums[group, rank] = live.sums.unsqueeze(1) + gained
    sums, order = sums.flatten(1).sort(dim=1, descending=True, stable=True)
    sums, order = sums[:, : found.beam_size], order[:, : found.beam_size]
    best = sums[:, 0]  # NaN, if there is one
    # An image that has found something may have nothing to go on with.
    check_choice(best.masked_fill((best == -math.inf) & (free < found.beam_size), 0) if found.any else best, images, t)
    kept = (torch.arange(sums.shape[1], device=sums.device) < free.unsqueeze(1)) & (sums > -math.inf)
    group, chosen = kept.nonzero(as_tuple=True)[0], order[kept]
    rows = (counts.cumsum(0) - counts)[group] + chosen // K
    return rows, words[rows, chosen % K], sums[kept]


def _forbid_repeats(log_p: Tensor, words: Tensor, n: int) -> None:
    """-inf in log_p (r, V) wherever a word would complete n words that the hypothesis (r, t) has already."""
    if words.shape[1] < n:
        return
    grams = words.unfold(1, n, 1)  # (r, t - n + 1, n)
    begun = words[:, words.shape[1] - n + 1 :].unsqueeze(1)  # (r, 1, n - 1), the last words
    rows, places = (grams[:, :, : n - 1] == begun).all(2).nonzero(as_tuple=True)
    log_p[rows, grams[rows, places, n - 1]] = -math.inf


def _follow(state: State, rows: Tensor, constant: int, before: Tensor, after: Tensor) -> State:
    """The state of those rows. Its last `constant` parts are alike for all rows of an image, and stay where every row
    belongs to the image that it belonged to."""
    stay = constant if torch.equal(before, after) else 0
    changing = len(state) - stay
    return (*select(state[:changing], rows), *state[changing:])


def _groups(image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of sorted (r,): the different ones (n,), how many there are of each (n,); which of them each is (r,), and its
    place among its equals (r,)."""
    images, group, counts = torch.unique_consecutive(image, return_inverse=True, return_counts=True)
    return images, counts, group, torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[group]


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
