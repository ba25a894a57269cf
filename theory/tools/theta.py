"""Jacobi's ϑ function and the leak of a quadratic head, as balls that provably contain them.

The equations are those of `quadratic_scores_select_one_shift`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import isqrt

from flint import acb, arb, ctx, fmpq

__all__ = [
    "ball",
    "box_leak",
    "leak_enclosure",
    "off_target_mass_enclosure",
    "precision",
    "theta_by_flint",
    "theta_minus_one",
]

BITS = 192  # the precision of a ball's midpoint, unless the caller wants more

Exact = int | float | Fraction | arb


@contextmanager
def precision(bits: int) -> Iterator[None]:
    """Run ball arithmetic at a precision of `bits`."""
    before, ctx.prec = ctx.prec, bits
    try:
        yield
    finally:
        ctx.prec = before


def ball(number: Exact) -> arb:
    """A ball around a number; of radius zero for an int or a float."""
    return (
        arb(fmpq(number.numerator, number.denominator))
        if isinstance(number, Fraction)
        else arb(number)
    )


def theta_tail(x: arb, terms: int) -> arb:
    """A ball around the sum of 2 x^(n^2) over n > `terms`: from 0 to its bound (11)."""
    return arb(0).union(2 * x ** ((terms + 1) ** 2) / (1 - x ** (2 * terms + 3)))


def theta_minus_one(alpha: Exact, *, bits: int = BITS) -> arb:
    """ϑ(e^-α) - 1, with relative precision however large or small α > 0 is.

    For α >= π the series; below, Jacobi's identity (17), whose series has π^2/α >= π.
    Either way x <= e^-π, and `terms` terms leave a tail below 2^-bits of the first.
    """
    with precision(bits):
        a = ball(alpha)
        if not a > 0:
            raise ValueError(f"alpha must be positive, got {alpha}")
        inverted = a < arb.pi()
        decay = arb.pi() ** 2 / a if inverted else a
        # beyond 2^40 the exponential only has to be enclosed, not resolved
        x = (-decay).exp() if decay < 2**40 else arb(0).union((-arb(2**40)).exp())
        terms = isqrt(bits) // 2 + 1  # (terms + 1)^2 - 1 >= bits / 4 and π / ln 2 > 4
        series = sum((2 * x ** (n * n) for n in range(1, terms + 1)), arb(0)) + theta_tail(x, terms)
        return (arb.pi() / a).sqrt() * (1 + series) - 1 if inverted else series


def theta_by_flint(alpha: Exact, *, bits: int = BITS) -> arb:
    """ϑ(e^-α) as FLINT's third Jacobi ϑ function at tau = i α / π."""
    with precision(bits):
        return acb.modular_theta(acb(0), acb(0, ball(alpha) / arb.pi()))[2].real


def leak_enclosure(alpha: Exact, dimension: int, *, bits: int = BITS) -> arb:
    """A ball around ε(α) = 1 - ϑ(e^-α)^-d, to almost `bits` bits."""
    with precision(bits):
        return -(-dimension * theta_minus_one(alpha, bits=bits).log1p()).expm1()


def off_target_mass_enclosure(alpha: Exact, dimension: int, *, bits: int = BITS) -> arb:
    """A ball around ϑ(e^-α)^d - 1, the supremum of L."""
    with precision(bits):
        return (dimension * theta_minus_one(alpha, bits=bits).log1p()).expm1()


def box_leak(alpha: Exact, shape: Sequence[int], target: Sequence[int], *, bits: int = BITS) -> arb:
    """A ball around the leak on the box of `shape` with keys 0 .. n-1 on each axis.

    By (6) and (7): 1 - 1/S with S the product over axes of the finite sums.

    Raises:
        ValueError: the target is not a key.
    """
    if not all(0 <= t < n for t, n in zip(target, shape, strict=True)):
        raise ValueError(f"target {tuple(target)} is not in the box of shape {tuple(shape)}")
    with precision(bits):
        a = ball(alpha)
        off_target = (
            sum(((-a * (k - t) ** 2).exp() for k in range(n) if k != t), arb(0))
            for t, n in zip(target, shape, strict=True)
        )
        return -(-sum((axis.log1p() for axis in off_target), arb(0))).expm1()
