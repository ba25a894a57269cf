"""The quadratic encoding of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.encodings.periodic import Periodic
from constructions.geometry.lattice import Lattice


@dataclass(frozen=True)
class Quadratic(Encoding):
    """The quadratic encoding: a head attends to the nearest pixel of (query + its shift).

    `r_δ = (‖δ‖², δ)` and `v = -(1, -2Δ)`, so that `<v, r_δ> = -‖δ - Δ‖² + ‖Δ‖²`, in any dimension
    d with D_p = d + 1 (arXiv 1911.03584, eq. 9 and Lemma 2). Integer displacements give exact
    integers. Theorem: `quadratic_scores_select_one_shift`.
    """

    theorem: ClassVar[str] = "quadratic_scores_select_one_shift"
    crowded: ClassVar[bool] = False
    everywhere: ClassVar[bool] = True
    integer_differences: ClassVar[bool] = True

    def on_axis(self, axis: int) -> Quadratic:
        """Itself: a squared distance is the sum of those along the axes."""
        return self

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """The nearest pixel of a target beyond the edge is on the edge."""
        return {"replicate": self, "circular": Periodic()}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, d + 1) and names (H, d + 1); see `Encoding.encode`."""
        squares = displacements.square().sum(dim=-1, keepdim=True)
        features = torch.cat([squares, displacements], dim=-1)
        names = torch.cat([-torch.ones_like(shifts[:, :1]), 2 * shifts], dim=-1)
        return features, names

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: two integer points differ by a squared distance of at least 1."""
        return 1.0
