"""Captions for the images of a split: features in, words and their log-probabilities out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_caption import decoding
from torch_caption.captioner import CaptioningRNN
from torch_caption.data.coco import Split
from torch_caption.vocabulary import Vocabulary


@dataclass(frozen=True)
class Caption:
    """A caption and the model's log-probability of it, <END> counted."""

    text: str
    log_prob: float


def describe(
    model: CaptioningRNN, split: Split, image_idxs: Iterable[int], *, max_length: int = 30, batch_size: int = 256
) -> dict[int, Caption]:
    """The greedy caption of each image, from its features alone."""
    captions: dict[int, Caption] = {}
    remaining = iter(image_idxs)
    while batch := list(islice(remaining, batch_size)):
        stepper = model.stepper(len(batch) * max_length)
        decoded = decoding.greedy(stepper, _features(model, split, batch), **_limits(model, max_length))
        captions |= zip(batch, _captions(split, decoded), strict=True)
    return captions


def draw(
    model: CaptioningRNN,
    split: Split,
    image_idxs: Iterable[int],
    *,
    samples: int = 1,
    max_length: int = 30,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> dict[int, list[Caption]]:
    """Captions of each image drawn at random, `samples` of them; they depend on the seed and on no other image."""
    captions = {}
    stepper = model.stepper(samples * max_length)  # prepared for one image, however many there are
    for idx in image_idxs:
        features = _features(model, split, [idx]).repeat_interleave(samples, 0)
        generator = torch.Generator(features.device).manual_seed(_mix(seed, split.name, idx))
        decoded = decoding.sample(
            stepper,
            features,
            **_limits(model, max_length),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
        )
        captions[idx] = _captions(split, decoded)
    return captions


def looked(model: CaptioningRNN, vocabulary: Vocabulary, features: Tensor, texts: Sequence[str]) -> list[np.ndarray]:
    """Where a model with attention looked for each word of each image's caption.

    Args:
        features: (N, D, a, a) or (N, D, L), what the captions were made from.
        texts: N captions, however they were chosen.

    Returns:
        for each caption weights (words, a, a) or (words, L), of sum 1 for each word.

    Raises:
        ValueError: the model's cell looks at no places.
    """
    ids = [torch.tensor(vocabulary.encode(text.split())[1:-1], dtype=torch.int64) for text in texts]
    words = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.null)
    weights = model.attention(features.to(model.W_proj), words.to(model.W_proj.device)).float().cpu().numpy()
    return [of_image[: len(row)] for of_image, row in zip(weights, ids, strict=True)]


def captioned_images(split: Split) -> list[int]:
    """The images that some caption of the split belongs to, in order."""
    return split.image_idxs.unique().tolist()


def some_images(split: Split, count: int, *, seed: int) -> list[int]:
    """At most `count` of the images that have a caption, chosen by the seed, in order."""
    images = captioned_images(split)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(images[place] for place in order[:count])


def _features(model: CaptioningRNN, split: Split, image_idxs: Sequence[int]) -> Tensor:
    return split.features_of(image_idxs).to(model.W_proj)


def _limits(model: CaptioningRNN, max_length: int) -> dict[str, Any]:
    return {"start": model.start, "end": model.end, "null": model.null, "max_length": max_length}


def _captions(split: Split, decoded: decoding.Decoded) -> list[Caption]:
    rows = zip(decoded.words.tolist(), decoded.log_probs.tolist(), strict=True)
    return [Caption(split.vocabulary.decode(words), log_prob) for words, log_prob in rows]


def _mix(*parts: object) -> int:
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
