"""vit: a convolution as the attention of a ViT on patches, timm's own class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.encodings import Quadratic
from constructions.geometry.lattice import Lattice
from constructions.heads import per_tap
from constructions.sources import AnyConvolution
from constructions.stock.canvas import Canvas, dense_factors, gap_for, stencil_for
from constructions.stock.libraries import required
from constructions.stock.patches import (
    cut,
    joined,
    largest_score,
    patch_heads,
    patch_matrices,
    power_of_four,
)
from constructions.stock.stock import Stock

THEOREM = "patches_trade_heads_for_width"


class ViT(Stock):
    """timm's attention of a ViT, on a class token and one token a patch."""

    def __init__(
        self,
        module: nn.Module,
        canvas: Canvas,
        channels: tuple[int, int],
        patch_size: int,
        positions: Tensor,
        width: int,
    ) -> None:
        super().__init__(module.eval(), canvas.pixels.shape, channels[0])
        self.canvas, self.out_channels, self.patch_size = canvas, channels[1], patch_size
        self.width = width
        self.register_buffer("positions", positions, persistent=False)

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches on each axis."""
        return tuple(n // self.patch_size for n in self.spatial_shape)

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """(N, 1 + patches, width): pixels, zeros, and at the end the numbers of the position."""
        pixels = cut(x, self.patch_size)
        positions = self.get_buffer("positions").to(x)
        free = self.width - pixels.shape[2] - positions.shape[1]
        patches = F.pad(pixels, (0, free, 1, 0))
        every = positions.expand(len(x), -1, -1)
        return (torch.cat([patches, every], dim=2),)

    def image(self, y: object) -> Tensor:
        """The outputs, (N, D_out, *output)."""
        assert isinstance(y, Tensor)
        used = self.patch_size ** len(self.grid) * self.out_channels
        whole = joined(y[:, 1:, :used], self.grid, self.patch_size)
        return self.canvas.select(whole.flatten(2).transpose(1, 2), self.out_channels)


def vit(
    conv: AnyConvolution,
    spatial_shape: Sequence[int],
    *,
    patch_size: int = 16,
    head_dim: int = 64,
    sharpness: float | None = None,
) -> Stock:
    """A convolution as timm's `Attention` of a ViT, on tokens that are patches of P^d pixels.

    A token holds the pixels of its patch and its position: k, |k|², and whether it is a patch or
    the class token. Queries and keys are linear in these, s (2 t·k - |k|² - |t|²) for the target
    t = q + Δ in patches, 0 there and -s or less elsewhere; the class token has half of that and
    values of zero: a sink, which pads with zeros. A shift Δ takes as many heads as the channels
    that it moves fill. Theorem: `patches_trade_heads_for_width`. Source: arXiv:2010.11929.

    Args:
        conv: not transposed, in float32 or float64, with no more outputs than pixels.
        spatial_shape: of the images, multiples of the patch size.
        patch_size: P.
        head_dim: of each head, a power of four, the root of which scales without rounding; at
            least d + 3.
        sharpness: s, the gap in score between a target and other patches, twice that of the class
            token; None for one at which weights are one-hot.

    Raises:
        ImportError: timm does not load.
        TypeError: conv is no convolution of torch's own.
        ValueError: a border or a size that the module cannot carry.
    """
    stencil, shape = stencil_for(conv, spatial_shape, (1, 2, 3))
    d = len(shape)
    if patch_size < 1 or any(n % patch_size for n in shape):
        raise ValueError(
            f"spatial_shape is {shape}; accepted: multiples of patch_size, which is {patch_size}"
        )
    if head_dim < d + 3 or power_of_four(head_dim) != head_dim:
        raise ValueError(
            f"head_dim is {head_dim}; accepted: a power of four of at least {power_of_four(d + 3)}"
        )
    canvas = Canvas.of_pixels(stencil, shape, "zeros")
    taps = per_tap(stencil, Quadratic())
    value, output = dense_factors(taps)
    matrices = patch_matrices(canvas.shifts(taps), (value @ output).cpu(), patch_size)
    heads = patch_heads(matrices, head_dim)
    grid = Lattice.box(tuple(n // patch_size for n in shape))
    places = grid.positions() - torch.tensor([n // 2 for n in grid.shape])
    shifts = torch.tensor([h.shift for h in heads], dtype=torch.int64).reshape(-1, d)
    dtype = taps.dtype
    if heads:
        _check_scores(places, shifts, dtype, grid.shape)
    features = _features(places.to(dtype))
    # One head at least, and tokens wide enough for the pixels of a patch and for the positions.
    channels = stencil.in_channels, stencil.out_channels
    pixels = patch_size**d
    needed = max(pixels * channels[0] + d + 3, pixels * channels[1])
    count = max(1, len(heads), math.ceil(needed / head_dim))
    width = count * head_dim
    module: Any = required("timm.layers").Attention(width, count, dtype=dtype)
    gap = gap_for(dtype, sharpness, sink=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        queries, keys, values = module.qkv.weight.view(3, count, head_dim, width)
        outputs = module.proj.weight.view(width, count, head_dim)
        for number, head in enumerate(heads):
            shift = torch.tensor(head.shift, dtype=dtype)
            queries[number, : d + 3, -(d + 3) :] = _query(shift, gap) * math.sqrt(head_dim)
            keys[number, : d + 3, -(d + 3) :] = torch.eye(d + 3)
            inner = head.value.shape[1]
            values[number, :inner, : len(head.value)] = head.value.T
            outputs[: head.output.shape[1], number, :inner] = head.output.T
        if stencil.bias is not None:
            module.proj.bias[: pixels * channels[1]] = stencil.bias.repeat(pixels)
    module.to(stencil.matrices.device)
    return ViT(module, canvas, channels, patch_size, features, width)


def _features(places: Tensor) -> Tensor:
    """Of the class token and of every patch, (1 + patches, d + 3): k, |k|², patch, class token."""
    square = places.square().sum(dim=1, keepdim=True)
    patches = torch.cat([places, square, torch.ones_like(square), torch.zeros_like(square)], dim=1)
    return torch.cat([F.one_hot(torch.tensor([patches.shape[1] - 1])).to(places), patches])


def _query(shift: Tensor, gap: float) -> Tensor:
    """What multiplies each feature of a key, as a matrix on the features of the query.

    For the target t = q + Δ: 2t for k, -1 for |k|², -|t|² for a patch, -1/2 for the class token,
    all times the gap.
    """
    d = len(shift)
    square, patch = d, d + 1
    query = shift.new_zeros(d + 3, d + 3)
    query[:d, :d] = 2 * torch.eye(d)
    query[:d, patch] = 2 * shift
    query[square, patch] = -1
    query[patch, :d] = -2 * shift
    query[patch, square] = -1
    query[patch, patch] = -shift.square().sum()
    query[d + 2, patch] = -0.5
    return query * gap


def _check_scores(
    places: Tensor, shifts: Tensor, dtype: torch.dtype, grid: tuple[int, ...]
) -> None:
    """Raise a ValueError where scores, halves of integers times the sharpness, are rounded."""
    score, largest = largest_score(places, shifts), round(2 / torch.finfo(dtype).eps)
    if score > largest:
        raise ValueError(
            f"spatial_shape gives {grid} patches, whose scores add up {score} halves of the "
            f"sharpness; accepted: up to {largest}, to which {dtype} has every integer (theorem "
            f"{THEOREM})"
        )
