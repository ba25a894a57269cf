"""What stands beyond the edge of the image: one object per `padding_mode` of torch.

A border answers one question, axis by axis: which pixel supplies the key at a given position. Zero
padding and the holes of a transposed convolution are keys that no pixel supplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.geometry.lattice import Lattice
from constructions.tracing import tensor_of

NO_PIXEL = -1


class PaddingMode(Protocol):
    """Continues an axis of n pixels, numbered 0 .. n-1, to every integer."""

    @property
    def name(self) -> str:
        """The `padding_mode` of torch."""

    def reach(self, size: int) -> int | None:
        """How far beyond an axis of `size` pixels the border is defined, None for any distance."""

    def pixels(self, index: Tensor, size: int) -> Tensor:
        """The pixel that supplies each index: int64 in 0 .. size-1, or `NO_PIXEL` for a zero."""


@dataclass(frozen=True)
class Zeros:
    """Zeros beyond the edge."""

    name: str = "zeros"

    def reach(self, size: int) -> int | None:
        """Defined at any distance."""
        return None

    def pixels(self, index: Tensor, size: int) -> Tensor:
        """The pixel itself on the axis, none beyond it."""
        return torch.where((index >= 0) & (index < size), index, NO_PIXEL)


@dataclass(frozen=True)
class Replicate:
    """The nearest pixel of the edge."""

    name: str = "replicate"

    def reach(self, size: int) -> int | None:
        """Defined at any distance."""
        return None

    def pixels(self, index: Tensor, size: int) -> Tensor:
        """The coordinatewise clamp."""
        return index.clamp(0, size - 1)


@dataclass(frozen=True)
class Reflect:
    """The mirror image about the centre of the edge pixel."""

    name: str = "reflect"

    def reach(self, size: int) -> int | None:
        """One mirror image: a distance below the size of the axis."""
        return size - 1

    def pixels(self, index: Tensor, size: int) -> Tensor:
        """The triangle wave through 0 .. size-1."""
        return (size - 1) - (size - 1 - index.abs()).abs()


@dataclass(frozen=True)
class Circular:
    """The opposite edge: the axis is a circle."""

    name: str = "circular"

    def reach(self, size: int) -> int | None:
        """One turn, as torch has it: a distance of at most the size of the axis."""
        return size

    def pixels(self, index: Tensor, size: int) -> Tensor:
        """The remainder modulo the size of the axis."""
        return index.remainder(tensor_of((size,), index))


PADDING_MODES: Mapping[str, PaddingMode] = {
    border.name: border for border in (Zeros(), Replicate(), Reflect(), Circular())
}


def check_reach(border: PaddingMode, pixels: Lattice, keys: Lattice) -> None:
    """Raise a ValueError where the keys reach further than the border is defined."""
    for axis, size in enumerate(pixels.shape):
        limit = border.reach(size)
        if limit is None:
            continue
        beyond = max(-keys.origin[axis], keys.last[axis] - pixels.last[axis])
        if beyond > limit:
            raise ValueError(
                f"{border.name} padding of {beyond} goes beyond the image, which has {size} pixels "
                f"on spatial axis {axis}; accepted: at most {limit}"
            )


def padded(image: Tensor, pixels: Lattice, keys: Lattice, border: PaddingMode) -> Tensor:
    """Place an image, continued by its border, on the lattice of the keys.

    Args:
        image: (N, C, *pixels.shape).
        pixels: where the pixels stand; its origin is 0. A spacing above 1 leaves holes, which are
            zeros (the zero-stuffed image of a transposed convolution).
        keys: where the keys stand.
        border: the continuation beyond the edge.

    Returns:
        (N, C, *keys.shape), of the image's dtype; every entry is a pixel or 0, never computed.

    Raises:
        ValueError: the keys reach further than the border is defined.
    """
    check_reach(border, pixels, keys)
    if keys == pixels:
        return image
    if border.name == "zeros" and keys.spacing == pixels.spacing:
        # F.pad lists the last axis first; a negative number cuts pixels off.
        sides = []
        for axis in reversed(range(pixels.dimension)):
            sides += [-keys.origin[axis], keys.last[axis] - pixels.last[axis]]
        return F.pad(image, sides)
    for axis, size in enumerate(pixels.shape):
        position = keys.axes(image.device)[axis]
        spacing = pixels.spacing[axis]
        source = border.pixels(position.div(spacing, rounding_mode="floor"), size)
        dim = 2 + axis
        if spacing > 1 or border.name == "zeros":
            # One zero is appended to the axis and stands for NO_PIXEL.
            image = F.pad(image, (0, 0) * (image.dim() - 1 - dim) + (0, 1))
            missing = (position.remainder(spacing) != 0) | (source == NO_PIXEL)
            source = torch.where(missing, size, source)
        image = image.index_select(dim, source)
    return image
