"""Minimal heads: what their own factors leave of the kernel, and what floating point adds.

The heads are made anew from the convolution, with the weights that the layer's encoding has.
Equation (25) of `heads_count_the_rank_of_the_kernel` is charged as leak; what floating point adds
is (19) to (24) of `one_dimension_expresses_every_convolution`, but for (22). Words of this file,
and their letters there:

* exponentials, E: of a head's logits, less the logit at its own name; gains, Z: their sums;
* mixture, M: what the construction makes of the kernel in float64, so that V = Z M;
* residual, R: Σ_h E M - W at each tap, and at the keys outside;
* seen, S: what a head sees of the moduli of the values; noise, n: what its own rounding adds.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from constructions.certificate.comparison import Comparison
from constructions.certificate.mixing import Matrices, summed
from constructions.certificate.rounding import exponential_error, gamma, head_rounding
from constructions.encodings import Mixtures
from constructions.evaluation import EVALUATIONS
from constructions.formats import (
    DOUBLE,
    OWN,
    accumulator,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.geometry.lattice import Lattice, displacements, spread
from constructions.geometry.view import View
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.structure import products as products_of_heads
from constructions.matrix_units import Products, products_of


def mixtures_bound(
    comparison: Comparison, encoding: Mixtures, layer: MultiHeadSelfAttention
) -> tuple[Tensor, Tensor]:
    """How far a layer of minimal heads can be from the convolution, at every output.

    Of the layer it reads the weights of its encoding, the boundary, the dtype, the device, and the
    roundings of the stored matrices, as far as they can be roundings.

    Args:
        comparison: the convolution and the input.
        encoding: of the layer.
        layer: an attention layer with this encoding.

    Returns:
        leak, what the reals have: 0 up to the rounding of the factors where the heads are as many
        as the kernel needs; and rounding: float64, of the shape of the output. The rounding is inf
        where a number of the layer may overflow.

    Raises:
        ValueError: the encoding does not apply on the lattices of this input.
    """
    stencil, dtype = comparison.stencil, layer.dtype
    sums = accumulator(dtype)
    view, _ = comparison.seen_by(layer.boundary)
    offsets = stencil.offsets.to("cpu", DOUBLE)
    shifts = encoding.heads(offsets)
    gains = encoding.gains(shifts, view.keys)
    error = encoding.score_error(shifts, view.keys)
    operation = EVALUATIONS[layer.evaluation].operation
    products = products_of(operation, sums, layer.numbers.device.type)

    taps, groups, width, _ = stencil.matrices.shape
    stored = products_of_heads(layer.heads, DOUBLE).detach().cpu()
    matrices = Matrices.of(
        encoding.coefficients(offsets), gains, error, stencil.matrices, stored, dtype
    )
    seen, noise = _seen(encoding, shifts, view, dtype, error, products)
    by_group = (len(gains), len(view.values), groups, width, view.queries.size)
    seen, noise = seen.reshape(by_group), noise.reshape(by_group)

    # (21): (P + D)(S + n) - P S = (P + D) n + D S
    applied = matrices.applied + matrices.error
    rounding = summed(applied, noise) + summed(matrices.error, seen)
    size = summed(applied, seen + noise)
    # What the residual may itself be wrong by.
    own = matrices.evaluated + gamma(taps + 1, DOUBLE)
    rounding = rounding + own * summed(matrices.magnitude, seen)

    # (23): the sum over heads and channels, and the output.
    terms = len(gains) * width
    bias = 0.0 if stencil.bias is None else stencil.bias.abs().reshape(groups, -1, 1)
    size = size + bias
    growth = products.growth(terms + 1)
    largest = float((seen + noise).max()) + float(applied.max()) if noise.numel() else 0.0
    rounding = rounding + growth * size + products.lost(terms, largest)
    leak = _leak(comparison, encoding, matrices.mixture, view).reshape(rounding.shape)
    exact = comparison.exact.abs().reshape(rounding.shape)
    overflow = size * (1 + growth) > torch.finfo(sums).max
    overflow |= matrices.overflow.unsqueeze(-1)
    if dtype != sums:
        rounded = exact + leak + rounding
        rounding = rounding + unit_roundoff(dtype) * rounded + smallest_subnormal(dtype)
        overflow |= rounded > torch.finfo(dtype).max

    # (24): the reference, a plain sum, and this bound itself, of terms of one sign.
    magnitude = replace(stencil, matrices=stencil.matrices.abs())
    plain = magnitude.convolve(comparison.limit.abs()).reshape(rounding.shape) + bias
    rounding = rounding + gamma(taps * width + 1, DOUBLE) * plain
    rounding = rounding + 16 * (terms + taps * width) * smallest_subnormal(DOUBLE)
    upwards = OWN * (1 + 2 * gamma(terms + taps + view.keys.size + 32, DOUBLE))
    rounding = (rounding * upwards).nan_to_num(nan=math.inf, posinf=math.inf)
    rounding = rounding.masked_fill(overflow, math.inf)
    shape = comparison.exact.shape
    return (leak * upwards).reshape(shape), rounding.reshape(shape)


def _seen(
    encoding: Mixtures,
    shifts: Tensor,
    view: View,
    dtype: torch.dtype,
    score_error: float,
    products: Products,
) -> tuple[Tensor, Tensor]:
    """S and n, (H, batch, D_in, queries): of signed heads, those of both softmaxes together."""
    values, keys = view.values.abs(), view.keys
    largest = values.flatten(2).amax(dim=-1, keepdim=True)
    underflow = 2 * smallest_normal(DOUBLE) * largest + smallest_subnormal(DOUBLE)
    found = []
    for part in (encoding, encoding.minus):
        if part is None:
            continue
        seen = _softmax(part, shifts, keys, view.queries, values) + keys.size * underflow
        # (9) of T7, and (11) of T7 for an off-limit mass of T.
        noise = head_rounding(
            seen,
            largest,
            float(keys.size),
            (keys.size,),
            dtype,
            score_error=score_error,
            products=products,
        )
        found.append((seen, noise))
    seen, noise = found[0]
    if len(found) == 1:
        return seen, noise
    share = encoding.shares(shifts, keys).reshape(-1, 1, 1, 1)
    seen, noise = seen + share * found[1][0], noise + share * found[1][1]
    # The share errs as two gains do and is stored in the format of the sums; a product with it and
    # a difference are rounded there, and the difference is cast once more.
    sums = accumulator(dtype)
    gain = exponential_error(DOUBLE, score_error) + gamma(keys.size + 8, DOUBLE)
    relative = 2 * (2 * gain + 4 * unit_roundoff(sums))
    lost = 4 * smallest_subnormal(sums)
    if dtype != sums:
        relative += 2 * unit_roundoff(dtype)
        lost += smallest_subnormal(dtype)
    return seen, noise + relative * (seen + noise) + lost * keys.size * largest


def _softmax(
    encoding: Mixtures, shifts: Tensor, keys: Lattice, queries: Lattice, values: Tensor
) -> Tensor:
    """What one softmax of each head sees of values of one sign, (H, batch, D_in, queries)."""
    box = displacements(keys, queries).positions().to(DOUBLE)
    features, names = encoding.encode(torch.cat([box, shifts]), shifts, keys)
    own = (names * features[len(box) :]).sum(dim=-1, keepdim=True)
    tables = (names @ features[: len(box)].T - own).exp()
    tables = tables / encoding.gains(shifts, keys).unsqueeze(-1)
    rows = spread(tables, keys, queries).unsqueeze(1)
    return (rows @ values.flatten(2).transpose(1, 2)).transpose(2, 3)


def _leak(comparison: Comparison, encoding: Mixtures, mixture: Tensor, view: View) -> Tensor:
    """Equation (25), of the moduli of residual and pixels: of the output's shape."""
    stencil = comparison.stencil
    made = torch.einsum("hj,hgio->jgio", encoding.exponentials(), mixture)
    residual = stencil.matrices.abs()  # a tap that no head sees is a key outside
    places = list(encoding.places)
    residual[places] = (made[:-1] - stencil.matrices[places]).abs()
    leak = replace(stencil, matrices=residual).convolve(comparison.limit.abs())
    elsewhere = made[-1].abs()  # (G, D_in / G, D_out / G)
    if bool(elsewhere.any()):
        groups, width, outputs = elsewhere.shape
        sums = view.values.abs().flatten(2).sum(dim=-1).reshape(-1, groups, width)
        everywhere = torch.einsum("ngi,gio->ngo", sums, elsewhere).reshape(-1, groups * outputs)
        leak = leak + everywhere.reshape(*everywhere.shape, *(1 for _ in leak.shape[2:]))
    return leak
