"""Train: from flags to a configuration and a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import tyro

from torch_caption.checkpoints.format import Found
from torch_caption.checkpoints.run_folder import find
from torch_caption.config import DATA_FIELDS, MODEL_FIELDS, TrainConfig
from torch_caption.functions.matmul import prefer_onednn
from torch_caption.training.distributed import first_alone_speaks, several
from torch_caption.training.state import source
from torch_caption.training.trainer import fit


def train_config(args: Sequence[str], prog: str | None = None) -> tuple[TrainConfig, Found | None]:
    """The configuration from the flags of `train`. With `--resume` the defaults are the settings of the named or the
    last run, with `--init-from` the checkpoint's settings of the model and the data.

    Returns:
        The settings, and the checkpoint that was loaded for them: the arguments of `training.fit`.

    Raises:
        InputError: the run to resume, or the checkpoint to start from, does not exist or cannot be used.
        SystemExit: a flag is invalid (status 2), or help was requested (0).
    """
    args = _name_the_run(args)
    config = _train_config(args, prog)
    found = source(config)
    if found is None:
        return config, None
    saved = found.checkpoint.config
    if config.resume is None:
        kept = TrainConfig(**{name: getattr(saved, name) for name in (*MODEL_FIELDS, *DATA_FIELDS)})
        return _train_config(args, prog, kept), found
    run = find(config.out, config.resume)
    return dataclasses.replace(_train_config(args, prog, saved), out=run.parent, resume=str(run)), found


def _train_config(args: Sequence[str], prog: str | None, default: TrainConfig | None = None) -> TrainConfig:
    with first_alone_speaks():
        return tyro.cli(TrainConfig, prog=prog, args=args, default=default or TrainConfig())


def _name_the_run(args: Sequence[str]) -> list[str]:
    """`--resume` without a value is the last run."""
    named = []
    for index, arg in enumerate(args):
        named.append(arg)
        if arg == "--resume" and (index + 1 == len(args) or args[index + 1].startswith("--")):
            named.append("last")
    return named


def main(args: Sequence[str], prog: str) -> None:
    """Train, in each of the processes that torchrun starts."""
    prefer_onednn()
    several(lambda: fit(*train_config(args, prog)))
