"""A student's solution: found in files, its dialect recognised, called as `subjects` calls the model solution.

=========  ==================================================================================================
cs231n     2016 to 2024: NumPy arrays; `*_forward -> (out, cache)`, `*_backward(dout, cache) -> gradients`
pytorch    cs231n from 2025: tensors; forward functions alone, which autograd differentiates
eecs498    EECS 498: tensors; forward functions, and `RNN`, `LSTM`, `AttentionLSTM`, `WordEmbedding` as modules
=========  ==================================================================================================

A solution with tensors may have `*_backward` functions too, in any year: they are then called.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_caption.errors import InputError

from . import modules
from .exercises import CELLS, END, FUNCTIONS, NULL, START, Case, Exercise, captioner
from .subjects import LONGEST, Results, detached, differentiated, named, until_end

PACKAGE = Path(__file__).parents[2]
MODULES = {
    "word_embedding": "WordEmbedding",
    **{"rnn_step": "RNN", "rnn": "RNN", "lstm_step": "LSTM", "lstm": "LSTM", "attention": "AttentionLSTM"},
}
NAMES = {
    "temporal_softmax_loss",
    "dot_product_attention",
    "CaptioningRNN",
    *MODULES.values(),
    *(f"{name}_{way}" for name in FUNCTIONS for way in ("forward", "backward")),
}


class Missing(Exception):
    """A function that is not in the solution, or returns None as the assignment's empty one does."""


class Raised(Exception):
    """An error in a student's function.

    Attributes:
        where: file and line.
    """

    def __init__(self, error: BaseException, folder: Path) -> None:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(folder) and not Path(frame.filename).is_relative_to(PACKAGE)
        ]
        self.where = f"{_shown(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else ""
        super().__init__(f"{type(error).__name__}: {error}")


def _shown(file: Path) -> str:
    """The name of a file; a cell of a notebook has a file without one."""
    return "cell" if file.parent.name.startswith("ipykernel_") else file.name


@dataclass(frozen=True)
class Solution:
    """The functions of a student.

    Attributes:
        folder: where its files are.
        functions: by name.
        numpy: whether they take NumPy arrays.
        eecs498: whether they have the names of EECS 498.
    """

    folder: Path
    functions: Mapping[str, Any]
    numpy: bool
    eecs498: bool

    @property
    def dialect(self) -> str:
        return "cs231n" if self.numpy else "eecs498" if self.eecs498 else "pytorch"

    def exercises(self) -> list[Exercise]:
        """Those of which the solution has a function, steps before sequences before the captioner."""
        found = [exercise for exercise in FUNCTIONS.values() if self._has(exercise.name)]
        if "CaptioningRNN" in self.functions:
            cells = [cell for cell in CELLS if cell != "attention" or self._has("attention")]
            cells = [cell for cell in cells if self._has(cell)] or ["rnn"]
            found += [captioner(cell, sampling) for cell in cells for sampling in (False, True)]
        return found

    def _has(self, name: str) -> bool:
        if any(known in self.functions for known in (name, f"{name}_forward", f"{name}_backward")):
            return True
        module = self.functions.get(MODULES.get(name, ""))
        return module is not None and (not name.endswith("_step") or hasattr(module, "step_forward"))

    def run(self, exercise: Exercise, case: Case) -> Results:
        """The named results of a case.

        Raises:
            Missing: the function is not there, or is empty.
            Raised: it raised.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's of overflows, which the results show
                return self._run(exercise, case)
        except (Missing, KeyboardInterrupt):
            raise
        except Exception as error:  # any, of a student
            raise Raised(error, self.folder) from error

    def _run(self, exercise: Exercise, case: Case) -> Results:
        if exercise.name.startswith("CaptioningRNN"):
            return self._captioner(exercise, case)
        if exercise.name == "temporal_softmax_loss":
            return self._loss(exercise, case)
        if f"{exercise.name}_backward" in self.functions:
            return self._by_hand(exercise, case)
        return differentiated(exercise, case, lambda *args: self._outputs(exercise, case, args))

    def _by_hand(self, exercise: Exercise, case: Case) -> Results:
        """A forward and its backward."""
        inputs = {name: self._given(value) for name, value in case.inputs.items()}
        douts = {name: self._given(value) for name, value in case.douts.items()}
        before = {name: detached(value) for name, value in {**inputs, **{f"d{k}": v for k, v in douts.items()}}.items()}
        returned = _filled(self._function(f"{exercise.name}_forward")(*inputs.values()))
        *outputs, cache = returned
        outputs = [detached(out) for out in _filled(outputs)]
        grads = _filled(self._function(f"{exercise.name}_backward")(*douts.values(), cache))
        results = named(exercise, outputs, grads if isinstance(grads, tuple | list) else (grads,))
        after = {**inputs, **{f"d{k}": v for k, v in douts.items()}}
        changed = [name for name, value in before.items() if not torch.equal(value, detached(after[name]))]
        return results | {f"{CHANGED}{name}": before[name] for name in changed}

    def _outputs(self, exercise: Exercise, case: Case, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """The outputs of a forward of tensors, or of a module with the weights of the case."""
        name = exercise.name if exercise.name in self.functions else f"{exercise.name}_forward"
        if name in self.functions:
            returned = _filled(self.functions[name](*args))
        else:
            returned = _filled(self._by_module(exercise, case, args))
        returned = returned if isinstance(returned, tuple | list) else (returned,)
        return tuple(_filled(returned[: len(exercise.outputs)]))

    def _by_module(self, exercise: Exercise, case: Case, args: Sequence[Any]) -> Any:
        """A module of EECS 498, called with the weights of the case, which are found by their shapes and names."""
        given = dict(zip(case.inputs, args, strict=True))
        first, second = ("V", "D") if exercise.name == "word_embedding" else ("D", "H")
        module = self._function(MODULES.get(exercise.name, ""))(case.sizes[first], case.sizes[second]).double()
        modules.put(module, exercise, case, given)
        call = module.step_forward if exercise.name.endswith("_step") else module
        return call(*(value for name, value in given.items() if name[0] not in "Wb"))

    def _loss(self, exercise: Exercise, case: Case) -> Results:
        function = self._function("temporal_softmax_loss")
        x, y, mask = (case.inputs[name] for name in ("x", "y", "mask"))
        if self.numpy or _returns_gradient(function):
            given = [self._given(value) for value in (x, y, mask)]
            loss, dx = _filled(function(*given))
            results = {"loss": detached(loss), "dx": detached(dx)}
            return results | ({f"{CHANGED}x": x} if not torch.equal(x, detached(given[0])) else {})
        leaf = x.clone().requires_grad_()
        if "mask" in inspect.signature(function).parameters:
            loss = function(leaf, y.clone(), mask.clone())
        else:
            loss = function(leaf, torch.where(mask, y, IGNORED), ignore_index=IGNORED)
        loss = _filled(loss)
        (dx,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
        return {"loss": detached(loss), "dx": dx}

    def _captioner(self, exercise: Exercise, case: Case) -> Results:
        cell, words = exercise.name.split()[-1], _vocabulary(case.sizes["V"])
        kind = self._function("CaptioningRNN")
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module):
            return self._module(kind, exercise, case)
        D, W, H = (case.sizes[letter] for letter in "DWH")
        dtype = np.float64 if self.numpy else torch.float64
        model = kind(words, input_dim=D, wordvec_dim=W, hidden_dim=H, cell_type=cell, dtype=dtype)
        given = {name: self._given(case.inputs[name]) for name in exercise.inputs}
        model.params.update(given)
        features, captions = (self._given(case.inputs[name]) for name in ("features", "captions"))
        if "sample" in exercise.name:
            with torch.no_grad():
                return {"captions": until_end(detached(_filled(model.sample(features, max_length=LONGEST))).long())}
        if self.numpy:
            loss, grads = _filled(model.loss(features, captions))
        else:
            leaves = {name: value.requires_grad_() for name, value in given.items()}
            loss = _filled(model.loss(features, captions))
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            grads = dict(zip(leaves, found, strict=True))
        zero = {name: np.zeros(()) for name in exercise.inputs if name not in grads}
        return {"loss": detached(loss), **{f"d{name}": detached({**zero, **grads}[name]) for name in exercise.inputs}}

    def _module(self, kind: type, exercise: Exercise, case: Case) -> Results:
        """The captioner of EECS 498, a module of images."""
        module = modules.build(kind, case, _vocabulary(case.sizes["V"]), exercise.name.split()[-1], NULL)
        leaves = {name: case.inputs[name].clone().requires_grad_() for name in exercise.inputs}
        modules.put(module, exercise, case, leaves)
        images = modules.images(kind, case).clone()
        if "sample" in exercise.name:
            with torch.no_grad():
                sampled = _filled(module.sample(images, max_length=LONGEST))
            return {"captions": until_end(detached(sampled[0] if isinstance(sampled, tuple) else sampled).long())}
        loss = _filled(module(images, case.inputs["captions"].clone()))
        grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return {"loss": detached(loss), **{f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}}

    def _function(self, name: str) -> Any:
        if name not in self.functions:
            raise Missing(name)
        return self.functions[name]

    def _given(self, value: Any) -> Any:
        """A copy of a value in the kind that the solution takes."""
        value = value.clone() if isinstance(value, Tensor) else value
        return value.numpy() if self.numpy and isinstance(value, Tensor) else value


CHANGED = "changed "  # the prefix of the results for inputs that the solution modified
IGNORED = -100


def _vocabulary(V: int) -> dict[str, int]:
    return {"<NULL>": NULL, "<START>": START, "<END>": END, **{f"word{k}": k for k in range(3, V)}}


def _filled(value: Any) -> Any:
    """`value`, unless it is None or has None in it, as the assignment's empty functions return.

    Raises:
        Missing: it is.
    """
    if value is None or (isinstance(value, tuple | list) and any(part is None for part in value[:1])):
        raise Missing
    return value


def _returns_gradient(function: Callable[..., Any]) -> bool:
    """Whether a loss of tensors returns its gradient too, as the NumPy one does."""
    x = torch.zeros(1, 1, 2, dtype=torch.float64)
    try:
        return isinstance(function(x, torch.zeros(1, 1).long(), torch.ones(1, 1).bool()), tuple)
    except Exception:  # found again, and reported, by the call that counts
        return False


# Reading -------------------------------------------------------------------------------------------------------------


def read(path: Path) -> Solution:
    """The solution in a file, or in all files of a folder that define one of the assignment's names.

    Raises:
        InputError: no file defines one of the names, or one has a syntax error.
        Raised: a file raised when it was imported.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    defined = {file: _definitions(file) for file in files}
    files = [file for file in files if NAMES & defined[file].keys()]
    if not files:
        raise InputError(f"{path}: none of the assignment's functions, such as rnn_step_forward, is defined there")
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    functions: dict[str, Any] = {}
    uses: list[str] = []
    for file in files:
        module = _imported(file, folder)
        functions |= {name: getattr(module, name) for name in NAMES & defined[file].keys()}
        uses += [defined[file][name] for name in NAMES & defined[file].keys()]
    return of_functions(functions, uses, folder)


def of_functions(functions: Mapping[str, Any], sources: Sequence[str], folder: Path) -> Solution:
    """The solution with these functions; their sources show its dialect."""
    numpy = sum("np." in source or "numpy." in source for source in sources)
    tensors = sum("torch." in source or "nn." in source for source in sources)
    by_hand = any(name.endswith("_backward") for name in functions)
    is_numpy = numpy >= tensors if numpy or tensors else by_hand
    modules = any(name in functions for name in MODULES.values())
    return Solution(folder, functions, is_numpy, modules or any("ignore_index" in source for source in sources))


def _definitions(file: Path) -> dict[str, str]:
    """The source of each function and class of a file."""
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source, str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}") from None
    except SyntaxError as error:
        raise InputError(f"{file}:{error.lineno}: {error.msg}") from None
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.get_source_segment(source, node) or "" for node in tree.body if isinstance(node, kinds)}


def _imported(file: Path, folder: Path) -> ModuleType:
    """A file as a module; one in a package, such as cs231n/classifiers/rnn.py, by its name in it."""
    file = file.resolve()
    top, parts = file.parent, [file.stem]
    while (top / "__init__.py").exists():
        parts.insert(0, top.name)
        top = top.parent
    sys.path.insert(0, str(top))
    try:
        if len(parts) > 1:
            return importlib.import_module(".".join(parts))
        spec = importlib.util.spec_from_file_location(f"solution_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # any, of a student
        raise Raised(error, folder) from error
