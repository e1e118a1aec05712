"""Training: flags into a configuration, and the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tyro

from torch_caption.checkpoints import format as checkpoints
from torch_caption.config import OF_THE_DATA, OF_THE_MODEL, TrainConfig
from torch_caption.functions.matmul import prefer_onednn
from torch_caption.training import run_folder as runs
from torch_caption.training.distributed import first_alone_speaks, several
from torch_caption.training.trainer import fit


def train_config(args: Sequence[str], prog: str | None = None) -> TrainConfig:
    """The flags of `train`. With `--resume` the named run's own settings, or the last one's, are the defaults; with
    `--init-from` those of the checkpoint's that its weights and data fix.

    Raises:
        UsageError, InputError: there is no run to resume, no checkpoint to begin with, or its settings are not of its
            model.
        SystemExit: a flag is misspelt (status 2), or help was asked for (0).
    """
    args = _name_the_run(args)
    config = _train_config(args, prog)
    if config.resume is None and config.init_from is None:
        return config
    if config.resume is None:
        path = runs.checkpoint(config.init_from, config.out)
        saved = checkpoints.load(path)
        checkpoints.check_sizes(saved, path)
        kept = {name: saved.config[name] for name in (*OF_THE_MODEL, *OF_THE_DATA) if name in saved.config}
        return _train_config(args, prog, TrainConfig.from_plain(kept))
    run = runs.find(config.out, config.resume)
    saved, path, _ = checkpoints.load_latest(run / runs.LAST)
    checkpoints.check_sizes(saved, path)
    config = _train_config(args, prog, TrainConfig.from_plain(saved.config))
    return dataclasses.replace(config, out=run.parent, resume=str(run))


def _train_config(args: Sequence[str], prog: str | None, default: TrainConfig | None = None) -> TrainConfig:
    with first_alone_speaks():
        return tyro.cli(TrainConfig, prog=prog, args=args, default=default or TrainConfig())


def _name_the_run(args: Sequence[str]) -> list[str]:
    """`--resume` alone means the last run."""
    named = []
    for place, arg in enumerate(args):
        named.append(arg)
        if arg == "--resume" and (place + 1 == len(args) or args[place + 1].startswith("--")):
            named.append("last")
    return named


def main(args: Sequence[str], prog: str) -> None:
    """Train, in each of the processes that torchrun starts."""
    prefer_onednn()
    several(lambda: fit(train_config(args, prog)))
