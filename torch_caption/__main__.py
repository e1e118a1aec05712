"""Every command: `python -m torch_caption COMMAND`, or `torch-caption COMMAND` where the package is installed."""

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
    "prepare": "make a data directory from photographs and their captions",
    "compare": "compare every gradient derived by hand with automatic differentiation",
    "export": "write a captioner to one file, as ONNX or for torch.export",
    "demo": "serve a page that captions pictures",
    "check-data": "check a data directory",
    "download": "download cs231n's data and check it",
    "scenes": "draw the built-in dataset and show what is in it",
}
"""What each module of `torch_caption.cli` does; it is imported when its command is given."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command that `args`, or the command line, names. Exit status: as `guarded` says. Every command takes
    --traceback."""
    args = sys.argv[1:] if args is None else args
    named = [arg for arg in args if arg != TRACEBACK]
    return guarded(lambda: _run(named), traceback=TRACEBACK in args)


def _run(args: Sequence[str]) -> None:
    command = args[0] if args else ""
    if command in ("-h", "--help"):
        lines = [f"  {name:<12}{does}" for name, does in COMMANDS.items()]
        print(f"usage: {typed('COMMAND')} [--help] [{TRACEBACK}] [flags of the command]\n", *lines, sep="\n")
        print(f"\n{TRACEBACK} shows where an error was raised, of any command")
        return
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command!r}; use one of {', '.join(COMMANDS)}")
    import_module(f"torch_caption.cli.{command.replace('-', '_')}").main(args[1:], typed(command))


if __name__ == "__main__":
    sys.exit(main())
