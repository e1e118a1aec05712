"""The explanation of a caption: the best captions with their probabilities, and the alternatives of each word."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torch_caption.data.tokenizer import readable
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.decoding import DecodingOptions
from torch_caption.encoders import extractor as recipes
from torch_caption.encoders.extractor import FeatureExtractor
from torch_caption.model.captioner import CaptioningRNN

BEST_FIVE = DecodingOptions(beam_size=5)
"""The five best captions of a beam search with five hypotheses."""


@dataclass(frozen=True)
class Guess:
    """A caption or a word with its probability under the model; that of a caption includes <END>."""

    text: str
    probability: float


@dataclass(frozen=True)
class Word:
    """A word of a caption; the last is <END>, unless the caption was cut off at its maximum length.

    Attributes:
        guess: the word itself, with its probability given the picture and the previous words.
        alternatives: the most probable words at this step in descending order, possibly including the word itself.
        attention: (a, b) attention weights of sum 1; None without attention.
    """

    guess: Guess
    alternatives: tuple[Guess, ...]
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Explanation:
    """Attributes:
    captions: in the order of decoding; from beam search by log-probability over the length penalty.
    words: of the first caption.
    """

    captions: tuple[Guess, ...]
    words: tuple[Word, ...]


@torch.no_grad()
def explain(
    model: CaptioningRNN,
    vocabulary: Vocabulary,
    features: Tensor,
    options: DecodingOptions = BEST_FIVE,
    alternatives: int = 5,
) -> Explanation:
    """The explanation of the captions of one picture.

    Args:
        model: in `eval()`.
        features: (D,), or a grid (D, a, b), of the picture.
        options: of decoding.
        alternatives: the number of words per step.

    Raises:
        ValueError: the features do not fit the model, or a number is out of range.
    """
    batch = features.unsqueeze(0).to(model.device, model.dtype)
    decoded = model.decode(batch, options)
    found = [k for k in range(decoded.words.shape[1]) if decoded.lengths[0, k] > 0]
    texts = [readable(vocabulary.decode(decoded.words[0, k].tolist())) for k in found]
    probabilities = [math.exp(decoded.log_probs[0, k]) for k in found]
    best = decoded.words[:, 0, : int(decoded.lengths[0, 0])]
    others = model.alternatives(batch, best, alternatives)
    attends = model.cell.attends and batch.dim() == 4
    weights = model.attention(batch, best)[0].double().cpu().numpy() if attends else None
    words = [
        Word(
            Guess(vocabulary.words[idx], math.exp(others.log_probs[0, t])),
            tuple(
                Guess(vocabulary.words[other], probability)
                for other, probability in zip(others.words[0, t].tolist(), others.probs[0, t].tolist(), strict=True)
                if probability > 0
            ),
            None if weights is None else weights[t],
        )
        for t, idx in enumerate(best[0].tolist())
    ]
    return Explanation(tuple(map(Guess, texts, probabilities)), tuple(words))


class Explainer:
    """A model with the recipe of its features.

    Args:
        model: in `eval()`.
        vocabulary: of the model.
        recipe: of the features of its training.
        extractor: of the recipe.
        options: of decoding.
    """

    def __init__(
        self,
        model: CaptioningRNN,
        vocabulary: Vocabulary,
        recipe: Mapping[str, Any],
        extractor: FeatureExtractor,
        options: DecodingOptions = BEST_FIVE,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self._recipe = recipe
        self._extractor = extractor
        self._options = options

    def __call__(self, picture: Image.Image) -> Explanation:
        """The explanation for an upright RGB picture."""
        features = self._extractor.make([self._extractor.prepare(picture)])[0]
        return explain(self.model, self.vocabulary, features, self._options)

    def visible(self, picture: Image.Image) -> Image.Image:
        """The part of the picture that the features and attention maps cover."""
        return recipes.visible(self._recipe, picture)
