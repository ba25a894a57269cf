"""Plans: what the parameters of stock attention are made from, and how they are set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.encodings import ENCODINGS
from constructions.geometry.geometry import Geometry
from constructions.heads import Heads, heads_of
from constructions.sources import CONVOLUTIONS, AnyConvolution, stencil_of
from constructions.sources.stencil import Stencil
from constructions.stock.positions import DTYPES, Places, shape_of, sharpness_for


@dataclass(frozen=True)
class Plan:
    """What the parameters of stock attention are made from.

    Args:
        stencil: of the convolution, for its bias and for bounds.
        heads: of the convolution, from which alone the attention is made.
        places: where keys and queries stand, and the shifts.
        has_sink: whether a target can miss the keys, and should then see zeros.
        sharpness: α, of the module's scores.
    """

    stencil: Stencil
    heads: Heads
    places: Places
    has_sink: bool
    sharpness: float

    @classmethod
    def of(
        cls,
        conv: AnyConvolution,
        spatial_shape: Sequence[int] | int,
        *,
        causal: bool = False,
        output_size: Sequence[int] | None = None,
    ) -> Plan:
        """Check a convolution and the size of its images, and read both.

        Raises:
            TypeError: conv is not a convolution of torch's own.
            ValueError: a format, a border or a size that one token a pixel does not carry.
        """
        stencil = _checked_stencil(conv)
        geometry = stencil.geometry
        shape = shape_of("spatial_shape", spatial_shape, geometry.dimension)
        if causal:
            geometry = _causal(conv, geometry)
        if output_size is not None:
            geometry = geometry.with_output_size(shape, output_size)
        if geometry.can_miss and stencil.border.name not in ("zeros", "replicate"):
            raise ValueError(
                f"conv has padding_mode {stencil.border.name!r}; accepted: 'zeros' and "
                "'replicate', which attention makes of one token a pixel, or no padding: pad the "
                "image before the module"
            )
        pixels, _, _, queries = geometry.lattices(shape)
        stencil = replace(stencil, geometry=geometry)
        heads = heads_of(stencil, ENCODINGS["quadratic"])
        has_sink = geometry.can_miss and stencil.border.name == "zeros"
        places = Places(pixels, queries, heads.shifts)
        return cls(stencil, heads, places, has_sink, sharpness_for(heads.dtype))

    @property
    def bias(self) -> Tensor | None:
        """(D_out,) or None."""
        return self.stencil.bias

    @property
    def dtype(self) -> torch.dtype:
        """Of the convolution."""
        return self.heads.dtype

    @property
    def device(self) -> torch.device:
        """Of the convolution."""
        return self.heads.device

    @property
    def height(self) -> float:
        """The score of a target: half of α above that of a key of zeros, if there is one."""
        return self.sharpness / 2 if self.has_sink else 0.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """W_val, (H, D_in, D_v), and W_out, (H, D_v, D_out), float64, groups as blocks."""

        def whole(blocks: Tensor) -> Tensor:
            _, groups, rows, columns = blocks.shape
            spread = blocks.new_zeros(len(blocks), groups, rows, groups, columns)
            for g in range(groups):
                spread[:, g, :, g] = blocks[:, g]
            return spread.reshape(len(blocks), groups * rows, groups * columns)

        value, output = (m.cpu().double() for m in self.heads.matrices())
        return whole(value), whole(output)


@dataclass(frozen=True)
class Layout:
    """What the channels of a token mean, as linear maps of float64.

    Args:
        channels: reads the pixel, (D_in, E).
        features: reads (p, ‖p‖², 1), (d + 2, E).
        writing: where outputs go, (E, D_out).
        nowhere: reads 1 from a token of no pixel, (E,); None where there is none, or a zero one.
    """

    channels: Tensor
    features: Tensor
    writing: Tensor
    nowhere: Tensor | None = None


def set_attention(attention: nn.MultiheadAttention, plan: Plan, layout: Layout) -> None:
    """Set the parameters so that the attention is the convolution; one head more carries a bias.

    Head h names the target q + Δ_h by a linear map of the query's features, and applies the matrix
    of its tap. Without bias parameters, or beside a token of no pixel, which attends to itself and
    should see nothing, the last head looks at the first key, whatever the query, and applies the
    bias to its constant.
    """
    d_h = attention.head_dim
    features = layout.features
    names = plan.places.names(plan.sharpness, plan.height)
    by_head = attention.in_proj_bias is None or layout.nowhere is not None
    value, output = plan.factors()
    values = value.mT @ layout.channels  # (H, D_v, E)
    outputs = layout.writing @ output.mT  # (H, E, D_v)
    if by_head and plan.bias is not None:
        first = plan.places.first(plan.sharpness, plan.height)
        names = torch.cat([names, first.unsqueeze(0)])
        d_v = values.shape[1]
        one = torch.zeros(1, d_v, values.shape[2], dtype=torch.float64)
        one[0, 0] = features[-1]
        bias = torch.zeros(1, outputs.shape[1], d_v, dtype=torch.float64)
        bias[0, :, 0] = layout.writing @ plan.bias.cpu().double()
        values, outputs = torch.cat([values, one]), torch.cat([outputs, bias])
    if layout.nowhere is not None:
        names = F.pad(names, (0, 1, 0, 1))
        names[:, -1, -1] = plan.sharpness
        features = torch.cat([features, layout.nowhere.unsqueeze(0)])
    count = len(features)
    heads = attention.num_heads, d_h, attention.embed_dim
    query, key, val = (torch.zeros(heads, dtype=torch.float64) for _ in range(3))
    used = len(names)
    query[:used, :count] = math.sqrt(d_h) * names @ features
    key[:used, :count] = features
    val[:used, : values.shape[1]] = values
    out = torch.zeros(attention.embed_dim, *heads[:2], dtype=torch.float64)
    out[:, :used, : outputs.shape[2]] = outputs.transpose(0, 1)
    with torch.no_grad():
        attention.in_proj_weight.copy_(
            torch.cat([part.flatten(0, 1) for part in (query, key, val)])
        )
        attention.out_proj.weight.copy_(out.flatten(1))
        if attention.in_proj_bias is not None:
            attention.in_proj_bias.zero_()
            attention.out_proj.bias.zero_()
            if plan.bias is not None and not by_head:
                attention.out_proj.bias.copy_(layout.writing @ plan.bias.cpu().double())


def _checked_stencil(conv: AnyConvolution) -> Stencil:
    if not isinstance(conv, CONVOLUTIONS):
        raise TypeError(
            f"conv is a {type(conv).__name__}; accepted: "
            + ", ".join(f"nn.{kind.__name__}" for kind in CONVOLUTIONS)
        )
    stencil = stencil_of(conv)
    if stencil.matrices.dtype not in DTYPES:
        raise ValueError(
            f"conv has dtype {stencil.matrices.dtype}; accepted: float32 and float64, in which "
            "torch's modules tell the coordinates of pixels apart"
        )
    return stencil


def _causal(conv: AnyConvolution, geometry: Geometry) -> Geometry:
    """The geometry of which every output sees the past and itself, the first one at pixel 0."""
    padded = any(geometry.before) or any(geometry.after)
    if geometry.transposed or geometry.dimension != 1 or padded:
        raise ValueError(
            f"conv is {conv}; accepted: an nn.Conv1d without padding for causal=True, whose "
            "left border is then zeros, or the first token with padding_mode='replicate'"
        )
    reach = tuple(r * (k - 1) for r, k in zip(geometry.dilation, geometry.kernel_size, strict=True))
    return replace(geometry, before=reach)
