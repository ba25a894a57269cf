"""What the heads of a layer do to the pixels: the noun between heads and the layer's bound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.evaluation import EVALUATIONS
from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import Products, products_of


@dataclass(frozen=True)
class HeadErrors:
    """What the heads of a layer do to the pixels, at every target.

    All of them have the shape of what stands at the targets, or none where they are zero.

    Args:
        deviation: what a head sees over the reals, less the pixel at its limit.
        signed: whether the deviation is the real one, or a bound on its modulus.
        evaluated: how much the deviation itself, computed in float64, may err.
        rounding: what floating point adds.
    """

    deviation: Tensor
    signed: bool
    evaluated: Tensor
    rounding: Tensor

    @classmethod
    def none(cls, limit: Tensor) -> HeadErrors:
        """Those of one-hot weights: a gather, which is exact."""
        nothing = limit.new_zeros(())
        return cls(nothing, True, nothing, nothing)


def applied_by(layer: MultiHeadSelfAttention, dtype: torch.dtype) -> Products:
    """How the layer's device multiplies weights and values, as torch's flags are now."""
    device_type = layer.numbers.device.type
    if EVALUATIONS[layer.evaluation].operation == "attention":
        # Stock kernels are given the layer's own format.
        return products_of("attention", dtype, device_type)
    return products_of("matmul", accumulator(dtype), device_type)


def largest_moduli(values: Tensor) -> Tensor:
    """R: the largest modulus in each channel of each image."""
    return (
        values.abs().flatten(2).amax(-1).reshape(*values.shape[:2], *(1 for _ in values.shape[2:]))
    )
