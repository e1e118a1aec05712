"""METEOR 1.5 from the counts of its own Java program."""

from __future__ import annotations

import numpy as np

from torch_caption.metrics import java
from torch_caption.metrics.metric import Captions, Counted, Metric


def _meteor(references: Captions, candidates: Captions) -> Counted:
    counts = java.meteor_statistics([caption for (caption,) in candidates.values()], list(references.values()))
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0  # a caption that equals a reference is not fragmented

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        return {"METEOR": _meteor_of(times @ counts)}

    return Counted({"METEOR": float(_meteor_of(counts.sum(0)))}, {"METEOR": _meteor_of(counts)}, of)


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


METEOR = Metric(("METEOR",), _meteor, java=True)
