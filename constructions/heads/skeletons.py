"""Skeletons: a matrix as a product of its rank, one factor made of its own rows or columns."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rank_of(matrix: Tensor, roundoff: float) -> int:
    """The rank of a matrix in float64: singular values up to max(n, m) u σ_1 count as zero.

    Args:
        matrix: (n, m).
        roundoff: u.
    """
    if not matrix.numel():
        return 0
    singular = torch.linalg.svdvals(scaled(matrix))
    return int((singular > max(matrix.shape) * roundoff * singular[0]).sum())


def scaled(matrix: Tensor) -> Tensor:
    """A matrix times the power of two that brings its largest modulus to about 1."""
    _, exponent = math.frexp(float(matrix.abs().max()))
    half = -exponent // 2
    return matrix * 2.0**half * 2.0 ** (-exponent - half)  # at once it might overflow


def skeleton(matrix: Tensor, roundoff: float) -> tuple[Tensor, Tensor]:
    """A matrix (n, m) as a product (n, r) (r, m), r its rank but at least 1; one side is its own.

    Where all rows, or all columns, that are not zero are independent, they are handed on and the
    other factor selects them; else the second factor is made of rows. The rank is that of
    `rank_of`.

    Args:
        matrix: in float64.
        roundoff: u.
    """
    rows, columns = (matrix != 0).any(dim=1), (matrix != 0).any(dim=0)
    own = matrix[rows][:, columns]
    if not own.numel():
        return matrix.new_zeros(len(matrix), 1), matrix.new_zeros(1, matrix.shape[1])
    own = scaled(own)
    rank = rank_of(own, roundoff)
    if rank == len(own):
        return torch.eye(len(matrix)).to(matrix)[:, rows], matrix[rows]
    if rank == own.shape[1]:
        return matrix[:, columns], torch.eye(matrix.shape[1]).to(matrix)[columns]
    chosen, across = _pivots(own, rank)
    first = matrix.new_zeros(len(matrix), len(chosen))
    combined = torch.linalg.solve(own[chosen][:, across], own[:, across], left=False)
    combined[chosen] = torch.eye(len(chosen)).to(matrix)
    first[rows] = combined
    return first, matrix[rows][chosen]


def _pivots(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of Gaussian elimination with complete pivoting."""
    left, rows, columns = matrix.clone(), [], []
    for _ in range(rank):
        row, column = divmod(int(left.abs().argmax()), left.shape[1])
        if not left[row, column]:
            break
        left = left - torch.outer(left[:, column] / left[row, column], left[row])
        left[row], left[:, column] = 0.0, 0.0
        rows.append(row)
        columns.append(column)
    return torch.tensor(rows), torch.tensor(columns)
