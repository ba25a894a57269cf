"""T21. A transformer block is convolution and ReLU.

New here. Residual connections, LayerNorm and the feed-forward part are not in the way.
"""

import sympy as sp
from flint import arb

from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative, positive
from theory.tools.theta import BITS, precision

__all__ = ["THEOREM", "prove"]

THEOREM = Theorem(
    slug="a_transformer_block_is_convolution_and_relu",
    number="T21",
    source="",
    title="A transformer block is convolution and ReLU",
    gist="residuals, LayerNorm and feed-forward included; a small CNN is a stock Transformer",
    claim=(
        "A block of a stock Transformer, unmodified, with LayerNorm before or after its parts, "
        "computes a convolution and its ReLU within 2t times the moduli of its terms, and its "
        "constant makes t as small as one likes. "
        "Its tokens hold every number with both signs beside a constant M: t is the squared norm "
        "of a token's other numbers over M², and what LayerNorm adds to the variance. The "
        "attention writes the convolution into free channels and the feed-forward part adds the "
        "ReLU of its negative. Blocks compose, as the layers of a CNN do, and a block of the "
        "decoder takes pixels of one lattice to outputs on another. Rounding adds a bound of its "
        "own, in which the constant appears only beside the square of the unit roundoff."
    ),
    hypotheses=(
        "t <= 1/16 for all tokens; γ = M sqrt(2/E) and β = 0 in every LayerNorm, whose ε is any",
        "outputs stand on pixels (encoder); the border is made of zeros, or there is none",
        "heads are those of T17, of twice its sharpness; over the reals one-hot in the limit, and "
        "computed ones exactly",
        "for rounding: a LayerNorm computes (z_i − m) r γ, m and r common to a token, r within "
        "E + 12 roundings, and sums run in any order",
    ),
    notation={
        "c, M": "the numbers of a token, and its constant; channels (c, −c, M, −M, 0 …)",
        "E, ε, γ": "width of a token, and LayerNorm's constants",
        "Φ": "the factor that a token carries: it is Φ (c, −c, M, −M)",
        "t": "a bound on ‖c‖²/M² + Eε/M²",
        "y": "the convolution, before the ReLU",
        "S": "Σ |W| |x| + |b|",
        "K, γ_K, m": "roundings of a block, what they do to a number, and the shift of a mean",
    },
    proof_idea=(
        "Such a token has mean zero, and a variance that is the constant's but for t: LayerNorm "
        "multiplies it by one number near 1, which the two signs read alike. Scores are bilinear "
        "and keep their order; the ReLU is homogeneous; y + relu(−y) is relu(y)."
    ),
    references=("arXiv:1607.06450", "arXiv:2002.04745", "arXiv:1911.03584"),
    objects=(
        "constructions.stock.encoder_layer",
        "constructions.stock.encoder",
        "constructions.stock.decoder_layer",
    ),
)

SHARPNESSES = {"float32": (24, 150, 1024), "float64": (53, 1075, 8192)}
"""Bits, the threshold over ln 2 (T8), and the sharpness: twice that of T17."""


def prove() -> tuple[Step, ...]:
    """Prove T21: equations (1) to (12) of its page."""
    proof = Proof()
    _prove_norm(proof)
    _prove_block(proof)
    _prove_error(proof)
    _prove_rounding(proof)
    return proof.steps


def _is_positive(quotient: sp.Expr) -> bool:
    """Whether numerator and denominator of a quotient are, given the signs of its symbols."""
    whole = sp.cancel(quotient)
    return positive(sp.numer(whole)) and positive(sp.denom(whole))


def _prove_norm(proof: Proof) -> None:
    """What LayerNorm does to a token: (1) to (4)."""
    for count in (1, 2, 3):
        c = sp.Matrix(sp.symbols(f"c:{count}", real=True))
        factor, constant, width, eps = sp.symbols("F M E e", positive=True)
        token = sp.Matrix([factor * sign * v for v in [*c, constant] for sign in (1, -1)])
        proof.check(
            f"{count} numbers: the sum of a token is 0, of its squares 2 F² (|c|² + M²)",
            identical(sum(token), 0)
            and identical(token.dot(token), 2 * factor**2 * (c.dot(c) + constant**2)),
            equation=1,
        )
        size = sp.Symbol("s", nonnegative=True)  # |c|²
        variance = 2 * factor**2 * (size + constant**2) / width
        gamma_squared = constant**2 * 2 / width
        squared = factor**2 * gamma_squared / (variance + eps)
        wanted = 1 / (1 + size / constant**2 + eps * width / (2 * constant**2 * factor**2))
        proof.check(
            f"{count} numbers: the square of the new factor",
            bool(sp.cancel(squared - wanted) == 0),
            equation=2,
        )
    t, inverse = sp.symbols("t v", positive=True)
    proof.check(
        "(1 - t/2)² (1 + t) <= 1 for 0 < t < 1, here t = 1/(1 + v): 1 - t/2 <= (1 + t)^(-1/2)",
        identical(1 - (1 - t / 2) ** 2 * (1 + t), t**2 * (3 - t) / 4)
        and _is_positive((t**2 * (3 - t)).subs(t, 1 / (1 + inverse))),
        equation=3,
    )
    proof.check(
        "t <= 1/16: the square of 1 - t/2 is at least 1/2, so that t is a bound for the next norm",
        bool((1 - sp.Rational(1, 32)) ** 2 >= sp.Rational(1, 2)),
        equation=3,
    )
    number, shift = sp.symbols("c m", real=True)
    proof.check(
        "half of a number less its negative: a shift of all channels cancels",
        identical(((number - shift) - (-number - shift)) / 2, number),
        equation=4,
    )


def _prove_block(proof: Proof) -> None:
    """Attention and feed-forward part on such tokens: (5) to (8)."""
    query, key = sp.symbols("F_q F_k", positive=True)
    names = sp.Matrix(3, 3, sp.symbols("n:9", real=True))
    left, right = sp.Matrix(sp.symbols("f:3", real=True)), sp.Matrix(sp.symbols("g:3", real=True))
    proof.check(
        "a score is bilinear in the tokens: it is multiplied by both factors",
        identical(
            (names * (query * left)).dot(key * right), query * key * (names * left).dot(right)
        ),
        equation=5,
    )
    alpha = sp.Symbol("alpha", positive=True)
    least = (1 - sp.Rational(1, 32)) ** 2
    more = sp.Symbol("m", nonnegative=True)
    proof.check(
        "factors of at least 31/32: a target is above 0 by 15α/32, others below it by as much",
        positive(least - sp.Rational(15, 16))
        and nonnegative(alpha / 2 * least - 15 * alpha / 32)
        and nonnegative(alpha * (sp.Rational(1, 2) + more) * least - 15 * alpha / 32),
        equation=5,
    )
    proof.check(
        "a token of no pixel scores α F² with itself, and 0 with every other",
        positive(alpha * least - 15 * alpha / 32),
        equation=6,
    )
    y, factor, size = (
        sp.Symbol("y", real=True),
        sp.Symbol("F", positive=True),
        sp.Symbol("a", positive=True),
    )
    proof.check(
        "y = a > 0: y + relu(-F y) = a; y = -a: it is -(1 - F) a",
        identical((y + sp.Max(0, -factor * y)).subs(y, size), size)
        and identical((y + sp.Max(0, -factor * y)).subs(y, -size), -(1 - factor) * size),
        equation=7,
    )
    proof.check(
        "F y + relu(-F y) = F relu(y), at y = a and y = -a",
        identical((factor * y + sp.Max(0, -factor * y)).subs(y, size), factor * size)
        and identical((factor * y + sp.Max(0, -factor * y)).subs(y, -size), 0),
        equation=8,
    )


def _prove_error(proof: Proof) -> None:
    """Relative errors over the reals, and blocks in a row: (9), (10)."""
    t, inverse = sp.symbols("t v", positive=True)
    below = 1 / (16 + inverse)  # any t of less than 1/16
    proof.check(
        "(1 - t/2)² >= 1 - t, and 1/(1 - t/2) <= 1 + t for t < 1/16",
        identical((1 - t / 2) ** 2 - (1 - t), t**2 / 4)
        and identical((1 + t) * (1 - t / 2) - 1, t * (1 - t) / 2)
        and _is_positive(below * (1 - below)),
        equation=9,
    )
    proof.check(
        "before: t/2 of S from what heads read, t/2 of |y| <= (1 + t/2) S; in all less than 2 t S",
        identical(2 * t - (t / 2 + t / 2 * (1 + t / 2)), t * (1 - t / 4))
        and _is_positive(below * (1 - below / 4)),
        equation=9,
    )
    weight, error, own, value = sp.symbols("w e o x", real=True)
    proof.check(
        "an error e of the input is an error w e of the convolution, beside the block's own",
        identical((weight * (value + error) + own) - weight * value, weight * error + own),
        equation=10,
    )


def _prove_rounding(proof: Proof) -> None:
    """Rounding: (11), (12)."""
    c, shift, first, second = sp.symbols("c s a b", real=True)
    proof.check(
        "two channels rounded by 1 + a and 1 + b: half the difference errs by c (a + b)/2 "
        "and s (a - b)/2",
        identical(
            ((c + shift) * (1 + first) - (-c + shift) * (1 + second)) / 2 - c,
            c * (first + second) / 2 + shift * (first - second) / 2,
        ),
        equation=11,
    )
    size, alpha, slack = sp.symbols("Z alpha s", positive=True)
    error = 1 / (16 * (size + 1) + slack)  # g, from 16 g (Z + 1) <= 1
    rest = alpha / 4 - 2 * (2 * error * alpha * (size + sp.Rational(1, 2)))
    proof.check(
        "16 g (Z + 1) <= 1: two scores whose parts are twice as large err by α/4 at most",
        _is_positive(rest),
        equation=12,
    )
    part, k, q, shift = sp.symbols("x k q D", nonnegative=True)
    for largest in (k, q):  # every coordinate grows by x, every square by x of the largest square
        grown = (
            2 * (q + shift + part * largest) * (k + part * largest)
            + (k**2 + part * largest**2)
            + (q**2 + part * largest**2)
            + 2 * shift * (q + part * largest)
            + shift**2
        )
        proof.check(
            "coordinates read with a shift of x of the largest: parts grow by 1 + 6x + 2x² at most",
            nonnegative((1 + 6 * part + 2 * part**2) * (k + q + shift) ** 2 - grown),
            equation=12,
        )
    proof.check(
        "x = 1/10 leaves less than twice",
        bool(1 + sp.Rational(6, 10) + sp.Rational(2, 100) < 2),
        equation=12,
    )
    with precision(BITS):
        for name, (bits, threshold, sharpness) in SHARPNESSES.items():
            certified = (threshold * arb.const_log2() + arb(40) / 2**bits) / (1 - arb(2) / 2**bits)
            proof.check(
                f"{name}: 15α/32 - α/4 = 7α/32 is more than Θ' for α = {sharpness}",
                certified < arb(7 * sharpness) / 32
                and sp.Rational(15, 32) - sp.Rational(1, 4) == sp.Rational(7, 32),
                equation=12,
            )
