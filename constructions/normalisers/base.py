"""What a normaliser is, and what all of them take from the formats."""

from __future__ import annotations

import math
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.formats import accumulator, unit_roundoff

EXP_ERROR = 40
"""Hypothesis on exponential and sigmoid: relative error at most 40 u (20 units in the last place).

The loosest that torch states for an exponential of its own (`Vectorized::exp_u20`); the vectorised
and CUDA ones are within 2 units.
"""

GAP_MARGIN = 16
"""By how many u a gap exceeds its value over the reals, to outweigh the rounding of scores."""


@runtime_checkable
class Normaliser(Protocol):
    """Turns scores into weights.

    Scores arrive centred, in float32 (float64 in a float64 layer): a head's own shift has 0. A
    score of -inf has weight 0. A normaliser may also state

    * `shift_invariant`: that a constant added to all scores of a row changes nothing (default:
      False);
    * `vanishes`: that the weights of all keys are 0 once their scores are at most -one_hot_gap, so
      that zero padding takes no sink (default: False);
    * `at(sharpness)`: the normaliser to use at a sharpness that is given (default: itself).
    """

    def __call__(self, scores: Tensor) -> Tensor:
        """Weights over the last axis, of the shape and dtype of the scores."""

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The gap in score from which on weights stored in `dtype` are exactly one-hot, or inf."""


def underflow(dtype: torch.dtype) -> float:
    """Θ + κu: how far below 0 an exponential, computed, is stored as 0 (page of T8, equation 4)."""
    facts = torch.finfo(dtype)
    # η as a sum of logarithms: it is itself 0 where the processor flushes subnormal numbers.
    threshold = math.log(2) - math.log(facts.smallest_normal) - math.log(facts.eps)
    return threshold + EXP_ERROR * unit_roundoff(accumulator(dtype))


def check_number(argument: str, given: object) -> None:
    """Raise a TypeError unless the argument is a real number."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{argument} is a {type(given).__name__}; accepted: a number")
