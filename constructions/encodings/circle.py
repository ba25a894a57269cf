"""The circle: the kernel's own offsets on a circle, every other offset at its centre."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values

UNIT = 2**25
"""Vertices have coordinates n / 2^25, so that products and sums of two are exact in float64."""

MOST = 2**13
"""The largest number of shifts that vertices on that grid tell apart."""


@dataclass(frozen=True)
class Circle(Encoding):
    """The kernel's offsets on a circle, all others at its centre: the gap knows no grid.

    `r_δ = (cos 2πj/N, sin 2πj/N)` for the j-th of the N different shifts, in their lexicographic
    order, and 0 for any other displacement; v of a head is the r of its shift. D_p = 2 in any
    dimension. The gap is 1 for N <= 4 and 1 - cos(2π/N) beyond, whatever the grid, up to the
    rounding of the vertices to multiples of 2^-25: the scores are then exact, and so is the stated
    gap. Theorem: `two_dimensions_select_every_shift`.
    """

    theorem: ClassVar[str] = "two_dimensions_select_every_shift"

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 2) and names (H, 2); see `Encoding.encode`."""
        known = _distinct(shifts)
        points, _ = _vertices(len(known))
        vertices = displacements.new_tensor(points) / UNIT

        def placed(offsets: Tensor) -> Tensor:
            # A row has a single 1, or none: the product picks a vertex, or the centre.
            is_known = (offsets.detach().unsqueeze(1) == known).all(dim=-1)
            return is_known.to(vertices.dtype) @ vertices

        return placed(displacements), placed(shifts)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """min(1, 1 - cos(2π/N)) for the vertices as they are rounded, exactly.

        Raises:
            ValueError: there are more than 8192 different shifts.
        """
        return _vertices(len(_distinct(shifts)))[1]


def _distinct(shifts: Tensor) -> Tensor:
    """The different shifts, in lexicographic order."""
    shifts = shifts.detach()
    if not has_values(shifts):
        return shifts  # values cannot be looked at; those of a construction differ and are in order
    distinct: Tensor = torch.unique(shifts.cpu(), dim=0)
    return distinct.to(shifts.device)


def _vertices(count: int) -> tuple[tuple[tuple[int, int], ...], float]:
    """The vertices of a regular polygon times 2^25, rounded to integers, and the gap of its heads.

    The runner-up of a vertex is a neighbour, or the centre, whose score is 0.
    """
    if count > MOST:
        raise ValueError(
            f"shifts has {count} different rows; accepted: at most {MOST} on one circle"
        )
    angles = [2 * math.pi * j / count for j in range(count)]
    points = tuple((round(UNIT * math.cos(a)), round(UNIT * math.sin(a))) for a in angles)
    pairs = zip(points, points[1:] + points[:1], strict=True)
    beside = [a * c + b * d for (a, b), (c, d) in pairs] if count > 1 else [0]
    margins = (a * a + b * b - max(0, beside[j - 1], beside[j]) for j, (a, b) in enumerate(points))
    return points, min(margins) / UNIT**2
