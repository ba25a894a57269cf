"""The canonical form of any torch convolution: taps on two lattices.

Y_q = b + sum over taps (δ, W_δ) of X_{q+δ} W_δ
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.geometry.geometry import Geometry
from constructions.geometry.padding_modes import PaddingMode
from constructions.sources.native import AnyNative
from constructions.sources.sums import by_taps, pays_by_taps, plain_sum


@dataclass(frozen=True)
class Stencil:
    """A convolution as a list of taps.

    Args:
        geometry: the taps' offsets and the lattices.
        border: what stands beyond the image's edge.
        matrices: (taps, groups, D_in / groups, D_out / groups), the W_δ as diagonal blocks, in the
            order of `geometry.offsets()`.
        bias: (D_out,) or None.
        native: what it was read from, by torch's names; None for a stencil of one's own.
    """

    geometry: Geometry
    border: PaddingMode
    matrices: Tensor
    bias: Tensor | None
    native: AnyNative | None = None

    @property
    def offsets(self) -> Tensor:
        """The offset δ = k - q of every tap: int64, shape (taps, d)."""
        return self.geometry.offsets(self.matrices.device)

    @property
    def groups(self) -> int:
        """The number of diagonal blocks of every W_δ."""
        return self.matrices.shape[1]

    @property
    def in_channels(self) -> int:
        """D_in."""
        return self.matrices.shape[1] * self.matrices.shape[2]

    @property
    def out_channels(self) -> int:
        """D_out."""
        return self.matrices.shape[1] * self.matrices.shape[3]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Stencil:
        """The same taps on another device, in another format."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return replace(self, matrices=self.matrices.to(device, dtype), bias=bias)

    def convolve(self, at_targets: Tensor) -> Tensor:
        """The ordinary convolution, without bias, of what stands at the targets."""
        _, groups, inputs, outputs = self.matrices.shape
        size = groups * outputs, inputs, *self.geometry.kernel_size
        kernel = self.matrices.permute(1, 3, 2, 0).reshape(size)
        geometry = self.geometry
        if pays_by_taps(at_targets, kernel, geometry.query_spacing, groups):
            return by_taps(at_targets, kernel, geometry.dilation)
        taps, dilation = geometry.kernel_size[0], geometry.dilation[0]
        stride = geometry.query_spacing[0]

        def bands(part: Tensor) -> Tensor:
            return convolve(geometry, kernel, part, groups=groups)

        return in_bands(bands, at_targets, kernel, dilation * (taps - 1) + 1, stride)


CACHED = 2**22
"""Bytes that a band of rows may take."""


def in_bands(
    convolution: Callable[[Tensor], Tensor],
    padded: Tensor,
    kernel: Tensor,
    extent: int,
    stride: int,
) -> Tensor:
    """A convolution of a padded image, band of rows by band of rows.

    In float64 torch copies each pixel once for each tap: all of a large image leaves the cache.

    Args:
        convolution: without padding.
        padded: (N, D_in, *shape).
        kernel: its weight.
        extent: rows that an output sees.
        stride: rows from output to output.
    """
    rows = (padded.shape[2] - extent) // stride + 1
    each = kernel.element_size() * kernel[:1].numel() * padded[:1, :1, :1].numel()
    height = max(1, CACHED // max(1, each))
    if rows <= height or padded.device.type != "cpu" or padded.dtype != torch.float64:
        return convolution(padded)
    bands = []
    for start in range(0, rows, height):
        end = min(start + height, rows)
        first, last = start * stride, (end - 1) * stride + extent
        bands.append(convolution(padded[:, :, first:last]))
    return torch.cat(bands, dim=2)


def convolve(
    geometry: Geometry,
    kernel: Tensor,
    at_targets: Tensor,
    bias: Tensor | None = None,
    padding: int | tuple[int, ...] = 0,
    groups: int = 1,
) -> Tensor:
    """The ordinary convolution of what stands at the targets, as a plain sum (see `plain_sum`).

    Args:
        geometry: of the convolution.
        kernel: (D_out, D_in / groups, *kernel size), the taps in the order of the offsets.
        at_targets: (N, D_in, *target shape), padded and zero-stuffed.
        bias: (D_out,) or None.
        padding: zeros that torch is to add on both sides of each axis instead.
        groups: diagonal blocks of the matrix at each tap.

    Returns:
        (N, D_out, *query shape).
    """
    convolution = (F.conv1d, F.conv2d, F.conv3d)[geometry.dimension - 1]

    def of(images: Tensor) -> Tensor:
        return convolution(
            images,
            kernel,
            bias,
            stride=geometry.query_spacing,
            padding=padding,
            dilation=geometry.dilation,
            groups=groups,
        )

    return plain_sum(of, at_targets)
