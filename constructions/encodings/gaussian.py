"""The Gaussian encoding: a metric of one's own for the distance to the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import permutations, product
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, farthest
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values

Matrix = tuple[tuple[float, ...], ...]

CANDIDATES = 100_000
"""How many integer vectors are tried at most for the shortest: a fraction of a second."""

LARGEST = 2.0**500
"""Bound on the entries on the diagonal, and on their reciprocals: no score overflows."""


@dataclass(frozen=True)
class Gaussian(Encoding):
    """A precision matrix for the distance: a head attends to the target, as a Gaussian around it.

    `r_δ = (δ_i δ_j for i <= j, δ)` and `v = (-Λ_ii, -2 Λ_ij for i < j, 2 Λ Δ)`, so that
    `<v, r_δ> = -(δ - Δ)^T Λ (δ - Δ) + Δ^T Λ Δ`. D_p = d (d + 1) / 2 + d: 2, 5, 9. The gap is the
    squared length of a shortest vector of the lattice with Gram matrix Λ, the least e^T Λ e over
    integer e other than 0. Theorem: `gaussian_gap_is_a_shortest_vector`. (The five features are
    those of the appendix of arXiv 1911.03584 on non-isotropic Gaussians, Λ = Σ^-1 / 2.)

    Args:
        precision: the rows of Λ, symmetric and positive definite; None for the identity of any
            dimension.

    Raises:
        TypeError: the precision is not a tuple of tuples of real numbers.
        ValueError: it is not square, not symmetric, not positive definite, or no float64s.
    """

    precision: Matrix | None = None

    theorem: ClassVar[str] = "gaussian_gap_is_a_shortest_vector"
    crowded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that the precision is one; in exact arithmetic, since floats are rationals."""
        if self.precision is not None:
            _check_rows(self.precision)
            _check_definite(self.precision)

    @property
    def bounded_reach(self) -> bool:
        """Whether a precision is given: what its scores may err grows with the distances."""
        return self.precision is not None

    @property
    def is_diagonal(self) -> bool:
        """Whether the score is a sum over the axes."""
        if self.precision is None:
            return True
        return all(
            entry == 0 or i == j
            for i, row in enumerate(self.precision)
            for j, entry in enumerate(row)
        )

    @property
    def integer_differences(self) -> bool:
        """Whether the precision is made of integers."""
        rows = self.precision or ()
        return all(float(entry).is_integer() for row in rows for entry in row)

    def on_axis(self, axis: int) -> Gaussian | None:
        """The entry of a diagonal precision, as an encoding of that axis alone."""
        if self.precision is None:
            return self
        if not self.is_diagonal or axis >= len(self.precision):
            return None
        return Gaussian(((self.precision[axis][axis],),))

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """On every grid the nearest pixel is the clamped one, iff the precision is diagonal."""
        return {"replicate": self if self.is_diagonal else None}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, D_p) and names (H, D_p); see `Encoding.encode`."""
        dimension = self._checked_dimension(shifts.shape[1])
        pairs = [(i, j) for i in range(dimension) for j in range(i, dimension)]
        rows, columns = ([pair[side] for pair in pairs] for side in (0, 1))
        monomials = displacements[:, rows] * displacements[:, columns]
        matrix = (
            torch.eye(dimension, dtype=shifts.dtype, device=shifts.device)
            if self.precision is None
            else shifts.new_tensor(self.precision)
        )
        twice = shifts.new_tensor([1.0 if i == j else 2.0 for i, j in pairs])
        squares = (-twice * matrix[rows, columns]).expand(len(shifts), -1)
        features = torch.cat([monomials, displacements], dim=-1)
        return features, torch.cat([squares, 2 * shifts @ matrix], dim=-1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The shortest vector, squared and rounded down, less what a computed score may err."""
        self._checked_dimension(grid.dimension)
        if self.precision is None:
            return 1.0
        error = self.score_error(shifts, grid)
        exact = _shortest(self.precision)
        if exact <= 2 * Fraction(error):
            raise ValueError(
                f"precision {self.precision} has a gap of {float(exact):.3g}, and scores on a grid "
                f"of shape {grid.shape} may err by {error:.3g}; accepted: a precision that is "
                "further from singular, or a smaller grid"
            )
        return _rounded_down(exact - 2 * Fraction(error))

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """0 where all sums are exact, such as for integers; else all roundings of float64.

        Of displacements and shifts, and of positions and targets alike (`Absolute`).
        """
        dimension = self._checked_dimension(grid.dimension)
        if self.precision is None or not has_values(shifts, traced=True):
            return 0.0
        shifts = shifts.detach().to("cpu", torch.float64)
        is_whole = bool((shifts == shifts.round()).all())
        reach = _reach(shifts, grid, 0 if is_whole else 1)
        terms = [
            (Fraction(abs(entry)), reach[i] * reach[j])
            for i, row in enumerate(self.precision)
            for j, entry in enumerate(row)
        ]
        size = 3 * sum((entry * factor for entry, factor in terms), start=Fraction(0))
        unit = Fraction(1, max(entry.denominator for entry, _ in terms))
        if is_whole and 2 * size <= unit / Fraction(unit_roundoff(torch.float64)):
            return 0.0  # multiples of a power of two, as small as that many of it
        # Of the sum, of the names, of the features, and of the difference to the peak.
        roundings = dimension * (dimension + 1) // 2 + 2 * dimension + 5
        return float(size * roundings) * unit_roundoff(torch.float64) * (1 + 2**-30)

    def _checked_dimension(self, dimension: int) -> int:
        if self.precision is not None and len(self.precision) != dimension:
            raise ValueError(
                f"precision is {len(self.precision)} x {len(self.precision)}; accepted: "
                f"{dimension} x {dimension}, for shifts in {dimension} dimensions"
            )
        return dimension


def _reach(shifts: Tensor, grid: Lattice, beyond: int) -> list[Fraction]:
    """Bounds on displacements and shifts on each axis; also on positions of keys and of targets."""
    reach = []
    axes = zip(farthest(shifts, grid), shifts.abs().amax(dim=0).tolist(), strict=True)
    for axis, (far, shift) in enumerate(axes):
        first, step, n = grid.origin[axis], grid.spacing[axis], grid.shape[axis]
        nearest = first + step * min(max(-first // step, 0), n - 1)
        # A displacement is the shift and the way from a target to a key; a position is the nearest
        # key to the origin and the way from there.
        reach.append(far + beyond + max(Fraction(shift), Fraction(abs(nearest))))
    return reach


def _check_rows(precision: object) -> None:
    """A square of numbers that float64 has."""
    if not isinstance(precision, tuple) or not all(isinstance(row, tuple) for row in precision):
        raise TypeError(f"precision is {precision!r}; accepted: a tuple of rows, which are tuples")
    entries = [entry for row in precision for entry in row]
    if any(isinstance(e, bool) or not isinstance(e, int | float) for e in entries):
        raise TypeError(f"precision is {precision!r}; accepted: rows of real numbers")
    if not precision or any(len(row) != len(precision) for row in precision):
        raise ValueError(f"precision is {precision!r}; accepted: d rows of d numbers, d >= 1")
    if not all(abs(e) <= LARGEST and float(e) == e for e in entries):
        raise ValueError(f"precision is {precision!r}; accepted: float64s of at most 2^500")


def _check_definite(precision: Matrix) -> None:
    """Symmetric to the last bit; and each pivot of the elimination is positive."""
    if precision != tuple(zip(*precision, strict=True)):
        raise ValueError(f"precision is {precision!r}; accepted: a symmetric matrix")
    if min(row[i] for i, row in enumerate(precision)) < 1 / LARGEST or _inverse(precision) is None:
        raise ValueError(f"precision is {precision!r}; accepted: a positive definite matrix")


def _inverse(precision: Sequence[Sequence[float]]) -> list[list[Fraction]] | None:
    """The inverse of a symmetric matrix, exactly; None if a pivot is not positive."""
    size = len(precision)
    rows = [
        [*map(Fraction, row), *(Fraction(i == j) for j in range(size))]
        for i, row in enumerate(precision)
    ]
    for j, pivot_row in enumerate(rows):
        pivot = pivot_row[j]
        if pivot <= 0:
            return None
        rows[j] = [entry / pivot for entry in pivot_row]
        for i in range(size):
            if i != j:
                factor = rows[i][j]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[j], strict=True)]
    return [row[size:] for row in rows]


@lru_cache(maxsize=256)
def _shortest(precision: Matrix) -> Fraction:
    """The least e^T Λ e over integer vectors e other than 0, exactly.

    An e at least as short as the shortest unit vector has |e_i|^2 <= m (Λ^-1)_ii, m the least entry
    on the diagonal. On the axis with the most integers in that box the best one is next to the
    vertex of a parabola; all values of the others are tried.
    """
    size = len(precision)
    scale = max(Fraction(entry).denominator for row in precision for entry in row)
    form = _reduced([[int(Fraction(entry) * scale) for entry in row] for row in precision])
    inverse = _inverse(form)
    assert inverse is not None
    best = min(form[i][i] for i in range(size))
    box = [math.isqrt(math.floor(best * inverse[i][i])) for i in range(size)]
    longest = box.index(max(box))
    others = [i for i in range(size) if i != longest]
    candidates = math.prod(2 * box[i] + 1 for i in others)
    if candidates > CANDIDATES:
        raise ValueError(
            f"precision is {precision!r}, nearly singular: {candidates} integer vectors may be the "
            f"shortest; accepted: a precision with at most {CANDIDATES}"
        )
    curvature = form[longest][longest]
    for point in product(*(range(-box[i], box[i] + 1) for i in others)):
        if not any(point):
            continue
        known = list(zip(others, point, strict=True))
        slope = sum(form[longest][i] * e for i, e in known)
        rest = sum(form[i][j] * e * f for i, e in known for j, f in known)
        entry = -slope // curvature  # the other one belongs to the opposite point
        best = min(best, (curvature * entry + 2 * slope) * entry + rest)
    return Fraction(best, scale)


def _reduced(form: list[list[int]]) -> list[list[int]]:
    """The same lattice in a basis of which no vector is made shorter by another one.

    Each change makes one positive integer on the diagonal smaller, so that there is a last one.
    """
    pairs = list(permutations(range(len(form)), 2))
    while True:
        for i, j in pairs:
            times = (2 * form[i][j] + form[j][j]) // (2 * form[j][j])
            if times * times * form[j][j] < 2 * times * form[i][j]:
                form[i] = [a - times * b for a, b in zip(form[i], form[j], strict=True)]
                for row in form:
                    row[i] -= times * row[j]
                break
        else:
            return form


def _rounded_down(value: Fraction) -> float:
    """The largest float64 that is not more."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)
