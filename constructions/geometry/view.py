"""Boundaries, and the view of an input: which keys there are, and what stands on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import PADDING_MODES, PaddingMode, check_reach, padded
from constructions.geometry.window import WindowGeometry


@dataclass(frozen=True)
class Boundary:
    """Whether what lies beyond the edge is made of keys, or comes of attention itself.

    Natural: the pixels are the keys, and borders are limits of attention. A quadratic head whose
    target has left the grid attends to the nearest pixel, which is replicate padding; with a sink
    it attends to nothing, which is zero padding; a periodic head never leaves. Theorem:
    `borders_are_limits_of_attention`. Padded: explicit keys at every target, the paper's
    prescription, for every border and encoding.

    Args:
        name: "natural" or "padded", as `attention_from_conv` takes it.
        sink_height: c, between 0 and 1: where zeros are made by a sink, it stands at c times the
            gap below a target. Half makes the smaller of the two gaps largest (T5). None for no
            sink: every target has a key.
    """

    name: str
    sink_height: float | None

    def sink(self, border: PaddingMode, geometry: Geometry) -> float | None:
        """The height of the sink, where zeros are wanted and a target can miss the pixels."""
        wanted = border.name == "zeros" and geometry.can_miss
        return self.sink_height if wanted else None

    def keys(self, pixels: Lattice, explicit_keys: Lattice) -> Lattice:
        """Where the keys stand: on the pixels, or at every target."""
        return pixels if self.name == "natural" else explicit_keys


NATURAL = Boundary("natural", 0.5)
PADDED = Boundary("padded", None)

BOUNDARIES: Mapping[str, Boundary] = {b.name: b for b in (NATURAL, PADDED)}


def boundary_of(window: WindowGeometry) -> Boundary:
    """The boundary of an average pooling: its keys are the pixels if torch counts them alone."""
    return NATURAL if window.counted == "pixels" else PADDED


@lru_cache(maxsize=1024)
def check_view(geometry: Geometry, padding_mode: str, spatial_shape: tuple[int, ...]) -> None:
    """Raise a ValueError where an image of a shape has no output, or its border no such reach."""
    pixels, targets, _, _ = geometry.lattices(spatial_shape)
    check_reach(PADDING_MODES[padding_mode], pixels, targets)


@dataclass(frozen=True)
class View:
    """One input, on the lattices that a layer sees it on.

    Args:
        image: (N, D_in, *pixels.shape).
        border: what stands beyond its edge.
        pixels: where its pixels stand.
        targets: every position that a tap can be asked for.
        keys: where the keys stand.
        queries: where the outputs stand.
    """

    image: Tensor
    border: PaddingMode
    pixels: Lattice
    targets: Lattice
    keys: Lattice
    queries: Lattice

    @classmethod
    def of(cls, image: Tensor, geometry: Geometry, border: PaddingMode, boundary: Boundary) -> View:
        """The view of an image (N, D_in, *spatial) by a convolution's geometry.

        Raises:
            ValueError: no output is left, or the targets reach further than the border is defined.
        """
        shape = tuple(image.shape[2:])
        pixels, targets, explicit_keys, queries = geometry.lattices(shape)
        check_reach(border, pixels, targets)
        return cls(image, border, pixels, targets, boundary.keys(pixels, explicit_keys), queries)

    @property
    def values(self) -> Tensor:
        """What stands on the keys, the sink apart: (N, D_in, *keys.shape)."""
        return padded(self.image, self.pixels, self.keys, self.border)

    @property
    def at_targets(self) -> Tensor:
        """What stands at the targets, the limit of what heads see: (N, D_in, *targets.shape)."""
        return padded(self.image, self.pixels, self.targets, self.border)
