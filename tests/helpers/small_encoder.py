"""A backbone of a few weights in place of resnet18: the same interface, a thousandth of the work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_caption.encoders import registry
from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.weights import Weights

CHANNELS = 24


class Patches(nn.Module):
    """The picture in 7 x 7 patches of one number a colour and corner, mixed into CHANNELS."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mix", torch.randn(12, CHANNELS, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        coarse = nn.functional.adaptive_avg_pool2d(x, 14)
        patches = nn.functional.pixel_unshuffle(coarse, 2)  # (N, 12, 7, 7)
        return torch.einsum("ncij,cf->nfij", patches, self.mix).relu() + 1


class Small(Backbone):
    name, vector, grid = "resnet18", "mean of the patches", "patches"

    def model(self) -> nn.Module:
        return Patches()

    def features(self, model: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        grids = model(pictures)
        return grids.mean((2, 3)), grids

    def load_default(self, model: nn.Module, entry: str | None) -> Weights:
        raise AssertionError("tests ask for random weights")


def install() -> None:
    registry.BACKBONES["resnet18"] = Small()
