"""Flags into configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tyro

from torch_caption import checkpoint as checkpoints
from torch_caption import runs
from torch_caption.config import OF_THE_DATA, OF_THE_MODEL, TrainConfig
from torch_caption.distributed import first_alone_speaks
from torch_caption.ending import guarded
from torch_caption.sampling import SampleConfig

__all__ = ["guarded", "sample_config", "train_config"]


def train_config(args: Sequence[str]) -> TrainConfig:
    """The flags of `train.py`. With `--resume` the named run's own settings, or the last one's, are the defaults; with
    `--init-from` those of the checkpoint's that its weights and data fix.

    Raises:
        ValueError: there is no run to resume, no checkpoint to begin with, or its settings are not of its model.
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    args = _name_the_run(args)
    config = _train_config(args)
    if config.resume is None and config.init_from is None:
        return config
    if config.resume is None:
        path = runs.checkpoint(config.init_from, config.out)
        saved = checkpoints.load(path)
        checkpoints.check_sizes(saved, path)
        kept = {name: saved.config[name] for name in (*OF_THE_MODEL, *OF_THE_DATA) if name in saved.config}
        return _train_config(args, TrainConfig.from_plain(kept))
    run = runs.find(config.out, config.resume)
    saved, path, _ = checkpoints.load_latest(run / runs.LAST)
    checkpoints.check_sizes(saved, path)
    config = _train_config(args, TrainConfig.from_plain(saved.config))
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


def _name_the_run(args: Sequence[str]) -> list[str]:
    """`--resume` alone means the last run."""
    named = []
    for place, arg in enumerate(args):
        named.append(arg)
        if arg == "--resume" and (place + 1 == len(args) or args[place + 1].startswith("--")):
            named.append("last")
    return named
