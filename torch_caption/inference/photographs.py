"""New photographs, from files and URLs, as a split without captions, with features as in training."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from torch_caption.data.dataset import Split
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.encoders.extractor import FeatureExtractor
from torch_caption.encoders.stream import BATCH, stream
from torch_caption.errors import ImageError
from torch_caption.io.exits import is_interactive
from torch_caption.io.images import is_picture, is_url, load_image

SHOWN = 1024  # maximum side in pixels of a picture in a gallery


class Photographs(Split):
    """Photographs without reference captions.

    Args:
        vocabulary: of the model.
        features: (N, D) float32, or grids (N, D, a, a).
        sources: the file or URL of each.
        pictures: of each, for galleries; None if not needed.
    """

    def __init__(
        self, vocabulary: Vocabulary, features: Tensor, sources: Sequence[str], pictures: Sequence[Image.Image | None]
    ) -> None:
        nothing = torch.zeros(0, dtype=torch.int64, device="cpu")
        super().__init__(
            "photographs", vocabulary, nothing.view(0, 2), nothing, features, features.shape, names=sources
        )
        self._pictures = pictures

    def _rows(self, idx: Tensor) -> Tensor:
        assert isinstance(self._features, Tensor)
        return self._features.index_select(0, idx)

    def image_path(self, image_idx: int) -> Path | None:
        """The photograph's file; None for a URL."""
        source = self.image_name(image_idx)
        return None if source is None or is_url(source) else Path(source)

    def picture(self, image_idx: int) -> Path | Image.Image | None:
        """The photograph, upright and possibly reduced, if pictures were kept."""
        self._check_image(image_idx)
        return self._pictures[image_idx]


@dataclass(frozen=True)
class Folder:
    """The content of a folder.

    Attributes:
        pictures: the files that are pictures or have such a suffix, in natural order.
        others: the other files.
        folders: subfolders that were not searched.
    """

    path: Path
    pictures: list[str]
    others: list[str]
    folders: list[str]


def list_folder(folder: Path, *, recursive: bool = False) -> Folder:
    """The files of a folder, with `recursive` also of its subfolders, without hidden ones (names with a leading dot).

    Raises:
        OSError: the folder cannot be read.
    """
    pictures: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    for where, inside, names in os.walk(folder, onerror=_raise):
        inside[:] = sorted((name for name in inside if not name.startswith(".")), key=_natural)
        for name in sorted((name for name in names if not name.startswith(".")), key=_natural):
            path = Path(where) / name
            (pictures if is_picture(path) else others).append(str(path))
        if not recursive:
            folders = [str(Path(where) / name) for name in inside]
            break
    return Folder(folder, pictures, others, folders)


def _raise(error: OSError) -> None:
    raise error


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders img2 before img10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts] + [(-1, name)]


def read(
    sources: Sequence[str | Path | Image.Image],
    extractors: Sequence[FeatureExtractor],
    vocabulary: Vocabulary,
    *,
    allow_private: bool = False,
    keep: bool = False,
    failed: Callable[[str, ImageError], None],
    truncated: Callable[[str], object] | None = None,
) -> Photographs | None:
    """The photographs that can be read, with their features; None if there are none. `others` are those of the further
    extractors.

    Args:
        sources: files, http(s) URLs and Pillow images.
        extractors: of the model's recipe; of an ensemble, that of each member. A repeated one is used once.
        allow_private: as in `load_image`.
        keep: keep the pictures, for galleries.
        failed: called with the name and the error of each unreadable one.
        truncated: as in `load_image`.
    """
    distinct = [*dict.fromkeys(extractors)]

    def prepared(source: str | Path | Image.Image) -> tuple[list[Tensor], Image.Image | None]:
        picture = load_image(source, allow_private=allow_private, truncated=truncated)
        inputs = [extractor.prepare(picture) for extractor in distinct]
        if not keep:
            return inputs, None
        picture.thumbnail((SHOWN, SHOWN))
        return inputs, picture

    names = [
        f"image {number}" if isinstance(source, Image.Image) else str(source) for number, source in enumerate(sources)
    ]
    kept: list[str] = []
    pictures: list[Image.Image | None] = []
    features: dict[FeatureExtractor, list[Tensor]] = {extractor: [] for extractor in distinct}
    hidden = not is_interactive()
    with (
        tqdm(total=len(sources), desc="photographs", unit="photo", delay=1, leave=False, disable=hidden) as bar,
        closing(stream(sources, prepared, batch_size=BATCH)) as found,
    ):
        for batch in found:
            for index, error in batch.failed.items():
                failed(names[index], error)
            for position, extractor in enumerate(distinct if batch.read else ()):
                features[extractor].append(extractor.make([inputs[position] for inputs, _ in batch.read.values()]))
            kept += [names[index] for index in batch.read]
            pictures += [picture for _, picture in batch.read.values()]
            bar.update(batch.stop - bar.n)
    if not kept:
        return None
    splits = {e: Photographs(vocabulary, torch.cat(parts), kept, pictures) for e, parts in features.items()}
    first, *others = (splits[extractor] for extractor in extractors)
    first.others = others
    return first
