"""A small float64 captioner, features of its images and their captions."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_caption.data.vocabulary import SPECIAL
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.model.cells import CELLS

N, T, D, W, H = 4, 6, 7, 3, 5
GRID = 3, 2
WORDS = {word: k for k, word in enumerate([*SPECIAL, "a", "red", "ball", "here"])}
V = len(WORDS)
NULL, START, END = WORDS["<NULL>"], WORDS["<START>"], WORDS["<END>"]
CAPTIONS = torch.tensor(
    [
        [START, 4, 5, 6, END, NULL],
        [START, 6, END, NULL, NULL, NULL],
        [START, 4, 4, 4, 7, END],
        [START, END, NULL, NULL, NULL, NULL],
    ]
)


def pictures(cell_type: str, generator: torch.Generator) -> Tensor:
    """Features of N images, of spatial positions for the cell that attends to them."""
    places = GRID if CELLS[cell_type].attends else ()
    return torch.randn(N, D, *places, generator=generator, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(cell_type: str = "rnn", seed: int = 0, **options: object) -> CaptioningRNN:
    """A float64 model whose weights are not as small as at first, so that everything matters."""
    torch.manual_seed(seed)
    model = CaptioningRNN(WORDS, D, **{"wordvec_dim": W, "hidden_dim": H, "cell_type": cell_type} | options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) / p.shape[0] ** 0.5)
    return model
