"""Tables: encodings that give every bucket of displacements an entry of its own."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values

THEOREM = "tables_select_the_shifts_they_tell_apart"


@dataclass(frozen=True)
class BiasTable(Encoding):
    """A table of scores by displacement: a head attends to (query + its shift), or to nothing.

    `r_δ = ([δ = Δ_1], …, [δ = Δ_H])` and `v = e_h`, so that `<v, r_δ> = [δ = Δ_h]`: one entry of
    the table is 1, all others are 0. D_p = H, the number of taps. The gap is exactly 1 on every
    grid, beyond its edge too, and all other keys stand at it: the leak grows with their number.
    Theorem: `tables_select_the_shifts_they_tell_apart`. Source: the relative position bias of Swin
    (arXiv 2103.14030) and BEiT (arXiv 2106.08254), whose tables have an entry for every
    displacement of a window.
    """

    theorem: ClassVar[str] = THEOREM

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, H) and names (H, H); see `Encoding.encode`."""
        entries = displacements.new_ones(displacements.shape[0], len(shifts))
        for axis in range(shifts.shape[-1]):
            entries = entries * _one_hot(displacements[:, axis], shifts[:, axis])
        return entries, torch.eye(len(shifts), dtype=shifts.dtype, device=shifts.device)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: every other displacement has the score 0."""
        return 1.0


@dataclass(frozen=True)
class RowColumn(Encoding):
    """A table for each axis: a head attends to the key that agrees with its target on most axes.

    `r_δ` is, axis after axis, the one-hot vector of δ_i among the shifts of the heads on that axis,
    0 if it is none of them, and v is that of Δ: `<v, r_δ> = Σ [δ_i = Δ_i]`. D_p is the number of
    distinct shifts on each axis, added up: at most d K for a kernel of K^d taps. The gap is exactly
    1 on every grid, and keys of the target's own row and column stand at it. Theorem:
    `tables_select_the_shifts_they_tell_apart`. Source: the row and column embeddings of
    stand-alone self-attention (arXiv 1906.05909), after relative positions on the keys (arXiv
    1803.02155).
    """

    theorem: ClassVar[str] = THEOREM

    def on_axis(self, axis: int) -> RowColumn:
        """Itself: a sum over axes, each of which compares a displacement with a shift."""
        return self

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, D_p) and names (H, D_p); see `Encoding.encode`."""
        features, names = [], []
        for axis in range(shifts.shape[-1]):
            # One shift is its own value: traced code cannot tell how many distinct ones there are.
            values = shifts[:, axis]
            if len(values) > 1:
                values = torch.unique(values)
            features.append(_one_hot(displacements[:, axis], values))
            names.append(_one_hot(shifts[:, axis], values))
        return torch.cat(features, dim=-1), torch.cat(names, dim=-1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1: another displacement differs on an axis at least."""
        return 1.0


@dataclass(frozen=True)
class T5Buckets(Encoding):
    """T5's buckets: a head attends to (query + its shift), if that is alone in its bucket.

    `r_δ` is the one-hot vector of the bucket of δ, `v` that of the bucket of Δ; D_p = num_buckets,
    gap 1, one axis. Half of the buckets are for δ > 0. On either side a quarter, m, hold one
    displacement each, |δ| = 0, …, m - 1; the others, L of them, grow geometrically, and the last
    one has no end: |δ| >= m is in bucket m + min(L - 1, ⌊L log(|δ|/m) / log(max_distance/m)⌋).
    A shift that shares its bucket is refused, since no table then tells it from the others; for
    the numbers of T5 these are the shifts of 8 and more, so that kernels of 15 taps remain.
    Theorem: `tables_select_the_shifts_they_tell_apart`. Source: arXiv 1910.10683.

    Args:
        num_buckets: of both sides together, at least 4.
        max_distance: from which all displacements share the last bucket of their side; more than
            a quarter of num_buckets.

    Attributes:
        starts: the distances at which buckets 1, 2, … of a side begin.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of its range.
    """

    num_buckets: int = 32
    max_distance: int = 128
    starts: tuple[int, ...] = field(init=False, repr=False, compare=False)

    theorem: ClassVar[str] = THEOREM

    def __post_init__(self) -> None:
        for name in ("num_buckets", "max_distance"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int):
                raise TypeError(f"{name} is {given!r}; accepted: an integer")
        if self.num_buckets < 4:
            raise ValueError(f"num_buckets is {self.num_buckets}; accepted: 4 or more")
        if self.max_distance <= self._exact:
            raise ValueError(
                f"max_distance is {self.max_distance}; accepted: more than {self._exact}, the "
                "number of distances that have a bucket of their own"
            )
        # Bucket m + j begins at the least n with L log(n/m) >= j log(max_distance/m), which is
        # n^L >= max_distance^j m^(L - j): no logarithm is formed, and none rounded.
        m = self._exact
        wide = self.num_buckets // 2 - m
        distances = range(self.max_distance + 1)
        geometric = (
            bisect_left(distances, self.max_distance**j * m ** (wide - j), key=lambda n: n**wide)
            for j in range(1, wide)
        )
        object.__setattr__(self, "starts", (*range(1, m + 1), *geometric))

    @property
    def _exact(self) -> int:
        """m: how many distances of each side have a bucket of their own by definition."""
        return self.num_buckets // 2 // 2

    def buckets(self, displacements: Tensor) -> Tensor:
        """The bucket of every displacement, int64; those of δ > 0 come second."""
        starts = displacements.new_tensor(self.starts)
        of_side = (displacements.abs().unsqueeze(-1) >= starts).sum(dim=-1)
        return of_side + (displacements > 0) * (self.num_buckets // 2)

    def is_alone(self, shift: int) -> bool:
        """Whether a displacement is the only integer in its bucket."""
        edges = sorted({0, *self.starts})
        return (abs(shift), abs(shift) + 1) in pairwise(edges)

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, num_buckets) and names (H, num_buckets); see `Encoding.encode`."""
        every = torch.arange(self.num_buckets, device=displacements.device)
        in_bucket = [
            _one_hot(self.buckets(points[:, 0]), every).to(points)
            for points in (displacements, shifts)
        ]
        return in_bucket[0], in_bucket[1]

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1, where every shift is alone in its bucket."""
        if shifts.shape[-1] != 1:
            raise ValueError(
                f"encoding is {self}, of one axis, for shifts of {shifts.shape[-1]}; accepted: a "
                "convolution of one dimension, or another encoding"
            )
        if not has_values(shifts):
            return 1.0  # nothing to look at; the shifts were checked when the layer was built
        crowd = [int(shift) for shift in shifts[:, 0].tolist() if not self.is_alone(int(shift))]
        if crowd:
            wanted = 4 * (max(abs(shift) for shift in crowd) + 1)
            raise ValueError(
                f"encoding is {self}, whose buckets hold other displacements beside the shifts "
                f"{sorted(set(crowd))}; accepted: shifts that are alone in their bucket, as all "
                f"below {self._exact} are, or num_buckets of at least {wanted} (theorem {THEOREM})"
            )
        return 1.0


def _one_hot(points: Tensor, values: Tensor) -> Tensor:
    """Whether each point is each value: (points, values), of the dtype of the points."""
    return (points.unsqueeze(-1) == values).to(points.dtype)
