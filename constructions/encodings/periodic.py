"""The periodic encoding: circular borders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.tracing import tensor_of


@dataclass(frozen=True)
class Periodic(Encoding):
    """Every axis bent into a circle: a head attends to (query + its shift) modulo the grid.

    `r_δ = (cos θ_i, sin θ_i)` and `v = (cos φ_i, sin φ_i)` over the axes, θ = 2πδ/n and φ = 2πΔ/n,
    so that `<v, r_δ> = Σ cos(2π(δ_i - Δ_i)/n_i)`: minus half the squared chord, up to a constant.
    D_p = 2d. The gap 1 - cos(2π/n) falls as the grid grows. Theorem:
    `borders_are_limits_of_attention`.
    """

    theorem: ClassVar[str] = "borders_are_limits_of_attention"
    crowded: ClassVar[bool] = False

    def on_axis(self, axis: int) -> Periodic:
        """Itself: a sum over axes by definition."""
        return self

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """A circle has no edge; and a target beyond it is taken for another pixel, not for zero."""
        return {"circular": self, "zeros": None}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 2d) and names (H, 2d); see `Encoding.encode`."""
        sizes = tensor_of(grid.shape, displacements)
        turn = 2 * math.pi / sizes

        def on_circles(points: Tensor) -> Tensor:
            # Reduced to one turn first: exact for integers, and cos and sin err least there.
            angles = points.remainder(sizes) * turn
            return torch.cat([angles.cos(), angles.sin()], dim=-1)

        return on_circles(displacements), on_circles(shifts)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1 - cos(2π/n) for the longest axis, less what a computed score may err; 1 for one key."""
        longest = max(grid.shape)
        if longest == 1:
            return 1.0
        # 2 sin² does not cancel, as 1 - cos does.
        exact = 2 * math.sin(math.pi / longest) ** 2
        gap = exact * (1 - 2**-49) - 2 * self.score_error(shifts, grid)
        if gap <= 0:
            raise ValueError(
                f"grid has {longest} keys on an axis, too many for periodic scores to tell apart; "
                "accepted: fewer, or padded keys with another encoding"
            )
        return gap

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """16 units for each axis: four entries, their products and sums, each of modulus 1."""
        return 16 * grid.dimension * unit_roundoff(torch.float64)
