"""Narrow heads: what a layer applies at each tap, if two factors of several heads make it.

The heads are made anew from the convolution, so that a wrong layer is judged by the right ones.
Numbers in brackets are equations on the page of `head_dimension_is_block_term_rank`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.certificate.rounding import gamma
from constructions.formats import DOUBLE, accumulator, smallest_subnormal
from constructions.heads import Kind
from constructions.heads.narrow import Narrowed, narrowed, roundoff_of
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import products_of
from constructions.sources import Stencil


@dataclass(frozen=True)
class Applied:
    """What narrow heads apply at each tap, beside the tap's own matrix.

    Args:
        moduli: at least |W| and Σ |what each head applies|, (N, 1, D_in, D_out).
        error: at least |Σ what each head applies - W|, likewise.
        heads: H.
        shifts: of the heads, (H, d), float64.
    """

    moduli: Tensor
    error: Tensor
    heads: int
    shifts: Tensor


def applied_of(stencil: Stencil, layer: MultiHeadSelfAttention) -> Applied | None:
    """What the heads of the construction apply, for a layer of narrow heads; None for another.

    Of the layer it reads the number of heads, their dimension, the dtype and the device.

    Args:
        stencil: of the convolution, in float64.
        layer: whose heads select.
    """
    if layer.kind is not Kind.SELECTING or stencil.groups > 1 or layer.groups > 1:
        return None
    value, output = layer.heads.value, layer.heads.output
    taps, _, inputs, outputs = stencil.matrices.shape
    most = min(inputs, outputs)
    width = most if value is None or output is None else value.shape[-1]
    if layer.num_heads == taps and width >= most:
        return None
    matrices, dtype = stencil.matrices.squeeze(1), layer.dtype
    found = narrowed(matrices, width, roundoff_of(dtype))
    shifts = stencil.geometry.offsets("cpu").to(DOUBLE)[found.taps]
    moduli, error = _products(found, matrices, dtype, layer.numbers.device.type)
    return Applied(moduli.unsqueeze(1), error.unsqueeze(1), len(found.taps), shifts)


def _products(
    found: Narrowed, matrices: Tensor, dtype: torch.dtype, device_type: str
) -> tuple[Tensor, Tensor]:
    """Moduli and error of what the factors make, stored in a format and multiplied by a device."""
    if found.value is None or found.output is None:
        return matrices.abs(), torch.zeros_like(matrices)  # one head a tap, with no product
    value, output = (factor.to(dtype).to(DOUBLE) for factor in (found.value, found.output))
    none = torch.zeros_like(matrices)
    products = none.index_add(0, found.taps, value @ output)
    moduli = none.index_add(0, found.taps, value.abs() @ output.abs())
    width, most = value.shape[-1], int(found.taps.bincount().max())
    exact = accumulator(dtype)
    formed = products_of("matmul", exact, device_type)
    # The layer's own products, and the sum of those at a tap; and these ones, in float64.
    growth = formed.growth(width) + (1 + formed.growth(width)) * gamma(most, exact)
    largest = float(value.abs().max() + output.abs().max())
    lost = most * (formed.lost(width, largest) + 2 * width * smallest_subnormal(DOUBLE))
    own = 1 + 4 * gamma(width + most + 4, DOUBLE)
    error = (products - matrices).abs() + (growth + 2 * gamma(width + most, DOUBLE)) * moduli
    error = (error + lost) * own
    return (moduli * (1 + growth) + error) * own, error
