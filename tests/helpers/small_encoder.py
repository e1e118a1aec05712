"""An encoder of a few weights in place of torchvision's: the same interface, a thousandth of the work."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_caption.encoders import torchvision_encoder as features
from torch_caption.encoders.torchvision_encoder import IMAGENET, Encoder, Weights

CHANNELS = 24


class Patches(nn.Module):
    """The picture in 7 x 7 patches of one number a colour and corner, mixed into CHANNELS."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(12, CHANNELS, generator=generator))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        coarse = nn.functional.adaptive_avg_pool2d(x, 14)
        patches = nn.functional.pixel_unshuffle(coarse, 2)  # (N, 12, 7, 7)
        return {"grid": torch.einsum("ncij,cf->nfij", patches, self.mix).relu() + 1}


def install() -> None:
    """Let `build` give it for resnet18 with random weights and its own transform."""
    build = features.build

    def small(name: str, weights: Any = "default", **options: Any) -> Encoder:
        if (name, weights, options.get("transform", "auto")) != ("resnet18", "random", "auto"):
            return build(name, weights, **options)
        return Encoder("resnet18", Patches(), Weights("random", "5" * 64), IMAGENET, torch.device("cpu"))

    features.build = small
