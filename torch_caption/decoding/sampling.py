"""Random sampling: temperature, top-k, top-p and min-p."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torch_caption.decoding.filters import LogProbs, sampling_filters
from torch_caption.decoding.greedy import word_by_word
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Decoded, Stepper, TokenIds


def random_sampling(
    stepper: Stepper,
    features: Tensor,
    ids: TokenIds,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Each next word is sampled from softmax(logits / temperature) over the words that the filters leave.

    All captions of a batch share one stream of random numbers, so a caption depends on its batch.

    Args: as `torch_caption.decoding.decode`.
    """

    filters = sampling_filters(options)

    def sample(log_probs: LogProbs, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_p = log_probs.rows
        logits = log_p.clone() if filters else log_p
        for logit_filter in filters:
            logit_filter(logits, words)
        p = torch.softmax(logits, 1).nan_to_num_(nan=1.0)  # in a row without a word to choose, any may be sampled
        index = torch.multinomial(p, 1, generator=generator)
        return index.squeeze(1).cpu().numpy(), log_p.gather(1, index).squeeze(1).cpu().numpy()

    return word_by_word(stepper, features, ids, options, sample, copies=options.samples)
