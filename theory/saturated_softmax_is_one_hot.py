"""T8. Saturated softmax is one-hot, exactly, in floating point.

New here; it bears on a remark of the paper (arXiv 1911.03584, after Lemma 2), quoted from memory,
that alpha = 46 is enough in float32. The page `docs/theorems/saturated_softmax_is_one_hot.md`
numbers the equations.

Numbers are exact rationals; where an exponential or a logarithm enters they are balls, which
enclose it (python-flint): a comparison of balls is true only if it is certain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from types import MappingProxyType

import sympy as sp
from flint import arb

from theory.quadratic_scores_select_one_shift import ball, precision
from theory.tools.proof import Proof, Step, Theorem, identical, nonnegative

__all__ = [
    "ACCUMULATOR",
    "EXP_ROUNDOFFS",
    "FORMATS",
    "THEOREM",
    "Format",
    "certified_gap",
    "flush_threshold",
    "peak_threshold",
    "prove",
    "rounded",
    "threshold",
]

BITS = 256
"""Working precision of the balls, in bits."""

EXP_ROUNDOFFS = 40
"""The relative error that the computed exponential may have, in unit roundoffs (the page's kappa).

20 units in the last place, each of at most two unit roundoffs: what torch's fastest vectorised
exponential promises. On the machines that the tests ran on, it is below two.
"""


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: the multiples of a power of two that it can store.

    Attributes:
        name: torch's name of it.
        precision: the significant bits p, the implicit one included.
        least_exponent: the exponent of the smallest normal number.
        greatest_exponent: the exponent of the largest number.
    """

    name: str
    precision: int
    least_exponent: int
    greatest_exponent: int

    @property
    def unit_roundoff(self) -> Fraction:
        """The relative error of one rounding to nearest: u = 2^-p."""
        return Fraction(2) ** -self.precision

    @property
    def smallest_normal(self) -> Fraction:
        """The least positive number with full precision."""
        return Fraction(2) ** self.least_exponent

    @property
    def smallest_subnormal(self) -> Fraction:
        """The least positive number: eta."""
        return Fraction(2) ** (self.least_exponent - self.precision + 1)

    @property
    def largest(self) -> Fraction:
        """The largest finite number."""
        return (2 - 2 * self.unit_roundoff) * Fraction(2) ** self.greatest_exponent


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "float16": Format("float16", 11, -14, 15),
        "bfloat16": Format("bfloat16", 8, -126, 127),
        "float32": Format("float32", 24, -126, 127),
        "float64": Format("float64", 53, -1022, 1023),
    }
)

ACCUMULATOR: Mapping[str, Format] = MappingProxyType(
    {name: FORMATS["float64" if name == "float64" else "float32"] for name in FORMATS}
)
"""The format in which scores, softmax and sums are computed, by the format of the module."""

THEOREM = Theorem(
    slug="saturated_softmax_is_one_hot",
    number="T8",
    source="",
    title="Saturated softmax is one-hot, exactly",
    gist="from a finite sharpness on, in each floating-point format",
    claim=(
        "Computed softmax weights are exactly one-hot once the gap in score exceeds a finite "
        "threshold. It is ln(2/η), η the smallest subnormal number of the weights' format, plus a "
        "margin for rounding below one part in three million: 17.33 in float16, 92.89 in bfloat16, "
        "103.98 in float32 and 745.14 in float64. "
        "Hence a saturated head copies one pixel without rounding, and on integers small enough "
        "to be summed exactly the attention layer and the convolution agree bit for bit, up to "
        "the sign of zero."
    ),
    hypotheses=(
        "Softmax subtracts the largest score, sums the exponentials in any order, and divides (or "
        "multiplies by the reciprocal), each operation rounded to nearest in the accumulator's "
        "format; subnormal numbers are kept or flushed to zero.",
        "The computed exponential is a non-negative number of that format, 1 at 0, 0 at -∞, and "
        "at most (1 + κu)eˣ + η/2 for x < 0, with κ = 40.",
        "The target's score is computed as 0, and a score -αm, m ≥ 1, as at most -(1 - 2u)αm.",
        "Where the weights are stored in half precision: at most 2²³ keys, and quadratic scores in "
        "at most 500 dimensions (or at most 2¹¹ keys, whatever the scores).",
        "Pixels and matrices are finite (T9); no pixel is subnormal where those are flushed.",
    ),
    notation={
        "p, u": "significant bits of a format and its unit roundoff 2⁻ᵖ",
        "η, ν": "the smallest subnormal and the smallest normal number of a format",
        "α, m": "sharpness, and the squared distance of a key from the target, an integer",
        "Θ, Θ'": "the threshold ln(2/η), and the gap certified with all rounding errors",
        "κ": "relative error of the computed exponential, in unit roundoffs",
        "λ": "total weight of the off-target keys before normalisation",
        "ϑ": "Jacobi's theta function, Σ xⁿ² over the integers n",
    },
    proof_idea=(
        "A number at most η/2 rounds to zero, so the threshold is -ln(η/2). The errors of the "
        "score and of the exponential are relative, so a slightly larger gap absorbs them. With "
        "zero tails the sum is the single 1 that the target contributes. In half precision the "
        "tails vanish only when the weights are cast, and the peak is 1 because adding a tail B "
        "moves a computed sum by at most 2B. Integers up to 2ᵖ are numbers of the format, so no "
        "sum that stays below 2ᵖ ever rounds."
    ),
    references=("arXiv:1911.03584", "arXiv:1909.03469", "IEEE Std 754-2019"),
    objects=(
        "constructions.normalisers.Softmax",
        "constructions.MultiHeadSelfAttention",
        "constructions.attention_from_conv",
    ),
)


def rounded(value: Fraction, to: Format) -> Fraction:
    """The number of the format nearest to the value, ties to the even one; subnormals are kept.

    Raises:
        OverflowError: the result would be infinite.
    """
    if value == 0:
        return Fraction(0)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, to.least_exponent) - to.precision + 1)
    result = round(value / step) * step  # Python rounds a Fraction to the even neighbour on a tie
    if abs(result) > to.largest:
        raise OverflowError(f"{value} is beyond the largest number of {to.name}")
    return result


def threshold(of: Format) -> arb:
    """Encloses Θ = ln(2/η): beyond it e^-Θ rounds to zero."""
    return (of.precision - of.least_exponent) * arb.const_log2()


def flush_threshold(of: Format) -> arb:
    """Encloses ln(1/ν), the threshold where subnormal numbers are flushed to zero."""
    return -of.least_exponent * arb.const_log2()


def certified_gap(of: Format) -> arb:
    """Encloses Θ' = (Θ + κu)/(1 - 2u), u the accumulator's: a gap that one-hot weights need."""
    u = ball(ACCUMULATOR[of.name].unit_roundoff)
    return (threshold(of) + EXP_ROUNDOFFS * u) / (1 - 2 * u)


def peak_threshold(of: Format, neighbours: int) -> arb:
    """Encloses the α from which 1/(1 + m e^-α), m neighbours at distance one, rounds to 1."""
    u = of.unit_roundoff
    return (ball(neighbours) / ball(u / (2 - u))).log()


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    with precision(BITS):
        _tails(proof)
        _peak(proof)
        _flush_to_zero(proof)
        _threshold_is_sharp(proof)
        _integers(proof)
        _peak_alone(proof)
        _the_remark(proof)
    return proof.steps


def _tails(proof: Proof) -> None:
    # In units of η: y = tη with 0 <= t <= 1/2. By the identity the distance to nη exceeds the
    # distance to zero by 1 - 2t + (n - 1) >= 0; at t = 1/2 zero ties with η, and zero is even.
    n, t = sp.symbols("n t", real=True)
    proof.check(
        "no multiple of η is nearer than zero to a number of at most η/2",
        identical((n - t) - t, (1 - 2 * t) + (n - 1)),
        equation=1,
    )
    for to in FORMATS.values():
        eta = to.smallest_subnormal
        proof.check(
            f"{to.name}: η/2 rounds to zero, a tie, and anything larger does not",
            rounded(eta / 2, to) == 0 and rounded(eta / 2 * (1 + Fraction(1, 2**100)), to) == eta,
            equation=1,
        )
        proof.check(
            f"{to.name}: Θ = {to.precision - to.least_exponent} ln 2",
            Fraction(2) ** (to.precision - to.least_exponent) == 2 / eta,
            equation=2,
        )
    _check_two_decimals(
        proof,
        "Θ",
        {"float16": "17.33", "bfloat16": "92.88", "float32": "103.97", "float64": "745.13"},
        threshold,
        equation=2,
    )

    u, m, theta, kappa = sp.symbols("u m Theta kappa", positive=True)
    proof.check(
        "two roundings multiply a score by at least (1 - u)², which is above 1 - 2u",
        identical((1 - u) ** 2 - (1 - 2 * u), u**2),
        equation=3,
    )
    t = sp.symbols("t", positive=True)
    proof.check(
        "1 + t < e^t for t > 0: equal at 0, and the difference has derivative e^t - 1 > 0",
        (sp.exp(t) - 1 - t).subs(t, 0) == 0 and sp.diff(sp.exp(t) - 1 - t, t) == sp.exp(t) - 1,
        equation=4,
    )
    gap = (theta + kappa * u) / (1 - 2 * u)
    proof.check(
        "at α = Θ' the computed score of distance m is below -(mΘ + κu), by κu(m - 1)",
        identical(sp.cancel((1 - 2 * u) * gap * m), (m * theta + kappa * u) + kappa * u * (m - 1)),
        equation=4,
    )
    enough = {"float16": "17.33", "bfloat16": "92.89", "float32": "103.98", "float64": "745.14"}
    for to in FORMATS.values():
        via = ACCUMULATOR[to.name]
        roundoff = ball(via.unit_roundoff)
        proof.check(
            f"{to.name}: at the certified gap (1 + κu)e^x is below η/2; the gap is below "
            f"{enough[to.name]} and within 1/3,000,000 of Θ",
            (1 + EXP_ROUNDOFFS * roundoff) * (-(1 - 2 * roundoff) * certified_gap(to)).exp()
            < ball(to.smallest_subnormal / 2)
            and certified_gap(to) / threshold(to) - 1 < ball(Fraction(1, 3_000_000))
            and certified_gap(to) < ball(Fraction(enough[to.name])),
            equation=4,
        )
        # The computed exponential is a multiple of η_a, the accumulator's, below (η + η_a)/2.
        half = to.smallest_subnormal / 2 / via.smallest_subnormal
        proof.check(
            f"{to.name}: a multiple of η_a below (η + η_a)/2 is at most η/2, and rounds to zero",
            rounded(floor(half) * via.smallest_subnormal, to) == 0
            and floor(half) + 1 >= half + Fraction(1, 2),
            equation=5,
        )


def _peak(proof: Proof) -> None:
    p, b, z, y, u, eta = sp.symbols("P B z Y u eta", nonnegative=True)
    # fl(P + B) is at least as near to P + B as P is, since P is itself a number of the format.
    proof.check(
        "the distance from P + B to P is B, so fl(P + B) <= (P + B) + B",
        identical((p + b) + sp.Abs((p + b) - p), p + 2 * b),
        equation=6,
    )
    proof.check(
        "a tail η <= z <= Y + η/2 is at most 2Y: 2Y - z is twice one slack and once the other",
        identical(2 * y - z, 2 * (y + eta / 2 - z) + (z - eta)),
        equation=7,
    )
    proof.check(
        "e^(1/2) < 2, and float32: (1 + u)^T < 2 at T = 1/(2u) = 2^23, the most keys",
        bool(ball(Fraction(1, 2)).exp() < 2)
        and bool((1 + ball(FORMATS["float32"].unit_roundoff)) ** (2**23) < 2)
        and 2 * 2**23 * FORMATS["float32"].unit_roundoff == 1,
        equation=8,
    )
    proof.check(
        "1/(1 + u/2) >= 1 - u/2",
        identical(1 - (1 + u / 2) * (1 - u / 2), u**2 / 4),
        equation=9,
    )
    for to in (FORMATS["float16"], FORMATS["bfloat16"]):
        below, middle = 1 - to.unit_roundoff, 1 - to.unit_roundoff / 2
        proof.check(
            f"{to.name}: 1 - u/2 is a float32 and half-way between 1 - u and 1; the tie goes to 1",
            rounded(middle, ACCUMULATOR[to.name]) == middle
            and rounded(below, to) == below
            and rounded(middle, to) == 1,
            equation=9,
        )
        x = to.smallest_subnormal / 2
        theta = 1 + 2 * x / (1 - x)  # ϑ(x) = 1 + 2(x + x⁴ + x⁹ + ...) <= 1 + 2(x + x² + ...)
        proof.check(
            f"{to.name}: the tails of quadratic scores in up to 500 dimensions leave the peak at 1",
            4 * 2 * (theta**500 - 1) <= to.unit_roundoff / 2,
            equation=10,
        )
        proof.check(
            f"{to.name}: so do 2^11 tails of at most η/2 each, whatever the scores",
            4 * 2**11 * x <= to.unit_roundoff / 2,
            equation=10,
        )


def _flush_to_zero(proof: Proof) -> None:
    for to in FORMATS.values():
        proof.check(
            f"{to.name}: ν(1 - u) + η/2 = ν, so a tail whose bound is below ν(1 - u) is zero",
            to.smallest_normal * (1 - to.unit_roundoff) + to.smallest_subnormal / 2
            == to.smallest_normal,
            equation=11,
        )
    _check_two_decimals(
        proof,
        "ln(1/ν)",
        {"float16": "9.70", "bfloat16": "87.34", "float32": "87.34", "float64": "708.40"},
        flush_threshold,
        equation=11,
    )


def _threshold_is_sharp(proof: Proof) -> None:
    theta, gap, mass = sp.symbols("Theta alpha lambda", positive=True)
    # 1 + λ < e^λ is the inequality of equation (4).
    proof.check(
        "the logarithm of (e^-α / e^λ) / e^-Θ is Θ - (α + λ)",
        identical(
            sp.log(sp.exp(-gap) / sp.exp(mass) / sp.exp(-theta)).expand(force=True)
            - (theta - (gap + mass)),
            0,
        ),
        equation=12,
    )


def _integers(proof: Proof) -> None:
    # Every number of a format small enough to look at all of it.
    toy = Format("toy", precision=4, least_exponent=-3, greatest_exponent=7)
    eta = toy.smallest_subnormal
    multiples = (k * eta for k in range(int(toy.largest / eta) + 1))
    pixels = [s * n for n in multiples if rounded(n, toy) == n for s in (1, -1)]
    proof.check(
        f"exhaustively, {len(set(pixels))} numbers of p = 4: fl(1 x) = x, fl(0 x) = 0, "
        "fl(0 + 0) = 0, fl(x + 0) = fl(0 + x) = x: no partial sum leaves {0, x}",
        all(
            rounded(1 * x, toy) == x
            and rounded(0 * x, toy) == 0
            and rounded(x + 0, toy) == rounded(0 + x, toy) == x
            for x in pixels
        )
        and rounded(Fraction(0) + 0, toy) == 0,
        equation=13,
    )
    for to in FORMATS.values():
        bound = Fraction(2) ** to.precision
        proof.check(
            f"{to.name}: 2^{to.precision} is a number of the format, 2^{to.precision} + 1 is not",
            bound <= to.largest and rounded(bound, to) == bound == rounded(bound + 1, to),
            equation=14,
        )
        proof.check(
            f"{to.name}: in each of the {to.precision} binades from 1 to 2^{to.precision} the "
            "spacing 2^(e - p + 1) divides 1, so that every integer there is a number",
            to.least_exponent <= 0
            and all(
                (1 / Fraction(2) ** (e - to.precision + 1)).denominator == 1
                for e in range(to.precision)
            ),
            equation=14,
        )
    for to in (FORMATS["float16"], FORMATS["bfloat16"], toy):
        proof.check(
            f"{to.name}, exhaustively: every integer of size at most 2^{to.precision} is a number",
            all(
                rounded(Fraction(i), to) == i
                for i in range(-(2**to.precision), 2**to.precision + 1)
            ),
            equation=14,
        )
    # One axis; the sum of both sides over the axes is the statement in d dimensions.
    step, shift, extent = sp.symbols("delta Delta n", nonnegative=True)
    monomials = sp.Poly((step - shift) ** 2, step, shift).terms()
    size = sum(abs(factor) * step**i * shift**j for (i, j), factor in monomials)
    proof.check(
        "on each axis the monomials of (δ - Δ)² have sizes that sum to (|δ| + |Δ|)²",
        identical(size, (step + shift) ** 2),
        equation=15,
    )
    proof.check(
        "on each axis the uncentred sizes grow with |δ|, to (n - 1)² + 2|Δ|(n - 1) at n - 1",
        identical(
            (size - shift**2).subs(step, extent - 1), (extent - 1) ** 2 + 2 * shift * (extent - 1)
        )
        and nonnegative(sp.diff(size - shift**2, step)),
        equation=15,
    )
    b, t = sp.symbols("b t", nonnegative=True)  # the sizes of a partial sum and of a product
    proof.check(
        "the partial sums are bounded: ±(b + t) and ±(b - t) are at most b + t, whatever the signs",
        all(nonnegative((b + t) - s * value) for s in (1, -1) for value in (b + t, b - t)),
        equation=16,
    )


def _peak_alone(proof: Proof) -> None:
    u, mass = sp.symbols("u lambda", positive=True)
    proof.check(
        "1/(1 + λ) falls with λ and equals 1 - u/2 at λ = u/(2 - u)",
        sp.cancel(sp.together(1 / (1 + u / (2 - u)) - (1 - u / 2))) == 0
        and sp.cancel(sp.diff(1 / (1 + mass), mass) + 1 / (1 + mass) ** 2) == 0,
        equation=17,
    )
    for to in FORMATS.values():
        unit, more = to.unit_roundoff, 1 + Fraction(1, 2**100)
        proof.check(
            f"{to.name}: 1 - u/2 rounds to 1, and anything less does not",
            rounded(1 - unit / 2, to) == 1 and rounded(1 - unit / 2 * more, to) == 1 - unit,
            equation=17,
        )
    for to in (FORMATS["float32"], FORMATS["float64"]):
        unit, more = to.unit_roundoff, 1 + Fraction(1, 2**100)
        proof.check(
            f"{to.name}: 1 + B is computed as 1 when B = u, and as 1 + 2u when B is larger",
            rounded(1 + unit, to) == 1 and rounded(1 + unit * more, to) == 1 + 2 * unit,
            equation=18,
        )
        proof.check(
            f"{to.name}: over the sum 1 + 2u the peak is 1 - 2u",
            rounded(1 / (1 + 2 * unit), to) == 1 - 2 * unit,
            equation=18,
        )


def _the_remark(proof: Proof) -> None:
    to = FORMATS["float32"]
    nearest = (-arb(46)).exp()
    kappa_u = EXP_ROUNDOFFS * ball(to.unit_roundoff)
    low, high = 1 - kappa_u, 1 + kappa_u
    proof.check(
        "e^-46 = 1.053e-20, to four digits",
        abs(nearest / ball(Fraction(1053, 10**23)) - 1) < ball(Fraction(1, 2000)),
        equation=19,
    )
    proof.check(
        "α = 46, float32: the nearest keys keep a normal weight",
        low * nearest > ball(to.smallest_normal),
        equation=19,
    )
    proof.check(
        "α = 46, float32: keys at squared distance 2 keep a subnormal weight, unless flushed",
        low * nearest**2 > ball(to.smallest_subnormal)
        and high * nearest**2 < ball(to.smallest_normal * (1 - to.unit_roundoff)),
        equation=19,
    )
    proof.check(
        "α = 46, float32: keys at squared distance 3 and more have weight zero",
        high * nearest**3 < ball(to.smallest_subnormal / 2),
        equation=19,
    )
    proof.check(
        "α = 46, float32: in up to three dimensions the tails are below u/4, so the peak is 1",
        high * ((1 + 2 * nearest / (1 - nearest)) ** 3 - 1) < ball(to.unit_roundoff / 4),
        equation=19,
    )
    proof.check(
        "float32: 104 exceeds the certified gap, 103 is below even Θ",
        certified_gap(to) < 104 and threshold(to) > 103,
        equation=20,
    )
    proof.check(
        "45 decimal digits are 103.6 natural ones: 45 ln 10, to one decimal",
        abs(45 * arb(10).log() - ball(Fraction("103.6"))) < ball(Fraction(1, 20)),
        equation=20,
    )


def _check_two_decimals(
    proof: Proof,
    name: str,
    printed: Mapping[str, str],
    enclosure: Callable[[Format], arb],
    *,
    equation: int,
) -> None:
    proof.check(
        f"{name}, to two decimals: {', '.join(f'{key} {text}' for key, text in printed.items())}",
        all(
            abs(enclosure(FORMATS[key]) - ball(Fraction(text))) < ball(Fraction(1, 200))
            for key, text in printed.items()
        ),
        equation=equation,
    )
