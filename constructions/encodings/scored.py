"""Scored: any function of the displacement as an encoding, by a table of its values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values, is_traced


@dataclass(frozen=True)
class Scored(Encoding):
    """A score function, tabulated: the score of head h at displacement δ is s(δ - Δ_h).

    `r_δ` is the one-hot vector of δ among the displacements within reach of a shift, and v is
    (s(t - Δ))_t, so that `<v, r_δ> = s(δ - Δ)`. Beyond its reach s continues as it is there,
    coordinate by coordinate, as clipped relative positions do (arXiv 1803.02155). D_p = Π (m_i + 2
    reach_i), where the shifts span m_i pixels on axis i; a layer keeps D_p² numbers for each head,
    so that the reach is to be small.

    Args:
        score: from (M, d), displacements from the shift, float64, to (M,); the largest at 0.
        reach: how far s is tabulated on each axis, at least 1; one number for all axes, or one
            each.

    Raises:
        TypeError: score is not callable, or the reach no integers.
        ValueError: the reach is below 1.
    """

    score: Callable[[Tensor], Tensor]
    reach: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise TypeError(f"score is {self.score!r}; accepted: a function of displacements")
        sizes = self.reach if isinstance(self.reach, tuple) else (self.reach,)
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes) or not sizes:
            raise TypeError(f"reach is {self.reach!r}; accepted: an integer, or a tuple of them")
        if min(sizes) < 1:
            raise ValueError(f"reach is {self.reach}; accepted: 1 or more on each axis")

    @property
    def everywhere(self) -> bool:
        """Not: a score without a peak at 0 selects nothing."""
        return False

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, D_p) and names (H, D_p); see `Encoding.encode`."""
        table = self._table(shifts)
        low, high = table[0], table[-1]
        within = displacements.round().clamp(low, high)
        features = (within.unsqueeze(1) == table).all(-1).to(displacements.dtype)
        names = self.at((table - shifts.unsqueeze(1)).reshape(-1, shifts.shape[1]))
        return features, names.reshape(len(shifts), -1).to(displacements.dtype)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """s(0) less the largest of its other values within reach."""
        self._check_readable(shifts)
        reaches = self._reaches(shifts.shape[1])
        box = itertools.product(*(range(-n, n + 1) for n in reaches))
        points = torch.tensor([p for p in box if any(p)], dtype=torch.float64)
        peak, others = self.at(0 * points[:1]), self.at(points)
        gap = float(peak - others.max())
        if not gap > 0:
            highest, where = float(others.max()), points[int(others.argmax())].tolist()
            raise ValueError(
                f"encoding is {self}, whose score is {float(peak):g} at 0 and {highest:g} at "
                f"{where}; accepted: one with its largest value at 0 alone"
            )
        return gap

    def at(self, points: Tensor) -> Tensor:
        """s, continued beyond its reach; checked.

        Args:
            points: (M, d), displacements from a shift.

        Raises:
            ValueError: the function returns another shape, or what is not finite.
        """
        reaches = points.new_tensor(self._reaches(points.shape[1]), dtype=torch.float64)
        given = torch.minimum(torch.maximum(points.double(), -reaches), reaches)
        values = self.score(given)
        if not isinstance(values, Tensor) or values.shape != (len(points),):
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"encoding is {self}, whose score returns {found} for {len(points)} displacements; "
                f"accepted: a tensor of shape ({len(points)},)"
            )
        if has_values(values) and not values.isfinite().all():
            raise ValueError(
                f"encoding is {self}, whose score is not finite everywhere; accepted: a finite one"
            )
        return values.double()

    def _reaches(self, dimension: int) -> tuple[int, ...]:
        if not isinstance(self.reach, tuple):
            return (self.reach,) * dimension
        if len(self.reach) != dimension:
            raise ValueError(
                f"encoding is {self}, of {len(self.reach)} axes, for shifts of {dimension}; "
                "accepted: one reach, or one for each axis"
            )
        return self.reach

    def _check_readable(self, shifts: Tensor) -> None:
        if is_traced() or not has_values(shifts):
            raise ValueError(
                f"encoding is {self}, whose table depends on the shifts, which are on the meta "
                "device or traced; accepted: shifts whose numbers can be read"
            )

    def _table(self, shifts: Tensor) -> Tensor:
        """The displacements that have an entry, row-major: (D_p, d)."""
        self._check_readable(shifts)
        axes = [
            torch.arange(int(low.floor()) - n, int(high.ceil()) + n + 1)
            for low, high, n in zip(
                shifts.amin(0), shifts.amax(0), self._reaches(shifts.shape[1]), strict=True
            )
        ]
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        return points.to(shifts)
