"""The documentation holds: its links lead somewhere, its Python runs and prints what it says, its commands exist.

In docs/ and CONTRIBUTING.md every block marked `python` runs, those of a file one after another in one namespace and an
empty folder. A block that prints is followed by a block marked `text` with exactly what it prints.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from torch_caption.__main__ import COMMANDS, TRACEBACK, main

ROOT = Path(__file__).resolve().parent.parent
DOCS = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "notes").glob("*.md"))]
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNNABLE = [*DOCS, ROOT / "CONTRIBUTING.md"]

FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")
COMMAND = re.compile(r"\b(?:(?:python -m torch_caption|torch-caption) (\w[\w-]*)|python (\w+\.py))([^\n|;&]*)")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the number of its first line, `text` the block that follows it at once, if it does."""

    language: str
    content: str
    line: int
    output: str | None


def blocks(page: Path) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(source))
    made = []
    for block, after in itertools.zip_longest(found, found[1:]):
        adjacent = after is not None and after[1] == "text" and not source[block.end() : after.start()].strip()
        line = source.count("\n", 0, block.start(2)) + 1
        made.append(Block(block[1], block[2], line, after[2] if after is not None and adjacent else None))
    return made


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    made: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        made.append(f"{slug}-{made.count(slug)}" if slug in made else slug)
    return set(made)


def links(page: Path) -> list[str]:
    """Where the page's links and pictures lead, those to other sites left out."""
    found = (link or source for link, source in LINK.findall(CODE_SPAN.sub("", prose(page))))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def fault(page: Path, target: str) -> str | None:
    """What is wrong with a relative link, if anything is."""
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(ROOT) or not path.exists():
        return f"{target}: no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"{target}: no such heading"
    return None


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands and scripts that the page names, in blocks and in code spans, each with its flags."""
    written = [block.content.replace("\\\n", " ") for block in blocks(page) if block.language != "python"]
    spans = [span.replace("\n", " ") for span in CODE_SPAN.findall(prose(page))]
    for command, script, rest in COMMAND.findall("\n".join([*written, *spans])):
        yield command or script, re.findall(r"(?<!\S)--[\w-]+", rest)


@functools.cache
def known_flags(program: str) -> frozenset[str]:
    """Every flag that the command's own help lists, and that of every command."""
    help_text = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(help_text),
        pytest.raises(SystemExit) as stop,
    ):
        main([program.removesuffix(".py"), "--help"])
    assert stop.value.code in (0, None), f"{program} --help ends with {stop.value.code}"
    return frozenset(re.findall(r"--[A-Za-z][\w-]*", help_text.getvalue())) | {TRACEBACK}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    faults = [found for target in links(page) if (found := fault(page, target))]
    assert not faults


def test_every_page_of_docs_is_linked_from_another() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in links(page)
        if target[0] != "#"
    }
    assert {*DOCS} - {ROOT / "docs" / "index.md"} <= linked


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name_of)
def test_a_notebook_has_no_outputs_and_is_linked(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    targets = [link for text in texts for link, _ in LINK.findall(CODE_SPAN.sub("", text)) if link]
    assert not [found for target in targets if (found := fault(notebook, target))]
    for page in ("index.md", "notebooks.md"):
        assert f"../notebooks/{notebook.name}" in links(ROOT / "docs" / page)


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_python_runs_and_prints_what_is_written(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "documentation"}
    for block in blocks(page):
        if block.language == "python":
            placed = "\n" * (block.line - 1) + block.content  # a traceback then names the line of the page
            exec(compile(placed, str(page), "exec", dont_inherit=True), namespace)
            printed = capsys.readouterr().out.replace("\\", "/")  # paths, where Windows prints them
            assert printed == (block.output or ""), f"the block at line {block.line} of {name_of(page)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_their_flags_exist(page: Path) -> None:
    for program, flags in commands(page):
        if program.endswith(".py"):
            assert (ROOT / program).is_file(), program
        else:
            assert program in COMMANDS, program
        if flags:
            assert not set(flags) - known_flags(program), program


def test_terms_of_contributing_are_used() -> None:
    form = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("| not | but |")[2].partition("\n\n")[0]
    avoided = [term for row in form.splitlines()[2:] for term in CODE_SPAN.findall(row.split("|")[1])]
    pattern = re.compile(rf"\b({'|'.join(avoided)})\b", re.IGNORECASE)
    checked = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS, *sorted((ROOT / "torch_caption").rglob("*.py"))]
    found = {name_of(path): pattern.findall(path.read_text(encoding="utf-8")) for path in checked}
    assert len(avoided) > 25
    assert not {name: terms for name, terms in found.items() if terms}


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    shown = {line for block in blocks(ROOT / "README.md") for line in block.content.splitlines()}
    run = re.findall(r"^run '(python -m pip install -r requirements\.txt && [^']+)'", script, re.MULTILINE)
    assert len(run) == 2
    assert set(run) <= shown


def test_ci_can_be_run() -> None:
    if os.name == "nt":
        pytest.skip("Windows files have no permission to run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


# What stands for python3 on the path of .ci/run: it makes the environment of itself, shows what pip is to install, and
# ends there.
STAND_IN = """#!/bin/sh
case "$*" in
"-m venv "*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf 'PATH=%s/bin:$PATH MADE_BY=%s\\nexport MADE_BY\\n' "$3" "$0" >"$3/bin/activate"
    ;;
--version) basename "$MADE_BY" ;;
"-m pip install -r requirements.txt")
    cat requirements.txt
    exit 3
    ;;
esac
"""


def ci_installs(folder: Path, **named: str) -> tuple[list[str], list[str], str]:
    """Run .ci/run up to its first installation; what it prints, the pins by then, and what went to stderr."""
    if os.name == "nt":
        pytest.skip("a shell script")
    for name in ("python3", "another"):
        (folder / name).write_text(STAND_IN, encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "TORCH", "TORCHVISION")}
    environment |= {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(folder), **named}
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    printed, _, pins = done.stdout.partition("requirements.txt && python -m pytest\n")
    return printed.splitlines(), pins.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("given", "pins"),
    [
        ({}, {}),
        ({"TORCH": "2.14.1"}, {"torch": "2.14.1", "torchvision": "0.29.1"}),
        ({"TORCH": "2.14.1", "TORCHVISION": "0.29.7"}, {"torch": "2.14.1", "torchvision": "0.29.7"}),
    ],
)
def test_ci_tests_the_versions_that_it_is_given(tmp_path: Path, given: dict[str, str], pins: dict[str, str]) -> None:
    printed, installed, _ = ci_installs(tmp_path, PYTHON="another", **given)
    expected = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    for name, version in pins.items():
        expected = re.sub(rf"^{name}==.*", f"{name}=={version}", expected, flags=re.MULTILINE)
    assert installed == expected.splitlines()
    assert {f"{name}=={version}" for name, version in pins.items()} | {"another"} <= set(printed)


def test_ci_refuses_an_invalid_version_of_torch(tmp_path: Path) -> None:
    _, pins, errors = ci_installs(tmp_path, TORCH="2.14")
    assert not pins
    assert errors == "TORCH=2.14: give all three numbers of a version, such as 2.13.0\n"


def test_faults_of_a_page_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One: `two`!\n[a](gone.md) [b](#one-two) [c](page.md#three) `[d](in-code)` [e](https://x.y) [f](../out.md)\n"
        "```console\n$ python -m torch_caption gone \\\n    --flag 1 && python train.py --a --b\n```\n"
        "```python\nprint(1)\n```\n\n```text\n1\n```\n",
        encoding="utf-8",
    )
    assert [fault(page, target) for target in links(page)] == [
        "gone.md: no such file",
        None,
        "page.md#three: no such heading",
        "../out.md: no such file",
    ]
    assert list(commands(page)) == [("gone", ["--flag"]), ("train.py", ["--a", "--b"])]
    assert blocks(page)[1] == Block("python", "print(1)\n", 8, "1\n")
