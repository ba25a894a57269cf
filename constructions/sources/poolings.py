"""Average pooling: one uniform head over a window.

    Y_q = (1 / divisor) · sum of X_k over the keys k in q + window

What torch counts in the divisor is nothing but the set of keys that share the attention: the
pixels, the padded pixels, or every position of the window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn

from constructions.geometry.padding_modes import PADDING_MODES
from constructions.geometry.window import WHOLE, WindowGeometry
from constructions.sources.convolutions import check_hooks, check_sizes
from constructions.sources.native import AnyNative, NativeAdaptive, NativePooling
from constructions.sources.stencil import Stencil

Pooling = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
AdaptivePooling = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d
AnyPooling = Pooling | AdaptivePooling
FIXED = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
POOLINGS = FIXED + ADAPTIVE


def stencil_of_pooling(pool: AnyPooling) -> Stencil:
    """The canonical form of an average pooling: one tap, of matrix 1, or window / divisor.

    Args:
        pool: of torch's own.

    Raises:
        TypeError: pool is a subclass with a forward of its own, or hooked.
        ValueError: the padding exceeds half the window, or the divisor is 0; or an adaptive
            pooling is asked for more than one pixel on an axis, and not for all.
    """
    check_pooling(pool)
    if isinstance(pool, ADAPTIVE):
        return _stencil_of_adaptive(pool)
    d = FIXED.index(next(p for p in FIXED if isinstance(pool, p))) + 1
    window = _per_axis(pool.kernel_size, d)
    # torch takes an empty tuple for no stride of its own.
    given: object = pool.stride
    without = given is None or (isinstance(given, Sequence) and not given)
    stride = window if without else _per_axis(pool.stride, d)
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
    scale = 1.0 if divisor is None else math.prod(window) / divisor
    geometry = _geometry(
        window, stride, padding, pool.ceil_mode, counted if divisor is None else "window"
    )
    native = NativePooling(
        kernel_size=window,
        stride=stride,
        padding=padding,
        ceil_mode=pool.ceil_mode,
        count_include_pad=pool.count_include_pad,
        divisor_override=divisor,
    )
    return _stencil(geometry, scale, native)


def check_pooling(pool: AnyPooling) -> None:
    """Raise if a subclass computes in a way of its own, or the module has a hook."""
    kind = next(p for p in POOLINGS if isinstance(pool, p))
    if type(pool).forward is not kind.forward or "forward" in vars(pool):
        raise TypeError(
            f"conv is a {type(pool).__name__} with a forward of its own; accepted: one that "
            f"computes what nn.{kind.__name__} computes"
        )
    check_hooks(pool)


def output_size_of(pool: AdaptivePooling) -> tuple[int | None, ...]:
    """What an adaptive pooling is asked for on each axis; None for all pixels."""
    d = ADAPTIVE.index(next(p for p in ADAPTIVE if isinstance(pool, p))) + 1
    asked: object = pool.output_size
    sizes = tuple(asked) if isinstance(asked, Sequence) else (asked,)
    return sizes * d if len(sizes) == 1 else sizes


def adaptive_windows(pixels: int, outputs: int) -> tuple[int, int] | None:
    """Window and stride of an adaptive pooling on an axis, or None where windows differ.

    torch's window i begins at floor(i n / m) and ends before ceil((i + 1) n / m), for n pixels and
    m outputs.
    """
    first = [i * pixels // outputs for i in range(outputs)]
    sizes = {-(-(i + 1) * pixels // outputs) - first[i] for i in range(outputs)}
    steps = {b - a for a, b in itertools.pairwise(first)} or {max(sizes, default=1)}
    if len(sizes) > 1 or len(steps) > 1 or not all(steps):
        return None
    return sizes.pop(), steps.pop()


def _stencil_of_adaptive(pool: AdaptivePooling) -> Stencil:
    """One pixel of all, on each axis: a window that hangs over the end; or each pixel its own."""
    sizes = output_size_of(pool)
    if not all(n in (1, None) for n in sizes):
        raise ValueError(
            f"conv is a {type(pool).__name__} of output_size {sizes}; accepted: 1 or None on each "
            "axis, since other windows depend on the size of the image; or the nn.AvgPool that it "
            "is for one size"
        )
    window = tuple(1 if n is None else WHOLE for n in sizes)
    geometry = _geometry(window, window, (0,) * len(window), True, "pixels")
    return _stencil(geometry, 1.0, NativeAdaptive(sizes))


def _geometry(
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    ceil_mode: bool,
    counted: str,
) -> WindowGeometry:
    once, nowhere = (1,) * len(window), (0,) * len(window)
    return WindowGeometry(
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
        ceil_mode=ceil_mode,
        counted=counted,
    )


def _stencil(geometry: WindowGeometry, scale: float, native: AnyNative) -> Stencil:
    matrix = torch.full((1, 1, 1, 1), scale, dtype=torch.float64)
    return Stencil(geometry, PADDING_MODES["zeros"], matrix, None, native)


def _per_axis(option: int | Sequence[int], dimension: int) -> tuple[int, ...]:
    given = option if isinstance(option, Sequence) else (option,)
    sizes = tuple(int(n) if isinstance(n, Integral) else n for n in given)
    return sizes * dimension if len(sizes) == 1 else sizes
