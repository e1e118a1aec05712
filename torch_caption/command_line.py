"""Flags into configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tyro

from torch_caption.checkpoint import Found
from torch_caption.config import OF_THE_DATA, OF_THE_MODEL, TrainConfig
from torch_caption.distributed import first_alone_speaks
from torch_caption.ending import guarded
from torch_caption.runs import find
from torch_caption.sampling import SampleConfig
from torch_caption.state import source

__all__ = ["guarded", "sample_config", "train_config"]


def train_config(args: Sequence[str]) -> tuple[TrainConfig, Found | None]:
    """The flags of `train.py`. With `--resume` the named run's own settings, or the last one's, are the defaults; with
    `--init-from` those of the checkpoint's that its weights and data fix.

    Returns:
        The settings, and the checkpoint that was read for them: the arguments of `training.fit`.

    Raises:
        ValueError: there is no run to resume, or no checkpoint to begin with.
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    args = _name_the_run(args)
    config = _train_config(args)
    found = source(config)
    if found is None:
        return config, None
    saved = found.checkpoint.config
    if config.resume is None:
        kept = TrainConfig(**{name: getattr(saved, name) for name in (*OF_THE_MODEL, *OF_THE_DATA)})
        return _train_config(args, kept), found
    run = find(config.out, config.resume)
    return dataclasses.replace(_train_config(args, saved), out=run.parent, resume=str(run)), found


def _train_config(args: Sequence[str], default: TrainConfig | None = None) -> TrainConfig:
    with first_alone_speaks():
        return tyro.cli(TrainConfig, prog="train.py", args=args, default=default or TrainConfig())


def sample_config(args: Sequence[str]) -> SampleConfig:
    """The flags of `sample.py`.

    Raises:
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    return tyro.cli(SampleConfig, prog="sample.py", args=args)


def _name_the_run(args: Sequence[str]) -> list[str]:
    """`--resume` alone means the last run."""
    named = []
    for place, arg in enumerate(args):
        named.append(arg)
        if arg == "--resume" and (place + 1 == len(args) or args[place + 1].startswith("--")):
            named.append("last")
    return named
