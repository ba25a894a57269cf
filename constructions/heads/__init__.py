"""Heads: constructions from a stencil, each head a place to look and a matrix to apply."""

from __future__ import annotations

from constructions.encodings import Encoding, Mixing
from constructions.geometry.window import WindowGeometry
from constructions.heads.heads import Heads, Kind
from constructions.heads.mixing import mixing
from constructions.heads.per_tap import per_tap
from constructions.heads.uniform import uniform
from constructions.sources import Stencil

__all__ = ["Heads", "Kind", "heads_of", "mixing", "per_tap", "uniform"]


def heads_of(stencil: Stencil, encoding: Encoding) -> Heads:
    """The heads that express a stencil with an encoding: uniform, mixing, or one for each tap.

    Raises:
        ValueError: as the construction.
    """
    if isinstance(stencil.geometry, WindowGeometry):
        return uniform(stencil)
    if isinstance(encoding, Mixing):
        return mixing(stencil, encoding)
    return per_tap(stencil, encoding)
