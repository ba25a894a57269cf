"""T19. Gated heads start as a convolution for odd sides.

New here: about the layer of arXiv 2103.10697 as timm has it. The page
`docs/theorems/gated_heads_start_as_convolution_for_odd_sides.md` numbers the equations. Rounding is
by exact fractions; exponentials and ϑ are balls.
"""

from collections.abc import Mapping
from fractions import Fraction
from itertools import product

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import ball, leak_enclosure, precision

__all__ = ["OPEN", "THEOREM", "divisible", "opened", "prove", "rounded", "stripes"]

THEOREM = Theorem(
    slug="gated_heads_start_as_convolution_for_odd_sides",
    number="T19",
    source="",
    title="Gated heads start as a convolution for odd sides",
    gist="ConViT's layer as timm has it: exact for odd sides, blind to stripes for even ones",
    claim=(
        "With open gates, gated positional heads converge to a convolution with replicate borders "
        "as their locality grows if their centres are integers, as those of an odd side are, and "
        "never to one of a single tap if they are half-integers, as those of an even side are. "
        "Integers: the target leads by the locality s at least, so that weights are one-hot in "
        "floating point from the threshold of T8 on; head h then applies W_h = V_h P_h, of rank at "
        "most D/H, and every such matrix is one. Half-integers: the four pixels around a target "
        "tie, each with at most 1/4, at any locality; the alternating sum of the weights along "
        "either axis is 0, so that on the infinite grid every kernel W is missed by at least "
        "|Σ (−1)^(δ_1) W_δ|, for one tap by as much as a layer of zeros misses; in the limit K x K "
        "heads compute, of one channel, just the kernels of (K+1) x (K+1) taps whose alternating "
        "row and column sums are 0. "
        "A gate opens in floating point at a finite λ; the shipped one is positional to 0.731."
    ),
    hypotheses=(
        "positional scores are w·(δ_1, δ_2, |δ|²), softmax of its own, mixed by a gate with "
        "content attention, as in arXiv 2103.10697, equation 7",
        "the floor for half-integers: gates are open, the grid is Z²; values and projections are "
        "any, the error is the largest over images in [−1, 1], one channel",
        "a sigmoid in floating point: 1/(1 + e^−λ), the exponential within 40 unit roundoffs, each "
        "operation rounded to nearest; in 16 bits, that of float32, rounded",
    ),
    notation={
        "c, s": "a head's centre, and its locality strength, s > 0",
        "δ = k − q": "displacement from query to key, in Z^2",
        "a(δ)": "a head's positional weights",
        "λ, σ(λ)": "the gate's parameter, and its sigmoid: the part of positional attention",
        "V_h, P_h": "a head's value matrix, D x D/H, and its part of the projection, D/H x D",
        "u": "unit roundoff",
    },
    proof_idea=(
        "The scores are −s|δ − c|² up to a constant. For an integer centre the nearest pixel of a "
        "box is a clamp and leads by s. For a centre that is a half-integer on an axis, reflecting "
        "that axis about it keeps all scores and changes the parity of the coordinate."
    ),
    references=("arXiv:2103.10697",),
    objects=("constructions.stock.gpsa", "constructions.encodings.Quadratic"),
)

EXP_ROUNDOFFS = 40
FORMATS = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Significant bits."""

OPEN = {"float16": 9, "bfloat16": 7, "float32": 17, "float64": 37}
"""Equation (6): the least integer at which the sigmoid is exactly 1."""


def rounded(number: Fraction, bits: int) -> Fraction:
    """The nearest number of so many significant bits, ties to even, of a positive one."""
    exponent = 0
    while number >= 2:
        number, exponent = number / 2, exponent + 1
    while number < 1:
        number, exponent = number * 2, exponent - 1
    return Fraction(round(number * 2 ** (bits - 1)), 2 ** (bits - 1)) * Fraction(2) ** exponent


def opened(small: Fraction, bits: int, *, stored: int | None = None) -> bool:
    """Whether 1/(1 + e), computed for an e > 0 and stored in another format, is exactly 1."""
    found = rounded(1 / rounded(1 + small, bits), bits)
    return rounded(found, stored or bits) == 1


def stripes(kernel: Mapping[tuple[int, int], Fraction], axis: int) -> Fraction:
    """The alternating sum of a kernel along an axis: Σ (-1)^(δ_axis) W_δ."""
    return sum(((-1) ** delta[axis] * w for delta, w in kernel.items()), Fraction(0))


def divisible(kernel: list[list[Fraction]]) -> bool:
    """Whether the alternating sum of every row and of every column is 0."""
    lines = [*kernel, *zip(*kernel, strict=True)]
    return all(sum((-1) ** i * w for i, w in enumerate(line)) == 0 for line in lines)


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    _scores(proof)
    _odd(proof)
    _gate(proof)
    _even(proof)
    return proof.steps


def _scores(proof: Proof) -> None:
    s, a, b, x, y = sp.symbols("s a b x y", real=True)
    proof.check(
        "w = s (2c_1, 2c_2, -1): the score is -s|δ - c|^2 + s|c|^2",
        identical(
            s * (2 * a * x + 2 * b * y - (x**2 + y**2)),
            -s * ((x - a) ** 2 + (y - b) ** 2) + s * (a**2 + b**2),
        ),
        equation=1,
    )


def _odd(proof: Proof) -> None:
    more, beyond = sp.symbols("m p", positive=True, integer=True)
    proof.check(
        "a key j steps further inside than the edge, a target p beyond it: (p + j)^2 - p^2 - 1 is "
        "nonnegative for j = 1 + m, and for j = 1",
        nonnegative((beyond + 1 + more) ** 2 - beyond**2 - 1)
        and nonnegative((beyond + 1) ** 2 - beyond**2 - 1),
        equation=2,
    )
    proof.check(
        "a target on the grid: another key is j away, and j^2 - 1 is nonnegative for j = 1 + m",
        nonnegative((1 + more) ** 2 - 1),
        equation=2,
    )
    for d, h in product((1, 2, 3), (1, 2)):
        left = sp.Matrix(d, h, lambda i, j: sp.Symbol(f"v{i}{j}"))
        right = sp.Matrix(h, d, lambda i, j: sp.Symbol(f"p{i}{j}"))
        if h < d:
            proof.check(
                f"a product through {h} channels of {d} has no minor of order {h + 1}: rank {h}",
                all(
                    identical((left * right)[list(chosen), list(others)].det(), 0)
                    for chosen in _subsets(d, h + 1)
                    for others in _subsets(d, h + 1)
                ),
                equation=3,
            )
    columns, rows = sp.symbols("x:4"), sp.symbols("y:4")
    proof.check(
        "a matrix of rank 2 is two columns times two rows, a product through 2 channels",
        identical(
            sp.Matrix(2, 2, columns) * sp.Matrix(2, 2, rows),
            sp.Matrix([columns[0], columns[2]]) * sp.Matrix([rows[:2]])
            + sp.Matrix([columns[1], columns[3]]) * sp.Matrix([rows[2:]]),
        ),
        equation=3,
    )


def _subsets(size: int, chosen: int) -> list[tuple[int, ...]]:
    return [t for t in product(range(size), repeat=chosen) if list(t) == sorted(set(t))]


def _gate(proof: Proof) -> None:
    g, p, c = sp.symbols("g p c", positive=True)
    proof.check(
        "two rows of sum 1, mixed by g and 1 - g, sum to 1: dividing by the sum changes nothing",
        identical(g * 1 + (1 - g) * 1, 1),
        equation=4,
    )
    proof.check(
        "off its target is (1 - g) + g ε, less what content attention puts there",
        identical(1 - (g * (1 - p) + (1 - g) * c), (1 - g) + g * p - (1 - g) * c),
        equation=4,
    )
    with precision(128):
        shipped = 1 / (1 + (-arb(1)).exp())
        kept = shipped * (1 - leak_enclosure(1, 2, bits=128))
        proof.check(
            "σ(1) is between 0.731 and 0.732, σ(1) ϑ(1/e)^-2 between 0.232 and 0.233",
            bool(ball(Fraction(731, 1000)) < shipped < ball(Fraction(732, 1000)))
            and bool(ball(Fraction(232, 1000)) < kept < ball(Fraction(233, 1000))),
            equation=5,
        )
    for name, bits in FORMATS.items():
        wide = max(bits, 24)
        u = Fraction(1, 2**wide)
        limit = u if wide == bits else Fraction(1, 2 ** (bits + 1) - 1)
        below, above = limit * 7 / 8, limit * 9 / 8
        proof.check(
            f"{name}: 1/(1 + e), computed, is 1 at 7/8 of e = {limit} and less at 9/8 of it",
            opened(below, wide, stored=bits) and not opened(above, wide, stored=bits),
            equation=6,
        )
        with precision(256):
            near = ball(EXP_ROUNDOFFS * u)
            proof.check(
                f"{name}: e^-λ, within 40 roundoffs, is below 7/8 of {limit} at λ = {OPEN[name]} "
                f"and above 9/8 of it at {OPEN[name] - 1}",
                bool((-arb(OPEN[name])).exp() * (1 + near) < ball(below))
                and bool((-arb(OPEN[name] - 1)).exp() * (1 - near) > ball(above)),
                equation=6,
            )

    e = sp.Symbol("e", positive=True)
    half = sp.Rational(1, 2**25)
    proof.check(
        "float32: 1 - 1/(1 + e) is at most u/2 up to e = 1/(2^25 - 1)",
        equal(1 - 1 / (1 + e) - half, (e * (1 - half) - half) / (1 + e))
        and equal(half / (1 - half), sp.Rational(1, 2**25 - 1)),
        equation=6,
    )
    with precision(64):
        proof.check(
            "which is λ = 17.32... or more",
            bool(ball(Fraction(1732, 100)) < ball(2**25 - 1).log() < ball(Fraction(1733, 100))),
            equation=6,
        )


def _even(proof: Proof) -> None:
    x, y, b = sp.symbols("x y b", real=True)
    m = sp.Symbol("m", integer=True)
    c = m + sp.Rational(1, 2)
    proof.check(
        "reflecting an axis about m + 1/2 keeps the distance and takes x to 2m + 1 - x, of the "
        "other parity",
        identical(((2 * m + 1 - x) - c) ** 2 + (y - b) ** 2, (x - c) ** 2 + (y - b) ** 2)
        and identical((2 * m + 1 - x) + x, 2 * m + 1),
        equation=7,
    )
    weight = sp.Symbol("a", positive=True)
    proof.check(
        "the four pixels around the centre have one distance, 1/2: four weights that are alike "
        "and sum to at most 1",
        len(
            {
                sp.expand((i - sp.Rational(1, 2)) ** 2 + (j - sp.Rational(1, 2)) ** 2)
                for i in (0, 1)
                for j in (0, 1)
            }
        )
        == 1
        and identical(4 * weight - (weight + weight + weight + weight), 0),
        equation=8,
    )
    n = sp.Symbol("n", nonnegative=True, integer=True)
    proof.check(
        "an axis away from the four, (3/2 + n)^2 - (1/2)^2 is at least 2: they lead by 2s",
        nonnegative((sp.Rational(3, 2) + n) ** 2 - sp.Rational(1, 4) - 2),
        equation=8,
    )
    w, g = sp.symbols("w g", real=True)
    proof.check(
        "ΣW - Σ(W - G) = ΣG with any signs: where the signed sum of G is 0, that of W is left",
        identical(w - (w - g), g),
        equation=9,
    )
    p, q = sp.symbols("p q")
    for side in (1, 2, 3):
        taps = [[sp.Symbol(f"k{i}{j}") for j in range(side)] for i in range(side)]
        w_poly = sum(taps[i][j] * p**i * q**j for i in range(side) for j in range(side))
        full = sp.expand((1 + p) * (1 + q) * w_poly)
        proof.check(
            f"(1 + p)(1 + q) times {side} x {side} taps is 0 at p = -1 and at q = -1",
            identical(full.subs(p, -1), 0) and identical(full.subs(q, -1), 0),
            equation=10,
        )
        free = [[sp.Symbol(f"f{i}{j}") for j in range(side + 1)] for i in range(side + 1)]
        given = sum(free[i][j] * p**i * q**j for i in range(side + 1) for j in range(side + 1))
        first, left = sp.div(sp.Poly(given, p), sp.Poly(1 + p, p))
        second, rest = sp.div(sp.Poly(first.as_expr(), q), sp.Poly(1 + q, q))
        proof.check(
            f"{side + 1} x {side + 1} taps: the remainder of 1 + p is the kernel at p = -1; that "
            "of 1 + q, times 1 + p, is the kernel at q = -1 less the first remainder there",
            identical(left.as_expr(), given.subs(p, -1))
            and identical((1 + p) * rest.as_expr(), (given - left.as_expr()).subs(q, -1))
            and identical(
                given, (1 + p) * ((1 + q) * second.as_expr() + rest.as_expr()) + left.as_expr()
            ),
            equation=10,
        )
    value, total = sp.symbols("v t", positive=True)
    proof.check(
        "weights of sum 1 take a constant v to v; with a key of value 0 and a share t/(1 + t) less",
        equal(total * value / total, value) and positive(sp.cancel(value - value / (1 + total))),
        equation=11,
    )
