"""Scores of positions: what an encoding's features and queries say of every query and key."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from constructions.encodings import Encoding
from constructions.geometry.lattice import Lattice, displacements, spread


def rows_below_targets(
    encoding: Encoding, keys: Lattice, queries: Lattice, shifts: Tensor, positional_key: Tensor
) -> Iterator[Tensor]:
    """For each head v^T Ŵ_key^T r less that at its shift, in units of the gap.

    Args:
        encoding: features and names, relative or absolute.
        keys: where the keys stand.
        queries: where the queries stand.
        shifts: Δ, (H, d), in the format that positions are computed in.
        positional_key: Ŵ_key, (H, D_p, D_p), in the same.

    Yields:
        (queries, keys), row-major.
    """
    if getattr(encoding, "absolute", False):
        at_keys = keys.positions(shifts.device).to(shifts.dtype)
        at_queries = queries.positions(shifts.device).to(shifts.dtype)
        for shift, key in zip(shifts, positional_key, strict=True):
            yield below_peaks(encoding, at_keys, at_queries + shift, keys, key)
        return
    box = displacements(keys, queries).positions(shifts.device).to(shifts.dtype)
    for table in below_peaks(encoding, box, shifts, keys, positional_key):
        yield spread(table, keys, queries)


def below_peaks(
    encoding: Encoding,
    places: Tensor,
    peaks: Tensor,
    grid: Lattice,
    positional_key: Tensor | None = None,
) -> Tensor:
    """Scores at places, less those at the peaks that name them.

    Args:
        encoding: features and names.
        places: (M, d), displacements or, for an absolute encoding, positions.
        peaks: (R, d), shifts or targets.
        grid: where the keys stand.
        positional_key: Ŵ_key, (D_p, D_p) or one for each peak; None for the identity.

    Returns:
        (R, M).
    """
    features, named = encoding.encode(torch.cat([places, peaks]), peaks, grid)
    features, at_peaks = features[: len(places)], features[len(places) :]
    if positional_key is not None:
        named = (positional_key @ named.unsqueeze(-1)).squeeze(-1)
    below = named @ features.T - (named * at_peaks).sum(dim=-1, keepdim=True)
    # A peak is exactly 0 below itself, whatever two ways of adding up make of it; its gradient
    # need not be.
    at_peak = _meet(places, peaks) | _meet(features, at_peaks)
    return torch.where(at_peak, below - below.detach(), below)


def own_row(by_displacement: Tensor, keys: Lattice, queries: Lattice) -> Tensor:
    """From (..., Q, M) to (..., Q, K): for each query, the entries at its own displacements."""
    index = torch.arange(by_displacement.shape[-1], device=by_displacement.device)
    pairs = spread(index, keys, queries)  # (Q, K)
    return by_displacement.gather(-1, pairs.expand(*by_displacement.shape[:-1], -1))


def _meet(points: Tensor, others: Tensor) -> Tensor:
    """Which points (M, d) are which others (R, d): (R, M)."""
    same = points[:, 0] == others[:, :1]
    for coordinates, other in zip(points.T[1:], others.T[1:], strict=True):
        same = same & (coordinates == other.unsqueeze(-1))
    return same
