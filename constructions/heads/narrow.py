"""Narrow heads: a head dimension below the channels', a tap shared by as many heads as it takes.

Theorem: `head_dimension_is_block_term_rank`, whose equations numbers in brackets are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.encodings import Encoding
from constructions.formats import accumulator, unit_roundoff
from constructions.heads.heads import Heads
from constructions.heads.per_tap import factored, identities
from constructions.heads.skeletons import rank_of, skeleton
from constructions.sources import AnyConvolution, Stencil, stencil_of


@dataclass(frozen=True)
class Narrowed:
    """Heads of one head dimension, a tap to each.

    Args:
        taps: number of the tap of each head, (H,), int64.
        value: W_val, (H, D_in, D_h), float64; None for the identity.
        output: W_out, (H, D_h, D_out), likewise.
    """

    taps: Tensor
    value: Tensor | None
    output: Tensor | None


def narrowed(matrices: Tensor, head_dim: int, roundoff: float) -> Narrowed:
    """As many heads for each tap as its rank takes: Σ ⌈rank W_δ / D_h⌉, but at least one: (2).

    Where W_δ has full rank, its rows or columns are dealt out and nothing is rounded.

    Args:
        matrices: W_δ, (N, D_in, D_out), finite.
        head_dim: D_h.
        roundoff: of the format in which the layer adds, by which ranks are told.
    """
    wide = matrices.detach().to("cpu", torch.float64)
    inputs, outputs = wide.shape[1:]
    live = [tap for tap, matrix in enumerate(wide) if bool(matrix.count_nonzero())] or [0]
    if head_dim >= min(inputs, outputs):
        value, output = factored(wide[live].unsqueeze(1))
        one = None if value is None else value.squeeze(1)
        return Narrowed(torch.tensor(live), one, None if output is None else output.squeeze(1))
    taps, values, results = [], [], []
    for tap in live:
        first, second = skeleton(wide[tap], roundoff)
        for start in range(0, len(second), head_dim):
            part = slice(start, start + head_dim)
            missing = head_dim - len(second[part])
            taps.append(tap)
            values.append(torch.cat([first[:, part], wide.new_zeros(inputs, missing)], dim=1))
            results.append(torch.cat([second[part], wide.new_zeros(missing, outputs)]))
    return Narrowed(torch.tensor(taps), torch.stack(values), torch.stack(results))


def narrow(stencil: Stencil, encoding: Encoding, head_dim: int) -> Heads:
    """Heads of dimension D_h that look at one tap each, several at a tap of higher rank.

    Theorem: `head_dimension_is_block_term_rank`.

    Args:
        stencil: of a convolution without groups.
        encoding: one that selects shifts.
        head_dim: D_h.

    Raises:
        TypeError: the encoding returns something else than features and names.
        ValueError: groups; numbers that are not there or not finite; or as for a head for each tap.
    """
    matrices = stencil.matrices
    if stencil.groups > 1:
        raise ValueError(
            f"head_dim is {head_dim} for a convolution of {stencil.groups} groups; accepted: None, "
            "since its heads have a block for each group"
        )
    if matrices.is_meta or not bool(matrices.isfinite().all()):
        where = "on the meta device" if matrices.is_meta else "infinite or NaN"
        raise ValueError(
            f"head_dim is {head_dim}, and the weights of conv are {where}; accepted: finite "
            "numbers, whose ranks say how many heads there are"
        )
    found = narrowed(matrices.squeeze(1), head_dim, roundoff_of(matrices.dtype))
    shifts = stencil.geometry.offsets("cpu").to(torch.float64)[found.taps]
    key = identities(encoding, shifts, stencil)

    def stored(factor: Tensor | None) -> Tensor | None:
        return None if factor is None else factor.unsqueeze(1).to(matrices)

    return Heads(encoding, shifts, key, stored(found.value), stored(found.output))


def roundoff_of(dtype: torch.dtype) -> float:
    """The roundoff by which ranks are told of numbers of a format: that in which a layer adds."""
    return unit_roundoff(accumulator(dtype))


# How many heads -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NarrowCount:
    """How many heads of one head dimension a convolution takes.

    Args:
        one_hot: heads that look at one tap each: exactly so many, with outputs that are bounded.
        lower: no fewer heads of positions alone do, whatever they look at.
        upper: so many do, with all logits finite, on padded keys or a circle.
        almost_every: no fewer heads do for almost every kernel of this shape, by their parameters.
    """

    one_hot: int
    lower: int
    upper: int
    almost_every: int


def narrow_count(conv: AnyConvolution, head_dim: int) -> NarrowCount:
    """Bounds on the number of heads of dimension D_h, from ranks alone: (1), (2), (5), (6).

    The least number lies between `lower` and `upper`; which it is, is not said. Theorem:
    `head_dimension_is_block_term_rank`.

    Args:
        conv: a convolution of torch's, without groups.
        head_dim: D_h.

    Raises:
        TypeError: conv is no convolution, or head_dim no integer.
        ValueError: head_dim is not positive, or conv has groups.
    """
    check_head_dim(head_dim)
    stencil = stencil_of(conv)
    return bounds(stencil, head_dim, roundoff_of(stencil.matrices.dtype))


def bounds(stencil: Stencil, head_dim: int, roundoff: float) -> NarrowCount:
    """The bounds of `narrow_count`, by ranks that a roundoff tells.

    Raises:
        ValueError: the stencil has groups.
    """
    if stencil.groups > 1:
        raise ValueError(f"conv has {stencil.groups} groups; accepted: one")
    kernel = stencil.matrices.detach().squeeze(1).to("cpu", torch.float64)
    taps, inputs, outputs = kernel.shape
    most = min(inputs, outputs)
    width = min(head_dim, most)
    one_hot = sum(math.ceil(rank_of(matrix, roundoff) / width) for matrix in kernel)
    r, r_in, r_out = (rank_of(kernel.movedim(axis, 0).flatten(1), roundoff) for axis in range(3))
    whole = math.ceil(most / width)
    return NarrowCount(
        one_hot=one_hot,
        lower=max(r, math.ceil(r_in / width), math.ceil(r_out / width)),
        upper=min(one_hot, r * whole) + whole if r else 0,
        almost_every=math.ceil(
            taps * inputs * outputs / (taps - 1 + width * (inputs + outputs - width))
        ),
    )


def check_head_dim(head_dim: object) -> None:
    """Raise unless it is a positive integer."""
    if isinstance(head_dim, bool) or not isinstance(head_dim, int):
        raise TypeError(f"head_dim is a {type(head_dim).__name__}; accepted: an integer")
    if head_dim < 1:
        raise ValueError(f"head_dim is {head_dim}; accepted: at least 1")
