"""Average pooling: one uniform head over a window.

    Y_q = (1 / divisor) · sum of X_k over the keys k in q + window

What torch counts in the divisor is nothing but the set of keys that share the attention: the
pixels, the padded pixels, or every position of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from constructions.borders import BORDERS
from constructions.lattice import Lattice
from constructions.stencil import HOOKS, Geometry, Stencil, check_sizes

AnyPooling = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@dataclass(frozen=True)
class WindowGeometry(Geometry):
    """Where the pixels, the keys, the queries and the windows of an average pooling stand.

    A query stands at the first position of its window. Its head has one tap, of offset 0.

    Args:
        window: positions per axis.
        stride: distance between queries.
        padding: zeros before the first pixel, and after the last one.
        ceil_mode: whether a last window may hang over the padding.
        counted: the keys that share the attention: "pixels", "padding" with them, or the whole
            "window".
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    counted: str

    @property
    def can_miss(self) -> bool:
        """Never: torch lets padding be at most half a window, so that each holds a pixel."""
        return False

    def queries(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where the queries stand, one for each output; the first one at -padding.

        Raises:
            ValueError: the window is larger than the padded image.
        """
        shape = []
        axes = zip(spatial_shape, self.window, self.stride, self.padding, strict=True)
        for size, window, stride, padding in axes:
            room = size + 2 * padding - window
            count = (-(-room // stride) if self.ceil_mode else room // stride) + 1
            if self.ceil_mode and (count - 1) * stride >= size + padding:
                count -= 1  # a window that would begin in the padding after the image
            shape.append(count)
        # torch pools volumes alone only if a window fits without their padding.
        fits = self.dimension < 3 or all(
            n >= w for n, w in zip(spatial_shape, self.window, strict=True)
        )
        if min(shape) < 1 or not fits:
            raise ValueError(
                f"no output is left: kernel_size {self.window} with padding {self.padding} does "
                f"not fit into spatial shape {spatial_shape}; accepted: a larger image"
            )
        return Lattice(tuple(shape), self.stride, tuple(-p for p in self.padding))

    def targets(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """The queries: the one tap has offset 0."""
        return self.queries(spatial_shape)

    def explicit_keys(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """The padded image; or all that a window reaches."""
        shape = tuple(n + 2 * p for n, p in zip(spatial_shape, self.padding, strict=True))
        if self.counted == "window":
            last = self.queries(spatial_shape).last
            ends = zip(last, self.window, self.padding, shape, strict=True)
            shape = tuple(max(n, end + w + p) for end, w, p, n in ends)
        origin = tuple(-p for p in self.padding)
        return Lattice(shape, (1,) * len(shape), origin)


def stencil_of_pooling(pool: AnyPooling, dtype: torch.dtype) -> Stencil:
    """The canonical form of an average pooling: one tap, of matrix 1, or window / divisor.

    Args:
        pool: of torch's own.
        dtype: of the matrix.

    Raises:
        TypeError: pool is a subclass with a forward of its own, or hooked.
        ValueError: the padding exceeds half the window, or the divisor is 0.
    """
    kind = next(p for p in POOLINGS if isinstance(pool, p))
    if type(pool).forward is not kind.forward or "forward" in vars(pool):
        raise TypeError(
            f"conv is a {type(pool).__name__} with a forward of its own; accepted: one that "
            f"computes what nn.{kind.__name__} computes"
        )
    if any(getattr(pool, hooks) for hooks in HOOKS):
        raise TypeError(
            "conv has a forward or backward hook, which attention would not run; accepted: none"
        )
    d = POOLINGS.index(kind) + 1
    window = _per_axis(pool.kernel_size, d)
    stride = window if pool.stride is None else _per_axis(pool.stride, d)
    padding = _per_axis(pool.padding, d)
    check_sizes("kernel_size", window, 1)
    check_sizes("stride", stride, 1)
    check_sizes("padding", padding, 0)
    if any(2 * p > w for p, w in zip(padding, window, strict=True)):
        raise ValueError(
            f"conv has padding {padding}; accepted: at most half of its kernel_size, {window}"
        )
    divisor = getattr(pool, "divisor_override", None)
    if divisor == 0:
        raise ValueError("conv has divisor_override 0; accepted: a non-zero integer or None")
    counted = "padding" if pool.count_include_pad else "pixels"
    once, nowhere = (1,) * d, (0,) * d
    geometry = WindowGeometry(
        kernel_size=once,
        dilation=once,
        before=nowhere,
        after=nowhere,
        query_spacing=once,
        pixel_spacing=once,
        output_padding=nowhere,
        transposed=False,
        window=window,
        stride=stride,
        padding=padding,
        ceil_mode=pool.ceil_mode,
        counted=counted if divisor is None else "window",
    )
    scale = 1.0 if divisor is None else math.prod(window) / divisor
    matrix = torch.full((1, 1, 1, 1), scale, dtype=dtype)
    return Stencil(geometry, BORDERS["zeros"], matrix, None)


def _per_axis(option: int | Sequence[int], dimension: int) -> tuple[int, ...]:
    sizes = (option,) * dimension if isinstance(option, int) else tuple(option)
    return sizes * dimension if len(sizes) == 1 else sizes
