"""What an image model must provide to be an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container
from pathlib import Path

import PIL
import torch
from torch import Tensor, nn

from torch_caption.encoders import weights
from torch_caption.encoders.transform import IMAGENET, Transform
from torch_caption.encoders.weights import Weights


class Backbone(ABC):
    """An image model by its name. A library is imported when `model` needs it, not before.

    Attributes:
        name: of the model in its library.
        vector, grid: where in the model they are computed.
    """

    name: str
    vector: str
    grid: str

    @property
    def layers(self) -> dict[str, str]:
        """`vector` and `grid`, for a recipe."""
        return {"vector": self.vector, "grid": self.grid}

    @abstractmethod
    def model(self) -> nn.Module:
        """The used part of the model, with initial weights.

        Raises:
            EncoderError: its library is missing or fails.
        """

    @abstractmethod
    def features(self, model: nn.Module, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) and grids (N, F, a, a) of prepared pictures (N, 3, h, w)."""

    @abstractmethod
    def load_default(self, model: nn.Module, entry: str | None) -> Weights:
        """Load published weights.

        Args:
            entry: their name; None is the best.

        Raises:
            EncoderError: they are missing, and cannot be downloaded.
        """

    def load_file(self, model: nn.Module, path: Path) -> Weights:
        """Load a file of weights; errors as in `weights.load`."""
        sha256 = weights.file_sha256(path)
        weights.load(model, path, self.name, self.unused)
        published = self.published(sha256)
        return Weights(published or path.name, sha256, None if published else str(path.resolve()))

    def published(self, sha256: str) -> str | None:
        """The name of the published weights in a file with this SHA-256."""
        return None

    def transform(self, entry: str | None) -> Transform:
        """The preprocessing for published weights; for `None`, other weights."""
        return IMAGENET

    def unused(self) -> Container[str]:
        """The names of the whole model's weights, which a file may have."""
        return ()

    def folders(self) -> tuple[Path, ...]:
        """Where the library keeps files of weights."""
        return ()

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that features depend on."""
        return {"torch": torch.__version__, "pillow": PIL.__version__}
