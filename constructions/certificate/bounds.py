"""Bounds: how far a layer can be from the convolution, in the reals and in floating point.

The derivation of every line is on the page of the theorem `layer_error_is_certified`; the leak is
that of `quadratic_scores_select_one_shift`. All bounds are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.formats import (
    accumulator,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.layer.soft_padding import SINK_HEIGHT, SoftPadding, along
from constructions.matrix_units import Operation, Products, grown, products_of
from constructions.normalisers import EXP_ERROR
from constructions.sources.stencil import Stencil

ROUND_UP = 1 + 2**-46
"""Covers the rounding of the scalar formulas below: at most 40 operations within 2 units each."""

UNDERFLOW = 32 * smallest_subnormal(torch.float64)
"""Covers their underflow, for each dimension (page of T2, equation 21)."""


KEYS_IN_A_BLOCK = 32
"""Hypothesis on fused kernels: they rescale their sums once in as many keys at the most."""


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
    return grown(dimension * _log_theta(sharpness, dimension)) + dimension * UNDERFLOW


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
    return Products.plain(dtype).growth(terms)


def gap_mass(sharpness: float, keys: int, *, has_sink: bool) -> float:
    """Bound on the off-limit mass before normalisation that the gap alone gives.

    Without a sink every other key has at most e^-gap. With one, at c times the gap below a target,
    it is either the sink that is off, by c times the gap and the keys by more, or all the keys are,
    by 1 - c times the gap at least.
    """
    least = min(SINK_HEIGHT, 1 - SINK_HEIGHT)
    decay, others = (least * sharpness, keys) if has_sink else (sharpness, keys - 1)
    return others * (math.exp(-decay) * ROUND_UP + UNDERFLOW)


def table_mass(
    below: Tensor,
    elsewhere: Tensor,
    sharpness: float,
    score_error: float,
    *,
    has_sink: bool,
) -> float:
    """Bound on the off-limit mass before normalisation, from the scores at all displacements.

    A query meets each displacement once at the most.

    Args:
        below: (H, M), each head's scores at all displacements, less that at its own shift; float64.
        elsewhere: (H, M), which displacements are not the head's own.
        sharpness: the gap in score.
        score_error: what the encoding's own rounding can do to a score.
        has_sink: whether there is a sink, at half the gap: then a target may have no key.

    Returns:
        The largest of all heads.
    """
    height = SINK_HEIGHT * sharpness

    def total(scores: Tensor) -> float:
        return (scores.exp() * elsewhere).sum(dim=-1).max().item()

    others = total(below)
    if has_sink:
        others = max(others + math.exp(-height), total(below + height))
    double = torch.float64
    steps = 2 * exponential_error(double, score_error) + gamma(below.shape[1] + 32, double)
    return others * (1 + 4 * steps) + below.shape[1] * UNDERFLOW


def soft_padding_mass(
    padding: SoftPadding, is_pixel: Tensor, sharpness: float, score_error: float
) -> Tensor:
    """Bound on the off-limit mass before normalisation in every row of P, for this very grid.

    Args:
        padding: P in float64.
        is_pixel: (*targets.shape), whether the limit of a row is a pixel; elsewhere it is the sink.
        sharpness: the gap in score.
        score_error: what the encoding's own rounding can do to a score.

    Returns:
        (*targets.shape), float64.
    """
    logs = []
    matrices = [factor.matrix for factor in padding.factors]
    for axis, matrix in enumerate(matrices):
        largest, where = matrix.max(dim=-1, keepdim=True)
        others = matrix.scatter(-1, where, 0.0).sum(dim=-1) / largest.squeeze(-1)
        logs.append(along(others.log1p(), axis, is_pixel.dim()))
    mass = sum(logs[1:], start=logs[0]).expm1().expand(is_pixel.shape)
    if padding.kept is not None:
        of_sink = math.exp(-SINK_HEIGHT * sharpness)
        mass = torch.where(is_pixel, mass + of_sink, padding.kept / (1 - padding.kept))
    double = torch.float64
    terms = sum(matrix.shape[1] for matrix in matrices) + 32
    steps = len(matrices) + 1
    return mass * (1 + 4 * (steps * exponential_error(double, score_error) + gamma(terms, double)))


def exponential_error(dtype: torch.dtype, score_error: float) -> float:
    """τ: the relative error of a computed exponential that is not flushed, its score rounded.

    Args:
        dtype: in which it is computed.
        score_error: what the encoding's own rounding can do to a score beforehand.
    """
    lowest_score = 1 - math.log(smallest_normal(dtype))
    own = (EXP_ERROR + 2 * lowest_score) * unit_roundoff(dtype) * (1 + 2**-12)
    return own + math.expm1(score_error) * (1 + own) * ROUND_UP


def streamed_error(dtype: torch.dtype, score_error: float, keys: int) -> float:
    """That of an exponential in a fused kernel: the scale is rounded, and what is summed rescaled.

    Equation 25 of `layer_error_is_certified`, for blocks of at least 32 keys.

    Args:
        dtype: in which it is computed.
        score_error: what the encoding's own rounding can do to a score beforehand.
        keys: how many keys there are.
    """
    u = unit_roundoff(dtype)
    scale = 2 * (1 - math.log(smallest_normal(dtype))) * u * (1 + 2**-12)
    blocks = grown((math.ceil(keys / KEYS_IN_A_BLOCK) * (EXP_ERROR + 2)) * math.log1p(u))
    own = exponential_error(dtype, score_error)
    for error in (scale, blocks):
        own += error + own * error
    return own * ROUND_UP


def head_rounding(
    seen: Tensor,
    largest: Tensor,
    mass: Tensor | float,
    sizes: Sequence[int],
    dtype: torch.dtype,
    *,
    score_error: float = 0.0,
    rescaled: bool = False,
    streamed: bool = False,
    products: Products | None = None,
) -> Tensor:
    """What floating point adds to one head.

    Equations 5 to 11 of `layer_error_is_certified` for one softmax over all keys, and 22 where a
    matrix unit applies it; equations 21 to 27 of `attention_is_soft_padding_then_convolution` for
    one softmax after another.

    Args:
        seen: what the head sees of the moduli of the pixels, P|X|, or a bound on it.
        largest: the largest modulus, R.
        mass: bound on the off-limit mass before normalisation, Λ; the limit's is 1.
        sizes: the number of keys of each softmax, one after another: all of them together for
            dense attention, those of each axis for a factored one.
        dtype: of the layer.
        score_error: what the encoding's own rounding can do to a score.
        rescaled: whether what a sink leaves of a row is one more factor.
        streamed: whether a fused kernel goes through the keys in blocks, and normalises last.
        products: how the device applies weights to values; None for plain sums.

    Returns:
        The smaller of two forms, one relative to what is seen, one to the off-limit mass; and what
        a matrix unit adds to it.
    """
    exact = accumulator(dtype)
    u, tiny, eta = unit_roundoff(exact), smallest_normal(exact), smallest_subnormal(exact)
    cast = 0.0 if dtype == exact else unit_roundoff(dtype)
    cast_eta = 0.0 if dtype == exact else smallest_subnormal(dtype)
    steps = len(sizes) + rescaled
    exponential = (steps + 1 if steps > 1 else 1) * exponential_error(exact, score_error)
    if streamed:
        exponential = streamed_error(exact, score_error, sum(sizes))

    relative, lost = 0.0, 0.0
    errors: list[float] = []
    for size in sizes:
        summation = gamma(size, exact)
        total = exponential + 2 * size * tiny + summation
        weight = ((2 * u + cast) * (1 + 2 * u) + total) / (1 - total) if total < 1 else math.inf
        errors += exponential, weight, summation
        lost += size * (2 * tiny * (1 + weight) + eta + cast_eta) * (1 + summation)
    if rescaled:
        # The logarithm of the sums of exponentials is formed in float64 whatever the dtype.
        errors += exponential, 8 * u + cast, gamma(sum(sizes), torch.float64)
        lost += 2 * tiny + cast_eta
    underflow = sum(sizes) * eta
    if streamed:
        # What a head sees is rounded to the format of the layer; and sums once for each block.
        errors.append(cast)
        lost += underflow
        underflow += underflow + cast_eta
    for error in errors:
        relative += error + relative * error  # (1 + a)(1 + b) - 1, without cancellation

    summation = gamma(max(sizes), exact)
    computed = (1 + exponential) * mass + 2 * sum(sizes) * tiny
    stored = (1 + u) ** 2 * computed + sum(sizes) * eta
    doublings = 50 if streamed else 26
    once = torch.as_tensor(doublings * (1 + summation) * stored, dtype=seen.dtype)
    second = (steps * once.log1p()).expm1() * largest
    if relative > 1 / 8:
        # Sums so long that the first form fails; of the second, what a sink leaves rests on it.
        nearest = torch.full_like(second, math.inf) if rescaled else second * ROUND_UP
    else:
        # `seen` is itself computed in float64.
        first = relative * (1 + 2**-30) * seen
        first = first + 2**steps * (lost * largest + underflow)
        nearest = torch.minimum(first, second) * ROUND_UP
    if products is None or products.steps == 1:
        return nearest
    return nearest + _on_a_unit(seen, largest, nearest, sizes, dtype, products)


def _on_a_unit(
    seen: Tensor,
    largest: Tensor,
    nearest: Tensor,
    sizes: Sequence[int],
    dtype: torch.dtype,
    products: Products,
) -> Tensor:
    """What a matrix unit adds to a head whose stored weights are within `nearest` of the real ones.

    Only the first of several softmaxes is applied to pixels as they are stored; what it makes of
    them is in the format of the sums.
    """
    # What a sink leaves of a row is one more factor, and rounds these parts too.
    growth, lost, values = products.step, 0.0, dtype
    for size in sizes:
        once = products.growth(size, dtype, values)
        growth += once + growth * once  # (1 + a)(1 + b) - 1, without cancellation
        lost += products.lost(size, 1.0)
        values = products.sums
    lost *= 2 ** (len(sizes) + 1) * (1 + growth)
    added: Tensor = growth * (seen + nearest) + lost * (1 + largest)
    return added * (1 + 2**-30)


@dataclass(frozen=True)
class HeadErrors:
    """What the heads of a layer do to the pixels, at every target.

    All of them have the shape of what stands at the targets, or none where they are zero.

    Args:
        deviation: what a head sees over the reals, less the pixel at its limit.
        signed: whether the deviation is the real one, or a bound on its modulus.
        evaluated: how much the deviation itself, computed in float64, may err.
        rounding: what floating point adds.
    """

    deviation: Tensor
    signed: bool
    evaluated: Tensor
    rounding: Tensor

    @classmethod
    def none(cls, limit: Tensor) -> HeadErrors:
        """Those of one-hot weights: a gather, which is exact."""
        nothing = limit.new_zeros(())
        return cls(nothing, True, nothing, nothing)


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
) -> tuple[Tensor, Tensor]:
    """How far the layer can be from the convolution, at every output.

    Args:
        stencil: of the convolution, in float64.
        limit: what stands at the targets, (N, D_in, *target shape), float64 and finite.
        exact: the convolution itself, (N, D_out, *query shape), float64, computed as a plain sum.
        heads: what the heads do to `limit`.
        sums: the format in which the layer adds.
        stored: the format of its output.
        products: how the device forms that sum; None for plain sums.
        operands: the formats in which its operands are stored, as `Products.growth` takes them.

    Returns:
        leak and rounding, both float64 of the shape of `exact`. The rounding covers that of `exact`
        and of the leak too. It is inf where a sum of the layer may overflow, of which the theorem
        says nothing.
    """
    double = torch.float64
    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    bias: Tensor | float = 0.0
    if stencil.bias is not None:
        bias = stencil.bias.abs().reshape(-1, *(1 for _ in limit.shape[2:]))
    taps, _, channels, _ = stencil.matrices.shape
    terms = taps * channels

    # What the deviation itself may err counts as if the layer had rounded it.
    errors = heads.rounding + heads.evaluated
    weights, pixels, strayed, wrong = map(_most, (stencil.matrices, limit, heads.deviation, errors))
    reached = pixels + strayed + wrong
    leak, seen = exact.new_zeros(()), limit.abs()
    if strayed:  # nothing does in a saturated layer
        if heads.signed:
            leak = stencil.convolve(heads.deviation).abs_()
        else:
            leak = _moduli(magnitude, heads.deviation, sums)
        seen += heads.deviation.abs()
    formed = Products.plain(sums) if products is None else products
    growth = formed.growth(terms + 1, *operands)
    own_growth = growth + gamma(terms + 1, double)  # and that of the reference
    highest = torch.finfo(sums).max / (1 + growth) / ROUND_UP
    overflow = exact.new_zeros((), dtype=torch.bool)
    greatest = terms * weights * reached + _most(torch.as_tensor(bias))
    if sums == torch.float32 and 2 * greatest < highest:
        # No sum overflows. In float64 nothing that matters beside a product of float32 underflows,
        # and so what rounds is known from one convolution.
        seen.mul_(own_growth).add_(errors, alpha=1 + growth)
        rounding = _moduli(magnitude, seen, sums) + bias * own_growth
    else:
        size = _moduli(magnitude, seen, sums) + bias
        carried = _moduli(magnitude, errors, sums) if wrong else exact.new_zeros(())
        overflow = size + carried > highest
        rounding = size * own_growth + carried * (1 + growth)
    # What may underflow in both.
    lost = formed.lost(terms, weights + reached)
    rounding.add_(lost + 2 * terms * smallest_subnormal(double))
    if stored != sums:
        rounded = exact.abs() + leak + rounding
        overflow = overflow | (rounded > torch.finfo(stored).max)
        rounding.add_(rounded, alpha=unit_roundoff(stored)).add_(smallest_subnormal(stored))
    # What the sums of this function, all of terms of one sign, can have lost themselves.
    own = 1 + 2 * gamma(terms + 32, double)
    return leak.expand_as(exact) * own, rounding.mul_(own).masked_fill_(overflow, math.inf)


def _moduli(magnitude: Stencil, numbers: Tensor, sums: torch.dtype) -> Tensor:
    """Σ |W| of nonnegative numbers, or a little more.

    Equation 15 of the page: where the layer adds in float32 these sums may too, in a fraction of
    the time, once the largest number and the largest weight are scaled to about 1.
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
    """P|X|, or a little more, as in `_moduli`: what the heads see of the moduli of the values."""
    largest, keys = _most(values), sum(values.shape[2:])
    growth = _growth_in_single("matmul", keys + 2 * values.dim(), sums, [largest])
    if growth is None:
        return padding(values.abs())
    scale = 2.0 ** -math.frexp(largest)[1]
    seen = padding(values.abs().mul_(scale).to(torch.float32))
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
