"""Galleries of pictures with captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch_caption import plots
from torch_caption.data.dataset import CocoData, Split
from torch_caption.data.tokenizer import readable
from torch_caption.plots import GalleryItem
from torch_caption.scenes import dataset as scenes


def draw_gallery(
    data: CocoData | None, split: Split, captions: Mapping[int, Sequence[str]], path: Path, *, references: bool = False
) -> bool:
    """Write the pictures, one for each caption, to a PNG file; False if the data has none of them.

    Args:
        data: of the split; None for photographs, whose captions are not evaluated.
    """
    pictures = {idx: split.picture(idx) for idx in captions}
    if not any(pictures.values()):
        return False
    shown = {idx: tuple(map(readable, split.references(idx))) if references else () for idx in captions}
    items = [
        GalleryItem(pictures[idx], readable(text), shown[idx], _right(data, split, idx, text))
        for idx, texts in captions.items()
        for text in texts
    ]
    plots.gallery(items, path)
    return True


def _right(data: CocoData | None, split: Split, idx: int, text: str) -> bool | None:
    """Whether the caption describes the scene correctly; None if the image is not a scene."""
    result = scenes.judge_split(data.directory, split.name, {idx: text}) if data else None
    return None if result is None else result.right == 1
