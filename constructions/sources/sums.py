"""Convolutions as plain sums, of which bounds can speak, whatever torch's flags on a CPU."""

from __future__ import annotations

from collections.abc import Callable

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
