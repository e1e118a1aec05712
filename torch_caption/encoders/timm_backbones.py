"""timm's image models; the only importer of timm, which imports torchvision."""

from __future__ import annotations

import difflib
import math
from collections.abc import Container
from types import ModuleType

import torch
from torch import Tensor, nn

from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.torchvision_backbones import torchvision
from torch_caption.encoders.transform import Transform
from torch_caption.encoders.weights import Weights, values_sha256
from torch_caption.errors import EncoderError
from torch_caption.io.exits import one_line

PREFIX = "timm:"


class TimmBackbone(Backbone):
    """A model of timm: `timm:NAME`, or `timm:NAME.TAG` for one of several published weights.

    The vector is what the model classifies by, the grid its last feature map.

    Raises:
        EncoderError: timm is missing or fails, or has no such model.
    """

    vector, grid = "forward_head, pre_logits", "the last of forward_intermediates"

    def __init__(self, name: str) -> None:
        self.name = name
        self._own = name.removeprefix(PREFIX)
        timm = _timm()
        from timm.data import resolve_data_config

        if not timm.is_model(_architecture(self._own)):
            close = difflib.get_close_matches(self._own, timm.list_models(), 3)
            raise EncoderError(
                f"timm {timm.__version__} has no model {self._own!r}" + (f"; near: {', '.join(close)}" if close else "")
            )
        try:
            config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(self._own).to_dict())
        except RuntimeError as error:
            raise EncoderError(f"timm:{self._own!r}: {one_line(error)}") from None
        if config["crop_mode"] != "center":
            raise EncoderError(
                f"{name} takes pictures cropped by {config['crop_mode']!r}; only the centre is supported"
            )
        crop = config["input_size"][-1]
        self._transform = Transform(
            math.floor(crop / config["crop_pct"]),
            crop,
            tuple(config["mean"]),
            tuple(config["std"]),
            interpolation=config["interpolation"],
        )
        self._transform.check()

    def model(self) -> nn.Module:
        with torch.device("cpu"):
            model = _timm().create_model(self._own, num_classes=0).eval().float()
        if not hasattr(model, "forward_intermediates"):
            raise EncoderError(f"{self.name} has no feature maps (forward_intermediates); choose another model")
        return model

    def features(self, model: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        final, grids = model.forward_intermediates(pictures, indices=1, norm=True, output_fmt="NCHW")  # type: ignore[operator]
        return model.forward_head(final, pre_logits=True).float(), grids[-1].float()  # type: ignore[operator]

    def load_default(self, model: nn.Module, entry: str | None) -> Weights:
        """timm's weights, downloaded once from the model hub; the names in their file may differ from the model's."""
        published = entry or self._own
        if _architecture(published) != _architecture(self._own):
            raise EncoderError(f"{published!r} are not weights of {self.name}")
        try:
            whole = _timm().create_model(published, pretrained=True, num_classes=0)
            model.load_state_dict(whole.state_dict())
        except Exception as error:  # of timm, huggingface_hub, the connection and damaged files: not documented
            raise EncoderError(
                f"the weights of {self.name} were not loaded ({one_line(error)}); name a file with --weights"
            ) from error
        config = whole.pretrained_cfg
        return Weights(".".join(filter(None, (config["architecture"], config["tag"]))), values_sha256(model))

    def transform(self, entry: str | None) -> Transform:
        """timm's own for evaluation, from the configuration of the model."""
        return self._transform

    def unused(self) -> Container[str]:
        with torch.device("meta"):
            return _timm().create_model(self._own).state_dict()

    def versions(self) -> dict[str, str]:
        return super().versions() | {"timm": _timm().__version__}


def _architecture(name: str) -> str:
    """The name of a model without its tag."""
    return name.partition(".")[0]


def _timm() -> ModuleType:
    """timm, after torchvision, which it needs.

    Raises:
        EncoderError: one of them is not installed, or fails.
    """
    torchvision()
    try:
        import timm
    except ImportError as error:
        raise EncoderError(
            f"this encoder needs timm, which cannot be imported: {error}; python -m pip install timm"
        ) from None
    return timm
