"""What a lowered layer can be off from the layer's own function over the reals.

Equations are those of `positional_heads_are_convolutions`. Its letters, and the words for them:

- e, `pixel_error`: what the pixels that a head reads may be off, where W_val is applied first;
- τ, `mass_outside`: the part of a row's mass that its window leaves out;
- N, `rounding`: what floating point adds when P is applied;
- ε, `target_error`: what the layer may be off at the targets of a group, all of these together;
- |P|, `moduli`: what the heads see of the moduli of the pixels;
- Ŵ and ω, `Stored`: the moduli of the matrices as stored, and what these may be off;
- η, the underflow of one product, is part of `underflow`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.certificate.rounding import gamma, head_rounding
from constructions.formats import DOUBLE, accumulator, smallest_subnormal, unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.lowering.groups import Group, applied_by_pixel
from constructions.matrix_units import Products, products_of


@dataclass(frozen=True)
class Summands:
    """What a lowered layer adds up.

    Args:
        groups: its heads.
        value: W_val of all heads, (H, G, D_in / G, D_h), whose dtype and device are the layer's.
        output: W_out, (H, G, D_h, D_out / G).
        bias: (D_out,), or None.
        tolerance: the mass that a window may leave out.
    """

    groups: tuple[Group, ...]
    value: Tensor
    output: Tensor
    bias: Tensor | None
    tolerance: float

    @property
    def exact(self) -> torch.dtype:
        """The format that it is summed in."""
        return accumulator(self.value.dtype)

    def products(self) -> Products:
        """How the layer's device forms its sums of products, as torch's flags are now."""
        return products_of("convolution", self.exact, self.value.device.type)


@dataclass(frozen=True)
class Stored:
    """The matrices of a group.

    Args:
        size: the moduli of those that are stored.
        error: ω, what these may be off.
    """

    size: Tensor
    error: Tensor


def error_bound(layer: Summands, values: Tensor, keys: Lattice, queries: Lattice) -> Tensor:
    """What the sum may be off before it is rounded to the layer's own format.

    Args:
        layer: what is added.
        values: what stands on the keys, float64 on the CPU.
        keys: where.
        queries: where the outputs stand.

    Returns:
        (N, D_out, *queries.shape), float64; inf where a sum may overflow.
    """
    outputs = layer.output.shape[1] * layer.output.shape[3]
    total = torch.zeros(len(values), outputs, *queries.shape, dtype=DOUBLE)
    if not len(values):
        return total  # of no image there is no largest pixel
    if layer.bias is not None:
        ones = (1,) * len(keys.shape)
        total = total + layer.bias.to("cpu", DOUBLE).abs().reshape(-1, *ones)
    error, terms = torch.zeros_like(total), 1 + len(layer.groups)
    products, largest = layer.products(), 0.0
    for group in layer.groups:
        taps = group.taps(queries)
        pixels, pixel_error, matrices = _read(layer, group, values)
        target_error, moduli = _at_targets(layer, group, keys, queries, pixels, pixel_error)
        # Equation (17), its first sum: Σ |Ŵ| ε + ω (|P| + ε).
        stored = matrices.size + matrices.error
        error = error + taps(stored, target_error) + taps(matrices.error, moduli + target_error)
        # What is added up: Σ |Ŵ| (|P| + ε) + |b|.
        total = total + taps(stored, moduli + target_error)
        largest = max(largest, float((moduli + target_error).max()) + float(stored.max()))
        terms += taps.count * stored.shape[2]
    # Equation (17), its second sum and its underflow: γ_(n + 1) (...) + n η.
    growth = products.growth(terms)
    error = error + growth * total + products.lost(terms, largest)
    overflow = total * (1 + growth) > torch.finfo(layer.exact).max
    return error.masked_fill(overflow, math.inf)


def _read(layer: Summands, group: Group, values: Tensor) -> tuple[Tensor, Tensor, Stored]:
    """Equation (16): the pixels that a group reads, what they may be off (e), and its matrices."""
    first, after = group.matrices(layer.value, layer.output)
    after = after.cpu()
    if first is not None:
        # W_val is applied first: e = γ_(D_in + 1) Σ |X| |W_val|, in the layer's format and here.
        first = first.cpu()
        terms, products = first.shape[1], layer.products()
        size = applied_by_pixel(first.abs(), values.abs()) * (1 + gamma(terms + 1, DOUBLE))
        error = (products.growth(terms + 1) + gamma(terms + 1, DOUBLE)) * size
        most = 1 + float(first.abs().max())
        underflow = (1 + values.abs().amax()) * products.lost(terms, most)
        read = applied_by_pixel(first, values)
        return read, error + underflow, Stored(after.abs(), 0 * after)
    # ω: the product W_val W_out is formed in float64 and cast once.
    heads = list(group.heads)
    value, output = (t[heads].to("cpu", DOUBLE).abs() for t in (layer.value, layer.output))
    formed = gamma(value.shape[-1] + 1, DOUBLE) * (value @ output)
    cast = 0.0 if layer.exact == DOUBLE else unit_roundoff(layer.exact)
    error = formed + cast * (after.abs() + formed) + smallest_subnormal(layer.exact)
    return values, torch.zeros_like(values), Stored(after.abs(), error)


def _at_targets(
    layer: Summands,
    group: Group,
    keys: Lattice,
    queries: Lattice,
    pixels: Tensor,
    pixel_error: Tensor,
) -> tuple[Tensor, Tensor]:
    """Equations (9), (15) and (16): ε at the targets, and |P|, what is seen there of moduli."""
    exact, has_sink = layer.exact, group.scores.has_sink
    targets = group.taps(queries).targets
    padding = group.scores.padding(keys, targets, layer.tolerance)
    mass_outside = group.scores.mass_outside(keys, targets, layer.tolerance)
    # Equation (9): the range of the pixels, each off by e; a sink is one more pixel, 0.
    flat = pixels.flatten(2)
    low, high = flat.amin(dim=-1), flat.amax(dim=-1)
    if has_sink:
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    size = pixels.abs() + pixel_error
    largest = size.flatten(2).amax(dim=-1).reshape(*low.shape, *(1 for _ in keys.shape))
    spread = (high - low).reshape(largest.shape) + 2 * pixel_error.amax()
    # N_64: P as computed in float64.
    moduli = padding(size)
    widths = [max(span.width for span in factor.spans()) for factor in padding.factors]
    rounding = head_rounding(
        moduli,
        largest,
        float(math.prod(widths)),
        widths,
        DOUBLE,
        score_error=group.score_error(keys, queries),
        rescaled=has_sink,
    )
    # Equation (15): its entries cast, and multiplied, in the accumulator.
    if exact != DOUBLE:
        rounding = rounding + _rounding_in(layer, widths, has_sink, moduli, rounding, largest)
    # Equation (16): τ (max v - min v + 2 max e) + N + P e.
    return mass_outside * spread + rounding + padding(pixel_error), moduli


def _rounding_in(
    layer: Summands,
    widths: Sequence[int],
    has_sink: bool,
    moduli: Tensor,
    rounding: Tensor,
    largest: Tensor,
) -> Tensor:
    """Equation (15): N - N_64, what the accumulator adds to a P that is computed in float64.

    Args:
        layer: whose accumulator it is.
        widths: terms of the sum of each axis.
        has_sink: whether a sink casts and multiplies once more.
        moduli: |P|.
        rounding: N_64.
        largest: R, the largest modulus of the pixels.
    """
    products = layer.products()
    relative = gamma(len(widths) + 2 * has_sink, layer.exact)
    for columns in widths:
        once = products.growth(columns)
        relative += once + relative * once
    underflow = 4 * products.lost(sum(widths) + 1, 1.0) * (1 + relative) * (1 + largest)
    return relative * (moduli + rounding) + underflow
