"""A data directory examined, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from torch_caption.data import dataset


@dataclass(frozen=True)
class Options:
    """Check every split and every kind of features of a data directory in cs231n's layout, and print what it holds."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The directory to check."""


def main(args: Sequence[str], prog: str) -> None:
    options = tyro.cli(Options, args=args, prog=prog)
    print(dataset.summary(dataset.open_kinds(options.directory)))
