"""The command line: `python -m benchmarks`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import tyro

from benchmarks.options import THREAD_VARIABLES, Options
from torch_caption.io.exits import guarded


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print. Exit status: as `guarded` says; 1 where a peer computes something else than ours."""
    return guarded(lambda: _run(tyro.cli(Options, args=args, prog="python -m benchmarks")))


def _run(options: Options) -> None:
    if options.threads and "numpy" not in sys.modules:  # its BLAS reads them once, when it is loaded
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(options.threads)))
    from benchmarks.run import run

    run(options)


if __name__ == "__main__":
    sys.exit(main())
