"""Positions in tokens, and heads that name their targets by linear maps of them.

A token holds (p, ‖p‖², 1) of the point p where it stands. As a key this is its feature; as a query
a head's linear map of it names the target p + Δ, so that their dot product is -α‖k - (q + Δ)‖².
Theorem: `absolute_scores_select_the_same_shift`; the sizes that arithmetic allows:
`stock_attention_is_convolution`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.normalisers import Softmax

DTYPES = (torch.float32, torch.float64)
"""Formats that tell coordinates apart: half formats have too few bits for their squares."""


@dataclass(frozen=True)
class Places:
    """Where keys and queries stand, seen from the middle of the keys.

    Args:
        keys: one for each token that is attended to.
        queries: one for each output.
        shifts: Δ of each head, (H, d) integers.
    """

    keys: Lattice
    queries: Lattice
    shifts: Tensor

    @property
    def dimension(self) -> int:
        """The number of spatial axes, d."""
        return self.keys.dimension

    @property
    def centre(self) -> tuple[int, ...]:
        """The integer point in the middle of the keys, from which coordinates are counted."""
        return tuple((a + b) // 2 for a, b in zip(self.keys.origin, self.keys.last, strict=True))

    def features(self, lattice: Lattice) -> Tensor:
        """(p, ‖p‖², 1) of every point, (points, d + 2), float64."""
        points = lattice.positions("cpu").double() - torch.tensor(self.centre).double()
        square = points.square().sum(-1, keepdim=True)
        return torch.cat([points, square, torch.ones_like(square)], dim=-1)

    def names(self, sharpness: float, height: float) -> Tensor:
        """The linear map from features of a query to the name of its target, for each head.

        Args:
            sharpness: α, the gap in score.
            height: what is added to every score: the score of a target.

        Returns:
            (H, d + 2, d + 2), float64: features of the key on the left, of the query on the right.
        """
        d, shifts = self.dimension, self.shifts.double().cpu()
        names = torch.zeros(len(shifts), d + 2, d + 2, dtype=torch.float64)
        for axis in range(d):
            names[:, axis, axis] = 2 * sharpness
            names[:, axis, d + 1] = 2 * sharpness * shifts[:, axis]
            names[:, d + 1, axis] = -2 * sharpness * shifts[:, axis]
        names[:, d, d + 1] = -sharpness
        names[:, d + 1, d] = -sharpness
        names[:, d + 1, d + 1] = height - sharpness * shifts.square().sum(-1)
        return names

    def first(self, sharpness: float, height: float) -> Tensor:
        """The map that names the first key at every query, (d + 2, d + 2)."""
        d = self.dimension
        ones = (1,) * d
        target = self.features(Lattice(ones, ones, self.keys.origin))[0, :d]
        names = torch.zeros(d + 2, d + 2, dtype=torch.float64)
        names[:d, d + 1] = 2 * sharpness * target
        names[d, d + 1] = -sharpness
        names[d + 1, d + 1] = height - sharpness * target.square().sum()
        return names

    def reach(self, least: int = 0) -> int:
        """Z: the largest Σ_i (|k_i| + |q_i| + |Δ_i|)², which no sum of parts of a score exceeds.

        Args:
            least: what a coordinate counts at least.
        """
        total = 0
        for axis, middle in enumerate(self.centre):
            farthest = [
                max(abs(lattice.origin[axis] - middle), abs(lattice.last[axis] - middle), least)
                for lattice in (self.keys, self.queries)
            ]
            shift = int(self.shifts[:, axis].abs().max())
            # The first key may be a target as well.
            total += (farthest[0] + max(farthest[1] + shift, farthest[0])) ** 2
        return total


def sharpness_for(dtype: torch.dtype) -> float:
    """α: the least power of two that is at least four times the gap of one-hot weights.

    Half of it, the gap beside a sink, may then lose half to rounding.
    """
    return 2.0 ** math.ceil(math.log2(4 * Softmax().one_hot_gap(dtype)))


def exact_head_dimension(least: int) -> int:
    """The least power of 16 from `least` on: torch's scale and its root are powers of two."""
    size = 16
    while size < least:
        size *= 16
    return size


def head_dimension(places: Places, least: int, dtype: torch.dtype) -> int:
    """D_h with which computed weights are one-hot on every path of torch's.

    Any D_h will do on small grids, where rounding cannot close the gap; on larger ones a power of
    16, with which no score is rounded. Theorem: `stock_attention_is_convolution`.

    Args:
        places: where keys and queries stand, and the shifts.
        least: D_h that positions and values need.
        dtype: of the module.

    Raises:
        ValueError: the grid is too large for either.
    """
    if places.reach() <= rounded_reach(dtype, 2 * places.dimension + 14):
        return least
    exact = (round(1 / unit_roundoff(dtype)) - 1) // 2
    check_reach(places, dtype, exact)
    return exact_head_dimension(least)


def rounded_reach(dtype: torch.dtype, roundings: int) -> int:
    """The largest Z with 8 n u (Z + 1) <= 1 - n u, for n roundings of each part of a score."""
    total = roundings * Fraction(unit_roundoff(dtype))
    return math.floor((1 - total) / (8 * total)) - 1


def check_reach(places: Places, dtype: torch.dtype, most: int, least: int = 0) -> None:
    """Raise a ValueError where Z is larger than it may be."""
    reach = places.reach(least)
    if reach > most:
        largest = math.isqrt(most // places.dimension)
        raise ValueError(
            f"spatial_shape puts keys on {places.keys.shape} points, whose scores have parts of "
            f"{reach} in all; accepted: at most {most} in {dtype}, an image of less than "
            f"{largest} pixels a side, beyond which rounding lets heads attend to more than one "
            "pixel: a smaller image, tiles of it, or float64"
        )


def shape_of(name: str, given: Sequence[int] | int, dimension: int) -> tuple[int, ...]:
    """A spatial shape; raises a ValueError unless it is d positive integers."""
    shape = (given,) if isinstance(given, int) else tuple(given)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape)
    if len(shape) != dimension or not whole:
        raise ValueError(f"{name} is {given!r}; accepted: {dimension} positive integers")
    return shape
