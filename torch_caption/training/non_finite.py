"""A non-finite (NaN or Inf) loss, and the captions that cause it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import distributed
from torch_caption.training.objectives import Objective, Targets

SHOWN = 8


@torch.no_grad()
def rows_of_captions(model: CaptioningRNN, targets: Targets, rows: int, amp: str) -> list[int]:
    """Of the `rows` of a batch those whose captions have a non-finite loss, without dropout."""
    model.eval()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=amp == "bf16"):
        losses = model.forward(targets.features, targets.captions, targets.inputs, targets.weights, reduction="none")
    found = (~losses.isfinite()).nonzero().flatten().tolist()
    return sorted({row * rows // len(losses) for row in found})  # a row of images may have several captions


@torch.no_grad()
def rows_of_images(model: CaptioningRNN, features: Tensor) -> list[int]:
    """The rows of images with non-finite logits of the first word."""
    start = torch.full((len(features),), model.start or 0, device=features.device)
    logits, _ = model.step(start, model.begin(features))
    rows: list[int] = (~logits.isfinite().all(1)).nonzero().flatten().tolist()
    return rows


def report(objective: Objective, rows: Sequence[int], found: Sequence[int]) -> str:
    """The rows of a batch, and those with a non-finite loss, for a message.

    Args:
        rows: of the whole batch.
        found: this rank's `rows_of_captions`; its share is every K-th row of the batch. All ranks must call it.
    """
    K = distributed.size()
    by_rank = enumerate(distributed.gathered(list(found)))
    alone = sorted(rank + K * index for rank, indices in by_rank for index in indices)
    batch = f"the batch is {objective.named(rows)}"
    if not alone:
        return f"{batch}; each row separately has a finite loss"
    if len(alone) == len(rows):
        return f"{batch}; all rows have a non-finite loss"
    shown = objective.named([rows[index] for index in alone[:SHOWN]], images=True)
    more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
    return f"{batch}; with a non-finite loss: {shown}{more}"
