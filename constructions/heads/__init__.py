"""Heads: constructions from a stencil, each head a place to look and a matrix to apply."""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.encodings import Encoding, Mixing
from constructions.geometry.geometry import Geometry
from constructions.geometry.window import WindowGeometry
from constructions.heads.counting import HeadCount, HeadCounts, count, count_heads
from constructions.heads.heads import Heads, Kind
from constructions.heads.identify import IdentifiedHeads, identify
from constructions.heads.minimal import mixtures
from constructions.heads.mixing import combined, mixing
from constructions.heads.narrow import NarrowCount, narrow, narrow_count
from constructions.heads.per_tap import factored, per_tap
from constructions.heads.rational import RationalCertificate
from constructions.heads.stacked import stacked
from constructions.heads.uniform import uniform
from constructions.sources import Stencil

__all__ = [
    "HeadCount",
    "HeadCounts",
    "Heads",
    "IdentifiedHeads",
    "Kind",
    "NarrowCount",
    "RationalCertificate",
    "count",
    "count_heads",
    "factors_of",
    "heads_of",
    "identify",
    "mixing",
    "mixtures",
    "narrow",
    "narrow_count",
    "per_tap",
    "stacked",
    "uniform",
]


def heads_of(stencil: Stencil, encoding: Encoding, head_dim: int | None = None) -> Heads:
    """The heads that express a stencil with an encoding: uniform, mixing, or one for each tap.

    With a head dimension, as many for each tap as it takes.

    Raises:
        ValueError: as the construction; or a head dimension where heads do not select taps.
    """
    if head_dim is not None:
        if isinstance(stencil.geometry, WindowGeometry) or isinstance(encoding, Mixing):
            what = "an average pooling, whose head treats every channel alike and apart"
            if isinstance(encoding, Mixing):
                what = f"{encoding}, whose heads mix all taps"
            raise ValueError(f"head_dim is {head_dim}; accepted: None, for {what}")
        return narrow(stencil, encoding, head_dim)
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
