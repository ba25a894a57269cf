"""swin: a convolution as Swin's window attention, timm's own class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from constructions.encodings import BiasTable
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, OnCanvas, dense_factors, gap_for, stencil_for
from constructions.stock.libraries import required
from constructions.stock.stock import Stock
from constructions.stock.tables import OF_TABLES, border_of, fill, window_of


def swin(
    conv: AnyConvolution, spatial_shape: Sequence[int], *, sharpness: float | None = None
) -> Stock:
    """A convolution as timm's `WindowAttention`, one head for each tap.

    The window is the image, with the zeros around it as tokens; the table of relative positions has
    the entry 0 at the shift of each head. Replicate and circular borders are tables of the image
    alone: minus the distance from the shift, and 0 wherever it is the shift but for a whole image;
    so is a reflected border of one pixel.
    Scores are stored, not computed: there is no largest size. Theorems:
    `tables_select_the_shifts_they_tell_apart`, `borders_are_limits_of_attention`. Source:
    arXiv:2103.14030.

    Args:
        conv: of one dimension or two, in float32 or float64.
        spatial_shape: of the images.
        sharpness: gap in score of a target; None for one at which weights are one-hot.

    Raises:
        ImportError: timm does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border that the module cannot carry.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1, 2))
    border = border_of(stencil)
    if border in OF_TABLES:
        canvas = Canvas.of_pixels(stencil, shape, border)
    else:
        canvas = Canvas.with_zeros(stencil, shape)
    heads = per_tap(stencil, BiasTable())
    value, output = dense_factors(heads)
    count, channels, inner = value.shape
    width = max(channels, stencil.out_channels)
    module: Any = required("timm.models.swin_transformer").WindowAttention(
        width, count, head_dim=inner, window_size=window_of(canvas), dtype=heads.dtype
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.qkv.weight[2 * count * inner :, :channels] = value.transpose(1, 2).flatten(0, 1)
        module.proj.weight[: stencil.out_channels] = output.flatten(0, 1).T
        if stencil.bias is not None:
            module.proj.bias[: stencil.out_channels] = stencil.bias
    gap = gap_for(heads.dtype, sharpness)
    table = module.relative_position_bias_table
    fill(table, canvas.shifts(heads), window_of(canvas), border, gap)
    module.to(stencil.matrices.device)
    return OnCanvas(module, canvas, (channels, stencil.out_channels), width)
