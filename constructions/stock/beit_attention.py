"""beit: a convolution as BEiT's attention, timm's own class; its class token pads with zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.encodings import BiasTable
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, OnCanvas, dense_factors, gap_for, stencil_for
from constructions.stock.libraries import required
from constructions.stock.stock import Stock
from constructions.stock.tables import OF_TABLES, border_of, fill, window_of

TO_CLASS_TOKEN = -2
"""The entry of the table for the class token as a key, of every other token."""


class BEiT(OnCanvas):
    """timm's attention of BEiT, with its class token first, of zeros."""

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """The class token and one token a pixel, (N, 1 + pixels, width)."""
        return (F.pad(self.placed(x), (0, 0, 1, 0)),)

    def image(self, y: object) -> Tensor:
        """The outputs, (N, D_out, *output), without the class token's."""
        assert isinstance(y, Tensor)
        return super().image(y[:, 1:])


def beit(
    conv: AnyConvolution, spatial_shape: Sequence[int], *, sharpness: float | None = None
) -> Stock:
    """A convolution as timm's attention of BEiT, one head for each tap.

    The window is the image. The class token is a key of zeros, and the table's entry for it half
    of the gap below a target's: a sink, which pads with zeros. For other borders the table is
    that of `swin`, and the entry below all others that matter. Theorems:
    `tables_select_the_shifts_they_tell_apart`, `borders_are_limits_of_attention`. Source:
    arXiv:2106.08254.

    Args:
        conv: of one dimension or two, not transposed, in float32 or float64, with no more outputs
            than pixels.
        spatial_shape: of the images.
        sharpness: gap in score between a target and other pixels, twice that of the class token;
            None for one at which weights are one-hot.

    Raises:
        ImportError: timm does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border or a size that the module cannot carry.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1, 2))
    border = border_of(stencil)
    canvas = Canvas.of_pixels(stencil, shape, border if border in OF_TABLES else "zeros")
    heads = per_tap(stencil, BiasTable())
    value, output = dense_factors(heads)
    count, _, inner = value.shape
    channels = stencil.in_channels, stencil.out_channels
    # The class takes the width of the tokens for that of all heads together.
    inside = max(inner, *(math.ceil(c / count) for c in channels))
    width = count * inside
    module: Any = required("timm.models.beit").Attention(
        width, count, window_size=window_of(canvas), dtype=heads.dtype
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        values = module.qkv.weight[2 * width :].view(count, inside, width)
        values[:, :inner, : channels[0]] = value.transpose(1, 2)
        outputs = module.proj.weight.view(width, count, inside)
        outputs[: channels[1], :, :inner] = output.permute(2, 0, 1)
        if stencil.bias is not None:
            module.proj.bias[: channels[1]] = stencil.bias
        gap = gap_for(heads.dtype, sharpness, sink=True)
        table = module.relative_position_bias_table
        shifts = canvas.shifts(heads)
        fill(table, shifts, window_of(canvas), border, gap)
        # The score of the pixel that a head is to see: by its distance, or 1 for each axis.
        farthest = max(len(shape), int(shifts.abs().sum(dim=1).max()))
        table[TO_CLASS_TOKEN] = -gap * (farthest + 1 if border in OF_TABLES else 0.5)
    module.to(stencil.matrices.device)
    return BEiT(module, canvas, channels, width)
