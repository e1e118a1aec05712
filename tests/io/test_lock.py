"""One process in the directory of a run, and one run in a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from torch_caption.errors import RunInUse
from torch_caption.io.lock import alone_in, alone_in_process

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from torch_caption.io.lock import alone_in
with alone_in(Path(sys.argv[1])):
    {more}
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(run: Path, more: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Another process in the run's directory, until its standard input ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", HOLDER.format(more=more), str(run)]
    with subprocess.Popen(command, cwd=ROOT, text=True, encoding="utf-8", **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    with holder(tmp_path) as process:
        for _ in range(2):  # a refusal changes nothing
            with pytest.raises(RunInUse) as refused, alone_in(tmp_path):
                pass
            assert "\n" not in str(refused.value)
            assert str(refused.value).startswith(f"{tmp_path}: ")
            if os.name == "posix":
                assert re.search(rf"\bprocess {process.pid} on \S+ trains there; ", str(refused.value))
        process.communicate()
        with alone_in(tmp_path):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_the_lock_of_a_killed_process_is_free_although_its_fork_lives(tmp_path):
    """As worker processes do, for a while."""
    fork = "os.fork() or (os.close(1), os.write(begun, b'x'), time.sleep(10), os._exit(0))"
    more = f"import os; begins, begun = os.pipe(); {fork}; os.read(begins, 1)"
    with holder(tmp_path, more) as process:
        process.kill()
        process.wait()
        with alone_in(tmp_path):
            pass


def test_a_lock_is_released_also_by_an_error(tmp_path):
    with alone_in(tmp_path), pytest.raises(RunInUse), alone_in(tmp_path):
        pass
    with pytest.raises(OSError, match="no room"), alone_in(tmp_path):
        raise OSError("no room")
    with alone_in(tmp_path):
        pass


def test_one_run_of_a_process_trains_at_a_time():
    with alone_in_process(), ThreadPoolExecutor(1) as pool:
        for _ in range(2):  # a refusal changes nothing
            with pytest.raises(RunInUse, match="another run trains in this process"):
                pool.submit(_enter).result()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_enter).result()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_another_run_may_start_after_any_error(error):
    with pytest.raises(error), alone_in_process():
        raise error
    _enter()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_may_start_a_run_of_its_own():
    with alone_in_process():
        child = os.fork()
        if not child:
            with suppress(BaseException):
                _enter()
                os._exit(7)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def _enter() -> None:
    with alone_in_process():
        pass
