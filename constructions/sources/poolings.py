"""Average pooling: one uniform head over a window.

    Y_q = (1 / divisor) · sum of X_k over the keys k in q + window

What torch counts in the divisor is nothing but the set of keys that share the attention: the
pixels, the padded pixels, or every position of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn

from constructions.geometry.padding_modes import PADDING_MODES
from constructions.geometry.window import WindowGeometry
from constructions.sources.convolutions import HOOKS, check_sizes
from constructions.sources.native import NativePooling
from constructions.sources.stencil import Stencil

AnyPooling = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


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
    # torch takes an empty tuple for no stride of its own.
    given: object = pool.stride
    stride = window if given is None or given == () else _per_axis(pool.stride, d)
    padding = _per_axis(pool.padding, d)
    check_sizes("kernel_size", window, 1)
    check_sizes("stride", stride, 1)
    check_sizes("padding", padding, 0)
    if any(2 * p > w for p, w in zip(padding, window, strict=True)):
        raise ValueError(
            f"conv has padding {padding}; accepted: at most half of its kernel_size, {window}"
        )
    divisor = None if isinstance(pool, nn.AvgPool1d) else pool.divisor_override
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
    native = NativePooling(
        kernel_size=window,
        stride=stride,
        padding=padding,
        ceil_mode=pool.ceil_mode,
        count_include_pad=pool.count_include_pad,
        divisor_override=divisor,
    )
    return Stencil(geometry, PADDING_MODES["zeros"], matrix, None, native)


def _per_axis(option: int | Sequence[int], dimension: int) -> tuple[int, ...]:
    given = option if isinstance(option, Sequence) else (option,)
    sizes = tuple(int(n) if isinstance(n, Integral) else n for n in given)
    return sizes * dimension if len(sizes) == 1 else sizes
