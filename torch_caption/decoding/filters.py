"""Logit filters: the words that each decoding step excludes, and rescaling, for all decoding methods.

A filter changes logits (n, V) in place; -inf excludes a word. Decoding passes log-probabilities, which are logits too;
`LogProbs` computes them. The options select the filters: `logit_filters` for all methods, `sampling_filters` for
sampling only.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torch_caption.decoding.options import DecodingOptions
from torch_caption.decoding.protocol import TokenIds
from torch_caption.errors import ConfigError


class LogitFilter(Protocol):
    """One rule of decoding."""

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        """Filter logits (n, V) in place, given the previous words (n, t)."""
        ...


class LogProbs:
    """From logits to log-probabilities, in memory that all steps share, with -inf for the excluded words.

    In a step of one caption each call of torch or NumPy takes 10 to 20 microseconds, so views are made once.

    Args:
        excluded: the ids of these words; ids outside the vocabulary are ignored.

    Attributes:
        rows: the log-probabilities (n, V) of the last step.
    """

    def __init__(self, excluded: Collection[int]):
        self._excluded = excluded
        self._memory = self.rows = torch.empty(0, 0, device="cpu")
        self._host: np.ndarray | None = None  # the rows on a CPU
        self._indices = np.arange(0)  # of the rows
        self._columns: list[Any] = []  # of the excluded words

    def __call__(self, logits: Tensor) -> Tensor:
        """log softmax (n, V) of logits (n, V), float32 for half precision; the next call may overwrite it."""
        if logits.shape[0] != len(self._indices):
            self._resize(logits)
        torch.log_softmax(logits, 1, dtype=self._memory.dtype, out=self.rows)
        for column in self._columns:
            column[:] = -math.inf
        return self.rows

    def argmax(self) -> tuple[np.ndarray, np.ndarray]:
        """The index and the value, both (n,), of the largest entry of each row; of equals the first, or a NaN.

        NumPy's argmax is 9 times as fast as torch's at n = 128.
        """
        if self._host is None:
            values, indices = self.rows.max(1)
            return indices.cpu().numpy(), values.cpu().numpy()
        indices = self._host.argmax(1)
        return indices, self._host[self._indices, indices]

    def _resize(self, logits: Tensor) -> None:
        n, V = logits.shape
        if n > len(self._memory):  # at the first step, when V, dtype and device are known
            self._memory = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
        self.rows, self._indices = self._memory[:n], np.arange(n)
        self._host = self.rows.numpy() if logits.is_cpu else None
        columns = self.rows if self._host is None else self._host
        self._columns = [columns[:, idx] for idx in self._excluded if 0 <= idx < V]


def logit_filters(ids: TokenIds, options: DecodingOptions) -> list[LogitFilter]:
    """The filters of all methods that the options select, in the order of application."""
    filters: list[LogitFilter] = []
    if options.no_repeat_ngram is not None:
        filters.append(NoRepeatNgram(options.no_repeat_ngram))
    if options.min_length and ids.end is not None:
        filters.append(MinLength(options.min_length, ids.end))
    return filters


def sampling_filters(options: DecodingOptions) -> list[LogitFilter]:
    """The filters of random sampling, applied after all others: temperature, top-k, top-p, min-p."""
    filters: list[LogitFilter] = []
    if options.temperature is not None and options.temperature != 1:
        filters.append(Temperature(options.temperature))
    if options.top_k is not None:
        filters.append(TopK(options.top_k))
    if options.top_p is not None and options.top_p < 1:
        filters.append(TopP(options.top_p))
    if options.min_p is not None:
        filters.append(MinP(options.min_p))
    return filters


def excluded(ids: TokenIds, options: DecodingOptions, name: str = "avoid") -> set[int]:
    """The ids that are never chosen: <START>, <NULL> unless it is the end, and the words that the options avoid.

    Args:
        name: the name of the option in the message.

    Raises:
        ConfigError: `options.avoid` names a word that `ids.words` lacks.
    """
    known = ids.words or {}
    unknown = [word for word in options.avoid if word not in known]
    if unknown:
        raise ConfigError(f"{name}: the vocabulary has no word {unknown[0]!r}")
    unk = {ids.unk} if options.no_unk and ids.unk is not None else set()
    return ({ids.start, ids.null} - {ids.end}) | unk | {known[word] for word in options.avoid}


class NoRepeatNgram:
    """Forbid repeated n-grams of size n."""

    def __init__(self, n: int):
        self._n = n

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        t, n = words.shape[1], self._n
        if t < n:
            return
        grams = np.lib.stride_tricks.sliding_window_view(words, n, axis=1)  # (r, t - n + 1, n)
        begun = words[:, None, t - n + 1 :]  # (r, 1, n - 1), the last words
        rows, positions = (grams[:, :, : n - 1] == begun).all(2).nonzero()
        ids = grams[rows, positions, n - 1]
        logits[torch.from_numpy(rows).to(logits.device), torch.from_numpy(ids).to(logits.device)] = -math.inf


class MinLength:
    """Forbid <END> before this number of words."""

    def __init__(self, length: int, end: int):
        self._length, self._end = length, end

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        if words.shape[1] < self._length and self._end < logits.shape[1]:
            logits[:, self._end] = -math.inf


class Temperature:
    """logits / temperature, for every temperature above 0."""

    def __init__(self, temperature: float):
        self._temperature = temperature

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        logits.sub_(logits.amax(1, keepdim=True))  # at most 0: no quotient overflows upwards
        logits.div_(max(self._temperature, torch.finfo(logits.dtype).tiny))


class TopK:
    """The k most probable words; of equals the smallest ids."""

    def __init__(self, k: int):
        self._k = k

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        logits.scatter_(1, _ranked(logits)[:, self._k :], -math.inf)


class TopP:
    """The nucleus: the smallest set of most probable words with total probability p."""

    def __init__(self, p: float):
        self._p = p

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        order = _ranked(logits)
        ranked = torch.softmax(logits, 1).gather(1, order)
        before = ranked.cumsum(1) - ranked  # of the more probable words: 0 for the first, which always stays
        outside = before >= self._p * ranked.sum(1, keepdim=True)
        logits.masked_fill_(torch.empty_like(outside).scatter_(1, order, outside), -math.inf)


class MinP:
    """The words with at least p times the probability of the most probable one."""

    def __init__(self, p: float):
        self._log_p = math.log(p)

    def __call__(self, logits: Tensor, words: np.ndarray) -> None:
        logits.masked_fill_(logits < logits.amax(1, keepdim=True) + self._log_p, -math.inf)


def _ranked(logits: Tensor) -> Tensor:
    """The ids (n, V) of each row in descending order of probability; of equals the smallest first."""
    return logits.argsort(dim=1, descending=True, stable=True)
