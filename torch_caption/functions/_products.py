"""Which library multiplies matrices.

On a CPU torch has two that multiply float32: MKL, which it takes by default, and oneDNN, whose product is 1.04 to 1.3
times as fast on the shapes of a captioner. torch reaches oneDNN through a setting that allows it to compute in bfloat16
inside. It does so only where the processor multiplies matrices of bfloat16 in hardware (AMX); elsewhere it computes
in float32 as before. Which of the two it is, a product tells.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

_MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # the module makes its attributes itself


LARGE = 2**22
"""Multiplications in a product from which oneDNN is the faster: a call of it costs 20 microseconds more than MKL's."""


def products(rows: int, w: Tensor, fast: bool) -> AbstractContextManager[None]:
    """Within the block, products of float32 matrices on a CPU are oneDNN's, if those are as exact.

    Args:
        rows: of what is multiplied by w (D, H), which decides whether it pays.
        fast: False leaves all as it is.
    """
    if not fast or w.dtype != torch.float32 or w.device.type != "cpu" or rows * w.numel() < LARGE:
        return nullcontext()
    return _ONEDNN if _onednn_is_exact() else nullcontext()


class _OneDNN(AbstractContextManager):
    """The setting that sends products to oneDNN. It is the process's: the first thread to enter makes it, the last one
    to leave takes it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.before = "none"

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before = _MATMUL.fp32_precision
                _MATMUL.fp32_precision = "bf16"
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                _MATMUL.fp32_precision = self.before


_ONEDNN = _OneDNN()


@cache
def _onednn_is_exact() -> bool:
    """Whether oneDNN's products, the setting made, are of float32: bfloat16 inside would err a thousand times more."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = x.double() @ w.double()
    with _ONEDNN:
        error = (x @ w - exact).abs().max()
    return bool(error <= 4 * (x @ w - exact).abs().max())
