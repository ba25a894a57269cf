"""The flattened encoding: a displacement as one number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, farthest
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values, tensor_of

LARGEST = 2**53
"""Up to here every integer is a float64."""


@dataclass(frozen=True)
class Flattened(Encoding):
    """Displacements flattened to integers: two dimensions select every shift.

    `z(δ) = Σ δ_i w_i` with `w_i = Π_{j > i} radix_j`, as the index into an array of shape `radix`;
    `r_δ = (z(δ)², z(δ))` and `v = (-1, 2 z(Δ))`, so that `<v, r_δ> = -z(δ - Δ)² + z(Δ)²`, exact
    integers. D_p = 2 in any dimension, and the gap is 1: no other key has z(key - target) = 0, and
    no two keys have the same. Theorem: `two_dimensions_select_every_shift`.

    Args:
        radix: one integer for each axis, that of the first without effect; on the others at least
            one more than the largest distance from a target to a key, and than that between two
            keys. None for the least that will do, found at each call.

    Raises:
        TypeError: radix is neither None nor a tuple of integers.
        ValueError: it is empty, has an entry below 1, or their product is beyond float64.
    """

    radix: tuple[int, ...] | None = None

    theorem: ClassVar[str] = "two_dimensions_select_every_shift"
    crowded: ClassVar[bool] = False

    @property
    def bounded_reach(self) -> bool:
        """Whether the radix is given: found at each call, it is enough for any distances."""
        return self.radix is not None

    def __post_init__(self) -> None:
        accepted = "accepted: None, or a tuple with an integer of at least 1 for each axis"
        if self.radix is None:
            return
        if not isinstance(self.radix, tuple) or not all(type(n) is int for n in self.radix):
            raise TypeError(f"radix is {self.radix!r}; {accepted}")
        if min(self.radix, default=0) < 1 or math.prod(self.radix[1:]) > LARGEST:
            raise ValueError(f"radix is {self.radix}; {accepted}, their product at most 2^53")

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 2) and names (H, 2); see `Encoding.encode`.

        Raises:
            ValueError: the radix is too small for these displacements and shifts; or the grid is so
                large that their dtype does not hold the scores exactly.
        """
        known, names = displacements.detach(), shifts.detach()
        between_keys = tensor_of(_extent(grid), displacements)
        # Every displacement is met with every shift: the largest |δ_i - Δ_i| over all pairs.
        reach = torch.maximum(known.amax(0) - names.amin(0), names.amax(0) - known.amin(0))
        reach = torch.maximum(reach, between_keys).ceil()
        can_look = has_values(reach)
        if self.radix is None:
            radix = reach + 1
        else:
            if can_look:
                self._check_radix([int(m) for m in reach.tolist()], grid)
            radix = displacements.new_tensor(self.radix)
        weights = torch.cat([radix[1:].flip(0).cumprod(0).flip(0), torch.ones_like(radix[:1])])
        if can_look:
            _check_range(known.abs().amax(0) * weights, (names * weights).sum(-1), grid)
        flat = (displacements * weights).sum(dim=-1, keepdim=True)
        named = (shifts * weights).sum(dim=-1, keepdim=True)
        features = torch.cat([flat.square(), flat], dim=-1)
        return features, torch.cat([-torch.ones_like(named), 2 * named], dim=-1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: no integer but zero has a square below 1.

        Raises:
            ValueError: the radix is too small for some queries that these keys and shifts allow.
        """
        if self.radix is not None and has_values(shifts):
            self._check_radix(farthest(shifts, grid), grid)
        return 1.0

    def _check_radix(self, reach: tuple[int, ...] | list[int], grid: Lattice) -> None:
        """Raise unless z(e) is not zero for any integer point e ≠ 0 with |e_i| <= reach_i."""
        assert self.radix is not None
        if len(self.radix) != len(reach):
            raise ValueError(
                f"radix is {self.radix}; accepted: {len(reach)} integers, one for each axis"
            )
        # Axes on which nothing moves have no digit: the others follow each other.
        weights = [1, *accumulate(reversed(self.radix), lambda a, b: a * b)]
        next_up = [(w, m) for w, m in zip(weights, reversed(reach), strict=False) if m > 0]
        for (lower, m), (upper, _) in pairwise(next_up):
            if upper < (m + 1) * lower:
                least = (1, *(m + 1 for m in reach[1:]))
                raise ValueError(
                    f"radix is {self.radix}, and rows wrap: distances reach {tuple(reach)} on "
                    f"{grid}; accepted: at least {least}, or None"
                )


def _extent(grid: Lattice) -> list[int]:
    """The largest distance between two keys on each axis."""
    return [s * (n - 1) for n, s in zip(grid.shape, grid.spacing, strict=True)]


def _check_range(largest: Tensor, names: Tensor, grid: Lattice) -> None:
    """Raise unless (|z(δ)| + |z(Δ)|)² <= 2^p, so that every sum of the scores is exact.

    Args:
        largest: max |δ_i| w_i on each axis.
        names: z(Δ) of every head.
        grid: the lattice that the keys stand on.
    """
    # Beyond 2^p these sums round themselves, to numbers that are beyond the limit all the more.
    size = float(largest.sum() + names.abs().amax())
    limit = math.isqrt(round(1 / unit_roundoff(largest.dtype)))
    if not size <= limit:
        dtype = str(largest.dtype).removeprefix("torch.")
        raise ValueError(
            f"grid has shape {grid.shape}, and flattened displacements of size {size:.0f}, whose "
            f"squares {dtype} does not hold exactly; accepted: at most {limit}, hence smaller "
            "grids, or the quadratic encoding"
        )
