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
# What each room, and each module beside them, may import of the others.
MAY_IMPORT = {
    "errors": set(),
    "functions": set(),
    "io": {"errors"},
    "data": {"errors", "io"},
    "scenes": {"data", "errors", "io"},
    "metrics": {"data", "errors"},
    "decoding": {"errors"},
    "plots": {"errors", "io"},
    "layers": {"functions"},
    "model": {"data", "decoding", "functions", "layers"},
    "config": {"errors", "io", "model"},
    "checkpoints": {"config", "data", "errors", "io", "model"},
    "encoders": {"data", "errors", "io", "scenes"},
    "prepare": {"data", "encoders", "errors", "io"},
    "verify": {"data", "errors", "functions", "io", "model", "plots"},
    "inference": {
        *("checkpoints", "config", "data", "decoding", "encoders", "errors", "io", "model", "plots", "scenes"),
    },
    "cs231n": {"data", "errors", "functions", "io", "model"},
    "cs231n_pytorch": {"cs231n", "data", "functions"},
    "eecs498": {"data", "functions"},
    "training": {
        *("checkpoints", "config", "data", "decoding", "errors", "functions", "inference"),
        *("io", "metrics", "model", "plots", "scenes"),
    },
    "cli": {
        *("checkpoints", "config", "data", "decoding", "encoders", "errors", "functions", "inference", "io"),
        *("metrics", "model", "plots", "prepare", "scenes", "training", "verify"),
    },
    "__main__": {"cli", "errors", "io"},
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
ALLOWED = {"torch.nn.Parameter", "torch.jit.is_tracing"}  # a type, of which a tensor may be; and a question


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
    """ "torch_caption.data.dataset" is of "data"; the package itself is ""."""
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


def test_every_module_is_in_the_table_and_no_two_rooms_import_each_other():
    """In the order of the table each stands below what may import it."""
    assert arrows().keys() - {""} == MAY_IMPORT.keys()
    assert sum(path.is_dir() for path in PACKAGE.glob("[!_]*")) <= 15
    names = [*MAY_IMPORT]
    assert all(names.index(below) < names.index(name) for name in names for below in MAY_IMPORT[name])


def test_architecture_page_has_this_table():
    """docs/architecture.md: a row for each name, the highest first, with what it may import."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\S+)\]\(\S+\) \| .* \| (.*) \|$", page, re.MULTILINE)
    written = {name.replace("\\", ""): set(re.findall(r"\w+", imported)) for name, imported in rows}
    assert [*written.items()] == [*reversed(MAY_IMPORT.items())]


def test_modules_of_a_folder_make_no_circle():
    """The package itself imports what it names at its first use."""
    graph = {module: imports(path) & MODULES.keys() - {module, "torch_caption"} for module, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_one_module_knows_of_several_processes():
    engines = ("torch.distributed", "torch.nn.parallel")
    assert {m for m, path in MODULES.items() if any(name.startswith(engines) for name in imports(path))} == {
        "torch_caption.training.distributed"
    }


DERIVED = [path for path in sources(PACKAGE / "functions") if path.stem not in ("matmul", "reference")]


def test_functions_import_torch_alone():
    for path in sources(PACKAGE / "functions"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots <= {"torch", "torch_caption", "__future__", *sys.stdlib_module_names}
        assert {part(name) for name in imports(path) if name.startswith("torch_caption")} <= {"functions"}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_of_image_models_has_one_importer(library):
    importers = {module for module, path in MODULES.items() if any(n.startswith(library) for n in imports(path))}
    assert importers == {f"torch_caption.encoders.{library}_backbones"}
    scripts = [path for path in ROOT.glob("*.py") if any(n.startswith(library) for n in imports(path))]
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


@pytest.mark.parametrize("path", DERIVED, ids=lambda path: path.stem)
def test_derivatives_are_our_own(path):
    assert borrowed(path.read_text(encoding="utf-8")) == set()


def test_every_class_is_of_the_one_form():
    """forward without ctx, setup_context, backward, vmap, a derivation in the docstring; jvp in a subclass."""
    from torch.autograd import Function

    from torch_caption import functions

    classes = [value for value in vars(functions).values() if isinstance(value, type) and issubclass(value, Function)]
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


# What belongs to the process ---------------------------------------------------------------------------------------


def foreign_names(tree: ast.AST) -> set[str]:
    """The names that a source has for modules that are not ours, and for what it imports of them."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif (
            isinstance(node, ast.ImportFrom) and not node.level and not (node.module or "").startswith("torch_caption")
        ):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def root(node: ast.AST) -> str:
    """The name at the head of `a.b[c].d`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def test_one_module_chooses_the_library_of_products():
    setters = {module for module, path in MODULES.items() if any("precision" in write for write in written(path))}
    assert setters == {"torch_caption.functions.matmul"}


def written(path: Path) -> set[str]:
    """The attributes that a source assigns, and the setters that it calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return assigned | {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


# Private names of torch ----------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.endswith("__")


@cache
def own_private_names() -> set[str]:
    """What any source of the package defines."""
    found = {path.stem for path in MODULES.values()}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and root(node) in ("self", "cls"):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def private_names(source: str) -> set[str]:
    """Private names of other libraries in a source."""
    tree = ast.parse(source)
    foreign, found = foreign_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if root(node) in foreign or node.attr not in own_private_names():
                found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            if not getattr(node, "level", 0) and not module.startswith("torch_caption"):
                parts = [*module.split("."), *(part for alias in node.names for part in alias.name.split("."))]
                found |= {part for part in parts if is_private(part)} - {"__future__"}
    return found


INTERNALS = PACKAGE / "functions" / "_torch_internals.py"


@pytest.mark.parametrize("path", [path for path in sources() if path != INTERNALS], ids=module_of)
def test_no_other_module_uses_a_private_name(path):
    assert private_names(path.read_text(encoding="utf-8")) == set()


def test_every_private_name_has_a_test_of_its_own():
    used = private_names(INTERNALS.read_text(encoding="utf-8"))
    used |= {"is_functorch_wrapped_tensor", "is_batchedtensor", "is_legacy_batchedtensor", "get_unwrapped"}
    used |= {"maybe_current_level", "has_static_value", "scan", "get_interpreter_stack"}
    tests = (ROOT / "tests" / "functions" / "test_torch_internals.py").read_text(encoding="utf-8")
    assert {name for name in used - {"_C", "_functorch", "_higher_order_ops"} if name.strip("_") not in tests} == set()


@pytest.mark.parametrize(
    ("check", "lines"),
    [
        (
            borrowed,
            [
                "from .lstm import step_backward\nother_backward(x)",
                "loss.backward()",
                "from torch.func import jacrev",
                "import torch.nn.functional as F",
                "from torch import nn",
                "torch.ops.aten.tanh_backward(g, h)",
                "torch.rnn_tanh_cell(x)",
                "torch._thnn_fused_lstm_cell_backward(x)",
                "torch.embedding(W, x)",
            ],
        ),
        (
            private_names,
            [
                "torch._C._get_dispatch_mode(mode)",
                "from torch._subclasses import FakeTensorMode",
                "from torch.autograd import forward_ad\nforward_ad._current_level",
                "loader._iterator",
            ],
        ),
    ],
)
def test_each_check_of_a_source_can_fail(check, lines):
    assert all(check(f"import torch\n{line}") for line in lines)


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
