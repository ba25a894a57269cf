"""Convolutions as plain sums, of which bounds can speak, whatever torch's flags on a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from constructions.matrix_units import IMAGES_TRANSFORMED, may_transform
from constructions.tracing import is_traced


def plain_sum(convolution: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A convolution of images, each output a sum of products, whatever torch's flags on a CPU.

    Where torch would hand so many images to NNPACK, which transforms them, they go in parts that
    are too small for it: of sums of products the bounds speak, and those are exact on integers. No
    flag of torch's is touched, which other threads would see too. Traced code is left to torch.
    """
    if is_traced() or not may_transform(len(images), images.dtype, images.device.type):
        return convolution(images)
    return torch.cat([convolution(part) for part in torch.split(images, IMAGES_TRANSFORMED - 1)])


LONG_PRODUCTS = 16, 1024
"""Input channels and pixels from which on a product for each tap is faster in float64."""


def pays_by_taps(padded: Tensor, kernel: Tensor, strides: Sequence[int], groups: int = 1) -> bool:
    """Whether `by_taps` applies to a convolution of a padded image, and is the faster way."""
    channels, pixels = LONG_PRODUCTS
    return (
        padded.dtype == kernel.dtype == torch.float64
        and padded.device.type == "cpu"
        and groups == 1
        and kernel.shape[1] >= channels
        and padded.shape[2:].numel() >= pixels
        and all(stride == 1 for stride in strides)
    )


def by_taps(padded: Tensor, kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """A convolution of stride 1, one matrix product for each tap.

    Of float64 torch copies every pixel once for each tap. Here none is: written one after another,
    the pixels that a tap sees are a stretch of the padded image, for all outputs together. A row
    of outputs is then as long as one of the padded image; what it has too many is cut off.

    Args:
        padded: (N, D_in, *shape), contiguous.
        kernel: (D_out, D_in, *kernel size).
        dilation: for each axis.
    """
    shape = padded.shape[2:]
    reach = [step * (n - 1) for step, n in zip(dilation, kernel.shape[2:], strict=True)]
    steps = [step * math.prod(shape[axis + 1 :]) for axis, step in enumerate(dilation)]
    last = sum(math.prod(shape[axis + 1 :]) * n for axis, n in enumerate(reach))
    pixels = padded.flatten(2)
    outputs = padded.new_zeros(len(padded), len(kernel), pixels.shape[2])
    sums = outputs[..., : pixels.shape[2] - last]
    taps = itertools.product(*map(range, kernel.shape[2:]))
    for tap, matrix in zip(taps, kernel.flatten(2).unbind(2), strict=True):
        first = sum(n * step for n, step in zip(tap, steps, strict=True))
        seen = pixels[..., first : first + sums.shape[2]]
        sums.baddbmm_(matrix.expand(len(padded), -1, -1), seen)
    y = outputs.reshape(*outputs.shape[:2], *shape)
    for axis, n in enumerate(reach):
        y = y.narrow(2 + axis, 0, shape[axis] - n)
    return y
