"""Generate the built-in scenes and list them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from torch_caption.data import hdf5
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.scenes.dataset import ensure, load
from torch_caption.scenes.phrases import CAPTIONS


@dataclass(frozen=True)
class Options:
    """Generate the built-in scenes, unless they exist, and list them."""

    out: Path | None = None
    """Parent folder; the default is the user's cache folder."""
    seed: int = 0
    """Random seed."""


def main(args: Sequence[str], prog: str) -> None:
    """Exits with status 2 if the folder cannot be created."""
    options = tyro.cli(Options, args=args, prog=prog)
    directory = ensure(options.out, seed=options.seed)
    splits = load(directory) or {}
    vocabulary = Vocabulary.load(directory / "coco2014_vocab.json")
    print(directory)
    print(", ".join(f"{split} {len(scenes):,}" for split, scenes in splits.items()), f"scenes; {len(vocabulary)} words")
    with hdf5.opened(directory / "coco2014_captions.h5") as file:
        for split in splits:
            captions = map(vocabulary.decode, file[f"{split}_captions"][:CAPTIONS])
            print(f"images/{split}_00000.png", *captions, sep="\n  ")
