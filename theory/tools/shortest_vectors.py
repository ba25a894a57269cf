"""Short vectors of a lattice with a rational Gram matrix, exactly, and how few of them there are.

The equations are those of `gaussian_gap_is_a_shortest_vector`. Nothing is done cleverly: every
integer point of a box is tried.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from math import isqrt

from flint import arb, fmpq, fmpq_mat

from theory.tools.theta import BITS, ball, precision

__all__ = ["Matrix", "Point", "box", "form", "mass_bound", "pivots", "shortest", "vectors"]

Matrix = Sequence[Sequence[Fraction | int | float]]
Point = tuple[int, ...]


def form(matrix: Matrix, e: Sequence[int]) -> Fraction:
    """Q(e), exactly."""
    return sum(
        (
            Fraction(entry) * a * b
            for row, a in zip(matrix, e, strict=True)
            for entry, b in zip(row, e, strict=True)
        ),
        start=Fraction(0),
    )


def pivots(matrix: Matrix) -> tuple[Fraction, ...]:
    """The pivots of (6), in order, as quotients of leading minors."""
    minors = [fmpq(1)] + [_rationals(matrix, n).det() for n in range(1, len(matrix) + 1)]
    return tuple(_fraction(larger / minor) for minor, larger in pairwise(minors))


def box(matrix: Matrix, largest: Fraction) -> tuple[int, ...]:
    """How far the entries of an integer e with Q(e) ≤ `largest` reach: (10)."""
    inverse = _rationals(matrix, len(matrix)).inv()
    bounds = (largest * _fraction(inverse[i, i]) for i in range(len(matrix)))
    return tuple(isqrt(bound.numerator // bound.denominator) for bound in bounds)


def vectors(matrix: Matrix, largest: Fraction) -> list[Point]:
    """All integer e ≠ 0 with Q(e) ≤ `largest`, of both signs."""
    points = product(*(range(-reach, reach + 1) for reach in box(matrix, largest)))
    return [e for e in points if any(e) and form(matrix, e) <= largest]


def shortest(matrix: Matrix) -> Fraction:
    """μ, exactly."""
    least = min(Fraction(row[i]) for i, row in enumerate(matrix))
    return min(form(matrix, e) for e in vectors(matrix, least))


def mass_bound(alpha: Fraction | int | float | arb, dimension: int, *, bits: int = BITS) -> arb:
    """M(α) of (16), as a ball.

    Raises:
        ValueError: α > d/4 does not hold.
    """
    with precision(bits):
        a, quarter = ball(alpha), arb(dimension) / 4
        if not a > quarter:
            raise ValueError(f"alpha must be more than {dimension}/4, got {alpha}")
        x = (-a).exp()
        second = 4**dimension * a / (a - quarter) - 2 ** (dimension + 1) + 1
        bound: arb = 2 * (2**dimension - 1) * x + second * x**2
        return bound


def _rationals(matrix: Matrix, size: int) -> fmpq_mat:
    """The leading block of a matrix."""
    entries = [Fraction(entry) for row in matrix[:size] for entry in row[:size]]
    return fmpq_mat(size, size, [fmpq(e.numerator, e.denominator) for e in entries])


def _fraction(number: fmpq) -> Fraction:
    return Fraction(int(number.p), int(number.q))
