"""t5: a convolution of one dimension as T5's attention, transformers' own class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from constructions.encodings import BiasTable, T5Buckets
from constructions.geometry.lattice import Lattice
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, OnCanvas, dense_factors, gap_for, stencil_for
from constructions.stock.libraries import required
from constructions.stock.stock import Stock
from constructions.stock.tables import scores


def t5(
    conv: AnyConvolution,
    spatial_shape: Sequence[int],
    *,
    sharpness: float | None = None,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Stock:
    """A convolution as transformers' `T5Attention`, bidirectional, one head for each tap.

    The query is the token in the middle of the taps, so that 15 of them, within 7 of it, have
    buckets of their own with T5's numbers. For a replicate border tokens are the pixels alone, and
    entries fall with the distance from the shift. The module has no biases: a channel of the
    tokens is 1, and the first head hands it on. Theorems:
    `tables_select_the_shifts_they_tell_apart`, `borders_are_limits_of_attention`. Source:
    arXiv:1910.10683.

    Args:
        conv: of one dimension, in float32 or float64.
        spatial_shape: of the images, (length,).
        sharpness: gap in score of a target; None for one at which weights are one-hot.
        num_buckets: of the module's configuration.
        max_distance: likewise.

    Raises:
        ImportError: transformers does not load.
        TypeError: conv is no convolution of torch's own, or a number of buckets no integer.
        ValueError: a border that the module cannot carry, or taps that share a bucket.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1,))
    border = stencil.border.name if stencil.geometry.can_miss else "zeros"
    if border == "replicate":
        canvas = Canvas.of_pixels(stencil, shape, border)
    else:
        canvas = Canvas.with_zeros(stencil, shape)
    heads = per_tap(stencil, BiasTable())
    shifts = canvas.shifts(heads)
    encoding = T5Buckets(num_buckets, max_distance)
    # With replicate borders a head looks at every displacement from its shift to 0, at the edge.
    far = int(shifts.abs().max())
    near = torch.arange(-far, far + 1)[:, None] if border == "replicate" else shifts
    encoding.gap(near.double(), Lattice.box(canvas.shape))  # raises where buckets are shared
    value, output = dense_factors(heads, stencil.bias)
    count, used, inner = value.shape
    channels = stencil.in_channels, stencil.out_channels
    library = required("transformers.models.t5.modeling_t5")
    config = required("transformers.models.t5.configuration_t5").T5Config(
        d_model=max(used, channels[1]),
        d_kv=inner,
        num_heads=count,
        dropout_rate=0.0,
        relative_attention_num_buckets=num_buckets,
        relative_attention_max_distance=max_distance,
    )
    config._attn_implementation = "eager"
    module: Any = library.T5Attention(config, has_relative_attention_bias=True).to(heads.dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.v.weight[:, :used] = value.transpose(1, 2).flatten(0, 1)
        module.o.weight[: channels[1]] = output.flatten(0, 1).T
        gap = gap_for(heads.dtype, sharpness)
        table = module.relative_attention_bias.weight.fill_(-gap * (2 * far + 1))
        table[encoding.buckets(near[:, 0])] = scores(near, shifts, border, shape, gap).to(table)
    module.to(stencil.matrices.device)
    constant = stencil.bias is not None
    return OnCanvas(module, canvas, channels, config.d_model, constant=constant)
