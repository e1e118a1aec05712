"""What the sources may say, so that programs run on Windows and macOS as well, and runs of them in odd surroundings."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_data import write_tiny
from torch_caption.checkpoints import format as checkpoints
from torch_caption.checkpoints import run_folder as runs
from torch_caption.cli.train import train_config
from torch_caption.training.trainer import fit

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("torch_caption/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("*.py")])
ELSEWHERE = {"fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "setsid", "killpg", "wait3", "wait4", "uname"}
UNIX = {"fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"}
EVERYWHERE = {"SIGINT", "SIGTERM", "SIGABRT", "SIGFPE", "SIGILL", "SIGSEGV", "SIG_DFL", "SIG_IGN"}
OWN_ENDS = {"lock.py"}  # of lines, as the system has them: what they write is not compared by its bytes


def faults(source: str, name: str = "") -> list[str]:
    """What a source says that does not hold on every system: line and reason."""
    tree = ast.parse(source)
    found = [*texts(tree, name), *of_one_system(tree), *places(tree), *at_import(tree)]
    return [f"{name}:{line}: {reason}" for line, reason in sorted(found)]


def texts(tree: ast.AST, name: str) -> Iterator[tuple[int, str]]:
    """Files opened as text without an encoding, or written without ends of lines."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.Module | ast.FunctionDef):
            continue
        for call in calls_within(function):
            writes = text_mode(call, function)
            given = {keyword.arg for keyword in call.keywords}
            if writes is None:
                continue
            if "encoding" not in given:
                yield call.lineno, "opened as text without an encoding"
            if writes and "newline" not in given and name not in OWN_ENDS and "devnull" not in ast.unparse(call):
                yield call.lineno, "written as text without a newline"


def calls_within(function: ast.AST) -> Iterator[ast.Call]:
    """Calls of a function or module, those of inner functions left to these."""
    todo = [*ast.iter_child_nodes(function)]
    while todo:
        node = todo.pop()
        if not isinstance(node, ast.FunctionDef):
            todo += ast.iter_child_nodes(node)
        if isinstance(node, ast.Call):
            yield node


def text_mode(call: ast.Call, function: ast.AST) -> bool | None:
    """Whether it opens a file to write text; None if it opens none, or bytes."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called in ("read_text", "write_text") and isinstance(call.func, ast.Attribute):
        return called == "write_text"
    if called not in ("open", "fdopen", "NamedTemporaryFile"):
        return None
    of_a_path = isinstance(call.func, ast.Attribute) and called == "open"
    mode = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), None)
    place = 0 if of_a_path else 1
    if mode is None and len(call.args) > place:
        mode = call.args[place]
    if mode is None:
        return None if of_a_path and call.args else False
    strings = {node.value for node in ast.walk(mode) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    if isinstance(mode, ast.Name):  # of a variable: whatever it may be in this function
        strings = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)} - {None}
        strings = {value for value in strings if isinstance(value, str) and re.fullmatch("[rwax][bt+]{0,2}", value)}
    if not strings or not all(re.fullmatch("[rwax][bt+]{0,2}", value) for value in strings):
        return None  # `Image.open(path)`, `archive.open(entry)`
    texts = {value for value in strings if "b" not in value}
    return any(set("wax+") & set(value) for value in texts) if texts else None


def of_one_system(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Modules, functions and signals that Windows has not, where nobody asks for them first."""
    source = ast.unparse(tree)
    for node, guarded in guarded_nodes(tree):
        if isinstance(node, ast.Import) and not guarded:
            for alias in node.names:
                if alias.name in UNIX:
                    yield node.lineno, f"imports {alias.name}"
        elif isinstance(node, ast.ImportFrom) and not guarded and node.module in UNIX:
            yield node.lineno, f"imports from {node.module}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            where, what = node.value.id, node.attr
            of_masks = what in ("SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK")  # they come with a function
            asked = guarded or f"hasattr({where}, '{'pthread_sigmask' if of_masks else what}')" in source
            if where == "os" and what in ELSEWHERE and not asked:
                yield node.lineno, f"os.{what}"
            if where == "signal" and what.startswith("SIG") and what not in EVERYWHERE and not asked:
                yield node.lineno, f"signal.{what}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) != "hasattr":
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(isinstance(value, ast.Constant) and value.value == "fork" for value in given):
                yield node.lineno, "asks for workers by fork"


def guarded_nodes(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it stands below an `if` about the system, or in a `try`."""
    for node in ast.iter_child_nodes(tree):
        asks = isinstance(node, ast.If | ast.IfExp) and re.search(
            r"sys\.platform|os\.name|hasattr", ast.unparse(node.test)
        )
        tries = isinstance(node, ast.Try)
        yield node, guarded
        yield from guarded_nodes(node, guarded or bool(asks) or tries)


def places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Absolute paths, and paths put together by hand."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            if re.match(r"/(tmp|var|home|usr|etc|dev|root|opt)(/|$)|[A-Za-z]:\\", node.value):
                yield node.lineno, f"the path {node.value}"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            ends = [side for side in (node.left, node.right) if isinstance(side, ast.Constant)]
            if any(side.value in ("/", "\\") for side in ends):
                yield node.lineno, "a path put together by hand"


def at_import(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Calls for their effect that workers, which import a program anew where there is no fork, would repeat."""
    for node in tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node.lineno, "a call at import"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_are_portable(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8"), path.name) == []


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (
            True,
            [
                "open(path)",
                "open(path, mode='w', encoding='utf-8')",
                "path.open('a', encoding='utf-8')",
                "path.read_text()",
                "def f():\n    mode = 'a' if x else 'w'\n    open(path, mode)",
                "tempfile.NamedTemporaryFile('w')",
                "import resource",
                "from pwd import getpwuid",
                "x = os.fork()",
                "x = [signal.SIGALRM]",
                "x = DataLoader(context='fork')",
                "x = '/tmp/x'",
                "x = 'C:\\\\x'",
                "x = folder + '/' + name",
                "main()",
            ],
        ),
        (
            False,
            [
                "x = open(path, 'rb')",
                "x = path.open('w', encoding='utf-8', newline='\\n')",
                "x = archive.open(entry)",
                "def f():\n    mode = 'ab' if x else 'wb'\n    open(path, mode)",
                "if sys.platform != 'win32':\n    import resource",
                "x = signal.SIGHUP if hasattr(signal, 'SIGHUP') else None",
                "if hasattr(os, 'fork'):\n    os.fork()",
                "'''/tmp is a folder'''",
            ],
        ),
    ],
)
def test_what_is_not_portable_is_found(found: bool, lines: list[str]) -> None:
    assert [line for line in lines if bool(faults(line)) != found] == []


def test_every_program_has_its_guard() -> None:
    """Workers that are spawned import the program's file anew: it must not start once more."""
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        begins = path.parent.name != "cli" and re.search(r"^def main\(", source, re.MULTILINE)
        if path.parent == ROOT or path.name == "__main__.py" or begins:
            assert re.search(r'^if __name__ == "__main__":$', source, re.MULTILINE), path


def test_names_differ_in_more_than_case() -> None:
    """Two files whose names differ in case alone are one file on Windows and macOS."""
    for folder in {path.parent for path in ROOT.glob("[!.]*/**/*") if "__pycache__" not in path.parts}:
        names = [path.name.lower() for path in folder.iterdir()]
        assert len(names) == len(set(names)), folder


# Runs in odd surroundings --------------------------------------------------------------------------------------------

SPAWNING = """
import multiprocessing
import sys

from torch_caption.io.exits import guarded
from torch_caption.cli.train import train_config
from torch_caption.training.trainer import fit

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(guarded(lambda: fit(*train_config(sys.argv[1:]))))
"""
SETTINGS = ["--hidden-dim", "16", "--wordvec-dim", "8", "--epochs", "1", "--lr", "0.01", "--batch-size", "5"]
SETTINGS += ["--max-length", "6", "--device", "cpu", "--in-memory", "no"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with blanks and letters of no single code page in its name, and data with such words."""
    folder = tmp_path_factory.mktemp("odd") / "mes données 🦊"
    write_tiny(folder / "tiny 🦊", pictures=True)
    path = folder / "tiny 🦊" / "coco2014_vocab.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"red"', '"赤い"'), encoding="utf-8", newline="\n")
    (folder / "spawning.py").write_text(SPAWNING, encoding="utf-8")
    return folder


def in_odd_surroundings(folder: Path, *command: str) -> tuple[str, str]:
    """Output and errors of a program where nothing but ASCII can be shown, and where each missing encoding is told."""
    environment = os.environ | {
        "LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252",
        "PYTHONWARNDEFAULTENCODING": "1", "PYTHONWARNINGS": "default::EncodingWarning", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT), "HOME": str(folder), "MPLCONFIGDIR": str(folder / "mpl"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, timeout=240, check=False
    )
    out, err = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    assert done.returncode == 0, err
    ours = [line for line in err.splitlines() if "EncodingWarning" in line and str(ROOT / "torch_caption") in line]
    assert ours == []
    assert "Traceback" not in err
    return out, err


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Glyph")  # the plots' font has no fox
def test_training_with_spawned_workers_in_a_folder_of_an_odd_name(odd: Path) -> None:
    """The weights are those of a run without workers, in this process."""
    out, _ = in_odd_surroundings(odd, "spawning.py", "--data", "tiny 🦊", "--workers", "2", *SETTINGS)
    assert "epoch 1/1" in out
    (run,) = (path.parent for path in odd.glob("runs/*/best.safetensors"))
    ours = checkpoints.load(run / "last.safetensors").weights
    data = str(odd / "tiny 🦊")
    theirs = fit(*train_config(["--data", data, "--out", str(odd / "here"), "--no-tensorboard", *SETTINGS]))
    expected = checkpoints.load(theirs / "last.safetensors").weights
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:Glyph")
def test_captions_that_the_terminal_cannot_show(odd: Path) -> None:
    if not (odd / "runs").exists():
        fit(*train_config(["--data", str(odd / "tiny 🦊"), "--out", str(odd / "runs"), "--no-tensorboard", *SETTINGS]))
    files = ["--json", "é 🦊.json", "--gallery", "é 🦊.png"]
    out, err = in_odd_surroundings(odd, str(ROOT / "sample.py"), "--split", "val", "--references", *files)
    assert "error" not in err
    assert "??" in out  # a word of the references
    kept = json.loads((odd / "é 🦊.json").read_text(encoding="utf-8"))
    assert "赤い" in json.dumps(kept, ensure_ascii=False)
    assert (odd / "é 🦊.png").read_bytes().startswith(b"\x89PNG")
    printed, _ = in_odd_surroundings(odd, str(ROOT / "sample.py"), "--split", "val", "--references", "--format", "json")
    assert json.loads(printed)["images"] == kept["images"]


def test_run_names_hold_on_every_system(tmp_path: Path) -> None:
    """What is called after a data directory may be called so on every system."""
    for name in ('a:b<c>"d|e?f*g', "a\nb", "a\\b", "\udcff"):
        assert re.fullmatch("[a-g_]+", runs.data_name(str(tmp_path / name))), name
    assert runs.data_name(str(tmp_path / "mes données 🦊")) == "mes données 🦊"
