"""A data directory examined, and nothing else: `python -m torch_caption.data.check DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from torch_caption.data import coco
from torch_caption.ending import guarded


@dataclass(frozen=True)
class Options:
    """Check every split and every kind of features of a data directory in cs231n's layout, and print what it holds."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The directory to check."""


def main(args: Sequence[str] | None = None) -> int:
    """The command line. Exit status: as `guarded` says; 2 where the data is not sound."""
    return guarded(lambda: _check(tyro.cli(Options, args=args, prog="python -m torch_caption.data.check")))


def _check(options: Options) -> None:
    print(coco.summary(coco.open_kinds(options.directory)))


if __name__ == "__main__":
    sys.exit(main())
