"""Export a trained captioner to one file that runs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from torch_caption.config import check_length
from torch_caption.errors import ConfigError
from torch_caption.inference import export
from torch_caption.inference.load import load


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained captioner to one file that runs without this package, from features to word ids."""

    checkpoint: Annotated[str | None, Positional, arg(metavar="CHECKPOINT")] = None
    """Checkpoint, run, folder of runs or hf://OWNER/NAME; the default is the last run in `runs`."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("captioner.onnx")
    """Output file, .onnx or .pt2."""
    max_length: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum length of a caption in words; the default is that of training."""
    no_unk: Annotated[bool, FlagCreatePairsOff] = False
    """Never choose <UNK>."""

    def check(self) -> None:
        """Raise ConfigError, naming the flag, on the first value that cannot be used."""
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"--max-length must be at least 1, not {self.max_length}")
        check_length(self.max_length)
        if not self.out.parent.is_dir():
            raise ConfigError(f"--out {self.out}: there is no folder {self.out.parent}")
        export.check_kind(self.out)


def run(config: ExportConfig) -> None:
    """Export by the configuration, and print the shapes of the file's input and output.

    Raises:
        UsageError, InputError: a setting or the checkpoint cannot be used.
    """
    config.check()
    captioner = load(config.checkpoint, device="cpu")
    model, saved = captioner.model, captioner.checkpoint
    max_length = config.max_length or saved.config.max_length
    export.save(export.trace(model, max_length, no_unk=config.no_unk), config.out, export.about(saved, max_length))
    kind = str(model.dtype).removeprefix("torch.")
    size = config.out.stat().st_size / 1e6
    shape = f"(N, {model.input_dim}{', L' if model.cell.attends else ''})"
    print(f"{config.out}: {export.FEATURES} {shape} {kind} -> {export.IDS} (N, {max_length}) int64, {size:.1f} MB")


def main(args: Sequence[str], prog: str) -> None:
    run(tyro.cli(ExportConfig, args=args, prog=prog))
