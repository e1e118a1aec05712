"""Every encoder by its name, with the module that builds it.

Such a module has `build`, `from_recipe` and `versions` as `torchvision_encoder` has them. Its encoders have the
attributes `name`, `recipe` and `weights`, and the methods `prepare` and `encode` of `torchvision_encoder.Encoder`.
"""

from __future__ import annotations

from types import ModuleType

from torch_caption.encoders import torchvision_encoder

ENCODERS: dict[str, ModuleType] = dict.fromkeys(torchvision_encoder.BACKBONES, torchvision_encoder)
