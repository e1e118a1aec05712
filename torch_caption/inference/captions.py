"""Captions of the images of a split, from their features, with log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from torch_caption.data.dataset import Split
from torch_caption.data.tokenizer import readable
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.decoding import DecodingOptions
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.ensemble import Ensemble

BATCH = {"greedy": 256, "beam": 64, "sampling": 1}
"""Images per batch. A sampled caption depends on its batch, so each image is its own batch."""


@dataclass(frozen=True)
class Caption:
    """A caption and its log-probability under the model, including <END>.

    Attributes:
        score: of beam search, the log-probability over the length penalty; else None.
        ended: it reached <END> and was not cut off at the maximum length.
    """

    text: str
    log_prob: float
    score: float | None = None
    ended: bool = True

    def __str__(self) -> str:
        return readable(self.text)


def caption_images(
    model: CaptioningRNN | Ensemble,
    split: Split,
    image_idxs: Iterable[int],
    options: DecodingOptions | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> dict[int, list[Caption]]:
    """The captions of images of a split.

    Args:
        options: see `DecodingOptions`; by default greedy.
        seed: of random sampling. The captions of an image do not depend on other images.
        batch_size: images per batch; by default as in `BATCH`.

    Returns:
        for each image its captions, best first: one in greedy decoding, `samples` in sampling, at most `n_best` in
        beam search.

    Raises:
        ValueError: as `CaptioningRNN.decode`.
    """
    options = options or DecodingOptions()
    captions: dict[int, list[Caption]] = {}
    remaining = iter(image_idxs)
    while batch := list(islice(remaining, batch_size or BATCH[options.resolve()])):
        found = _decode(model, split.vocabulary, split.features_of_each(batch), options, (seed, split.name, *batch))
        captions |= zip(batch, found, strict=True)
    return captions


def caption_features(
    model: CaptioningRNN | Ensemble,
    vocabulary: Vocabulary,
    features: Tensor,
    options: DecodingOptions,
    *,
    seed: int = 0,
) -> list[list[Caption]]:
    """The captions of each row of features (N, D) or (N, D, a, a), as `caption_images`."""
    batches = features.split(BATCH[options.resolve()])
    found = [_decode(model, vocabulary, [batch], options, (seed, row)) for row, batch in enumerate(batches)]
    return [captions for batch in found for captions in batch]


def _decode(
    model: CaptioningRNN | Ensemble,
    vocabulary: Vocabulary,
    features: Sequence[Tensor],
    options: DecodingOptions,
    seeds: Sequence[object],
) -> list[list[Caption]]:
    """The captions of each row of features: one tensor, or one for each member of an ensemble."""
    method = options.resolve()
    generator = torch.Generator(model.device).manual_seed(_mix(*seeds)) if method == "sampling" else None
    first, *others = features
    if isinstance(model, Ensemble):
        decoded = model.decode(features if others else first, options, generator)
    else:
        decoded = model.decode(first.to(model.device, model.dtype), options, generator)
    parts = (decoded.words, decoded.log_probs, decoded.scores, decoded.lengths, decoded.ended)
    return [
        [
            Caption(vocabulary.decode(words), log_prob, score if method == "beam" else None, ended)
            for words, log_prob, score, length, ended in zip(*of_image, strict=True)
            if length
        ]
        for of_image in zip(*(part.tolist() for part in parts), strict=True)
    ]


def attention_maps(
    model: CaptioningRNN, vocabulary: Vocabulary, features: Tensor, texts: Sequence[str]
) -> list[np.ndarray]:
    """The attention weights at each word of given captions.

    Args:
        features: (N, D, a, a) or (N, D, L) of the images.
        texts: N captions.

    Returns:
        for each caption weights (words, a, a) or (words, L), of sum 1 for each word.

    Raises:
        ValueError: the model has no attention.
    """
    ids = [torch.tensor(vocabulary.encode(text.split())[1:-1], dtype=torch.int64, device="cpu") for text in texts]
    words = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=model.null)
    weights = model.attention(features.to(model.device, model.dtype), words.to(model.device)).float().cpu().numpy()
    return [of_image[: len(row)] for of_image, row in zip(weights, ids, strict=True)]


def captioned_images(split: Split) -> list[int]:
    """The images with captions in the split, in order."""
    return split.image_idxs.unique().tolist()


def some_images(split: Split, count: int, *, seed: int) -> list[int]:
    """A random subset of at most `count` images with captions, by the seed, in order."""
    images = captioned_images(split)
    order = torch.randperm(len(images), generator=torch.Generator("cpu").manual_seed(seed), device="cpu").tolist()
    return sorted(images[index] for index in order[:count])


def _mix(*parts: object) -> int:
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
