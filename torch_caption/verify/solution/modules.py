"""Modules of EECS 498: built at the sizes of a case, with the weights of a case, which are found by shape and name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .exercises import Case, Exercise

Roles = dict[str, tuple[str, Callable[[Tensor], Tensor]]]
"""The name of each of a module's weights, with that in the case and the change from the one to the other."""


class Encoder(nn.Module):
    """Stands for the image encoder, whose weights are downloaded: the images of a case are features already."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.out_channels = 0

    def forward(self, images: Tensor) -> Tensor:
        return images

    extract_mobilenet_feature = forward


def build(kind: type, case: Case, words: Mapping[str, int], cell: str, null: int) -> Any:
    """A `CaptioningRNN` in float64, with `Encoder` in the place of its own."""
    D, W, H = (case.sizes[letter] for letter in "DWH")
    options = {"input_dim": D, "wordvec_dim": W, "hidden_dim": H, "cell_type": "attn" if cell == "attention" else cell}
    options |= {"ignore_index": null, "dtype": torch.float64, "image_encoder_pretrained": False}
    known = inspect.signature(kind).parameters
    home = sys.modules[kind.__module__]
    for name in ("ImageEncoder", "FeatureExtractor"):
        if hasattr(home, name):
            setattr(home, name, Encoder)
    module = kind(dict(words), **{name: value for name, value in options.items() if name in known})
    return module.double() if isinstance(module, nn.Module) else module


def images(kind: type, case: Case) -> Tensor:
    """The features of a case as the encoder returns them: a grid, of which the pooled features are the mean."""
    features: Tensor = case.inputs["features"]
    if features.dim() == 4 or hasattr(sys.modules[kind.__module__], "FeatureExtractor"):
        return features
    return features[:, :, None, None].expand(-1, -1, 4, 4)


def roles(module: nn.Module, exercise: Exercise, case: Case) -> Roles:
    """Which weight is which: by shape, as all sizes differ; where two have one shape, by name.

    Raises:
        LookupError: a weight of the module is none of the case's.
    """
    found: Roles = {}
    for own, parameter in module.named_parameters():
        last = own.rsplit(".", 1)[-1]
        fitting = [
            (name, change)
            for name in exercise.inputs
            if name[0] in "Wb"
            for change in (_same, _transposed)
            if change(case.inputs[name].reshape(_flat(case.inputs[name]))).shape == _flat(parameter)
        ]
        exact = [pair for pair in fitting if pair[0] == last]
        others = [pair for pair in fitting if pair[0] not in ("b", "Wh", "Wattn") or len(fitting) == 1]
        chosen = exact or others or fitting
        if not chosen:
            raise LookupError(
                f"{type(module).__name__} has the weight {own} {tuple(parameter.shape)}, which is unknown"
            )
        found[own] = chosen[0]
    return found


def put(module: nn.Module, exercise: Exercise, case: Case, inputs: Mapping[str, Tensor]) -> None:
    """Replace the weights of a module by those of the inputs, which keep their graph."""
    shapes = {own: parameter.shape for own, parameter in module.named_parameters()}
    for own, (name, change) in roles(module, exercise, case).items():
        owner, _, last = own.rpartition(".")
        holder = module.get_submodule(owner)
        delattr(holder, last)
        setattr(holder, last, change(inputs[name]).reshape(shapes[own]))


def _flat(x: Tensor) -> torch.Size:
    """The shape without the 1s of a 1 x 1 convolution."""
    return x.shape[:2] if x.dim() == 4 else x.shape


def _same(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return x.t()
