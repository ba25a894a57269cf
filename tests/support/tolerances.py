"""Finds tolerances that somebody chose, in the syntax of tests and of the pages' code.

An assertion compares with a bound that is computed for the numbers at hand, with a counted number
of roundings, with a ball, or it wants equal bits. So these are findings:

- a call of `approx`, `isclose` or `allclose`, of `assert_close` or `assert_allclose`, whatever its
  arguments: each has a default tolerance;
- a call of `gradcheck` or `gradgradcheck` that leaves `atol` or `rtol` to its default;
- a keyword `atol`, `rtol`, `rel`, `abs`, `rel_tol` or `abs_tol` whose value is a number other than
  0, or arithmetic of numbers such as `2**-20`;
- a small number, written as a float, on either side of <, <=, > or >=, alone or in arithmetic
  there: `error < 1e-6`, `found <= stated * (1 + 1e-6)`.

Small is above 0 and below 1/100 in size. Every tolerance that this project has had was smaller, and
no fact that its tests compare with is: shares, gaps and norms are larger, and what is smaller is a
power of two or a formula of unit roundoffs, which says where it comes from. The arguments of a
call are its input, not a tolerance, and are left alone. Names are not followed: a bound that has a
name and a derivation is what is wanted.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.support.layout import read

SMALL = 0.01
"""Below this a float in a comparison is taken for a tolerance."""

CALLS = frozenset({"approx", "isclose", "allclose", "assert_close", "assert_allclose"})
DIFFERENCES = frozenset({"gradcheck", "gradgradcheck"})
KEYWORDS = frozenset({"atol", "rtol", "rel", "abs", "rel_tol", "abs_tol"})
ORDERINGS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def tolerance_findings(path: Path) -> list[str]:
    """The tolerances of a test file, or of the Python fences of a page, a sentence each."""
    text = read(path)
    if path.suffix != ".md":
        return findings_in(text)
    return [finding for first, code in fences(text) for finding in findings_in(code, first)]


def fences(page: str) -> Iterator[tuple[int, str]]:
    """Each Python fence of a page: the lines before its code, and the code."""
    lines = page.splitlines()
    start: int | None = None
    for number, line in enumerate(lines):
        if start is None and line.strip() == "```python":
            start = number + 1
        elif start is not None and line.strip() == "```":
            yield start, "\n".join(lines[start:number])
            start = None


def findings_in(code: str, before: int = 0) -> list[str]:
    """The tolerances of some code; `before` lines stand above it."""
    found = []
    for node in ast.walk(ast.parse(code)):
        for what in _of(node):
            # Names alone have no line, and are no finding.
            assert isinstance(node, ast.expr)
            found.append((before + node.lineno, what))
    return [f"line {line}: {what}" for line, what in sorted(found)]


def _of(node: ast.AST) -> Iterator[str]:
    """What is wrong with one node, apart from what is inside it."""
    if isinstance(node, ast.Call):
        name = _name(node.func)
        if name in CALLS:
            yield f"{name} compares with a tolerance"
        if name in DIFFERENCES and not {"atol", "rtol"} <= {k.arg for k in node.keywords}:
            yield f"{name} has a default tolerance"
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS and _value(keyword.value):
                yield f"{keyword.arg}={ast.unparse(keyword.value)} is a tolerance that was chosen"
    if isinstance(node, ast.Compare):
        for operand in _ordered(node):
            for number in _small(operand):
                yield f"{number!r} in {ast.unparse(node)} is a tolerance that was chosen"


def _name(function: ast.expr) -> str:
    """The last part of what is called."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _value(node: ast.expr) -> float | None:
    """The number that an expression of numbers alone has; None for any other."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand)
            return None if value is None else -value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            first, second = _value(left), _value(right)
            if first is not None and second is not None:
                return ARITHMETIC[type(op)](first, second)
    return None


def _ordered(node: ast.Compare) -> Iterator[ast.expr]:
    """The operands that stand beside an ordering, each once."""
    operands = [node.left, *node.comparators]
    beside = {
        side
        for place, op in enumerate(node.ops)
        if isinstance(op, ORDERINGS)
        for side in (place, place + 1)
    }
    yield from (operands[place] for place in sorted(beside))


def _small(node: ast.expr) -> Iterator[float]:
    """The small floats of an operand: itself, or what it adds up or multiplies, no arguments."""
    match node:
        case ast.Constant(value=float() as number) if 0 < abs(number) < SMALL:
            yield number
        case ast.UnaryOp(operand=operand):
            yield from _small(operand)
        case ast.BinOp(left=left, right=right):
            yield from _small(left)
            yield from _small(right)
