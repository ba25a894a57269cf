"""Patches: a convolution of pixels as one of patches, each a token of many channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice


@dataclass(frozen=True)
class PatchHead:
    """A part of what is done with one patch: some of its channels, and what becomes of them.

    Args:
        shift: Δ, in patches, key minus query.
        value: (P^d D_in, width).
        output: (width, P^d D_out).
    """

    shift: tuple[int, ...]
    value: Tensor
    output: Tensor


def patch_matrices(shifts: Tensor, matrices: Tensor, side: int) -> dict[tuple[int, ...], Tensor]:
    """The matrix of each shift of patches, (P^d D_in, P^d D_out), those that are zero left out.

    Pixel e' of the key's patch and pixel e of the query's are PΔ + e' - e apart. Equation 2 of
    `patches_trade_heads_for_width`. In a patch pixels are row-major, each with its channels.

    Args:
        shifts: of the taps in pixels, (taps, d).
        matrices: of the taps, (taps, D_in, D_out).
        side: P.
    """
    d, (_, inputs, outputs) = shifts.shape[1], matrices.shape
    places = Lattice.box((side,) * d).positions()
    count = len(places)
    found: dict[tuple[int, ...], Tensor] = {}
    for shift, matrix in zip(shifts, matrices, strict=True):
        if not matrix.any():
            continue
        keys = places + shift  # of pixel e of the query's patch
        patches = keys.div(side, rounding_mode="floor")
        inside = keys - side * patches
        steps = torch.tensor([side ** (d - 1 - axis) for axis in range(d)])
        rows = (inside @ steps).tolist()
        for column, (row, patch) in enumerate(zip(rows, patches.tolist(), strict=True)):
            whole = found.setdefault(
                tuple(patch), matrices.new_zeros(count, inputs, count, outputs)
            )
            whole[row, :, column] = matrix
    return {key: m.reshape(count * inputs, count * outputs) for key, m in sorted(found.items())}


def patch_heads(matrices: dict[tuple[int, ...], Tensor], head_dim: int) -> list[PatchHead]:
    """One-hot heads of so many channels each: those of the rows, or columns, that are not zero."""
    heads = []
    for shift, matrix in matrices.items():
        rows, columns = (matrix.any(dim=1).nonzero()[:, 0], matrix.any(dim=0).nonzero()[:, 0])
        chosen = rows if len(rows) <= len(columns) else columns
        for part in torch.split(chosen, head_dim):
            if chosen is rows:
                value, output = _unit(part, matrix.shape[0], matrix).T, matrix[part]
            else:
                value, output = matrix[:, part], _unit(part, matrix.shape[1], matrix)
            heads.append(PatchHead(shift, value, output))
    return heads


def _unit(chosen: Tensor, size: int, like: Tensor) -> Tensor:
    """Rows of the identity."""
    return torch.eye(size, dtype=like.dtype, device=like.device)[chosen]


def cut(image: Tensor, side: int) -> Tensor:
    """(N, C, *spatial) to tokens (N, patches, P^d C)."""
    d = image.dim() - 2
    for axis in range(d):
        before, after = image.shape[: 2 + 2 * axis], image.shape[3 + 2 * axis :]
        image = image.reshape(*before, -1, side, *after)
    grid, within = [2 + 2 * a for a in range(d)], [3 + 2 * a for a in range(d)]
    tokens = image.permute(0, *grid, *within, 1)
    return tokens.flatten(1 + d).flatten(1, d)


def joined(tokens: Tensor, grid: tuple[int, ...], side: int) -> Tensor:
    """The image of such tokens."""
    d = len(grid)
    channels = tokens.shape[2] // side**d
    image = tokens.reshape(tokens.shape[0], *grid, *(side,) * d, channels)
    order = [axis for a in range(d) for axis in (1 + a, 1 + d + a)]
    whole = image.permute(0, 1 + 2 * d, *order)
    return whole.reshape(tokens.shape[0], channels, *(n * side for n in grid))


def largest_score(positions: Tensor, shifts: Tensor) -> int:
    """The sum of sizes of what any score adds up, in units of half the sharpness.

    Scores are s (2 t·k - |k|² - |t|²), t = q + Δ.
    """
    far = positions.abs().amax(dim=0)
    target = far + shifts.abs().amax(dim=0)
    return 2 * int((2 * target * far + far.square() + target.square()).sum())


def power_of_four(least: int) -> int:
    """The least one that is at least so many: its root is a power of two."""
    return int(4 ** max(1, math.ceil(math.log(least, 4))))
