"""Box grids in Z^d: where keys and queries stand, and how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.tracing import has_symbolic_sizes


@dataclass(frozen=True)
class Lattice:
    """A finite box grid `{origin + spacing * i : 0 <= i < shape}` in Z^d.

    Points are ordered row-major, the last axis fastest. All lengths are in units of one pixel of
    the finer of the two lattices of a convolution.

    Args:
        shape: points per axis, each at least 1.
        spacing: distance between neighbours per axis, each at least 1.
        origin: position of the first point.

    Raises:
        ValueError: the three disagree on the dimension, or a size or spacing is below 1.
    """

    shape: tuple[int, ...]
    spacing: tuple[int, ...]
    origin: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.spacing) == len(self.origin) >= 1:
            raise ValueError(
                "shape, spacing and origin must have one entry per dimension, got "
                f"{self.shape}, {self.spacing} and {self.origin}"
            )
        if min(self.shape) < 1:
            raise ValueError(
                f"shape must be at least 1 on every axis (no empty grid), got {self.shape}"
            )
        if min(self.spacing) < 1:
            raise ValueError(f"spacing must be at least 1 on every axis, got {self.spacing}")

    @classmethod
    def box(cls, shape: tuple[int, ...]) -> Lattice:
        """The grid of all integer points from 0 to shape - 1."""
        return cls(shape, (1,) * len(shape), (0,) * len(shape))

    @property
    def constants(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shape, spacing and origin; in traced code, whose sizes may be symbols, as plain integers.

        What is traced is then traced anew for each shape.
        """
        if has_symbolic_sizes():
            return tuple(len(range(n)) for n in self.shape), self.spacing, self.origin
        return self.shape, self.spacing, self.origin

    @property
    def dimension(self) -> int:
        """The dimension d."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of points."""
        return math.prod(self.shape)

    @property
    def last(self) -> tuple[int, ...]:
        """The position of the last point."""
        return tuple(
            o + s * (n - 1) for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        )

    def axis(self, axis: int) -> Lattice:
        """One axis, as a lattice of dimension 1."""
        return Lattice((self.shape[axis],), (self.spacing[axis],), (self.origin[axis],))

    def axes(self, device: torch.device | str | None = None) -> tuple[Tensor, ...]:
        """The positions on each axis: d int64 tensors, the a-th of shape (shape[a],)."""
        return tuple(
            o + s * torch.arange(n, device=device)
            for o, s, n in zip(self.origin, self.spacing, self.shape, strict=True)
        )

    def contains(self, points: Tensor) -> Tensor:
        """Which points (..., d) are points of the grid: bool, (...)."""
        first, last = points.new_tensor(self.origin), points.new_tensor(self.last)
        steps = (points - first) / points.new_tensor(self.spacing)
        return ((steps == steps.round()) & (points >= first) & (points <= last)).all(dim=-1)

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """All points, row-major: int64, shape (size, d)."""
        grid = torch.meshgrid(*self.axes(device), indexing="ij")
        return torch.stack([axis.reshape(-1) for axis in grid], dim=-1)


def displacements(keys: Lattice, queries: Lattice) -> Lattice:
    """The box of every displacement `k - q` from a query to a key.

    A relative score is a function on this box, which has at most `2^d` times as many points as the
    larger lattice is long, far fewer than there are pairs of a query and a key.
    """
    lowest = tuple(k - q for k, q in zip(keys.origin, queries.last, strict=True))
    highest = tuple(k - q for k, q in zip(keys.last, queries.origin, strict=True))
    shape = tuple(hi - lo + 1 for lo, hi in zip(lowest, highest, strict=True))
    return Lattice(shape, (1,) * len(shape), lowest)


def spread(table: Tensor, keys: Lattice, queries: Lattice, chosen: Tensor | None = None) -> Tensor:
    """Give every pair (query, key) the entry of `table` at its displacement.

    Args:
        table: (..., M) with M the size of `displacements(keys, queries)`, row-major.
        keys: where keys stand.
        queries: where queries stand.
        chosen: numbers of the queries that are asked for, (Q',); None for all.

    Returns:
        (..., queries.size or Q', keys.size).
    """
    box = displacements(keys, queries)
    d = box.dimension
    if chosen is not None:
        points = queries.positions(chosen.device)[chosen]
        index = torch.zeros(len(points), *(1 for _ in range(d)), dtype=torch.int64).to(
            chosen.device
        )
        for axis, key in enumerate(keys.axes(chosen.device)):
            step = key - points[:, axis : axis + 1] - box.origin[axis]  # (Q', keys on the axis)
            shape = [-1 if a == axis else 1 for a in range(d)]
            index = index * box.shape[axis] + step.reshape(len(points), *shape)
        return table[..., index.flatten(1)]
    places: list[Tensor | slice] = [slice(None)]
    pairs = zip(keys.axes(table.device), queries.axes(table.device), box.origin, strict=True)
    for axis, (key, query, lowest) in enumerate(pairs):
        shape = [1] * (2 * d)
        shape[axis], shape[d + axis] = queries.shape[axis], keys.shape[axis]
        places.append((key[None, :] - query[:, None] - lowest).reshape(shape))
    batch = table.shape[:-1]
    rows = table.reshape(-1, *box.shape)[tuple(places)]
    return rows.reshape(*batch, queries.size, keys.size)
