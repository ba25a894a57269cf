"""The rotary encoding: axial rotations of a constant query and a constant key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, farthest
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice

STANDARD = tuple(10000.0 ** (-f / 8) for f in range(8))
"""The usual frequencies, of 16 components for each axis."""

LEAST, GREATEST = 1e-100, 1e100
"""Between these a frequency and an amplitude neither overflow nor underflow to any harm."""

CHUNK = 2**17
"""Distances whose drops are computed at once."""


@dataclass(frozen=True)
class Rotary(Encoding):
    """The rotary encoding: a head's constant query, turned by its shift, scores that shift highest.

    `r_δ = (cos θ_f δ_i, sin θ_f δ_i)` and `v = a_f (cos θ_f Δ_i, sin θ_f Δ_i)` over the axes i and
    the frequencies f, so that `<v, r_δ> = Σ_i Σ_f a_f cos θ_f (δ_i - Δ_i)`; D_p = 2 F d. The gap is
    the least of Σ_f a_f (1 - cos θ_f n) over the distances n in reach: 0.51 for the standard
    frequencies up to half a million pixels. Theorem: `rotations_select_shifts_without_resonance`;
    the rotations are those of arXiv 2104.09864, the frequencies those of arXiv 1706.03762.

    Of absolute positions these are the sinusoidal features, of which a shift is a rotation.

    Args:
        frequencies: θ_f, in radians for a pixel, the same for all axes; None for the eight standard
            ones, 10000^(-f/8).
        amplitudes: a_f, one for each frequency; None for ones.

    Raises:
        TypeError: either is no tuple of numbers.
        ValueError: no frequency, a number that is not between 1e-100 and 1e100, or tuples of
            different lengths.
    """

    frequencies: tuple[float, ...] | None = None
    amplitudes: tuple[float, ...] | None = None

    theorem: ClassVar[str] = "rotations_select_shifts_without_resonance"
    bounded_reach: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("frequencies", self.frequencies)
        _check("amplitudes", self.amplitudes)
        if self.frequencies == ():
            raise ValueError("frequencies is (); accepted: at least one")
        if self.amplitudes is not None and len(self.amplitudes) != len(self.angles):
            raise ValueError(
                f"amplitudes has {len(self.amplitudes)} entries; accepted: {len(self.angles)}, one "
                "for each frequency"
            )

    @property
    def angles(self) -> tuple[float, ...]:
        """θ_f, the angles that one pixel turns."""
        return STANDARD if self.frequencies is None else tuple(map(float, self.frequencies))

    @property
    def weights(self) -> tuple[float, ...]:
        """a_f, what each frequency counts for in a score."""
        given = self.amplitudes
        return (1.0,) * len(self.angles) if given is None else tuple(map(float, given))

    def on_axis(self, axis: int) -> Rotary:
        """Itself: a sum over axes by definition."""
        return self

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 2 F d) and names (H, 2 F d); see `Encoding.encode`."""
        frequencies = displacements.new_tensor(self.angles)
        amplitudes = displacements.new_tensor(self.weights).repeat(2 * grid.dimension)

        def on_circles(points: Tensor) -> Tensor:
            turned = (points.unsqueeze(-1) * frequencies).flatten(-2)
            return torch.cat([turned.cos(), turned.sin()], dim=-1)

        return on_circles(displacements), on_circles(shifts) * amplitudes

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The least drop at any distance in reach, less what two computed scores may err."""
        # A target that is the only key is not alone in an image of another size.
        reach = max(1, *farthest(shifts, grid))
        drop, distance = least_drop(self.angles, self.weights, reach)
        gap = drop - 2 * self.score_error(shifts, grid)
        if gap <= 0:
            raise ValueError(
                f"frequencies are {self.angles}, which a distance of {distance} pixels turns so "
                "nearly by whole turns that float64 cannot tell it from the target; accepted: "
                f"frequencies that resonate at no distance up to {reach}, or fewer keys"
            )
        return gap

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """What angles, cosines, products and their sum may err, of displacements or positions.

        Equation 20 of the theorem. inf where angles have lost so many digits that it would not be
        a bound.
        """
        shift: list[float] = shifts.abs().amax(dim=0).tolist()
        outermost = (max(map(abs, ends)) for ends in zip(grid.origin, grid.last, strict=True))
        # The two arguments of a score: a displacement and a shift, or a position and a target.
        arguments: list[float] = [
            far + 2 * max(edge, by)
            for far, edge, by in zip(farthest(shifts, grid), outermost, shift, strict=True)
        ]
        u, terms = unit_roundoff(torch.float64), 2 * len(self.angles) * grid.dimension
        if max(arguments) * max(self.angles) * u > 2**-11:
            return math.inf
        each = math.fsum(self.weights) * grid.dimension * (10 + terms)
        turned = _product(self.weights, self.angles) * sum(arguments)
        return (1 + 2**-8) * u * (each + turned)


@lru_cache(maxsize=256)
def least_drop(
    frequencies: tuple[float, ...], amplitudes: tuple[float, ...], reach: int
) -> tuple[float, int]:
    """A lower bound of the least Σ_f a_f (1 - cos θ_f n) over 1 <= n <= reach, and its n.

    Each drop is Σ 2 a_f sin²(θ_f n / 2), which does not cancel, less what it may err; equation 21
    of the theorem.
    """
    u = unit_roundoff(torch.float64)
    exact: Any = {"dtype": torch.float64, "device": "cpu"}
    half = torch.tensor(frequencies, **exact).unsqueeze(-1) / 2
    twice = 2 * torch.tensor(amplitudes, **exact)
    drop, distance = math.inf, 1
    for first in range(1, reach + 1, CHUNK):
        n = torch.arange(first, min(first + CHUNK, reach + 1), **exact)
        least, index = (twice @ (half * n).sin().square()).min(dim=0)
        if least.item() < drop:
            drop, distance = least.item(), first + int(index)
    turned = reach * _product(amplitudes, frequencies)
    return drop * (1 - (len(frequencies) + 24) * u) - turned * u * (1 + 2**-8), distance


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _check(argument: str, given: object) -> None:
    if given is None:
        return
    if not isinstance(given, tuple):
        raise TypeError(
            f"{argument} is a {type(given).__name__}; accepted: a tuple of numbers, or None"
        )
    for number in given:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(
                f"{argument} has the entry {number!r}; accepted: numbers from {LEAST:g} to "
                f"{GREATEST:g}"
            )
        if not LEAST <= number <= GREATEST:
            raise ValueError(
                f"{argument} has the entry {number}; accepted: from {LEAST:g} to {GREATEST:g}"
            )
