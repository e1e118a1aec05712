"""What is computed: shapes, batches as COCO's are, and how much arithmetic a step takes at least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torch_caption.data.vocabulary import END, NULL, SPECIAL, START
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS

NULL_SHARE = 0.35  # of the positions that could hold a word, in COCO's captions as cs231n stores them
IDS = {name: SPECIAL.index(name) for name in (NULL, START, END)}


@dataclass(frozen=True)
class Shape:
    """Sizes of a training step: batch N, T words to predict, features F, word vector W, hidden H, vocabulary V."""

    name: str
    N: int
    T: int
    F: int
    W: int
    H: int
    V: int

    def __str__(self) -> str:
        return " ".join(f"{letter}={getattr(self, letter):,}" for letter in "NTFWHV")


SMALL = Shape("small", N=25, T=16, F=512, W=256, H=512, V=1004)
MEDIUM = Shape("medium", N=128, T=16, F=512, W=256, H=512, V=1004)
LARGE = Shape("large", N=128, T=20, F=2048, W=512, H=1024, V=10000)
TINY = Shape("tiny", N=4, T=6, F=5, W=7, H=9, V=21)
SHAPES = SMALL, MEDIUM, LARGE


@dataclass(frozen=True)
class Batch:
    """What a step learns from.

    Attributes:
        features: (N, F).
        captions: (N, T + 1) int64: <START>, words, <END>, <NULL>s.
        words: how many of the N T positions hold a word to predict, <END> counted.
        distinct: how many different words go in.
    """

    features: Tensor
    captions: Tensor
    words: int
    distinct: int

    def __str__(self) -> str:
        N, T = self.captions.shape[0], self.captions.shape[1] - 1
        empty = 1 - self.words / (N * T)
        return (
            f"{self.words:,} words in {N * T:,} positions, {100 * empty:.0f} % of them <NULL>; drawn by Zipf's law, "
            f"{self.distinct:,} distinct"
        )


def word_to_idx(V: int) -> dict[str, int]:
    """A vocabulary of V words, the special ones first."""
    words = [*SPECIAL, *(f"word{k}" for k in range(len(SPECIAL), V))]
    return {word: k for k, word in enumerate(words)}


def new_model(shape: Shape, cell: str, device: str = "cpu") -> CaptioningRNN:
    """The captioner of those sizes, its weights the same in every run."""
    torch.manual_seed(0)
    return CaptioningRNN(word_to_idx(shape.V), shape.F, shape.W, shape.H, cell).to(device)


def new_batch(shape: Shape, device: str = "cpu") -> Batch:
    """Random features and captions, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape.N, shape.F, generator=generator)
    captions = new_captions(shape.N, shape.T, shape.V, generator)
    words, distinct = int((captions[:, 1:] != IDS[NULL]).sum()), len(captions[:, :-1].unique())
    return Batch(features.to(device), captions.to(device), words, distinct)


def new_captions(N: int, T: int, V: int, generator: torch.Generator) -> Tensor:
    """Captions (N, T + 1), 35 % of whose T last columns are <NULL>; the word of rank k is drawn with chance ~ 1 / k."""
    ends = new_lengths(N, T, generator)  # where <END> stands
    chances = 1 / torch.arange(1, V - len(SPECIAL) + 1, dtype=torch.float64)
    drawn = torch.multinomial(chances, N * (T + 1), replacement=True, generator=generator)
    captions = drawn.reshape(N, T + 1) + len(SPECIAL)
    captions[:, 0] = IDS[START]
    captions[torch.arange(T + 1) > ends.unsqueeze(1)] = IDS[NULL]
    captions[torch.arange(N), ends] = IDS[END]
    return captions


def new_lengths(N: int, T: int, generator: torch.Generator) -> Tensor:
    """N lengths from 2 to T, normal with a deviation of 0.15 T, which together leave 35 % of N T out."""
    mean, least = (1 - NULL_SHARE) * T, min(2, T)
    lengths = (mean + 0.15 * T * torch.randn(N, generator=generator)).round().long().clamp(least, T)
    surplus = int(lengths.sum()) - max(N * least, round(mean * N))
    while surplus:
        step = 1 if surplus > 0 else -1
        may = (lengths > least if step > 0 else lengths < T).nonzero().squeeze(1)
        rows = may[torch.randperm(len(may), generator=generator)[: abs(surplus)]]
        lengths[rows] -= step
        surplus -= step * len(rows)
    return lengths


def layer_flops(cell: str, words: int, W: int, H: int) -> int:
    """Multiplications and additions of a recurrent layer, forward and backward, of `words` timesteps of all rows.

    x Wx is one product forward and two backward (dx and dWx), of 2 W G H each a word; prev_h Wh likewise, 2 H G H.
    """
    G = CELLS[cell].gates
    return 6 * words * (G * W * H + G * H * H)


def step_flops(shape: Shape, cell: str, words: int) -> int:
    """Those of a training step: the layer, the scores of every word, and the features' projection.

    The scores take 2 H V a word, forward once and backward twice. Nobody asks for the gradient of the features, so
    that their projection is computed once forward and once backward, 2 F H each an image.
    """
    return layer_flops(cell, words, shape.W, shape.H) + 6 * words * shape.H * shape.V + 4 * shape.N * shape.F * shape.H
