"""Mixtures: heads whose weights at the taps are given, as few as the rank of a kernel asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, Mixing
from constructions.encodings.scalar import check_distinct, order_of, wide_device
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values

MASKED = -4096.0
"""The logit of a key that a head does not see: its exponential is 0 in every format, and stays so
where the logit of the head's own key, far closer to 0, is taken from it."""

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, repr=False)
class Mixtures(Mixing):
    """The heads of a kernel of low rank: each has its own weights at the taps, and one elsewhere.

    `r_δ` is the unit vector of the tap at δ, or of all other displacements, and `v_h` the logits of
    head h: D_p is one more than there are taps. What the heads see is told apart by matrices that
    are found from the kernel; so they serve the kernels of one column space. Signed heads have a
    second softmax, `minus`, which is taken from the first. Theorem:
    `heads_count_the_rank_of_the_kernel`.

    Args:
        offsets: of the taps that are not 0.
        places: their numbers among all taps.
        names: what names each head, (H, d), in lexicographic order: one of the taps, or a place
            between them.
        logits: of each head, at the taps and, last, at every other key; 0 at its name.
        torus: whether displacements are taken modulo the grid, for circular borders.
        minus: the second softmax of signed heads, of the same offsets and names.
        ratios: what its exponentials are multiplied by.
        told: how many heads there are, and why, in words.
    """

    offsets: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]
    names: Table
    logits: Table
    torus: bool = False
    minus: Mixtures | None = None
    ratios: tuple[float, ...] = ()
    told: str = ""

    theorem: ClassVar[str] = "heads_count_the_rank_of_the_kernel"

    def __repr__(self) -> str:
        return f"Mixtures({self.told or f'{len(self.logits)} heads'})"

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """A torus has no border; where a window loses taps to a border, its mixtures are wrong."""
        minus = None if self.minus is None else replace(self.minus, torus=True)
        return {"circular": replace(self, torus=True, minus=minus), "zeros": None}

    @property
    def sees_taps_alone(self) -> bool:
        """Whether no head, or no difference of two, sees a key outside of the window."""
        return self.minus is not None or all(row[-1] == MASKED for row in self.logits)

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, N + 1) and names (H, N + 1); see `Encoding.encode`."""
        taps = len(self.offsets)
        there = self._modulo(displacements, grid)
        place = torch.full_like(there[:, 0], taps, dtype=torch.int64)
        if taps:
            here = self._modulo(self._tensor(self.offsets, there), grid)
            met = (there.unsqueeze(1) == here).all(dim=-1)  # (M, N)
            place = torch.where(met.any(dim=-1), met.to(torch.int64).argmax(dim=-1), place)
        unit = torch.eye(taps + 1, dtype=there.dtype, device=there.device)
        return unit[place], self._tensor(self.logits, shifts)[order_of(shifts)]

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The unit of its scores, which no sharpness multiplies."""
        return 1.0

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """Logits are exact; two differences of those that are seen are rounded."""
        tables = self.logits if self.minus is None else self.logits + self.minus.logits
        seen = max((abs(v) for row in tables for v in row if v > MASKED / 2), default=0.0)
        return 8 * seen * unit_roundoff(torch.float64)

    def heads(self, offsets: Tensor) -> Tensor:
        """What names the heads, (H, d)."""
        return self._tensor(self.names, offsets)

    def exponentials(self) -> Tensor:
        """E: of each head at the taps that are not 0 and elsewhere, (H, N + 1), float64 on the CPU.

        Those of the second softmax are taken away.
        """
        weights: Tensor = torch.tensor(self.logits, dtype=torch.float64, device="cpu").exp()
        if self.minus is not None:
            ratios = torch.tensor(self.ratios, dtype=torch.float64, device="cpu")
            weights = weights - ratios.unsqueeze(-1) * self.minus.exponentials()
        return weights

    def coefficients(self, offsets: Tensor) -> Tensor:
        """The least squares solution of EᵀV = M, 0 at the keys outside: V = b M, b (H, taps)."""
        weights = self.exponentials()
        inverse: Tensor = torch.linalg.pinv(weights.T)
        # One Newton step: the residual is as small as float64 has it.
        inverse = 2 * inverse - inverse @ weights.T @ inverse
        found = inverse.new_zeros(len(inverse), len(offsets))
        found[:, list(self.places)] = inverse[:, :-1]
        return found

    def gains(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """Z_h: N taps and `keys.size - N` others, for every query that sees its whole window.

        Raises:
            ValueError: two taps of a torus are one pixel.
        """
        window = self._tensor(self.offsets, shifts)
        if self.torus and self.offsets and has_values(shifts):
            check_distinct(window, keys)
        device = wide_device(shifts.device)
        weights = torch.tensor(self.logits, dtype=torch.float64, device=device).exp()
        sums = weights[:, :-1].sum(dim=-1) + (keys.size - len(self.offsets)) * weights[:, -1]
        return sums[order_of(shifts).to(device)]

    def shares(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """λ_h: how much of the second softmax is taken from the first, (H,)."""
        assert self.minus is not None
        sums = self.minus.gains(shifts, keys) / self.gains(shifts, keys)
        return sums * sums.new_tensor(self.ratios)[order_of(shifts).to(sums.device)]

    def taps_of(self, mixtures: Tensor, shifts: Tensor, taps: int) -> Tensor:
        """The matrices of the taps, EᵀV; 0 for those that no head sees. See `Mixing.taps_of`."""
        weights = self.exponentials()[:, :-1].to(mixtures.device)[order_of(shifts)]
        found = weights.new_zeros(taps, *mixtures.shape[1:])
        seen = weights.T @ mixtures.to(weights.dtype).flatten(1)
        found[list(self.places)] = seen.reshape(-1, *mixtures.shape[1:])
        return found

    def _modulo(self, points: Tensor, grid: Lattice) -> Tensor:
        return points.remainder(points.new_tensor(grid.shape)) if self.torus else points

    @staticmethod
    def _tensor(numbers: object, like: Tensor) -> Tensor:
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)
