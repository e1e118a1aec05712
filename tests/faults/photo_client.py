"""The process that reads the files of `hostile_photographs.py`: what each took, and what it did beside.

Cases as JSON on stdin; a line of JSON for each on stdout.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.helpers.hostile_photos import SOUND, damaged, made
from tests.helpers.usage import descriptors, forget_the_peak, memory
from torch_caption.errors import ImageError
from torch_caption.io.images import load_image

ADDRESS_SPACE = 4 * 2**30
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "os.startfile")
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate")
done: dict[str, list[str]] = {"programs run": [], "files written": []}


def watch(event: str, arguments: tuple) -> None:
    if event in RUNS:
        done["programs run"].append(str(arguments)[:100])
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event in WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & writes):
        done["files written"].append(f"{event} {str(arguments)[:100]}")


def content_of(case: list, seed: int) -> bytes:
    if len(case) == 1:
        return made(case[0])
    kind, number = case
    return damaged(SOUND[kind](), random.Random(f"{seed} {number} {kind}"))


def read(content: bytes) -> dict[str, Any]:
    forget_the_peak()
    for list_ in done.values():
        list_.clear()
    before, files = memory("VmRSS"), descriptors()
    started = time.monotonic()
    try:
        outcome, said = "pictures", str(load_image(content).size)
    except ImageError as error:
        outcome, said = "refused", str(error)
    except BaseException as error:
        outcome, said = "other errors", repr(error)
    seconds = time.monotonic() - started
    beside = {name: "; ".join(what) for name, what in done.items()}
    return {
        "outcome": outcome, "said": said, "seconds": seconds, "memory": memory("VmHWM") - before,
        "leaked descriptors": max(0, descriptors() - files), **beside,
    }  # fmt: skip


def main() -> None:
    task = json.load(sys.stdin)
    for make in SOUND.values():
        load_image(make())  # decoders are loaded on first use
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    sys.addaudithook(watch)
    for case in task["cases"]:
        print(json.dumps(read(content_of(case, task["seed"]))), flush=True)


if __name__ == "__main__":
    main()
