"""What the sources may say: who imports whom, whose derivatives they are, and which versions belong together."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "torch_caption"
# What a module or folder of the package may import of the package. Others may import whatever makes no circle.
MAY_IMPORT = {
    "functions": set(),
    "reference": set(),
    "vocabulary": {"texts"},
    "decoding": set(),
    "beam": {"decoding"},
    "likelihood": {"decoding"},
    "java": set(),
    "ending": set(),
    "texts": {"ending"},
    "tokenizer": set(),
    "metrics": {"java", "tokenizer"},
    "agreement": set(),
    "cells": {"functions", "reference"},
    "captioner": {"beam", "cells", "decoding", "dropout", "functions", "likelihood", "vocabulary"},
    "dropout": {"functions"},
    "data": {"ending", "files", "folders", "texts", "tokenizer", "vocabulary"},
    "photographs": {"data", "vocabulary"},
    "plots": {"data", "folders"},
    "description": {"captioner", "captioning", "data", "tokenizer", "vocabulary"},
    "config": {"files"},
    "lock": {"files"},
    "curves": set(),
    "distributed": {"ending"},
    "interruption": {"distributed", "ending"},
    "loading": {"data", "ending"},
    "files": set(),
    "folders": set(),
    "seal": set(),
    "archive": set(),
    "checkpoint": {"archive", "captioner", "config", "files", "seal", "vocabulary"},
    "objectives": {"captioner", "captioning", "config", "data", "decoding", "metrics", "vocabulary"},
    "not_finite": {"captioner", "distributed", "objectives"},
    "cs231n": {"captioner", "data", "decoding", "functions", "metrics", "vocabulary"},
    "compare": {"agreement", "captioner", "cells", "ending", "functions", "plots", "reference", "vocabulary"},
}
FORBIDDEN = re.compile(
    r"""torch\.(
        autograd\.(grad|backward|functional)\b .*
      | (func|nn|ops|_VF|jit|_dynamo) \b .*
      | (\w+_)? (rnn|lstm|gru) (_\w+)?
      | \w+_backward .*
      | (cross_entropy|nll_loss|embedding|linear)\w*
    )""",
    re.VERBOSE,
)
ALLOWED = {"torch.nn.Parameter"}  # a type, of which a tensor may be


def sources(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_of(path: Path) -> str:
    """Dotted, from the package on."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


@cache
def imports(path: Path) -> set[str]:
    """Every module that a source names in an import, wherever it stands; relative ones made absolute."""
    package = module_of(path) if path.stem == "__init__" else module_of(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return found


def part(module: str) -> str:
    """ "torch_caption.data.coco" is of "data"; the package itself is ""."""
    return [*module.split("."), ""][1]


def arrows() -> dict[str, set[str]]:
    """Each part of the package with the other parts it imports."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        own = {name for name in imports(path) if name.split(".")[0] == "torch_caption"}
        found.setdefault(part(module), set()).update({part(name) for name in own} - {part(module), ""})
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_arrows_point_one_way(name):
    assert arrows()[name] <= MAY_IMPORT[name]


def test_there_is_no_circle():
    order = [*TopologicalSorter(arrows()).static_order()]
    assert order.index("functions") < order.index("cells") < order.index("captioner") < order.index("training")


def test_modules_of_a_folder_make_no_circle():
    graph = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_one_module_knows_of_several_processes():
    engines = ("torch.distributed", "torch.nn.parallel")
    assert {m for m, path in MODULES.items() if any(name.startswith(engines) for name in imports(path))} == {
        "torch_caption.distributed"
    }


def test_functions_import_torch_alone():
    for path in sources(PACKAGE / "functions"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots <= {"torch", "torch_caption", "__future__", *sys.stdlib_module_names}
        assert {part(name) for name in imports(path) if name.startswith("torch_caption")} <= {"functions"}


def test_torchvision_has_one_importer():
    importers = {module for module, path in MODULES.items() if any(n.startswith("torchvision") for n in imports(path))}
    assert importers == {"torch_caption.data.features"}
    scripts = [path for path in ROOT.glob("*.py") if any(n.startswith("torchvision") for n in imports(path))]
    assert scripts == []


# Whose derivatives they are ------------------------------------------------------------------------------------------


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def borrowed(source: str) -> set[str]:
    """Derivatives and ready-made layers of torch in a source."""
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    defined |= {alias.name for node in relative for alias in node.names}  # of another file of ours
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            name = dotted(node)
            last = name.rpartition(".")[2]
            call_back = isinstance(node, ast.Attribute) and node.attr in ("backward", "vjp", "grad", "autograd_grad")
            foreign = last.endswith("_backward") and last not in {*defined, "save_for_backward"}
            if FORBIDDEN.fullmatch(name) or call_back or foreign:
                found.add(name or last)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if FORBIDDEN.fullmatch(name)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name != "torch" and alias.name.startswith("torch")}
    return found - ALLOWED


@pytest.mark.parametrize("path", sources(PACKAGE / "functions"), ids=lambda path: path.stem)
def test_derivatives_are_our_own(path):
    assert borrowed(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from .lstm import step_backward\nother_backward(x)",
        "torch.autograd.grad(loss, x)",
        "from torch.autograd import grad",
        "loss.backward()",
        "torch.func.vjp(f, x)",
        "from torch.func import jacrev",
        "import torch.nn.functional as F",
        "from torch.nn import functional",
        "from torch import nn",
        "torch.ops.aten.tanh_backward(g, h)",
        "torch.lstm(x)",
        "torch.rnn_tanh_cell(x)",
        "torch._thnn_fused_lstm_cell_backward(x)",
        "torch.nn.functional.linear(x)",
        "torch.embedding(W, x)",
    ],
)
def test_what_is_borrowed_is_seen(line):
    assert borrowed(line)


def test_every_class_is_of_the_one_form():
    """forward without ctx, setup_context, backward, vmap, a derivation in the docstring; jvp in a subclass."""
    from torch.autograd import Function

    from torch_caption import functions

    classes = [value for value in vars(functions).values() if isinstance(value, type) and issubclass(value, Function)]
    assert len(classes) == 12
    for cls in classes:
        assert {"forward", "setup_context", "backward"} <= vars(cls).keys()
        assert "ctx" not in ast.unparse(function_of(cls.__name__, "forward").args)
        assert cls.generate_vmap_rule
        assert "jvp" not in vars(cls)
        assert "Backward" in cls.__doc__
        (subclass,) = cls.__subclasses__()
        assert set(vars(subclass)) - {"__module__", "__doc__", "__firstlineno__", "__static_attributes__"} >= {"jvp"}
        assert not {"forward", "backward", "setup_context"} & vars(subclass).keys()


def function_of(cls: str, name: str) -> ast.FunctionDef:
    for path in sources(PACKAGE / "functions"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == cls:
                return next(item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name)
    raise LookupError(cls)


# Versions ------------------------------------------------------------------------------------------------------------


def pins(name: str = "requirements.txt") -> dict[str, str]:
    """A file of requirements: name to version."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in wanted)
    return dict(line.split("==") for line in wanted)


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges() -> list[Requirement]:
    return [Requirement(line) for line in project()["dependencies"] + project()["optional-dependencies"]["test"]]


def test_every_pin_lies_in_its_range():
    files = {"requirements.txt": ranges()}
    for extra, lines in project()["optional-dependencies"].items():
        if extra != "test":
            files[f"requirements-{extra}.txt"] = [Requirement(line) for line in lines]
    for file, requirements in files.items():
        wanted = {requirement.name: requirement.specifier for requirement in requirements}
        assert wanted.keys() == pins(file).keys()
        assert {name for name, version in pins(file).items() if version not in wanted[name]} == set()


def test_torch_and_torchvision_are_a_pair():
    """torch 2.k goes with torchvision 0.(k+15): the pins, and where the ranges begin and end."""
    torch, vision = (tuple(map(int, pins()[name].split(".")))[:2] for name in ("torch", "torchvision"))
    assert torch[0] == 2
    assert vision == (0, torch[1] + 15)
    of_torch, of_vision = (
        {k for k in range(100) if f"{prefix}.{k}.0" in requirement.specifier}
        for name, prefix in (("torch", 2), ("torchvision", 0))
        for requirement in ranges()
        if requirement.name == name
    )
    assert {k + 15 for k in of_torch} == of_vision


def test_every_library_that_is_imported_is_required():
    distributions = {
        "PIL": "pillow",
        "pillow_heif": "pillow-heif",
        "dateutil": "python-dateutil",
        "pycocoevalcap": "pycocoevalcap",
    }
    roots = {name.split(".")[0] for path in [*MODULES.values(), *ROOT.glob("*.py")] for name in imports(path)}
    foreign = roots - set(sys.stdlib_module_names) - {"torch_caption", "__future__"}
    extras = [Requirement(line) for lines in project()["optional-dependencies"].values() for line in lines]
    required = {requirement.name for requirement in [*ranges(), *extras]}
    assert {distributions.get(name, name) for name in foreign} <= required
