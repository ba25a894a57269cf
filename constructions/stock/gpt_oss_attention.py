"""gpt_oss: a convolution as gpt-oss's attention, transformers' own class; its sinks pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from constructions.encodings import BiasTable
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, dense_factors, looking_back, stencil_for
from constructions.stock.libraries import required
from constructions.stock.rotations import (
    Rotated,
    Rotations,
    frequencies_of,
    head_dim_for,
    set_parameters,
)
from constructions.stock.stock import Stock


def gpt_oss(
    conv: AnyConvolution,
    spatial_shape: Sequence[int],
    *,
    sharpness: float | None = None,
    causal: bool = False,
) -> Stock:
    """A convolution as transformers' `GptOssAttention`, one head for each tap.

    There is one token a pixel. Each head has a learned sink, a logit whose weight is dropped: half
    of the gap below the target's, it pads with zeros. Queries and keys are those of `llama`, the
    bias is the projection's own. Rotations are plain ones, of rope_type "default". Theorems:
    `borders_are_limits_of_attention`, `rotations_select_shifts_without_resonance`. Source:
    arXiv:2508.10925.

    Args:
        conv: of one dimension, not transposed, in float32 or float64, with no more outputs than
            pixels.
        spatial_shape: of the images, (length,).
        sharpness: gap in score between a target and other pixels, twice that of the sink; None for
            one at which weights are one-hot.
        causal: as of `llama`; here the sinks are the zeros before the first pixel.

    Raises:
        ImportError: transformers does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border that the module cannot carry, or more tokens than its frequencies tell
            apart.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1,))
    if causal:
        stencil = looking_back(stencil)
    canvas = Canvas.of_pixels(stencil, shape, "zeros")
    heads = per_tap(stencil, BiasTable())
    factors = dense_factors(heads)
    count, _, inner = factors[0].shape
    width = count * math.ceil(max(stencil.in_channels + 1, stencil.out_channels) / count)
    library = required("transformers.models.gpt_oss.modeling_gpt_oss")
    config = library.GptOssConfig(
        hidden_size=width,
        num_attention_heads=count,
        num_key_value_heads=count,
        head_dim=head_dim_for(inner),
        num_hidden_layers=2,
        layer_types=["full_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
    )
    config._attn_implementation = "eager"
    module: Any = library.GptOssAttention(config, layer_idx=0).to(heads.dtype)
    rotary: Any = library.GptOssRotaryEmbedding(config)
    shifts = canvas.flat(canvas.shifts(heads))
    length = canvas.tokens.size
    reach = length - 1 + int(shifts.abs().max())
    rotations = Rotations(frequencies_of(rotary), heads.dtype, length, reach)
    scale = rotations.scale(sharpness, heads.dtype, sink=True)
    queries = rotations.queries(shifts, scale, config.head_dim)
    key = rotations.key(config.head_dim)
    set_parameters(module, queries, key, factors, stencil.in_channels)
    with torch.no_grad():
        # A target scores s F, all its cosines 1.
        module.sinks.fill_(scale * (len(rotations.frequencies) - rotations.drop / 2))
        if stencil.bias is not None:
            module.o_proj.bias[: stencil.out_channels] = stencil.bias
    channels = stencil.in_channels, stencil.out_channels
    module.to(stencil.matrices.device)
    rotary.to(stencil.matrices.device)
    return Rotated(module, rotary, canvas, channels, width, causal=causal)
