"""gpsa: a convolution as ConViT's gated positional self-attention, timm's own class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from constructions.encodings import Quadratic
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, OnCanvas, dense_factors, gap_for, stencil_for
from constructions.stock.libraries import required
from constructions.stock.stock import Stock

THEOREM = "gated_heads_start_as_convolution_for_odd_sides"

OPEN = 1024.0
"""A gate whose sigmoid is 1 in every format: its exponential, e^-1024, is 0."""


def gpsa(
    conv: AnyConvolution, spatial_shape: Sequence[int], *, sharpness: float | None = None
) -> Stock:
    """A convolution as timm's `GPSA`, one head for each tap.

    A head's position scores are w·(δ_x, δ_y, |δ|²), key minus query; with w = α (2Δ_x, 2Δ_y, -1)
    they are -α|δ - Δ|² up to a constant, the quadratic encoding. Theorem:
    `gated_heads_start_as_convolution_for_odd_sides`. Source: arXiv:2103.10697.

    The class takes a grid for square, whatever it is. Zero padding, and images that are not
    square, are zeros among the tokens; replicate padding is made by the scores, on square images.

    Args:
        conv: of two dimensions, in float32 or float64.
        spatial_shape: of the images.
        sharpness: α, timm's locality strength; None for one at which weights are one-hot.

    Raises:
        ImportError: timm does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border or a size that the module cannot carry.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (2,))
    natural = stencil.border.name == "replicate" and stencil.geometry.can_miss
    if natural:
        canvas = Canvas.of_pixels(stencil, shape, "replicate")
        if len(set(canvas.shape)) > 1:
            raise ValueError(
                f"spatial_shape is {shape}; accepted: a square, or another padding than replicate, "
                "since the module takes its tokens for a square, whose edge the nearest token "
                f"replicates (theorem {THEOREM})"
            )
    else:
        canvas = Canvas.with_zeros(stencil, shape).squared()
    heads = per_tap(stencil, Quadratic())
    shifts = canvas.shifts(heads)
    dtype = heads.dtype
    gap = gap_for(dtype, sharpness)
    _check_scores(shifts, canvas.shape[0], dtype)
    value, output = dense_factors(heads)
    count, _, inner = value.shape
    channels = stencil.in_channels, stencil.out_channels
    width = max(inner, *(math.ceil(c / count) for c in channels))
    module: Any = required("timm.models.convit").GPSA(count * width, count, dtype=dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.gating_param.fill_(OPEN)
        module.pos_proj.weight[:, :2] = 2 * gap * shifts.flip(1)  # the column comes first
        module.pos_proj.weight[:, 2] = -gap
        values = module.v.weight.view(count, width, count * width)
        values[:, :inner, : channels[0]] = value.transpose(1, 2)
        outputs = module.proj.weight.view(count * width, count, width)
        outputs[: channels[1], :, :inner] = output.permute(2, 0, 1)
        if stencil.bias is not None:
            module.proj.bias[: channels[1]] = stencil.bias
    module.to(stencil.matrices.device)
    return OnCanvas(module, canvas, channels, count * width)


def _check_scores(shifts: Tensor, side: int, dtype: torch.dtype) -> None:
    """Raise a ValueError where scores, integers times the sharpness, are rounded."""
    far = int(shifts.abs().sum(dim=1).max())
    largest = round(2 / torch.finfo(dtype).eps)
    score = 2 * (side - 1) ** 2 + 2 * far * (side - 1)
    if score > largest:
        raise ValueError(
            f"spatial_shape gives a grid of {side} x {side} tokens, whose scores reach {score} "
            f"times the sharpness; accepted: up to {largest}, to which {dtype} has every integer "
            f"(theorem {THEOREM})"
        )
