"""Quotients: normalisers that divide by a sum, so that rows sum to 1 and zeros take a sink."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.formats import accumulator, unit_roundoff
from constructions.normalisers.base import GAP_MARGIN, Normaliser, check_number, underflow


@dataclass(frozen=True)
class Softmax(Normaliser):
    """Softmax, the normaliser of the paper.

    Over the reals it is never one-hot; in floating point it is, from a finite gap on. Theorem:
    `saturated_softmax_is_one_hot`.
    """

    shift_invariant: ClassVar[bool] = True

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
        return underflow(dtype) / (1 - 2 * u) * (1 + 2**-46)


@dataclass(frozen=True)
class Entmax(Normaliser):
    """Entmax of order a: one-hot, over the reals too, exactly from the gap 1 / (a - 1) on.

    Weights are max(0, (a - 1) score - τ)^(1 / (a - 1)), with τ such that they sum to 1. Order 2 is
    sparsemax, the nearest point of the simplex; towards order 1 it becomes softmax, and with
    growing order the hard maximum. Source: arXiv:1602.02068, arXiv:1905.05702. Theorem:
    `normalisers_are_one_hot_from_their_gap`.

    Below the gap a weight has the error of rounded scores, which orders above 2 amplify: there an
    error ε of a score can become ε^(1 / (a - 1)).

    Args:
        alpha: the order a, above 1 and at most 1024.
    """

    alpha: float

    shift_invariant: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            TypeError: alpha is not a number.
            ValueError: alpha is out of range.
        """
        check_number("alpha", self.alpha)
        if not 1 < self.alpha <= 1024:
            raise ValueError(
                f"alpha is {self.alpha}; accepted: a number above 1 and at most 1024 (order 1 is "
                "'softmax', and the limit of large orders 'top1')"
            )

    def __call__(self, scores: Tensor) -> Tensor:
        """Entmax over the last axis.

        With heights h = max(0, 1 + (a - 1)(score - highest)) and r = 1 / (a - 1) the weights are
        max(0, h - t)^r with a threshold t, 0 <= t < 1. They are divided by their sum, which a
        rounded threshold leaves at 1 or a little more. A height of 0 has weight 0 whatever t is.
        """
        order = float(self.alpha)
        # A constant in all scores changes nothing, and has no derivative.
        below_highest = scores - scores.detach().amax(dim=-1, keepdim=True)
        heights = (1 + (order - 1) * below_highest).relu()
        threshold = _threshold(heights.detach(), 1 / (order - 1))
        above = heights > threshold

        def parts(power: float, threshold: Tensor) -> Tensor:
            # A base of 1 where there is none, since powers of 0 have no derivative.
            return torch.where(above, heights - threshold, 1).pow(power) * above

        for _ in range(2):
            # A step of Newton's method that does not move the threshold, and has the derivative
            # of the true one; two of them have its second derivative too.
            total = parts(1 / (order - 1), threshold).sum(dim=-1, keepdim=True)
            slope = parts(1 / (order - 1) - 1, threshold).sum(dim=-1, keepdim=True) / (order - 1)
            threshold = threshold + (total - total.detach()) / slope
        kept = parts(1 / (order - 1), threshold)
        return kept / kept.sum(dim=-1, keepdim=True)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """1 / (a - 1), enlarged by what the rounding of a score and of its product can take."""
        u = unit_roundoff(accumulator(dtype))
        return (1 + GAP_MARGIN * u) / (float(self.alpha) - 1)


@dataclass(frozen=True)
class Top1(Normaliser):
    """The hard maximum: one-hot from every positive gap on. Its derivative is 0.

    Keys that tie share the attention evenly, as they must if a permutation of the keys is to
    permute the weights. Theorem: `normalisers_are_one_hot_from_their_gap`.
    """

    shift_invariant: ClassVar[bool] = True

    def __call__(self, scores: Tensor) -> Tensor:
        """1 over the number of keys that have the highest score of the row, 0 elsewhere."""
        # A sign has a derivative, 0, where a comparison has none.
        highest = 1 + (scores - scores.amax(dim=-1, keepdim=True)).sign()
        return highest / highest.sum(dim=-1, keepdim=True)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """2^-64: any positive gap would do; at this one no score underflows on its way."""
        return 2.0**-64


def _threshold(heights: Tensor, power: float) -> Tensor:
    """The greatest t with Σ max(0, h - t)^power >= 1, bit by bit, each sum as it is computed."""
    threshold = torch.zeros_like(heights[..., :1])
    for bit in range(1, 4 - round(math.log2(unit_roundoff(heights.dtype)))):
        higher = threshold + 2.0**-bit
        total = (heights - higher).relu().pow(power).sum(dim=-1, keepdim=True)
        threshold = torch.where(total >= 1, higher, threshold)
    return threshold
