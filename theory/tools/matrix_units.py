"""Sums of products on matrix units: operands of few bits, several addends at once, truncated.

The page `docs/theorems/layer_error_is_certified.md` numbers the equations.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations_with_replacement, product

import sympy as sp

from theory.tools.proof import Proof, identical, nonnegative

__all__ = ["BITS", "DIRECTIONS", "aligned_sum", "cut", "establish"]

BITS = {"tf32": 11, "bfloat16": 8}
"""Significant bits that an operand keeps."""

SUM_BITS = 24
"""Significant bits of the sums, those of float32."""

DIRECTIONS = ("toward zero", "down", "up")

TOY_BITS = 3


def cut(number: int, step: int, direction: str) -> int:
    """The multiple of a power of two next to an integer, in a direction."""
    if direction == "down":
        return number // step * step
    if direction == "up":
        return -(-number // step) * step
    return (abs(number) // step * step) * (1 if number > 0 else -1)


def aligned_sum(addends: tuple[int, ...], direction: str, bits: int = TOY_BITS) -> int:
    """Addends cut at the grid of the largest, added exactly, and the sum cut to so many bits."""

    def grid(number: int) -> int:
        return 1 << max(abs(number).bit_length() - bits, 0)

    step = grid(max(addends, key=abs))
    total = sum(cut(addend, step, direction) for addend in addends)
    return cut(total, grid(total), direction)


def establish(proof: Proof) -> None:
    """Equations (17) to (24) of the page."""
    _operands(proof)
    _node(proof)
    _tree(proof)
    _sum(proof)
    _layer(proof)
    _integers(proof)
    _split(proof)


def _operands(proof: Proof) -> None:
    p, q = sp.symbols("p q", integer=True, positive=True)
    proof.check(
        "of q bits, a number of at least 2^(q-1), less than 2^(q-p) is cut: a part 2^(1-p)",
        identical(sp.powsimp(sp.Integer(2) ** (q - p) / sp.Integer(2) ** (q - 1)), 2 ** (1 - p)),
        equation=17,
    )
    proof.check(
        "exhaustively: 8 bits cut to 3 in any direction lose less than a part 2^(1-3)",
        all(
            4 * abs(cut(m, 1 << 5, direction) - m) < m
            for m, direction in product(range(1 << 7, 1 << 8), DIRECTIONS)
        ),
        equation=17,
    )
    proof.check(
        "products of operands are integers on the grid of their own exponent: 2(p - 1) <= 23",
        all(2 * (bits - 1) <= SUM_BITS - 1 for bits in BITS.values()),
        equation=18,
    )


def _node(proof: Proof) -> None:
    t, g, size = sp.symbols("t g S", nonnegative=True)
    k = sp.symbols("k", integer=True, positive=True)
    proof.check(
        "1 + (k - 1)t <= (1 + t)^(k - 1), one more addend: (1 + (k - 1)t)(1 + t) >= 1 + k t",
        identical((1 + (k - 1) * t) * (1 + t) - (1 + k * t), (k - 1) * t**2),
        equation=18,
    )
    cuts = (k - 1) * t * (1 + g) * size
    result = t * ((1 + g) * size + cuts)
    proof.check(
        "errors of the addends, k - 1 cuts and that of the sum: (1 + g)(1 + (k - 1)t)(1 + t) - 1",
        identical(g * size + cuts + result, ((1 + g) * (1 + (k - 1) * t) * (1 + t) - 1) * size),
        equation=18,
    )
    t_toy = Fraction(1, 1 << (TOY_BITS - 1))
    proof.check(
        "exhaustively: three aligned addends of 3 bits err by at most two cuts and that of the sum",
        all(
            abs(found - sum(addends)) <= t_toy * (2 * max(map(abs, addends)) + abs(cut_sum))
            for addends in combinations_with_replacement(tuple(_toy()), 3)
            for direction in DIRECTIONS
            for found in (aligned_sum(addends, direction),)
            for cut_sum in (_before_last_cut(addends, direction),)
        ),
        equation=18,
    )


def _toy() -> Iterator[int]:
    """Integers of 3 bits, over four binades, with both signs and 0."""
    yield 0
    for m, e, sign in product(range(4, 8), range(4), (1, -1)):
        yield sign * (m << e)


def _before_last_cut(addends: tuple[int, ...], direction: str) -> int:
    step = 1 << max(max(abs(a) for a in addends).bit_length() - TOY_BITS, 0)
    return sum(cut(addend, step, direction) for addend in addends)


def _tree(proof: Proof) -> None:
    n = sp.symbols("n", integer=True, positive=True)
    more = sp.symbols("j", integer=True, nonnegative=True)
    k = 2 + more
    # A node of k addends; each of the other k - 1 has a product of its own at least.
    deepest = k + (2 * (n - (k - 1)) - 1)
    proof.check(
        "a node of k >= 2 addends: k + 2(n - k + 1) - 1 = 2n - 1 - (k - 2)",
        nonnegative((2 * n - 1) - deepest),
        equation=19,
    )
    proof.check(
        "one product after another attains it: 1 + 2(n - 1) = 2n - 1",
        identical(1 + 2 * (n - 1), 2 * n - 1),
        equation=19,
    )
    nodes = n - 1 - more  # at most n - 1
    edges = n + nodes - 1
    proof.check(
        "addends and results that can underflow, edges and nodes, are fewer than 3n",
        nonnegative(3 * n - (edges + nodes)),
        equation=20,
    )


def _sum(proof: Proof) -> None:
    v, w, g, size = sp.symbols("v w g S", nonnegative=True)
    a, b, tiny = sp.symbols("a b nu", nonnegative=True)
    proof.check(
        "two rounded operands: v + w + v w of |a b|, and ν((1 + w)|b| + (1 + v)|a| + ν)",
        identical(
            ((1 + v) * a + tiny) * ((1 + w) * b + tiny) - a * b,
            (v + w + v * w) * a * b + tiny * ((1 + w) * b + (1 + v) * a + tiny),
        ),
        equation=20,
    )
    operands = v + w + v * w
    proof.check(
        "errors of the operands, and g of the sizes with them: (1 + v)(1 + w)(1 + g) - 1",
        identical(
            operands * size + g * (1 + operands) * size,
            ((1 + v) * (1 + w) * (1 + g) - 1) * size,
        ),
        equation=20,
    )


def _layer(proof: Proof) -> None:
    g, seen, nearest = sp.symbols("G M N", nonnegative=True)
    proof.check(
        "stored weights see at most M + N of the moduli: N + G (M + N)",
        identical(nearest + g * (seen + nearest), (1 + g) * (seen + nearest) - seen),
        equation=22,
    )
    mu, gamma, lost, largest = sp.symbols("mu gamma z R", nonnegative=True)
    proof.check(
        "N_1 covers the stored weights without their sum: μ M + z R",
        nonnegative(
            ((1 + mu) * (1 + gamma) - 1) * seen
            + (1 + gamma) * lost * largest
            - (mu * seen + lost * largest)
        ),
        equation=22,
    )
    proof.check(
        "and so does N_2: 8 + 2 for the layer, and 2 over the reals, of 26",
        nonnegative((26 - (8 + 2 + 2)) * (1 + gamma) * lost * largest),
        equation=22,
    )
    h = sp.symbols("h", nonnegative=True)
    proof.check(
        "one axis after another: G + h (1 + G) = (1 + G)(1 + h) - 1",
        identical(g + h * (1 + g), (1 + g) * (1 + h) - 1),
        equation=22,
    )
    w, x, e = sp.symbols("W X e", nonnegative=True)
    proof.check(
        "the sum over taps: errors of the heads, and G of the size with them in it",
        identical(w * e + g * w * (x + e), g * w * x + (1 + g) * w * e),
        equation=21,
    )


def _integers(proof: Proof) -> None:
    proof.check(
        "an integer below 2^p in modulus, or 2^p itself, has at most p bits: exhaustively for 3",
        all(cut(m, 1 << max(m.bit_length() - 3, 0), "up") == m for m in range(9)),
        equation=23,
    )
    most = 1 << TOY_BITS
    triples = [t for t in product(range(-most, most + 1), repeat=3) if sum(map(abs, t)) <= most]
    proof.check(
        "exhaustively: three integers whose moduli sum to 2^3 at most are added exactly in 3 bits",
        all(aligned_sum(t, d) == sum(t) for t, d in product(triples, DIRECTIONS)),
        equation=23,
    )
    proof.check(
        "and one more is one too many: 2^3 + 1",
        aligned_sum((most, 1), "down") == most,
        equation=23,
    )


def _split(proof: Proof) -> None:
    high, low, rest = sp.symbols("a_1 a_2 r", real=True)
    high_, low_, rest_ = sp.symbols("b_1 b_2 s", real=True)
    a, b = high + low + rest, high_ + low_ + rest_
    formed = high * high_ + high * low_ + low * high_
    proof.check(
        "three of four products leave out a_2 b_2 + a s + r b - r s",
        identical(a * b - formed, low * low_ + a * rest_ + rest * b - rest * rest_),
        equation=24,
    )
    v = Fraction(1, 1 << (BITS["tf32"] - 1))
    proof.check(
        "v²(1 + v)² + 2v² + v⁴ <= (1 + 2v²)² - 1 for TF32",
        v**2 * (1 + v) ** 2 + 2 * v**2 + v**4 <= (1 + 2 * v**2) ** 2 - 1,
        equation=24,
    )
    y = sp.symbols("y", positive=True)
    rising = sp.Poly([6, 5, 4, 3, 2, 1], y).as_expr()
    proof.check(
        "6(y^7 - 1) - 7(y^6 - 1) = (y - 1)² (6y^5 + 5y^4 + 4y^3 + 3y² + 2y + 1)",
        identical(6 * (y**7 - 1) - 7 * (y**6 - 1), (y - 1) ** 2 * rising),
        equation=24,
    )
    proof.check(
        "moduli of the three products: (1 + v)²(1 + 2v) <= 7/6 for TF32",
        (1 + v) ** 2 * (1 + 2 * v) <= Fraction(7, 6),
        equation=24,
    )
