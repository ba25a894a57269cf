"""Nonnegative vectors of a subspace: a simplex of them that is locally as large as can be.

Linear programmes over P, the vectors of a subspace that are nowhere negative and sum to 1, by
following the gradient along its faces. Theorem: `heads_count_the_rank_of_the_kernel`, equations
(22) and (23): with a simplex that no exchange of one vertex makes larger no factorisation needs
coefficients smaller by more than the number of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENOUGH = 1 + 2.0**-7
"""An exchange that makes the volume larger by less is not worth its rounding."""

SWEEPS = 12
"""Of exchanges; three or four are usual."""

LARGE = 1536
"""Taps times dimensions from which on the programmes would take long."""

SMALL = 2.0**-40
"""Of a direction, relative to what it was made of: what is less is rounding."""


def simplex(basis: Tensor, inside: Tensor) -> Tensor:
    """Vertices of P that span the subspace, as rows, none negative and each of sum 1.

    Args:
        basis: of the subspace, orthonormal columns, (N, k).
        inside: a vector of it that is positive everywhere.

    Returns:
        (k, N). Of large polytopes, and if rounding is in the way, points on the way from `inside`
        to the border instead of vertices: equation (23) does not speak of them.
    """
    program = _Programme(basis, inside / inside.sum())
    if basis.numel() > LARGE:
        return _around(basis, program.inside)
    points = torch.zeros(0, len(basis), dtype=torch.float64)
    for _ in range(basis.shape[1]):
        normal = _normal(basis, points)
        ends = [program.largest(sign * normal) for sign in (1.0, -1.0)]
        heights = [float((basis @ normal @ end).abs()) for end in ends]
        points = torch.cat([points, ends[heights[1] > heights[0]].unsqueeze(0)])
    if not _spans(points, basis):
        return _around(basis, program.inside)
    for _ in range(SWEEPS):
        changed = False
        for vertex in range(len(points)):
            # c_h of a point p of the subspace is a linear functional of p.
            functional = basis.T @ torch.linalg.pinv(points)[:, vertex]
            for sign in (1.0, -1.0):
                end = program.largest(sign * functional)
                if float((basis @ functional @ end).abs()) > ENOUGH:
                    points[vertex] = end
                    changed = True
                    break
        if not changed:
            break
    return points if _spans(points, basis) else _around(basis, program.inside)


def _normal(basis: Tensor, points: Tensor) -> Tensor:
    """A direction of the subspace, in coordinates of the basis, across all points so far."""
    if not len(points):
        return torch.ones(basis.shape[1], dtype=torch.float64)
    normals: Tensor = torch.linalg.svd(points @ basis, full_matrices=True)[2]
    return normals[-1]


def _spans(points: Tensor, basis: Tensor) -> bool:
    values = torch.linalg.svdvals(points @ basis)
    return bool(values[-1] > SMALL * values[0])


def _around(basis: Tensor, inside: Tensor) -> Tensor:
    """m and m + ε v, as in equation (5), ε as large as can be."""
    others = basis - torch.outer(inside, inside @ basis) / inside.square().sum()
    others = torch.linalg.svd(others, full_matrices=False)[0][:, : basis.shape[1] - 1]
    epsilon = (inside.unsqueeze(1) / others.abs()).amin(dim=0)
    points = torch.cat([inside.unsqueeze(0), (inside.unsqueeze(1) + epsilon * others).T])
    points = torch.where(points > SMALL * points.amax(dim=1, keepdim=True), points, 0.0)
    return points / points.sum(dim=1, keepdim=True)


class _Programme:
    """Linear programmes over P, from one point inside of it.

    Args:
        basis: orthonormal columns, (N, k).
        inside: a positive vector of the subspace, of sum 1.
    """

    def __init__(self, basis: Tensor, inside: Tensor) -> None:
        self.basis = basis
        self.inside = inside
        self.sums = basis.sum(dim=0)

    def largest(self, functional: Tensor) -> Tensor:
        """A vertex, or near one, at which a functional of the coordinates is largest.

        The gradient is followed within a face until it ends at another one; where the face has no
        more to give, a constraint that is in the way is given up. Ties may end it early: what it
        returns is a point of P in any case.
        """
        basis, point = self.basis, basis_coordinates(self.basis, self.inside)
        active: list[int] = []
        for _ in range(8 * sum(basis.shape)):
            rows = torch.cat([self.sums.unsqueeze(0), basis[active]])
            multipliers = torch.linalg.lstsq(rows.T, functional.unsqueeze(1)).solution[:, 0]
            direction = functional - rows.T @ multipliers
            direction = (
                direction
                - rows.T @ torch.linalg.lstsq(rows.T, direction.unsqueeze(1)).solution[:, 0]
            )
            if float(direction.norm()) <= SMALL * float(functional.norm()):
                held = multipliers[1:]
                if not len(held) or float(held.max()) <= SMALL * float(functional.norm()):
                    break
                del active[int(held.argmax())]
                continue
            entries, steps = basis @ point, basis @ direction
            falling = steps < -SMALL * float(direction.norm())
            falling[active] = False
            if not bool(falling.any()):
                break
            lengths = torch.where(falling, entries.clamp_min(0.0) / -steps, torch.inf)
            first = int(lengths.argmin())
            point = point + float(lengths[first]) * direction
            active.append(first)
        entries = basis @ point
        entries[active] = 0.0
        entries = torch.where(entries > SMALL * float(entries.abs().max()), entries, 0.0)
        return entries / entries.sum()


def basis_coordinates(basis: Tensor, vector: Tensor) -> Tensor:
    """Of a vector of the subspace."""
    return basis.T @ vector
