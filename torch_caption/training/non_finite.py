"""A non-finite (NaN or Inf) loss, and the captions that cause it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_caption.model.captioner import CaptioningRNN
from torch_caption.training import distributed
from torch_caption.training.objectives import Objective, Targets

SHOWN = 8


@torch.no_grad()
def places(model: CaptioningRNN, features: Tensor, targets: Targets, amp: str) -> list[int]:
    """The places in a batch whose captions have a loss that is not finite when they are alone, without dropout."""
    model.eval()
    found = []
    for k in range(len(features)):
        given = {"read": targets.read, "weights": targets.weights}
        mine = {name: x[k : k + 1] for name, x in given.items() if x is not None}
        with torch.autocast(features.device.type, torch.bfloat16, enabled=amp == "bf16"):
            loss = model.forward(features[k : k + 1], targets.captions[k : k + 1], **mine)
        if not math.isfinite(float(loss)):
            found.append(k)
    return found


@torch.no_grad()
def scoreless(model: CaptioningRNN, features: Tensor) -> list[int]:
    """The places of images whose first word has scores that are not finite."""
    start = torch.full((len(features),), model.start or 0, device=features.device)
    scores, _ = model.step(start, model.begin(features))
    places: list[int] = (~scores.isfinite().all(1)).nonzero().flatten().tolist()
    return places


def batch(objective: Objective, rows: Sequence[int], found: Sequence[int]) -> str:
    """Which rows a batch had, and which of them have no finite loss alone.

    Args:
        rows: of the whole batch.
        found: this rank's `places`; its share is every K-th row of the batch. All ranks have to call it.
    """
    K = distributed.size()
    by_rank = enumerate(distributed.gathered(list(found)))
    alone = sorted(rank + K * place for rank, places in by_rank for place in places)
    said = f"the batch is {objective.named(rows)}"
    if not alone:
        return f"{said}, each of which alone has a finite loss"
    if len(alone) == len(rows):
        return f"{said}, none of which has a finite loss alone"
    shown = objective.named([rows[place] for place in alone[:SHOWN]], images=True)
    more = f" and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
    return f"{said}; alone without a finite loss: {shown}{more}"
