"""A solution, checked function by function, and what is wrong with each.

Every output and gradient is compared with the model solution's on the cases of `exercises`; two of them serve the
diagnosis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .diagnosis import Evidence, detect, explain
from .dialects import CHANGED, Missing, Raised, Solution, read
from .exercises import Exercise, cases
from .mistakes import Mistake
from .subjects import Model, Results


@dataclass(frozen=True)
class Finding:
    """One tensor of one function.

    Attributes:
        function: such as rnn_step.
        tensor: an output, such as next_h, or a gradient, such as dWh; empty where the whole function is missing or
            raised.
        status: ok, wrong, raised or missing.
        absolute, relative: the largest error, and that over the largest entry of the correct tensor; infinite where
            the shape differs or an entry is NaN.
        shape: of the tensor that was found.
        expected_shape: of the correct tensor.
        diagnosis: sentences.
        formula: the line of the derivation that a mistake breaks.
        where: file and line of an error that was raised.
        case: the case with the largest error.
    """

    function: str
    tensor: str = ""
    status: str = "ok"
    absolute: float = 0.0
    relative: float = 0.0
    shape: tuple[int, ...] = ()
    expected_shape: tuple[int, ...] = ()
    diagnosis: tuple[str, ...] = ()
    formula: str = ""
    where: str = ""
    case: str = ""


@dataclass(frozen=True)
class Report:
    """What was found in one file or folder.

    Attributes:
        path: of it.
        dialect: cs231n, pytorch or eecs498; empty if it could not be imported.
        findings: in the order of the assignment.
    """

    path: str
    dialect: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.status == "ok" for finding in self.findings)

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity: an error that is not finite is None."""
        plain = asdict(self)
        for finding in plain["findings"]:
            finding |= {name: None for name in ("absolute", "relative") if not math.isfinite(finding[name])}
        return {**plain, "passed": self.passed}


def check(path: Path, seed: int = 0) -> Report:
    """Check the solution in a file or folder.

    Raises:
        torch_caption.errors.InputError: there is nothing to check.
    """
    try:
        solution = read(path)
    except Raised as raised:
        return Report(
            str(path), "", (Finding("import", status="raised", diagnosis=(str(raised),), where=raised.where),)
        )
    return Report(str(path), solution.dialect, tuple(check_solution(solution, seed)))


def check_solution(solution: Solution, seed: int = 0) -> list[Finding]:
    """Check each function; mistakes that are found in one explain what follows from them in those that use it."""
    findings: list[Finding] = []
    known: list[Mistake] = []
    settled: set[str] = set()
    for exercise in solution.exercises():
        found, mistakes = _check(solution, exercise, known, settled, seed)
        findings += found
        known += [mistake for mistake in dict.fromkeys(mistakes) if mistake not in known]
        if all(finding.status in ("ok", "wrong") for finding in found):
            settled |= {*exercise.uses}
    return findings


def _check(
    solution: Solution, exercise: Exercise, known: Sequence[Mistake], settled: set[str], seed: int
) -> tuple[list[Finding], list[Mistake]]:
    """The findings of one exercise, and the mistakes of the catalogue among them."""
    tried = cases(exercise, seed)
    by_hand = f"{exercise.name}_backward" in solution.functions or solution.numpy
    found: list[Results] = []
    for case in tried:
        try:
            found.append(solution.run(exercise, case))
        except Missing:
            return [Finding(exercise.name, status="missing")], []
        except Raised as raised:
            about = "" if case is tried[0] else case.name
            error = Finding(exercise.name, status="raised", diagnosis=(str(raised),), where=raised.where, case=about)
            return [error], []
    model = Model(automatic=not by_hand)
    evidence = Evidence(exercise, tried, found, [model.run(exercise, case) for case in tried], by_hand)
    again = solution.run(exercise, tried[0])
    random = {name for name in evidence.wrong if not _same(found[0][name], again[name])}
    sentences: dict[str, tuple[str, ...]] = {
        name: (f"{name} differs from call to call: the function is random.",) for name in random
    }
    general = tuple(name for name in evidence.general.wrong if name not in random)
    explanations, _ = explain(evidence.general, general, known, settled) if general else ([], ())
    formulas: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for explanation in explanations:
        first = explanation.mistakes[0]
        mistakes += [m for m in explanation.mistakes if m in known] or [first]
        for name in explanation.tensors:
            sentences[name] = (_sentence(explanation.mistakes, known),)
            formulas[name] = first.formula
    changed = sorted({name for results in found for name in results if name.startswith(CHANGED)})
    findings = findings_of(evidence, sentences, formulas)
    findings += [_in_place(exercise, name.removeprefix(CHANGED)) for name in changed]
    return findings, mistakes


def findings_of(
    evidence: Evidence,
    sentences: Mapping[str, tuple[str, ...]] | None = None,
    formulas: Mapping[str, str] | None = None,
) -> list[Finding]:
    """A finding for each tensor; what `sentences` does not explain goes to the general detectors."""
    sentences, formulas = sentences or {}, formulas or {}
    findings = []
    for name in evidence.expected[0]:
        correct = evidence.correct(name)
        if all(correct):
            shape = tuple(evidence.found[0][name].shape)
            findings.append(Finding(evidence.exercise.name, name, shape=shape, expected_shape=shape))
            continue
        diagnosis = sentences.get(name) or tuple(_general(evidence, name))
        errors = [_error(evidence, name, k) for k, right in enumerate(correct) if not right]
        worst: dict[str, Any] = max(errors, key=lambda error: float(error["relative"]))
        worst |= {"diagnosis": diagnosis, "formula": formulas.get(name, "")}
        findings.append(Finding(evidence.exercise.name, name, "wrong", **worst))
    return findings


def _general(evidence: Evidence, name: str) -> list[str]:
    """Sentences on a tensor that no mistake of the catalogue explains."""
    correct = evidence.correct(name)
    if name not in evidence.general.wrong:
        special = [case.name for case, right in zip(evidence.cases, correct, strict=True) if not right]
        return [f"{name} is wrong in a special case only: {'; '.join(special)}."]
    sentences = [detect(evidence.general, name)]
    single = [right for case, right in zip(evidence.cases, correct, strict=True) if case.sizes.get("N") == 1]
    if single and all(single):
        sentences.append("It is correct for N = 1 alone.")
    return sentences


def _in_place(exercise: Exercise, name: str) -> Finding:
    what = "upstream gradient" if name.startswith("d") else "input"
    sentence = f"The function modifies its {what} {name} in place."
    return Finding(exercise.name, name, "wrong", diagnosis=(sentence,))


def _sentence(mistakes: Sequence[Mistake], known: Sequence[Mistake]) -> str:
    if all(mistake in known for mistake in mistakes):
        places = ", ".join(dict.fromkeys(mistake.function for mistake in mistakes))
        return f"It follows from the mistake in {places}."
    return " Or, which gives the same numbers: ".join(dict.fromkeys(mistake.sentence for mistake in mistakes))


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).logical_or(first.isnan() & second.isnan()).all())


def _error(evidence: Evidence, name: str, k: int) -> dict[str, Any]:
    """The errors of a tensor in case k."""
    value, right = evidence.found[k][name].double(), evidence.expected[k][name].double()
    absolute = relative = float("inf")
    if value.shape == right.shape:
        absolute = float((value - right).abs().nan_to_num(nan=float("inf")).max())
        scale = float(right.abs().max())
        relative = absolute / scale if scale else absolute
    shapes = {"shape": tuple(value.shape), "expected_shape": tuple(right.shape)}
    return {"absolute": absolute, "relative": relative, **shapes, "case": evidence.cases[k].name}
