"""Metrics of captions: BLEU-1 to 4, ROUGE-L, CIDEr and METEOR over pycocoevalcap, the code of the COCO challenge.

Only METEOR and COCO's own tokenizer, Stanford's PTB, need Java; `tokenize` is close to it for English. On the same
tokens scores equal pycocoevalcap's; other tokens may change the third digit, so compare scores of one tokenizer only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from torch_caption.data.tokenizer import TOKENIZERS
from torch_caption.errors import DataError
from torch_caption.metrics import java
from torch_caption.metrics.coco import BLEU, CIDER, ROUGE_L
from torch_caption.metrics.meteor import METEOR
from torch_caption.metrics.metric import Counted

METRICS = {"BLEU": BLEU, "METEOR": METEOR, "ROUGE-L": ROUGE_L, "CIDEr": CIDER}
"""The metrics, in the order in which their scores are printed."""
Image = TypeVar("Image")
PTB = "ptb"
"""The name of COCO's own tokenizer, besides those of `TOKENIZERS`."""


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
    _counted: tuple[Counted, ...]

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
    for what, names, known in (("metric", metrics, METRICS), ("tokenizer", [tokenizer], (*TOKENIZERS, PTB))):
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
    counted = tuple(METRICS[name].count(truths, guesses) for name in metrics)
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
