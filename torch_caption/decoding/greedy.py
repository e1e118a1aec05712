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

Choose = Callable[[Tensor, np.ndarray], tuple[np.ndarray, np.ndarray]]
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
    return word_by_word(stepper, features, ids, options, argmax)


def argmax(log_p: Tensor, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index and the value, both (n,), of the largest entry of each row (n, V).

    Of equals it is the first; in a row with a NaN, the NaN. NumPy's argmax is 9 times as fast as torch's at n = 128.
    """
    if log_p.device.type != "cpu":
        values, indices = log_p.max(1)
        return indices.cpu().numpy(), values.cpu().numpy()
    x = log_p.numpy()
    chosen = x.argmax(1)
    return chosen, x[np.arange(len(x)), chosen]


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
    words, lengths = np.full((N, T), ids.null), np.full(N, T)
    rows = np.arange(N)  # (n,) the captions that have not ended
    last = np.full(N, ids.start)  # (n,) their last words
    gained: list[tuple[np.ndarray, np.ndarray]] = []  # of each step: captions, log-probabilities
    log_probs, filters = LogProbs(excluded(ids, options)), logit_filters(ids, options)
    state = stepper.begin(features)
    for t in range(T if N else 0):
        logits, state = stepper.step(torch.from_numpy(last).to(device), state)
        log_p = log_probs(logits)  # (n, V)
        before = words[:, :t] if len(rows) == N else words[rows, :t]
        for logit_filter in filters:
            logit_filter(log_p, before)
        last, values = choose(log_p, before)
        words[rows, t] = last
        gained.append((rows, values))
        if ids.end in last.tolist():
            lengths[rows[last == ids.end]] = t + 1
            going = (last != ids.end).nonzero()[0]
            if len(going) == 0:
                break
            rows, last = rows[going], last[going]
            state = select(state, torch.from_numpy(going).to(device))
    sums = np.zeros(N, dtype=gained[0][1].dtype if gained else np.float32)
    for rows, values in gained:
        sums[rows] += values
    if not (sums > -math.inf).all():  # NaN, or all words are excluded
        bad = ((t, rows[~(values > -math.inf)]) for t, (rows, values) in enumerate(gained))
        raise next(no_choice(int(those[0]) // copies, t) for t, those in bad if len(those))
    ended = words[np.arange(N), lengths - 1] == ids.end
    parts = words, sums, sums, lengths, ended
    return Decoded(*(torch.from_numpy(part.reshape(N // copies, copies, *part.shape[1:])).to(device) for part in parts))
