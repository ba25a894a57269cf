"""T16. Normalisers are one-hot from their gap on.

The page `docs/theorems/normalisers_are_one_hot_from_their_gap.md` numbers the equations. Numbers
are exact rationals, or balls that enclose them where a root or a logarithm enters.
"""

from fractions import Fraction

import sympy as sp
from flint import arb

from theory.saturated_softmax_is_one_hot import (
    ACCUMULATOR,
    EXP_ROUNDOFFS,
    FORMATS,
    Format,
    rounded,
)
from theory.tools.exact_normalisers import (
    BITS,
    computed_entmax,
    first_maximum,
    gap_of,
    hard_maximum,
    sparsemax,
)
from theory.tools.proof import Proof, Step, Theorem, equal, identical, nonnegative, positive
from theory.tools.theta import ball, precision

__all__ = ["GAP_MARGIN", "THEOREM", "prove"]

GAP_MARGIN = 16
"""By how many unit roundoffs the code's gaps exceed those over the reals."""

THEOREM = Theorem(
    slug="normalisers_are_one_hot_from_their_gap",
    number="T16",
    source="",
    title="Normalisers are one-hot from their gap on",
    gist=(
        "sparsemax, entmax, ReLU and the hard maximum exactly; softmax and sigmoid in "
        "floating point only"
    ),
    claim=(
        "Entmax of order a is one-hot exactly from the gap 1/(a − 1) in score on, ReLU from its "
        "height on and the hard maximum from every positive gap on, while softmax and sigmoid are "
        "so in the limit only. "
        "Sparsemax is the order 2, with the gap 1. In floating point softmax and sigmoid are "
        "one-hot from a finite gap on too, and for two keys one formula holds for all of entmax "
        "and softmax: a weight is stored as zero from the gap ((1 − p)^(a−1) − p^(a−1))/(a − 1) "
        "on, p half the smallest number of the format. Where rows sum to one, zero padding takes "
        "a sink and twice the gap; ReLU and sigmoid pad with zeros by themselves."
    ),
    hypotheses=(
        "Over the reals: scores are finite or −∞, one of them is finite, and a > 1.",
        "ReLU and sigmoid: scores are centred, the target's is 0.",
        "In floating point: operations are rounded to nearest, a score −s, s at least the gap, is "
        "computed as at most −(1 − 2u)s, and the target's as 0.",
        "A computed sigmoid is at least 0 and at most 1, at most (1 + κu)eˣ + η/2 for x < 0, and 1 "
        "where its exact value rounds to 1; a computed power b^r, 0 ≤ b ≤ 1, is at least 0, "
        "within a factor 1 ± κu of the exact one, and 1 at b = 1 (κ = 40).",
    ),
    notation={
        "z, g": "scores of the keys, and the gap: the highest less the next",
        "N(z), p": "the weights, and one of them off the target",
        "a, r = 1/(a − 1)": "order of entmax, and the power that it takes",
        "h, t": "heights max(0, 1 + (a − 1)(z − max z)), and the threshold with Σ(h − t)₊^r = 1",
        "Γ_a(p)": "the gap at which two keys have the weights 1 − p and p",
        "H": "height of ReLU and of the sigmoid",
        "c": "depth of the sink, in units of the sharpness",
        "u, η, Θ": "unit roundoff, smallest subnormal number, and ln(2/η) (T8)",
    },
    proof_idea=(
        "Weights that sum to one are one-hot as soon as the others are zero. Entmax takes a power "
        "of max(0, h − t) with t ≥ 0, and h = 0 is the condition on the gap; t = 0 is its "
        "converse. In floating point a key with h = 0 has weight zero whatever threshold is found, "
        "so that its rounding cannot matter."
    ),
    references=(
        "arXiv:1602.02068",
        "arXiv:1905.05702",
        "arXiv:1901.02324",
        "arXiv:1911.03584",
    ),
    objects=(
        "constructions.normalisers.Entmax",
        "constructions.normalisers.Top1",
        "constructions.normalisers.Relu",
        "constructions.normalisers.Sigmoid",
        "constructions.normalisers.NORMALISERS",
    ),
)


# The proof ----------------------------------------------------------------------------------------


def prove() -> tuple[Step, ...]:
    """Establish every numbered equation of the page."""
    proof = Proof()
    with precision(BITS):
        _quotients(proof)
        _entmax(proof)
        _two_keys(proof)
        _hard_maximum(proof)
        _gates(proof)
        _sink(proof)
        _rounded_gaps(proof)
        _just_below(proof)
        _rounded_sigmoid(proof)
        _rounded_weights(proof)
    return proof.steps


def _quotients(proof: Proof) -> None:
    """(1) to (3)."""
    top, rest = sp.symbols("f m", positive=True)
    proof.check(
        "the target lacks m/(f + m) to 1, which is zero if and only if m is",
        equal(1 - top / (top + rest), rest / (top + rest)) and positive(rest / (top + rest)),
        equation=1,
    )
    score = sp.Symbol("z", real=True)
    proof.check("an exponential is positive", positive(sp.exp(score)), equation=2)
    two = sp.exp(sp.log(2))
    heads, mixing = sp.Matrix([[two, 1], [1, two]]) / (two + 1), sp.Matrix([[2, -1], [-1, 2]])
    proof.check(
        "two softmax heads with scores ±ln 2, mixed by (2, -1), (-1, 2), are one-hot together",
        identical(heads[0, 0], sp.Rational(2, 3)) and identical(mixing * heads, sp.eye(2)),
        equation=3,
    )


def _entmax(proof: Proof) -> None:
    """(4) to (6)."""
    b, less, r = sp.symbols("b s r", positive=True)
    a, z, best, t, gap = sp.symbols("a z z0 t g", real=True)
    proof.check(
        "a power of a positive number rises with it, so that the sum falls strictly with τ",
        identical(sp.diff(b**r, b), r * b ** (r - 1)) and positive(r * b ** (r - 1)),
        equation=4,
    )
    proof.check(
        "(a - 1) z - τ = 1 + (a - 1)(z - z0) - t for τ = (a - 1) z0 - 1 + t",
        identical((a - 1) * z - ((a - 1) * best - 1 + t), 1 + (a - 1) * (z - best) - t),
        equation=5,
    )
    proof.check(
        "where 1 + (a - 1)(z - z0) = -b is negative, so is it less a threshold t = s > 0",
        positive(-(-b - less)),
        equation=5,
    )
    proof.check(
        "at the gap g = 1/(a - 1) the height 1 - (a - 1) g is 0, and below it positive",
        equal((1 - (a - 1) * gap).subs(gap, 1 / (a - 1)), sp.Integer(0))
        and equal((1 - (a - 1) * gap).subs(gap, (1 - b) / (a - 1)), b),
        equation=6,
    )
    proof.check(
        "1^r = 1, and b^r > 0 for b > 0: the sum at t = 0 is 1 if and only if all others are 0",
        identical(sp.Integer(1) ** r, 1) and positive(b**r),
        equation=6,
    )
    third = Fraction(1, 3)
    proof.check(
        "sparsemax is one-hot at the gap 1 and not a little below",
        sparsemax([third, third - 1, third - 2]) == [1, 0, 0]
        and sparsemax([third, third - 1 + Fraction(2, 10**9)])
        == [1 - Fraction(1, 10**9), Fraction(1, 10**9)],
        equation=6,
    )


def _two_keys(proof: Proof) -> None:
    """(7) to (10)."""
    p, e, s = sp.symbols("p e s", positive=True)
    height = 1 - (1 - p) ** e + p**e
    gap = ((1 - p) ** e - p**e) / e
    proof.check(
        "1 - t = (1 - p)^(a - 1) and h - t = p^(a - 1) give h, and h = 1 - (a - 1) g gives g",
        identical((1 - (1 - p) ** e) + p**e, height) and identical((1 - height) / e, gap),
        equation=7,
    )
    proof.check(
        "the derivative is -((1 - p)^(a - 2) + p^(a - 2)), so that Γ is an integral from p to "
        "1 - p, zero at 1/2",
        identical(sp.diff(gap, p), -((1 - p) ** e / (1 - p) + p**e / p))
        and identical(gap.subs(p, sp.Rational(1, 2)), 0),
        equation=7,
    )
    powers = (1 - p) ** e - p**e
    proof.check(
        "order 1, the limit: the derivative of (1 - p)^e - p^e in e, at e = 0, where it is 0",
        identical(powers.subs(e, 0), 0)
        and identical(sp.diff(powers, e).subs(e, 0), sp.log(1 - p) - sp.log(p)),
        equation=8,
    )
    proof.check(
        "orders 3/2, 2 and 3",
        identical(gap.subs(e, sp.Rational(1, 2)), 2 * (sp.sqrt(1 - p) - sp.sqrt(p)))
        and identical(gap.subs(e, 1), 1 - 2 * p)
        and identical(gap.subs(e, 2), (1 - 2 * p) / 2),
        equation=8,
    )
    proof.check(
        "s^(a - 2) falls with a where s = 1/(1 + q) < 1: its logarithm has slope -ln(1 + q)",
        positive(sp.log(1 + s)) and identical(sp.expand_log(sp.log(1 / (1 + s))), -sp.log(1 + s)),
        equation=9,
    )
    for of in FORMATS.values():
        half = of.smallest_subnormal / 2
        proof.check(
            f"{of.name}: Γ_a(η/2) falls with a, from ln(2/η - 1) < Θ on",
            gap_of(half, Fraction(2))
            < gap_of(half, Fraction(3, 2))
            < gap_of(half, Fraction(11, 10))
            < gap_of(half, Fraction(1))
            and 1 / half - 1 < 2 / of.smallest_subnormal,
            equation=9,
        )
    proof.check(
        "Γ lacks (1 - (1 - p)^(a - 1) + p^(a - 1))/(a - 1) to 1/(a - 1): a positive power, and "
        "what a power of a number below 1 lacks to 1",
        identical(1 / e - gap, (1 - (1 - p) ** e) / e + p**e / e) and positive(p**e / e),
        equation=9,
    )
    h, t, more = sp.symbols("h t x", positive=True)
    proof.check(
        "a larger threshold leaves less of a height",
        identical((h - t) - (h - (t + more)), more),
        equation=10,
    )


def _hard_maximum(proof: Proof) -> None:
    """(11)."""
    weights = sp.Matrix(sp.symbols("w:3"))
    swap = sp.Matrix([[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    difference = weights - swap * weights
    proof.check(
        "weights that a swap of two keys leaves as they are give both the same",
        identical(difference[0], weights[0] - weights[1]) and identical(difference[2], 0),
        equation=11,
    )
    tied = [Fraction(0), Fraction(0), Fraction(-1)]
    shared, first = hard_maximum(tied), first_maximum(tied)
    proof.check(
        "a swap of two keys that tie leaves the scores and the even share, not the first index",
        [tied[1], tied[0], tied[2]] == tied
        and [shared[1], shared[0], shared[2]] == shared == [Fraction(1, 2), Fraction(1, 2), 0]
        and [first[1], first[0], first[2]] != first,
        equation=11,
    )


def _gates(proof: Proof) -> None:
    """(12) to (15)."""
    alpha, height, more = sp.symbols("alpha H s", positive=True)
    m = sp.Symbol("m", integer=True, nonnegative=True)
    constant = sp.Symbol("c", real=True)
    proof.check(
        "at the height α a score -α(1 + m) leaves -m, and a target's leaves 1",
        identical(sp.expand(1 - alpha * (1 + m) / alpha), -m) and nonnegative(m),
        equation=12,
    )
    proof.check(
        "a gap H - s leaves s/H > 0",
        equal(1 - (height - more) / height, more / height) and positive(more / height),
        equation=12,
    )
    proof.check(
        "a constant c in all scores adds c/H to the weight of the target",
        equal(1 + constant / height - 1, constant / height),
        equation=13,
    )
    x = sp.Symbol("x", real=True)
    proof.check(
        "1/(1 + e^-x) is positive, and lacks 1/(1 + e^x) to 1",
        positive(1 + sp.exp(-x)) and equal((1 - 1 / (1 + 1 / sp.exp(x))), 1 / (1 + sp.exp(x))),
        equation=14,
    )
    proof.check(
        "1/(1 + e^-x) is below e^x, by e^2x/(1 + e^x)",
        equal(sp.exp(x) - 1 / (1 + 1 / sp.exp(x)), sp.exp(x) ** 2 / (1 + sp.exp(x))),
        equation=14,
    )
    proof.check(
        "-H and H - α add up to -α: one of them is at least -α/2, both only if H = α/2",
        identical(-height + (height - alpha), -alpha)
        and identical((-alpha / 2 + more) + (-alpha / 2 - more), -alpha),
        equation=15,
    )


def _sink(proof: Proof) -> None:
    """(16), (17)."""
    alpha, depth = sp.symbols("alpha c", positive=True)
    lead = sp.Symbol("l", nonnegative=True)
    proof.check(
        "the sink is cα below a target, and (1 - c)α above a key at distance one: together α",
        identical(depth * alpha + (1 - depth) * alpha, alpha)
        and identical(-depth * alpha - (-alpha), (1 - depth) * alpha),
        equation=16,
    )
    proof.check(
        "with one gap above α/2 the other is below: the smaller is at most α/2",
        nonnegative(alpha / 2 - (alpha - (alpha / 2 + lead))),
        equation=16,
    )
    weights, value = sp.symbols("w:4"), sp.Symbol("y")
    parts = sp.symbols("f:4", positive=True)
    proof.check(
        "four keys: quotients f_k / Σ f sum to 1",
        equal(sum(f / sum(parts) for f in parts), sp.Integer(1)),
        equation=17,
    )
    proof.check(
        "four keys: a row maps a constant image to the constant times the sum of its weights",
        identical(sum(w * value for w in weights), value * sum(weights)),
        equation=17,
    )


def _rounded_gaps(proof: Proof) -> None:
    """(18) to (20): what rounding takes from a gap, and that it is given back."""
    single = Fraction(1, 2**53)
    for name in ("float32", "float64"):
        u = FORMATS[name].unit_roundoff
        proof.check(
            f"{name}: 16 u outweigh a score's two roundings, three more, and three in float64",
            (1 + GAP_MARGIN * u) * (1 - single) ** 3 * (1 - 2 * u) * (1 - u) ** 3 >= 1,
            equation=18,
        )
        proof.check(
            f"{name}: 1 + x is computed as 0 at x = -1, and as u at the next number",
            rounded(Fraction(0), FORMATS[name]) == 0
            and rounded(-1 + u, FORMATS[name]) == -1 + u
            and rounded(1 + (-1 + u), FORMATS[name]) == u,
            equation=19,
        )
    # Every number of a small format from -5/2 to 0; the search is run, each operation rounded.
    toy = Format("toy", precision=4, least_exponent=-14, greatest_exponent=7)
    steps = (Fraction(1, 64), Fraction(1, 32), Fraction(1, 16), Fraction(1, 8), Fraction(1, 4))
    numbers = sorted({rounded(-step * i, toy) for step in steps for i in range(1, 16)})
    for root in (1, 2):
        rows = [[Fraction(0), z, *more] for z in numbers for more in ([], [z], [z - 1, -z / 2 + z])]
        found = [computed_entmax([rounded(z, toy) for z in row], root, toy) for row in rows]
        above = [any(-root < rounded(z, toy) for z in row[1:]) for row in rows]
        proof.check(
            f"p = 4, order 1 + 1/{root}: all rows with no score above the gap are one-hot",
            all(
                weights[0] == 1 and not any(weights[1:])
                for weights, close in zip(found, above, strict=True)
                if not close
            ),
            equation=19,
        )
        proof.check(
            f"p = 4, order 1 + 1/{root}: the sum of a row is within 6 u of 1",
            all(abs(sum(weights, Fraction(-1))) <= 6 * toy.unit_roundoff for weights in found),
            equation=20,
        )
        proof.check(
            f"p = 4, order 1 + 1/{root}: no row with a score above the gap is one-hot",
            all(any(weights[1:]) for weights, close in zip(found, above, strict=True) if close),
            equation=21,
        )


def _just_below(proof: Proof) -> None:
    """(21): where the computed weights are not one-hot, to the last bit."""
    for name in ("float32", "float64"):
        of, u = FORMATS[name], FORMATS[name].unit_roundoff
        proof.check(
            f"{name}: the highest height less a threshold of u or more is below 1, its square too",
            rounded(1 - u, of) == 1 - u and rounded((1 - u) ** 2, of) < 1,
            equation=21,
        )
        proof.check(
            f"{name}: what a threshold leaves of a height, u/8 or more, has a square that is kept",
            (u / 8) ** 2 > of.smallest_normal,
            equation=21,
        )
    for of in FORMATS.values():
        u = ACCUMULATOR[of.name].unit_roundoff
        proof.check(
            f"{of.name}: a ReLU weight of u, the accumulator's, is stored",
            rounded(u, of) == u,
            equation=21,
        )


def _rounded_sigmoid(proof: Proof) -> None:
    """(22), (23)."""
    for name in ("float32", "float64"):
        of, u = FORMATS[name], FORMATS[name].unit_roundoff
        proof.check(
            f"{name}: at H = ln(2/u) the sigmoid is 1/(1 + u/2) >= 1 - u/2, which rounds to 1",
            1 / (1 + u / 2) >= 1 - u / 2 and rounded(1 - u / 2, of) == 1,
            equation=22,
        )
        proof.check(
            f"{name}: and so it is computed by way of an exponential of relative error κu",
            rounded(1 + (1 + EXP_ROUNDOFFS * u) * u / 2, of) == 1,
            equation=22,
        )
        proof.check(
            f"{name}: 4 u on the height outweigh its roundings",
            (1 + 4 * u) * (1 - Fraction(1, 2**53)) ** 2 * (1 - u) >= 1,
            equation=22,
        )
        kept = (1 + GAP_MARGIN * u) * (1 - Fraction(1, 2**53)) ** 3 * (1 - 2 * u)
        proof.check(
            f"{name}: of a gap (H + Θ')(1 + 16 u) at least Θ' is left below 0",
            kept * (1 - u) >= 1 and kept - (1 + u) >= 0,
            equation=23,
        )


def _rounded_weights(proof: Proof) -> None:
    """(24)."""
    b, d, r, e = sp.symbols("b d r e", positive=True)
    proof.check(
        "b - d = b(1 - d) - d(1 - b), b <= 1: a base falls by the factor 1 - d at least",
        identical(b * (1 - d) - d * (1 - b), b - d),
        equation=24,
    )
    rest = 1 - r * d - (1 - d) ** r
    proof.check(
        "(1 - d)^r <= 1 - r d for r < 1: equal at 0, and the slopes differ by "
        "r((1 - d)^(r - 1) - 1), at least 0 for a negative power of a number up to 1",
        identical(rest.subs(d, 0), 0)
        and identical(sp.diff(rest, d), r * ((1 - d) ** r / (1 - d) - 1)),
        equation=24,
    )
    proof.check(
        "(b + e)^r - b^r has the slope r((b + e)^(r - 1) - b^(r - 1)) in b: it falls for r < 1",
        identical(sp.diff((b + e) ** r - b**r, b), r * ((b + e) ** r / (b + e) - b**r / b)),
        equation=24,
    )
    phi, y = sp.symbols("phi y", nonnegative=True)
    proof.check(
        "(1 + y)/(1 - φ) <= 1 + 2(φ + y) for φ <= 1/2",
        identical((1 + 2 * (phi + y)) * (1 - phi) - (1 + y), (phi + y) * (1 - 2 * phi)),
        equation=24,
    )
    proof.check(
        "2 u y e^(-(1 - 2u) y) is largest at y = 1/(1 - 2u), where it is 2 u/(e (1 - 2u)) < u",
        identical(sp.diff(b * sp.exp(-r * b), b), (1 - r * b) * sp.exp(-r * b))
        and arb(1).exp() * (1 - ball(Fraction(1, 2**20))) > 2,
        equation=24,
    )
    u = Fraction(1, 2**24)
    proof.check(
        "heights err by at most 5 u, the search by at most 3 u, the base itself by u: below 16 u",
        ((1 + u) ** 3 - 1) / (2 - (1 + u) ** 3) + u <= 5 * u
        and u / 8 + 4 * u / 2 <= 3 * u
        and 5 + 5 + 3 + 1 <= 16,
        equation=24,
    )
