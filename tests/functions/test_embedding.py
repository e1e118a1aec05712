"""Word vectors."""

from __future__ import annotations

import torch

from torch_caption.functions import word_embedding


def test_repeated_words_add_up(randn):
    W = randn(3, 2)
    out = word_embedding(torch.tensor([[1, 1, 1], [1, 2, 1]]), W)
    (dW,) = torch.autograd.grad(out.sum(), W)
    assert dW.tolist() == [[0, 0], [5, 5], [1, 1]]


def test_gradient_of_each_caption_by_itself(randn):
    """Under vmap over words alone: what comes back is then the same for all of them, and has no axis of theirs."""
    W = randn(6, 4)
    words = torch.tensor([[0, 3, 3], [5, 3, 0]])

    def summed(W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return word_embedding(x[None], W).sum()

    each = torch.func.vmap(torch.func.grad(summed), in_dims=(None, 0))(W, words)
    assert each.tolist() == [[[w.tolist().count(v)] * 4 for v in range(6)] for w in words]
