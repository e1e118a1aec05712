"""torchvision's image models; the only importer of torchvision."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.transform import IMAGENET, Transform
from torch_caption.encoders.weights import Weights, file_sha256
from torch_caption.errors import EncoderError
from torch_caption.io.exits import is_interactive, one_line

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionBackbone(Backbone):
    """A model of torchvision.

    Args:
        name: torchvision's.
        grid: the module whose output is the spatial grid (N, F, a, a), or, if `tokens`, the class token and the tokens
            of the a * a patches, (N, 1 + a * a, F).
        vector: the module whose output is the vector (N, D); None takes the grid's mean over its positions, or the
            class token.
        description: of the vector.
    """

    def __init__(
        self,
        name: str,
        grid: str,
        vector: str | None = None,
        tokens: bool = False,
        description: str = "mean over the positions of {grid}",
    ) -> None:
        self.name = name
        self.vector, self.grid = description.format(grid=grid), grid
        self._nodes = {grid: "grid"} | ({vector: "vector"} if vector else {})
        self._tokens = tokens

    def model(self) -> nn.Module:
        with torch.device("cpu"):
            model = self._whole().eval().float()
        extraction = torchvision().models.feature_extraction
        return extraction.create_feature_extractor(model, return_nodes=self._nodes, suppress_diff_warning=True)

    def _whole(self) -> nn.Module:
        return torchvision().models.get_model(self.name, weights=None)

    def features(self, model: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model(pictures)
        grid = outputs["grid"].float()
        if self._tokens:
            side = round((grid.shape[1] - 1) ** 0.5)
            return grid[:, 0], grid[:, 1:].mT.unflatten(2, (side, side))
        return outputs["vector"].float() if "vector" in outputs else grid.mean((2, 3)), grid

    def load_default(self, model: nn.Module, entry: str | None) -> Weights:
        return self.load_file(model, self._file(entry))

    def _file(self, entry: str | None) -> Path:
        """torchvision's weights in torch's cache, downloaded if missing."""
        found = self._entries().__members__.get(entry or "DEFAULT")
        if found is None:
            raise EncoderError(f"torchvision has no weights {entry} of {self.name}; name their file with --weights")
        path = _cache() / found.url.rpartition("/")[2]
        if not path.is_file():
            if path.parts[0] == "~":  # torch would create a folder of that name here
                raise EncoderError(
                    "there is no home folder for the weights; set TORCH_HOME, or name their file with --weights"
                )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(
                    found.url, str(path), hash_prefix=_prefix(found), progress=is_interactive()
                )
            except (OSError, RuntimeError) as error:  # RuntimeError: the content does not match the name
                reason = one_line(getattr(error, "reason", None) or error)
                raise EncoderError(
                    f"{found.url}: the weights of {self.name} were not downloaded ({reason}); copy the file to "
                    f"{path.parent} (TORCH_HOME names another folder), or name one with --weights"
                ) from None
        if not file_sha256(path).startswith(_prefix(found)):
            raise EncoderError(f"{path}: damaged, its SHA-256 does not match its name; remove it and run again")
        return path

    def published(self, sha256: str) -> str | None:
        return next((entry.name for entry in self._entries() if sha256.startswith(_prefix(entry))), None)

    def transform(self, entry: str | None) -> Transform:
        if entry is None:
            return IMAGENET
        own = self._entries()[entry].transforms()
        return Transform(
            own.resize_size[0],
            own.crop_size[0],
            tuple(own.mean),
            tuple(own.std),
            interpolation=own.interpolation.value,
            antialias=own.antialias,
        )

    def unused(self) -> Container[str]:
        with torch.device("meta"):
            return self._whole().state_dict()

    def folders(self) -> tuple[Path, ...]:
        return (_cache(),)

    def versions(self) -> dict[str, str]:
        return super().versions() | {"torchvision": torchvision().__version__}

    def _entries(self) -> Any:
        return torchvision().models.get_model_weights(self.name)


BACKBONES = (
    TorchvisionBackbone(
        "vgg16", "features", "classifier.4", description="classifier.4: fc7 after its ReLU, before dropout"
    ),
    TorchvisionBackbone("resnet18", "layer4"),
    TorchvisionBackbone("resnet50", "layer4"),
    TorchvisionBackbone("resnet101", "layer4"),
    TorchvisionBackbone("mobilenet_v2", "features"),
    TorchvisionBackbone("regnet_y_400mf", "trunk_output"),
    TorchvisionBackbone(
        "vit_b_16", "encoder", tokens=True, description="class token of {grid}, after its last layer norm"
    ),
)
"""cs231n's features are fc7 of Caffe's VGG-16, whose weights torchvision does not have."""


def _prefix(entry: Any) -> str:
    """The first 8 digits of the SHA-256; the name of the file ends in them."""
    return entry.url.rpartition("-")[2].removesuffix(".pth")


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def torchvision() -> ModuleType:
    """torchvision, without its compiled part.

    PyPI's build beside a CPU build of torch cannot load that part, and fails where it registers the operator `nms` in
    Python. A declaration of the operator, which is never called, avoids this.

    Raises:
        EncoderError: it is not installed, or fails in another way.
    """
    try:
        import torchvision
    except ImportError as error:
        raise EncoderError(f"this encoder needs torchvision, which cannot be imported: {error}; {_remedy()}") from None
    except RuntimeError as error:
        if str(error) != "operator torchvision::nms does not exist":
            raise EncoderError(
                f"this encoder needs torchvision, and importing it fails: {one_line(error)}; {_remedy()}"
            ) from error
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", _NMS)
        import torchvision
    import torchvision.models.feature_extraction  # not loaded by itself

    return torchvision


def _remedy() -> str:
    return f"install the torchvision of torch {torch.__version__}; `prepare --encoder efficientnet_lite2` needs none"
