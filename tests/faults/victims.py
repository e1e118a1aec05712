"""Programs of the package run on data that may be hostile: each in a process of its own, measured and held to limits.

One server imports the package once and forks a child for every case, so that a case takes milliseconds, whatever it
breaks breaks in the child alone, and memory and seconds are its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

from tests.faults.figures import Figures  # noqa: E402

RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate")
HANGS = 120.0  # seconds of the clock, on a machine that does other things as well
ADDRESS_SPACE = 2**34


@dataclass(frozen=True)
class Case:
    """What a program is given.

    Attributes:
        name: of the case: how to repeat it.
        program: of `PROGRAMS`.
        arguments: of the program.
        refused: whether it must be; None where either will do.
        digest: of what it must read if it is accepted; "" where that is open.
        named: what the message has to hold, beside being one line.
    """

    name: str
    program: str
    arguments: tuple[str, ...]
    refused: bool | None = True
    named: str = ""
    digest: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of it: the exit status (negative for a signal, None for a hang), the output, time and memory, the
    descriptors left open, and a digest of all that was read.
    """

    status: int | None
    out: str
    err: str
    seconds: float
    mib: float
    leaked: int
    digest: str


def judge(cases: Sequence[Case], folder: Path, *, seconds: float, mib: float) -> Figures:
    """Run every case, and hold what comes of it against what is promised of it."""
    figures = Figures()
    figures.expect("tracebacks", "crashes", "silently accepted", "refused wrongly", "wrong status", "not named")
    figures.expect("leaked")
    if os.name != "posix":  # there is no fork
        figures.cases = len(cases)
        figures.saw("skipped")
        return figures
    for case, outcome in zip(cases, serve(cases, folder), strict=True):
        figures.cases += 1
        _judge(case, outcome, figures)
        figures.measured("CPU s", outcome.seconds, seconds)
        figures.measured("MiB", outcome.mib, mib)
        if outcome.seconds > seconds or outcome.mib > mib:
            figures.failures.append(f"{case.name}: {outcome.seconds:.1f} s of the processor, {outcome.mib:.0f} MiB")
    return figures


def _judge(case: Case, outcome: Outcome, figures: Figures) -> None:
    what = f"{case.name}: status {outcome.status}, {outcome.err[-500:]!r}"
    if "Traceback" in outcome.err:
        figures.wrong("tracebacks", what)
    elif outcome.status is None or outcome.status < 0:
        figures.wrong("crashes", what)
    elif outcome.status == 0:
        figures.saw("accepted")
        if case.refused:
            figures.wrong("silently accepted", what)
        if case.digest and case.digest != outcome.digest:
            figures.wrong("silently accepted", f"{case.name}: other values were read")
    elif outcome.status != 2:
        figures.wrong("wrong status", what)
    else:
        figures.saw("refused")
        if case.refused is False:
            figures.wrong("refused wrongly", what)
        one_line = outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and len(outcome.err) < 4096
        if not one_line or outcome.out or case.named not in outcome.err:
            figures.wrong("not named", f"{what}, not {case.named!r} in one line")
    if outcome.leaked:
        figures.wrong("leaked", f"{case.name}: {outcome.leaked} descriptors")


def serve(cases: Sequence[Case], folder: Path) -> list[Outcome]:
    """The outcomes, in the order of the cases."""
    (folder / "cases.json").write_text(json.dumps([dataclasses.asdict(case) for case in cases]), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
    subprocess.run(command, check=True, env=environment)
    return [Outcome(**found) for found in json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))]


# The server -----------------------------------------------------------------------------------------------------------


def digest(directory: str) -> str:
    """Of all that a directory holds, read as training reads it: from memory, and in slices, which must agree."""
    import torch

    from torch_caption.data import dataset

    found = hashlib.sha256()
    whole, sliced = (dataset.open_data(directory, in_memory=how) for how in ("yes", "no"))
    for name, split in whole.splits.items():
        features = split.features_of(range(split.num_images))
        assert torch.isfinite(features).all()
        assert torch.equal(features, sliced[name].features_of(range(split.num_images)))
        assert ((split.captions >= 0) & (split.captions < len(whole.vocabulary))).all()
        for values in (split.captions, split.image_idxs, features):
            found.update(str(values.shape).encode() + values.numpy().tobytes())
    return found.hexdigest()


def check(directory: str) -> tuple[int, str]:
    """The program that checks; what it accepts is then read."""
    from torch_caption.__main__ import main

    status = main(["check-data", directory])
    return status, digest(directory) if status == 0 else ""


def prepare(annotations: str, images: str, out: str) -> int:
    """What `data.prepare` makes of annotations before it looks at a photograph."""
    from torch_caption.data import caption_files
    from torch_caption.io.exits import guarded
    from torch_caption.prepare import prepare as program

    config = program.PrepareConfig(
        images=(images,), annotations=(annotations,), out=Path(out), min_count=1, val_share=0.4
    )

    def main() -> None:
        splits = caption_files.read_splits(config.annotations, config.val_share, config.seed)
        captions = program.encode_captions(splits, config)
        located = caption_files.locate(splits, {None: Path(images)})
        for split, photographs in located.items():
            text = json.dumps(program._coco_annotations(photographs), ensure_ascii=False)
            (Path(out) / f"{split}.json").write_text(text, encoding="utf-8")
        captions.vocabulary.save(Path(out) / "vocabulary.json")

    return guarded(main)


def references(file: str, directory: str) -> int:
    """What `evaluate --references` reads."""
    from torch_caption.cli import evaluate
    from torch_caption.data.dataset import open_data
    from torch_caption.io.exits import guarded

    data = open_data(directory)
    config = evaluate.EvaluateConfig(references=Path(file))
    return guarded(lambda: evaluate.read_references(config, data, data["val"]))


def resume(file: str) -> int:
    """What `train --resume` does with a checkpoint of `tests.helpers.saved_checkpoint` before the first step."""
    import torch

    from tests.helpers.saved_checkpoint import WORDS
    from torch_caption.checkpoints import format as checkpoints
    from torch_caption.data.dataset import CocoData, Split
    from torch_caption.data.vocabulary import Vocabulary
    from torch_caption.io.exits import guarded
    from torch_caption.training import state

    vocabulary = Vocabulary(tuple(WORDS))
    rows = torch.tensor([[1, 4, 2], [1, 5, 2]]), torch.arange(2)  # an epoch of two steps
    split = Split("train", vocabulary, *rows, torch.ones(2, 3), (2, 3))
    data = CocoData(Path("data"), vocabulary, {}, {}, {"train": split, "val": split})

    def main() -> None:
        found = checkpoints.find(Path(file))
        config = dataclasses.replace(found.checkpoint.config, resume="last")
        state.resume(config, data, torch.device("cpu"), found)
        checkpoints.build_model(found.checkpoint, file)

    return guarded(main)


def photograph(file: str) -> int:
    """What `sample` reads of a photograph; running a program or writing a file would be a traceback."""
    from torch_caption.errors import ImageError
    from torch_caption.io.images import load_image

    def forbid(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & writes
        if watching and (opened or event in RUNS or event in WRITES):
            raise RuntimeError(f"{event} {str(arguments)[:100]}")

    watching = [True]  # an audit hook stays
    sys.addaudithook(forbid)
    try:
        load_image(file)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        watching.clear()
    return 0


def nothing() -> int:
    """Does nothing: the measures of the process itself, which are subtracted from those of a program."""
    return 0


PROGRAMS = {program.__name__: program for program in (nothing, check, prepare, references, resume, photograph)}


def _descriptors() -> int | None:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None


def _child(case: dict[str, Any], files: list[Path]) -> None:
    """In the child: the program, with its output in files; its exit status and what it left open in a third."""
    import resource  # there is none where there is no fork

    for descriptor, path in zip((1, 2), files, strict=False):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    limit = min(ADDRESS_SPACE, resource.getrlimit(resource.RLIMIT_AS)[1] % 2**63 or ADDRESS_SPACE)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = _descriptors()
    status, read = 70, ""
    try:
        ended = PROGRAMS[case["program"]](*case["arguments"])
        status, read = ended if isinstance(ended, tuple) else (ended, "")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    after = _descriptors()
    leaked = 0 if before is None or after is None else after - before
    files[2].write_text(f"{leaked} {read}", encoding="utf-8")
    os._exit(status)


def _outcome(case: dict[str, Any], files: list[Path], own: float) -> Outcome:
    for path in files:
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(case, files)
    hangs = not _ends(child)
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    out, err, leaked = (path.read_text(encoding="utf-8", errors="replace") if path.exists() else "" for path in files)
    return Outcome(
        None if hangs else os.waitstatus_to_exitcode(status),
        out,
        err,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10) - own,
        int((leaked.split() or ["0"])[0]),
        (leaked.split()[1:] or [""])[0],
    )


def _ends(child: int) -> bool:
    started = time.monotonic()
    while time.monotonic() < started + HANGS:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
            return True
        time.sleep(0.002)
    return False


def main(folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    _warm_up({case["program"] for case in cases})
    files = [folder / name for name in ("out", "err", "leaked")]
    own = _outcome({"program": "nothing", "arguments": ()}, files, 0.0).mib
    outcomes = [dataclasses.asdict(_outcome(case, files, own)) for case in cases]
    (folder / "outcomes.json").write_text(json.dumps(outcomes), encoding="utf-8")


def _warm_up(programs: set[str]) -> None:
    """Import what they import, so that no child counts it."""
    import torch_caption.cli.check_data
    import torch_caption.prepare.prepare

    if "references" in programs:
        import torch_caption.cli.evaluate
    if "resume" in programs:
        import torch_caption.training.state  # noqa: F401
    if "photograph" in programs:
        from tests.helpers.hostile_photos import SOUND
        from torch_caption.io.images import load_image

        for make in SOUND.values():
            load_image(make())  # decoders are loaded on first use


if __name__ == "__main__":
    main(Path(sys.argv[1]))
