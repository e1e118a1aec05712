"""Whether a peer computes what we compute, before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from torch_caption.errors import RunFailure

# Relative to the greatest entry of our float32 tensor; tf32 rounds its factors to 11 bits, bfloat16 to 8.
TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}


class Disagreement(RunFailure):
    """A peer computes something else than ours."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max|found - expected| over max|expected|, or the difference itself where `expected` is zero throughout."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    scale = float(expected.abs().max())
    return float((found - expected).abs().max()) / (scale or 1.0)


def require(who: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare tensors by name.

    Raises:
        Disagreement: names `who`, the first tensor that differs, and by how much; one that is not a number differs.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise Disagreement(f"{who} has no {name}")
        error = relative_error(found[name], tensor)
        if not error <= tolerance:
            raise Disagreement(
                f"{who}: {name} differs from ours by {error:.1e} relative, and {tolerance:.0e} is allowed"
            )


def kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, which a later step does not write over."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
