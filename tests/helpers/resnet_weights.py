"""Pictures, torchvision's own models, and files of their weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torch_caption.encoders.torchvision_backbones import torchvision


def plain_model(name: str, seed: int = 0) -> nn.Module:
    """torchvision's own model, initialised as by `build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchvision().models.get_model(name, weights=None).eval()


def picture(width: int = 300, height: int = 260, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save_weights(path: Path, change: Callable[[dict[str, Tensor]], object] | None = None, seed: int = 1) -> Path:
    state = plain_model("resnet18", seed).state_dict()
    changed = change(state) if change else None
    torch.save(state if changed is None else changed, path)
    return path


def whole_forward(name: str, model: nn.Module, x: Tensor) -> Tensor:
    """The vector by the model's own forward without its last layer."""
    if name == "vgg16":
        model.classifier = model.classifier[:5]
    else:
        *_, (head, _) = model.named_children()
        setattr(model, head, nn.Identity())
    with torch.inference_mode():
        return model(x)
