"""What transformer blocks that compute convolutions and ReLUs may err by.

Theorem: `a_transformer_block_is_convolution_and_relu`, equations (9) to (12).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from constructions.certificate.rounding import gamma
from constructions.formats import DOUBLE, OWN, smallest_normal
from constructions.geometry.view import PADDED, View
from constructions.sources import Stencil
from constructions.stock.pairs import Pairs
from constructions.stock.plan import Plan

LARGEST_CONTENT, LARGEST_SHIFT = 1 / 16, 1 / 20
"""Up to these t and m the heads of a block are one-hot, and the bound holds."""


def error_of_blocks(
    plans: Sequence[Plan],
    relus: Sequence[bool],
    pairs: Pairs,
    x: Tensor,
    norms: Sequence[nn.LayerNorm],
) -> Tensor:
    """A bound on |module - network| at every output, float64; inf where none holds.

    Args:
        plans: of the convolutions.
        relus: whether a ReLU is behind each.
        pairs: what tokens hold.
        x: the image, (N, D_0, *spatial), float64.
        norms: of the module, as many for each block.
    """
    dtype = plans[0].dtype
    stencils = [plan.stencil.to("cpu", DOUBLE) for plan in plans]
    content = _content(stencils, pairs, x, norms[0].eps)
    rounding = gamma(_roundings(plans, pairs, len(norms) // len(plans)), dtype)
    shift = _shift(pairs, content, len(norms), rounding, dtype)
    own = gamma(max(plan.heads.dimensions[0] * len(plan.heads) + 2 for plan in plans), DOUBLE)
    error, of_reference, image = torch.zeros_like(x), torch.zeros_like(x), x
    for stencil, relu in zip(stencils, relus, strict=True):
        moduli = replace(stencil, matrices=stencil.matrices.abs(), bias=_modulus(stencil.bias))
        size = _convolved(moduli, image.abs() + of_reference + error)
        ones = _convolved(replace(moduli, bias=None), torch.ones_like(image)) + 1
        carried = _convolved(replace(moduli, bias=None), error)
        error = carried + 2 * (content + rounding) * size + 2 * rounding * shift * ones
        error = (error + smallest_normal(dtype)) * OWN
        of_reference = _convolved(replace(moduli, bias=None), of_reference) + own * size
        image = _convolved(stencil, image)
        if relu:
            image = image.relu()
    if not (content <= LARGEST_CONTENT and shift <= LARGEST_SHIFT):
        return torch.full_like(error, math.inf)
    return error


def _content(stencils: Sequence[Stencil], pairs: Pairs, x: Tensor, epsilon: float) -> float:
    """t: the largest ‖c‖²/M² of the numbers c of a token, whatever its heads see, and Eε/M²."""
    d = pairs.places.dimension
    channels = x.abs().flatten(2).amax((0, 2)) if len(x) else x.new_zeros(x.shape[1])
    total = float(channels.square().sum()) + d + 1
    for stencil in stencils:
        sums = stencil.matrices.abs().sum(0)  # (G, D_in / G, D_out / G)
        grouped = channels.reshape(stencil.groups, 1, -1)
        channels = (grouped @ sums).flatten()
        if stencil.bias is not None:
            channels = channels + stencil.bias.abs()
        total += float(channels.square().sum())
    return (total * (1 + 2.0**-10) + epsilon * pairs.width) / pairs.magnitude**2


def _shift(pairs: Pairs, content: float, norms: int, rounding: float, dtype: torch.dtype) -> float:
    """m: what means, as they are rounded, add to all channels of a token."""
    others = math.sqrt(pairs.count * content)  # ‖c‖_1 / M at most
    of_means = gamma(pairs.width + 5 * norms + 4, dtype) * (1 + others)
    return 4 * pairs.magnitude / pairs.width * (of_means + 2 * norms * rounding * others)


def _roundings(plans: Sequence[Plan], pairs: Pairs, norms: int) -> int:
    """K: roundings that a number meets in a block."""
    widest = 0
    for plan in plans:
        heads, d_in, d_v = plan.factors()[0].shape
        widest = max(widest, 2 * d_in + (heads + 1) * d_v)
    return norms * (pairs.width + 20) + widest + 32


def _modulus(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.abs()


def _convolved(stencil: Stencil, image: Tensor) -> Tensor:
    """The convolution of an image, with its border and its bias."""
    y = stencil.convolve(View.of(image, stencil.geometry, stencil.border, PADDED).at_targets)
    if stencil.bias is None:
        return y
    return y + stencil.bias.reshape(-1, *(1 for _ in y.shape[2:]))
