"""A solution is checked in a process of its own, with limits of time and memory.

This is not a sandbox: the solution has all rights of the user who checks it. Check what strangers hand in on a machine
without secrets, or in a container.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch_caption.errors import InputError

MODULE = "torch_caption.verify.solution"


def checked(path: Path, seed: int, seconds: float, memory: float) -> dict[str, Any]:
    """The report on a solution, as `check.Report.plain` has it.

    Args:
        path: of a file or folder.
        seed: of the random inputs.
        seconds: after which the process is ended.
        memory: GiB of address space; no limit where the system has none.

    Raises:
        InputError: there is nothing to check.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, "-m", MODULE, str(path.resolve()), str(out), str(seed), str(memory)]
        root = str(Path(__file__).parents[3])
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=env,
                timeout=seconds,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except subprocess.TimeoutExpired:
            return _ended(path, f"It took more than {seconds:g} s.")
        if not out.exists():
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            return _ended(path, f"The process ended: {last}")
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if "error" in report:
        raise InputError(report["error"])
    return {**report, "path": str(path)}


def _ended(path: Path, sentence: str) -> dict[str, Any]:
    """The report on a solution that could not be checked to its end."""
    finding = {"function": "process", "tensor": "", "status": "raised", "diagnosis": [sentence]}
    return {"path": str(path), "dialect": "", "findings": [finding], "passed": False}


def report_to_file(args: list[str]) -> None:
    """In the process of its own: check, and write the report as JSON."""
    path, out, seed, memory = Path(args[0]), Path(args[1]), int(args[2]), float(args[3])
    if sys.platform != "win32":
        import resource

        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from torch_caption.verify.solution.check import check

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            report = check(path, seed).plain()
    except InputError as error:
        report = {"error": str(error)}
    out.write_text(json.dumps(report), encoding="utf-8", newline="\n")
