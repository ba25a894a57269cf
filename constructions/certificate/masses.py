"""Masses: how much attention, over the reals, is paid to other keys than a head's own.

The mass of a key is the exponential of its score below the highest of its row. Words of this file,
and their letters on the pages of the theorems:

* off-target: of all keys but the one that a head names, before an image is there (pages of
  `quadratic_scores_select_one_shift` and `borders_are_limits_of_attention`);
* off-limit, L and its bound Λ: of all keys but the one that the row tends to, the sink included,
  on this very grid (page of `layer_error_is_certified`).

Off-target, or off-limit, *after* normalisation is L / (1 + L). All bounds are rounded up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from constructions.certificate.rounding import ROUND_UP, UNDERFLOW, exponential_error, gamma
from constructions.layer.soft_padding import SoftPadding, along
from constructions.matrix_units import grown


def leak(sharpness: float, dimension: int) -> float:
    """Least upper bound of the off-target mass of a quadratic head, 1 - ϑ(e^-α)^-d.

    ϑ(x) is the sum of x^(n^2) over all integers n, α the sharpness. No finite grid attains it.

    Args:
        sharpness: α > 0.
        dimension: d >= 1.

    Returns:
        A float64 at least as large as the exact value, and larger by a factor below 1 + 2^-45 and
        64 d times the smallest float64 at the most.

    Raises:
        ValueError: the sharpness is not positive and finite, or the dimension below 1.
    """
    log_theta = _log_theta(sharpness, dimension)
    return min(1.0, -math.expm1(-dimension * log_theta) * ROUND_UP + dimension * UNDERFLOW)


def off_target_mass(sharpness: float, dimension: int) -> float:
    """Least upper bound of the off-target mass before normalisation, ϑ(e^-α)^d - 1.

    Arguments, rounding and errors as in `leak`; inf where it exceeds every float64.
    """
    return grown(dimension * _log_theta(sharpness, dimension)) + dimension * UNDERFLOW


def _log_theta(sharpness: float, dimension: int) -> float:
    """Logarithm of ϑ(e^-α), without cancellation at either end of the range of α."""
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError(f"sharpness is {sharpness}; accepted: a positive, finite number")
    if dimension < 1:
        raise ValueError(f"dimension is {dimension}; accepted: 1 or more")
    if sharpness >= math.pi:
        return math.log1p(_theta_tail(sharpness))
    # Jacobi's identity ϑ(e^-α) = sqrt(π/α) ϑ(e^(-π²/α)) makes both terms positive and quick.
    return 0.5 * math.log(math.pi / sharpness) + math.log1p(_theta_tail(math.pi**2 / sharpness))


def _theta_tail(decay: float) -> float:
    """ϑ(e^-decay) - 1 for decay >= π: the fifth term is below 2^-100 of the first."""
    return 2 * math.fsum(math.exp(-decay * n * n) for n in (4, 3, 2, 1))


def gap_mass(sharpness: float, keys: int, *, sink_height: float | None = None) -> float:
    """Bound on the off-limit mass before normalisation that the gap alone gives.

    Without a sink every other key has at most e^-gap. With one, at c times the gap below a target,
    it is either the sink that is off, by c times the gap and the keys by more, or all the keys are,
    by 1 - c times the gap at least.
    """
    if sink_height is None:
        decay, others = sharpness, keys - 1
    else:
        decay, others = min(sink_height, 1 - sink_height) * sharpness, keys
    return others * (math.exp(-decay) * ROUND_UP + UNDERFLOW)


def table_mass(
    below: Tensor,
    elsewhere: Tensor,
    sharpness: float,
    score_error: float,
    *,
    sink_height: float | None,
) -> float:
    """Bound on the off-limit mass before normalisation, from the scores at all displacements.

    A query meets each displacement once at the most.

    Args:
        below: (H, M), each head's scores at all displacements, less that at its own shift; float64.
        elsewhere: (H, M), which displacements are not the head's own.
        sharpness: the gap in score.
        score_error: what the encoding's own rounding can do to a score.
        sink_height: how far the sink stands below a target, in gaps: then a target may have no
            key. None without a sink.

    Returns:
        The largest of all heads.
    """

    def total(scores: Tensor) -> float:
        return (scores.exp() * elsewhere).sum(dim=-1).max().item()

    others = total(below)
    if sink_height is not None:
        height = sink_height * sharpness
        others = max(others + math.exp(-height), total(below + height))
    double = torch.float64
    steps = 2 * exponential_error(double, score_error) + gamma(below.shape[1] + 32, double)
    return others * (1 + 4 * steps) + below.shape[1] * UNDERFLOW


def soft_padding_mass(
    padding: SoftPadding,
    is_pixel: Tensor,
    sharpness: float,
    score_error: float,
    *,
    sink_height: float | None,
) -> Tensor:
    """Bound on the off-limit mass before normalisation in every row of P, for this very grid.

    Args:
        padding: P in float64.
        is_pixel: (*targets.shape), whether the limit of a row is a pixel; elsewhere it is the sink.
        sharpness: the gap in score.
        score_error: what the encoding's own rounding can do to a score.
        sink_height: how far the sink stands below a target, in gaps; None without a sink.

    Returns:
        (*targets.shape), float64.
    """
    logs = []
    matrices = [factor.matrix for factor in padding.factors]
    for axis, matrix in enumerate(matrices):
        largest, where = matrix.max(dim=-1, keepdim=True)
        others = matrix.scatter(-1, where, 0.0).sum(dim=-1) / largest.squeeze(-1)
        logs.append(along(others.log1p(), axis, is_pixel.dim()))
    mass = sum(logs[1:], start=logs[0]).expm1().expand(is_pixel.shape)
    if padding.kept is not None and sink_height is not None:
        of_sink = math.exp(-sink_height * sharpness)
        mass = torch.where(is_pixel, mass + of_sink, padding.kept / (1 - padding.kept))
    double = torch.float64
    terms = sum(matrix.shape[1] for matrix in matrices) + 32
    steps = len(matrices) + 1
    return mass * (1 + 4 * (steps * exponential_error(double, score_error) + gamma(terms, double)))
