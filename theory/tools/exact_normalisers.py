"""Normalisers over the rationals, or enclosed by balls, and how far computed weights may be off.

The page `docs/theorems/normalisers_are_one_hot_from_their_gap.md` numbers the equations.
"""

from collections.abc import Sequence
from fractions import Fraction

from flint import arb

from theory.saturated_softmax_is_one_hot import EXP_ROUNDOFFS, Format, rounded
from theory.tools.theta import ball

__all__ = [
    "BITS",
    "computed_entmax",
    "entmax",
    "first_maximum",
    "gap_of",
    "hard_maximum",
    "sparsemax",
    "weight_error",
]

BITS = 256
"""Working precision of the balls, in bits."""


def sparsemax(scores: Sequence[Fraction]) -> list[Fraction]:
    """Sparsemax over the rationals: the one support whose threshold is consistent with it."""
    falling = sorted(scores, reverse=True)
    for size in range(1, len(falling) + 1):
        tau = sum(falling[:size], Fraction(-1)) / size
        if falling[size - 1] > tau and all(score <= tau for score in falling[size:]):
            return [max(Fraction(0), score - tau) for score in scores]
    raise ValueError("no scores")


def entmax(scores: Sequence[Fraction], order: Fraction) -> list[arb]:
    """Encloses entmax: its threshold lies in an interval that is halved until it is narrow."""
    power = 1 / (order - 1)
    heights = [max(Fraction(0), 1 + (order - 1) * (z - max(scores))) for z in scores]

    def parts(t: Fraction) -> list[arb]:
        return [_power(max(Fraction(0), h - t), power) for h in heights]

    low, high = Fraction(0), Fraction(1)
    for _ in range(BITS // 3):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(parts(middle), arb(0)) >= 1 else (low, middle)
    return [most.union(least) for most, least in zip(parts(low), parts(high), strict=True)]


def computed_entmax(scores: Sequence[Fraction], root: int, of: Format) -> list[Fraction]:
    """What the code's search returns for the order 1 + 1/root, every operation rounded.

    Args:
        scores: numbers of the format, the highest of them 0.
        root: r, 1 or 2, so that the power is a product.
        of: the format.
    """

    def parts(t: Fraction) -> list[Fraction]:
        bases = [rounded(max(Fraction(0), h - t), of) for h in heights]
        return [rounded(base**root, of) for base in bases]

    def total(terms: Sequence[Fraction]) -> Fraction:
        sum_ = Fraction(0)
        for term in terms:
            sum_ = rounded(sum_ + term, of)
        return sum_

    heights = [max(Fraction(0), rounded(1 + rounded(z / root, of), of)) for z in scores]
    threshold = Fraction(0)
    for bit in range(1, of.precision + 4):
        higher = rounded(threshold + Fraction(1, 2**bit), of)
        threshold = higher if total(parts(higher)) >= 1 else threshold
    found = parts(threshold)
    return [rounded(part / total(found), of) for part in found]


def hard_maximum(scores: Sequence[Fraction]) -> list[Fraction]:
    """All attention on the highest score, shared evenly by those that tie."""
    ties = [score == max(scores) for score in scores]
    return [Fraction(int(tie), sum(ties)) for tie in ties]


def first_maximum(scores: Sequence[Fraction]) -> list[Fraction]:
    """All attention on the first of the highest scores, as an argmax has it."""
    best = list(scores).index(max(scores))
    return [Fraction(int(i == best)) for i in range(len(scores))]


def gap_of(weight: Fraction, order: Fraction) -> arb:
    """Encloses Γ_a(p), the gap at which two keys have the weights 1 − p and p."""
    if order == 1:
        return ball(1 / weight - 1).log()
    return (_power(1 - weight, order - 1) - _power(weight, order - 1)) / ball(order - 1)


def weight_error(keys: int, order: Fraction, of: Format) -> arb:
    """Encloses the bound on the error of a computed entmax weight in an accumulator; (24)."""
    u, power = ball(of.unit_roundoff), 1 / (order - 1)
    relative = (1 + u) ** (ball(power) + keys) * (1 + EXP_ROUNDOFFS * u) - 1
    if not relative + keys * u < ball(Fraction(1, 8)):
        raise ValueError(f"{keys} keys are too many for {of.name}")
    total = 2 * (relative + keys * u)
    base = 16 * u + total * ball(max(Fraction(1), order - 1))
    return 2 * (_spread(base, power) + 2 * total + 2 * keys * _spread(4 * u, power))


def _spread(error: arb, power: Fraction) -> arb:
    """By how much the power of a number up to 1 + error changes where that does by the error."""
    if power < 1:
        return error ** ball(power)
    return ball(power) * error * (1 + error) ** ball(power - 1)


def _power(base: Fraction, power: Fraction) -> arb:
    return arb(0) if base == 0 else ball(base) ** ball(power)
