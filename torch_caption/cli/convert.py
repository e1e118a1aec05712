"""A checkpoint written anew: one of version 1 with a checksum, or any one's weights as safetensors.

python -m torch_caption convert OLD.pt NEW.pt
python -m torch_caption convert best.pt best.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints.format import CheckpointError
from torch_caption.cli.sample import find_checkpoint


@dataclass(frozen=True)
class ConvertConfig:
    """Read a checkpoint, of version 1 too, check it, and write it anew: as a checkpoint, or its weights as
    safetensors."""

    source: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A checkpoint, a run's directory or a folder of runs."""
    target: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file to write: `*.safetensors`, or a checkpoint."""


def convert(config: ConvertConfig) -> None:
    """Read `source` and write `target`, all of it or nothing.

    Raises:
        CheckpointError: the source cannot be used, or is the target.
        OSError: the target cannot be written.
    """
    path = find_checkpoint(config.source)
    if config.target.exists():
        raise CheckpointError(f"{config.target}: is there already; name another file to write")
    saved = checkpoints.load(path, unsealed=True)
    write = checkpoints.save_weights if config.target.suffix == checkpoints.SAFETENSORS else checkpoints.save
    write(config.target, saved)
    numbers = sum(weight.numel() for weight in saved.weights.values())
    print(f"{path}: {numbers:,} weights, {len(saved.words):,} words; written to {config.target}")


def main(args: Sequence[str], prog: str) -> None:
    convert(tyro.cli(ConvertConfig, args=args, prog=prog))
