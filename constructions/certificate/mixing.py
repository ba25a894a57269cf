"""Mixing heads: what floating point adds where heads mix all taps and together tell them apart.

Over the reals such a layer is the convolution; nothing leaks. The heads are made anew from the
convolution. Numbers in brackets are equations on the page of the theorem
`one_dimension_expresses_every_convolution`. Words of this file, and their letters there:

* exponentials, E: of a head's scores, less the score at its own shift; gains, Z: their sums;
* coefficients, b: what a head contributes to a tap; mixture, M: Σ b W;
* seen, S: what a head sees of the moduli of the values; noise, n: what its own rounding adds;
* applied, P: |Z M|; error, D: how far the product that the layer forms can be from Z M;
* residual, Q: what the rounded coefficients leave of other taps and keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.certificate.comparison import Comparison
from constructions.certificate.rounding import exponential_error, gamma, head_rounding
from constructions.encodings import Mixing
from constructions.formats import (
    DOUBLE,
    OWN,
    accumulator,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.geometry.lattice import Lattice, displacements, spread
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.structure import products as products_of_heads
from constructions.matrix_units import products_of


def mixing_bound(
    comparison: Comparison, encoding: Mixing, layer: MultiHeadSelfAttention
) -> tuple[Tensor, Tensor]:
    """How far a layer whose heads mix can be from the convolution, at every output: (19) to (24).

    Of the layer it reads the boundary, the dtype, the device, and the roundings of the stored
    matrices, as far as they can be roundings.

    Args:
        comparison: the convolution and the input.
        encoding: of the layer.
        layer: an attention layer with a mixing encoding.

    Returns:
        leak, which is 0, and rounding: float64, of the shape of the output. The rounding is inf
        where a number of the layer may overflow.

    Raises:
        ValueError: the encoding does not apply on the lattices of this input.
    """
    stencil, dtype = comparison.stencil, layer.dtype
    sums = accumulator(dtype)
    view, _ = comparison.seen_by(layer.boundary)
    keys, values, queries = view.keys, view.values.abs(), view.queries
    mixtures = _Mixtures.of(encoding, stencil.offsets.to("cpu", DOUBLE), keys, queries)
    stored = products_of_heads(layer.heads, DOUBLE).detach().cpu()
    matrices = Matrices.of(
        mixtures.coefficients, mixtures.gains, mixtures.score_error, stencil.matrices, stored, dtype
    )
    products = products_of("matmul", sums, layer.numbers.device.type)

    taps, groups, width, _ = stencil.matrices.shape
    terms = len(mixtures.gains) * width  # m
    by_group = (len(mixtures.gains), len(values), groups, width, queries.size)
    # S and n: (9) of T7, and (11) of T7 for an off-limit mass of T.
    largest = values.flatten(2).amax(dim=-1, keepdim=True)
    underflow = 2 * smallest_normal(DOUBLE) * largest + smallest_subnormal(DOUBLE)
    seen = mixtures.seen(values) + keys.size * underflow
    noise = head_rounding(
        seen,
        largest,
        float(keys.size),
        (keys.size,),
        dtype,
        score_error=mixtures.score_error,
        products=products,
    )
    seen, noise = seen.reshape(by_group), noise.reshape(by_group)

    # (21): (P + D)(S + n) - P S = (P + D) n + D S
    applied = matrices.applied + matrices.error
    error = summed(applied, noise) + summed(matrices.error, seen)
    size = summed(applied, seen + noise)
    # (22): the residual, and what it may itself be wrong by.
    residual = mixtures.residual_of(values).reshape(taps, *by_group[1:])
    error = error + summed(stencil.matrices.abs(), residual)
    error = error + matrices.evaluated * summed(matrices.magnitude, seen)

    # (23): the sum over heads and channels, and the output.
    bias = 0.0 if stencil.bias is None else stencil.bias.abs().reshape(groups, -1, 1)
    size = size + bias
    growth = products.growth(terms + 1)
    largest_of_both = float((seen + noise).max()) + float(applied.max()) if noise.numel() else 0.0
    rounding = error + growth * size + products.lost(terms, largest_of_both)
    exact = comparison.exact.abs().reshape(rounding.shape)
    overflow = size * (1 + growth) > torch.finfo(sums).max
    overflow |= matrices.overflow.unsqueeze(-1)
    if dtype != sums:
        rounded = exact + rounding
        rounding = rounding + unit_roundoff(dtype) * rounded + smallest_subnormal(dtype)
        overflow |= rounded > torch.finfo(dtype).max

    # (24): the reference, a plain sum, and this bound itself, of terms of one sign.
    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    plain = magnitude.convolve(comparison.limit.abs()).reshape(rounding.shape) + bias
    rounding = rounding + gamma(taps * width + 1, DOUBLE) * plain
    rounding = rounding + 16 * (terms + taps * width) * smallest_subnormal(DOUBLE)
    rounding = rounding * OWN * (1 + 2 * gamma(terms + taps + keys.size + 32, DOUBLE))
    rounding = rounding.nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(overflow, math.inf)
    rounding = rounding.reshape(comparison.exact.shape)
    return torch.zeros_like(rounding), rounding


@dataclass(frozen=True)
class _Mixtures:
    """The heads of a mixing encoding on given lattices, in float64.

    Args:
        keys: where the keys stand.
        queries: where the queries stand.
        coefficients: b, (H, N).
        gains: Z, (H,).
        exponentials: E at every displacement, (H, M).
        residual: Q, b E less 1 at the tap's own displacement, (N, M).
        score_error: what the encoding's own rounding can do to a score.
    """

    keys: Lattice
    queries: Lattice
    coefficients: Tensor
    gains: Tensor
    exponentials: Tensor
    residual: Tensor
    score_error: float

    @classmethod
    def of(cls, encoding: Mixing, offsets: Tensor, keys: Lattice, queries: Lattice) -> _Mixtures:
        """The heads for the given taps."""
        shifts, coefficients = encoding.heads(offsets), encoding.coefficients(offsets)
        gains = encoding.gains(shifts, keys)
        box = displacements(keys, queries).positions().to(DOUBLE)
        features, names = encoding.encode(torch.cat([box, shifts]), shifts, keys)
        at_shifts, features = features[len(box) :], features[: len(box)]
        own = (names * at_shifts).sum(dim=-1, keepdim=True)
        exponentials = (names @ features.T - own).exp()
        # Several displacements of a torus are one: those that look as the tap does.
        of_taps = encoding.encode(offsets, shifts, keys)[0]
        meets = (features == of_taps.unsqueeze(1)).all(dim=-1)
        residual = coefficients.T @ exponentials - meets.to(DOUBLE)
        return cls(
            keys=keys,
            queries=queries,
            coefficients=coefficients,
            gains=gains,
            exponentials=exponentials,
            residual=residual,
            score_error=float(encoding.score_error(shifts, keys)),
        )

    def seen(self, values: Tensor) -> Tensor:
        """S, what each head sees of values of one sign: (H, batch, D_in, queries)."""
        return self._sums(self.exponentials / self.gains.unsqueeze(-1), values)

    def residual_of(self, values: Tensor) -> Tensor:
        """Σ |Q| X, what each tap has too much or too little of values of one sign, (N, ...)."""
        return self._sums(self.residual.abs(), values)

    def _sums(self, tables: Tensor, values: Tensor) -> Tensor:
        columns = values.flatten(2).transpose(1, 2)
        rows = spread(tables, self.keys, self.queries).unsqueeze(1)
        return (rows @ columns).transpose(2, 3)


@dataclass(frozen=True)
class Matrices:
    """Equation (20): what is applied to what a head sees, (H, G, D_in / G, D_out / G) each.

    Args:
        mixture: M, as float64 has it.
        applied: P, a bound on |Z M|.
        error: D, how far the product that the layer forms can be from Z M.
        magnitude: Z Σ |b| |W|.
        evaluated: what the residual can have lost of these in its own evaluation.
        overflow: (G, D_out / G), where an entry may exceed its format.
    """

    mixture: Tensor
    applied: Tensor
    error: Tensor
    magnitude: Tensor
    evaluated: float
    overflow: Tensor

    @classmethod
    def of(
        cls,
        coefficients: Tensor,
        gains: Tensor,
        score_error: float,
        kernel: Tensor,
        stored: Tensor,
        dtype: torch.dtype,
    ) -> Matrices:
        """Those of a kernel (N, G, D_in / G, D_out / G), as stored by the layer.

        Args:
            coefficients: b, (H, N).
            gains: Z, (H,).
            score_error: what the encoding's own rounding can do to a score.
            kernel: W.
            stored: M, as the layer has it.
            dtype: of the layer.
        """
        sums, (heads, taps) = accumulator(dtype), coefficients.shape
        gains = gains.reshape(-1, 1, 1, 1)
        exponential = exponential_error(DOUBLE, score_error)

        mixture = torch.einsum("ht,tgio->hgio", coefficients, kernel)
        size = torch.einsum("ht,tgio->hgio", coefficients.abs(), kernel.abs())
        # The sum over taps rounds once in the construction, and once more here.
        summed = gamma(taps + 1, DOUBLE) * size + taps * smallest_subnormal(DOUBLE)
        size_of_mixture = mixture.abs() + summed
        # d: stored in the layer's dtype, to which torch goes by way of float32; or moved since.
        single = unit_roundoff(torch.float32)
        most = (max(unit_roundoff(dtype), single) + single) * (size + summed)
        most = most + max(smallest_subnormal(dtype), smallest_subnormal(torch.float32))
        distance = torch.minimum((stored - mixture).abs(), most).nan_to_num(math.inf) + 2 * summed

        # D: the gains err by e, the product by f.
        u, cast = unit_roundoff(DOUBLE), unit_roundoff(sums)
        gain = (1 + exponential) * (1 + gamma(taps + 4, DOUBLE))
        product = (gain * (1 + u) * (1 + cast) - 1) * OWN
        as_stored = size_of_mixture + distance
        error = gains * distance + product * gains * as_stored + 2 * smallest_subnormal(sums)
        applied = gains * size_of_mixture
        stored_size, product_size = as_stored.amax(dim=(0, 2)), (applied + error).amax((0, 2))
        limit = min(torch.finfo(dtype).max, torch.finfo(sums).max)
        return cls(
            mixture=mixture,
            applied=applied,
            error=error,
            magnitude=gains * size,
            evaluated=exponential + gamma(heads + 2, DOUBLE),
            overflow=(stored_size > limit) | (product_size > torch.finfo(sums).max),
        )


def summed(matrices: Tensor, seen: Tensor) -> Tensor:
    """(H, G, D_in / G, D_out / G) applied to (H, batch, G, D_in / G, Q), and summed over H."""
    return torch.einsum("hgio,hngiq->ngoq", matrices, seen)
