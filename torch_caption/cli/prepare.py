"""Prepare a data directory from photographs and their captions."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from torch_caption.io.exits import Stopped
from torch_caption.io.memory import within_memory
from torch_caption.prepare.prepare import PrepareConfig, prepare


def main(args: Sequence[str], prog: str) -> None:
    config = tyro.cli(PrepareConfig, args=args, prog=prog)
    try:
        with within_memory("--batch-size", "--workers"):
            prepare(config)
    except KeyboardInterrupt as stopped:
        raise Stopped.advising(stopped, "the same command continues") from None
