"""All commands: `python -m torch_caption COMMAND`, or `torch-caption COMMAND` if the package is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from torch_caption.errors import ConfigError
from torch_caption.io.exits import guarded
from torch_caption.io.program import typed

TRACEBACK = "--traceback"
COMMANDS = {
    "train": "train a captioner",
    "sample": "caption photographs, or images of a split",
    "evaluate": "score captions of a split against reference captions",
    "prepare": "prepare a data directory from photographs and their captions",
    "check": "check solutions of the assignment, and name their mistakes",
    "compare": "compare hand-derived with automatic gradients",
    "export": "write a captioner to one file, as ONNX or for torch.export",
    "share": "write a folder with a model and its description, for publishing",
    "demo": "serve a page that captions pictures",
    "check-data": "check a data directory",
    "download": "download cs231n's data and check it",
    "scenes": "generate and list the built-in dataset",
}
"""A description of each module of `torch_caption.cli`; a module is imported when its command runs."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command in `args`, by default the command line. Returns the exit status of `guarded`. All commands have
    --traceback."""
    args = sys.argv[1:] if args is None else args
    named = [arg for arg in args if arg != TRACEBACK]
    return guarded(lambda: _run(named), traceback=TRACEBACK in args)


def _run(args: Sequence[str]) -> None:
    command = args[0] if args else ""
    if command in ("-h", "--help"):
        lines = [f"  {name:<12}{does}" for name, does in COMMANDS.items()]
        print(f"usage: {typed('COMMAND')} [--help] [{TRACEBACK}] [flags of the command]\n", *lines, sep="\n")
        print(f"\n{TRACEBACK} shows where an error was raised, for all commands")
        return
    if command not in COMMANDS:
        raise ConfigError(f"no command {command!r}; use one of {', '.join(COMMANDS)}")
    import_module(f"torch_caption.cli.{command.replace('-', '_')}").main(args[1:], typed(command))


if __name__ == "__main__":
    sys.exit(main())
