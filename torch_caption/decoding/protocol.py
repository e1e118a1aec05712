"""What decoding takes and what it returns: steppers, the ids of special tokens, captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from torch_caption.errors import InputError

State = tuple[Tensor, ...]


class Stepper(Protocol):
    """A next-token model. Rows are computed side by side, and none depends on another.

    Attributes:
        constant: how many parts at the end of its state belong to the image and stay as `begin` made them, such as a
            grid of features. Beam search seldom copies them.
    """

    constant: int = 0

    def begin(self, features: Tensor) -> State:
        """features (N, ...) -> the state before the first word, tensors (N, ...)."""
        ...

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """The last words (n,) int64 and the state -> the next words' logits (n, V) and the new state.

        It may write over the state that it is given, and the next step over the logits and the state that it returns.
        It does not read those logits again: decoding filters them in place.
        """
        ...


def select(state: State, rows: Tensor) -> State:
    """The state of those rows (m,), integers, in that order and as often as each is named; in new memory."""
    return tuple(part.index_select(0, rows) for part in state)


@dataclass(frozen=True)
class TokenIds:
    """The ids of the tokens that decoding treats in their own way.

    Attributes:
        start, null: of <START> and <NULL>, which are never chosen.
        end: of <END>; without it (None) every caption has the maximum length.
        unk: of <UNK>, if there is one.
        words: the ids of the words that `DecodingOptions.avoid` may name.
    """

    start: int
    end: int | None
    null: int
    unk: int | None = None
    words: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Decoded:
    """K captions of each image, best first where they were searched for; of equal scores the one that ended first.

    Attributes:
        words: (N, K, max_length) int64, <END> included where it was reached, <NULL> after it.
        log_probs: (N, K) floating-point, the sum of the model's log-probabilities of those words up to and with <END>;
            -inf where beam search found fewer than K captions of the image, whose words are all <NULL>.
        scores: (N, K), what beam search orders by: log_probs over the length penalty. Without a search, log_probs.
        lengths: (N, K) int64, the number of words, <END> counted; 0 where there is no caption.
        ended: (N, K) boolean: the caption came to its <END>, and was not cut off at max_length.
    """

    words: Tensor
    log_probs: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor


def no_choice(row: int, t: int) -> InputError:
    """What is raised where a row has no word to choose."""
    return InputError(
        f"row {row} has no word to choose at step {t}: its logits are NaN or infinite, or every word is excluded"
    )
