"""Rounding: what floating point adds to what one head sees.

Numbers in brackets are equations on the page of `layer_error_is_certified` (T7), or, where it says
so, of `attention_is_soft_padding_then_convolution` (T4). Words of this file, and their letters
there:

* seen, M: P|X|, what a head sees of the moduli of the pixels;
* largest, R: the largest modulus of all pixels of a channel;
* mass, Λ: a bound on the off-limit mass before normalisation (see `masses`);
* sizes, T: the number of keys of each softmax;
* sums, a: the format in which the layer adds; stored, w: the one in which it stores.

All bounds are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.formats import accumulator, smallest_normal, smallest_subnormal, unit_roundoff
from constructions.matrix_units import Products, grown
from constructions.normalisers import EXP_ROUNDOFFS

ROUND_UP = 1 + 2**-46
"""Covers the rounding of a scalar formula: at most 40 operations within 2 units each."""

UNDERFLOW = 32 * smallest_subnormal(torch.float64)
"""Covers their underflow, for each dimension (page of T2, equation 21)."""

KEYS_IN_A_BLOCK = 32
"""Hypothesis on fused kernels: they rescale their sums once in as many keys at the most."""


def gamma(terms: int, dtype: torch.dtype) -> float:
    """(1 + u)^n - 1: what n roundings in a format can do to a number, for every n; equation (1).

    The usual nu / (1 - nu) is larger, and meaningless for nu >= 1, which sums of 256 terms reach in
    bfloat16.
    """
    return Products.plain(dtype).growth(terms)


def exponential_error(dtype: torch.dtype, score_error: float) -> float:
    """τ: the relative error of a computed exponential that is not flushed, its score rounded.

    Equation (5), and what follows it on scores that the encoding itself rounds.

    Args:
        dtype: in which it is computed.
        score_error: what the encoding's own rounding can do to a score beforehand.
    """
    lowest_score = 1 - math.log(smallest_normal(dtype))  # S
    own = (EXP_ROUNDOFFS + 2 * lowest_score) * unit_roundoff(dtype) * (1 + 2**-12)
    return own + math.expm1(score_error) * (1 + own) * ROUND_UP


def streamed_error(dtype: torch.dtype, score_error: float, keys: int) -> float:
    """τ_f: that of an exponential in a fused kernel, which rounds the scale and rescales its sums.

    Equation (25), for blocks of at least 32 keys.

    Args:
        dtype: in which it is computed.
        score_error: what the encoding's own rounding can do to a score beforehand.
        keys: how many keys there are.
    """
    u = unit_roundoff(dtype)
    scale = 2 * (1 - math.log(smallest_normal(dtype))) * u * (1 + 2**-12)
    blocks = grown((math.ceil(keys / KEYS_IN_A_BLOCK) * (EXP_ROUNDOFFS + 2)) * math.log1p(u))
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
    """What floating point adds to one head: N, or N' where a matrix unit applies it.

    Equations (5) to (11) for one softmax over all keys, (22) for a matrix unit, (25) to (27) for a
    fused kernel; (21) to (27) of T4 for one softmax after another.

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
        a matrix unit adds to it. It is inf where a sum of the head may overflow.
    """
    steps = _Steps.of(sizes, dtype, score_error, rescaled=rescaled, streamed=streamed)
    relative, absolute, underflow = steps.relative_to_the_seen()
    off_limit = torch.as_tensor(steps.relative_to_the_mass(mass), dtype=seen.dtype)
    # N_2: (11), (27), and (26) of T4.
    second = (steps.count * off_limit.log1p()).expm1() * largest
    if relative <= 1 / 8:
        # N_1: (9), (26), and (23) of T4. What is seen is itself computed in float64.
        first = relative * (1 + 2**-30) * seen
        first = first.add_(2**steps.count * (absolute * largest + underflow))
        nearest = first.clamp_(max=second).mul_(ROUND_UP)
    elif rescaled:
        # Sums so long that the first form fails, and of the second what a sink leaves rests on it:
        # (27) of T4.
        nearest = torch.full_like(second, math.inf)
    else:
        nearest = second * ROUND_UP
    growth = 0.0
    if products is not None and products.steps > 1:
        nearest = nearest + _on_a_unit(seen, largest, nearest, sizes, dtype, products)
        growth = products.growth(sum(sizes), dtype, *(products.sums for _ in sizes))
    overflow = largest * (steps.largest_sum() * (1 + growth) * ROUND_UP) > _highest(steps.sums)
    if streamed and dtype != steps.sums:  # what a head sees is cast
        cast = torch.minimum(largest + nearest, largest * steps.largest_mean())
        overflow = overflow | (cast > _highest(dtype))
    return nearest.masked_fill(overflow, math.inf) if overflow.any() else nearest


def _highest(dtype: torch.dtype) -> float:
    """The largest number of a format."""
    return torch.finfo(dtype).max


def may_overflow(largest: Tensor, keys: int, dtype: torch.dtype) -> Tensor:
    """Where a fused kernel's sum over keys may overflow though its weights are one-hot at the end.

    Before it meets the peak of a row it may have added up all the others, each with a weight of at
    most 1, and it multiplies what it has by 0 then: of an overflow that makes NaN.

    Args:
        largest: R.
        keys: T.
        dtype: of the layer.
    """
    steps = _Steps.of((keys,), dtype, 0.0, rescaled=False, streamed=True)
    return largest * (steps.largest_sum() * ROUND_UP) > _highest(steps.sums)


@dataclass(frozen=True)
class _Steps:
    """The steps of a head, one after another: a softmax and a sum for each size; a sink's factor.

    Args:
        sizes: T of each softmax.
        sums: a, the format in which exponentials are summed and weights applied.
        cast: u_w, or 0 where weights are stored in the format of the sums.
        cast_underflow: η_w, or 0 likewise.
        exponential: τ, τ' of T4 for several steps, or τ_f in a fused kernel.
        rescaled: whether what a sink leaves of a row is one more factor.
        streamed: whether a fused kernel normalises last.
    """

    sizes: tuple[int, ...]
    sums: torch.dtype
    cast: float
    cast_underflow: float
    exponential: float
    rescaled: bool
    streamed: bool

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        dtype: torch.dtype,
        score_error: float,
        *,
        rescaled: bool,
        streamed: bool,
    ) -> _Steps:
        """Those of a layer of a dtype; arguments as in `head_rounding`."""
        sums = accumulator(dtype)
        count = len(sizes) + rescaled
        exponential = (count + 1 if count > 1 else 1) * exponential_error(sums, score_error)
        if streamed:
            exponential = streamed_error(sums, score_error, sum(sizes))
        return cls(
            sizes=tuple(sizes),
            sums=sums,
            cast=0.0 if dtype == sums else unit_roundoff(dtype),
            cast_underflow=0.0 if dtype == sums else smallest_subnormal(dtype),
            exponential=exponential,
            rescaled=rescaled,
            streamed=streamed,
        )

    @property
    def count(self) -> int:
        """m: how many there are."""
        return len(self.sizes) + self.rescaled

    def relative_to_the_seen(self) -> tuple[float, float, float]:
        """The first form, N_1: what multiplies M, what multiplies R, and what is added.

        Equations (7) to (9), and (26) in a fused kernel; (21) to (24) of T4. inf where a sum is so
        long that nothing can be said.
        """
        u, tiny = unit_roundoff(self.sums), smallest_normal(self.sums)
        eta = smallest_subnormal(self.sums)
        errors: list[float] = []  # all factors of 1 + ε, less 1
        absolute = 0.0  # Σ y
        for size in self.sizes:
            summation = gamma(size, self.sums)
            # (7): β and ρ.
            total = self.exponential + 2 * size * tiny + summation
            if total >= 1:
                return math.inf, math.inf, math.inf
            weight = ((2 * u + self.cast) * (1 + 2 * u) + total) / (1 - total)
            # (8) and (9); (22) of T4.
            errors += self.exponential, weight, summation
            each = 2 * tiny * (1 + weight) + eta + self.cast_underflow
            absolute += size * each * (1 + summation)
        if self.rescaled:
            # (24) of T4: the logarithm of the sums is formed in float64 whatever the dtype.
            errors += self.exponential, 8 * u + self.cast, gamma(sum(self.sizes), torch.float64)
            absolute += 2 * tiny + self.cast_underflow
        underflow = sum(self.sizes) * eta
        if self.streamed:
            # (26): what a head sees is cast, and both sums may underflow once for each block.
            errors.append(self.cast)
            absolute += underflow
            underflow += underflow + self.cast_underflow
        relative = 0.0  # A - 1
        for error in errors:
            relative += error + relative * error  # (1 + a)(1 + b) - 1, without cancellation
        return relative, absolute, underflow

    def largest_mean(self) -> float:
        """How many times R what a head sees, or has added up so far, may be.

        Weights sum to 1, so that it is R and what rounding adds to it: the first form at M = R.
        """
        relative, absolute, _ = self.relative_to_the_seen()
        return 1 + relative + 2.0**self.count * absolute

    def largest_sum(self) -> float:
        """How many times R a partial sum of the head may be, over any of its keys.

        As `largest_mean`; or, whatever the sums of exponentials, the number of keys, since none of
        them is more than the sum that it is divided by. A fused kernel divides last.
        """
        keys = math.prod(size * (1 + gamma(size + 3, self.sums)) for size in self.sizes)
        return keys * (1 + self.exponential) if self.streamed else min(self.largest_mean(), keys)

    def relative_to_the_mass(self, mass: Tensor | float) -> Tensor | float:
        """C, the second form of one step over R: (6), (10) and (11), (27), and (25) of T4.

        Args:
            mass: Λ.
        """
        u, tiny = unit_roundoff(self.sums), smallest_normal(self.sums)
        keys, summation = sum(self.sizes), gamma(max(self.sizes), self.sums)
        computed = (1 + self.exponential) * mass + 2 * keys * tiny  # λ
        stored = (1 + u) ** 2 * computed + keys * smallest_subnormal(self.sums)  # λ'
        return (50 if self.streamed else 26) * (1 + summation) * stored


def _on_a_unit(
    seen: Tensor,
    largest: Tensor,
    nearest: Tensor,
    sizes: Sequence[int],
    dtype: torch.dtype,
    products: Products,
) -> Tensor:
    """What a matrix unit adds to a head whose stored weights are within `nearest` of the real ones.

    Equation (22). Only the first of several softmaxes is applied to pixels as they are stored; what
    it makes of them is in the format of the sums.
    """
    # What a sink leaves of a row is one more factor, and rounds these parts too.
    growth, underflow, values = products.step, 0.0, dtype
    for size in sizes:
        once = products.growth(size, dtype, values)
        growth += once + growth * once  # (1 + a)(1 + b) - 1, without cancellation
        underflow += products.lost(size, 1.0)
        values = products.sums
    underflow *= 2 ** (len(sizes) + 1) * (1 + growth)
    added: Tensor = growth * (seen + nearest) + underflow * (1 + largest)
    return added * (1 + 2**-30)
