"""What a normaliser is, and what all of them take from the formats."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.formats import accumulator, unit_roundoff

EXP_ROUNDOFFS = 40
"""Hypothesis on exponential and sigmoid: a relative error of at most so many unit roundoffs u.

40 u are 20 units in the last place, of at most two unit roundoffs each: the loosest that torch
states for an exponential of its own (`Vectorized::exp_u20`). The vectorised and CUDA ones are
within 2 units.
"""

GAP_MARGIN = 16
"""By how many u a gap exceeds its value over the reals, to outweigh the rounding of scores."""


@runtime_checkable
class NormaliserLike(Protocol):
    """An object of the two methods of a normaliser; `complete_normaliser` makes one of it."""

    def __call__(self, scores: Tensor) -> Tensor:
        """As `Normaliser.__call__`."""

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """As `Normaliser.one_hot_gap`."""


class Normaliser(ABC):
    """Turns scores into weights.

    Scores arrive centred, in float32 (float64 in a float64 layer): a head's own shift has 0. A
    score of -inf has weight 0.

    A subclass has `__call__` and `one_hot_gap`, and states what else is true of it, each as a class
    attribute or as a property. What it does not state is not taken for granted.
    """

    @abstractmethod
    def __call__(self, scores: Tensor) -> Tensor:
        """Weights over the last axis, of the shape and dtype of the scores."""

    @abstractmethod
    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The gap in score from which on weights stored in `dtype` are exactly one-hot, or inf."""

    @property
    def shift_invariant(self) -> bool:
        """Whether a constant added to all scores of a row changes nothing."""
        return False

    @property
    def vanishes(self) -> bool:
        """Whether the weights of all keys are 0 once their scores are at most -one_hot_gap.

        Zero padding then takes no sink.
        """
        return False

    def at(self, sharpness: float) -> Normaliser:
        """The normaliser to use at a sharpness that is given: itself, unless it has one for it."""
        return self


def underflow(dtype: torch.dtype) -> float:
    """Θ + κu: how far below 0 an exponential, computed, is stored as 0 (page of T8, equation 4)."""
    facts = torch.finfo(dtype)
    # η as a sum of logarithms: it is itself 0 where the processor flushes subnormal numbers.
    threshold = math.log(2) - math.log(facts.smallest_normal) - math.log(facts.eps)
    return threshold + EXP_ROUNDOFFS * unit_roundoff(accumulator(dtype))


def check_number(argument: str, given: object) -> None:
    """Raise a TypeError unless the argument is a real number."""
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{argument} is a {type(given).__name__}; accepted: a number")
