"""The uniform head: the one head of average pooling."""

from __future__ import annotations

import torch

from constructions.encodings import Window
from constructions.geometry.window import WindowGeometry
from constructions.heads.heads import Heads, Kind
from constructions.heads.per_tap import factored, identities
from constructions.sources import Stencil


def uniform(stencil: Stencil) -> Heads:
    """One head that shares its attention evenly over the keys of a window.

    Its matrix is 1, or what a divisor other than the number of keys makes of it, for every channel
    alike. Theorem: `hyperparameters_are_lattices_and_offsets`.

    Raises:
        ValueError: the stencil has no window.
    """
    geometry = stencil.geometry
    if not isinstance(geometry, WindowGeometry):
        raise ValueError("stencil has taps and no window; accepted: that of an average pooling")
    shifts = geometry.offsets("cpu").to(torch.float64)
    encoding = Window(geometry.window)
    key = identities(encoding, shifts, stencil)
    return Heads(encoding, shifts, key, *factored(stencil.matrices), kind=Kind.UNIFORM)
