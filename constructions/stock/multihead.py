"""Convolutions on `torch.nn.MultiheadAttention`, unmodified."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.layer.inputs import is_autocast
from constructions.sources import AnyConvolution
from constructions.stock.plan import Layout, Plan, set_attention
from constructions.stock.positions import head_dimension
from constructions.stock.stock import Stock


def multihead_attention(
    conv: AnyConvolution,
    spatial_shape: Sequence[int] | int,
    *,
    causal: bool = False,
    bias: bool = True,
    need_weights: bool = False,
    output_size: Sequence[int] | None = None,
) -> Stock:
    """An unmodified `torch.nn.MultiheadAttention` that computes a convolution, exactly.

    Theorem: `stock_attention_is_convolution`; with `causal`,
    `causal_convolution_is_causal_attention`. A token is [x, p, ‖p‖², 1, 0 ...], x the channels of a
    pixel and p where it stands. Zero padding is torch's zero key (`add_zero_attn`), replicate
    padding needs none. Where outputs stand on the pixels queries, keys and values are the same
    tokens; else, as for strides and transposed convolutions, the module is called as
    cross-attention, with a token for each output that holds its position alone.

    Args:
        conv: any `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d` in float32 or float64; left as it
            is.
        spatial_shape: of its images, in pixels.
        causal: an `nn.Conv1d` without padding, of which there is an output for each token (for each
            step of the stride), that of `conv(F.pad(x, (dilation * (K - 1), 0)))`. The module runs
            with its causal mask, and zeros beyond the left edge are a token of zeros before the
            first one.
        bias: as the module takes it. Without bias parameters one head more looks at the first
            pixel and applies the convolution's bias to the constant in its token.
        need_weights: which of its two code paths the module is asked for.
        output_size: of a transposed convolution, as torch takes it.

    Returns:
        The module with its adapter, called as the convolution is.

    Raises:
        TypeError: conv is not a convolution of torch's own.
        ValueError: a dtype, a border or an image that tokens do not carry, or an image so large
            that its scores would be rounded.
    """
    plan = Plan.of(conv, spatial_shape, causal=causal, output_size=output_size)
    value, _ = plan.factors()
    heads, d_in, d_v = value.shape
    d_out = plan.heads.dimensions[1]
    extra = not bias and plan.bias is not None
    positions = plan.places.dimension + 2
    heads += extra
    needed = max(d_in + positions, d_out)
    least = max(positions, d_v, -(-needed // heads))
    d_h = head_dimension(plan.places, least, plan.dtype)
    width = heads * d_h
    module = nn.MultiheadAttention(
        width,
        heads,
        bias=bias,
        add_zero_attn=plan.has_sink and not causal,
        batch_first=True,
        device=plan.device,
        dtype=plan.dtype,
    )
    one = torch.eye(width, dtype=torch.float64)
    layout = Layout(one[:d_in], one[d_in : d_in + positions], one[:, :d_out])
    set_attention(module, plan, layout)
    return _MultiheadAttention(module, plan, causal=causal, need_weights=need_weights)


class _MultiheadAttention(Stock):
    """Stock attention on [x, p, ‖p‖², 1, 0 ...]."""

    keys: Tensor
    queries: Tensor

    def __init__(
        self, module: nn.MultiheadAttention, plan: Plan, *, causal: bool, need_weights: bool
    ) -> None:
        places = plan.places
        super().__init__(module, places.keys.shape, plan.heads.dimensions[0])
        self.dtype = plan.dtype
        self.out_channels = plan.heads.dimensions[1]
        self.output_shape = places.queries.shape
        self.width = module.embed_dim
        self.causal, self.need_weights = causal, need_weights
        self.has_zero_token = causal and plan.has_sink
        self.is_self_attention = causal or places.queries == places.keys
        self.stride = places.queries.spacing if causal else None
        for name, lattice in (("keys", places.keys), ("queries", places.queries)):
            numbers = places.features(lattice).to(plan.device, plan.dtype)
            self.register_buffer(name, numbers, persistent=False)

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """Query, key, value, padding mask, need_weights, mask, average_attn_weights, is_causal."""
        check_format(x, self.dtype)
        keys = self._token(x.flatten(2).mT, self.keys)
        if self.has_zero_token:
            keys = F.pad(keys, (0, 0, 1, 0))
        mask = None
        if self.causal:
            count = keys.shape[1]
            mask = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
        queries = keys
        if not self.is_self_attention:
            nothing = x.new_zeros(len(x), len(self.queries), self.in_channels)
            queries = self._token(nothing, self.queries)
        return queries, keys, keys, None, self.need_weights, mask, True, self.causal

    def _token(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """[x, p, ‖p‖², 1, 0 ...] of every point."""
        parts = [pixels, positions.expand(len(pixels), -1, -1)]
        used = sum(part.shape[-1] for part in parts)
        return F.pad(torch.cat(parts, dim=-1), (0, self.width - used))

    def image(self, y: object) -> Tensor:
        """The first D_out channels of each output's token."""
        assert isinstance(y, tuple)
        tokens: Tensor = y[0]
        if self.has_zero_token:
            tokens = tokens[:, 1:]
        if self.stride is not None:
            tokens = tokens[:, :: self.stride[0]]
        channels = tokens[..., : self.out_channels].mT
        return channels.reshape(len(tokens), self.out_channels, *self.output_shape)


def check_format(x: Tensor, dtype: torch.dtype) -> None:
    """Raise a ValueError unless an image has the format that a module's scores were made for."""
    if x.dtype != dtype:
        raise ValueError(
            f"input has dtype {x.dtype}; accepted: {dtype}, for which the scores of this module "
            "were made: make it anew from the convolution in another"
        )
    if is_autocast(x.device.type):
        wanted = torch.get_autocast_dtype(x.device.type)
        raise ValueError(
            f"input is met by autocast to {wanted}, in which the scores of this module do not tell "
            "pixels apart; accepted: a call within torch.autocast(..., enabled=False)"
        )
