"""Which mistake makes these numbers.

A mistake of the catalogue is named where the wrong tensors equal, in two cases of different sizes, those of the model
solution with the mistake in it, and no correct tensor contradicts it. What the catalogue does not explain goes to
general detectors (a factor, a transpose, an axis), and to a description of where the error is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .exercises import DIAGNOSED, Case, Exercise
from .mistakes import MISTAKES, Mistake
from .subjects import Model, Results

CLOSE = 1e-6  # of a wrong tensor to a mistake's, relative to its largest entry
CORRECT = 1e-9  # of a correct tensor to ours, likewise
ROUNDS = 4  # mistakes in one function


def equal(found: Tensor, expected: Tensor, tolerance: float = CLOSE) -> bool:
    """Whether two tensors agree, relative to the largest entry of `expected`."""
    if found.shape != expected.shape:
        return False
    if not found.numel():
        return True
    found, expected = found.double(), expected.double()
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return False
    finite = expected.isfinite()
    gap = (found - expected)[finite].abs()
    scale = expected[finite].abs()
    return bool(gap.numel() == 0 or gap.max() <= tolerance * scale.max() + 1e-300)


@dataclass(frozen=True)
class Explanation:
    """A mistake that was found.

    Attributes:
        mistakes: of the catalogue; several if their results are the same.
        tensors: the names that it explains.
    """

    mistakes: tuple[Mistake, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """The results of an exercise, and the correct ones.

    Attributes:
        exercise, cases: what was asked.
        found, expected: for each case.
        by_hand: whether the gradients are those of a hand-written backward.
        tolerance: of a correct tensor, relative to its largest entry.
    """

    exercise: Exercise
    cases: Sequence[Case]
    found: Sequence[Results]
    expected: Sequence[Results]
    by_hand: bool = False
    tolerance: float = CORRECT

    @property
    def general(self) -> Evidence:
        """That of the cases of a diagnosis, which have nothing particular."""
        cases, found, expected = self.cases[:DIAGNOSED], self.found[:DIAGNOSED], self.expected[:DIAGNOSED]
        return Evidence(self.exercise, cases, found, expected, self.by_hand, self.tolerance)

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the tensors that differ in a case."""
        return tuple(name for name in self.expected[0] if not all(self.correct(name)))

    def correct(self, name: str) -> list[bool]:
        """Whether a tensor is correct, for each case."""
        return [
            name in found and found[name].dtype == right[name].dtype and equal(found[name], right[name], self.tolerance)
            for found, right in zip(self.found, self.expected, strict=True)
        ]

    def matches(self, results: Sequence[Results] | None, name: str) -> bool:
        """Whether these results have the found tensor."""
        return results is not None and all(
            equal(found[name], made[name]) for found, made in zip(self.found, results, strict=True)
        )

    def explains(self, results: Sequence[Results] | None, name: str) -> bool:
        """Whether these results have the found tensor, and not the expected one."""
        return self.matches(results, name) and not all(
            equal(made[name], correct[name]) for made, correct in zip(results or (), self.expected, strict=True)
        )

    def run(self, mistakes: tuple[Mistake, ...], automatic: bool) -> list[Results] | None:
        """The results of the model solution with these mistakes; None if they cannot be computed."""
        try:
            model = Model(mistakes, automatic)
            return [model.run(self.exercise, case) for case in self.cases]
        except (RuntimeError, IndexError):  # sizes for which the wrong formula has no value
            return None


def explain(
    evidence: Evidence, names: tuple[str, ...], known: Sequence[Mistake], settled: Iterable[str]
) -> tuple[list[Explanation], tuple[str, ...]]:
    """The mistakes that explain wrong tensors, and the tensors that stay unexplained.

    Args:
        names: of the tensors.
        known: mistakes that were found in functions which this exercise uses.
        settled: functions that were checked before, where no more are searched.
    """
    settled = set(settled)
    possible = [m for m in MISTAKES if m.function in evidence.exercise.uses]
    fresh = [m for m in possible if m.function not in settled]
    bases = dict.fromkeys((tuple(m for m in known if m in possible), ()))
    best: tuple[list[Explanation], tuple[str, ...]] = [], names
    # A sequence may have a step of its own, with mistakes that the step does not have: then all are possible.
    for candidates in (fresh, possible) if len(fresh) < len(possible) else (possible,):
        for base in bases:
            for automatic in (False, True) if evidence.by_hand else (True,):
                explained, remaining = _search(evidence, names, base, candidates, automatic)
                if len(remaining) < len(best[1]):
                    best = explained, remaining
                if not remaining:
                    return best
    return best


def _search(
    evidence: Evidence,
    names: tuple[str, ...],
    base: tuple[Mistake, ...],
    candidates: Sequence[Mistake],
    automatic: bool,
) -> tuple[list[Explanation], tuple[str, ...]]:
    """One mistake after the other, each that which explains most of what is left."""
    remaining = list(names)
    correct = [name for name in evidence.expected[0] if name not in evidence.wrong]
    results = evidence.run(base, automatic)
    if not all(evidence.matches(results, name) for name in correct):
        return [], names
    explained: list[Explanation] = []
    of_base = tuple(name for name in remaining if evidence.explains(results, name))
    if base and of_base:
        explained.append(Explanation(base, of_base))
        remaining = [name for name in remaining if name not in of_base]
    chosen = base
    for _ in range(ROUNDS):
        if not remaining:
            break
        held = [*correct, *(name for name in names if name not in remaining)]
        scores: dict[tuple[str, ...], list[Mistake]] = {}
        for mistake in candidates:
            if any(mistake.function == m.function and mistake.right == m.right for m in chosen):
                continue
            results = evidence.run((*chosen, mistake), automatic)
            matching = tuple(name for name in remaining if evidence.explains(results, name))
            if matching and all(evidence.matches(results, name) for name in held):
                scores.setdefault(matching, []).append(mistake)
        if not scores:
            break
        most = max(scores, key=len)
        explained.append(Explanation(tuple(scores[most]), most))
        chosen = (*chosen, scores[most][0])
        remaining = [name for name in remaining if name not in most]
    return explained, tuple(remaining)


# Without the catalogue -----------------------------------------------------------------------------------------------


def detect(evidence: Evidence, name: str) -> str:
    """A sentence on one wrong tensor: the first of `DETECTORS` that has one, or where the error is."""
    found = [results[name] for results in evidence.found]
    expected = [results[name] for results in evidence.expected]
    for detector in DETECTORS:
        sentence = detector(evidence, name, found, expected)
        if sentence:
            return sentence
    k = evidence.correct(name).index(False)
    return where(name, found[k], expected[k], evidence.cases[k])


Pairs = Sequence[Tensor]


def _of_all(found: Pairs, expected: Pairs, change: Callable[[Tensor], Tensor]) -> bool:
    try:
        return all(equal(change(f), e) for f, e in zip(found, expected, strict=True))
    except (RuntimeError, IndexError):  # a change that these shapes do not have
        return False


def _shape(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    if all(f.shape == e.shape for f, e in zip(found, expected, strict=True)):
        return ""
    if found[0].dim() == 2 and _of_all(found, expected, lambda f: f.T):
        return f"{name} is transposed."
    for axis in range(found[0].dim()):
        if _of_all(found, expected, lambda f, axis=axis: f.sum(axis)):  # type: ignore[misc]
            return f"{name} is not summed over axis {axis}."
    for axis in range(expected[0].dim()):
        if _of_all(expected, found, lambda e, axis=axis: e.sum(axis)):  # type: ignore[misc]
            return f"{name} is summed over axis {axis}, which it keeps."
    for axis in range(expected[0].dim()):
        if _of_all(expected, found, lambda e, axis=axis: e.mean(axis)):  # type: ignore[misc]
            return f"{name} is averaged over axis {axis}, which it keeps."
    return f"{name} has the shape {tuple(found[0].shape)}; it must be {tuple(expected[0].shape)}."


def _non_finite(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    bad = next((f for f in found if not f.double().isfinite().all()), None)
    if bad is None:
        return ""
    count = int((~bad.double().isfinite()).sum())
    return f"{name} has {count} non-finite (NaN or Inf) entries of {bad.numel()}."


def _float32(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    if all(equal(f, e) for f, e in zip(found, expected, strict=True)):
        return f"The error of {name} is small, as that of float32: is a float64 input converted, or an epsilon added?"
    return ""


def _other(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    for other in evidence.expected[0]:
        if other != name and _of_all(found, [results[other] for results in evidence.expected], lambda f: f):
            back = [results[other] for results in evidence.found]
            if _of_all(back, expected, lambda f: f):
                return f"{name} and {other} are exchanged."
            return f"{name} has the value of {other}."
    return ""


def _factor(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    factors = []
    for f, e in zip(found, expected, strict=True):
        scale = (e * e).sum()
        if f.shape != e.shape or not scale:
            return ""
        c = float((f.double() * e).sum() / scale)
        if not c or not equal(f, c * e):
            return ""
        factors.append(c)
    for letter in "NTHVD" if len(factors) > 1 else "":
        sizes = [case.sizes[letter] for case in evidence.cases]
        candidates: dict[str, list[float]] = {
            letter: [*sizes],
            f"1/{letter}": [1 / size for size in sizes],
            f"sqrt({letter})": [size**0.5 for size in sizes],
            f"1/sqrt({letter})": [size**-0.5 for size in sizes],
        }
        for label, values in candidates.items():
            if all(abs(c - value) <= CLOSE * value for c, value in zip(factors, values, strict=True)):
                return f"{name} is {label} times the correct value."
    if all(abs(c - factors[0]) <= CLOSE * abs(factors[0]) for c in factors):
        if abs(factors[0] + 1) <= CLOSE:
            return f"{name} has the wrong sign."
        return f"{name} is {factors[0]:.6g} times the correct value."
    return ""


def _transposed(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    if found[0].dim() == 2 and _of_all(found, expected, lambda f: f.T):
        return f"{name} is transposed."
    return ""


def _moved(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    """Along the axis of time."""
    if found[0].dim() < 3 or found[0].shape[1] != evidence.cases[0].sizes.get("T"):
        return ""
    if _of_all(found, expected, lambda f: f.flip(1)):
        return f"{name} is in reverse order of time."
    if _of_all([f[:, 1:] for f in found], [e[:, :-1] for e in expected], lambda f: f):
        return f"{name} is shifted by one time step: it begins one step too late."
    if _of_all([f[:, :-1] for f in found], [e[:, 1:] for e in expected], lambda f: f):
        return f"{name} is shifted by one time step: it begins one step too early."
    return ""


def _single(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    if found[0].dim() < 3 or found[0].shape[1] != evidence.cases[0].sizes.get("T"):
        return ""
    for step, of, others in (("last", slice(-1, None), slice(-1)), ("first", slice(1), slice(1, None))):
        same = _of_all([f[:, of] for f in found], [e[:, of] for e in expected], lambda f: f)
        if same and not any(f[:, others].any() for f in found):
            return f"Only the {step} time step of {name} has a value; the others are zero."
    return ""


def _zero(evidence: Evidence, name: str, found: Pairs, expected: Pairs) -> str:
    return "" if any(f.any() for f in found) else f"{name} is zero or was never computed."


DETECTORS: Sequence[Callable[[Evidence, str, Pairs, Pairs], str]] = (
    _shape,
    _non_finite,
    _float32,
    _zero,
    _other,
    _factor,
    _transposed,
    _moved,
    _single,
)


def where(name: str, found: Tensor, expected: Tensor, case: Case) -> str:
    """How the error is distributed: which time steps, rows or gates are correct."""
    sizes: Mapping[str, int] = case.sizes
    wrong = (found.double() - expected.double()).abs() > CLOSE * expected.double().abs().max()
    if not wrong.any():
        return ""
    parts = []
    if expected.dim() >= 2 and expected.shape[0] == sizes.get("N"):
        parts.append(_listed("rows", wrong.flatten(1).any(1)))
    if expected.dim() == 3 and expected.shape[1] == sizes.get("T"):
        parts.append(_listed("time steps", wrong.transpose(0, 1).flatten(1).any(1)))
    if expected.shape[-1:] == (4 * sizes.get("H", 0),):
        gates = wrong.unflatten(-1, (4, sizes["H"])).movedim(-2, 0).flatten(1).any(1)
        if not gates.all():
            parts.append(
                "the columns of gate " + ", ".join(g for g, bad in zip("ifog", gates.tolist(), strict=True) if bad)
            )
    parts = [part for part in parts if part]
    share = f"{int(wrong.sum())} of {wrong.numel()} entries of {name} are wrong"
    return f"{share}: {'; '.join(parts)}." if parts else f"{share}."


def _listed(what: str, wrong: Tensor) -> str:
    return "" if wrong.all() else f"only the {what} {', '.join(map(str, wrong.nonzero().flatten().tolist()))}"
