"""Normalisers: from the scores of the keys to the weights of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.formats import accumulator, unit_roundoff

EXP_ERROR = 40
"""Hypothesis on the exponential: relative error at most 40 u (20 units in the last place).

The loosest that torch states for an exponential of its own (`Vectorized::exp_u20`); the vectorised
and CUDA ones are within 2 units.
"""


@runtime_checkable
class Normaliser(Protocol):
    """Turns scores into weights.

    A normaliser may also state that it is `shift_invariant`: that a constant added to all scores
    of a row changes nothing (default: False).
    """

    def __call__(self, scores: Tensor) -> Tensor:
        """Weights over the last axis, of the shape and dtype of the scores."""

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """The gap in score from which on weights stored in `dtype` are exactly one-hot, or inf."""


@dataclass(frozen=True)
class Softmax:
    """Softmax, the normaliser of the paper.

    Over the reals it is never one-hot; in floating point it is, from a finite gap on. Theorem:
    `saturated_softmax_is_one_hot`.
    """

    @property
    def shift_invariant(self) -> bool:
        """A constant is a common factor of all exponentials."""
        return True

    def __call__(self, scores: Tensor) -> Tensor:
        """Softmax over the last axis."""
        return scores.softmax(dim=-1)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """Θ = ln(2/η), η the smallest subnormal of `dtype`, enlarged by what rounding can take.

        Scores and exponentials run in the accumulator of `dtype`, u its unit roundoff. A score is
        rounded twice, to float64 and to the accumulator, which shrinks it by a factor of at least
        1 - 2u; the exponential raises a weight by a factor of at most 1 + 40u, and neither the
        normalisation nor the cast raises it. A weight of at most η/2 is stored as 0.
        """
        u = unit_roundoff(accumulator(dtype))
        facts = torch.finfo(dtype)
        # η as a sum of logarithms: it is itself 0 where the processor flushes subnormal numbers.
        threshold = math.log(2) - math.log(facts.smallest_normal) - math.log(facts.eps)
        return (threshold + EXP_ERROR * u) / (1 - 2 * u) * (1 + 2**-46)


NORMALISERS: Mapping[str, Normaliser] = {"softmax": Softmax()}
