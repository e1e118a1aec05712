"""Arguments and results of decoding: steppers, the ids of special tokens, captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from torch_caption.errors import InputError

State = tuple[Tensor, ...]


class Stepper(Protocol):
    """A next-token model. Rows do not depend on each other.

    Attributes:
        constant: how many tensors at the end of its state belong to the image and never change, such as a grid of
            features. Beam search seldom copies them.
    """

    constant: int = 0

    def begin(self, features: Tensor) -> State:
        """features (N, ...) -> the state before the first word, tensors (N, ...)."""
        ...

    def step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """The last words (n,) int64 and the state -> the next words' logits (n, V) and the new state.

        It may overwrite its argument `state`, and the next step may overwrite the logits and the state that it returns.
        It must not read these logits again: decoding filters them in place.
        """
        ...


def select(state: State, rows: Tensor) -> State:
    """The state of the given rows (m,), integers, in this order, with repetitions; in new memory."""
    return tuple(part.index_select(0, rows) for part in state)


@dataclass(frozen=True)
class TokenIds:
    """The ids of the special tokens.

    Attributes:
        start, null: of <START> and <NULL>, which are excluded.
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
    """K captions of each image; from beam search the best first, of equal scores the one that ended first.

    Attributes:
        words: (N, K, max_length) int64, including <END> if it was reached, then <NULL>.
        log_probs: (N, K) floating-point, the sum of the model's log-probabilities of these words up to and including
            <END>; -inf if beam search found fewer than K captions of the image, whose words are then all <NULL>.
        scores: (N, K), in beam search log_probs over the length penalty, else log_probs.
        lengths: (N, K) int64, the number of words, including <END>; 0 if there is no caption.
        ended: (N, K) boolean: the caption reached its <END> and was not cut off at max_length.
    """

    words: Tensor
    log_probs: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor


def no_choice(row: int, t: int) -> InputError:
    """The error for a row without a word to choose."""
    return InputError(
        f"row {row} has no word to choose at step {t}: its logits are NaN or infinite, or every word is excluded"
    )
