"""Every small change of a source text that a derivation could have got wrong: signs, factors, transposes, indices.

A mutant is the text with one place changed: an arithmetic operator, a comparison, the order of a product's factors or
of results, a sign, a transpose, a constant, an index, a condition, a term, a factor or a statement left out, a function
in the place of its neighbour. What only checks arguments, and the words of an error, stay as they are: `check_...`, an
`if` that raises, `zip(..., strict=True)`. A condition that has a mutant of its own, such as `is None`, is not reversed
a second time.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from itertools import pairwise

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
}
COMPARISONS: dict[type[ast.AST], str] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
PAIRS = ["sigmoid tanh", "sigmoid_ tanh_", "add_ sub_", "amax amin", "max min", "any all", "zeros_like ones_like"]
PAIRS += ["softmax log_softmax"]
ONE_WAY = [
    "mul div",
    "mul_ div_",
    "addcmul addcdiv",
    "addcmul_ addcdiv_",
    "zeros ones",
    "new_zeros new_ones",
    "log exp",
]
ONE_WAY += ["log exp", "index_add index_copy", "index_add_ index_copy_", "scatter_add scatter", "scatter_add_ scatter_"]
NEIGHBOURS = dict(pair.split() for pair in [*PAIRS, *(" ".join(pair.split()[::-1]) for pair in PAIRS), *ONE_WAY])
"""Functions with another that could stand in their place."""
SUMS = {"addmm": "alpha", "addmm_": "alpha", "baddbmm_": "alpha", "addcmul": "value", "addcmul_": "value"}
"""Calls that add a product to what they are given, with the name of the product's factor."""
CHECKS = ("check_", "_check")


@dataclass(frozen=True, order=True)
class Mutant:
    """One change.

    Attributes:
        function: the qualified name of where it is, such as "RNN.backward".
        line: the line number of the place, from 1.
        kind: what sort of change it is.
        before: the text of the place.
        after: what stands there instead.
        start, stop: the place in the source, characters.
    """

    function: str
    line: int
    kind: str
    before: str
    after: str
    start: int
    stop: int

    def apply(self, source: str) -> str:
        """The source with this change."""
        return source[: self.start] + self.after + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.function} line {self.line}: {self.kind}: {flat(self.before)} -> {flat(self.after)}"


def mutants(source: str) -> list[Mutant]:
    """All changes of a module's functions, in the order of their places; no two give the same text."""
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    unique: dict[str, Mutant] = {}
    for mutant in sorted(finder.found, key=lambda m: (m.start, m.stop, m.kind, m.after)):
        unique.setdefault(mutant.apply(source), mutant)
    return [*unique.values()]


class _Finder(ast.NodeVisitor):
    """Walks through functions, leaving out annotations, docstrings, errors and checks."""

    def __init__(self, source: str):
        self.source = source
        lines = source.splitlines(keepends=True)
        self.offsets = [0]
        for line in lines:
            self.offsets.append(self.offsets[-1] + len(line))
        self.lines = [line.encode() for line in lines]
        self.where: list[str] = []
        self.found: list[Mutant] = []

    # Places ----------------------------------------------------------------------------------------------------------

    def place(self, line: int, column: int) -> int:
        """Characters before a place that ast gives in bytes of its line."""
        return self.offsets[line - 1] + len(self.lines[line - 1][:column].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.expr | ast.stmt) -> str:
        start, stop = self.span(node)
        return self.source[start:stop]

    def add(self, node: ast.expr | ast.stmt, kind: str, after: str) -> None:
        start, stop = self.span(node)
        self.found.append(Mutant(".".join(self.where), node.lineno, kind, self.source[start:stop], after, start, stop))

    def closed(self, node: ast.expr) -> str:
        """The text of an operand, in brackets if it is an operation itself."""
        atoms = (ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Call, ast.Tuple)
        return self.text(node) if isinstance(node, atoms) else f"({self.text(node)})"

    def visit_Assign(self, node: ast.Assign) -> None:
        if "__all__" not in map(self.text, node.targets):
            self.visit(node.value)

    # Functions -------------------------------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.where.append(node.name)
        for child in node.body:
            self.visit(child)
        self.where.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name.startswith(CHECKS):
            return
        self.where.append(node.name)
        for child in (*node.args.defaults, *node.body):
            self.visit(child)
        self.where.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    # Expressions -----------------------------------------------------------------------------------------------------

    def visit_BinOp(self, node: ast.BinOp) -> None:
        left, right = self.closed(node.left), self.closed(node.right)
        if isinstance(node.op, ast.MatMult):
            self.add(node, "factors exchanged", f"({right} @ {left})")
        elif type(node.op) in OPERATORS:
            self.add(node, "operator", f"({left} {OPERATORS[type(node.op)]} {right})")
            self.add(node, "right term left out", left)
            self.add(node, "left term left out", f"(-{right})" if isinstance(node.op, ast.Sub) else right)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.add(node, "sign", self.closed(node.operand))
        value = getattr(node.operand, "value", None)
        if isinstance(node.op, ast.USub) and isinstance(value, int):
            self.add(node, "constant", str(-value - 1))
        else:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            left, right = self.closed(node.left), self.closed(node.comparators[0])
            self.add(node, "comparison", f"({left} {COMPARISONS[type(node.ops[0])]} {right})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word = " or " if isinstance(node.op, ast.And) else " and "
        self.add(node, "and, or", "(" + word.join(map(self.closed, node.values)) + ")")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if not reversible(node.test):
            body, orelse = self.closed(node.body), self.closed(node.orelse)
            self.add(node, "condition", f"({orelse} if {self.closed(node.test)} else {body})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(node, "constant", str(not node.value))
        elif isinstance(node.value, (int, float)):
            self.add(node, "constant", str(node.value + 1))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in ("T", "mT") and self.text(node.value) != "self":  # whose T is a number
            self.add(node, "transpose", self.text(node.value))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.slice, ast.Slice):
            self.add(node, "slice left out", self.text(node.value))
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        self.exchange(node, node.elts, "[{}]")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name.startswith(CHECKS):
            return
        if isinstance(function, ast.Attribute):
            self.method(node, function)
        if name == "reversed":
            self.add(node, "order", self.text(node.args[0]))
        for keyword in node.keywords:
            if keyword.arg in ("value", "alpha", "beta"):
                self.add(keyword.value, "sign", f"-({self.text(keyword.value)})")
                self.add(keyword.value, "factor left out", "1")
        node.keywords = [keyword for keyword in node.keywords if not checks_lengths(keyword)]
        self.generic_visit(node)

    def method(self, node: ast.Call, function: ast.Attribute) -> None:
        """Operations that are written as calls: x.mul_(y), torch.addmm(b, x, w)."""
        name, called = function.attr, self.text(function)
        given = {keyword.arg for keyword in node.keywords}
        rest = [self.text(node)[len(called) + 1 : -1]]
        if name in NEIGHBOURS:
            self.add(function, "neighbour", f"{self.text(function.value)}.{NEIGHBOURS[name]}")
        if name.endswith("_") and not name.endswith("__"):
            self.add(node, "factor left out", self.text(function.value))
        if name in SUMS and SUMS[name] not in given:
            self.add(node, "sign", f"{called}({', '.join([*rest, f'{SUMS[name]}=-1'])})")
            self.add(node, "right term left out", f"{called}({', '.join([*rest, f'{SUMS[name]}=0'])})")
        if name in SUMS and SUMS[name] == "alpha" and "beta" not in given:
            self.add(node, "left term left out", f"{called}({', '.join([*rest, 'beta=0'])})")
        if name == "addcmul":
            self.add(node.args[0], "left term left out", f"torch.zeros_like({self.text(node.args[0])})")
        if name == "mul" and len(node.args) == 2:
            for one in node.args:
                kept = ", ".join([self.text(one), "1.0", *(ast.unparse(keyword) for keyword in node.keywords)])
                self.add(node, "factor left out", f"{called}({kept})")

    def exchange(self, node: ast.expr, parts: list[ast.expr], form: str) -> None:
        """Each two neighbours of a list in each other's place."""
        items = [self.text(part) for part in parts]
        for k, (one, other) in enumerate(pairwise(items)):
            if one != other:
                self.add(node, "exchanged", form.format(", ".join([*items[:k], other, one, *items[k + 2 :]])))

    # Statements ------------------------------------------------------------------------------------------------------

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        call = node.value
        name = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else ""
        if isinstance(call, ast.Call) and getattr(call.func, "id", name).startswith(CHECKS):
            return
        self.add(node, "statement left out", "pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        target, value = self.text(node.target), self.text(node.value)
        if type(node.op) in OPERATORS:
            self.add(node, "operator", f"{target} {OPERATORS[type(node.op)]}= {value}")
        self.add(node, "statement left out", "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        check = any(isinstance(child, ast.Raise) for child in node.body)
        if not check and not reversible(node.test):
            self.add(node.test, "condition", f"(not {self.closed(node.test)})")
        for child in (*([] if check else [node.test]), *node.body, *node.orelse):
            self.visit(child)

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.Tuple):
            self.exchange(node.value, node.value.elts, "({})")
        self.generic_visit(node)


def checks_lengths(keyword: ast.keyword) -> bool:
    """Whether it is zip's strict=True."""
    return keyword.arg == "strict" and isinstance(keyword.value, ast.Constant) and keyword.value.value is True


def reversible(test: ast.expr) -> bool:
    """Whether a condition is reversed by a mutant of its own."""
    reverse = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    if isinstance(test, ast.Compare):
        return len(test.ops) == 1 and isinstance(test.ops[0], reverse)
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def flat(text: str) -> str:
    """Text in one line, as `equivalent.toml` has it."""
    return " ".join(text.split())
