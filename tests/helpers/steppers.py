"""Steppers whose captions are known, and captioners whose captions end at different steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from torch_caption.decoding import Decoded, DecodingOptions, Stepper, TokenIds, decode
from torch_caption.decoding.options import LengthPenalty
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS

NULL, START, END, A, B, C = range(6)
IDS = {"start": START, "end": END, "null": NULL}

# The next word's probability, row by the last word. After b the model likes <NULL> best, which may not be said.
#         NULL  START END   a     b     c
TABLE = [
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],  # after <NULL>: never seen by a caption
    [0.06, 0.04, 0.10, 0.50, 0.30, 0.00],  # after <START>
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],  # after <END>: never seen either
    [0.00, 0.05, 0.25, 0.10, 0.60, 0.00],  # after a
    [0.40, 0.00, 0.35, 0.15, 0.00, 0.10],  # after b
    [0.00, 0.00, 0.00, 0.00, 0.00, 1.00],  # after c: c for ever
]


class TableStepper(Stepper):
    """Scores are log TABLE[last word] plus the row's own features (N, 6); the state counts the steps."""

    def __init__(self, table: list[list[float]] = TABLE) -> None:
        self.scores = torch.tensor(table, dtype=torch.float64).log()
        self.steps = 0
        self.rows: list[int] = []  # that each step was given

    def begin(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, torch.zeros(len(features), dtype=torch.int64)

    def step(self, words: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features, count = state
        self.steps += 1
        self.rows.append(len(words))
        return self.scores[words] + features, (features, count + 1)


def decoded_by(
    method: str,
    stepper: Stepper,
    features: Tensor,
    *,
    start: int,
    end: int | None,
    null: int,
    avoid: Iterable[int] = (),
    generator: torch.Generator | None = None,
    **options: Any,
) -> Decoded:
    """Captions by a method; the ids of `avoid` are the words of that name."""
    ids = TokenIds(start, end, null, words={str(idx): idx for idx in avoid})
    return decode(stepper, features, ids, DecodingOptions(method, avoid=tuple(ids.words), **options), generator)


def beam_search(stepper: Stepper, features: Tensor, length_penalty: LengthPenalty = 0.0, **options: Any) -> Decoded:
    """By log-probability, unless there is a length penalty."""
    return decoded_by("beam", stepper, features, length_penalty=length_penalty, **options)


def greedy(stepper: Stepper, features: Tensor, **options: Any) -> Decoded:
    """With the one caption of each image: words (N, T), log_probs (N,)."""
    return first(decoded_by("greedy", stepper, features, **options))


def sample(stepper: Stepper, features: Tensor, **options: Any) -> Decoded:
    """One caption of each image, drawn at random."""
    return first(decoded_by("sampling", stepper, features, **options))


def first(decoded: Decoded) -> Decoded:
    """The first caption of each image."""
    return Decoded(*(part[:, 0] for part in vars(decoded).values()))


def rows(n: int) -> Tensor:
    return torch.zeros(n, 6, dtype=torch.float64)


def teacher_forced(stepper: Stepper, features: Tensor, words: Tensor, end: int) -> Tensor:
    """The log-probability of given words, computed the slow way: one row, one word at a time."""
    totals = []
    for row in range(len(words)):
        state, last, total = stepper.begin(features[row : row + 1]), START, 0.0
        for word in words[row].tolist():
            scores, state = stepper.step(torch.tensor([last]), state)
            total = total + torch.log_softmax(scores[0], 0)[word]
            last = word
            if word == end:
                break
        totals.append(total)
    return torch.stack(totals).detach()


def captioner(
    cell_type: str,
    V: int = 23,
    D: int = 5,
    W: int = 4,
    H: int = 6,
    dtype: torch.dtype = torch.float64,
    num_layers: int = 1,
) -> CaptioningRNN:
    """One whose captions end at different steps."""
    words = ["<NULL>", "<START>", "<END>", "<UNK>", *(f"w{k}" for k in range(4, V))]
    torch.manual_seed(1)
    word_to_idx = {word: k for k, word in enumerate(words)}
    model = CaptioningRNN(word_to_idx, D, W, H, cell_type, num_layers=num_layers).to(dtype)
    with torch.no_grad():
        model.W_embed.mul_(100)  # so that words matter
        model.W_vocab.mul_(6)
    return model


CAPTIONER_IDS = {"start": 1, "end": 2, "null": 0}


def images(cell_type: str, n: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Features of n images, of spatial positions for the cell that attends to them."""
    places = (3, 2) if CELLS[cell_type].attends else ()
    return torch.randn(n, 5, *places, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
