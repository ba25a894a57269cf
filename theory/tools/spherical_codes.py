"""Spherical codes of few points in exact arithmetic, and bounds on the best gap, as balls.

A code is the matrix of its inner products, in fractions. The equations are those of
`unit_encodings_have_the_gap_of_a_spherical_code`.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations, product

import sympy as sp
from flint import arb

from theory.tools.theta import ball

__all__ = [
    "CODES",
    "SHARP",
    "CodeMaker",
    "Gram",
    "cap_ceiling",
    "cap_constant",
    "cap_floor",
    "ceiling",
    "conference_matrix",
    "cross_polytope",
    "dimension_of",
    "fejes_toth_ceiling",
    "gap_beside_others",
    "gap_of",
    "half_cube",
    "harmonic",
    "harmonic_parts",
    "height_beside_others",
    "known_gap",
    "nine_points",
    "polygon_gap",
    "roots",
    "schlaefli",
    "simplex",
    "spread_per_norm",
]

Gram = Sequence[Sequence[Fraction]]
CodeMaker = Callable[[], Gram]


# Codes, exactly -----------------------------------------------------------------------------------


def _gram(points: Sequence[Sequence[int]], form: Sequence[Fraction | int]) -> Gram:
    """The inner products of integer points under a diagonal form."""
    return [
        [
            sum((Fraction(f) * a * b for f, a, b in zip(form, x, y, strict=True)), Fraction(0))
            for y in points
        ]
        for x in points
    ]


def simplex(size: int) -> Gram:
    """The regular simplex of so many vertices, in one dimension less: cosine -1/(size - 1)."""
    return [
        [Fraction(1) if i == j else Fraction(-1, size - 1) for j in range(size)]
        for i in range(size)
    ]


def cross_polytope(dimension: int) -> Gram:
    """Plus and minus the unit vectors: cosine 0."""
    points = [[s * (i == j) for j in range(dimension)] for i in range(dimension) for s in (1, -1)]
    return _gram(points, [1] * dimension)


def nine_points() -> Gram:
    """Nine points of R^3: three on the equator, and a prism at heights ±√5/3: cosine 1/3.

    In the plane the coordinates are those of (√3 x, y) in sixths: a form of 1/108 and 1/36.
    """
    equator = [(0, 6), (9, -3), (-9, -3)]  # (x, y) = (p / (6 √3), q / 6)
    prism = [(-2 * p // 3, -2 * q // 3, z) for p, q in equator for z in (1, -1)]
    points = [*((p, q, 0) for p, q in equator), *prism]
    return _gram(points, [Fraction(1, 108), Fraction(1, 36), Fraction(5, 9)])


def half_cube() -> Gram:
    """The 16 vertices of the cube of R^5 with an even number of signs: cosine 1/5."""
    points = [p for p in product((1, -1), repeat=5) if p.count(-1) % 2 == 0]
    return _gram(points, [Fraction(1, 5)] * 5)


def schlaefli() -> Gram:
    """27 points of R^6, one for each line of a cubic surface: cosine 1/4, and -1/2 if they meet."""
    pairs = list(combinations(range(6), 2))
    lines = [*(("a", {i}) for i in range(6)), *(("b", {i}) for i in range(6))]
    lines += [("c", {i, j}) for i, j in pairs]

    def meet(one: tuple[str, set[int]], other: tuple[str, set[int]]) -> bool:
        (kind, at), (sort, to) = one, other
        if kind == sort:
            return kind == "c" and not at & to
        return bool(at & to) if "c" in (kind, sort) else not at & to

    return [
        [
            Fraction(1) if p is q else Fraction(-1, 2) if meet(p, q) else Fraction(1, 4)
            for q in lines
        ]
        for p in lines
    ]


def fifty_six() -> Gram:
    """56 points of R^7: plus and minus (3, 3, -1, ..., -1)/√24 in any order: cosine 1/3."""
    points = [
        [s * (3 if k in pair else -1) for k in range(8)]
        for pair in combinations(range(8), 2)
        for s in (1, -1)
    ]
    return _gram(points, [Fraction(1, 24)] * 8)


def roots(dimension: int) -> Gram:
    """The 2 D (D - 1) points (±e_i ± e_j)/√2: cosine 1/2."""
    points = [
        [s * (k == i) + r * (k == j) for k in range(dimension)]
        for i, j in combinations(range(dimension), 2)
        for s, r in product((1, -1), repeat=2)
    ]
    return _gram(points, [Fraction(1, 2)] * dimension)


def conference_matrix() -> list[list[int]]:
    """C, symmetric, of diagonal 0 and signs elsewhere, C^2 = 5: the icosahedron is ±(1 + C/√5)."""
    signs = {0: 0, 1: 1, 4: 1, 2: -1, 3: -1}  # squares modulo 5
    rows = [[signs[(i - j) % 5] for j in range(5)] for i in range(5)]
    return [[0, 1, 1, 1, 1, 1], *([1, *row] for row in rows)]


CODES: Mapping[tuple[int, int], CodeMaker] = {
    (3, 9): nine_points,
    (5, 16): half_cube,
    (6, 27): schlaefli,
    (7, 56): fifty_six,
}
"""Codes with rational inner products, by dimension and size."""

SHARP: Mapping[tuple[int, int], tuple[sp.Expr, ...]] = {
    (3, 12): (sp.sqrt(5) / 5, -sp.sqrt(5) / 5, -sp.sqrt(5) / 5, sp.Integer(-1)),
    (5, 16): (sp.Rational(1, 5), -sp.Rational(3, 5), -sp.Rational(3, 5)),
    (6, 27): (sp.Rational(1, 4), -sp.Rational(1, 2), -sp.Rational(1, 2)),
    (7, 56): (sp.Rational(1, 3), -sp.Rational(1, 3), -sp.Rational(1, 3), sp.Integer(-1)),
}
"""Codes proven optimal by (20), with the roots of their polynomial; the first is the cosine."""


def gap_of(gram: Gram) -> Fraction:
    """The gap of unit vectors that are their own queries: 1 less the largest cosine."""
    return 1 - max(gram[i][j] for i, j in combinations(range(len(gram)), 2))


@cache
def _gap_of(code: CodeMaker) -> Fraction:
    return gap_of(code())


def dimension_of(gram: Gram) -> int:
    """The dimension that vectors with these inner products need, by exact elimination.

    Raises:
        ValueError: no vectors have these inner products.
    """
    rows = [list(row) for row in gram]
    rank = 0
    while any(entry for row in rows for entry in row):
        pivot = max(range(len(rows)), key=lambda i: rows[i][i])
        if rows[pivot][pivot] <= 0:
            raise ValueError("the matrix is not positive semidefinite")
        lead = rows[pivot]
        rows = [
            [entry - row[pivot] * top / lead[pivot] for entry, top in zip(row, lead, strict=True)]
            for row in rows
        ]
        rank += 1
    return rank


# Bounds, as balls ---------------------------------------------------------------------------------


def polygon_gap(size: int) -> arb:
    """1 - cos(2π/N): the gap of N points on a circle."""
    return 2 * (arb.pi() / size).sin() ** 2


def height_beside_others(size: int) -> arb:
    """t of (13): how far above the feature of the others those of N >= 2 shifts stand."""
    m = size * (size - 2)
    linear = arb(4) / 3
    return linear if m == 0 else (m - 3 + (size - 1) * arb(m + 9).sqrt()) / (2 * m)


def gap_beside_others(size: int) -> arb:
    """γ_N of (13): the best gap of N shifts beside other displacements, for N <= D."""
    if size == 1:
        return arb(2)
    t = height_beside_others(size)
    return size * t * ((2 - t) / (2 + size * (size - 2) * t)).sqrt()


def cap_constant(dimension: int) -> arb:
    """C_D of (16): π for D = 2, 4 for D = 3, and C_(D+2) = C_D (D + 1)/D."""
    if dimension < 2:
        raise ValueError(f"caps need a dimension of at least 2, got {dimension}")
    constant = arb(4) if dimension % 2 else arb.pi()
    for d in range(2 + dimension % 2, dimension, 2):
        constant = constant * (d + 1) / d
    return constant


def cap_ceiling(dimension: int, size: int) -> arb:
    """2 (C_D/N)^(2/(D-1)), above the best gap: equation (18)."""
    return 2 * (cap_constant(dimension) / size) ** (arb(2) / (dimension - 1))


def cap_floor(dimension: int, size: int) -> arb:
    """½ (2/(N - 1))^(2/(D-1)), below the best gap of N >= 3 shifts: equation (18)."""
    return (arb(2) / (size - 1)) ** (arb(2) / (dimension - 1)) / 2


def fejes_toth_ceiling(size: int) -> arb:
    """(3 - cot²(π N / (6 (N - 2))))/2: Fejes Tóth's bound in R^3, quoted, for N >= 3."""
    cotangent = (arb.pi() * size / (6 * (size - 2))).cot()
    return (3 - cotangent * cotangent) / 2


def ceiling(dimension: int, size: int, *, others: bool = False) -> arb:
    """The best gap where it is known, else the least upper bound that this page has.

    Args:
        dimension: D >= 1.
        size: N >= 2 shifts, or 1 beside others.
        others: whether there are other displacements.
    """
    if others and size <= dimension:
        return gap_beside_others(size)
    if not others and size <= dimension + 1:
        return 1 + arb(1) / (size - 1)
    if dimension == 1:
        return arb(0) if size > 2 else arb(1)
    if size <= 2 * dimension:
        return arb(1)
    if dimension == 2:
        return polygon_gap(size)
    bounds = [arb(1), cap_ceiling(dimension, size)]
    bounds += [fejes_toth_ceiling(size)] if dimension == 3 else []
    bounds += [
        1 - _root(roots[0]) for (d, n), roots in SHARP.items() if d == dimension and n <= size
    ]
    return min(bounds, key=lambda bound: float(bound.mid()))


def known_gap(dimension: int, size: int) -> arb:
    """The largest gap beside other displacements that a code of this page has, for N >= D + 1."""
    if dimension == 1:
        return arb(1) if size == 2 else arb(0)
    found = [polygon_gap(size), cap_floor(dimension, size)]
    found += [arb(1)] if size <= 2 * dimension else []
    found += [arb(1) / 2] if size <= 2 * dimension * (dimension - 1) and dimension > 2 else []
    found += [ball(_gap_of(code)) for (d, n), code in CODES.items() if d <= dimension and n >= size]
    found += [1 - 1 / arb(5).sqrt()] if dimension >= 3 and size <= 12 else []
    return max((min(gap, arb(1)) for gap in found), key=lambda gap: float(gap.mid()))


def _root(root: sp.Expr) -> arb:
    """A ball around a rational number, or a rational multiple of √5."""
    square = sp.Rational(root**2)
    return ball(Fraction(int(square.p), int(square.q))).sqrt() * (1 if root.is_positive else -1)


def spread_per_norm(dimension: int) -> arb:
    """√(2(D + 1))/D of (24): a spread of scores is at least so much over 1 - cos φ."""
    return arb(2 * (dimension + 1)).sqrt() / dimension


def harmonic_parts(f: sp.Expr, t: sp.Symbol, dimension: int) -> list[sp.Expr]:
    """The coefficients, f_0 first, of a polynomial of degree at most 4 in the Q_k."""
    parts: list[sp.Expr] = []
    for degree in range(4, -1, -1):
        parts.append(sp.expand(f).coeff(t, degree))
        f = sp.expand(f - parts[-1] * harmonic(degree, dimension, t))
    return parts[::-1]


def harmonic(degree: int, dimension: sp.Expr | int, t: sp.Expr) -> sp.Expr:
    """Q_k(t) of (19), k <= 4: its sum over all pairs of points of a sphere is nonnegative."""
    d = sp.sympify(dimension)
    return [
        sp.Integer(1),
        t,
        t**2 - 1 / d,
        t**3 - 3 * t / (d + 2),
        t**4 - 6 * t**2 / (d + 4) + 3 / ((d + 2) * (d + 4)),
    ][degree]
