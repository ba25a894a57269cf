"""T12. Two dimensions select every shift.

Positions that are flattened to one integer, and offsets on a circle. The first is exact algebra in
integers; what the second needs of π is enclosed in balls.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product
from math import isqrt

import sympy as sp
from flint import arb, fmpq

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import BITS, ball, precision

__all__ = [
    "ENTRY",
    "PRECISIONS",
    "SIDES",
    "THEOREM",
    "circle_gap",
    "circle_mass",
    "flattened",
    "largest_side",
    "prove",
    "two_colourable",
    "weights",
]

THEOREM = Theorem(
    slug="two_dimensions_select_every_shift",
    number="T12",
    source="",
    title="Two dimensions select every shift",
    gist="one encoding dimension selects two shifts that meet, two select any kernel",
    claim=(
        "A relative encoding of two dimensions lets one head select each shift of any kernel, on "
        "any grid and in any number of spatial dimensions, while one of a single dimension selects "
        "no three shifts of which every two have their keys before one query. "
        "Two encodings do it: displacements flattened to integers, squared, with gap 1 and less "
        "than 1 − ϑ(e^−α)^−1 of the attention off the target; and the N offsets of the kernel on "
        "the unit circle with all others at its centre, with gap min(1, 1 − cos(2π/N)) whatever "
        "the grid. With a sink both pad with zeros."
    ),
    hypotheses=(
        "scores are v_h·r_δ up to a constant of the row, δ = k − q, and nothing else",
        "shifts, keys and queries are integer points; the keys are finitely many",
        "for one dimension: some query has the keys of two shifts before it, for each two of three",
        "for flattened scores: each radix b_i, i ≥ 2, exceeds the distance m_i from any target to "
        "any key; for the leak also that between any two keys",
        "rounded vertices: the library's cos and sin err by at most 2^−40, and N ≤ 8192",
    ),
    notation={
        "ρ_δ, c_h": "an encoding of one dimension, and the factor of head h",
        "b_i, w_i": "the radix of axis i, and its weight w_i = b_(i+1) ··· b_d",
        "z(e)": "the flattened displacement Σ e_i w_i",
        "m_i": "the largest distance |k_i − t_i| from a target to a key",
        "N, θ": "the number of different shifts, and θ = 2π/N",
        "g": "the gap of the circle, min(1, 1 − cos θ)",
        "T": "the number of keys before a query",
        "c": "the depth of the sink, 0 < c < 1, whose score is −cα",
    },
    proof_idea=(
        "Two heads of one sign want two keys in opposite orders. A flattened displacement is zero "
        "for zero alone, digit by digit, so minus its square has one maximum. On a circle the "
        "nearest vertices are the runners-up, and the centre scores zero."
    ),
    references=(
        "arXiv:1911.03584, Theorem 1, which takes D_p >= 3",
        "D. E. Knuth, The Art of Computer Programming 2, section 4.1 (mixed radix)",
    ),
    objects=(
        "constructions.encodings.Flattened",
        "constructions.encodings.Circle",
    ),
)

X = sp.Symbol("x", positive=True)
UNIT = Fraction(1, 2**25)  # vertices are rounded to its multiples
LIBRARY = Fraction(1, 2**40)  # hypothesis: what the library's cos and sin err at most
ENTRY = UNIT / 2 + LIBRARY  # what a coordinate of a rounded vertex is off
MOST = 2**13

PRECISIONS = {"bfloat16": 8, "float16": 11, "TF32": 11, "float32": 24, "float64": 53}
"""Significant bits of each format."""

SIDES = {
    "bfloat16": (16, 3, 0),
    "float16": (45, 5, 2),
    "TF32": (45, 5, 2),
    "float32": (4096, 63, 15),
    "float64": (94_906_265, 9740, 455),
}
"""Pixels a side of the largest line, square and cube with exact scores, (15) with overhang 1.

At least two, so that the shifts are no further apart than targets and keys; 0 for none.
"""


# What the theorem speaks of -----------------------------------------------------------------------


def two_colourable(vertices: Sequence[int], edges: Sequence[tuple[int, int]]) -> bool:
    """Whether two colours suffice for a graph: by trying them all."""
    for colours in product((False, True), repeat=len(vertices)):
        colour = dict(zip(vertices, colours, strict=True))
        if all(colour[a] != colour[b] for a, b in edges):
            return True
    return False


def weights(radix: Sequence[int]) -> tuple[int, ...]:
    """w_i, the product of all later radices (5)."""
    w = [1]
    for b in reversed(radix[1:]):
        w.append(w[-1] * b)
    return tuple(reversed(w))


def flattened(displacement: Sequence[int], radix: Sequence[int]) -> int:
    """z(e) of (5)."""
    return sum(e * w for e, w in zip(displacement, weights(radix), strict=True))


def largest_side(bits: int, dimension: int, overhang: int) -> int:
    """The largest n > overhang whose cube of n^d pixels has exact scores (15); 0 for none."""
    limit = 1 + isqrt(2**bits)
    root = next(b for b in range(bits + 1) if 2 ** (b * dimension) > limit)
    low, high = 0, 2**root  # low^d <= limit < high^d
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**dimension <= limit else (low, middle)
    return low - overhang if low > 2 * overhang else 0


def circle_gap(shifts: int, *, bits: int = BITS) -> arb:
    """A ball around min(1, 1 - cos(2π/N)), of (17), or 1 for one shift."""
    with precision(bits):
        if shifts <= 4:
            return arb(1)
        return 2 * (arb.pi() / shifts).sin() ** 2


def circle_mass(
    alpha: Fraction, shifts: int, seen: Sequence[int], keys: int, *, bits: int = BITS
) -> arb:
    """A ball around the off-target mass of head 0 before normalisation, (18).

    Args:
        alpha: the sharpness, the gap in score.
        shifts: N.
        seen: the j of those shifts other than the head's own whose keys stand before the query.
        keys: T, all keys before the query, the target's included.
        bits: the precision.
    """
    with precision(bits):
        scale = ball(alpha) / circle_gap(shifts, bits=bits)
        on_circle = ((-scale * (1 - (2 * arb.pi() * fmpq(j, shifts)).cos())).exp() for j in seen)
        return sum(on_circle, arb(0)) + (keys - 1 - len(seen)) * (-scale).exp()


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Prove T12: equations (2) to (21) of its page."""
    proof = Proof()
    _prove_one_dimension(proof)
    _prove_digits(proof)
    _prove_leak(proof)
    _prove_borders(proof)
    _prove_range(proof)
    _prove_circle(proof)
    _prove_rounded_vertices(proof)
    return proof.steps


def _prove_one_dimension(proof: Proof) -> None:
    """One sign selects one of two shifts that a query sees: (2) to (4)."""
    a, b = sp.symbols("a b", positive=True)
    first, second = sp.symbols("rho_1 rho_2", real=True)
    wants = a * (first - second), b * (second - first)
    proof.check(
        "the margins of two heads of one sign multiply to -a b (ρ_1 - ρ_2)^2, never positive",
        identical(wants[0] * wants[1], -a * b * (first - second) ** 2)
        and nonnegative(a * b * sp.Symbol("s", real=True) ** 2),
        equation=2,
    )
    proof.check(
        "of three heads two have one sign",
        all(any(i == j for i, j in combinations(signs, 2)) for signs in product((-1, 1), repeat=3)),
        equation=2,
    )
    own, other, elsewhere = 1 * 1, 1 * -1, 1 * 0
    proof.check(
        "ρ = 1, -1 on two colours and 0 elsewhere, c = ρ: a gap of 1 to the rest, 2 to the other",
        (own - elsewhere, own - other) == (1, 2) and (-1 * -1, -1 * 1, -1 * 0) == (1, -1, 0),
        equation=3,
    )
    proof.check(
        "two shifts take two colours; a triangle, and any odd cycle up to 9, does not take them",
        two_colourable((0, 1), ((0, 1),))
        and not any(
            two_colourable(range(n), [(i, (i + 1) % n) for i in range(n)]) for n in (3, 5, 7, 9)
        ),
        equation=3,
    )
    weight, more, rest = sp.symbols("w m r", nonnegative=True)
    proof.check(
        "weights w and w + m, and the rest r, sum to at least 2 w",
        nonnegative(weight + (weight + more) + rest - 2 * weight),
        equation=4,
    )


def _prove_digits(proof: Proof) -> None:
    """Flattened scores, and which displacements they tell from zero: (5) to (8)."""
    z, target = sp.symbols("z Z", real=True)
    proof.check(
        "(-1, 2 Z)·(z^2, z) = -(z - Z)^2 + Z^2",
        identical(-(z**2) + 2 * target * z, -((z - target) ** 2) + target**2),
        equation=5,
    )
    for d in (1, 2, 3, 4):
        e, f, radix = (sp.symbols(f"{name}:{d}", integer=True) for name in "efb")
        w = [sp.Mul(*radix[i + 1 :]) for i in range(d)]
        flat = sum(x * y for x, y in zip(e, w, strict=True))
        difference = sum((x - y) * v for x, y, v in zip(e, f, w, strict=True))
        proof.check(
            f"z(e - f) = z(e) - z(f), d = {d}",
            identical(
                difference, flat - flat.subs(dict(zip(e, f, strict=True)), simultaneous=True)
            ),
            equation=5,
        )
        if d == 1:
            continue
        shorter = [sp.Mul(*radix[i + 1 : -1]) for i in range(d - 1)]
        head = sum(x * y for x, y in zip(e[:-1], shorter, strict=True))
        proof.check(
            f"z(e) = b_d z'(e_1, ..., e_(d-1)) + e_d, d = {d}",
            identical(flat, radix[-1] * head + e[-1]),
            equation=7,
        )
        for j in range(1, d):
            collision = dict.fromkeys(e, 0) | {e[j - 1]: 1, e[j]: -radix[j]}
            proof.check(
                f"one step along axis {j} and b_{j + 1} back along the next is zero, d = {d}",
                identical(flat.subs(collision), 0),
                equation=8,
            )
    proof.check("a square is zero for zero alone", sp.solve(z**2, z) == [0], equation=6)
    m, i, j = sp.symbols("m i j", integer=True, nonnegative=True)
    proof.check(
        "a multiple of b = m + 1 + i other than 0 exceeds m in size",
        positive((m + 1 + i) * (1 + j) - m),
        equation=7,
    )


def _prove_leak(proof: Proof) -> None:
    """The gap is 1, the leak that of one dimension, and with a sink: (9) to (11)."""
    m = sp.Symbol("m", integer=True, nonnegative=True)
    proof.check(
        "an integer n other than 0, |n| = 1 + m, has n^2 >= 1, and 1 for m = 0",
        nonnegative((1 + m) ** 2 - 1) and ((1 + m) ** 2).subs(m, 0) == 1,
        equation=9,
    )
    mass, rest, sink = sp.symbols("L r s", positive=True)
    proof.check(
        "the leak L/(1 + L) grows with L",
        equal(
            (mass + rest) / (1 + mass + rest) - mass / (1 + mass),
            rest / ((1 + mass) * (1 + mass + rest)),
        ),
        equation=10,
    )
    proof.check(
        "a centred row of 2 M + 1 keys takes every integer from -M to M",
        all(
            {flattened((0, k - n), (1, 2 * n + 1)) for k in range(2 * n + 1)}
            == set(range(-n, n + 1))
            for n in range(5)
        ),
        equation=10,
    )
    theta = sp.Symbol("theta", positive=True)
    proof.check(
        "1 - 1/(θ + s) is off a target, and (θ - 1)/(θ - 1 + s) off the sink where there is none",
        equal(1 - 1 / (theta + sink), (theta + sink - 1) / (theta + sink))
        and equal(1 - sink / (theta - 1 + sink), (theta - 1) / (theta - 1 + sink)),
        equation=11,
    )
    proof.check(
        "half-way: 2 x^(n^2) / x^(1/2) <= 2 (x^(1/2))^n, as 2 n^2 - 1 >= n for n = 1 + m",
        nonnegative(2 * (1 + m) ** 2 - 1 - (1 + m)),
        equation=11,
    )


def _prove_borders(proof: Proof) -> None:
    """What a radix too small wraps, and that z has no other natural border: (12), (13)."""
    n, above, row, column = sp.symbols("n a r c", integer=True, positive=True)
    w = sp.Symbol("w", positive=True)  # e^s for the score s of the sink
    proof.check(
        "radix n, target (r, -1), key (r - 1, n - 1): z = -n + n = 0",
        identical(((row - 1) - row) * n + ((n - 1) - (-1)), 0),
        equation=12,
    )
    proof.check(
        "1/(1 + w) + w/(1 + w) = 1: one of the two is at most 1/2",
        equal(1 / (1 + w) + w / (1 + w), 1),
        equation=12,
    )
    key_row, key = sp.symbols("i j", integer=True, nonnegative=True)
    radix = column + above  # a column c of the image is less than the radix
    proof.check(
        "target (-1, c), c >= 1: the key (i, j) is b - c + i b + j > 0 away, least for (0, 0)",
        identical((key_row + 1) * radix + (key - column), above + key_row * radix + key)
        and positive(above)
        and nonnegative(key_row * radix + key),
        equation=13,
    )


def _prove_range(proof: Proof) -> None:
    """Exact integers, and the largest grids: (14), (15)."""
    z, target = sp.symbols("z Z", nonnegative=True)
    proof.check(
        "the sizes of z^2, 2 z Z and Z^2 add up to (|z| + |Z|)^2",
        identical(z**2 + 2 * z * target + target**2, (z + target) ** 2),
        equation=14,
    )
    b, power = sp.symbols("b B", positive=True)
    proof.check(
        "largest digits: b (B - 1) + (b - 1) = b B - 1, one axis more",
        identical(b * (power - 1) + (b - 1), b * power - 1),
        equation=15,
    )
    proof.check(
        "each side of the table has exact scores, and one pixel more has not the room",
        all(
            (n == 0 or ((n + 1) ** d - 1) ** 2 <= 2 ** PRECISIONS[name])
            and ((max(n + 1, 2) + 1) ** d - 1) ** 2 > 2 ** PRECISIONS[name]
            for name, sides in SIDES.items()
            for d, n in enumerate(sides, start=1)
        )
        and SIDES.keys() == PRECISIONS.keys(),
        equation=15,
    )


def _prove_circle(proof: Proof) -> None:
    """Scores, gap and leak of the circle, with and without a sink: (16) to (20)."""
    a, b, y, m = sp.symbols("a b y m", real=True)
    proof.check(
        "cos a cos b + sin a sin b = cos(a - b)",
        identical(
            sp.cos(a) * sp.cos(b) + sp.sin(a) * sp.sin(b), sp.expand(sp.cos(a - b), trig=True)
        ),
        equation=16,
    )
    proof.check(
        "1 - cos 2y = 2 sin^2 y",
        identical((1 - sp.cos(2 * y)).rewrite(sp.exp), (2 * sp.sin(y) ** 2).rewrite(sp.exp)),
        equation=17,
    )
    proof.check(
        "cos 2y - cos 2my = 2 sin((m + 1) y) sin((m - 1) y)",
        identical(
            (sp.cos(2 * y) - sp.cos(2 * m * y)).rewrite(sp.exp),
            (2 * sp.sin((m + 1) * y) * sp.sin((m - 1) * y)).rewrite(sp.exp),
        ),
        equation=17,
    )
    proof.check(
        "up to four vertices no other scores above the centre; cos(2π/5) = (√5 - 1)/4 > 0",
        all(
            sp.cos(2 * sp.pi * j / n).is_nonpositive is True for n in (2, 3, 4) for j in range(1, n)
        )
        and sp.cos(2 * sp.pi / 5).is_positive is True
        and sp.cos(2 * sp.pi / 5).equals((sp.sqrt(5) - 1) / 4),
        equation=17,
    )
    power = sp.Symbol("p", positive=True)
    proof.check(
        "the geometric sum, one more term (p = x^J)",
        equal(X * (1 - power) / (1 - X) + X * power, X * (1 - power * X) / (1 - X)),
        equation=18,
    )
    keys, sink = sp.symbols("T s", positive=True)
    proof.check(
        "off the grid T keys of at most x each leave the sink s all but T x/(T x + s)",
        equal(1 - sink / (keys * X + sink), keys * X / (keys * X + sink)),
        equation=19,
    )
    proof.check(
        "three taps on a line: one step right of the first shift scores -1/2, of the last 0",
        sp.cos(2 * sp.pi / 3) == -sp.Rational(1, 2),
        equation=20,
    )


def _prove_rounded_vertices(proof: Proof) -> None:
    """Scores of rounded vertices are exact, and neighbours remain the runners-up: (21)."""
    proof.check("a vertex moves by less than 2^-25", 2 * ENTRY**2 < UNIT**2, equation=21)
    product_ = 2 * UNIT + UNIT**2
    proof.check(
        "a product of two moves by at most 2^-24 + 2^-50, a difference of two by twice as much",
        product_ == Fraction(1, 2**24) + Fraction(1, 2**50),
        equation=21,
    )
    largest = (1 + UNIT) ** 2 / UNIT**2
    proof.check(
        "differences of two scores are integers below 2^53, times 2^-50",
        2 * largest < 2**53,
        equation=21,
    )
    cosine = sp.Symbol("C", real=True)
    proof.check(
        "cos θ - cos 2θ = (1 - cos θ)(1 + 2 cos θ), and cos 2θ = 2 cos^2 θ - 1",
        identical(cosine - (2 * cosine**2 - 1), (1 - cosine) * (1 + 2 * cosine)),
        equation=21,
    )
    with precision(BITS):
        proof.check(
            "1 - cos(2π/8192) exceeds what rounding can do to a difference",
            2 * (arb.pi() / MOST).sin() ** 2 > ball(2 * product_),
            equation=21,
        )
