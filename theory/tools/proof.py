"""What a theorem is here: a statement, and named steps that a machine has checked.

A step is an exact statement that Python evaluates to `True`: no floating point, no `simplify`, no
`None` read as yes. Where a proof ranges over something that algebra cannot carry (every grid, every
number of heads), the step is the finite lemma that the range reduces to, and the page says how.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import sympy as sp

__all__ = [
    "Proof",
    "ProofError",
    "Step",
    "Theorem",
    "equal",
    "identical",
    "nonnegative",
    "positive",
]


class ProofError(AssertionError):
    """A step of a proof does not hold."""


@dataclass(frozen=True)
class Step:
    """One checked step, and the numbered equation of the theorem's page that it discharges."""

    name: str
    equation: int


class Proof:
    """The record of a proof while it runs."""

    def __init__(self) -> None:
        """Start with no step."""
        self._steps: list[Step] = []

    def check(self, name: str, holds: object, *, equation: int) -> None:
        """Record the step, which holds only if `holds is True`.

        Raises:
            ProofError: `holds` is anything else; `None`, sympy's "unknown", is not a yes.
        """
        if holds is not True:
            raise ProofError(f"equation ({equation}) is not established: {name} (got {holds!r})")
        self._steps.append(Step(name, equation))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps established so far, in order."""
        return tuple(self._steps)


@dataclass(frozen=True)
class Theorem:
    """The statement of a theorem, as data.

    Attributes:
        slug: the conclusion in words; names the module, the page and the test file, and never
            changes, since papers cite it.
        number: the place in the catalogue, "T2".
        source: where the paper states it, "Lemma 2"; empty for what is new here.
        title: the name for the reader.
        gist: the theorem in one line, for the index of the pages.
        claim: the statement; its first sentence opens the page and the test file too.
        hypotheses: all that the claim assumes.
        notation: each symbol with its meaning and space.
        proof_idea: the proof in a few sentences.
        references: arXiv identifiers and other sources.
        objects: dotted names of the public objects that the theorem is about.
    """

    slug: str
    number: str
    source: str
    title: str
    gist: str
    claim: str
    hypotheses: tuple[str, ...]
    notation: Mapping[str, str]
    proof_idea: str
    references: tuple[str, ...]
    objects: tuple[str, ...]

    @property
    def first_sentence(self) -> str:
        """The claim up to its first full stop that ends a sentence."""
        return self.claim.partition(". ")[0].removesuffix(".") + "."


# Ways to say "this holds" in exact algebra. Each answers True only where it is shown.


def identical(left: object, right: object) -> bool:
    """Whether two expressions, or two matrices, agree once products are expanded.

    Valid for symbols that do not commute. For polynomials, expanded is a normal form, and `False`
    means that they differ.
    """
    difference = sp.sympify(left) - sp.sympify(right)
    if isinstance(difference, sp.MatrixBase):
        return difference.expand().is_zero_matrix is True
    return bool(sp.expand(difference) == 0)


def equal(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two rational functions agree: their difference cancels to 0."""
    return bool(sp.cancel(left - right) == 0)


def positive(expression: sp.Expr) -> bool:
    """Whether the expanded expression is positive, given the signs of its symbols."""
    return sp.expand(expression).is_positive is True


def nonnegative(expression: sp.Expr) -> bool:
    """Whether the expanded expression is nonnegative, given the signs of its symbols."""
    return sp.expand(expression).is_nonnegative is True
