"""Encodings: what a relative position looks like to a head, and how a head names its shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.lattice import Lattice


@runtime_checkable
class Encoding(Protocol):
    """A relative positional encoding that lets a head select a shift.

    The score of head h at displacement δ is `sharpness / gap * <queries[h], features(δ)>`, up to a
    constant for each head.
    """

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features of displacements and names of shifts.

        Args:
            displacements: (M, d), key minus query, in pixels, floating point.
            shifts: (H, d), the displacement that each head selects, of the same dtype.
            grid: the lattice that the keys stand on.

        Returns:
            features (M, D_p), the r_δ of the paper, and queries (H, D_p), its v.
        """

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The least difference in `<queries[h], features>` between a head's shift and any other."""


@dataclass(frozen=True)
class Quadratic:
    """The quadratic encoding: a head attends to the nearest pixel of (query + its shift).

    `r_δ = (‖δ‖², δ)` and `v = -(1, -2Δ)`, so that `<v, r_δ> = -‖δ - Δ‖² + ‖Δ‖²`, in any dimension
    d with D_p = d + 1 (arXiv 1911.03584, eq. 9 and Lemma 2). Integer displacements give exact
    integers. Theorem: `quadratic_scores_select_one_shift`.
    """

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, d + 1) and queries (H, d + 1); see `Encoding.encode`."""
        squares = displacements.square().sum(dim=-1, keepdim=True)
        features = torch.cat([squares, displacements], dim=-1)
        queries = torch.cat([-torch.ones_like(shifts[:, :1]), 2 * shifts], dim=-1)
        return features, queries

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: two integer points differ by a squared distance of at least 1."""
        return 1.0


ENCODINGS: Mapping[str, Encoding] = {"quadratic": Quadratic()}
