"""What a metric is: scores of all images together, of each, and of any choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Captions = dict[int, list[str]]  # tokens joined by blanks, for pycocoevalcap


@dataclass(frozen=True)
class Metric:
    """An entry of `torch_caption.metrics.scores.METRICS`.

    Attributes:
        columns: the names of its scores.
        count: references and candidates, one of an image -> their scores.
        java: whether it needs Java.
    """

    columns: tuple[str, ...]
    count: Callable[[Captions, Captions], Counted]
    java: bool = False


@dataclass(frozen=True)
class Counted:
    """One metric of all images; `of` as in `Scores`."""

    overall: dict[str, float]
    each: dict[str, np.ndarray]
    of: Callable[[np.ndarray], dict[str, np.ndarray]]


def mean_over_images(name: str, overall: float, each: np.ndarray) -> Counted:
    """A metric that is the mean over the images."""

    def of(times: np.ndarray) -> dict[str, np.ndarray]:
        return {name: times @ each / times.sum(-1)}

    return Counted({name: overall}, {name: each}, of)
