"""T14. Rotations select shifts without resonance.

The rotations are those of rotary and sinusoidal encodings (arXiv 2104.09864, 1706.03762), and that
they can select a shift is known (arXiv 2410.06205); how well, and how far, is new here. The page
`docs/theorems/rotations_select_shifts_without_resonance.md` numbers the equations.

The algebra is exact. The gaps of a range are balls of python-flint from a search that leaves
nothing out (`theory.tools.resonances`), so that a comparison is true only if it is certain.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import gcd, lcm
from types import MappingProxyType

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.resonances import (
    candidates,
    drop,
    first_resonance,
    geometric_bound,
    nearly_returns,
    standard,
)
from theory.tools.theta import ball, precision

__all__ = ["LAST_OF_ONE", "NEAREST_RETURNS", "THEOREM", "prove"]

THEOREM = Theorem(
    slug="rotations_select_shifts_without_resonance",
    number="T14",
    source="",
    title="Rotations select shifts without resonance",
    gist="rotary and sinusoidal positions, and their gap on every range",
    claim=(
        "A constant query that is turned by a shift scores that shift above all others, unless "
        "some distance in reach resonates with every frequency, that is, turns each of them by "
        "whole turns. "
        "Rotary scores of a constant query and key, and sinusoidal absolute positions, are "
        "Σ a_f cos θ_f(δ − Δ) summed over the axes; the gap is the least Σ a_f (1 − cos θ_f n) "
        "over the distances 1 <= n <= R of one axis. Rational frequencies, such as those of a "
        "computer, never resonate. The eight standard frequencies have the gap 0.5148 up to "
        "596,273 pixels and 0.3882 up to a million. Over all distances no gap is left: F "
        "frequencies have at most 8π² R^(−2/F) Σ a_f, so that their number has to grow with "
        "log R, and a number of that order is enough."
    ),
    hypotheses=(
        "shifts, queries and keys are integer points; |k − t| is at most R on every axis",
        "frequencies θ_f > 0 and amplitudes a_f > 0, F of each, the same for all axes",
        "query and key content is constant, so that rotations are all that a score sees",
    ),
    notation={
        "δ = k − q, Δ, t = q + Δ": "displacement, shift and target, in Z^d",
        "e = δ − Δ = k − t": "how far a key is from the target",
        "θ_f, a_f, F": "frequencies in radians for a pixel, their amplitudes, their number",
        "A": "Σ a_f",
        "R_φ": "the rotation of every pair of coordinates f by its angle θ_f φ",
        "G(n)": "the drop Σ a_f (1 − cos θ_f n) at distance n on one axis",
        "R, g(R)": "the reach, and the gap min G(n) over 1 <= n <= R",
        "ρ": "a gap over A; also the ratio of a geometric sequence of frequencies",
        "u": "unit roundoff",
    },
    proof_idea=(
        "Angles add, so a score is a sum of cosines of e, each 1 at e = 0; all are 1 only where "
        "every angle is a whole number of turns. By the pigeonhole principle F angles nearly "
        "return within Q^F steps. Frequencies of one octave each do not before 2^F; random ones "
        "do not for a number of steps exponential in F."
    ),
    references=(
        "arXiv:2104.09864",
        "arXiv:1706.03762",
        "arXiv:2410.06205",
        "arXiv:2602.10959",
        "Hardy and Wright, An introduction to the theory of numbers, sections 4.7 and 11.12",
    ),
    objects=(
        "constructions.encodings.Rotary",
        "constructions.encodings.least_drop",
    ),
)

PIXEL = (1, Fraction("0.5148"))
NEAREST_RETURNS: Mapping[int, tuple[int, Fraction]] = MappingProxyType(
    {
        **{10**k: PIXEL for k in range(1, 6)},
        10**6: (615_746, Fraction("0.3882")),
        10**7: (7_590_025, Fraction("0.2028")),
        10**8: (27_916_192, Fraction("0.1040")),
        10**9: (888_052_845, Fraction("0.0017")),
    }
)
"""By reach: the distance of the least drop of the standard frequencies, and that drop cut off."""

LAST_OF_ONE = 596_273
"""Up to here the least drop of the standard frequencies is that of a single pixel."""


# The proof ----------------------------------------------------------------------------------------

THETA, N = sp.symbols("theta n", positive=True)
Q_, K_, SHIFT = sp.symbols("q k Delta", real=True)
A_ = sp.Symbol("a", positive=True)


def prove() -> tuple[Step, ...]:
    """Prove T14: equations (2) to (22) of its page."""
    proof = Proof()
    _prove_scores(proof)
    _prove_drops(proof)
    _prove_resonances(proof)
    _prove_returns(proof)
    _prove_enough(proof)
    _prove_standard(proof)
    _prove_borders(proof)
    _prove_rounding(proof)
    _prove_stock(proof)
    return proof.steps


def _trigonometric(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions of sines and cosines agree: as exponentials they are polynomials."""
    return identical(left.rewrite(sp.exp), right.rewrite(sp.exp))


def _rotation(angle: sp.Expr) -> sp.Matrix:
    return sp.Matrix([[sp.cos(angle), -sp.sin(angle)], [sp.sin(angle), sp.cos(angle)]])


def _feature(angle: sp.Expr) -> sp.Matrix:
    return sp.Matrix([sp.cos(angle), sp.sin(angle)])


def _agree(left: sp.Matrix, right: sp.Matrix) -> bool:
    return all(_trigonometric(a, b) for a, b in zip(left, right, strict=True))


def _prove_scores(proof: Proof) -> None:
    """A pair of coordinates scores a cosine, and a shift is a rotation: (2), (3)."""
    delta = K_ - Q_
    proof.check(
        "one pair of coordinates: cos cos + sin sin is the cosine of the difference",
        _trigonometric(
            A_ * _feature(THETA * SHIFT).dot(_feature(THETA * delta)),
            A_ * sp.cos(THETA * (delta - SHIFT)),
        ),
        equation=2,
    )
    thetas, weights, shifts, box = (sp.symbols(f"{x}:2", real=True) for x in ("t", "a", "s", "b"))
    pairs = list(product(range(2), zip(thetas, weights, strict=True)))
    vector = sp.Matrix([x for i, (t, a) in pairs for x in a * _feature(t * shifts[i])])
    encoding = sp.Matrix([x for i, (t, _) in pairs for x in _feature(t * box[i])])
    proof.check(
        "two frequencies on two axes, four pairs: the score is the sum of four cosines",
        _trigonometric(
            vector.dot(encoding), sum(a * sp.cos(t * (box[i] - shifts[i])) for i, (t, a) in pairs)
        ),
        equation=2,
    )
    proof.check(
        "the feature of q + Δ is that of q, turned by Δ",
        _agree(_rotation(THETA * SHIFT) * _feature(THETA * Q_), _feature(THETA * (Q_ + SHIFT))),
        equation=3,
    )
    proof.check(
        "rotations of query and key act on a score as the one by k - q",
        _agree(_rotation(THETA * Q_).T * _rotation(THETA * K_), _rotation(THETA * delta)),
        equation=3,
    )
    proof.check(
        "the key (1, 0), turned by k, is the feature of k",
        _agree(_rotation(THETA * K_) * sp.Matrix([1, 0]), _feature(THETA * K_)),
        equation=3,
    )


def _prove_drops(proof: Proof) -> None:
    """What a key at a distance loses, on one axis, on several, and in weight: (4) to (6)."""
    proof.check(
        "1 - cos θn = 2 sin²(θn/2), the same for -n",
        _trigonometric(1 - sp.cos(THETA * N), 2 * sp.sin(THETA * N / 2) ** 2)
        and sp.cos(-THETA * N) == sp.cos(THETA * N),
        equation=4,
    )
    s, more = sp.Symbol("s", real=True), sp.Symbol("G", nonnegative=True)
    proof.check(
        "a term a s² is nonnegative, and one more positive term leaves no sum at 0",
        nonnegative(A_ * s**2) and positive(more + A_ * sp.Symbol("s", positive=True) ** 2),
        equation=4,
    )
    gap = sp.Symbol("g", positive=True)
    proof.check(
        "an axis at distance n drops by g + more, all others by at least 0",
        nonnegative((gap + more) + sp.Symbol("H", nonnegative=True) - gap),
        equation=5,
    )
    alpha, less = sp.Symbol("alpha", positive=True), sp.Symbol("r", nonnegative=True)
    proof.check(
        "e^(-α G/g) is e^(-α) times e^(-α r/g) for G = g + r; e^(α r/g) is 1 at r = 0 and grows",
        identical(sp.exp(-alpha * (gap + less) / gap), sp.exp(-alpha) * sp.exp(-alpha * less / gap))
        and sp.exp(alpha * less / gap).subs(less, 0) == 1
        and sp.diff(sp.exp(alpha * less / gap), less).is_positive is True,
        equation=6,
    )
    rows, columns = sp.symbols("x:2", positive=True), sp.symbols("y:3", positive=True)
    proof.check(
        "two axes of two and three keys: the sum over the box is the product of the sums",
        identical(sum(x * y for x, y in product(rows, columns)), sum(rows) * sum(columns)),
        equation=6,
    )
    first, second, r, total = sp.symbols("L0 L1 r S", positive=True)
    proof.check(
        "two axes: a larger off-target sum makes a larger product, and 1 - 1/S grows with S",
        positive((1 + first + r) * (1 + second) - (1 + first) * (1 + second))
        and equal(1 / total - 1 / (total + r), r / (total * (total + r))),
        equation=6,
    )


def _prove_resonances(proof: Proof) -> None:
    """Rational frequencies never resonate; rational turns do, at the lcm: (7), (8)."""
    turns = sp.Symbol("m", positive=True, integer=True)
    rational = sp.Symbol("theta", positive=True, rational=True)
    n = sp.Symbol("n", positive=True, integer=True)
    proof.check(
        "if θn = 2πm then π = θn/(2m), rational; and π is irrational",
        equal((rational * n / (2 * turns)).subs(rational, 2 * sp.pi * turns / n), sp.pi)
        and (rational * n / (2 * turns)).is_rational is True
        and sp.pi.is_irrational is True,
        equation=7,
    )
    proof.check(
        "n p/q in lowest terms is whole just for the multiples of q, q up to 12, n up to 144",
        all(
            ((n_ * p) % q == 0) == (n_ % q == 0)
            for q in range(1, 13)
            for p in range(1, q + 1)
            if gcd(p, q) == 1
            for n_ in range(1, 145)
        ),
        equation=8,
    )
    proof.check(
        "the first common return of two or three such fractions is the lcm of the denominators",
        all(
            first_resonance([Fraction(1, q) for q in few]) == lcm(*few)
            for few in (*product(range(1, 10), repeat=2), *product((2, 3, 4, 6), repeat=3))
        ),
        equation=8,
    )


def _prove_returns(proof: Proof) -> None:
    """By the pigeonhole principle F angles nearly return: (9), (10)."""
    x = sp.Symbol("x", positive=True)
    first, second = sp.diff(x**2 / 2 - 1 + sp.cos(x), x), sp.diff(x - sp.sin(x), x)
    proof.check(
        "x²/2 - (1 - cos x) is 0 at 0, with derivative x - sin x, 0 at 0, of derivative "
        "1 - cos x = 2 sin²(x/2) >= 0",
        (x**2 / 2 - 1 + sp.cos(x)).subs(x, 0) == 0
        and identical(first, x - sp.sin(x))
        and first.subs(x, 0) == 0
        and _trigonometric(second, 2 * sp.sin(x / 2) ** 2),
        equation=9,
    )
    q, m = sp.Symbol("Q", positive=True), sp.Symbol("m", integer=True, nonnegative=True)
    proof.check(
        "at x = 2π/Q this is 2π²/Q²; the whole part Q = 1 + m of r has r < Q + 1 <= 2Q; and with "
        "Q = r/2 it is 8π²/r²",
        equal((2 * sp.pi / q) ** 2 / 2, 2 * sp.pi**2 / q**2)
        and nonnegative(2 * (1 + m) - ((1 + m) + 1))
        and equal(2 * sp.pi**2 / (q / 2) ** 2, 8 * sp.pi**2 / q**2),
        equation=9,
    )
    proof.check(
        "Q^F + 1 distances among Q^F boxes: two in one box differ by less than 1/Q in every angle "
        "(all grids of turns p/11, Q = 2, 3, F = 1, 2)",
        all(
            nearly_returns([Fraction(p, 11) for p in turns], boxes)
            for boxes in (2, 3)
            for count in (1, 2)
            for turns in product(range(11), repeat=count)
        ),
        equation=9,
    )
    proof.check(
        "1 - cos(2π/6) = 1/2, so that six boxes for each angle exclude a gap of A/2",
        identical(1 - sp.cos(sp.pi / 3), sp.Rational(1, 2)),
        equation=10,
    )


def _prove_enough(proof: Proof) -> None:
    """Random, geometric and octave frequencies have a gap for long: (11) to (13)."""
    k = sp.Symbol("k", integer=True, nonnegative=True)
    z, strength, t = sp.symbols("z lambda t", positive=True)
    proof.check(
        "the mean of cos^n over a turn, the constant term of ((z + 1/z)/2)^n, is C(n, n/2)/2^n for "
        "even n, up to 16, and 0 for odd n",
        all(
            sp.Poly((z**2 + 1) ** n, z).coeff_monomial(z**n)
            == (sp.binomial(n, n // 2) if n % 2 == 0 else 0)
            for n in range(17)
        ),
        equation=11,
    )
    factorial = sp.factorial
    term = strength ** (2 * k) / factorial(2 * k) * factorial(2 * k) / factorial(k) ** 2 / 4**k
    proof.check(
        "so the mean of exp(λ cos) has the terms (λ²/4)^k/(k!)², at most those of exp(λ²/4), as "
        "(k!)² >= k!",
        equal(term, (strength**2) ** k / 4**k / factorial(k) ** 2)
        and nonnegative((1 + k) ** 2 - (1 + k)),
        equation=11,
    )
    proof.check(
        "λ²/4 - λt is -t² at λ = 2t",
        identical((strength**2 / 4 - strength * t).subs(strength, 2 * t), -(t**2)),
        equation=11,
    )
    before, ratio, more = sp.symbols("b rho m", positive=True)
    proof.check(
        "1 - cos grows up to π, where sin >= 0; if θn > π for one frequency then ρθn > ρπ for the "
        "next",
        identical(sp.diff(1 - sp.cos(before), before), sp.sin(before))
        and positive(ratio * (sp.pi + more) - ratio * sp.pi),
        equation=12,
    )
    with precision(128):
        proof.check(
            "the standard frequencies: at least 0.4539 up to 9934",
            geometric_bound(1, arb(10) ** (-arb(1) / 2)) > ball(Fraction("0.4539"))
            and standard()[-1] * 9934 < arb.pi(),
            equation=12,
        )
    j = sp.Symbol("j", integer=True)
    proof.check(
        "an odd number of half turns is at cosine -1, a number of turns at 1; n = 2^s odd below "
        "2^F has s < F; 2^(F-1) is whole turns to all but the last, 2^F to all, F up to 9",
        sp.cos(sp.pi * (2 * j + 1)) == -1
        and sp.cos(2 * sp.pi * j) == 1
        and all(
            all((n & -n).bit_length() - 1 < octaves for n in range(1, 2**octaves))
            and all(2 ** (octaves - 1) % 2 ** (f + 1) == 0 for f in range(octaves - 1))
            and all(2**octaves % 2 ** (f + 1) == 0 for f in range(octaves))
            for octaves in range(1, 10)
        ),
        equation=13,
    )


def _prove_standard(proof: Proof) -> None:
    """The gaps of the standard frequencies, by a search that leaves nothing out: (14), (15)."""
    with precision(128):
        frequencies = standard()
        low = {n for n in range(1, 1201) if not drop(n, frequencies) > 3}
        proof.check(
            "no term exceeds the sum; the search keeps every distance up to 1200 of drop at most 3",
            low <= set(candidates(frequencies, 1200, 3)),
            equation=14,
        )
        proof.check(
            "each reach of the table: all other distances drop by more than the one of the table",
            all(
                _least_at(frequencies, reach, n)
                and ball(cut) < drop(n, frequencies) < ball(cut + Fraction(1, 10**4))
                for reach, (n, cut) in NEAREST_RETURNS.items()
            ),
            equation=15,
        )
        proof.check(
            "a single pixel drops least up to 596,273, and no farther",
            _least_at(frequencies, LAST_OF_ONE, 1)
            and drop(LAST_OF_ONE + 1, frequencies) < drop(1, frequencies),
            equation=15,
        )


def _least_at(frequencies: Sequence[arb], reach: int, distance: int) -> bool:
    """Whether the drop at a distance is less than that at every other in reach."""
    least = drop(distance, frequencies)
    return distance <= reach and all(
        n == distance or drop(n, frequencies) > least
        for n in candidates(frequencies, reach, least.upper())
    )


def _prove_borders(proof: Proof) -> None:
    """The nearest pixel need not be the maximum; a circle is a resonance: (16), (17)."""
    with precision(128):
        proof.check(
            "three pixels beyond the edge the next pixel scores more than the edge: G(4) < G(3)",
            drop(4, standard()) < drop(3, standard()),
            equation=16,
        )
    turns = sp.Symbol("m", integer=True)
    proof.check(
        "from left to right, at m = 0: the drop at distance 0 is 0",
        1 - sp.cos(THETA * 0) == 0,
        equation=17,
    )
    proof.check(
        "from right to left: if n turns by whole turns then a score has period n",
        sp.cos(sp.expand(THETA * (K_ + 2 * sp.pi * turns / THETA))) == sp.cos(THETA * K_),
        equation=17,
    )


U = Fraction(1, 2**53)  # the unit roundoff of float64
LIBRARY = 4 * U  # hypothesis: sin and cos are within two units in the last place
SMALL = Fraction(1, 2**10)  # what a feature may err for the second order to be negligible
ROUND = 1 + Fraction(1, 2**8)


def _prove_rounding(proof: Proof) -> None:
    """What scores and gaps may err: (18) to (21)."""
    a, b, u = sp.symbols("alpha beta u", nonnegative=True)
    proof.check(
        "a turned pair errs by the angle's own rounding and that of cosine and sine; of the "
        "query the product with a_f rounds too",
        LIBRARY + U * (1 + LIBRARY) == U * (5 + 4 * U) and Fraction(1, 2**11) + 6 * U <= SMALL,
        equation=18,
    )
    first, second = u * (a + 4), u * (b + 5 + 4 * u)
    proof.check(
        "<v + e, r + f> - <v, r> = <e, r> + <v, f> + <e, f>, of moduli E_v, E_r and E_v E_r",
        identical((1 + first) * (1 + second) - 1, first + second + first * second),
        equation=19,
    )
    proof.check(
        "with E_r at most 2^-10 the sum is at most (1 + 2^-8) u (α + β + 10 + n), n up to 2^20",
        1 + SMALL <= ROUND
        and 4 + (5 + 4 * U) * (1 + SMALL) <= 10
        and (1 + SMALL) ** 2 / (1 - 2**20 * U) <= ROUND,
        equation=20,
    )
    proof.check(
        "sin² has derivative sin 2x, at most 1; F terms: (1 + 4u)² (1 + u)^(F + 1), three more "
        "operations, and 8 u to spare within F + 24 units, F up to 2^10",
        _trigonometric(sp.diff(sp.sin(THETA) ** 2, THETA), sp.sin(2 * THETA))
        and all(
            (1 - (f + 24) * U) * (1 + U) ** 3 * (1 + LIBRARY) ** 2 * (1 + U) ** (f + 1) < 1 - 8 * U
            for f in (1, 8, 64, 2**10)
        ),
        equation=21,
    )


def _prove_stock(proof: Proof) -> None:
    """Rotary tables in float32 and constants in biases: (22)."""
    q, turn = sp.symbols("q:2"), sp.symbols("z:2")
    half = sp.Matrix([-q[1], q[0]])
    proof.check(
        "q cos + rotate_half(q) sin is q turned, a product of complex numbers",
        identical(
            sp.Matrix(q) * turn[0] + half * turn[1],
            sp.Matrix([[turn[0], -turn[1]], [turn[1], turn[0]]]) * sp.Matrix(q),
        ),
        equation=22,
    )
    v = Fraction(1, 2**24)
    tables = 2 * 4 * v + Fraction(1, 2**40)
    proof.check(
        "two tables within 4 v each, their product and the cast of the score: within 10 v",
        tables + (1 + tables) * v <= 10 * v,
        equation=22,
    )
