"""Certificates in rationals: where 0 lies among the taps of a kernel.

For every matrix M there are c and y with Mc >= 0, y >= 0, yᵀM = 0 and Mc + y > 0. They are found by
pivoting over the integers, by the rule of the least index, and checked by multiplying. Theorem:
`heads_count_the_rank_of_the_kernel`, equation (4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Numbers = tuple[Fraction, ...]


@dataclass(frozen=True)
class RationalCertificate:
    """The case of a kernel, and a proof of it in rationals, which `check` multiplies out.

    Args:
        taps: a row for each tap that is not 0: the entries of `columns`, which are independent and
            span the column space of all taps written as rows, or do so up to `residual`.
        columns: their numbers among the entries of a tap, row-major over groups, input channels of
            a group and output channels of a group.
        primal: c, a combination of the columns that is negative at no tap.
        dual: y, weights of the taps, none negative, with which they sum to 0. At each tap one of
            the two is positive.
        residual: the Frobenius norm of what the column space leaves of the taps; 0.0 if nothing, by
            exact arithmetic.
    """

    taps: tuple[Numbers, ...]
    columns: tuple[int, ...]
    primal: Numbers
    dual: Numbers
    residual: float = 0.0

    @property
    def case(self) -> str:
        """The letter "a": 0 is not in the convex hull of the taps; "b": on its border; "c": inside.

        The border and the inside are relative to the plane that the taps span.
        """
        if not any(self.dual):
            return "a"
        return "b" if any(self.slack()) else "c"

    def slack(self) -> list[Fraction]:
        """Mc."""
        return [sum(map(_product, row, self.primal), Fraction(0)) for row in self.taps]

    def check(self) -> bool:
        """Whether all that it says of its own numbers is true, in exact arithmetic.

        The columns are independent, Mc >= 0, y >= 0, yᵀM = 0 and Mc + y > 0.
        """
        rank = len(self.columns)
        if len(self.dual) != len(self.taps) or len(self.primal) != rank:
            return False
        if any(len(row) != rank for row in self.taps):
            return False
        slack = self.slack()
        balanced = not any(
            sum(map(_product, column, self.dual), Fraction(0))
            for column in zip(*self.taps, strict=True)
        )
        signs = all(s >= 0 and y >= 0 and s + y > 0 for s, y in zip(slack, self.dual, strict=True))
        return signs and balanced and _rank(self.taps) == rank


def _product(a: Fraction, b: Fraction) -> Fraction:
    return a * b


def _rank(rows: Sequence[Sequence[Fraction]]) -> int:
    """The rank, by elimination."""
    left = [list(row) for row in rows]
    found = 0
    for column in range(len(left[0]) if left else 0):
        pivot = next((i for i in range(found, len(left)) if left[i][column]), None)
        if pivot is None:
            continue
        left[found], left[pivot] = left[pivot], left[found]
        first = left[found]
        for row in left[found + 1 :]:
            if row[column]:
                factor = row[column] / first[column]
                row[:] = [a - factor * b for a, b in zip(row, first, strict=True)]
        found += 1
    return found


PRIME = 2**61 - 1


def is_regular(numbers: Sequence[Sequence[int]]) -> bool:
    """Whether the determinant of a square matrix is not 0, shown modulo a prime.

    True is a proof; False may be wrong, for a determinant that the prime divides.
    """
    left = [[n % PRIME for n in row] for row in numbers]
    for column in range(len(left)):
        pivot = next((row for row in left if row[column]), None)
        if pivot is None:
            return False
        left.remove(pivot)
        inverse = pow(pivot[column], -1, PRIME)
        for row in left:
            factor = row[column] * inverse % PRIME
            if factor:
                row[:] = [(a - factor * b) % PRIME for a, b in zip(row, pivot, strict=True)]
    return True


class Dictionary:
    """The slacks s = Bc of a matrix of integers, written in terms of as many as its rank.

    Every entry is an integer over one common denominator: minors of B over one of them, so that a
    pivot divides without remainder.

    Args:
        rows: of B, (N, r); its columns are independent.

    Raises:
        ZeroDivisionError: they are not.
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.slacks = len(rows)
        self.width = len(rows[0]) if rows else 0
        # Variables are numbers: slacks first, and then the entries of c.
        self.names = [self.slacks + j for j in range(self.width)]
        self.table = {i: list(row) for i, row in enumerate(rows)}
        self.denominator = 1
        for place in range(self.width):
            leaving = next(
                (v for v, row in self.table.items() if v < self.slacks and row[place]), None
            )
            if leaving is None:
                raise ZeroDivisionError("the columns are dependent")
            self.pivot(leaving, place)

    def pivot(self, leaving: int, place: int) -> None:
        """Exchange a variable of the table for one of those that it is written in."""
        row, entering = self.table.pop(leaving), self.names[place]
        pivot, old = row[place], self.denominator
        sign = 1 if pivot > 0 else -1
        for other in self.table.values():
            factor = other[place]
            for j, b in enumerate(row):
                if j != place:
                    other[j] = sign * ((other[j] * pivot - factor * b) // old)
            other[place] = sign * factor
        new = [-sign * b for b in row]
        new[place] = sign * old
        self.table[entering] = new
        self.names[place] = leaving
        self.denominator = abs(pivot)

    def ask(self, k: int) -> tuple[list[Fraction] | None, list[Fraction] | None]:
        """A c with Bc >= 0 and (Bc)_k > 0; or else a y >= 0 with yᵀB = 0 and y_k > 0."""
        if k in self.table:
            row = self.table[k]
            if not any(row):  # a row of B that is 0
                return None, [Fraction(v == k) for v in range(self.slacks)]
            self.pivot(k, next(j for j, value in enumerate(row) if value))
        while True:
            here = self.names.index(k)
            short = [v for v, row in self.table.items() if v < self.slacks and row[here] < 0]
            if not short:
                c = [self.table[self.slacks + j][here] for j in range(self.width)]
                return [Fraction(v, self.denominator) for v in c], None
            leaving = min(short)
            row = self.table[leaving]
            able = [v for j, v in enumerate(self.names) if j != here and row[j] > 0]
            if not able:
                y = [Fraction(0)] * self.slacks
                y[leaving] = Fraction(1)
                for j, name in enumerate(self.names):
                    y[name] = Fraction(-row[j], self.denominator)
                return None, y
            self.pivot(leaving, self.names.index(min(able)))

    def balanced(self, weights: Sequence[int]) -> Numbers:
        """The y with yᵀB = 0 that has these weights at the taps that the dictionary expresses."""
        y = [Fraction(0)] * self.slacks
        for v, row in self.table.items():
            if v < self.slacks:
                y[v] = Fraction(weights[v])
                for name, entry in zip(self.names, row, strict=True):
                    y[name] -= Fraction(entry, self.denominator) * weights[v]
        return tuple(y)

    def misses(self, column: Sequence[int]) -> bool:
        """Whether a column of as many entries is outside of the column space of B."""
        inside = [column[name] for name in self.names]
        return any(
            self.denominator * column[v] != sum(a * b for a, b in zip(row, inside, strict=True))
            for v, row in self.table.items()
            if v < self.slacks
        )


def alternative(dictionary: Dictionary, rows: Sequence[Sequence[int]]) -> tuple[Numbers, Numbers]:
    """c and y with Bc >= 0, y >= 0, yᵀB = 0 and Bc + y > 0, for rows of B other than 0."""
    c, y = [Fraction(0)] * dictionary.width, [Fraction(0)] * dictionary.slacks
    slack = [Fraction(0)] * dictionary.slacks
    for k in range(dictionary.slacks):
        if slack[k] > 0 or y[k] > 0:
            continue
        primal, dual = dictionary.ask(k)
        if primal is not None:
            c = [a + b for a, b in zip(c, primal, strict=True)]
            slack = [sum((a * b for a, b in zip(row, c, strict=True)), Fraction(0)) for row in rows]
        if dual is not None:
            y = [a + b for a, b in zip(y, dual, strict=True)]
    return tuple(c), tuple(y)
