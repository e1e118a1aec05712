"""Decoding: from a next-token model to captions.

Nothing here knows a model. A stepper does two things, begins and steps, and any object that can is decoded:

    state         = stepper.begin(features)
    logits, state = stepper.step(words, state)      # words (n,) -> logits (n, V) of the words that follow

A state is a tuple of tensors with a row for each caption that it continues, so that rows can be taken from it: `select`
leaves some out, repeats them or reorders them. `DecodingOptions` choose one of the `METHODS` and the filters of logits
(`filters`) that all methods share.

A caption's log-probability is the model's own, sum_t log softmax(logits_t)[word_t] with <END> counted: it is taken from
the logits before any filter, so it does not depend on how a caption was found.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_caption.decoding.alternatives import Alternatives, alternatives
from torch_caption.decoding.beam import beam_search
from torch_caption.decoding.greedy import greedy_search
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Decoded, State, Stepper, TokenIds, select
from torch_caption.decoding.sampling import random_sampling

__all__ = [
    "METHODS",
    "Alternatives",
    "Decoded",
    "DecodingOptions",
    "State",
    "Stepper",
    "TokenIds",
    "alternatives",
    "beam_search",
    "decode",
    "greedy_search",
    "random_sampling",
    "select",
]

Method = Callable[[Stepper, Tensor, TokenIds, DecodingOptions, torch.Generator | None], Decoded]
METHODS: dict[str, Method] = {"greedy": greedy_search, "beam": beam_search, "sampling": random_sampling}


def decode(
    stepper: Stepper,
    features: Tensor,
    ids: TokenIds,
    options: DecodingOptions | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Captions of images by the method of the options, greedy without any.

    Args:
        stepper: the model; put a module with dropout into `eval()` first.
        features: (N, ...) whatever `stepper.begin` takes.
        ids: of the special tokens.
        options: see `DecodingOptions`.
        generator: of random sampling, on the device of the logits; torch's global one without it. The same
            `torch.Generator(device).manual_seed(seed)` gives the same captions on the same kind of device.

    Returns:
        K captions of each image: 1 of greedy decoding, `samples` of sampling, `n_best` of beam search.

    Raises:
        ValueError: an option is out of its range or contradicts another; or at some step a row has no word to choose
            (logits that are NaN or infinite, or every word is excluded).
    """
    options = options or DecodingOptions()
    return METHODS[options.resolve()](stepper, features, ids, options, generator)
