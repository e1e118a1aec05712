"""train.py as the tests of torchrun start it: a rank writes its process id into a file, and may fail at a given step.

    torchrun --nproc-per-node 2 tests/helpers/torchrun.py FOLDER [train.py's flags]

In FOLDER it writes pid-RANK. TORCH_CAPTION_FAIL, "rank step message", makes the rank's step of that number raise
an OSError with the message.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--hidden-dim", "16", "--wordvec-dim", "8", "--batch-size", "5"),
    *("--score-images", "0", "--max-length", "6", "--no-tensorboard"),
]


def start(
    folder: Path, *flags: str, ranks: int = 2, fail: str = "", meet: tuple[str, ...] = ("--standalone",)
) -> subprocess.Popen[str]:
    """torchrun, with train.py's flags; its files go into the folder. `meet`: its flags of machines that meet."""
    command = [sys.executable, "-m", "torch.distributed.run", *meet, "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CAPTION_FAIL": fail}
    return subprocess.Popen(
        [*command, __file__, str(folder), *TINY, "--out", str(folder / "runs"), *flags],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )


def errors(stderr: str) -> list[str]:
    """What our processes say, among torchrun's own report."""
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def pids(folder: Path) -> dict[int, int]:
    """The process of each rank that has begun."""
    return {rank: process for rank, (process, _) in _processes(folder).items()}


def started_by(folder: Path, launcher: int) -> int:
    """The one rank of a torchrun."""
    (rank,) = (rank for rank, (_, parent) in _processes(folder).items() if parent == launcher)
    return rank


def _processes(folder: Path) -> dict[int, tuple[int, int]]:
    texts = {int(p.name.removeprefix("pid-")): p.read_text(encoding="utf-8").split() for p in folder.glob("pid-*")}
    return {rank: (int(process), int(parent)) for rank, (process, parent) in texts.items()}


def main() -> None:
    folder = Path(sys.argv.pop(1))
    rank = int(os.environ["RANK"])
    beside = folder / f".{rank}"
    beside.write_text(f"{os.getpid()} {os.getppid()}", encoding="utf-8")
    beside.rename(folder / f"pid-{rank}")
    sys.path.insert(0, str(ROOT))
    if os.environ["TORCH_CAPTION_FAIL"]:
        from torch_caption.training import trainer

        who, when, message = os.environ["TORCH_CAPTION_FAIL"].split(" ", 2)
        train_step, steps = trainer.train_step, iter(range(1, 10**6))

        def failing(*args: Any, **kwargs: Any) -> tuple[float, float]:
            if next(steps) == int(when) and rank == int(who):
                raise OSError(message)
            return train_step(*args, **kwargs)

        trainer.train_step = failing
    sys.argv[0] = str(ROOT / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
