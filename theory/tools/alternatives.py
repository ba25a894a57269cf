"""Linear alternatives over the rationals: which signs a combination of columns can have.

For every matrix M there are vectors c and y with Mc >= 0, y >= 0, yᵀM = 0 and Mc + y > 0 in every
entry (Tucker 1956; Gordan's and Stiemke's theorems are its two ends). They are found by pivoting:
by the rule of the least index it ends, and no number is rounded.
"""

from collections.abc import Sequence
from fractions import Fraction

from flint import fmpq, fmpq_mat

__all__ = ["Rows", "alternative", "rank", "solved", "times"]

Rows = Sequence[Sequence[Fraction]]


def rank(matrix: Rows) -> int:
    """The rank over the rationals; 0 of no rows."""
    return int(_flint(matrix).rank()) if matrix and matrix[0] else 0


def times(matrix: Rows, vector: Sequence[Fraction]) -> list[Fraction]:
    """M c."""
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def solved(matrix: Rows, right: Rows) -> list[list[Fraction]] | None:
    """Some X with matrix X = right, or None where there is none."""
    columns, wanted = len(matrix[0]), len(right[0])
    joined = _flint([[*row, *more] for row, more in zip(matrix, right, strict=True)])
    reduced, found = joined.rref()
    answer = [[Fraction(0)] * wanted for _ in range(columns)]
    for i in range(found):
        pivot = next(j for j in range(columns + wanted) if reduced[i, j] != 0)
        if pivot >= columns:
            return None
        answer[pivot] = [_fraction(reduced[i, columns + j]) for j in range(wanted)]
    return answer


def alternative(matrix: Rows) -> tuple[list[Fraction], list[Fraction]]:
    """c and y with Mc >= 0, y >= 0, yᵀM = 0 and Mc + y > 0, for rows other than 0.

    The slacks s = Mc are written in terms of some of them, which span their space: s_I = D s_J. Of
    each index k it is asked whether some s >= 0 has s_k > 0. With s_k = 1 that is a system of
    inequalities in dictionary form; where it has no solution, the row that says so is a y >= 0 with
    y_k > 0.
    """
    rows = [[fmpq(v.numerator, v.denominator) for v in row] for row in matrix]
    width = len(rows[0]) if rows else 0
    # Rows of the table: the slacks and then c, in terms of the variables that `names` lists.
    table = {("s", i): list(row) for i, row in enumerate(rows)}
    names: list[tuple[str, int]] = [("c", j) for j in range(width)]
    for place in range(width):
        leaving = next((v for v in table if v[0] == "s" and table[v][place] != 0), None)
        if leaving is not None:
            _pivot(table, names, leaving, place)
    for variable in [v for v in names if v[0] == "c"]:  # on which no slack depends
        place = names.index(variable)
        names.pop(place)
        for row in table.values():
            row.pop(place)
        table[variable] = [fmpq(0)] * len(names)
    c, y = [fmpq(0)] * width, [fmpq(0)] * len(rows)
    for k in range(len(rows)):
        if y[k] > 0 or sum((a * b for a, b in zip(rows[k], c, strict=True)), fmpq(0)) > 0:
            continue
        found = _asked(table, names, k)
        if found[0] == "s":
            c = [a + b for a, b in zip(c, found[1], strict=True)]
        else:
            y = [a + b for a, b in zip(y, found[1], strict=True)]
    return [_fraction(v) for v in c], [_fraction(v) for v in y]


def _asked(
    table: dict[tuple[str, int], list[fmpq]], names: list[tuple[str, int]], k: int
) -> tuple[str, list[fmpq]]:
    """A c with Mc >= 0 and (Mc)_k > 0, or a y >= 0 with y_k > 0."""
    one = ("s", k)
    if one in table:
        place = next(j for j, v in enumerate(table[one]) if v != 0)
        _pivot(table, names, one, place)
    while True:
        here = names.index(one)
        short = [v for v in table if v[0] == "s" and table[v][here] < 0]
        if not short:
            return "s", [
                table[("c", j)][here] if ("c", j) in table else fmpq(0)
                for j in range(sum(v[0] == "c" for v in table))
            ]
        leaving = min(short)
        row = table[leaving]
        able = [v for j, v in enumerate(names) if j != here and row[j] > 0]
        if not able:
            y = [fmpq(0)] * (len(names) + sum(v[0] == "s" for v in table))
            y[leaving[1]] = fmpq(1)
            for j, v in enumerate(names):
                y[v[1]] = -row[j]
            return "y", y
        _pivot(table, names, leaving, names.index(min(able)))


def _pivot(
    table: dict[tuple[str, int], list[fmpq]],
    names: list[tuple[str, int]],
    leaving: tuple[str, int],
    place: int,
) -> None:
    """Exchange a variable of the table for one of those that it is written in."""
    row, entering = table.pop(leaving), names[place]
    solved_row = [-v / row[place] for v in row]
    solved_row[place] = 1 / row[place]
    for other in table.values():
        factor = other[place]
        if factor != 0:
            other[:] = [a + factor * b for a, b in zip(other, solved_row, strict=True)]
            other[place] = factor * solved_row[place]
    table[entering] = solved_row
    names[place] = leaving


def _flint(matrix: Rows) -> fmpq_mat:
    return fmpq_mat([[fmpq(v.numerator, v.denominator) for v in row] for row in matrix])


def _fraction(number: fmpq) -> Fraction:
    return Fraction(int(number.p), int(number.q))
