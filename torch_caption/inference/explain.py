"""What a model says of one picture and how sure it is: its best captions, and of the first of them each word."""

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
"""The five best captions that a beam of five hypotheses finds."""


@dataclass(frozen=True)
class Guess:
    """A caption or a word, and how probable the model holds it: of a caption's words all together, <END> counted."""

    text: str
    probability: float


@dataclass(frozen=True)
class Word:
    """A word of a caption; the last is <END>, unless the caption was cut off at its greatest length.

    Attributes:
        guess: the word itself, its probability given the picture and the words before it.
        alternatives: the likeliest words in its place, the likeliest first, perhaps itself among them.
        attention: (a, b) weights of sum 1, where in the picture the model looked before it; None if it does not look.
    """

    guess: Guess
    alternatives: tuple[Guess, ...]
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Description:
    """Attributes:
    captions: in the order of decoding, of beam search by log-probability over the length penalty.
    words: of the first of them.
    """

    captions: tuple[Guess, ...]
    words: tuple[Word, ...]


@torch.no_grad()
def describe(
    model: CaptioningRNN,
    vocabulary: Vocabulary,
    features: Tensor,
    options: DecodingOptions = BEST_FIVE,
    alternatives: int = 5,
) -> Description:
    """The description of one picture.

    Args:
        model: in `eval()`.
        features: (D,), or a grid (D, a, b), of the picture.
        options: how its captions are chosen, and how many.
        alternatives: how many words in each place.

    Raises:
        ValueError: the features do not fit the model, or a number is out of its range.
    """
    batch = features.unsqueeze(0).to(model.device, model.dtype)
    decoded = model.decode(batch, options)
    found = [place for place in range(decoded.words.shape[1]) if decoded.lengths[0, place] > 0]
    texts = [readable(vocabulary.decode(decoded.words[0, place].tolist())) for place in found]
    probabilities = [math.exp(decoded.log_probs[0, place]) for place in found]
    best = decoded.words[:, 0, : int(decoded.lengths[0, 0])]
    others = model.alternatives(batch, best, alternatives)
    looked = model.attention(batch, best)[0].double().cpu().numpy() if model.cell.attends and batch.dim() == 4 else None
    words = [
        Word(
            Guess(vocabulary.words[idx], math.exp(others.log_probs[0, place])),
            tuple(
                Guess(vocabulary.words[other], probability)
                for other, probability in zip(
                    others.words[0, place].tolist(), others.probs[0, place].tolist(), strict=True
                )
                if probability > 0
            ),
            None if looked is None else looked[place],
        )
        for place, idx in enumerate(best[0].tolist())
    ]
    return Description(tuple(map(Guess, texts, probabilities)), tuple(words))


class Describer:
    """A model and the recipe that makes its features of a picture.

    Args:
        model: in `eval()`.
        vocabulary: the model's.
        recipe: of the features that the model was trained with.
        extractor: what carries it out.
        options: how captions are chosen.
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

    def __call__(self, picture: Image.Image) -> Description:
        """The description of an upright RGB picture."""
        features = self._extractor.make([self._extractor.prepare(picture)])[0]
        return describe(self.model, self.vocabulary, features, self._options)

    def seen(self, picture: Image.Image) -> Image.Image:
        """The part of the picture that the model sees, which attention is over."""
        return recipes.visible(self._recipe, picture)
