"""stand_alone: a convolution as stand-alone self-attention, or as its stem.

No library has this layer, so that the module is our own, written from arXiv 1906.05909: local
windows, row and column embeddings on the keys, heads on groups of channels, values that vary over
the window in the stem.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.encodings import Quadratic
from constructions.heads import per_tap
from constructions.heads.heads import Heads
from constructions.normalisers import Softmax
from constructions.sources import AnyConvolution, Stencil
from constructions.stock.canvas import Canvas, dense_factors, gap_for, stencil_for
from constructions.stock.stock import Stock

THEOREM = "the_stem_needs_one_mixture_more"


class StandAloneAttention(nn.Module):
    """Attention of every pixel to a window around it, as arXiv 1906.05909 has it.

    The score of window place (a, b) is q·(k + r), r the embedding of its row beside that of its
    column; keys and values beyond the edge are zeros. Heads have a group of the channels each, and
    there is no projection after them. With several mixtures a value is Σ_m p(a, b, m) W_m x, p a
    softmax over m of (row + column)·ν_m: the stem.

    Args:
        in_channels: D_in, a multiple of the heads.
        out_channels: D_out, likewise; an even number for each head.
        window: rows and columns.
        before: how far the window begins before its pixel.
        heads: groups of channels.
        mixtures: of the values.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: tuple[int, int],
        before: tuple[int, int],
        *,
        heads: int = 1,
        mixtures: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.mixtures, self.window = heads, mixtures, window
        after = [k - 1 - b for k, b in zip(window, before, strict=True)]
        self.sides = (before[1], after[1], before[0], after[0])

        def pointwise(count: int) -> nn.Conv2d:
            return nn.Conv2d(in_channels, count, 1, groups=heads, bias=False, dtype=dtype)

        self.query, self.key = pointwise(out_channels), pointwise(out_channels)
        self.value = pointwise(mixtures * out_channels)
        half = out_channels // heads // 2
        self.rows = nn.Parameter(torch.randn(window[0], half, dtype=dtype))
        self.columns = nn.Parameter(torch.randn(window[1], half, dtype=dtype))
        places = sum(window)
        self.mixture_rows = nn.Parameter(torch.randn(window[0], places, dtype=dtype))
        self.mixture_columns = nn.Parameter(torch.randn(window[1], places, dtype=dtype))
        self.mixture = nn.Parameter(torch.randn(mixtures, places, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D_in, rows, columns) to (N, D_out, rows, columns)."""
        heads, batch, places = self.heads, len(x), math.prod(self.window)
        query = self.query(x).reshape(batch, heads, -1, x[0, 0].numel())
        keys = self._windows(self.key(x)).reshape(batch, heads, -1, places, query.shape[-1])
        rows, columns = self.rows[:, None], self.columns[None]
        shape = (*self.window, self.rows.shape[1])
        relative = torch.cat([rows.expand(shape), columns.expand(shape)], dim=2).flatten(0, 1)
        scores = torch.einsum("nhcl,nhcpl->nhpl", query, keys)
        scores = scores + torch.einsum("nhcl,pc->nhpl", query, relative)
        values = self._windows(self.value(x))
        values = values.reshape(batch, heads, self.mixtures, -1, *values.shape[2:])
        mixed = torch.einsum("nhmcpl,pm->nhcpl", values, self.shares())
        seen = torch.einsum("nhpl,nhcpl->nhcl", scores.softmax(dim=2), mixed)
        return seen.reshape(batch, -1, *x.shape[2:])

    def shares(self) -> Tensor:
        """P, (places of the window, mixtures): rows sum to 1."""
        places = self.mixture_rows[:, None] + self.mixture_columns[None]
        return (places.flatten(0, 1) @ self.mixture.T).softmax(dim=1)

    def _windows(self, features: Tensor) -> Tensor:
        """(N, channels, places, pixels), zeros beyond the edge."""
        windows = F.unfold(F.pad(features, self.sides), self.window)
        return windows.reshape(*features.shape[:2], math.prod(self.window), -1)


class OnImages(Stock):
    """A module of images, of which outputs are selected."""

    def __init__(self, module: nn.Module, canvas: Canvas, channels: tuple[int, int]) -> None:
        super().__init__(module.eval(), canvas.pixels.shape, channels[0])
        self.canvas, self.out_channels = canvas, channels[1]

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """The image itself: one token a pixel."""
        return (x,)

    def image(self, y: object) -> Tensor:
        """The outputs, (N, D_out, *output)."""
        assert isinstance(y, Tensor)
        return self.canvas.select(y.flatten(2).transpose(1, 2), self.out_channels)


def stand_alone(
    conv: AnyConvolution,
    spatial_shape: Sequence[int],
    *,
    sharpness: float | None = None,
    stem: bool = False,
) -> Stock:
    """A convolution as stand-alone self-attention between two 1 x 1 convolutions, or as its stem.

    A head sees its own group of channels and nothing mixes heads, so that the layer stands where
    the paper's bottleneck has it: the 1 x 1 convolution before it makes a copy of the pixel and a
    constant 1 for each head, the one after it adds the heads up. Of the constant come queries, and
    a row a has the embedding (a, a²), so that scores are -α|δ - Δ|² up to a constant. Without a
    constant only kernels whose taps are all alike come out. The stem needs none: its attention is
    uniform, and there is a mixture for each place of its window, whose sides are powers of two.
    Theorem: `the_stem_needs_one_mixture_more`. Source: arXiv:1906.05909.

    Zeros beyond the edge are the layer's own. For replicate borders keys get a constant, which
    those beyond the edge have not: the nearest pixel is then the best place of the window.

    Args:
        conv: of two dimensions, not transposed, in float32 or float64, with no more outputs than
            pixels.
        spatial_shape: of the images.
        sharpness: α; None for one at which weights are one-hot. The stem has none.
        stem: the stem instead; conv has then no bias, since an image of zeros becomes zeros.

    Raises:
        TypeError: conv is no convolution of torch's own.
        ValueError: a border, a size, a bias or a sharpness that the layer cannot carry.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (2,))
    replicate = not stem and stencil.border.name == "replicate" and stencil.geometry.can_miss
    canvas = Canvas.of_pixels(stencil, shape, "replicate" if replicate else "zeros")
    heads = per_tap(stencil, Quadratic())
    if not stem:
        module: nn.Module = _bottleneck(stencil, canvas, heads, sharpness, replicate)
    elif sharpness is not None:
        raise ValueError(
            f"sharpness is {sharpness}; accepted: None, since the attention of the stem is uniform "
            f"(theorem {THEOREM})"
        )
    elif stencil.bias is not None:
        raise ValueError(
            "conv has a bias; accepted: bias=False for the stem, which takes zeros to zeros "
            f"(theorem {THEOREM})"
        )
    else:
        module = _stem(canvas, heads)
    channels = stencil.in_channels, stencil.out_channels
    return OnImages(module.to(stencil.matrices.device), canvas, channels)


def _bottleneck(
    stencil: Stencil, canvas: Canvas, heads: Heads, sharpness: float | None, replicate: bool
) -> nn.Sequential:
    """1 x 1 convolution, attention of one head a tap, 1 x 1 convolution."""
    value, output = dense_factors(heads)
    count, channels, inner = value.shape
    shifts, dtype = canvas.shifts(heads), heads.dtype
    before = tuple(shifts.abs().amax(dim=0).tolist())
    window = (2 * before[0] + 1, 2 * before[1] + 1)
    width = max(4, inner + inner % 2)
    first = nn.Conv2d(channels, count * (channels + 1), 1, dtype=dtype)
    attention = StandAloneAttention(
        count * (channels + 1), count * width, window, before, heads=count, dtype=dtype
    )
    last = nn.Conv2d(count * width, stencil.out_channels, 1, dtype=dtype)
    gap = gap_for(dtype, sharpness)
    with torch.no_grad():
        for module in (first, attention, last):
            for parameter in module.parameters():
                parameter.zero_()
        copies = torch.eye(channels + 1, channels, dtype=dtype).repeat(count, 1)
        first.weight.copy_(copies[:, :, None, None])
        first.bias.view(count, -1)[:, channels] = 1  # type: ignore[union-attr]
        for axis, table in enumerate((attention.rows, attention.columns)):
            place = torch.arange(window[axis], dtype=dtype) - before[axis]
            table[:, 0], table[:, 1] = place, place.square()
            query = attention.query.weight.view(count, width, channels + 1)[:, axis * width // 2 :]
            query[:, 0, channels] = 2 * gap * shifts[:, axis]
            query[:, 1, channels] = -gap
        if replicate:
            # Times the query's -α: more than what the nearest pixel is behind a place beyond.
            key = attention.key.weight.view(count, width, channels + 1)
            key[:, 1, channels] = -1 - shifts.square().sum(dim=1).max()
        values = attention.value.weight.view(count, width, channels + 1)
        values[:, :inner, :channels] = value.transpose(1, 2)
        outputs = last.weight.view(stencil.out_channels, count, width)
        outputs[..., :inner] = output.permute(2, 0, 1)
        if stencil.bias is not None:
            last.bias.copy_(stencil.bias)  # type: ignore[union-attr]
    return nn.Sequential(first, attention, last)


def _stem(canvas: Canvas, heads: Heads) -> StandAloneAttention:
    """Uniform attention, a mixture for each place of the window."""
    value, output = dense_factors(heads)
    shifts, dtype = canvas.shifts(heads), heads.dtype
    first, last = shifts.amin(dim=0), shifts.amax(dim=0)
    rows, columns = (2 ** math.ceil(math.log2(n)) for n in (last - first + 1).tolist())
    before = (-int(first[0]), -int(first[1]))
    channels, out = value.shape[1], output.shape[2]
    inner = out + out % 2
    module = StandAloneAttention(
        channels, inner, (rows, columns), before, mixtures=rows * columns, dtype=dtype
    )
    high = 2.0 ** math.ceil(math.log2(Softmax().one_hot_gap(dtype)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.mixture_rows[:, :rows] = torch.eye(rows)
        module.mixture_columns[:, rows:] = torch.eye(columns)
        places = module.mixture_rows[:, None] + module.mixture_columns[None]
        module.mixture.copy_(high * places.flatten(0, 1))
        taps = (shifts - first) @ torch.tensor([columns, 1])
        matrices = (value @ output).transpose(1, 2)  # one of the two is the identity
        values = module.value.weight.view(rows * columns, inner, channels)
        values[taps, :out] = rows * columns * matrices
    return module
