"""Runs of train.py on a disk that fills up: they end in one line, and go on once there is room."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

from tests.faults.figures import Family, Figures  # noqa: E402
from tests.faults.kills_in_training import differences  # noqa: E402
from tests.faults.programs import Program, Programs  # noqa: E402
from tests.helpers.tiny_data import write_tiny  # noqa: E402
from torch_caption.checkpoints import run_folder as runs  # noqa: E402

SMALL = (
    "--data tiny --hidden-dim 24 --wordvec-dim 8 --batch-size 5 --lr 0.01 --max-length 6 --score-images 0 --epochs 3"
)
PAGE = 4096  # bytes, of which a disk gives no fewer
DISK = 2048  # KiB: a whole run, and a checkpoint beside


def full(cases: int, seed: int, folder: Path) -> Figures:
    """Each case is a run for which there is room for so many bytes: of a small disk, or else of each of its files."""
    figures = Figures()
    if sys.platform != "linux":  # there is no such disk, and no limit on another process
        figures.cases = cases
        figures.saw("skipped")
        return figures
    disk = folder / "disk"
    begin = small_disk(disk, DISK)
    disk.mkdir(exist_ok=True)
    command = [*begin, sys.executable, __file__, str(cases), str(seed), str(folder), "disk" if begin else "limit"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8", timeout=1200)
    return Figures(**json.loads(ran.stdout))


def small_disk(folder: Path, size: int) -> list[str]:
    """What to begin a command with for it to see a disk of so many KiB there; nothing if this user may mount none."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size}k tmpfs {shlex.quote(str(folder))} && exec "$@"'
    begin = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare"):
        return []
    return begin if subprocess.run([*begin, "true"], check=False, capture_output=True).returncode == 0 else []


@contextmanager
def room(folder: Path, size: int, how: str, program: int) -> Iterator[None]:
    """Limit the room to `size` bytes: of the folder's disk, or of each file that the program writes."""
    if how == "limit":
        import resource

        old = resource.prlimit(program, resource.RLIMIT_FSIZE)
        resource.prlimit(program, resource.RLIMIT_FSIZE, (size, old[1]))
        yield
        resource.prlimit(program, resource.RLIMIT_FSIZE, old)
        return
    filler = folder / "filler"
    with open(filler, "wb") as file:
        disk = os.statvfs(folder)
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - size))
    yield
    filler.unlink()


def _fill(cases: int, seed: int, folder: Path, how: str) -> Figures:
    """In a process that has the disk for itself."""
    figures, rng = Figures(), random.Random(seed)
    figures.expect("lost", "not bit for bit", "tracebacks", "wrong status", "lines")
    write_tiny(folder / "tiny")
    with Programs(folder) as programs:
        status, program, _ = programs.run(*SMALL.split(), "--out", "whole")
        if status != 0:
            raise RuntimeError(f"train.py: {status}: {program.errors()}")
        whole = runs.find(folder / "whole")
        sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        most = max(sizes) if how == "limit" else sum(sizes)
        begins = (whole / runs.BEST).stat().st_size  # no less than this is the first file; the next are a page each
        for case in range(cases):
            size = rng.randrange(most) if case % 2 else begins + PAGE * ((3 + case // 2) % 8)
            every = rng.choice((0, 1, 2))
            out = folder / "disk" / f"case-{case}"
            flags = [*SMALL.split(), "--checkpoint-every", str(every), "--out", str(out)]
            what = f"case {case} of seed {seed}: {how} {size}, --checkpoint-every {every}"
            with room(folder / "disk", size, how, programs.pid):
                status, program, _ = programs.run(*flags)
            figures.cases += 1
            _look(figures, status, program, str(out), what)
            begun = next(out.glob("*/last.safetensors"), None)  # the folder may not be named yet, or have nothing in it
            resume = [*flags, "--resume", str(begun.parent)] if begun else flags
            status, program, _ = programs.run(*resume)
            if status != 0 or program.errors():
                figures.wrong("lost", f"{what}: did not resume: {status}: {program.errors()}")
            else:
                run = begun.parent if begun else runs.find(out)
                for difference in differences(whole, run):
                    figures.wrong("not bit for bit", f"{what}: {difference}")
            subprocess.run(["rm", "-r", str(out)], check=True)
    return figures


def _look(figures: Figures, status: int | None, program: Program, out: str, what: str) -> None:
    """Warnings, and one error at last, which names a file; none where only pictures and curves are lacking."""
    errors = program.errors()
    *warnings, last = errors.splitlines() or [""]
    failed = last.startswith("error: ")
    if not failed and last:
        warnings.append(last)
    if "Traceback" in errors:
        figures.wrong("tracebacks", f"{what}: {errors}")
    elif not all(line.startswith("warning: ") for line in warnings) or (failed and out not in last):
        figures.wrong("lines", f"{what}: {errors}")
    if status != (2 if failed else 0):
        figures.wrong("wrong status", f"{what}: {status}: {errors}")
    figures.saw("ended by it" if failed else "with warnings" if warnings else "room enough")


FULL = Family("disk-full-in-training", full, short=3, full=60)

if __name__ == "__main__":
    count, start, place, limit = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(_fill(int(count), int(start), Path(place), limit))))
