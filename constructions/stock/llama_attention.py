"""llama: a convolution as Llama's rotary attention, transformers' own class."""

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


def llama(
    conv: AnyConvolution,
    spatial_shape: Sequence[int],
    *,
    sharpness: float | None = None,
    causal: bool = False,
) -> Stock:
    """A convolution as transformers' `LlamaAttention`, one head for each tap.

    A channel of the tokens is 1; of it come constant queries and keys, which the module turns by
    their positions, and the bias: it needs none of its own, as Llama has none. An image of two or
    three dimensions is read row after row, with the zeros around it: a shift is then a number.
    Theorem: `rotations_select_shifts_without_resonance`, whose equation 22 is the size of the
    queries. Source: arXiv:2302.13971.

    Args:
        conv: in float32 or float64.
        spatial_shape: of the images.
        sharpness: gap in score of a target; None for one at which weights are one-hot.
        causal: whether the module has its causal mask, as in its model. The convolution, nn.Conv1d
            without padding, then ends at its query: the outputs are those of
            conv(F.pad(x, (dilation (K - 1), 0))). Without it there is no mask.

    Raises:
        ImportError: transformers does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border that the module cannot carry, or more tokens than its frequencies tell
            apart.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1, 2, 3))
    if causal:
        stencil = looking_back(stencil)
    canvas = Canvas.with_zeros(stencil, shape, at_the_end=causal)
    heads = per_tap(stencil, BiasTable())
    factors = dense_factors(heads, stencil.bias)
    count, _, inner = factors[0].shape
    width = count * math.ceil(max(stencil.in_channels + 1, stencil.out_channels) / count)
    library = required("transformers.models.llama.modeling_llama")
    config = library.LlamaConfig(
        hidden_size=width,
        num_attention_heads=count,
        num_key_value_heads=count,
        head_dim=head_dim_for(inner),
    )
    config._attn_implementation = "eager"
    module: Any = library.LlamaAttention(config, layer_idx=0).to(heads.dtype)
    rotary: Any = library.LlamaRotaryEmbedding(config)
    length = canvas.tokens.size
    rotations = Rotations(frequencies_of(rotary), heads.dtype, length, length - 1)
    scale = rotations.scale(sharpness, torch.float32)  # in which the module forms its softmax
    queries = rotations.queries(canvas.flat(canvas.shifts(heads)), scale, config.head_dim)
    key = rotations.key(config.head_dim)
    set_parameters(module, queries, key, factors, stencil.in_channels)
    module.to(stencil.matrices.device)
    rotary.to(stencil.matrices.device)
    channels = stencil.in_channels, stencil.out_channels
    return Rotated(module, rotary, canvas, channels, width, causal=causal)
