"""The decoding methods by name, and `decode`, which applies the one that the options select."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torch_caption.decoding.beam import beam_search
from torch_caption.decoding.greedy import greedy_search
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Decoded, Stepper, TokenIds
from torch_caption.decoding.sampling import random_sampling

Method = Callable[[Stepper, Tensor, TokenIds, DecodingOptions, torch.Generator | None], Decoded]
METHODS: dict[str, Method] = {"greedy": greedy_search, "beam": beam_search, "sampling": random_sampling}


def decode(
    stepper: Stepper,
    features: Tensor,
    ids: TokenIds,
    options: DecodingOptions | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Captions of images by the method of the options, by default greedy.

    Args:
        stepper: the model; put a module with dropout into `eval()` first.
        features: (N, ...) as in `stepper.begin`.
        ids: of the special tokens.
        options: see `DecodingOptions`.
        generator: for random sampling, on the device of the logits; by default torch's global one. The same
            `torch.Generator(device).manual_seed(seed)` gives the same captions on the same kind of device.

    Returns:
        K captions of each image: 1 in greedy decoding, `samples` in sampling, `n_best` in beam search.

    Raises:
        ConfigError: an option is out of its range or contradicts another.
        InputError: at some step a row has no word to choose: its logits are NaN or infinite, or every word is
            excluded.
    """
    options = options or DecodingOptions()
    return METHODS[options.resolve()](stepper, features, ids, options, generator)
