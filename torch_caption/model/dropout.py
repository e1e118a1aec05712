"""Dropout with one random number for four entries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_caption.functions._common import untransformed


def dropout(x: Tensor, p: float) -> Tensor:
    """x (...) with entries zeroed with probability p and the others divided by 1 - p (Srivastava et al. 2014).

    Its gradient is the product with the same factors. On a CPU the random numbers are most of dropout's cost: one
    thread generates them, one per entry. Here an entry takes 16 bits, so a number serves four entries, and p is rounded
    to a multiple of 2^-16.

    Args:
        x: floating-point, any shape.
        p: 0 <= p < 1.
    """
    kept = max(round((1 - p) * 2**16), 1)  # of 2^16
    if kept == 2**16:
        return x
    if x.device.type != "cpu" or not untransformed(x):
        return nn.functional.dropout(x, p)
    numbers = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: x.numel()].reshape(x.shape)  # from -2^15 to 2^15 - 1
    return x * (bits < kept - 2**15).to(x.dtype).mul_(2**16 / kept)
