"""Softmax in one pass: keys block by block, sums rescaled, the quotient last.

The page `docs/theorems/layer_error_is_certified.md` numbers the equations.
"""

from fractions import Fraction
from itertools import accumulate, pairwise, product

import sympy as sp

from theory.tools.proof import Proof, identical, nonnegative

__all__ = ["establish"]


def establish(proof: Proof) -> None:
    """Equations (25) to (27) of the page."""
    _one_pass(proof)
    _exponentials(proof)
    _relative_form(proof)
    _mass_form(proof)


def _one_pass(proof: Proof) -> None:
    """Any partition into blocks gives the softmax, and rescaling passes each score once."""
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
            f"blocks that end at {ends} give the softmax", seen / total == truth, equation=25
        )
    rises = [*accumulate((-9, -4, -6, 0, -2), max)]
    proof.check(
        "the differences of running maxima, and of a score to the first, add up to its modulus",
        all(
            (rises[k] - score) + sum(b - a for a, b in pairwise(rises[k:])) == -score
            for k, score in enumerate((-9, -4, -6, 0, -2))
        ),
        equation=25,
    )


def _exponentials(proof: Proof) -> None:
    u, s, kappa = sp.symbols("u S kappa", nonnegative=True)
    proof.check(
        "scale, product, difference and one more: four roundings of a score, two of them new",
        identical(4 * s * u, 2 * s * u + 2 * s * u),
        equation=25,
    )
    for n in range(1, 5):
        proof.check(
            f"{n} exponentials of error κu and 2 roundings each stay within (1 + u)^((κ + 2) n)",
            all(
                nonnegative((1 + u) ** ((k + 2) * n) - ((1 + k * u) * (1 + u) ** 2) ** n)
                for k in (0, 1, 3)
            ),
            equation=25,
        )
    proof.check(
        "κ = 0 leaves the roundings", identical((1 + kappa * u).subs(kappa, 0), 1), equation=25
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
