"""The tree of errors, and that the sources raise its classes for what a user can cause."""

from __future__ import annotations

import ast
import inspect
import pickle
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from torch_caption import errors
from torch_caption.errors import InputError, RunFailure, TorchCaptionError, UsageError

PACKAGE = Path(__file__).resolve().parent.parent / "torch_caption"
TREE = {
    UsageError: (2, {"ConfigError", "RunInUse"}),
    InputError: (2, {"DataError", "CheckpointError", "ImageError", "EncoderError", "DownloadError"}),
    RunFailure: (1, {"NonFiniteError", "OutOfMemory", "WorkerLost", "RankError"}),
}
CLASSES = [getattr(errors, name) for name in errors.__all__]


def test_all_names_every_class_of_the_module() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)} - {"Sequence"}
    assert defined == set(errors.__all__)
    assert sorted(errors.__all__) == errors.__all__


@pytest.mark.parametrize("branch", TREE)
def test_the_tree_and_its_statuses(branch: type[TorchCaptionError]) -> None:
    status, leaves = TREE[branch]
    assert branch.__bases__ == ((TorchCaptionError,) if branch is RunFailure else (TorchCaptionError, ValueError))
    assert {cls.__name__ for cls in CLASSES if cls.__bases__ == (branch,)} == leaves
    assert {cls.status for cls in CLASSES if issubclass(cls, branch)} == {status}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_is_documented_and_crosses_processes(cls: type[TorchCaptionError]) -> None:
    assert cls.__doc__
    copy = pickle.loads(pickle.dumps(cls("x.h5: cut off")))
    assert (type(copy), str(copy), copy.status) == (cls, "x.h5: cut off", cls.status)


# What the sources raise ----------------------------------------------------------------------------------------------

OF_PYTHON = {"Exception", "ValueError", "TypeError", "RuntimeError", "ArithmeticError", "LookupError", "KeyError"} | {
    "FileNotFoundError"
}
# Whose arguments come from code and not from a user: there Python's own exceptions are the contract.
LIBRARY = {
    "functions": "autograd functions",
    "layers": "nn.Modules, with the types of torch.nn",
    "model": "nn.Modules",
    "decoding": "functions over tensors",
    "metrics.scores": "functions over captions",
    "metrics.cider": "functions over captions",
    "plots": "functions over arrays",
    "cs231n": "the assignment's own names",
    "cs231n_pytorch": "the assignment's own names",
    "eecs498": "the course's own names",
    "verify.solution.modules": "of a student's module, reported with its other errors",
    "verify.solution.subjects": "of a student's function, likewise",
    "data.batches": "a sampler; the configuration checks --batch-size and --seed",
    "data.vocabulary.decode": "ids",
    "inference.load.captions": "pictures given in Python",
    "scenes.pixels": "functions over arrays",
}


def raised(tree: ast.AST, where: str) -> Iterator[tuple[str, str]]:
    """Each `raise Name(...)` or `raise Name` of a source, with the function it stands in."""
    for node in ast.iter_child_nodes(tree):
        inner = f"{where}.{node.name}" if isinstance(node, ast.FunctionDef) else where
        if isinstance(node, ast.Raise) and node.exc is not None:
            called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(called, ast.Name):
                yield where, called.id
        yield from raised(node, inner)


def is_library(where: str) -> bool:
    return any(where == part or where.startswith(f"{part}.") for part in LIBRARY)


@cache
def raised_in_package() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found += raised(ast.parse(path.read_text(encoding="utf-8")), module)
    return found


def test_what_a_user_can_cause_is_an_error_of_the_tree() -> None:
    assert [(where, name) for where, name in raised_in_package() if name in OF_PYTHON and not is_library(where)] == []


def test_every_exception_to_it_is_needed() -> None:
    of_python = [where for where, name in raised_in_package() if name in OF_PYTHON]
    unused = {part for part in LIBRARY if not any(where == part or where.startswith(f"{part}.") for where in of_python)}
    assert unused == set()


def test_every_class_is_raised() -> None:
    assert {*errors.__all__} - {name for _, name in raised_in_package()} == {"TorchCaptionError", "UsageError"}
