"""The layer's bound: what the errors of its heads, and its own sums, do to every output.

Numbers in brackets are equations on the page of `layer_error_is_certified`. Words of this file, and
their letters there:

* limit, X: what stands at the targets, P_∞ X;
* deviation: (P - P_∞) X, what the heads see over the reals less the limit;
* errors, N: what floating point adds to what the heads see;
* moduli: bounds on |X| + |(P - P_∞) X|, what the heads hand on but for N;
* terms, n: the number of products in one output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from constructions.certificate.head_errors import HeadErrors
from constructions.certificate.narrow import Applied
from constructions.certificate.rounding import ROUND_UP, gamma
from constructions.formats import DOUBLE, smallest_normal, smallest_subnormal, unit_roundoff
from constructions.layer.soft_padding import SoftPadding
from constructions.matrix_units import Operation, Products, products_of
from constructions.sources.stencil import Stencil


def layer_bound(
    stencil: Stencil,
    limit: Tensor,
    exact: Tensor,
    heads: HeadErrors,
    *,
    sums: torch.dtype,
    stored: torch.dtype,
    products: Products | None = None,
    operands: Sequence[torch.dtype] = (),
    applied: Applied | None = None,
) -> tuple[Tensor, Tensor]:
    """How far the layer can be from the convolution, at every output: equations (12) to (15).

    Args:
        stencil: of the convolution, in float64.
        limit: what stands at the targets, (N, D_in, *target shape), float64 and finite.
        exact: the convolution itself, (N, D_out, *query shape), float64, computed as a plain sum.
        heads: what the heads do to `limit`.
        sums: the format in which the layer adds.
        stored: the format of its output.
        products: how the device forms that sum; None for plain sums.
        operands: the formats in which its operands are stored, as `Products.growth` takes them.
        applied: what narrow heads apply at each tap; None for its matrix itself. The equation (8)
            is that of `head_dimension_is_block_term_rank`.

    Returns:
        leak and rounding, both float64 of the shape of `exact`. The rounding covers that of `exact`
        and of the leak too. It is inf where a sum of the layer may overflow, of which the theorem
        says nothing.
    """
    moduli_of_taps = stencil.matrices.abs() if applied is None else applied.moduli
    magnitude = replace(stencil, matrices=moduli_of_taps)
    bias: Tensor | float = 0.0
    if stencil.bias is not None:
        bias = stencil.bias.abs().reshape(-1, *(1 for _ in limit.shape[2:]))
    taps, _, channels, _ = stencil.matrices.shape
    terms = max(taps, 0 if applied is None else applied.heads) * channels
    formed = Products.plain(sums) if products is None else products
    # (14): the deviation itself, in float64, may err; that counts as if the layer had rounded it.
    errors = heads.rounding + heads.evaluated
    weight, deviation = _most(magnitude.matrices), _most(heads.deviation)
    operand = _most(limit) + deviation + _most(errors)

    # (12), the leak.
    leak, moduli = exact.new_zeros(()), limit.abs()
    if deviation:  # none in a saturated layer
        if heads.signed:
            leak = stencil.convolve(heads.deviation).abs_()
        else:
            leak = summed_moduli(magnitude, heads.deviation, sums)
        moduli += heads.deviation.abs()

    amiss: Tensor | None = None
    if applied is not None:  # (8)
        amiss = summed_moduli(replace(stencil, matrices=applied.error), moduli + errors, sums)

    # (12), the rounding; (21) on a matrix unit.
    growth = formed.growth(terms + 1, *operands)
    largest = terms * weight * operand + _most(torch.as_tensor(bias))
    rounding, overflow = _rounding_of_sums(
        magnitude, moduli, errors, bias, terms, sums, growth, largest
    )
    if amiss is not None:
        rounding = rounding + amiss
    underflow = formed.lost(terms, weight + operand)
    rounding.add_(underflow + 2 * terms * smallest_subnormal(DOUBLE))  # the latter is of (14)

    # (13), the output.
    if stored != sums:
        rounded = exact.abs() + leak + rounding
        overflow = overflow | (rounded > torch.finfo(stored).max)
        rounding.add_(rounded, alpha=unit_roundoff(stored)).add_(smallest_subnormal(stored))

    # (15): what the sums of this function, all of terms of one sign, can have lost themselves.
    own = 1 + 2 * gamma(terms + 32, DOUBLE)
    leak, rounding = leak * own, rounding.mul_(own)
    if overflow.any() or not math.isfinite(largest):
        # What is infinite is NaN where it meets a 0, or another of the other sign.
        leak, rounding = (t.nan_to_num_(math.inf, math.inf) for t in (leak, rounding))
        rounding.masked_fill_(overflow, math.inf)
    return leak.expand_as(exact), rounding


def _rounding_of_sums(
    magnitude: Stencil,
    moduli: Tensor,
    errors: Tensor,
    bias: Tensor | float,
    terms: int,
    sums: torch.dtype,
    growth: float,
    largest: float,
) -> tuple[Tensor, Tensor]:
    """Equations (12) and (14) but for underflow, and where a sum of the layer may overflow.

    Σ|W| N + G (Σ|W| moduli + |b| + Σ|W| N) + γ (Σ|W| moduli + |b|), where G is that of the layer,
    γ that of the reference.

    Args:
        magnitude: the convolution with |W|.
        moduli: of what the heads hand on but for their errors; overwritten.
        errors: N.
        bias: |b|.
        terms: n.
        sums: the format in which the layer adds.
        growth: G.
        largest: a bound on the moduli of all sums.
    """
    both = growth + gamma(terms + 1, DOUBLE)
    highest = torch.finfo(sums).max / (1 + growth) / ROUND_UP
    if sums == torch.float32 and 2 * largest < highest:
        # No sum overflows. In float64 nothing that matters beside a product of float32 underflows,
        # and so what rounds is known from one convolution, as the page has it after (15).
        moduli.mul_(both).add_(errors, alpha=1 + growth)
        rounding = summed_moduli(magnitude, moduli, sums) + bias * both
        return rounding, rounding.new_zeros((), dtype=torch.bool)
    size = summed_moduli(magnitude, moduli, sums) + bias
    propagated = size.new_zeros(())
    if _most(errors):
        propagated = summed_moduli(magnitude, errors, sums)
    rounding = size * both + propagated * (1 + growth)
    return rounding, size + propagated > highest


def summed_moduli(magnitude: Stencil, numbers: Tensor, sums: torch.dtype) -> Tensor:
    """Σ |W| of nonnegative numbers, or a little more.

    As the page has it after (15): where the layer adds in float32 these sums may too, in a fraction
    of the time, once the largest number and the largest weight are scaled to about 1.
    """
    taps, _, channels, _ = magnitude.matrices.shape
    largest = _most(magnitude.matrices), _most(numbers)
    growth = _growth_in_single("convolution", taps * channels, sums, largest)
    if growth is None:
        return magnitude.convolve(numbers)
    scales = [2.0 ** -math.frexp(n)[1] for n in largest]
    matrices = (magnitude.matrices * scales[0]).to(torch.float32)
    size = replace(magnitude, matrices=matrices).convolve((numbers * scales[1]).to(torch.float32))
    return _raised(size, growth, taps * channels, scales[0] * scales[1])


def seen_moduli(padding: SoftPadding, values: Tensor, sums: torch.dtype) -> Tensor:
    """P|X|, or a little more, as in `summed_moduli`: what the heads see of moduli of values."""
    largest, keys = _most(values), sum(values.shape[2:])
    growth = _growth_in_single("matmul", keys + 2 * values.dim(), sums, [largest])
    if growth is None:
        return padding(values.abs())
    scale = 2.0 ** -math.frexp(largest)[1]
    # Weights that are subnormal in float32 are slow, and count for what underflow takes.
    factors = [
        factor.remade(
            tuple(t.where(t >= smallest_normal(torch.float32), 0.0) for t in factor.tensors)
        )
        for factor in padding.factors
    ]
    seen = replace(padding, factors=tuple(factors))(values.abs().mul_(scale).to(torch.float32))
    return _raised(seen, growth, keys + 1, scale)


def _growth_in_single(
    operation: Operation, terms: int, sums: torch.dtype, largest: Sequence[float]
) -> float | None:
    """How much sums of moduli may lose in float32 on the CPU; None where they run in float64."""
    single = torch.float32
    growth = products_of(operation, single, "cpu").growth(terms + 4, single, single)
    scaled = all(2.0**-500 < n < 2.0**500 for n in largest)
    return growth if sums == single and growth <= 2**-10 and scaled else None


def _raised(sums: Tensor, growth: float, terms: int, scale: float) -> Tensor:
    """In float64 and unscaled, so much larger that they are not too small.

    Args:
        sums: of products of operands of at most 1.
        growth: what they may have lost.
        terms: how many of them may have underflowed.
        scale: a power of two, of the operands together.
    """
    lost = 4 * terms * smallest_normal(torch.float32)
    return sums.double().mul_((1 + 2 * growth) / scale).add_(lost / scale)


def _most(numbers: Tensor) -> float:
    """The largest modulus; 0 of none."""
    if not numbers.numel():
        return 0.0
    least, most = numbers.aminmax()
    return max(-least.item(), most.item())
