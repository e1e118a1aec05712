"""The entry of every command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from torch_caption.__main__ import COMMANDS, main
from torch_caption.data import dataset
from torch_caption.io.program import typed

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_of_cli_with_a_main_is_a_command() -> None:
    paths = (ROOT / "torch_caption" / "cli").glob("[!_]*.py")
    modules = {path.stem for path in paths if "\ndef main(" in path.read_text(encoding="utf-8")}
    assert {command.replace("-", "_") for command in COMMANDS} == modules


def test_help_lists_every_command_and_does_not_import_torch() -> None:
    code = "import sys; from torch_caption.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == [*COMMANDS]
    assert "--traceback" in done.stdout


@pytest.mark.parametrize("args", [[], ["trian"], ["--data", "x"]])
def test_an_unknown_command_is_one_line_that_names_the_commands(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err == (
        f"error: no command {args[0] if args else ''!r}; use one of {', '.join(COMMANDS)}\n"
    )


@pytest.mark.parametrize("args", [["check-data", "nowhere", "--traceback"], ["--traceback", "check-data", "nowhere"]])
def test_traceback_is_a_flag_of_every_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("error: nowhere: no such folder")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(directory: Path) -> None:
        raise ValueError("of numpy")

    monkeypatch.setattr(dataset, "open_kinds", broken)
    assert main(["check-data", "data"]) == 1
    first, *between, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert any(line.endswith("in broken") for line in between)
    assert "ValueError: of numpy" in between
    assert last.startswith("error: this is a bug in torch_caption")


def test_the_console_script_is_the_same_entry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"torch-caption": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize(
    ("started", "command", "form"),
    [
        ("bin/torch-caption", "train", "torch-caption train"),
        ("Scripts/torch-caption.exe", "compare", "torch-caption compare"),
        ("checkout/train.py", "train", "python train.py"),
        ("checkout/train.py", "sample", "python sample.py"),
        ("torch_caption/__main__.py", "train", "python -m torch_caption train"),
        ("", "train", "python -m torch_caption train"),
    ],
)
def test_help_and_advice_have_the_form_in_which_the_program_was_started(
    started: str, command: str, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert typed(command) == form
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {form} [-h]")


WORK = {  # of each command: the function that does it, and arguments
    "train": ("torch_caption.cli.train.fit", []),
    "sample": ("torch_caption.cli.sample.run", []),
    "evaluate": ("torch_caption.cli.evaluate.run", []),
    "prepare": ("torch_caption.cli.prepare.prepare", ["--out", "x"]),
    "export": ("torch_caption.cli.export.run", []),
    "compare": ("torch_caption.cli.compare.report", []),
    "check-data": ("torch_caption.data.dataset.open_kinds", ["."]),
}


@pytest.mark.parametrize("command", WORK)
def test_every_command_reports_missing_memory_with_flags_that_it_has(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.")

    work, args = WORK[command]
    monkeypatch.setattr(work, out_of_memory)
    assert main([command, *args]) == 1
    message = capsys.readouterr().err
    assert re.fullmatch(r"error: not enough memory: 4,000 bytes more were requested; .*\n", message)
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert set(re.findall(r"--[\w-]+", message)) <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))
