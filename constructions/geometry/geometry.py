"""Where the pixels, the queries and the taps of a convolution stand.

Every option of torch is a choice of offsets (dilation, even kernels, padding), of the lattice that
the queries stand on (stride, output size) or of the lattice that the pixels stand on (transposed
convolution). Nothing depends on the dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import SupportsIndex

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice
from constructions.tracing import is_traced


@dataclass(frozen=True)
class Geometry:
    """Where the pixels, the queries and the taps of a convolution stand.

    The offset of kernel index j is `j * dilation - before`, always k - q, key minus query (the
    paper's Lemma 2; its Lemma 1 has q - k). All tuples have one entry per dimension.

    Args:
        kernel_size: taps per axis.
        dilation: distance between taps.
        before: how far the targets begin before the first pixel; negative when pixels are cut.
        after: how far they end after the last pixel.
        query_spacing: distance between queries, the stride of a convolution.
        pixel_spacing: distance between pixels, the stride of a transposed convolution.
        output_padding: queries appended at the end of a transposed convolution.
        transposed: whether `output_size` may choose the output padding at each call.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    query_spacing: tuple[int, ...]
    pixel_spacing: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool

    @property
    def dimension(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel_size)

    @property
    def can_miss(self) -> bool:
        """Whether a head can be asked for a place where there is no pixel."""
        beyond = any(before > 0 for before in self.before) or any(
            after + extra > 0 for after, extra in zip(self.after, self.output_padding, strict=True)
        )
        return beyond or max(self.pixel_spacing) > 1

    @property
    def reach_is_bounded(self) -> bool:
        """Whether targets leave the pixels by no more than shifts and spacing say.

        An axis with one tap has a dilation, which lets torch append any number of outputs.
        """
        axes = zip(self.kernel_size, self.output_padding, self.pixel_spacing, strict=True)
        return all(taps > 1 or extra < spacing for taps, extra, spacing in axes)

    @property
    def pads_evenly(self) -> bool:
        """Whether the targets are the pixels with the same margin on both sides of each axis."""
        even = self.before == self.after and min(self.before) >= 0
        return even and max(self.pixel_spacing) == 1 and max(self.output_padding) == 0

    @property
    def taps(self) -> int:
        """The number of taps."""
        return math.prod(self.kernel_size)

    def offsets(self, device: torch.device | str | None = None) -> Tensor:
        """The offset δ = k - q of every tap, row-major: int64, shape (taps, d)."""
        kernel = Lattice(self.kernel_size, self.dilation, tuple(-b for b in self.before))
        return kernel.positions(device)

    def pixels(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where the pixels of an image stand; the first one at 0."""
        return Lattice(spatial_shape, self.pixel_spacing, (0,) * self.dimension)

    def targets(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Every position that a tap can be asked for: the padded, zero-stuffed grid.

        Raises:
            ValueError: no output would be left.
        """
        self.queries(spatial_shape)  # raises where nothing is left
        origin = tuple(-b for b in self.before)
        return Lattice(self._target_shape(spatial_shape), (1,) * self.dimension, origin)

    def explicit_keys(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where keys stand if the border is made of keys: at every target."""
        return self.targets(spatial_shape)

    def queries(self, spatial_shape: tuple[int, ...]) -> Lattice:
        """Where the queries stand, one for each output; the first one at 0.

        Raises:
            ValueError: the kernel is larger than the padded image.
        """
        axes = zip(self.output_padding, self.pixel_spacing, self.dilation, strict=True)
        if self.transposed and not all(0 <= extra < max(s, r) for extra, s, r in axes):
            # Only now: an output_size would have taken its place.
            raise ValueError(
                f"conv has output_padding {self.output_padding}; accepted: 0 or more, less than "
                f"the larger of stride {self.pixel_spacing} and dilation {self.dilation}"
            )
        shape = self._query_shape(spatial_shape)
        if min(shape) < 1:
            raise ValueError(
                f"no output is left: kernel_size {self.kernel_size} with dilation {self.dilation} "
                f"does not fit into the padded image, of shape {self._target_shape(spatial_shape)} "
                f"for padding {self._padding()} and spatial shape {spatial_shape}; accepted: a "
                "larger image"
            )
        return Lattice(shape, self.query_spacing, (0,) * self.dimension)

    def lattices(self, spatial_shape: tuple[int, ...]) -> tuple[Lattice, Lattice, Lattice, Lattice]:
        """The pixels, the targets, the explicit keys and the queries, found once for each shape.

        Raises:
            ValueError: as `queries`.
        """
        found = _lattices.__wrapped__ if is_traced() else _lattices
        return found(self, spatial_shape)

    def with_output_size(
        self, spatial_shape: tuple[int, ...], output_size: Sequence[int]
    ) -> Geometry:
        """The geometry whose queries have the given spatial shape, as `ConvTranspose` takes it.

        Args:
            spatial_shape: the input's.
            output_size: d integers, or the whole shape of the output, of which the last d count.

        Raises:
            TypeError: the convolution is not transposed.
            ValueError: the stride allows no such output.
        """
        d = self.dimension
        if not self.transposed:
            raise TypeError("output_size is accepted by transposed convolutions alone")
        if not isinstance(output_size, Sequence) or not all(
            isinstance(n, SupportsIndex) for n in output_size
        ):
            raise ValueError(
                f"output_size is {output_size!r}; accepted: a sequence of {d} integers"
            )
        # In traced code a size may be a symbol, of which no number is to be made.
        wanted = tuple(n if isinstance(n, int | torch.SymInt) else int(n) for n in output_size)
        if len(wanted) not in (d, d + 1, d + 2):
            raise ValueError(
                f"output_size must have {d} entries (or the output's rank), got {wanted}"
            )
        wanted = wanted[-d:]
        smallest = replace(self, output_padding=(0,) * d)._query_shape(spatial_shape)
        extra = tuple(w - n for w, n in zip(wanted, smallest, strict=True))
        if any(e < 0 or e >= s for e, s in zip(extra, self.pixel_spacing, strict=True)):
            largest = tuple(n + s - 1 for n, s in zip(smallest, self.pixel_spacing, strict=True))
            raise ValueError(
                f"output_size {wanted} is not possible for spatial shape {spatial_shape}; "
                f"accepted: {smallest} to {largest}"
            )
        return replace(self, output_padding=extra)

    def _padding(self) -> tuple[int, ...]:
        if not self.transposed:
            return self.before
        axes = zip(self.dilation, self.kernel_size, self.before, strict=True)
        return tuple(r * (k - 1) - before for r, k, before in axes)

    def _target_shape(self, spatial_shape: tuple[int, ...]) -> tuple[int, ...]:
        last = self.pixels(spatial_shape).last
        axes = zip(self.before, last, self.after, self.output_padding, strict=True)
        return tuple(before + end + 1 + after + extra for before, end, after, extra in axes)

    def _query_shape(self, spatial_shape: tuple[int, ...]) -> tuple[int, ...]:
        targets = self._target_shape(spatial_shape)
        axes = zip(targets, self.kernel_size, self.dilation, self.query_spacing, strict=True)
        return tuple((n - r * (k - 1) - 1) // s + 1 for n, k, r, s in axes)


@lru_cache(maxsize=1024)
def _lattices(
    geometry: Geometry, shape: tuple[int, ...]
) -> tuple[Lattice, Lattice, Lattice, Lattice]:
    return (
        geometry.pixels(shape),
        geometry.targets(shape),
        geometry.explicit_keys(shape),
        geometry.queries(shape),
    )


@lru_cache(maxsize=1024)
def offsets_in_order(geometry: Geometry) -> list[list[int]]:
    """The offsets of a geometry as plain numbers, not to be changed."""
    return geometry.offsets("cpu").tolist()


def checked_spatial_shape(x: Tensor, channels: int | None, dimension: int) -> tuple[int, ...]:
    """The last d sizes of an image; raises a ValueError unless it has the channels and a grid.

    Any number of channels will do where none is given.
    """
    d, shape = dimension, tuple(x.shape)
    if len(shape) not in (d + 1, d + 2):
        raise ValueError(
            f"x has shape {shape}; accepted: (channels, *{d} axes) or (batch, channels, *{d} axes)"
        )
    given, spatial = shape[-d - 1], shape[-d:]
    if channels is not None and given != channels:
        raise ValueError(f"x has {given} channels; accepted: {channels}")
    if 0 in spatial:
        raise ValueError(
            f"x has spatial shape {spatial}, an empty grid; accepted: at least one pixel on every "
            "axis"
        )
    return spatial
