"""Where the pixels, the keys, the queries and the windows of an average pooling stand.

What torch counts in the divisor is nothing but the set of keys that share the attention: the
pixels, the padded pixels, or every position of the window.
"""

from __future__ import annotations

from dataclasses import dataclass

from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice

WHOLE = 2**31 - 1
"""The window of a pooling to one pixel: larger than any image, of which it hangs over the end."""


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
            n >= w or w == WHOLE for n, w in zip(spatial_shape, self.window, strict=True)
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
