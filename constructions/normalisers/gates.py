"""Gates: normalisers that look at each key alone, so that zeros take no sink.

A row sums to 1 or 0 from the gap on, as its target is a key or not. Below it, to what its keys add
up to: nothing is divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.formats import accumulator, smallest_normal, unit_roundoff
from constructions.normalisers.base import GAP_MARGIN, Normaliser, check_number, underflow


@dataclass(frozen=True)
class Relu(Normaliser):
    """max(0, 1 + score / height): one-hot, over the reals too, exactly from the gap `height` on.

    So it is exact at any sharpness, with the height at the sharpness, and pads with zeros by
    itself. Scores must be centred, since a constant changes the weight of the target. Theorem:
    `normalisers_are_one_hot_from_their_gap`.

    Args:
        height: by how much a score must fall short of 0 to count for nothing.
    """

    height: float = 1.0

    vanishes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the height.

        Raises:
            TypeError: height is not a number.
            ValueError: height is not positive and finite.
        """
        _check_height(self.height)

    def __call__(self, scores: Tensor) -> Tensor:
        """The weights; their sum is not divided out."""
        return (1 + scores / self._height(scores.dtype)).relu()

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The height, enlarged by what the rounding of a score and of its quotient can take."""
        exact = accumulator(dtype)
        return self._height(exact) * (1 + GAP_MARGIN * unit_roundoff(exact))

    def at(self, sharpness: float) -> Relu:
        """The height a hair below the sharpness, which is then a gap for every dtype."""
        hair = 2 * GAP_MARGIN * unit_roundoff(torch.float32)
        return Relu(float(sharpness) * (1 - hair))

    def _height(self, dtype: torch.dtype) -> float:
        """The height, or the nearest number that the format has with full precision."""
        return min(max(float(self.height), smallest_normal(dtype)), torch.finfo(dtype).max / 2)


@dataclass(frozen=True)
class Sigmoid(Normaliser):
    """1 / (1 + e^-(score + height)): one-hot in the limit, and in floating point from a gap on.

    Without a height the score of a head's own shift, 0, would have weight 1/2. Pads with zeros by
    itself. Scores must be centred, since a constant changes all weights. Theorem:
    `normalisers_are_one_hot_from_their_gap`.

    Args:
        height: what is added to all scores; None for the least at which a score of 0 has weight 1
            in the dtype of the scores.
    """

    height: float | None = None

    vanishes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the height.

        Raises:
            TypeError: height is neither a number nor None.
            ValueError: height is not positive and finite.
        """
        if self.height is not None:
            _check_height(self.height)

    def __call__(self, scores: Tensor) -> Tensor:
        """The weights; their sum is not divided out."""
        return (scores + self._height(scores.dtype)).sigmoid()

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The height and Θ of softmax; inf where the height is too small for a weight of 1."""
        exact = accumulator(dtype)
        height = self._height(exact)
        if height < peak_height(exact):
            return math.inf
        return (height + underflow(dtype)) * (1 + GAP_MARGIN * unit_roundoff(exact))

    def at(self, sharpness: float) -> Sigmoid:
        """Half the sharpness, which makes the errors on and off the target equal, and least."""
        return Sigmoid(max(float(sharpness) / 2, math.ulp(0.0)))

    def _height(self, dtype: torch.dtype) -> float:
        if self.height is None:
            return peak_height(dtype)
        return min(float(self.height), torch.finfo(dtype).max / 2)


def peak_height(dtype: torch.dtype) -> float:
    """ln(2/u), from which on the sigmoid rounds to 1, and a hair more."""
    u = unit_roundoff(dtype)
    return math.log(2 / u) * (1 + 4 * u)


def _check_height(height: float) -> None:
    check_number("height", height)
    if not 0 < height < math.inf:
        raise ValueError(f"height is {height}; accepted: a positive, finite number")
