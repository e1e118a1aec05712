"""Check a data directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from torch_caption.data import dataset


@dataclass(frozen=True)
class Options:
    """Check all splits and kinds of features of a data directory in cs231n's layout, and print a summary."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Data directory."""


def main(args: Sequence[str], prog: str) -> None:
    options = tyro.cli(Options, args=args, prog=prog)
    print(dataset.summary(dataset.open_kinds(options.directory)))
