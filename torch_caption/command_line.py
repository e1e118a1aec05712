"""Flags into configurations, and errors into one line and an exit status."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from torch_caption import checkpoint as checkpoints
from torch_caption import runs
from torch_caption.config import OF_THE_DATA, OF_THE_MODEL, TrainConfig
from torch_caption.distributed import RankError, first_alone_speaks
from torch_caption.sampling import SampleConfig


def train_config(args: Sequence[str]) -> TrainConfig:
    """The flags of `train.py`. With `--resume` the named run's own settings, or the last one's, are the defaults; with
    `--init-from` those of the checkpoint's that its weights and data fix.

    Raises:
        ValueError: there is no run to resume, or no checkpoint to begin with.
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    args = _name_the_run(args)
    config = _train_config(args)
    if config.resume is None and config.init_from is None:
        return config
    if config.resume is None:
        saved = checkpoints.load(runs.checkpoint(config.init_from, config.out)).config
        kept = {name: saved[name] for name in (*OF_THE_MODEL, *OF_THE_DATA) if name in saved}
        return _train_config(args, TrainConfig.from_plain(kept))
    run = runs.find(config.out, config.resume)
    settings = checkpoints.load(run / runs.LAST).config
    config = _train_config(args, TrainConfig.from_plain(settings))
    return dataclasses.replace(config, out=run.parent, resume=str(run))


def _train_config(args: Sequence[str], default: TrainConfig | None = None) -> TrainConfig:
    with first_alone_speaks():
        return tyro.cli(TrainConfig, prog="train.py", args=args, default=default or TrainConfig())


def sample_config(args: Sequence[str]) -> SampleConfig:
    """The flags of `sample.py`.

    Raises:
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    return tyro.cli(SampleConfig, prog="sample.py", args=args)


def guarded(main: Callable[[], object]) -> int:
    """Run `main`; the exit status: 0, or 2 for a mistake of the user's, 1 for a run that failed, 130 for Ctrl-C,
    141 where nobody reads the output any longer.

    What went wrong goes to stderr as one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a word the terminal cannot show must not end the program
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed when Python ends
        return 141
    except RankError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ArithmeticError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _name_the_run(args: Sequence[str]) -> list[str]:
    """`--resume` alone means the last run."""
    named = []
    for place, arg in enumerate(args):
        named.append(arg)
        if arg == "--resume" and (place + 1 == len(args) or args[place + 1].startswith("--")):
            named.append("last")
    return named
