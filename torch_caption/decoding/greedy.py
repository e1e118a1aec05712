"""Greedy decoding, and the loop that chooses one word of each caption at every step.

A caption leaves the batch at its <END>, so finished captions cost nothing: n is N at first and shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from torch_caption.decoding.filters import LogProbs, excluded, logit_filters
from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import Decoded, Stepper, TokenIds, no_choice, select

Choose = Callable[[LogProbs, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Filtered log-probabilities (n, V) and the previous words (n, t) -> the chosen words (n,) int64 and their
log-probabilities (n,), on the host."""


def greedy_search(
    stepper: Stepper,
    features: Tensor,
    ids: TokenIds,
    options: DecodingOptions,
    generator: torch.Generator | None = None,
) -> Decoded:
    """The most probable next word at each step; of equally probable words the one with the smallest id.

    Args: as `torch_caption.decoding.decode`; nothing is random.
    """
    return word_by_word(stepper, features, ids, options, lambda log_probs, _: log_probs.argmax())


@torch.no_grad()
def word_by_word(
    stepper: Stepper, features: Tensor, ids: TokenIds, options: DecodingOptions, choose: Choose, copies: int = 1
) -> Decoded:
    """Captions whose words `choose` selects from filtered log-probabilities, `copies` of each image.

    Raises:
        InputError: at some step a row has no word to choose.
    """
    if copies > 1:
        features = features.repeat_interleave(copies, 0)
    N, T, device = len(features), options.length, features.device
    on_cpu = device.type == "cpu"

    def on_device(x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(x)
        return tensor if on_cpu else tensor.to(device)

    def of_images(x: np.ndarray) -> Tensor:
        return on_device(x.reshape(N // copies, copies, *x.shape[1:]))

    words, lengths, ended = np.full((N, T), ids.null), np.full(N, T), np.zeros(N, dtype=bool)
    rows = np.arange(N)  # (n,) the captions that have not ended
    last = torch.full((N,), ids.start, device=device)  # (n,) their last words
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of each: captions, log-probabilities
    log_probs, filters = LogProbs(excluded(ids, options)), logit_filters(ids, options)
    state = stepper.begin(features)
    for t in range(T if N else 0):
        logits, state = stepper.step(last, state)
        log_p = log_probs(logits)  # (n, V)
        before = words[:, :t] if len(rows) == N else words[rows, :t]
        for logit_filter in filters:
            logit_filter(log_p, before)
        chosen, values = choose(log_probs, before)
        words[rows, t] = chosen
        steps.append((rows, values))
        if ids.end in chosen.tolist():
            ends, going = rows[chosen == ids.end], (chosen != ids.end).nonzero()[0]
            lengths[ends], ended[ends] = t + 1, True
            if len(going) == 0:
                break
            rows, chosen = rows[going], chosen[going]
            state = select(state, on_device(going))
        last = on_device(chosen)
    sums = np.zeros(N, dtype=steps[0][1].dtype if steps else np.float32)
    for rows, values in steps:
        sums[rows] += values
    if not (sums > -math.inf).all():  # NaN, or all words are excluded
        bad = ((t, rows[~(values > -math.inf)]) for t, (rows, values) in enumerate(steps))
        raise next(no_choice(int(those[0]) // copies, t) for t, those in bad if len(those))
    total = of_images(sums)
    return Decoded(of_images(words), total, total, of_images(lengths), of_images(ended))
