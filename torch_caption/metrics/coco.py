"""BLEU, ROUGE-L and CIDEr by pycocoevalcap, the code of the COCO challenge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from torch_caption.metrics.metric import Captions, Counted, Metric, mean_over_images


def _bleu(references: Captions, candidates: Captions) -> Counted:
    scorer = BleuScorer(n=4)
    for key, (candidate,) in candidates.items():
        scorer += (candidate, references[key])
    overall, each = scorer.compute_score(option="closest")
    guessed = np.array([image["guess"] for image in scorer.ctest], dtype=np.float64)  # (N, 4) n-grams
    right = np.array([image["correct"] for image in scorer.ctest], dtype=np.float64)
    words = np.array([image["testlen"] for image in scorer.ctest], dtype=np.float64)
    wanted = np.array([_closest(image["reflen"], image["testlen"]) for image in scorer.ctest], dtype=np.float64)

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        # The small numbers are pycocoevalcap's: they avoid zero precision and length.
        precisions = (times @ right + 1e-15) / (times @ guessed + 1e-9)
        ratio = (times @ words + 1e-15) / (times @ wanted + 1e-9)
        brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
        means = np.cumprod(precisions, -1) ** (1 / np.arange(1, 5)) * brevity[..., None]
        return {name: means[..., k] for k, name in enumerate(BLEU.columns)}

    return Counted(
        dict(zip(BLEU.columns, overall, strict=True)), dict(zip(BLEU.columns, map(np.array, each), strict=True)), of
    )


def _closest(lengths: Sequence[int], length: int) -> int:
    """The length nearest to `length`, of equally near ones the shorter."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _rouge(references: Captions, candidates: Captions) -> Counted:
    _, scores = Rouge().compute_score(references, candidates)
    # In pycocoevalcap an empty caption equals an empty reference, and scores 1.
    has_words = [bool(candidate) for (candidate,) in candidates.values()]
    each = np.where(has_words, scores, 0.0)
    return mean_over_images("ROUGE-L", float(np.mean(each)), each)


def _cider(references: Captions, candidates: Captions) -> Counted:
    mean, each = Cider().compute_score(references, candidates)
    return mean_over_images("CIDEr", float(mean), each)


BLEU = Metric(tuple(f"BLEU-{n}" for n in range(1, 5)), _bleu)
ROUGE_L = Metric(("ROUGE-L",), _rouge)
CIDER = Metric(("CIDEr",), _cider)
