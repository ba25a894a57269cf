"""Heads: constructions from a stencil, each head a place to look and a matrix to apply."""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.encodings import Encoding, Mixing
from constructions.geometry.geometry import Geometry
from constructions.geometry.window import WindowGeometry
from constructions.heads.counting import HeadCount, HeadCounts, count, count_heads
from constructions.heads.heads import Heads, Kind
from constructions.heads.minimal import mixtures
from constructions.heads.mixing import combined, mixing
from constructions.heads.per_tap import factored, per_tap
from constructions.heads.rational import RationalCertificate
from constructions.heads.uniform import uniform
from constructions.sources import Stencil

__all__ = [
    "HeadCount",
    "HeadCounts",
    "Heads",
    "Kind",
    "RationalCertificate",
    "count",
    "count_heads",
    "factors_of",
    "heads_of",
    "mixing",
    "mixtures",
    "per_tap",
    "uniform",
]


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


def factors_of(
    matrices: Tensor, geometry: Geometry, encoding: Encoding
) -> tuple[Tensor | None, Tensor | None]:
    """W_val and W_out of the heads of a stencil of taps; gradients flow through them.

    Args:
        matrices: of the taps, (taps, G, D_in / G, D_out / G).
        geometry: of the stencil.
        encoding: of the heads.
    """
    if isinstance(encoding, Mixing):
        matrices = combined(matrices, geometry.offsets("cpu").to(torch.float64), encoding)
    return factored(matrices)
