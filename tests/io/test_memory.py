"""Too little memory is an OutOfMemory of one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torch_caption.errors import OutOfMemory, RunFailure
from torch_caption.io.exits import guarded
from torch_caption.io.memory import within_memory

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000 bytes. Error code 12 (Cannot allocate memory)\nframe #0"
)
ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 18.5 GiB is "
    "free. Process 7 has 60.0 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(ALLOCATOR), ": 4,000,000 bytes more were requested"),
        (torch.OutOfMemoryError(ON_A_GPU), " on the GPU: 20.00 GiB more were requested"),
        (torch.OutOfMemoryError("of a kind of its own"), ""),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), " on the GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), " on the GPU"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            ": 8 bytes more were requested",
        ),
        (RuntimeError("std::bad_alloc"), ""),
        (RuntimeError("Storage size calculation overflowed with sizes=[148, 9223372036854775807]"), ""),
        (np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype(float)), ": 7.28 TiB more were requested"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    ("smaller", "advice"),
    [
        ([], "use a machine with more"),
        (["--beam-size"], "make --beam-size smaller"),
        (["--a", "--b"], "make --a or --b smaller"),
        (["--a", "--b", "--c"], "make --a, --b or --c smaller"),
    ],
)
def test_too_little_memory_names_the_amount_and_the_flags(error, line, smaller, advice, capsys):
    def main() -> None:
        with within_memory(*smaller):
            raise error

    assert guarded(main) == 1
    assert capsys.readouterr().err == f"error: not enough memory{line}; {advice}\n"


@pytest.mark.parametrize("size", [2**48, 2**62, 10**30], ids=["2^48", "2^62", "10^30"])
@pytest.mark.parametrize("make", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_messages_of_torch_and_numpy_are_recognised(make, size, capsys):
    assert guarded(lambda: make((size,))) == 1
    assert capsys.readouterr().err.startswith("error: not enough memory")


def test_the_innermost_context_reports_what_is_kept():
    steps: list[int] = []

    def outer() -> None:
        with within_memory("--b"), within_memory("--a", kept=lambda: f"kept: {steps}"):
            steps.append(1)
            raise MemoryError

    with pytest.raises(OutOfMemory, match=r"^not enough memory; make --a smaller; kept: \[1\]$"):
        outer()
    for error in (RuntimeError("another"), OSError("another"), RunFailure("out of memory")):
        with pytest.raises(type(error), match=str(error)), within_memory("--b"):
            raise error
