"""T14. A Gaussian head has the gap of a shortest lattice vector.

Matrices of rationals are tuples of rows of `Fraction`. What the page proves for every dimension is
checked here as algebra: the step of each induction, and d = 1, 2, 3 written out.
"""

from fractions import Fraction
from itertools import combinations_with_replacement, product
from math import prod

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.shortest_vectors import form, pivots, shortest, vectors
from theory.tools.theta import BITS, ball, precision

__all__ = ["THEOREM", "prove"]

THEOREM = Theorem(
    slug="gaussian_gap_is_a_shortest_vector",
    number="T14",
    source="",
    title="The gap of a Gaussian head is a shortest vector",
    gist="any precision matrix, its exact gap, and which borders it makes",
    claim=(
        "A Gaussian head with precision matrix Λ selects any shift, and its gap is the squared "
        "length of a shortest non-zero vector of the lattice with Gram matrix Λ. "
        "The scores are −α/μ (δ − Δ)^T Λ (δ − Δ) up to a constant, μ the least e^T Λ e over "
        "integer e ≠ 0. Smallest eigenvalue ≤ smallest pivot ≤ μ ≤ smallest diagonal entry, and μ "
        "is found exactly among the integer points of a box. The off-target mass is at most "
        "2(2^d − 1) x + (4^d α/(α − d/4) − 2^(d+1) + 1) x², x = e^−α, whatever Λ and the grid. "
        "A sink pads with zeros for every Λ; the edge is replicated on every box if and only if Λ "
        "is diagonal."
    ),
    hypotheses=(
        "Λ is a symmetric positive definite matrix of d rows",
        "keys, queries and shifts are integer points; α > 0",
        "the weights are the softmax of the scores, over the reals",
        "for the off-target mass: α > d/4, and the target is a key, or is replaced by its clamp",
    ),
    notation={
        "Λ, Q": "the precision matrix, and its form Q(e) = e^T Λ e",
        "μ": "the least Q(e) over integer e ≠ 0: the gap",
        "d_j": "the pivots of the elimination of Λ, in order",
        "λ_min": "the smallest eigenvalue of Λ",
        "V_d": "the volume of the unit ball in d dimensions",
        "N(R)": "the number of integer e, 0 included, with Q(e) ≤ R² μ",
        "x = e^−α": "the weight of a shortest vector relative to the target's",
        "M(α)": "the bound on the off-target mass",
        "ρ_i": "a bound on |δ_i| and |Δ_i| on a grid, or on the positions |k_i| and |t_i|",
    },
    proof_idea=(
        "Complete the square; what is left is a positive form at non-zero integer points. "
        "Eliminating the variables one after another bounds it from below, Cauchy-Schwarz in the "
        "metric of Λ bounds the entries, disjoint balls count the points, and a parallelogram "
        "shows that at most two vectors of a class modulo 2 are short."
    ),
    references=(
        "arXiv:1911.03584, appendix on generalised quadratic encodings",
        "U. Fincke, M. Pohst, Mathematics of Computation 44 (1985)",
    ),
    objects=("constructions.encodings.Gaussian",),
)

# The proof ----------------------------------------------------------------------------------------

ALPHA = sp.Symbol("alpha", positive=True)
DIMENSIONS = (1, 2, 3)
HEXAGONAL = ((Fraction(1), Fraction(1, 2)), (Fraction(1, 2), Fraction(1)))
FACE_CENTRED = tuple(tuple(Fraction(1, 1 + (i != j)) for j in range(3)) for i in range(3))
BODY_CENTRED = tuple(tuple(Fraction(3 if i == j else -1) for j in range(3)) for i in range(3))


def prove() -> tuple[Step, ...]:
    """Prove T14: equations (2) to (25) of its page."""
    proof = Proof()
    _prove_scores(proof)
    _prove_bounds(proof)
    _prove_search(proof)
    _prove_packing(proof)
    _prove_mass(proof)
    _prove_half_precision(proof)
    _prove_borders(proof)
    _prove_rounding(proof)
    return proof.steps


def _symmetric(name: str, size: int) -> sp.Matrix:
    entries = {
        (i, j): sp.Symbol(f"{name}{i}{j}", real=True)
        for i, j in combinations_with_replacement(range(size), 2)
    }
    return sp.Matrix(size, size, lambda i, j: entries[min(i, j), max(i, j)])


def _vector(name: str, size: int) -> sp.Matrix:
    return sp.Matrix(sp.symbols(f"{name}:{size}", real=True))


def _value(matrix: sp.Matrix, e: sp.Matrix) -> sp.Expr:
    return (e.T * matrix * e)[0]


def _prove_scores(proof: Proof) -> None:
    """Scores are a form at δ - Δ; the encoding is as small as it can be; Λ is definite: (2)-(5)."""
    for d in DIMENSIONS:
        matrix, delta, shift = _symmetric("L", d), _vector("r", d), _vector("s", d)
        pairs = list(combinations_with_replacement(range(d), 2))
        features = [*(delta[i] * delta[j] for i, j in pairs), *delta]
        names = [*(-(1 + (i != j)) * matrix[i, j] for i, j in pairs), *(2 * matrix * shift)]
        score = sum(v * r for v, r in zip(names, features, strict=True))
        proof.check(
            f"v . r_delta = -Q(δ - Δ) + Q(Δ) with D_p = d (d + 1)/2 + d features, d = {d}",
            identical(score, _value(matrix, shift) - _value(matrix, delta - shift))
            and 2 * len(features) == d * (d + 3),
            equation=2,
        )
        proof.check(
            f"the features (Q(δ), δ) do for one precision, d = {d}",
            identical(score, -_value(matrix, delta) + 2 * (matrix * shift).dot(delta)),
            equation=3,
        )
        families = [
            sp.eye(d) * 2 + sp.Matrix(d, d, lambda r, c, p=pair: int({r, c} == set(p)))
            for pair in pairs
        ]
        rows = [
            [*(-(1 + (i != j)) * m[i, j] for i, j in pairs), *(2 * m * s)]
            for m in (2 * sp.eye(d), *families)
            for s in (sp.zeros(d, 1), *(sp.eye(d)[:, i] for i in range(d)))
        ]
        proof.check(
            f"the scores of all precisions and shifts span D_p dimensions, d = {d}",
            sp.Matrix(rows).rank() == d * (d + 3) // 2
            and all(m.is_positive_definite is True for m in families),
            equation=3,
        )
        e, c = _vector("e", d), sp.Symbol("c", real=True)
        proof.check(
            f"Q(c e) = c² Q(e): a rational zero or negative value is an integer one, d = {d}",
            identical(_value(matrix, c * e), c**2 * _value(matrix, e)),
            equation=5,
        )
    p, gap = sp.symbols("p mu", positive=True)
    proof.check(
        "divided by the gap, a score falls by α or more: α Q/μ - α = α (Q - μ)/μ",
        equal(ALPHA * (gap + p) / gap - ALPHA, ALPHA * p / gap) and positive(ALPHA * p / gap),
        equation=4,
    )


def _prove_bounds(proof: Proof) -> None:
    """Elimination, the chain of bounds, Minkowski and Hermite: (6) to (9), (13)."""
    a, first = sp.Symbol("a", positive=True), sp.Symbol("y", real=True)
    for d in (1, 2, 3):
        b, c, rest = _vector("b", d), _symmetric("c", d), _vector("e", d)
        whole = a * first**2 + 2 * first * b.dot(rest) + _value(c, rest)
        schur = c - b * b.T / a
        proof.check(
            f"eliminating one variable before {d} others",
            equal(whole, a * (first + b.dot(rest) / a) ** 2 + _value(schur, rest)),
            equation=6,
        )
        proof.check(
            f"a pivot is the form where the square is zero, {d} others",
            equal(whole.subs(first, -b.dot(rest) / a), _value(schur, rest)),
            equation=7,
        )
    m, p = sp.Symbol("m", integer=True, nonnegative=True), sp.Symbol("p", nonnegative=True)
    proof.check(
        "the last non-zero entry alone: d_j e_j² ≥ d_j for |e_j| = 1 + m",
        nonnegative(a * (1 + m) ** 2 - a),
        equation=7,
    )
    proof.check("λ |y|² ≥ λ where an entry is 1", nonnegative(a * (1 + p) - a), equation=8)
    proof.check(
        "a unit vector has the value of a diagonal entry, d = 1, 2, 3",
        all(
            _value(_symmetric("L", d), sp.eye(d)[:, i]) == _symmetric("L", d)[i, i]
            for d in DIMENSIONS
            for i in range(d)
        ),
        equation=8,
    )
    off = sp.Symbol("b", real=True)
    c = a + p
    proof.check(
        "reduced, a ≤ c and 4 b² ≤ a²: a c - b² - (3/4) a² = a (c - a) + (a²/4 - b²)",
        identical(a * c - off**2 - sp.Rational(3, 4) * a**2, a * p + (a**2 / 4 - off**2)),
        equation=9,
    )
    proof.check(
        "hexagonal and face-centred cubic: gap 1, determinants 3/4 and 1/2",
        shortest(HEXAGONAL) == shortest(FACE_CENTRED) == 1
        and prod(pivots(HEXAGONAL)) == Fraction(3, 4)
        and prod(pivots(FACE_CENTRED)) == Fraction(1, 2),
        equation=9,
    )


def _prove_search(proof: Proof) -> None:
    """The box that holds every short vector, and an axis that need not be searched: (10), (11)."""
    t, inner, length, other = sp.symbols("t p y z", real=True)
    proof.check(
        "Q(y) - 2 t <y, z> + t² Q(z) at t = <y, z>/Q(z) is Q(y) - <y, z>²/Q(z)",
        equal(
            (length - 2 * t * inner + t**2 * other).subs(t, inner / other),
            length - inner**2 / other,
        ),
        equation=10,
    )
    for d in (1, 2, 3):
        matrix, e = _symmetric("L", d), _vector("e", d)
        adjugate, determinant = matrix.adjugate(), matrix.det(method="berkowitz")
        proof.check(
            f"in the metric of Λ column i of the inverse reads entry i and has length (Λ^-1)_ii,"
            f" d = {d}",
            all(
                identical((e.T * matrix * adjugate[:, i])[0], determinant * e[i])
                and identical(_value(matrix, adjugate[:, i]), determinant * adjugate[i, i])
                for i in range(d)
            ),
            equation=10,
        )
    a, slope, rest, f = sp.symbols("a s c f", real=True)
    n = sp.Symbol("n", integer=True)
    parabola = a * n**2 + 2 * slope * n + rest
    proof.check(
        "one step beyond n = -s/a + f raises the form by a (2 f + 1): not for f < -1/2",
        equal((parabola.subs(n, n + 1) - parabola).subs(n, -slope / a + f), a * (2 * f + 1)),
        equation=11,
    )


def _prove_packing(proof: Proof) -> None:
    """Disjoint balls, Minkowski's bound, and classes modulo two: (12) to (15)."""
    for d in DIMENSIONS:
        matrix, u, w = _symmetric("L", d), _vector("u", d), _vector("w", d)
        proof.check(
            f"the parallelogram: Q(u - w) + Q(u + w) = 2 Q(u) + 2 Q(w), d = {d}",
            identical(
                _value(matrix, u - w) + _value(matrix, u + w),
                2 * _value(matrix, u) + 2 * _value(matrix, w),
            ),
            equation=12,
        )
        proof.check(
            f"v and w of one class: v ± w = 2 y has Q = 4 Q(y), d = {d}",
            identical(_value(matrix, 2 * u), 4 * _value(matrix, u)),
            equation=14,
        )
    r, more, gap = sp.symbols("r s mu", positive=True)
    proof.check(
        "2 Q(v) + 2 Q(w) < μ for Q(v) = μ/4 - r and Q(w) = μ/4 - s, r, s > 0",
        positive(gap - (2 * (gap / 4 - r) + 2 * (gap / 4 - more))),
        equation=12,
    )
    radius = sp.Symbol("R", positive=True)
    proof.check(
        "the quotient of the volumes is (2 R + 1)^d, d = 1, 2, 3",
        all(
            equal(
                ((radius + sp.Rational(1, 2)) ** d * gap**d) / (gap / 2) ** d,
                (2 * radius + 1) ** d,
            )
            for d in DIMENSIONS
        ),
        equation=12,
    )
    with precision(BITS):
        volumes = (arb(2), arb.pi(), 4 * arb.pi() / 3)
        constants = [4 / v ** (arb(2) / n) for n, v in enumerate(volumes, start=1)]
        stated = [Fraction(1), Fraction(1274, 1000), Fraction(154, 100)]
        proof.check(
            "4 / V_d^(2/d) is 1, < 1.274, < 1.54 for d = 1, 2, 3",
            Fraction(4, 2**2) == stated[0]  # V_1 = 2
            and all(c < ball(s) for c, s in zip(constants[1:], stated[1:], strict=True)),
            equation=13,
        )
    proof.check(
        "if Q(v) + Q(w) ≥ 4 μ the larger is at least 2 μ: two numbers below 2 μ have a sum below",
        positive(4 * gap - (2 * gap - r) - (2 * gap - r)),
        equation=14,
    )
    proof.check(
        "there are 2^d - 1 classes modulo 2 other than that of 0, d = 1, ..., 9",
        all(
            len([odd for odd in product((0, 1), repeat=d) if any(odd)]) == 2**d - 1
            for d in range(1, 10)
        ),
        equation=15,
    )
    proof.check(
        "in the class of 0 a vector 2 y has Q = 4 Q(y): for Q(y) = μ + r it is beyond 2 μ",
        positive(4 * (gap + r) - 2 * gap),
        equation=15,
    )
    forms = ((((1,),), 1), (HEXAGONAL, 1), (BODY_CENTRED, 5))
    proof.check(
        "the bound is attained: 2, 6 and 14 vectors below 2 μ, the last with μ = 3 and Q ≤ 4",
        [len(vectors(m, Fraction(q))) for m, q in forms] == [2, 6, 14]
        and shortest(BODY_CENTRED) == 3
        and len(vectors(FACE_CENTRED, Fraction(1))) == 12,
        equation=15,
    )


def _prove_mass(proof: Proof) -> None:
    """The off-target mass, for every Λ at once: (16) to (18)."""
    s, c, t = sp.Symbol("s", real=True), sp.Symbol("c", positive=True), sp.Symbol("t", real=True)
    proof.check(
        "α exp(-α s) is the derivative of -exp(-α s)",
        identical(sp.diff(-sp.exp(-ALPHA * s), s), ALPHA * sp.exp(-ALPHA * s)),
        equation=16,
    )
    proof.check(
        "and α exp(c (s - 2) - α s) that of -α/(α - c) exp(c (s - 2) - α s)",
        equal(
            sp.diff(-ALPHA / (ALPHA - c) * sp.exp(c * (s - 2) - ALPHA * s), s)
            / sp.exp(c * (s - 2) - ALPHA * s),
            ALPHA,
        ),
        equation=16,
    )
    proof.check(
        "exp(t) - 1 - t is convex, and 0 at its vertex 0",
        sp.diff(sp.exp(t) - 1 - t, t, 2).is_positive is True
        and (sp.exp(t) - 1 - t).subs(t, 0) == 0
        and sp.diff(sp.exp(t) - 1 - t, t).subs(t, 0) == 0,
        equation=16,
    )
    w = sp.Symbol("w", nonnegative=True)
    proof.check(
        "2 √s + 1 ≤ 4 √(s/2) for s = 2 (1 + w)²: 2 √2 (1 + w) + 1 < 3 (1 + w) + 1 ≤ 4 (1 + w)",
        2**2 * 2 < 3**2 and nonnegative(4 * (1 + w) - (3 * (1 + w) + 1)),
        equation=16,
    )
    x, many, factor = sp.symbols("x K F", positive=True)
    proof.check(
        "the two parts of the integral add up to M(α)",
        identical(many * (x - x**2) + (factor - 1) * x**2, many * x + (factor - many - 1) * x**2),
        equation=16,
    )
    mass, more = sp.symbols("L r", positive=True)
    proof.check(
        "L/(1 + L) grows with L",
        equal(
            (mass + more) / (1 + mass + more) - mass / (1 + mass),
            more / ((1 + mass) * (1 + mass + more)),
        ),
        equation=17,
    )
    proof.check(
        "e and -e are equally long",
        all(
            identical(
                _value(_symmetric("L", d), -_vector("e", d)),
                _value(_symmetric("L", d), _vector("e", d)),
            )
            for d in DIMENSIONS
        ),
        equation=18,
    )


def _prove_half_precision(proof: Proof) -> None:
    """Few keys are near the gap, so that half-precision peaks are 1: (19)."""
    for name, unit, tail in (
        ("float16", Fraction(1, 2**11), Fraction(1, 2**25)),
        ("bfloat16", Fraction(1, 2**8), Fraction(1, 2**134)),
    ):
        # α = ln(1/tail) > 17, and α/(α - d/4) falls with α.
        for d in range(1, 10):
            second = 4**d * Fraction(17) / (17 - Fraction(d, 4)) - 2 ** (d + 1) + 1
            mass = 2 * (2**d - 1) * tail + second * tail**2
            squared = 2 * (2**d - 1) * tail**2 + second * tail**4
            proof.check(
                f"the tails of a {name} softmax, sink or none, leave the peak 1, d = {d}",
                8 * mass <= unit / 2
                and 8 * (tail + squared) <= unit / 2
                and 8 * squared / tail <= unit / 2,
                equation=19,
            )
    with precision(BITS):
        proof.check("25 ln 2 > 17", 25 * arb.const_log2() > 17, equation=19)
    c, over, more = sp.symbols("c o r", positive=True)
    proof.check(
        "α/(α - c) falls with α > c: at α = c + o it is c r/(o (o + r)) more than at α + r",
        equal(
            (c + over) / over - (c + over + more) / (over + more), c * more / (over * (over + more))
        )
        and positive(c * more),
        equation=19,
    )


def _prove_borders(proof: Proof) -> None:
    """Zeros for every Λ, replication for the diagonal ones alone: (20) to (22)."""
    gap, p = sp.symbols("mu p", positive=True)
    proof.check(
        "the sink stands μ/2 below a target and at least μ/2 above what misses it",
        equal((gap + p) - gap / 2, gap / 2 + p) and positive(gap / 2 + p),
        equation=20,
    )
    j, m = sp.symbols("j m", integer=True, nonnegative=True)
    entry = sp.Symbol("l", positive=True)
    proof.check(
        "on one axis, j beyond the edge and m inside: l (j + m)² - l j² - l m² = 2 l j m ≥ 0",
        identical(entry * ((j + m) ** 2 - j**2) - entry * m**2, 2 * entry * j * m)
        and nonnegative(2 * entry * j * m),
        equation=21,
    )
    target = (-1, 1)
    values = [
        form(HEXAGONAL, [k - t for k, t in zip(key, target, strict=True)])
        for key in ((0, 0), (0, 1))
    ]
    proof.check(
        "Λ = [[1, 1/2], [1/2, 1]], target (-1, 1) of 1 x 2 pixels: the clamp (0, 1) ties with the "
        "other pixel, (0, 0)",
        values == [1, 1],
        equation=22,
    )
    j, more = sp.Symbol("j", positive=True), sp.Symbol("p", nonnegative=True)
    off = sp.Symbol("b", positive=True)
    for d in (2, 3, 4):
        for sign in (1, -1):
            matrix = _symmetric("L", d).subs(sp.Symbol("L01", real=True), sign * off)
            beyond, sideways = sp.eye(d)[:, 0] * j, sp.eye(d)[:, 1] * -sign
            proof.check(
                f"one step sideways changes the form by Λ_22 - 2 |Λ_12| j, d = {d}, "
                f"Λ_12 {'>' if sign > 0 else '<'} 0",
                identical(
                    _value(matrix, beyond + sideways) - _value(matrix, beyond),
                    matrix[1, 1] - 2 * off * j,
                ),
                equation=22,
            )
    proof.check(
        "that is not positive for j = (Λ_22 + p)/(2 |Λ_12|), p >= 0: -p",
        identical(entry - 2 * off * (entry + more) / (2 * off), -more),
        equation=22,
    )


def _prove_rounding(proof: Proof) -> None:
    """What a computed score may err, and that the stated gap covers it: (23) to (25)."""
    proof.check(
        "|Λ_ij| (|δ_i| |δ_j| + 2 |δ_i| |Δ_j|) are the sizes of the products, d = 1, 2, 3",
        all(_sizes_add_up(d) for d in DIMENSIONS),
        equation=23,
    )
    u, n = sp.Symbol("u", positive=True), 24
    proof.check(
        "(1 + u)^n - 1 ≤ n u (1 + 2^-30) for n ≤ 24 and u = 2^-53",
        all(
            (1 + Fraction(1, 2**53)) ** k - 1 <= Fraction(k, 2**53) * (1 + Fraction(1, 2**30))
            for k in range(1, n + 1)
        ),
        equation=23,
    )
    proof.check(
        "an integer n is an odd one of at most p bits times a power of two, if n ≤ 2^p; 2^p + 1 is "
        "none: every n, p = 1, ..., 12",
        all(
            all((n // (n & -n)).bit_length() <= p for n in range(1, 2**p + 1))
            and ((2**p + 1) // ((2**p + 1) & -(2**p + 1))).bit_length() == p + 1
            for p in range(1, 13)
        ),
        equation=24,
    )
    gap, more, error = sp.symbols("mu p c", positive=True)
    proof.check(
        "(Q - c)/(μ - c) - Q/μ = c (Q - μ)/(μ (μ - c)) ≥ 0, at μ = c + u and Q = μ + p",
        equal(
            ((gap + more - error) / (gap - error) - (gap + more) / gap).subs(gap, error + u),
            (error * more / (gap * (gap - error))).subs(gap, error + u),
        )
        and positive(u * error * more),
        equation=25,
    )


def _sizes_add_up(d: int) -> bool:
    """The sum of |v_i| |r_i| for entries of one sign is the stated size, with |2ΛΔ| split."""
    entries = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"L{min(i, j)}{max(i, j)}", positive=True))
    delta = sp.Matrix(sp.symbols(f"r:{d}", positive=True))
    shift = sp.Matrix(sp.symbols(f"s:{d}", positive=True))
    pairs = combinations_with_replacement(range(d), 2)
    sizes = sum((1 + (i != j)) * entries[i, j] * delta[i] * delta[j] for i, j in pairs)
    sizes += 2 * (entries * shift).dot(delta)
    stated = sum(
        entries[i, j] * delta[i] * (delta[j] + 2 * shift[j]) for i in range(d) for j in range(d)
    )
    return identical(sizes, stated)
