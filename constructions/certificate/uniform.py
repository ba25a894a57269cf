"""The uniform head of an average pooling: all keys of its window alike, at any sharpness.

Over the reals it is the pooling: nothing leaks, and P is its own limit. What rounds are its weights
1 / m and the stored quotient of window and divisor: equation (16) on the page of
`layer_error_is_certified`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constructions.certificate.head_errors import HeadErrors, applied_by, largest_moduli
from constructions.certificate.rounding import gamma, head_rounding
from constructions.encodings import Window
from constructions.formats import DOUBLE, accumulator, smallest_subnormal, unit_roundoff
from constructions.geometry.view import View
from constructions.geometry.window import WindowGeometry
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.soft_padding import SoftPadding
from constructions.layer.structure import products
from constructions.sources.stencil import Stencil


def window_means(view: View, geometry: WindowGeometry) -> Tensor:
    """What the head sees: the mean over each window's keys, (N, 1, *targets.shape)."""
    return _uniform(view, geometry)(view.values)


def uniform_errors(
    stencil: Stencil,
    view: View,
    geometry: WindowGeometry,
    layer: MultiHeadSelfAttention,
    dtype: torch.dtype,
) -> HeadErrors:
    """What the head does to this input; of the layer its dtype, evaluation and stored quotient.

    Args:
        stencil: of the pooling, in float64.
        view: the input.
        geometry: of the pooling.
        layer: an attention layer.
        dtype: of the input, which the layer takes as it is.
    """
    keys, values = view.keys, view.values
    padding = _uniform(view, geometry)
    seen, largest = padding(values.abs()), largest_moduli(values)
    # No window holds more keys than there are; that of a pooling to one pixel is larger than any.
    sharing = math.prod(min(w, n) for w, n in zip(geometry.window, keys.shape, strict=True))
    mass = sharing - 1.0  # keys beside one, all as heavy
    # (16): the quotient is stored in float64, and cast to the accumulator where it is applied; a
    # small one to a subnormal number.
    quotient = stencil.matrices.item()
    exact = accumulator(dtype)
    stored = products(layer.heads, DOUBLE).detach().cpu().max().item()
    kept = 2 * unit_roundoff(DOUBLE) * abs(quotient) + smallest_subnormal(DOUBLE)
    cast = 0.0
    if exact != DOUBLE:
        cast = unit_roundoff(exact) * abs(quotient) + smallest_subnormal(exact)
    relative = (min(abs(stored - quotient), kept) + cast) / abs(quotient)
    if abs(quotient) + kept + cast > torch.finfo(exact).max:
        relative = math.inf
    # (16): the reference adds the window up and divides.
    added = gamma(sharing + 1, DOUBLE)
    window_sums = (mass + 1) * (1 + added) * seen
    reference = (added * seen).masked_fill_(window_sums > torch.finfo(DOUBLE).max, math.inf)
    sizes = keys.shape if layer.evaluation == "factored" else (keys.size,)
    rounding = head_rounding(seen, largest, mass, sizes, dtype, products=applied_by(layer, dtype))
    return HeadErrors(
        deviation=torch.zeros_like(seen),
        signed=True,
        evaluated=head_rounding(seen, largest, mass, keys.shape, DOUBLE) + reference,
        rounding=rounding + relative * seen,
    )


def _uniform(view: View, geometry: WindowGeometry) -> SoftPadding:
    """The operator of the one head of a pooling, the same at any sharpness."""
    parts = Window(geometry.window).axes(geometry.dimension)
    assert parts is not None
    return SoftPadding.of(
        parts, 1.0, view.keys, view.targets, gap=1.0, sink_height=None, dtype=DOUBLE
    )
