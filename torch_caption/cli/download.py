"""cs231n's own data, downloaded and checked."""

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
    """Bring cs231n's data, and check it."""

    directory: Annotated[Path, Positional, arg(metavar="DIR")]
    """The directory to download into. Run the same command again to go on after a stop."""
    url: str = download.ARCHIVE
    """Where the archive is."""


def main(args: Sequence[str], prog: str) -> None:
    """Exits with status 2 where the download failed or the data is not sound."""
    options = tyro.cli(Options, args=args, prog=prog)
    download.download(options.directory, options.url, check=open_kinds)
    print(summary(open_kinds(options.directory)))
