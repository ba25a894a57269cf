"""How far keys stand from targets, counted in NumPy integers: what `farthest` is held against.

Nothing here comes from `constructions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["counted", "offsets", "promised"]

Numbers = NDArray[np.int64]


def offsets(conv: Any) -> list[Numbers]:
    """Key minus query of every tap, axis by axis, from torch's options.

    Output o of a convolution reads pixel o·stride + j·dilation − padding. Pixel i of a transposed
    one is added to output i·stride + j·dilation − padding, so that output o reads, on the grid of
    the outputs, o + padding − j·dilation.
    """
    sides = _low_sides(conv)
    taps = zip(conv.kernel_size, conv.dilation, sides, strict=True)
    forward = [np.arange(size) * step - side for size, step, side in taps]
    return [-of_axis for of_axis in forward] if conv.transposed else forward


def counted(conv: Any, spatial: Sequence[int], outputs: Sequence[int]) -> tuple[int, ...]:
    """The largest distance from the target of a tap, at any output, to any pixel, axis by axis.

    Args:
        conv: A convolution of torch, read through its attributes.
        spatial: The shape of the image.
        outputs: The shape of the output.
    """
    ones = [1] * len(spatial)
    steps, spacings = (ones, conv.stride) if conv.transposed else (conv.stride, ones)
    found = []
    for axis, taps in enumerate(offsets(conv)):
        keys = np.arange(spatial[axis]) * spacings[axis]
        queries = np.arange(outputs[axis]) * steps[axis]
        targets = queries[:, None] + taps
        found.append(int(abs(keys - targets[..., None]).max()))
    return tuple(found)


def promised(
    shifts: Sequence[Sequence[int]], shape: Sequence[int], spacing: Sequence[int]
) -> tuple[int, ...]:
    """The distances that a gap has to speak of, axis by axis: keys to all targets within reach.

    A target is beyond the keys by at most the largest shift and the extent of the shifts together,
    and by less than a spacing more.
    """
    found = []
    for of_axis, n, step in zip(np.array(shifts, dtype=np.int64).T, shape, spacing, strict=True):
        beyond = int(abs(of_axis).max() + of_axis.max() - of_axis.min()) + step - 1
        keys = np.arange(n) * step
        targets = np.arange(-beyond, keys[-1] + beyond + 1)
        found.append(int(abs(keys[:, None] - targets).max()))
    return tuple(found)


def _low_sides(conv: Any) -> list[int]:
    """Pixels added before the first, axis by axis; of an odd total "same" adds more after."""
    if conv.padding == "valid":
        return [0] * len(conv.kernel_size)
    if conv.padding == "same":
        reach = zip(conv.kernel_size, conv.dilation, strict=True)
        return [(size - 1) * step // 2 for size, step in reach]
    return list(conv.padding)
