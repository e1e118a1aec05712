"""Metrics of captions: BLEU-1 to 4, ROUGE-L, CIDEr and METEOR over pycocoevalcap, the code of the COCO challenge.

Only METEOR and COCO's own tokenizer, Stanford's PTB, need Java; `tokenize` is close to it for English. On the same
tokens scores equal pycocoevalcap's; other tokens may change the third digit, so compare scores of one tokenizer only.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from torch_caption.data.tokenizer import TOKENIZERS, tokenize  # noqa: F401 - tokenize is imported from here
from torch_caption.errors import DataError
from torch_caption.metrics import java

Image = TypeVar("Image")
PTB = "ptb"
"""The name of COCO's own tokenizer, besides those of `TOKENIZERS`."""
Captions = dict[int, list[str]]  # tokens joined by blanks, for pycocoevalcap


@dataclass(frozen=True)
class Scores(Generic[Image]):
    """Scores of captions: of the corpus, of each image, and of resampled images.

    Attributes:
        images: N, in the order of the candidates.
        overall: the name of each score -> its value over all images.
        each: the name -> (N,) float64, of each image. Overall ROUGE-L and CIDEr are means of these; overall BLEU and
            METEOR are computed from summed counts.
    """

    images: tuple[Image, ...]
    overall: dict[str, float]
    each: dict[str, np.ndarray]
    _counted: tuple[_Counted, ...]

    def of(self, times: np.ndarray) -> dict[str, np.ndarray]:
        """`overall` with the n-th image repeated `times[..., n]` times; CIDEr's n-gram weights do not change.

        Args:
            times: (..., N) numbers of at least 0, not all 0.

        Returns:
            the name -> (...,) float64.
        """
        return {name: values for counted in self._counted for name, values in counted.of(np.asarray(times)).items()}

    def interval(self, other: Scores[Image] | None = None, *, draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """The 95 % bootstrap interval (Efron 1979) of each score, or of its difference to the other's, self - other.

        N images are sampled with replacement `draws` times, the same ones for both; the interval contains the central
        95 % of the scores.

        Raises:
            ValueError: the other has different images or another order.
        """
        if other is not None and other.images != self.images:
            raise ValueError("two sets of captions can be compared only for the same images in the same order")
        N = len(self.images)
        random = np.random.default_rng(seed)
        samples: dict[str, list[float]] = {name: [] for name in self.overall if other is None or name in other.overall}
        for _ in range(draws):
            times = np.bincount(random.integers(N, size=N), minlength=N)
            mine, theirs = self.of(times), {} if other is None else other.of(times)
            for name, values in samples.items():
                values.append(float(mine[name] - theirs.get(name, 0.0)))
        return {name: Interval(*np.quantile(values, (0.025, 0.975)).tolist()) for name, values in samples.items()}


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


def score(
    candidates: Mapping[Image, str],
    references: Mapping[Image, Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "CIDEr"),
    tokenizer: str = "words",
) -> dict[str, float]:
    """Score one caption per image against all reference captions of the image.

    Args:
        candidates: image -> its caption. <UNK> is an ordinary word, so it matches an <UNK> of a reference.
        references: image -> one or more reference captions; images without a candidate are ignored.
        metrics: of "BLEU" (corpus BLEU: n-grams and lengths are summed over all images, with the closest reference
            length), "ROUGE-L" and "CIDEr" (CIDEr-D with sigma 6; means over the images), and "METEOR" (1.5; needs
            Java, and some seconds).
        tokenizer: "words", "characters" or "whitespace" of `torch_caption.data.tokenizer`, or "ptb", the challenge's
            own tokenizer, which needs Java; for candidates and references.

    Returns:
        the requested ones of "BLEU-1" to "BLEU-4", "ROUGE-L", "CIDEr", "METEOR"; CIDEr from 0 to 10, the others from 0
        to 1. A caption without words scores 0. CIDEr weights an n-gram by the inverse number of scored images with it
        in a reference: for few images it is not meaningful, and for one image it is always 0.

    Raises:
        ValueError: no candidates; an image without references; a caption that is not a string; an unknown metric or
            tokenizer.
        DataError: no reference of an image has a word.
        ConfigError: Java is needed and not installed.
        RunFailure: Java failed.
    """
    return score_each(candidates, references, metrics, tokenizer).overall


def score_each(
    candidates: Mapping[Image, str],
    references: Mapping[Image, Sequence[str]],
    metrics: Sequence[str] = ("BLEU", "CIDEr"),
    tokenizer: str = "words",
) -> Scores[Image]:
    """As `score`, with the scores of each image."""
    for what, names, known in (("metric", metrics, _METRICS), ("tokenizer", [tokenizer], (*TOKENIZERS, PTB))):
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise ValueError(f"unknown {what} {unknown!r}; choose from {', '.join(known)}")
    if not candidates:
        raise ValueError("there are no candidate captions to score")
    for image, candidate in candidates.items():
        _check(image, candidate, references)
    captions = [text for image, candidate in candidates.items() for text in (candidate, *references[image])]
    parted = java.ptb_tokenize(captions) if tokenizer == PTB else map(TOKENIZERS[tokenizer], captions)
    joined = iter([" ".join(tokens) for tokens in parted])
    guesses, truths = {}, {}
    for key, image in enumerate(candidates):
        guesses[key] = [next(joined)]
        truths[key] = [next(joined) for _ in references[image]]
        if not any(truths[key]):
            raise DataError(f"no reference of image {image!r} has a word: {list(references[image])}")
    counted = tuple(_METRICS[name](truths, guesses) for name in metrics)
    overall = {name: value for part in counted for name, value in part.overall.items()}
    each = {name: values for part in counted for name, values in part.each.items()}
    return Scores(tuple(candidates), overall, each, counted)


def _check(image: Image, candidate: object, references: Mapping[Image, Sequence[str]]) -> None:
    captions = references.get(image, ())
    if not isinstance(candidate, str):
        raise ValueError(f"the candidate caption of image {image!r} is {candidate!r}, not a string")
    if isinstance(captions, str):
        raise ValueError(f"the references of image {image!r} are one string, {captions!r}, not a list of captions")
    if not captions:
        raise ValueError(f"image {image!r} has a candidate caption, but no references")
    for row, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"reference {row} of image {image!r} is {caption!r}, not a string")


@dataclass(frozen=True)
class _Counted:
    """One metric of all images; `of` as in `Scores`."""

    overall: dict[str, float]
    each: dict[str, np.ndarray]
    of: Callable[[np.ndarray], dict[str, np.ndarray]]


def _mean(name: str, overall: float, each: np.ndarray) -> _Counted:
    """A metric that is the mean over the images."""

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        return {name: times @ each / times.sum(-1)}

    return _Counted({name: overall}, {name: each}, of)


def _bleu(references: Captions, candidates: Captions) -> _Counted:
    scorer = BleuScorer(n=4)
    for key, (candidate,) in candidates.items():
        scorer += (candidate, references[key])
    overall, each = scorer.compute_score(option="closest")
    guessed = np.array([image["guess"] for image in scorer.ctest], dtype=np.float64)  # (N, 4) n-grams
    right = np.array([image["correct"] for image in scorer.ctest], dtype=np.float64)
    words = np.array([image["testlen"] for image in scorer.ctest], dtype=np.float64)
    wanted = np.array([_closest(image["reflen"], image["testlen"]) for image in scorer.ctest], dtype=np.float64)
    names = [f"BLEU-{n}" for n in range(1, 5)]

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        # The small numbers are pycocoevalcap's: they avoid zero precision and length.
        precisions = (times @ right + 1e-15) / (times @ guessed + 1e-9)
        ratio = (times @ words + 1e-15) / (times @ wanted + 1e-9)
        brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
        means = np.cumprod(precisions, -1) ** (1 / np.arange(1, 5)) * brevity[..., None]
        return {name: means[..., k] for k, name in enumerate(names)}

    return _Counted(dict(zip(names, overall, strict=True)), dict(zip(names, map(np.array, each), strict=True)), of)


def _closest(lengths: Sequence[int], length: int) -> int:
    """The length nearest to `length`, of equally near ones the shorter."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _rouge(references: Captions, candidates: Captions) -> _Counted:
    _, scores = Rouge().compute_score(references, candidates)
    # In pycocoevalcap an empty caption equals an empty reference, and scores 1.
    has_words = [bool(candidate) for (candidate,) in candidates.values()]
    each = np.where(has_words, scores, 0.0)
    return _mean("ROUGE-L", float(np.mean(each)), each)


def _cider(references: Captions, candidates: Captions) -> _Counted:
    mean, each = Cider().compute_score(references, candidates)
    return _mean("CIDEr", float(mean), each)


def _meteor(references: Captions, candidates: Captions) -> _Counted:
    counts = java.meteor_statistics([caption for (caption,) in candidates.values()], list(references.values()))
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0  # a caption that equals a reference is not fragmented

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        return {"METEOR": _meteor_of(times @ counts)}

    return _Counted({"METEOR": float(_meteor_of(counts.sum(0)))}, {"METEOR": _meteor_of(counts)}, of)


def _meteor_of(counts: np.ndarray) -> np.ndarray:
    """METEOR 1.5 of counts (..., 23), with its weights for English (Denkowski and Lavie 2014, "Meteor Universal").

    F = P R / (alpha P + (1 - alpha) R), times 1 - gamma (chunks / matched words)^beta; a content word has weight
    delta, a function word 1 - delta, a match by stem, synonym or paraphrase less than an exact one.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    content = counts[..., 0:2] - counts[..., 2:4]  # of candidate and reference, (..., 2)
    words = delta * content + (1 - delta) * counts[..., 2:4]
    matches = np.array([1.0, 0.6, 0.8, 0.6]) @ counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    matched = delta * matches[..., 0:2] + (1 - delta) * matches[..., 2:4]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / words, -1, 0)
        mean = 1 / ((1 - alpha) / precision + alpha / recall)
        pieces = counts[..., 20] / ((counts[..., 21] + counts[..., 22]) / 2)
    return np.nan_to_num(mean * (1 - gamma * pieces**beta))


_METRICS: dict[str, Callable[[Captions, Captions], _Counted]] = {
    "BLEU": _bleu,
    "ROUGE-L": _rouge,
    "CIDEr": _cider,
    "METEOR": _meteor,
}


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
