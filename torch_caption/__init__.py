"""Image captioning with recurrent networks whose every gradient is derived by hand.

    from torch_caption import load

    print(load("runs").caption("dog.jpg"))

The names in `_HOMES` are imported at their first use: `import torch_caption` alone does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch_caption import errors
from torch_caption.errors import *  # noqa: F403 - its __all__

if TYPE_CHECKING:
    from torch_caption import functions, layers
    from torch_caption.data.vocabulary import Vocabulary
    from torch_caption.decoding import DecodingOptions
    from torch_caption.inference.captions import Caption
    from torch_caption.inference.load import Captioner, caption, load
    from torch_caption.model.captioner import CaptioningRNN

__version__ = "0.1.0"
__all__ = [
    "Caption",
    "Captioner",
    "CaptioningRNN",
    "DecodingOptions",
    "Vocabulary",
    "caption",
    "functions",
    "layers",
    "load",
]
__all__ += errors.__all__

_HOMES = {
    "Caption": "torch_caption.inference.captions",
    "Captioner": "torch_caption.inference.load",
    "CaptioningRNN": "torch_caption.model.captioner",
    "DecodingOptions": "torch_caption.decoding",
    "Vocabulary": "torch_caption.data.vocabulary",
    "caption": "torch_caption.inference.load",
    "load": "torch_caption.inference.load",
}


def __getattr__(name: str) -> Any:
    if name in ("functions", "layers"):
        return import_module(f"torch_caption.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
