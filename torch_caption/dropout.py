"""Dropout, at the cost of drawing few random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_caption.functions._common import untransformed


def dropout(x: Tensor, p: float) -> Tensor:
    """x (...) with a share p of its entries zeroed at random and the others divided by 1 - p (Srivastava et al. 2014).

    Its gradient is the product with the same zeros and quotients. On a processor the random numbers are most of
    dropout's cost, for one thread draws them, one an entry. Here an entry takes 16 bits, four entries a number, and p
    is rounded to a multiple of 2^-16.

    Args:
        x: floating-point, any shape.
        p: 0 <= p < 1.
    """
    kept = max(round((1 - p) * 2**16), 1)  # of 2^16
    if kept == 2**16:
        return x
    if x.device.type != "cpu" or not untransformed(x):
        return nn.functional.dropout(x, p)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: x.numel()].reshape(x.shape)  # from -2^15 to 2^15 - 1
    return x * (bits < kept - 2**15).to(x.dtype).mul_(2**16 / kept)


def feature_dropout(features: Tensor, p: float) -> Tensor:
    """Features (N, D), or (N, D, ...) of the places of a grid, a share p of their N D numbers zeroed as in `dropout`.

    A number is zeroed at all places of its grid at once (Tompson et al. 2015): the same number of the place beside it
    would tell most of it.
    """
    if features.dim() == 2:
        return dropout(features, p)
    kept = dropout(features.new_ones(features.shape[:2]), p)
    return features * kept.reshape(*kept.shape, *[1] * (features.dim() - 2))
