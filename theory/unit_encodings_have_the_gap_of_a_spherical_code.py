"""T12. Unit encodings have the gap of a spherical code.

The codes and the bounds are those of `theory.tools.spherical_codes`. Vectors of any dimension
appear as a Gram matrix of symbols.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.spherical_codes import (
    CODES,
    SHARP,
    cap_constant,
    conference_matrix,
    cross_polytope,
    dimension_of,
    gap_of,
    harmonic,
    harmonic_parts,
    simplex,
)
from theory.tools.theta import BITS, precision

__all__ = ["THEOREM", "prove"]

THEOREM = Theorem(
    slug="unit_encodings_have_the_gap_of_a_spherical_code",
    number="T12",
    source="",
    title="Unit encodings have the gap of a spherical code",
    gist="how large a gap can be, and what it asks of the scores",
    claim=(
        "Features and queries of norm at most 1 in R^D that select N shifts have a gap in score of "
        "at most 1 − cos φ_D(N), and the best have it, φ_D(N) the largest least angle between N "
        "points of the unit sphere. "
        "Beside other displacements the best gap is the same for N >= D + 2, it is 1 for "
        "N = D + 1, and for N <= D it is γ_N, which lies above 1 + 1/N if 2 <= N and does not "
        "depend on D. It is 1 for D + 2 <= N <= 2D, less beyond, and of order N^(−2/(D−1))."
    ),
    hypotheses=(
        "features and queries are vectors of R^D, of norm at most 1; there are N >= 2 shifts",
        "beside other displacements: at least one feature that no head selects",
        "real arithmetic",
    ),
    notation={
        "D, N": "the dimension of features and queries, and the number of shifts",
        "a_h, v_h": "feature of the shift that head h selects, and the head's query",
        "b": "feature of another displacement, which no head selects",
        "g": "the gap in score: the least of v_h (a_h - a_j) and v_h (a_h - b)",
        "φ_D(N)": "the largest least angle between N points of the unit sphere of R^D",
        "γ_N": "the best gap beside other displacements for N <= D",
        "A": "the sum of all a_h",
        "σ(θ)": "the part of the sphere that a cap of angular radius θ covers",
        "C_D": "(D - 1) times the integral of sin^(D-2) over [0, π]: π, 4, 3π/2, ...",
        "Q_k": "the kernel of degree k, <x, y>^k less its traces",
        "L, T": "the largest spread of a head's scores, and the number of positions",
    },
    proof_idea=(
        "Two gaps add up to <v_h - v_j, a_h - a_j> >= 2g, so that the points a_h + v_h are far "
        "apart, since |x + y|^2 >= 4 <x, y>. They lie in the ball of radius 2; moving each along "
        "its own query to the sphere only drives them apart. What is left is a spherical code."
    ),
    references=(
        "R. A. Rankin, The closest packing of spherical caps in n dimensions, 1955",
        "P. Delsarte, J.-M. Goethals, J. J. Seidel, Spherical codes and designs, 1977",
    ),
    objects=("constructions.encodings.Circle", "constructions.normalisers.Softmax"),
)


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T12: equations (2) to (24) of its page."""
    proof = Proof()
    _prove_code(proof)
    _prove_rankin(proof)
    _prove_beside_others(proof)
    _prove_caps(proof)
    _prove_sharp(proof)
    _prove_logits(proof)
    return proof.steps


def _dot(x: sp.Matrix, y: sp.Matrix) -> sp.Expr:
    return (x.T * y)[0]


def _prove_code(proof: Proof) -> None:
    """From a gap to a spherical code of radius 2: (2) to (6)."""
    # A Gram matrix of symbols stands for vectors of any dimension.
    names = ("v", "a", "w", "b")  # v_h, a_h, v_j, a_j
    gram = {
        frozenset(pair): sp.Symbol("".join(pair), real=True)
        for pair in [*combinations(names, 2), *((n, n) for n in names)]
    }

    def inner(x: Mapping[str, sp.Expr], y: Mapping[str, sp.Expr]) -> sp.Expr:
        return sum(p * q * gram[frozenset((i, j))] for i, p in x.items() for j, q in y.items())

    one = sp.Integer(1)
    queries, features = {"v": one, "w": -one}, {"a": one, "b": -one}
    first = inner({"v": one}, features)
    second = inner({"w": one}, {"b": one, "a": -one})
    proof.check(
        "the gaps of two heads add up to <v_h - v_j, a_h - a_j>",
        identical(first + second, inner(queries, features)),
        equation=2,
    )
    both = {**queries, **features}
    apart = {**queries, "a": -one, "b": one}
    proof.check(
        "|x + y|^2 = |x - y|^2 + 4 <x, y>",
        identical(inner(both, both), inner(apart, apart) + 4 * inner(queries, features)),
        equation=3,
    )
    t, s = sp.symbols("t s", nonnegative=True)
    push = {"v": t, "w": -s}
    moved = {"v": 1 + t, "w": -1 - s, "a": one, "b": -one}
    room = 1 - gram[frozenset("vw")]
    more = 2 * t * (first + room) + 2 * s * (second + room) + inner(push, push)
    unit = {gram[frozenset("v")]: 1, gram[frozenset("w")]: 1}
    proof.check(
        "moved by t v_h and s v_j: twice t, and twice s, times a gap and 1 - <v_h, v_j> more",
        identical(inner(moved, moved).subs(unit), (inner(both, both) + more).subs(unit)),
        equation=4,
    )
    cosine = sp.Symbol("c", real=True)
    proof.check(
        "on the sphere of radius 2: 8 - 8 cos = 8 g",
        identical(2 * 4 - 2 * 4 * cosine, 8 * (1 - cosine)),
        equation=5,
    )
    proof.check(
        "a unit vector as its own query: <a_h, a_h - a_j> = 1 - <a_h, a_j>, and 1 for the centre",
        identical(
            inner({"a": one}, {"a": one, "b": -one}).subs(gram[frozenset("a")], 1),
            1 - gram[frozenset("ab")],
        )
        and identical(inner({"a": one}, {"a": one}).subs(gram[frozenset("a")], 1), 1),
        equation=6,
    )
    proof.check(
        "the regular simplex of 2, 3, 4 and 7 vertices, one dimension less: gap 1 + 1/(N - 1)",
        all(
            gap_of(simplex(n)) == 1 + Fraction(1, n - 1) and dimension_of(simplex(n)) == n - 1
            for n in (2, 3, 4, 7)
        ),
        equation=6,
    )


def _prove_rankin(proof: Proof) -> None:
    """D + 2 points have a gap of at most 1; with a gap of 1 there are at most 2 D: (7), (8)."""
    weights = sp.symbols("l:3", positive=True)
    points = [sp.Matrix(sp.symbols(f"a{i}_:2", real=True)) for i in range(3)]
    last = 1 - weights[0] - weights[1]
    weights = (weights[0], weights[1], last)
    centre = sum((w * p for w, p in zip(weights, points, strict=True)), sp.zeros(2, 1))
    proof.check(
        "the mean square about a convex combination: that about 0, less |p|^2",
        identical(
            sum(w * _dot(p - centre, p - centre) for w, p in zip(weights, points, strict=True)),
            sum(w * _dot(p, p) for w, p in zip(weights, points, strict=True))
            - _dot(centre, centre),
        ),
        equation=7,
    )
    x, y = (sp.Matrix(sp.symbols(f"{n}:3", real=True)) for n in "xy")
    e = sp.Matrix([0, 0, 1])
    proof.check(
        "without their parts along a unit vector e, <x, y> is <x, y> - <x, e> <y, e>",
        identical(
            _dot(x - _dot(x, e) * e, y - _dot(y, e) * e), _dot(x, y) - _dot(x, e) * _dot(y, e)
        ),
        equation=8,
    )
    proof.check(
        "plus and minus the unit vectors have gap 1",
        all(
            gap_of(cross_polytope(d)) == 1 and dimension_of(cross_polytope(d)) == d
            for d in (2, 3, 5)
        ),
        equation=8,
    )


def _prove_beside_others(proof: Proof) -> None:
    """The best gap of N <= D shifts beside other displacements: (9) to (14)."""
    m, n, size, t = sp.symbols("m n N t")
    one, total, cross, other = sp.symbols("S A2 Ab b2")  # Σ|a_h|², |A|², <A, b>, |b|²
    kappa = m * (2 - (size - 2) * m)
    squares = (
        (1 + m) ** 2 * one
        - 2 * (1 + m) * (m * total + n * cross)
        + size * (m**2 * total + 2 * m * n * cross + n**2 * other)
    )
    with_n = {n: 1 - (size - 1) * m}
    own, others, centre = sp.symbols("va vA vb")  # <v_h, a_h>, <v_h, A>, <v_h, b>
    proof.check(
        "m times N - 1 margins and n times that to b: <v_h, (1 + m) a_h - m A - n b>",
        identical(
            (m * ((size - 1) * own - (others - own)) + n * (own - centre)).subs(with_n),
            ((1 + m) * own - m * others - n * centre).subs(with_n),
        ),
        equation=9,
    )
    proof.check(
        "Σ |(1 + m) a_h - m A - n b|^2 = (1 + m)^2 Σ|a_h|^2 - κ |A|^2 - 2 n^2 <A, b> + N n^2 |b|^2",
        identical(
            squares.subs(with_n),
            ((1 + m) ** 2 * one - kappa * total - 2 * n**2 * cross + size * n**2 * other).subs(
                with_n
            ),
        ),
        equation=10,
    )
    proof.check(
        "the square is completed in A",
        equal(
            -kappa * total - 2 * n**2 * cross,
            -kappa * (total + 2 * n**2 / kappa * cross + n**4 / kappa**2 * other)
            + n**4 / kappa * other,
        ),
        equation=11,
    )
    proof.check(
        "no others: m = 1/(N - 1), n = 0, κ > 0 for N = 2 + p",
        equal(1 + m.subs(m, 1 / (size - 1)), size / (size - 1))
        and positive(
            sp.cancel(
                (kappa.subs(m, 1 / (size - 1)) * (size - 1) ** 2).subs(
                    size, 2 + sp.Symbol("p", nonnegative=True)
                )
            )
        ),
        equation=12,
    )
    big = size * (size - 2)
    below, rest = 2 + big * t, (size * t - 2, size * t - 2 * t + 2)
    weight = rest[0] / below
    gap = size**2 * t**2 * (2 - t) / below
    root = big * t**2 - (big - 3) * t - 4
    proof.check(
        "the weights of t: (N - 1) m + n = 1, and κ = N (N t - 2)(N t - 2 t + 2) over the square",
        identical((size - 1) * rest[0] + size * (2 - t), below)
        and equal(kappa.subs(m, weight), size * rest[0] * rest[1] / below**2),
        equation=13,
    )
    proof.check(
        "the bound of t is the gap of t, plus a square times the polynomial of t squared",
        identical(
            rest[0] * rest[1] * ((below + rest[0]) ** 2 + size**2 * (2 - t) ** 2)
            + size**2 * (2 - t) ** 4,
            rest[0] * rest[1] * size**2 * t**2 * (2 - t) * below + size**2 * t**2 * root**2,
        ),
        equation=13,
    )
    p = sp.Symbol("p", nonnegative=True)
    at = [
        sp.expand(sp.cancel(root.subs(t, place)).subs(size, 2 + p))
        for place in (sp.Integer(1), sp.Rational(4, 3), 1 + 1 / size)
    ]
    proof.check("1 < t <= 4/3 for N >= 2", positive(-at[0]) and nonnegative(at[1]), equation=13)
    proof.check(
        "the gap as a function of t rises up to the root, and falls after it; 1 + 1/N is after it",
        equal(sp.diff(gap, t), -2 * size**2 * t * root / (2 + big * t) ** 2)
        and positive(sp.expand(at[2] * (2 + p))),
        equation=13,
    )
    printed = (big - 3 + (size - 1) * sp.sqrt(big + 9)) / (2 * big)
    proof.check(
        "t as printed solves its equation",
        equal(sp.expand(root.subs(t, printed)), sp.Integer(0)),
        equation=13,
    )
    # In the plane of e_0 and u_h: a_h = (c, s), b = (-1, 0), a_j has the part (c, -s/(N - 1)).
    c, s = t - 1, sp.Symbol("s")
    query = (s, (size - 1) * t)
    norm = query[0] ** 2 + query[1] ** 2
    to_other = query[0] * (c + 1) + query[1] * s
    to_shift = query[1] * (s + s / (size - 1))
    proof.check(
        "the query has the same gap to b and to every a_j, and its square over its norm's is g^2",
        equal(to_other, to_shift) and equal((to_other**2 / norm).subs(s, sp.sqrt(1 - c**2)), gap),
        equation=14,
    )


def _prove_caps(proof: Proof) -> None:
    """Points on a circle, and caps of a sphere: (15) to (18)."""
    x, n = sp.symbols("x n")
    sine, cosine, power, integral, d = sp.symbols("s c P I D", positive=True)
    pythagoras = {cosine**2: 1 - sine**2}
    proof.check(
        "1 - cos 2x = 2 sin² x",
        identical(
            1 - sp.expand_trig(sp.cos(2 * x)).subs(sp.cos(x) ** 2, 1 - sp.sin(x) ** 2),
            2 * sp.sin(x) ** 2,
        ),
        equation=15,
    )
    # P stands for sin^(D-2), I for its integral from 0 to θ, so that I' = P and P s = sin^(D-1).
    slope = power * (power * sine) - integral * (d - 1) * power * cosine
    proof.check(
        "the slope of I/sin^(D-1) has the sign of sin^(D-1)/(D - 1) - I cos",
        equal(slope, (d - 1) * power * (power * sine / (d - 1) - integral * cosine)),
        equation=16,
    )
    angle = sp.Symbol("theta", positive=True)
    proof.check(
        "sin^(D-1)/(D - 1) is the integral of sin^(D-2) cos",
        equal(
            sp.diff(sp.sin(angle) ** (d - 1) / (d - 1), angle),
            sp.sin(angle) ** (d - 1) * sp.cos(angle) / sp.sin(angle),
        ),
        equation=16,
    )
    proof.check(
        "by parts, (sin^(n-1) cos)' = (n - 1) sin^(n-2) - n sin^n; P stands for sin^(n-2)",
        identical(
            ((n - 1) * power * cosine**2 - power * sine**2).subs(pythagoras),
            (n - 1) * power - n * power * sine**2,
        ),
        equation=17,
    )
    proof.check(
        "so C_(D+2)/C_D = (D + 1)/(D - 1) times (D - 1)/D",
        equal((d + 1) / (d - 1) * ((d - 1) / d), (d + 1) / d),
        equation=17,
    )
    with precision(BITS):
        proof.check(
            "C_3 = 4; the balls around C_4 and C_5 meet those of 3π/2 and 16/3",
            cap_constant(3) == 4
            and cap_constant(4).overlaps(3 * arb.pi() / 2)
            and cap_constant(5).overlaps(arb(16) / 3),
            equation=17,
        )
    proof.check(
        "1 - cos φ is (1 - cos φ)²/2 >= 0 more than sin² φ/2",
        identical(1 - cosine - (1 - cosine**2) / 2, (1 - cosine) ** 2 / 2)
        and nonnegative(sp.Symbol("r", real=True) ** 2),
        equation=18,
    )
    k, ratio = sp.symbols("k x", positive=True)  # D - 1; C_D/N above and 2/(N - 1) below
    proof.check(
        "sin^(D-1) = x at sin² = x^(2/(D-1)): x is C_D/N above, and 2/(N - 1) below",
        equal((ratio ** (1 / k)) ** k, ratio) and equal((ratio ** (1 / k)) ** 2, ratio ** (2 / k)),
        equation=18,
    )


def _prove_sharp(proof: Proof) -> None:
    """The kernels of degree up to 4, and codes of known gap: (19) to (21)."""
    d, t = sp.symbols("D t")
    proof.check(
        "the tensors of degree 2, 3 and 4 have no trace, in two and three dimensions",
        all(_is_traceless(rank, dimension) for rank in (2, 3, 4) for dimension in (2, 3)),
        equation=19,
    )
    proof.check(
        "their products with x ⊗ ... ⊗ x are |x|^k |y|^k Q_k of the cosine, there too",
        all(_is_kernel(rank, dimension) for rank in (2, 3, 4) for dimension in (2, 3)),
        equation=19,
    )
    proof.check(
        "Q_k as the tools have it: 1, 3 and 6 pairs of places, and 3 pairs of pairs",
        identical(harmonic(2, d, t), t**2 - 1 / d)
        and identical(harmonic(3, d, t), t**3 - sp.binomial(3, 2) * t / (d + 2))
        and identical(
            harmonic(4, d, t), t**4 - sp.binomial(4, 2) * t**2 / (d + 4) + 3 / (d + 2) / (d + 4)
        ),
        equation=19,
    )
    for (dimension, size), roots in SHARP.items():
        f = sp.expand(sp.Mul(*(t - root for root in roots)))
        parts = harmonic_parts(f, t, dimension)
        proof.check(
            f"D = {dimension}, N = {size}: f_0 > 0, f_k >= 0 and f(1) = N f_0",
            parts[0].is_positive is True
            and all(part.is_nonnegative is True for part in parts)
            and identical(f.subs(t, 1), size * parts[0]),
            equation=20,
        )
        proof.check(
            f"D = {dimension}, N = {size}: beyond the cosine f has double roots and -1 only",
            roots[0].is_positive is True
            and roots[1] == roots[2]
            and roots[1].is_negative is True
            and set(roots[3:]) <= {sp.Integer(-1)},
            equation=20,
        )
    gaps = {(3, 9): Fraction(2, 3), (5, 16): Fraction(4, 5)}
    gaps |= {(6, 27): Fraction(3, 4), (7, 56): Fraction(2, 3)}
    for (dimension, size), code in CODES.items():
        gram = code()
        proof.check(
            f"{size} unit vectors that need {dimension} dimensions, and their gap",
            len(gram) == size
            and all(gram[i][i] == 1 for i in range(size))
            and dimension_of(gram) == dimension
            and gap_of(gram) == gaps[dimension, size],
            equation=21,
        )
    matrix, root = sp.Matrix(conference_matrix()), sp.sqrt(5)
    lines = sp.eye(6) + matrix / root
    proof.check(
        "icosahedron: C^2 = 5, so the Gram matrix of six lines is twice a projection, of rank 3",
        matrix.is_symmetric() is True
        and identical(matrix**2, 5 * sp.eye(6))
        and identical(lines**2, 2 * lines)
        and lines.trace() == 2 * 3,
        equation=21,
    )
    signs = all(abs(matrix[i, j]) == int(i != j) for i in range(6) for j in range(6))
    proof.check("two of its vertices have cosine ±1/√5 or -1", signs, equation=21)


def _tensor(y: Sequence[sp.Symbol], index: Sequence[int]) -> sp.Expr:
    """An entry of y ⊗ ... ⊗ y less the terms of (19), y of any norm."""
    rank, dimension = len(index), len(y)
    norm, places = sum(c**2 for c in y), range(rank)
    one = sum(
        int(index[i] == index[j]) * sp.Mul(*(y[index[k]] for k in places if k not in (i, j)))
        for i, j in combinations(places, 2)
    )
    two = sum(
        int(index[0] == index[i] and index[j] == index[k])
        for i, j, k in ((1, 2, 3), (2, 1, 3), (3, 1, 2))
        if rank == 4
    )
    scale = dimension + 2 * (rank - 2)
    whole = sp.Mul(*(y[i] for i in index)) - sp.Rational(1, scale) * norm * one
    return whole + sp.Rational(1, scale * (dimension + 2)) * norm**2 * two


def _is_traceless(rank: int, dimension: int) -> bool:
    """Whether that tensor has no trace."""
    y = sp.symbols(f"y:{dimension}")
    return all(
        identical(sum(_tensor(y, (*rest, k, k)) for k in range(dimension)), 0)
        for rest in product(range(dimension), repeat=rank - 2)
    )


def _is_kernel(rank: int, dimension: int) -> bool:
    """Whether its product with x ⊗ ... ⊗ x is Q_k of the cosine times |x|^k |y|^k."""
    x, y = (sp.symbols(f"{name}:{dimension}") for name in "xy")
    contracted = sum(
        sp.Mul(*(x[i] for i in index)) * _tensor(y, index)
        for index in product(range(dimension), repeat=rank)
    )
    t, norms = sp.symbols("t n")  # <x, y>, and |x|^2 |y|^2, of degree 2 in t
    coefficients = sp.Poly(harmonic(rank, dimension, t), t).all_coeffs()
    homogeneous = sum(c * t ** (rank - i) * norms ** (i // 2) for i, c in enumerate(coefficients))
    inner = sum(a * b for a, b in zip(x, y, strict=True))
    squares = sum(a**2 for a in x) * sum(b**2 for b in y)
    return identical(contracted, homogeneous.subs({t: inner, norms: squares}))


def _prove_logits(proof: Proof) -> None:
    """What it asks of the scores: (22) to (24)."""
    ratio, exponent, d = sp.symbols("x e D", positive=True)
    proof.check(
        "one over the ceiling of (18)",
        equal(1 / (2 * ratio**exponent), ratio**-exponent / 2),
        equation=22,
    )
    proof.check(
        "and one over its floor",
        equal(1 / ((1 / ratio) ** exponent / 2), 2 * ratio**exponent),
        equation=22,
    )
    rho, length = sp.symbols("rho u", positive=True)
    k, t = (sp.Matrix(sp.symbols(f"{n}:2", real=True)) for n in "kt")
    feature = sp.Matrix([(_dot(k, k) - rho**2 / 2) / rho, *k])
    query = sp.Matrix([-rho, *(2 * t)])
    proof.check(
        "<v, r_k> = -|k - t|^2 + |t|^2 + ρ²/2",
        identical(_dot(query, feature), -_dot(k - t, k - t) + _dot(t, t) + rho**2 / 2),
        equation=23,
    )
    square = (length - rho**2 / 2) ** 2 / rho**2 + length  # |r_k|^2, with u = |k|^2
    proof.check(
        "|r_k|^2 = 5 ρ²/4 - (ρ² - u)(ρ² + u)/ρ² for |k|^2 = u, and |v|^2 = ρ² + 4 |t|^2",
        equal(square, 5 * rho**2 / 4 - (rho**2 - length) * (rho**2 + length) / rho**2)
        and identical(_dot(query, query), rho**2 + 4 * _dot(t, t))
        and sp.Rational(5, 4) * 5 == sp.Rational(5, 2) ** 2,
        equation=23,
    )
    proof.check(
        "√D times Jung's √(D/(2 (D + 1))) is D/√(2 (D + 1))",
        equal(sp.sqrt(d) * sp.sqrt(d / (2 * (d + 1))) * sp.sqrt(2 * (d + 1)) / d, sp.Integer(1)),
        equation=24,
    )
    spread, radius, best = sp.symbols("L R c", positive=True)
    proof.check(
        "a gap of at most L R (1 - cos φ) makes L over it at least 1/(R (1 - cos φ))",
        equal(spread / (spread * radius * best), 1 / (radius * best)),
        equation=24,
    )
