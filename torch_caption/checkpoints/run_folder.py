"""Folders of runs: `runs/scenes-rnn-1` and so on; `runs/last.txt` has the name of the last one."""

from __future__ import annotations

from pathlib import Path

from torch_caption.checkpoints import hub
from torch_caption.errors import CheckpointError
from torch_caption.io import files
from torch_caption.io.program import typed
from torch_caption.io.text import read_text

BEST, LAST, METRICS = "best.safetensors", "last.safetensors", "metrics.jsonl"
POINTER = "last.txt"


def create(out: str | Path, name: str) -> Path:
    """Create `out/name-N` with N above all existing numbers, safe against concurrent calls."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    numbers = [int(p.name.removeprefix(f"{name}-")) for p in out.glob(f"{name}-*") if _numbered(p.name, name)]
    number = max(numbers, default=0) + 1
    while True:
        run = out / f"{name}-{number}"
        try:
            run.mkdir()
        except FileExistsError:  # another run has just taken the number
            number += 1
            continue
        return run


def point_to(run: Path) -> None:
    """Write the run as the last one of its folder.

    Raises:
        OSError: it cannot be written, and may have another run.
    """
    pointer = run.parent / POINTER
    with files.writing(pointer, f"free disk space, then continue with `{typed('train')} --resume {run}`"):
        files.replace_text(pointer, run.name + "\n")


def find(out: str | Path, name: str | None = None) -> Path:
    """The run `name` (a name inside `out`, or a path, or that of its last.safetensors), or the last one where name is
    None or "last".

    Raises:
        CheckpointError: there is no such run; the message has what to do.
    """
    out = Path(out)
    if name is None or name == "last":
        pointer = out / POINTER
        if not pointer.is_file():
            raise CheckpointError(f"no run in {out} yet; `{typed('train')}` starts one")
        run = out / read_text(pointer).rstrip("\r\n")  # blanks may be part of the name
        if not run.is_dir():
            raise CheckpointError(f"{pointer} names {run}, which is missing; name another run")
        return run
    named = Path(name), out / name
    for run in named:
        if run.is_dir():
            return run
    for file in named:
        if file.is_file() and file.name == LAST:
            return file.parent
        if file.is_file():
            raise CheckpointError(_not_a_run(file))
    raise CheckpointError(f"no run {name!r}, here or in {out}")


def _not_a_run(file: Path) -> str:
    advice = ["name the run's folder"]
    if (file.parent / LAST).is_file():
        advice = [f"`--resume {file.parent}` resumes the run from its {LAST}"]
    if file.suffix == ".safetensors":
        advice.append(f"`--init-from {file}` starts a new run with these weights")
    return f"{file}: is a file, not a run; {', and '.join(advice)}"


def find_checkpoint(named: str | Path | None, out: str | Path) -> Path:
    """A named checkpoint, the best one of a run, of the last run of a folder, by default `out`, or of a repository
    (`hub`).

    Raises:
        ConfigError, CheckpointError: there is no such run, or as `hub.download`.
    """
    if named is None:
        return find(out) / BEST
    if isinstance(named, str) and named.startswith(hub.PREFIX):
        return hub.download(named, BEST)
    named = Path(named)
    if named.is_dir():
        return (find(named) if (named / POINTER).is_file() else named) / BEST
    return named


def data_name(data: str) -> str:
    """The name of the data in the name of a run: the directory's, with characters that are valid on any system."""
    name = Path(data).resolve().name
    return "".join(letter if letter.isprintable() and letter not in '<>:"|?*\\' else "_" for letter in name) or "data"


def _numbered(found: str, name: str) -> bool:
    return found.removeprefix(f"{name}-").isdecimal()
