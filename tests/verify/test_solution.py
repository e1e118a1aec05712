"""Checked solutions: correct ones pass, each planted mistake is found and named, nothing is named that is not there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tests.verify.planted import PLANTED, Planted
from torch_caption import cs231n, functions
from torch_caption.errors import InputError
from torch_caption.model.captioner import CaptioningRNN
from torch_caption.verify.solution import model
from torch_caption.verify.solution.check import check, check_solution
from torch_caption.verify.solution.diagnosis import equal
from torch_caption.verify.solution.dialects import NAMES, Solution, read
from torch_caption.verify.solution.exercises import CELLS, END, FUNCTIONS, NULL, Case, Exercise, captioner, cases
from torch_caption.verify.solution.mistakes import MISTAKES, Mistake
from torch_caption.verify.solution.subjects import Model, differentiated, until_end

SOLUTIONS = Path(__file__).parent / "solutions"
DIALECTS = {"numpy_solution": "cs231n", "pytorch_solution": "pytorch", "eecs_solution": "eecs498"}
EXERCISES = [*FUNCTIONS.values(), *(captioner(cell, sampling) for cell in CELLS for sampling in (False, True))]


@pytest.mark.parametrize("exercise", EXERCISES[: len(FUNCTIONS)], ids=lambda exercise: exercise.name)
@pytest.mark.parametrize("automatic", [False, True], ids=["by hand", "automatic"])
def test_the_model_solution_is_the_functions(exercise: Exercise, automatic: bool):
    public = {"attention": functions.attention_lstm}.get(exercise.name) or getattr(functions, exercise.name)
    for case in cases(exercise):
        found = Model(automatic=automatic).run(exercise, case)
        expected = differentiated(exercise, case, lambda *args: _tuple(public(*args)))
        for name, right in expected.items():
            assert equal(found[name], right, 1e-12), f"{name}, {case.name}"


def _tuple(value: torch.Tensor | tuple) -> tuple:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("cell", CELLS)
def test_the_model_captioner_is_the_captioner(cell: str):
    for case in cases(captioner(cell, sampling=False))[:2]:
        found = Model().run(captioner(cell, sampling=False), case)
        ours = _captioner(cell, case)
        loss = ours(case.inputs["features"], case.inputs["captions"])
        names = {name: f"d{name}" for name, _ in ours.named_parameters()}
        grads = dict(zip(names.values(), torch.autograd.grad(loss, list(ours.parameters())), strict=True))
        for name, right in {"loss": loss.detach(), **grads}.items():
            assert equal(found[name], right, 1e-12), name


def _captioner(cell: str, case: Case) -> CaptioningRNN:
    D, W, H, V = (case.sizes[letter] for letter in "DWHV")
    words = {"<NULL>": NULL, "<START>": 1, "<END>": 2, **{f"word{k}": k for k in range(3, V)}}
    made = CaptioningRNN(words, D, W, H, cell).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.copy_(case.inputs[name])
    return made


def test_every_mistake_replaces_a_line_that_is_there_once():
    source = Path(model.__file__).read_text(encoding="utf-8")
    bodies = {
        node.name: ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    assert [m for m in MISTAKES if (bodies[m.function] or "").count(m.right) != 1] == []
    assert len(MISTAKES) == len({(m.function, m.right, m.wrong) for m in MISTAKES})


NOT_IN_GENERAL = {"shifted = x"}  # which shows with large logits alone


@pytest.mark.parametrize("function", sorted({m.function for m in MISTAKES}))
def test_every_mistake_changes_a_result(function: str):
    without_effect = [m.wrong for m in MISTAKES if m.function == function and not _shows(m)]
    assert set(without_effect) <= NOT_IN_GENERAL


def _shows(mistake: Mistake) -> bool:
    for exercise in EXERCISES:
        if mistake.function not in exercise.uses:
            continue
        case = cases(exercise)[0]
        try:
            found = Model((mistake,)).run(exercise, case)
        except (RuntimeError, IndexError):
            return True
        if not all(equal(found[name], right) for name, right in Model().run(exercise, case).items()):
            return True
    return False


@pytest.mark.parametrize("name", DIALECTS)
def test_a_correct_solution_passes(name: str):
    report = check(SOLUTIONS / f"{name}.py")
    assert report.dialect == DIALECTS[name]
    assert [finding for finding in report.findings if finding.status != "ok"] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DIALECTS)
def test_a_correct_solution_passes_for_every_seed(name: str):
    solution = read(SOLUTIONS / f"{name}.py")
    for seed in range(200):
        wrong = [finding for finding in check_solution(solution, seed) if finding.status != "ok"]
        assert wrong == [], seed


def test_the_names_of_cs231n_pass():
    """Those of this package, over its own functions."""
    named = {name: value for name, value in vars(cs231n).items() if name in NAMES}
    findings = check_solution(Solution(Path.cwd(), named, numpy=True, eecs498=False))
    assert [finding for finding in findings if finding.status != "ok"] == []
    assert "CaptioningRNN.sample, lstm" in {finding.function for finding in findings}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{planted.function} {planted.wrong}"[:60])
def test_a_planted_mistake_is_found_and_named(planted: Planted, tmp_path: Path):
    report = check(write(planted, tmp_path))
    wrong = [finding for finding in report.findings if finding.status != "ok"]
    assert wrong
    said = " ".join(sentence for finding in wrong for sentence in finding.diagnosis)
    assert planted.named in said
    # Nothing else of the catalogue is named; what is true as well is in FURTHER.
    named = {sentence for finding in wrong if finding.formula for sentence in finding.diagnosis}
    allowed = ("It follows from", planted.named, *FURTHER.get(planted.wrong, ()))
    assert [sentence for sentence in named if not any(part in sentence for part in allowed)] == []
    if not planted.named:  # nothing of the catalogue is claimed
        assert {finding.formula for finding in wrong} == {""}


FURTHER = {"tanh_c = next_c": ("tanh' is taken at next_c", "do lacks the tanh")}


def write(planted: Planted, folder: Path) -> Path:
    """A solution with the mistake in it."""
    source = (SOLUTIONS / f"{planted.solution}.py").read_text(encoding="utf-8")
    node = next(node for node in ast.parse(source).body if getattr(node, "name", "") == planted.function)
    body = ast.get_source_segment(source, node) or ""
    assert body.count(planted.right) == 1, planted
    path = folder / "solution.py"
    path.write_text(source.replace(body, body.replace(planted.right, planted.wrong)), encoding="utf-8")
    return path


def test_what_is_missing_or_raises_is_reported_and_the_rest_is_checked(tmp_path: Path):
    path = tmp_path / "rnn_layers.py"
    path.write_text(
        "import numpy as np\n"
        "def rnn_step_forward(x, prev_h, Wx, Wh, b):\n"
        "    next_h, cache = None, None\n"
        "    return next_h, cache\n"
        "def temporal_affine_forward(x, w, b):\n"
        "    return np.dot(x, w, b, 1, 2), None\n"
        "def temporal_affine_backward(dout, cache):\n"
        "    return None\n"
        "def word_embedding_forward(x, W):\n"
        "    return W[x], (x, W)\n"
        "def word_embedding_backward(dout, cache):\n"
        "    x, W = cache\n"
        "    dW = np.zeros_like(W)\n"
        "    np.add.at(dW, x, dout)\n"
        "    return dW\n",
        encoding="utf-8",
    )
    report = check(path)
    found = {(finding.function, finding.tensor): finding for finding in report.findings}
    assert found["rnn_step", ""].status == "missing"
    assert found["temporal_affine", ""].status == "raised"
    assert found["temporal_affine", ""].where == "rnn_layers.py:6"
    assert found["word_embedding", "dW"].status == "ok"


def test_a_folder_with_a_package(tmp_path: Path):
    """As the assignment's: the captioner imports the layers from beside it."""
    source = (SOLUTIONS / "numpy_solution.py").read_text(encoding="utf-8")
    layers, _, rest = source.partition("class CaptioningRNN")
    inner = tmp_path / "cs231n" / "classifiers"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (inner.parent / "rnn_layers.py").write_text(layers, encoding="utf-8")
    imports = "import numpy as np\n\nfrom ..rnn_layers import *\n\n\nclass CaptioningRNN"
    (inner / "rnn.py").write_text(imports + rest, encoding="utf-8")
    report = check(tmp_path)
    assert report.passed
    assert {"lstm", "CaptioningRNN.sample, lstm"} <= {finding.function for finding in report.findings}


def test_nothing_to_check(tmp_path: Path):
    (tmp_path / "other.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(InputError, match="none of the assignment's functions"):
        check(tmp_path / "other.py")
    (tmp_path / "broken.py").write_text("def rnn_step_forward(:\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.py:1: "):
        check(tmp_path / "broken.py")


def test_an_import_that_raises(tmp_path: Path):
    (tmp_path / "a.py").write_text("import no_such_module\ndef rnn_step_forward(): pass\n", encoding="utf-8")
    (finding,) = check(tmp_path / "a.py").findings
    assert (finding.status, finding.where) == ("raised", "a.py:1")
    assert "no_such_module" in finding.diagnosis[0]


def test_what_follows_the_end_of_a_caption_is_free():
    """The assignment permits to stop at <END>, and to sample on."""
    captions = torch.tensor([[5, END, 7, END, 3], [5, 6, 7, 8, 9]])
    assert until_end(captions).tolist() == [[5, END, NULL, NULL, NULL], [5, 6, 7, 8, 9]]
    stopped = torch.tensor([[5, END, NULL, NULL, NULL], [5, 6, 7, 8, 9]])
    assert torch.equal(until_end(stopped), until_end(captions))
