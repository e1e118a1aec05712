"""CIDEr-D as a reward: of any captions at a time, against references that are counted once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

Image = TypeVar("Image", bound=Hashable)


def cider_weighs(references: Iterable[Sequence[Sequence[Hashable]]]) -> bool:
    """Whether any caption can have a CIDEr above 0, given the tokenized references of at least one image.

    The weight of an n-gram is log(images / images with it in a reference). For one image, and for images whose
    references have the same n-grams, all weights are 0, and so is CIDEr for every caption.
    """
    images = list(references)
    for n in range(1, 5):
        each = ({tuple(c[i : i + n]) for c in captions for i in range(len(c) - n + 1)} for captions in images)
        first = next(each)
        if any(grams != first for grams in each):
            return True
    return False


class CiderReward:
    """CIDEr-D of any number of captions at a time, against references that are counted once.

    Scores equal pycocoevalcap's `Cider` on the same tokens, with document frequencies from all references given here,
    for any number of captions: the reward of self-critical training (Rennie et al. 2017, "Self-Critical Sequence
    Training for Image Captioning").

        w(g, s)   = count of g in s * (log images - log max(1, images with g in a reference))    of an n-gram g
        sim_n     = sum_g min(w(g, c), w(g, r)) w(g, r) / (|w(., c)| |w(., r)|) * exp(-(l_c - l_r)^2 / (2 sigma^2))
        CIDEr-D   = 10 * mean over n = 1..4 and the references r of sim_n,    l the number of words

    Tokens may be words or ids, or any other hashable values. With <END> as the last token of references and captions,
    an incomplete caption ("a man on a") has a lower score.

    Args:
        references: image -> its references, each a sequence of tokens.
        sigma: of the Gaussian length penalty.

    Raises:
        ValueError: there are no references, or none for an image; a caption is a string and not tokens.
    """

    def __init__(self, references: Mapping[Image, Sequence[Sequence[Hashable]]], *, sigma: float = 6.0) -> None:
        if not references:
            raise ValueError("there are no references")
        bare = next((image for image, captions in references.items() if len(captions) == 0), None)
        if bare is not None:
            raise ValueError(f"image {bare!r} has no references")
        self._sigma = sigma
        self._row: dict[Hashable, int] = {image: row for row, image in enumerate(references)}
        self._ids: dict[Hashable, int] = {}
        self._references = np.fromiter(map(len, references.values()), np.int64, len(references))  # of each image
        captions = list(chain.from_iterable(references.values()))
        image = np.repeat(np.arange(len(references)), self._references)  # (R,)
        keys, owner, self._lengths = _laid_out(captions, self._ids)
        self._orders = []
        for _ in range(4):
            table, grams = np.unique(keys, return_inverse=True)
            self._orders.append(_Grams.count(table, grams, owner, image))
            keys, owner = _joined_pairs(grams, owner)

    def __call__(self, images: Sequence[Image], captions: Sequence[Sequence[Hashable]]) -> np.ndarray:
        """The CIDEr-D of each caption against all references of its image; images may repeat.

        Returns:
            (N,) float64, from 0 to 10.

        Raises:
            ValueError: the numbers of captions and images differ; an image has no references; a caption is a string.
        """
        if len(images) != len(captions):
            raise ValueError(f"there are {len(images)} images and {len(captions)} captions")
        missing = next((image for image in images if image not in self._row), None)
        if missing is not None:
            raise ValueError(f"image {missing!r} has no references")
        image = np.fromiter((self._row[image] for image in images), np.int64, len(images))
        keys, owner, lengths = _laid_out(captions, dict(self._ids))  # tokens that are not in references get numbers too
        scores = np.zeros(len(captions))
        for order in self._orders:
            grams = order.number(keys)
            caption, reference, cosine = order.compare(grams, owner, image)
            shift = lengths[caption] - self._lengths[reference]
            scores += np.bincount(caption, cosine * np.exp(-(shift**2) / (2 * self._sigma**2)), len(captions))
            keys, owner = _joined_pairs(grams, owner)
        return 10 * scores / (len(self._orders) * self._references[image])


_HALF = 32  # two numbers below 2^31 in one: the first << _HALF | the second


def _laid_out(
    captions: Sequence[Sequence[Hashable]], ids: dict[Hashable, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens concatenated, as numbers, with the caption of each; and the length of each caption.

    New tokens are added to `ids`.
    """
    text = next((caption for caption in captions if isinstance(caption, str)), None)
    if text is not None:
        raise ValueError(f"a caption is a sequence of tokens here, not the string {text!r}; split it")
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    tokens: Iterable[Hashable] = chain.from_iterable(captions)
    numbers = np.fromiter((ids.setdefault(token, len(ids)) for token in tokens), np.int64, int(lengths.sum()))
    return numbers, np.repeat(np.arange(len(captions)), lengths), lengths


def _joined_pairs(grams: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjacent n-grams of a caption form an n+1-gram: its two n-grams, and its caption."""
    same = owner[1:] == owner[:-1]
    return grams[:-1][same] << _HALF | grams[1:][same], owner[1:][same]


@dataclass(frozen=True)
class _Grams:
    """The references' n-grams of one n.

    Attributes:
        table: (G,) sorted keys of the n-grams; the number of an n-gram is its index.
        idf: (G + 1,) log images - log images that have it; the last is for n-grams that no reference has.
        keys: (E,) sorted: image << 32 | n-gram, for each distinct n-gram of each reference.
        references, weights: (E,) its reference, and w(g, r).
        norms: (R,) the norm of w(., r).
    """

    table: np.ndarray
    idf: np.ndarray
    keys: np.ndarray
    references: np.ndarray
    weights: np.ndarray
    norms: np.ndarray

    @classmethod
    def count(cls, table: np.ndarray, grams: np.ndarray, owner: np.ndarray, image: np.ndarray) -> _Grams:
        """The table for n-grams (n,) of references `owner` (n,), which belong to images (R,)."""
        frequency = np.bincount(np.unique(image[owner] << _HALF | grams) & (1 << _HALF) - 1, minlength=len(table))
        idf = np.log(image[-1] + 1) - np.log(np.append(frequency, 1))
        reference, gram, weights, norms = _vectors(grams, owner, idf, len(image))
        keys = image[reference] << _HALF | gram
        order = np.argsort(keys, kind="stable")
        return cls(table, idf, keys[order], reference[order], weights[order], norms)

    def number(self, keys: np.ndarray) -> np.ndarray:
        """The number of each n-gram (n,); those that no reference has get numbers from G."""
        found = np.searchsorted(self.table, keys)
        new = found == len(self.table)
        new[~new] = self.table[found[~new]] != keys[~new]
        found[new] = len(self.table) + np.unique(keys[new], return_inverse=True)[1]
        return found

    def compare(
        self, grams: np.ndarray, owner: np.ndarray, image: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Caption, reference and the term of their clipped cosine, for every common n-gram."""
        caption, gram, weight, norms = _vectors(grams, owner, self.idf, len(image))
        key = image[caption] << _HALF | gram
        first = np.searchsorted(self.keys, key, "left")
        times = np.searchsorted(self.keys, key, "right") - first
        pair = np.repeat(np.arange(len(key)), times)
        entry = np.arange(len(pair)) + np.repeat(first - (np.cumsum(times) - times), times)
        caption, reference, w = caption[pair], self.references[entry], self.weights[entry]
        length = norms[caption] * self.norms[reference]
        cosine = np.divide(np.minimum(weight[pair], w) * w, length, out=np.zeros(len(w)), where=length > 0)
        return caption, reference, cosine


def _vectors(
    grams: np.ndarray, owner: np.ndarray, idf: np.ndarray, owners: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The distinct n-grams of each owner: owner, n-gram, weight; and the norm of each owner's vector (owners,)."""
    cells, counts = np.unique(owner << _HALF | grams, return_counts=True)
    owner, gram = cells >> _HALF, cells & (1 << _HALF) - 1
    weights = counts * idf[np.minimum(gram, len(idf) - 1)]
    return owner, gram, weights, np.sqrt(np.bincount(owner, weights**2, owners))
