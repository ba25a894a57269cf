"""Where a layer learns nothing: one-hot weights are locally constant, and their gradient is zero.

Theorem: `gradient_and_leak_are_one_number`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constructions.formats import accumulator
from constructions.normalisers import Normaliser

PAGE = "docs/theorems/gradient_and_leak_are_one_number.md"


def is_flat(
    normaliser: Normaliser,
    sharpness: float,
    sink_height: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether the weights of a head at its shift have, as computed, no derivative in its scores.

    Asked of the normaliser itself, for a row of a target and its runner-up, and with a sink for a
    row without a target too. Scores and their gradients run in the accumulator format, so that a
    float16 layer whose stored weights are one-hot can still have a gradient.

    Args:
        normaliser: scores to weights.
        sharpness: how far the runner-up stands below the target.
        sink_height: how far the sink does, in units of the sharpness; None without one.
        dtype: of the layer.
        device: of the layer.
    """
    rows = [[0.0, -sharpness]]
    if sink_height is not None:
        rows = [[target, -sink_height * sharpness, -sharpness] for target in (0.0, -math.inf)]
    with torch.inference_mode(False), torch.enable_grad():
        scores = torch.tensor(rows, dtype=accumulator(dtype), device=device, requires_grad=True)
        weights = normaliser(scores)
        return all(_has_no_gradient(weights[:, key].sum(), scores) for key in range(len(rows[0])))


def _has_no_gradient(weight: Tensor, scores: Tensor) -> bool:
    if not weight.requires_grad:
        return True
    (gradient,) = torch.autograd.grad(weight, scores, retain_graph=True)
    return not gradient.count_nonzero()
