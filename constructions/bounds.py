"""Bounds: how far a layer can be from the convolution, in the reals and in floating point.

The derivation of every line is on the page of the theorem `layer_error_is_certified`; the leak is
that of `quadratic_scores_select_one_shift`. All bounds are rounded up.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.encodings import Encoding, Quadratic
from constructions.formats import (
    accumulator,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.lattice import Lattice
from constructions.normalisers import EXP_ERROR
from constructions.stencil import Stencil

ROUND_UP = 1 + 2**-46
"""Covers the rounding of the scalar formulas below: at most 40 operations within 2 units each."""

UNDERFLOW = 32 * smallest_subnormal(torch.float64)
"""Covers their underflow, for each dimension (page of T2, equation 21)."""


def leak(sharpness: float, dimension: int) -> float:
    """Least upper bound of the off-target mass of a quadratic head, 1 - ϑ(e^-α)^-d.

    ϑ(x) is the sum of x^(n^2) over all integers n, α the sharpness. No finite grid attains it.

    Args:
        sharpness: α > 0.
        dimension: d >= 1.

    Returns:
        A float64 at least as large as the exact value, and larger by a factor below 1 + 2^-45 and
        64 d times the smallest float64 at the most.

    Raises:
        ValueError: the sharpness is not positive and finite, or the dimension below 1.
    """
    log_theta = _log_theta(sharpness, dimension)
    return min(1.0, -math.expm1(-dimension * log_theta) * ROUND_UP + dimension * UNDERFLOW)


def off_target_mass(sharpness: float, dimension: int) -> float:
    """Least upper bound of the off-target mass before normalisation, ϑ(e^-α)^d - 1.

    Arguments, rounding and errors as in `leak`; inf where it exceeds every float64.
    """
    return _grown(dimension * _log_theta(sharpness, dimension)) + dimension * UNDERFLOW


def _log_theta(sharpness: float, dimension: int) -> float:
    """Logarithm of ϑ(e^-α), without cancellation at either end of the range of α."""
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number")
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}; accepted: 1 or more")
    if sharpness >= math.pi:
        return math.log1p(_theta_tail(sharpness))
    # Jacobi's identity ϑ(e^-α) = sqrt(π/α) ϑ(e^(-π²/α)) makes both terms positive and quick.
    return 0.5 * math.log(math.pi / sharpness) + math.log1p(_theta_tail(math.pi**2 / sharpness))


def _theta_tail(decay: float) -> float:
    """ϑ(e^-decay) - 1 for decay >= π: the fifth term is below 2^-100 of the first."""
    return 2 * math.fsum(math.exp(-decay * n * n) for n in (4, 3, 2, 1))


def gamma(terms: int, dtype: torch.dtype) -> float:
    """(1 + u)^n - 1: what n roundings in a format can do to a number, for every n.

    The usual nu / (1 - nu) is larger, and meaningless for nu >= 1, which sums of 256 terms reach in
    bfloat16.
    """
    return _grown(terms * math.log1p(unit_roundoff(dtype)))


def _grown(exponent: float) -> float:
    """e^z - 1 for z >= 0, rounded up; inf where it may exceed every float64.

    The exponential amplifies the relative error of its argument by 1 + z.
    """
    if exponent >= 700:
        return math.inf
    return math.expm1(exponent) * (1 + (1 + exponent) * 2**-46)


@functools.singledispatch
def encoding_mass(encoding: Encoding, sharpness: float, keys: Lattice) -> float:
    """Bound on the off-target mass before normalisation, for a given gap in score.

    Of a general encoding: every other key has at most e^-gap.
    """
    return _gap_mass(sharpness, keys)


@encoding_mass.register
def _(encoding: Quadratic, sharpness: float, keys: Lattice) -> float:
    # The first does not grow with the grid; the second is finite for any sharpness.
    mass = off_target_mass(sharpness, keys.dimension)
    return min(mass, _gap_mass(sharpness, keys))


def _gap_mass(sharpness: float, keys: Lattice) -> float:
    return (keys.size - 1) * (math.exp(-sharpness) * ROUND_UP + UNDERFLOW)


@dataclass(frozen=True)
class HeadBound:
    """What one head's weighted sum of pixels can differ from the pixel at its shift.

    With X the target pixel, D the largest distance from it to another key's, R the largest modulus:

        leak     = epsilon D
        rounding = min(relative |X| + spread R + underflow, reach |X| + other R)

    The second form of the rounding has no term without the off-target mass: a saturated head
    rounds nothing. All coefficients are 0 then.

    Args:
        epsilon: off-target mass over the reals.
        relative: of the first form, relative to the target.
        spread: of the first form, times the largest modulus.
        underflow: of the first form, absolute.
        reach: of the second form, relative to the target.
        other: of the second form, times the largest modulus.
    """

    epsilon: float = 0.0
    relative: float = 0.0
    spread: float = 0.0
    underflow: float = 0.0
    reach: float = 0.0
    other: float = 0.0

    @classmethod
    def of_softmax(cls, mass: float, keys: int, dtype: torch.dtype) -> HeadBound:
        """The bound of a softmax head (equations 5 to 11 of `layer_error_is_certified`).

        Args:
            mass: bound on the off-target mass before normalisation, Λ; the target's is 1.
            keys: the number of keys, T.
            dtype: of the layer.
        """
        exact = accumulator(dtype)
        u, tiny, eta = unit_roundoff(exact), smallest_normal(exact), smallest_subnormal(exact)
        cast = 0.0 if dtype == exact else unit_roundoff(dtype)
        cast_eta = 0.0 if dtype == exact else smallest_subnormal(dtype)
        mass = min(mass, float(keys - 1))  # no other key's score exceeds the target's
        epsilon = mass / (1 + mass) * ROUND_UP

        # Exponentials: relative error where they are normal, absolute where they are flushed.
        lowest_score = 1 - math.log(tiny)
        exponential = (EXP_ERROR + 2 * lowest_score) * u * (1 + 2**-12)
        flushed = 2 * tiny
        computed = (1 + exponential) * mass + keys * flushed
        summation = gamma(keys, exact)

        # Second form: everything is proportional to the computed off-target mass.
        stored = (1 + u) ** 2 * computed + keys * eta
        reach = 16 * (1 + summation) * computed * ROUND_UP
        other = 8 * (1 + summation) * stored * ROUND_UP

        # First form: relative to each weight.
        divided = (2 * u + cast) * (1 + 2 * u)
        total = exponential * epsilon + keys * flushed + summation
        if total >= 1:
            return cls(epsilon, underflow=math.inf, reach=reach, other=other)
        of_target = (divided + total) / (1 - total)
        of_others = exponential + of_target + exponential * of_target
        lost = keys * (flushed * (1 + of_target) + eta + cast_eta)
        relative = of_target + summation * (1 + of_target)
        spread = of_others * epsilon + lost + summation * ((1 + of_others) * epsilon + lost)
        return cls(
            epsilon, relative * ROUND_UP, spread * ROUND_UP, keys * eta * ROUND_UP, reach, other
        )

    def leak(self, distance: Tensor) -> Tensor:
        """The part that the reals have: epsilon times D."""
        return self.epsilon * distance

    def rounding(self, target: Tensor, largest: Tensor) -> Tensor:
        """The part that floating point adds, for |X| and R."""
        first = self.relative * target + self.spread * largest + self.underflow
        second = self.reach * target + self.other * largest
        return torch.minimum(first, second)


def layer_bound(
    stencil: Stencil,
    keys: Tensor,
    exact: Tensor,
    head: HeadBound,
    *,
    sums: torch.dtype,
    stored: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """How far the layer can be from the convolution, at every output.

    Args:
        stencil: of the convolution, in float64.
        keys: the padded image, (N, D_in, *key shape), float64 and finite.
        exact: the convolution itself, (N, D_out, *query shape), float64, computed as a plain sum.
        head: the bound of each head.
        sums: the format in which the layer adds.
        stored: the format of its output.

    Returns:
        leak and rounding, both float64 of the shape of `exact`. The rounding covers that of `exact`
        too. It is inf where a sum of the layer may overflow, of which the theorem says nothing.
    """
    axes = tuple(range(2, keys.dim()))
    modulus = keys.abs()
    highest, lowest = keys.amax(axes, keepdim=True), keys.amin(axes, keepdim=True)
    head_leak = head.leak(torch.maximum(highest - keys, keys - lowest))
    head_rounding = head.rounding(modulus, modulus.amax(axes, keepdim=True))

    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    bias = 0.0 if stencil.bias is None else stencil.bias.abs().reshape(-1, *(1 for _ in axes))
    leak = magnitude.convolve(head_leak)
    carried = magnitude.convolve(head_rounding)
    size = magnitude.convolve(modulus) + bias

    taps, _, channels, _ = stencil.matrices.shape
    terms = taps * channels
    summed = size + leak + carried
    rounding = carried + gamma(terms + 1, sums) * summed + terms * smallest_subnormal(sums)
    overflow = summed * (1 + gamma(terms + 1, sums)) > torch.finfo(sums).max
    if stored != sums:
        rounded = exact.abs() + leak + rounding
        rounding = rounding + unit_roundoff(stored) * rounded + smallest_subnormal(stored)
        overflow |= rounded > torch.finfo(stored).max
    reference = gamma(terms + 1, torch.float64) * size + terms * smallest_subnormal(torch.float64)
    # What the sums of this function, all of terms of one sign, can have lost themselves.
    own = 1 + 2 * gamma(terms + 32, torch.float64)
    return leak * own, ((rounding + reference) * own).masked_fill(overflow, math.inf)
