"""Encodings: what a relative position looks like to a head, and how a head names its shift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.formats import unit_roundoff
from constructions.lattice import Lattice


@runtime_checkable
class Encoding(Protocol):
    """A relative positional encoding that lets a head select a shift.

    The score of head h at displacement δ is `sharpness / gap * <queries[h], features(δ)>`, up to a
    constant for each head.

    An encoding may also state

    * `on_axis(axis)`: the one-dimensional encodings of whose scores its own is the sum, if it is;
    * `natural_borders`: for a `padding_mode`, the encoding whose heads continue the image so by
      themselves, or None (default: itself for zeros, which a sink makes, and none else);
    * `score_error(grid)`: how much a computed `<queries[h], features>` may err (default: 0).
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


@runtime_checkable
class Separable(Encoding, Protocol):
    """An encoding whose score is the sum over axes of one-dimensional scores."""

    def on_axis(self, axis: int) -> Encoding:
        """The encoding of one axis."""


@dataclass(frozen=True)
class Quadratic:
    """The quadratic encoding: a head attends to the nearest pixel of (query + its shift).

    `r_δ = (‖δ‖², δ)` and `v = -(1, -2Δ)`, so that `<v, r_δ> = -‖δ - Δ‖² + ‖Δ‖²`, in any dimension
    d with D_p = d + 1 (arXiv 1911.03584, eq. 9 and Lemma 2). Integer displacements give exact
    integers. Theorem: `quadratic_scores_select_one_shift`.
    """

    def on_axis(self, axis: int) -> Quadratic:
        """Itself: a squared distance is the sum of those along the axes."""
        return self

    @property
    def natural_borders(self) -> Mapping[str, Encoding]:
        """The nearest pixel of a target beyond the edge is on the edge."""
        return {"replicate": self, "circular": Periodic()}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, d + 1) and queries (H, d + 1); see `Encoding.encode`."""
        squares = displacements.square().sum(dim=-1, keepdim=True)
        features = torch.cat([squares, displacements], dim=-1)
        queries = torch.cat([-torch.ones_like(shifts[:, :1]), 2 * shifts], dim=-1)
        return features, queries

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: two integer points differ by a squared distance of at least 1."""
        return 1.0


@dataclass(frozen=True)
class Periodic:
    """Every axis bent into a circle: a head attends to (query + its shift) modulo the grid.

    `r_δ = (cos θ_i, sin θ_i)` and `v = (cos φ_i, sin φ_i)` over the axes, θ = 2πδ/n and φ = 2πΔ/n,
    so that `<v, r_δ> = Σ cos(2π(δ_i - Δ_i)/n_i)`: minus half the squared chord, up to a constant.
    D_p = 2d. The gap 1 - cos(2π/n) falls as the grid grows. Theorem:
    `borders_are_limits_of_attention`.
    """

    def on_axis(self, axis: int) -> Periodic:
        """Itself: a sum over axes by definition."""
        return self

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """A circle has no edge; and a target beyond it is taken for another pixel, not for zero."""
        return {"circular": self, "zeros": None}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 2d) and queries (H, 2d); see `Encoding.encode`."""
        turn = 2 * math.pi / displacements.new_tensor(grid.shape)

        def on_circles(points: Tensor) -> Tensor:
            # Reduced to one turn first: exact for integers, and cos and sin err least there.
            angles = points.remainder(displacements.new_tensor(grid.shape)) * turn
            return torch.cat([angles.cos(), angles.sin()], dim=-1)

        return on_circles(displacements), on_circles(shifts)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1 - cos(2π/n) for the longest axis, less what a computed score may err; 1 for one key."""
        longest = max(grid.shape)
        if longest == 1:
            return 1.0
        # 2 sin² does not cancel, as 1 - cos does.
        exact = 2 * math.sin(math.pi / longest) ** 2
        gap = exact * (1 - 2**-49) - 2 * self.score_error(grid)
        if gap <= 0:
            raise ValueError(
                f"grid has {longest} keys on an axis, too many for periodic scores to tell apart; "
                "accepted: fewer, or padded keys with another encoding"
            )
        return gap

    def score_error(self, grid: Lattice) -> float:
        """16 units for each axis: four entries, their products and sums, each of modulus 1."""
        return 16 * grid.dimension * unit_roundoff(torch.float64)


@dataclass(frozen=True)
class Window:
    """A window bias: a head attends alike to all keys from its query to the far end of a window.

    `r_δ` is 0 for 0 <= δ < size on every axis, else -inf, and v = 1. No shift is selected and no
    sharpness matters: the one head of average pooling.

    Args:
        size: keys per axis.
    """

    size: tuple[int, ...]

    def on_axis(self, axis: int) -> Window:
        """The window on one axis: 0 and -inf add up as the window is the product of intervals."""
        return Window((self.size[axis],))

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 1) and queries (H, 1), for shifts of 0; see `Encoding.encode`."""
        size = displacements.new_tensor(self.size)
        inside = ((displacements >= 0) & (displacements < size)).all(dim=-1, keepdim=True)
        features = torch.where(inside, 0.0, -torch.inf).to(displacements.dtype)
        return features, torch.ones_like(shifts[:, :1])

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The unit of its scores, which are 0 and -inf at any sharpness."""
        return 1.0


def relative_score_error(encoding: Encoding, grid: Lattice) -> float:
    """What the rounding of an encoding can do to a difference of two scores, over the sharpness."""
    error = getattr(encoding, "score_error", None)
    if error is None:
        return 0.0
    nowhere = torch.zeros(1, grid.dimension, dtype=torch.float64)
    return 2 * float(error(grid)) / encoding.gap(nowhere, grid)


ENCODINGS: Mapping[str, Encoding] = {"quadratic": Quadratic(), "periodic": Periodic()}
