"""From a model that scores the next word to whole captions: greedy choice and sampling.

Nothing here knows a model. A stepper does two things, begins and steps, and any object that can is decoded:

    state         = stepper.begin(features)
    scores, state = stepper.step(words, state)      # words (n,) -> scores (n, V) of the word that follows

A state is a tuple of tensors with a row each for the captions it continues, so that rows can be taken from it: `select`
leaves some out, repeats them or puts them in another order. Each caption leaves the batch at its own <END>, and only
those that go on cost anything: n is N at first and shrinks. <START> and <NULL> are never chosen. `beam` searches among
several captions of each image by the same protocol.
A caption's log-probability is the model's own, sum_t log softmax(scores_t)[word_t] with <END> counted: taken before
<START>, <NULL> and what else is not wanted are masked and before temperature, top-k and top-p, so it does not depend on
how a caption was found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Choose = Callable[[Tensor], Tensor]


class Stepper(Protocol):
    """What decoding asks of a model. Rows go side by side and no row may look at another.

    A stepper may say in an attribute `constant` how many parts at the end of its state belong to the image and stay as
    `begin` made them, a grid of features for example: beam search then copies them seldom.
    """

    def begin(self, features: Tensor) -> State:
        """features (N, ...) -> the state before the first word, tensors (N, ...)."""
        ...

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """The last words (n,) int64 and the state -> the next words' unnormalised scores (n, V) and the new state.

        It may write over the state that it is given, and the next step over the scores and the state that it returns:
        nobody looks at them any longer.
        """
        ...


def select(state: State, rows: Tensor) -> State:
    """The state of those rows (m,), integers, in that order and as often as each is named; in memory of its own."""
    return tuple(part.index_select(0, rows) for part in state)


@dataclass(frozen=True)
class Decoded:
    """Captions, one a row.

    Attributes:
        words: (N, max_length) int64, <END> included where it was reached, <NULL> after it.
        log_probs: (N,) the sum of the model's log-probabilities of those words up to and with <END>, in the scores'
            dtype (float32 for half precision).
    """

    words: Tensor
    log_probs: Tensor


def greedy(
    stepper: Stepper,
    features: Tensor,
    *,
    start: int,
    end: int | None,
    null: int,
    max_length: int = 30,
    avoid: Collection[int] = (),
) -> Decoded:
    """The likeliest next word, step after step; of equally likely words the one with the smallest id.

    Args:
        stepper: the model; put a module with dropout into `eval()` first.
        features: (N, ...) whatever `stepper.begin` takes.
        start, end, null: the ids of <START>, <END> and <NULL>; without an end (None) every row runs to `max_length`.
        max_length: the most words of a caption, <END> counted.
        avoid: ids of other words that are never chosen, that of <UNK> for example.

    Raises:
        ValueError: max_length < 1; or at some step a row has no word to choose (scores that are not numbers, or no word
            possible that may be chosen).
    """
    return _decode(stepper, features, likeliest, start=start, end=end, null=null, max_length=max_length, avoid=avoid)


def sample(
    stepper: Stepper,
    features: Tensor,
    *,
    start: int,
    end: int | None,
    null: int,
    max_length: int = 30,
    avoid: Collection[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Each next word drawn at random from softmax(scores / temperature), with the unlikely words left out on request.

    The order is: temperature, then `top_k`, then `top_p` of what remains. For several captions of one image repeat its
    features. The rows share one stream of random numbers, so a row's caption depends on the batch it is drawn in.

    Args:
        temperature: below 1 the likely words gain, towards 0 it becomes greedy; above 1 the unlikely ones do.
        top_k: only the k likeliest words; 1 is greedy.
        top_p: only the fewest likeliest words that have probability `top_p` together (the nucleus; Holtzman et al.
            2020, "The Curious Case of Neural Text Degeneration").
        generator: where the random numbers come from, on the scores' device; torch's global one without it. The same
            `torch.Generator(device).manual_seed(seed)` gives the same captions on the same kind of device.
        The others are as in `greedy`.

    Raises:
        ValueError: as `greedy`; or temperature <= 0 or not finite, top_k < 1, top_p outside (0, 1].
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number of at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")

    def draw(log_p: Tensor) -> Tensor:
        p = _tempered(log_p, temperature).nan_to_num_(nan=1.0)  # of a row that has no word to choose, any may be drawn
        if top_k is not None or (top_p is not None and top_p < 1):
            p = _truncated(p, log_p, top_k, top_p)
        return torch.multinomial(p, 1, generator=generator).squeeze(1)

    return _decode(stepper, features, draw, start=start, end=end, null=null, max_length=max_length, avoid=avoid)


def _tempered(log_p: Tensor, temperature: float) -> Tensor:
    """softmax(log_p / temperature), (N, V), for every temperature above 0."""
    below = log_p - log_p.amax(1, keepdim=True)  # at most 0: no quotient overflows upwards
    return torch.softmax(below / max(temperature, torch.finfo(log_p.dtype).tiny), 1)


def _truncated(p: Tensor, log_p: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """p (N, V) with zeros outside the top k words and the nucleus; not renormalised."""
    # Ranked by log_p, for a high temperature rounds neighbours in p together; stable: ties go as in argmax.
    words = log_p.argsort(dim=1, descending=True, stable=True)
    ranked = p.gather(1, words)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None and top_p < 1:
        before = ranked.cumsum(1) - ranked  # the mass of the likelier words: 0 for the first, which always stays
        ranked = ranked.masked_fill(before >= top_p * ranked.sum(1, keepdim=True), 0)
    return torch.zeros_like(p).scatter_(1, words, ranked)


def likeliest(log_p: Tensor) -> Tensor:
    """The place (n,) of the largest number of each row (n, V), the first of equals; of a NaN where there is one."""
    if log_p.device.type == "cpu":  # at n = 128 NumPy's argmax is 9 times as fast as torch's
        return torch.from_numpy(log_p.numpy().argmax(1))
    return log_p.argmax(1)


def best_words(log_p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest words of each row of log_p (n, V), the first of equals first, and their log-probabilities.

    Both are (n, k). `log_p` is written over: what was chosen is -inf.
    """
    words = log_p.new_empty((len(log_p), k), dtype=torch.int64)
    values = log_p.new_empty((len(log_p), k))
    rows = torch.arange(len(log_p), device=log_p.device)
    # For the k of a beam this is faster than topk, whose order of equals is nobody's; and faster again in NumPy.
    x, to, gained, at = (part.numpy() if part.device.type == "cpu" else part for part in (log_p, words, values, rows))
    for place in range(k):
        to[:, place] = chosen = x.argmax(1)
        gained[:, place] = x[at, chosen]
        x[at, chosen] = -math.inf
    return words, values


class LogProbs:
    """From scores to log-probabilities, with -inf for the words that are never chosen.

    Args:
        never: their ids; those outside of the vocabulary are nobody's.
    """

    def __init__(self, never: Collection[int]):
        self._never = never
        self._ids = self._memory = torch.empty(0, device="cpu")

    def __call__(self, scores: Tensor) -> Tensor:
        """log softmax (n, V) of scores (n, V), float32 for half precision; the next call may write over it."""
        n, V = scores.shape
        if n > len(self._memory):  # of the first step at the latest: V, dtype and device are then known
            self._memory = torch.empty_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
            ids = sorted(word for word in set(self._never) if 0 <= word < V)
            self._ids = torch.tensor(ids, dtype=torch.int64, device=scores.device)
        log_p = torch.log_softmax(scores, 1, dtype=self._memory.dtype, out=self._memory[:n])
        return log_p.index_fill_(1, self._ids, -math.inf)


def never_chosen(start: int, end: int | None, null: int, avoid: Collection[int]) -> set[int]:
    """The ids that no caption has: <START>, <NULL>, and what is to be avoided. The end is chosen though it were one."""
    return ({start, null} - {end}) | set(avoid)


@torch.no_grad()
def _decode(
    stepper: Stepper,
    features: Tensor,
    choose: Choose,
    *,
    start: int,
    end: int | None,
    null: int,
    max_length: int,
    avoid: Collection[int],
) -> Decoded:
    """`choose` takes the log-probabilities (n, V), -inf where a word is forbidden, to the chosen words (n,)."""
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, not {max_length}")
    N = features.shape[0]
    words = features.new_full((N, max_length), null, dtype=torch.int64)
    log_probs = torch.zeros(N, dtype=torch.float32, device=features.device)
    log_softmax = LogProbs(never_chosen(start, end, null, avoid))
    rows = torch.arange(N, device=features.device)  # (n,) the captions that have not ended
    last = torch.full_like(rows, start)  # (n,) their last words
    state = stepper.begin(features)
    for t in range(max_length):
        n = len(rows)
        if n == 0:
            break
        scores, state = stepper.step(last, state)  # (n, V)
        log_p = log_softmax(scores)
        log_probs = log_probs.to(log_p.dtype)  # which the first step decides
        last = choose(log_p)
        gained = log_p.gather(1, last[:, None]).squeeze(1)
        _check_choice(gained, rows, t)
        words[rows, t] = last
        log_probs.index_add_(0, rows, gained)
        if end is not None:
            going = (last != end).nonzero().squeeze(1)
            if len(going) < n:
                rows, last, state = rows[going], last[going], select(state, going)
    return Decoded(words, log_probs)


def _check_choice(gained: Tensor, rows: Tensor, t: int) -> None:
    """The chosen words' log-probabilities (n,) are numbers: where there was no word to choose, NaN or -inf was."""
    if not gained.amin().item() > -math.inf:  # not-greater also catches NaN
        raise no_choice(int(rows[~(gained > -math.inf)][0]), t)


def no_choice(row: int, t: int) -> ValueError:
    """What is raised where a row has no word to choose."""
    return ValueError(
        f"row {row} has no word to choose at step {t}: its scores are not numbers or leave none that may be chosen"
    )
