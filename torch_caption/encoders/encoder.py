"""From photographs to features.

    encoder = build("efficientnet_lite2")
    batch = torch.stack([encoder.prepare(load_image("photo.jpg"))])
    encoder.encode(batch).vectors                        # (1, 1280)

The `recipe` of an encoder describes it in plain values: `from_recipe` builds the same encoder again if it finds weights
with the same SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from torch_caption.encoders.backbone import Backbone
from torch_caption.encoders.registry import backbone
from torch_caption.encoders.transform import CAFFE, IMAGENET, Transform
from torch_caption.encoders.weights import Weights, find, short, values_sha256
from torch_caption.errors import EncoderError
from torch_caption.io.exits import one_line

TRANSFORMS = ("auto", "imagenet", "caffe")


@dataclass(frozen=True)
class Encoded:
    """Features of a batch, float32 on the CPU: vectors (N, D), and optionally grids (N, F, a, a)."""

    vectors: Tensor
    grids: Tensor | None


class Encoder:
    """A backbone with its weights and its transform.

    Attributes:
        name: the backbone's.
        weights, transform: of the backbone.
        blank: the features of one black picture, for their shapes.

    Raises:
        EncoderError: the network does not take pictures of this transform, or computes non-finite features.
    """

    def __init__(
        self, backbone: Backbone, model: nn.Module, weights: Weights, transform: Transform, device: torch.device
    ) -> None:
        self.name = backbone.name
        self.weights = weights
        self.transform = transform
        self._backbone = backbone
        # In channels_last, convolutions are a third faster on a CPU.
        model = _fold(model.eval().requires_grad_(False))
        self._model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        side = transform.crop
        try:
            self.blank = self.encode(torch.zeros(1, 3, side, side, device="cpu", dtype=torch.float32))
        except (EncoderError, torch.OutOfMemoryError):
            raise
        except (AssertionError, RuntimeError, ValueError) as error:  # each library and network has its own
            raise EncoderError(
                f"{self.name} does not take pictures of {side} x {side} pixels: {one_line(error)}"
            ) from error

    @property
    def recipe(self) -> dict[str, Any]:
        """A description in plain values."""
        return _recipe(self._backbone, self.weights, self.transform)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that the features depend on."""
        return self._backbone.versions()

    def prepare(self, picture: Image.Image) -> Tensor:
        """The input of the network (3, h, w) float32, from a picture in RGB."""
        return self.transform(picture)

    @torch.inference_mode()
    def encode(self, pictures: Tensor, *, grids: bool = True) -> Encoded:
        """The features of prepared pictures (N, 3, h, w).

        Raises:
            EncoderError: a feature is non-finite, because of invalid weights.
        """
        x = pictures.to(self._device, memory_format=torch.channels_last)
        vector, grid = self._backbone.features(self._model, x)
        if not (vector.isfinite().all() and (not grids or grid.isfinite().all())):
            raise EncoderError(
                f"{self.name} with the weights {self.weights.name} computes non-finite features: "
                "the weights are invalid or incomplete; name others with --weights"
            )
        return Encoded(vector.cpu().contiguous(), grid.cpu().contiguous() if grids else None)


def _fold(model: nn.Module) -> nn.Module:
    """Fold each batch norm after a convolution into it, where both are neighbours in a Sequential. EfficientNet-Lite
    is then 1.3 times as fast."""
    for module in model.modules():
        pairs = pairwise([*module.named_children()]) if isinstance(module, nn.Sequential) else ()
        for (first, convolution), (second, norm) in pairs:
            if isinstance(convolution, nn.Conv2d) and type(norm) is nn.BatchNorm2d:  # a subclass may do more
                setattr(module, first, nn.utils.fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return model


def build(
    name: str,
    weights: str | Path = "default",
    *,
    transform: str = "auto",
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Encoder:
    """An encoder.

    Args:
        name: one of `registry.BACKBONES`, or timm:NAME.
        weights: "default", published ones: in an installed package, or downloaded once; "random", initialised by the
            seed; or a file with a state dict of the library's names. Weights of unused layers may be missing.
        transform: "auto" is that of published weights, identified by name or content, and the library's for others,
            for torchvision IMAGENET; "imagenet" is IMAGENET; "caffe" is the one of Caffe's VGG-16.

    Raises:
        EncoderError: there is no such encoder or file, or the weights do not fit or cannot be downloaded.
    """
    if transform not in TRANSFORMS:
        raise EncoderError(f"no transform {transform!r}; choose one of {', '.join(TRANSFORMS)}")
    chosen = {"imagenet": IMAGENET, "caffe": CAFFE}.get(transform)
    return _build(backbone(name), weights, chosen, torch.device(device), seed)


def _build(
    backbone: Backbone,
    weights: str | Path,
    transform: Transform | None,
    device: torch.device,
    seed: int = 0,
    entry: str | None = None,
    expected: Weights | None = None,
) -> Encoder:
    """As `build`; without `transform`, that of the weights. `entry` is the name of the default weights. Weights with
    another SHA-256 than `expected` are an EncoderError."""
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = backbone.model()
        label = Weights("random", values_sha256(model), seed=seed)
    elif weights == "default":
        model = backbone.model()
        label = backbone.load_default(model, entry)
    else:
        path = Path(weights)
        if not path.is_file():
            raise EncoderError(f"{path}: there is no such file of weights")
        model = backbone.model()
        label = backbone.load_file(model, path)
    # A file may have the values that were recorded without one.
    if expected and expected.sha256 not in (None, label.sha256) and expected.sha256 != values_sha256(model):
        raise EncoderError(
            f"{label.name if weights == 'default' else weights}: not the weights of the features: SHA-256 "
            f"{short(label.sha256)}, but those of {expected.name} have {short(expected.sha256)}"
        )
    published = label.name if label.path is None and label.name != "random" else None
    return Encoder(backbone, model, label, transform or backbone.transform(published), device)


def caffe_vgg16() -> dict[str, Any]:
    """The recipe of cs231n's own features: fc7 of Caffe's VGG-16, whose weights torchvision does not have."""
    return _recipe(backbone("vgg16"), Weights("VGG_ILSVRC_16_layers"), CAFFE)


def _recipe(backbone: Backbone, weights: Weights, transform: Transform) -> dict[str, Any]:
    return {
        "encoder": backbone.name,
        "layers": backbone.layers,
        "weights": asdict(weights),
        "transform": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(transform).items()},
    }


def from_recipe(
    recipe: Mapping[str, Any],
    *,
    weights: Path | None = None,
    near: Sequence[Path] = (),
    device: str | torch.device = "cpu",
) -> Encoder:
    """The encoder of a recipe, with the same weights: `weights`, or found by the recipe.

    Args:
        near: folders to search for the file of weights, after its previous path.

    Raises:
        EncoderError: the recipe is invalid, or the weights are not found or differ.
    """
    try:
        name, label = recipe["encoder"], Weights(**recipe["weights"])
        settings = dict(recipe["transform"])
        transform = Transform(**settings | {k: tuple(settings[k]) for k in ("mean", "std")})
        label.check()
        transform.check()
    except EncoderError as error:
        raise EncoderError(f"not a recipe of features: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"not a recipe of features: {type(error).__name__} {error}") from None
    own = backbone(name)
    if recipe.get("layers", own.layers) != own.layers:
        raise EncoderError(f"not a recipe of features: its layers of {name} are not those of this version")
    source: str | Path
    if weights is not None:
        source = weights
    elif label.name == "random":
        source = "random"
    elif label.path is None and label.sha256 is not None:
        source = "default"
    else:
        source = find(own.name, label, (*near, Path(), *own.folders()))
    return _build(own, source, transform, torch.device(device), label.seed or 0, label.name, label)
