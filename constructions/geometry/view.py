"""Boundaries: whether what lies beyond the edge is made of keys, or comes of attention itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from constructions.encodings import Encoding
from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import PaddingMode, padded


@dataclass(frozen=True)
class View:
    """One input, on the lattices that a layer sees it on.

    Args:
        image: (N, D_in, *pixels.shape).
        pixels: where its pixels stand.
        targets: every position that a tap can be asked for.
        explicit_keys: where keys stand if the border is made of keys.
        queries: where the outputs stand.
    """

    image: Tensor
    pixels: Lattice
    targets: Lattice
    explicit_keys: Lattice
    queries: Lattice

    @classmethod
    def of(cls, image: Tensor, geometry: Geometry) -> View:
        """The view of an image (N, D_in, *spatial) by a convolution's geometry."""
        return cls(image, *geometry.lattices(tuple(image.shape[2:])))


class Boundary(Protocol):
    """Decides which keys there are."""

    @property
    def name(self) -> str:
        """The name that `attention_from_conv` takes."""

    def has_sink(self, border: PaddingMode, geometry: Geometry) -> bool:
        """Whether there is one more key, of zero value, that heads fall back to."""

    def keys(self, view: View) -> Lattice:
        """Where the keys stand."""

    def values(self, view: View, border: PaddingMode) -> Tensor:
        """What stands on the keys: (N, D_in, *keys shape)."""


@dataclass(frozen=True)
class Padded:
    """Explicit keys at every target: the paper's prescription, for every border and encoding."""

    name: str = "padded"

    def has_sink(self, border: PaddingMode, geometry: Geometry) -> bool:
        """Never: every target has a key."""
        return False

    def keys(self, view: View) -> Lattice:
        """The targets themselves."""
        return view.explicit_keys

    def values(self, view: View, border: PaddingMode) -> Tensor:
        """The image, continued by its border and stuffed with zeros."""
        return padded(view.image, view.pixels, view.explicit_keys, border)


@dataclass(frozen=True)
class Natural:
    """The pixels are the keys: borders are limits of attention.

    A quadratic head whose target has left the grid attends to the nearest pixel, which is replicate
    padding; with a sink it attends to nothing, which is zero padding; a periodic head never leaves.
    Theorem: `borders_are_limits_of_attention`.
    """

    name: str = "natural"

    def has_sink(self, border: PaddingMode, geometry: Geometry) -> bool:
        """Where zeros are wanted and a target can miss the pixels."""
        return border.name == "zeros" and geometry.can_miss

    def keys(self, view: View) -> Lattice:
        """The pixels."""
        return view.pixels

    def values(self, view: View, border: PaddingMode) -> Tensor:
        """The image."""
        return view.image


def natural_encoding(encoding: Encoding, mode: str) -> Encoding | None:
    """The encoding that makes a border natural, or None.

    Zeros need a sink alone, so that an encoding will do unless it says otherwise; the other borders
    are the encoding's own.
    """
    borders: Mapping[str, Encoding | None] = getattr(encoding, "natural_borders", {})
    return borders.get(mode, encoding if mode == "zeros" else None)


BOUNDARIES: Mapping[str, Boundary] = {b.name: b for b in (Natural(), Padded())}
