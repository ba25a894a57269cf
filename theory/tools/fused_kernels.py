"""Softmax in one pass: keys block by block, sums rescaled, the quotient last.

The page `docs/theorems/layer_error_is_certified.md` numbers the equations.
"""

from fractions import Fraction
from itertools import pairwise, product

import sympy as sp

from theory.quadratic_scores_select_one_shift import ball
from theory.saturated_softmax_is_one_hot import EXP_ROUNDOFFS, FORMATS
from theory.tools.proof import Proof, equal, identical, nonnegative

__all__ = ["establish"]


def establish(proof: Proof) -> None:
    """Equations (25) to (27) of the page."""
    _one_pass(proof)
    _exponentials(proof)
    _relative_form(proof)
    _mass_form(proof)


def _one_pass(proof: Proof) -> None:
    """Blocks give the softmax, and rescaling passes each score once."""
    weights = [Fraction(2) ** s for s in (-3, 0, -1, -2)]  # powers of 2 for exponentials
    values = [Fraction(v) for v in (5, -1, 7, 2)]
    truth = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    for cuts in product((0, 1), repeat=3):
        ends = [k + 1 for k, cut in enumerate(cuts) if cut] + [4]
        highest, total, seen = Fraction(0), Fraction(0), Fraction(0)
        for start, end in pairwise([0, *ends]):
            new = max(highest, *weights[start:end])
            total = total * highest / new + sum(weights[start:end]) / new
            block = zip(weights[start:end], values[start:end], strict=True)
            seen = seen * highest / new + sum(w * v for w, v in block) / new
            highest = new
        proof.check(
            f"four keys in blocks that end at {ends} give the softmax",
            seen / total == truth,
            equation=25,
        )
    old, new, total, block = sp.symbols("E E' l b", positive=True)
    proof.check(
        "one more block: a sum over the old maximum's exponential, rescaled, plus the block's part",
        equal(total / old * (old / new) + block / new, (total + block) / new),
        equation=25,
    )
    score, first, second = sp.symbols("s m m'", real=True)
    proof.check(
        "one more maximum: (m' - m) + (m - s) = m' - s, so that up to the last one, 0, it is -s",
        identical((second - first) + (first - score), second - score),
        equation=25,
    )


def _exponentials(proof: Proof) -> None:
    for name in ("float32", "float64"):
        of = FORMATS[name]
        u, lowest = ball(of.unit_roundoff), 1 - ball(of.smallest_normal).log()
        slack = ball(1 + Fraction(1, 2**12))
        relative = (EXP_ROUNDOFFS + 2 * lowest) * u * slack  # τ, of (5)
        score = ((1 + u) ** 4 - 1) * lowest  # scale, product, difference and power of two
        proof.check(
            f"{name}: (1 + κu) e^(sS) <= (1 + τ)(1 + 2Su(1 + 2^-12)) for s = (1 + u)^4 - 1",
            bool(
                (1 + EXP_ROUNDOFFS * u) * score.exp()
                < (1 + relative) * (1 + 2 * lowest * u * slack)
            ),
            equation=25,
        )
        proof.check(
            f"{name}: and 1 - (1 - κu) e^(-sS) is no more than what this exceeds 1 by",
            bool(
                1 - (1 - EXP_ROUNDOFFS * u) * (-score).exp()
                < (1 + relative) * (1 + 2 * lowest * u * slack) - 1
            ),
            equation=25,
        )
    u, kappa, more = sp.symbols("u kappa r", nonnegative=True)
    proof.check(
        "Bernoulli, κ + 1 from κ: (1 + κu)(1 + u) - (1 + (κ + 1)u) = κu², and 1 + 0u = (1 + u)^0",
        identical((1 + kappa * u) * (1 + u) - (1 + (kappa + 1) * u), kappa * u**2)
        and identical((1 + kappa * u).subs(kappa, 0), (1 + u) ** 0),
        equation=25,
    )
    proof.check(
        f"κ = {EXP_ROUNDOFFS}: (1 + u)^{EXP_ROUNDOFFS + 2} - (1 + {EXP_ROUNDOFFS}u)(1 + u)² has no "
        "negative term",
        nonnegative((1 + u) ** (EXP_ROUNDOFFS + 2) - (1 + EXP_ROUNDOFFS * u) * (1 + u) ** 2),
        equation=25,
    )
    once, before = sp.symbols("a A", nonnegative=True)
    proof.check(
        "one more block: a <= a + r and A <= A + κ give a A <= (a + r)(A + κ)",
        nonnegative((once + more) * (before + kappa) - once * before),
        equation=25,
    )


def _relative_form(proof: Proof) -> None:
    m, g, v = sp.symbols("mu gamma u_w", nonnegative=True)
    before = (1 + m) * (1 + g) - 1
    proof.check(
        "one cast more",
        identical((1 + before) * (1 + v) - 1, (1 + m) * (1 + g) * (1 + v) - 1),
        equation=26,
    )


def _mass_form(proof: Proof) -> None:
    g, mass, largest = sp.symbols("gamma lambda R", nonnegative=True)
    others = 2 * 2 * 2 * (1 + g) * mass * largest  # cast, product, and adding them up
    total = 2 * (1 + g) * mass  # above 1
    reciprocal = 2 * total  # from 1, rounded
    quotient = 2 * (others + reciprocal * largest)  # rounded
    proof.check(
        "cast, and compared with the real head",
        identical(2 * quotient + 2 * (1 + g) * mass * largest, 50 * (1 + g) * mass * largest),
        equation=27,
    )
    x, r, seen = sp.symbols("X r O", real=True)
    proof.check(
        "O r - X = (O - X) r + X (r - 1)",
        identical(seen * r - x, (seen - x) * r + x * (r - 1)),
        equation=27,
    )
    s = sp.Symbol("s", nonnegative=True)
    proof.check(
        "1 - 1/(1 + s) is at most s",
        nonnegative(sp.cancel((s - s / (1 + s)) * (1 + s))),
        equation=27,
    )
