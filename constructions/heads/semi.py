"""Fewer heads than a kernel needs: the best nonnegative weights that are found.

Theorem: `heads_count_the_rank_of_the_kernel`, equations (20) and (21). To find the least is NP-hard
in general; this is descent from several starts, and exact for one channel and one head.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 100
"""Of descent, from each start; most end long before."""

SMALL = 2.0**-30
"""Of a singular value: heads that are so nearly dependent are as good as dependent."""

SETTLED = 1 - 2.0**-14
"""A round that leaves more than this of the error is the last."""


def best_parts(kernel: Tensor, heads: int, start: Tensor) -> Tensor:
    """Weights of at most so many heads, (H, N), none negative, rows of sum 1.

    Args:
        kernel: the taps that are not 0, (N, D), in float64.
        heads: at least 1, less than are needed.
        start: weights to start from, besides others.
    """
    if kernel.shape[1] > len(kernel):  # only products of the rows count
        kernel = torch.linalg.qr(kernel.T, mode="r")[1].T
    found = [_descended(kernel, start) for start in [start, *_starts(kernel, heads)]]
    return min(found, key=lambda parts: _left(kernel, parts))


def _starts(kernel: Tensor, heads: int) -> list[Tensor]:
    """Positive and negative parts of singular vectors, and taps that are far apart."""
    vectors, values, _ = torch.linalg.svd(kernel, full_matrices=False)
    parts = torch.stack(
        [(sign * vector).clamp_min(0.0) for vector in vectors.T for sign in (1.0, -1.0)]
    )
    sizes = values.repeat_interleave(2) * parts.norm(dim=1)
    first = parts[sizes.argsort(descending=True)[:heads]]
    some = torch.arange(min(heads, len(values)))
    smaller = (parts[2 * some].norm(dim=1) < parts[2 * some + 1].norm(dim=1)).to(some)
    flipped, opposite = parts[2 * some + smaller], parts[2 * some + 1 - smaller]
    # Weights by which side of some taps the others are on.
    chosen = [int(kernel.norm(dim=1).argmax())]
    while len(chosen) < heads:
        directions = kernel[chosen] / kernel[chosen].norm(dim=1, keepdim=True)
        near = (kernel @ directions.T).amax(dim=1)
        near[chosen] = torch.inf
        chosen.append(int((near - kernel.norm(dim=1)).argmin()))
    sides = (kernel[chosen] @ kernel.T).clamp_min(0.0)
    return [start for start in (first, flipped, opposite, sides) if len(start)]


def _descended(kernel: Tensor, start: Tensor) -> Tensor:
    """Matrices and weights in turn, each the best for the others; without heads of weight 0."""
    parts, before = start.clone(), torch.inf
    for _ in range(ROUNDS):
        parts = parts[parts.sum(dim=1) > 0]
        matrices = torch.linalg.lstsq(parts.T, kernel, driver="gelsd").solution
        left = kernel - parts.T @ matrices
        for head, matrix in enumerate(matrices):
            size = float(matrix.square().sum())
            if size == 0.0:
                continue
            own = left + torch.outer(parts[head], matrix)
            row = (own @ matrix / size).clamp_min(0.0)
            left = own - torch.outer(row, matrix)
            parts[head] = row
        error = float(left.square().sum())
        if error >= SETTLED * before:
            break
        before = error
    return _independent(parts[parts.sum(dim=1) > 0])


def _independent(parts: Tensor) -> Tensor:
    """As many of the rows as are independent, of sum 1: the best matrices make as much of them."""
    kept: list[int] = []
    parts = parts / parts.sum(dim=1, keepdim=True)
    for head in range(len(parts)):
        values = torch.linalg.svdvals(parts[[*kept, head]])
        if values[-1] > SMALL * values[0] and len(kept) < parts.shape[1]:
            kept.append(head)
    return parts[kept]


def _left(kernel: Tensor, parts: Tensor) -> float:
    """The squared error of the best matrices for given weights."""
    matrices = torch.linalg.lstsq(parts.T, kernel, driver="gelsd").solution
    return float((kernel - parts.T @ matrices).square().sum())
