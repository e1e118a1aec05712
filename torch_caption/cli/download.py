"""Download cs231n's data and check it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from torch_caption.data.dataset import open_kinds, summary
from torch_caption.io import download


@dataclass(frozen=True)
class Options:
    """Download cs231n's data and check it."""

    directory: Annotated[Path, Positional, arg(metavar="DIR")]
    """Output directory. After an interruption the same command resumes."""
    url: str = download.ARCHIVE
    """URL of the archive."""


def main(args: Sequence[str], prog: str) -> None:
    """Exits with status 2 if the download fails or the data is invalid."""
    options = tyro.cli(Options, args=args, prog=prog)
    download.download(options.directory, options.url, check=open_kinds)
    print(summary(open_kinds(options.directory)))
