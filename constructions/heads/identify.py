"""Identified heads: what a layer of narrow heads attends to, read off its convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.formats import unit_roundoff
from constructions.heads.narrow import check_head_dim, roundoff_of
from constructions.heads.skeletons import rank_of
from constructions.sources import AnyConvolution, stencil_of


@dataclass(frozen=True)
class IdentifiedHeads:
    """The heads of a narrow positional layer, up to their order and a factor each.

    Args:
        offsets: of the taps, (N, d).
        weights: a_h(δ), (H, N), float64: moduli add up to 1 and the sum is not negative.
        matrices: V_h = W_val^h W_out^h, (H, D_in, D_out), float64, of rank D_h.
        residual: the largest |Σ_h a_h(δ) V_h - W_δ|.
    """

    offsets: Tensor
    weights: Tensor
    matrices: Tensor
    residual: float

    def __len__(self) -> int:
        """H."""
        return len(self.weights)


def identify(conv: AnyConvolution, head_dim: int) -> IdentifiedHeads:
    """Read the heads of a positional layer off the convolution that it computes.

    If W_δ = Σ_h a_h(δ) V_h with H D_h at most the channels on either side, V_h of rank D_h on
    independent channels, and no two a_h proportional, then there are no other H heads of this
    dimension, but for their order and a factor each. Theorem:
    `head_dimension_is_block_term_rank`. A layer of H heads of D / H channels each is such a one as
    soon as no two heads look alike; that a tap is shared by several one-hot heads is not.

    Args:
        conv: a convolution of torch's, without groups: that of the layer.
        head_dim: D_h.

    Returns:
        The heads, those that look furthest to the front first.

    Raises:
        TypeError: conv is no convolution, or head_dim no integer.
        ValueError: conv has groups, or is no sum of such heads to half of its format's digits.
    """
    check_head_dim(head_dim)
    stencil = stencil_of(conv)
    if stencil.groups > 1:
        raise ValueError(f"conv has {stencil.groups} groups; accepted: one")
    kernel = stencil.matrices.squeeze(1).to("cpu", torch.float64)
    roundoff = roundoff_of(stencil.matrices.dtype)
    heads, rest = divmod(rank_of(kernel.movedim(1, 0).flatten(1), roundoff), head_dim)
    both = rank_of(kernel.flatten(0, 1), roundoff)
    if rest or not heads or both != heads * head_dim:
        raise _refusal(head_dim, f"its matrices have {heads * head_dim + rest} and {both} channels")
    found = _separated(kernel, heads, head_dim)
    if found is None or _are_alike(found[0], unit_roundoff(stencil.matrices.dtype)):
        raise _refusal(head_dim, "two of them look alike, or there are none")
    weights, matrices = found
    residual = float((torch.einsum("hn,hio->nio", weights, matrices) - kernel).abs().max())
    if not residual <= math.sqrt(unit_roundoff(stencil.matrices.dtype)) * float(kernel.abs().max()):
        raise _refusal(head_dim, f"what is left is {residual:.3g}")
    scale = weights.abs().sum(dim=1) * torch.where(weights.sum(dim=1) < 0, -1.0, 1.0)
    weights, matrices = weights / scale[:, None], matrices * scale[:, None, None]
    places = torch.arange(len(kernel), dtype=torch.float64)
    order = (weights.abs() @ places).argsort()
    return IdentifiedHeads(
        stencil.geometry.offsets("cpu"), weights[order], matrices[order], residual
    )


def _refusal(head_dim: int, why: str) -> ValueError:
    return ValueError(
        f"head_dim is {head_dim}, and conv is no sum of heads of that dimension on independent "
        f"channels that all look elsewhere: {why}; accepted: the convolution of such a layer"
    )


def _separated(kernel: Tensor, heads: int, head_dim: int) -> tuple[Tensor, Tensor] | None:
    """The heads by two mixtures of the taps, whose quotient has their channels for eigenspaces."""
    size = heads * head_dim
    left = torch.linalg.svd(kernel.movedim(1, 0).flatten(1), full_matrices=False)[0][:, :size]
    right = torch.linalg.svd(kernel.flatten(0, 1), full_matrices=False)[2][:size].T
    core = left.T @ kernel @ right  # (N, H D_h, H D_h)
    best: tuple[Tensor, Tensor] | None = None
    least = math.inf
    for first, second in _mixtures(len(core)):
        below, above = (torch.einsum("n,nij->ij", mixture, core) for mixture in (first, second))
        if rank_of(below, unit_roundoff(torch.float64)) < size:
            continue
        quotient = torch.linalg.solve(below, above, left=False)
        found = _in_blocks(quotient, core, heads, head_dim)
        if found is None:
            continue
        weights, blocks = found
        away = float((torch.einsum("hn,hij->nij", weights, blocks) - core).abs().max())
        if away < least:
            least, best = away, (weights, left @ blocks @ right.T)
    return best


def _are_alike(weights: Tensor, roundoff: float) -> bool:
    """Whether two heads look alike, to half of the digits: the angle's sine is below sqrt(u)."""
    unit = weights / weights.norm(dim=1, keepdim=True)
    between = torch.cartesian_prod(*2 * (torch.arange(len(unit)),)).reshape(-1, 2)
    one, other = (unit[index] for index in between[between[:, 0] < between[:, 1]].T)
    away = one - (one * other).sum(dim=1, keepdim=True) * other
    return bool((away.norm(dim=1) < math.sqrt(roundoff)).any())


MIXTURES = 3
"""Pairs of mixtures that are tried, of which the best is taken: almost every one will do."""


def _mixtures(taps: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of mixtures of the taps, always the same ones: cosines of incommensurable angles."""
    angles = torch.outer(
        torch.arange(1, 2 * MIXTURES + 1, dtype=torch.float64).sqrt(),
        torch.arange(1, taps + 1, dtype=torch.float64),
    )
    return list(zip(*(angles.cos()[start::2] for start in (0, 1)), strict=True))


def _in_blocks(
    quotient: Tensor, core: Tensor, heads: int, head_dim: int
) -> tuple[Tensor, Tensor] | None:
    """Weights (H, N) and blocks (H, H D_h, H D_h), by the eigenspaces of a quotient of mixtures."""
    values = torch.linalg.eigvals(quotient).real.sort().values.reshape(heads, head_dim)
    size = heads * head_dim
    one = torch.eye(size, dtype=torch.float64)
    spaces = [
        torch.linalg.svd(quotient - float(value.mean()) * one)[2][size - head_dim :].T
        for value in values
    ]
    basis = torch.cat(spaces, dim=1)
    if rank_of(basis, unit_roundoff(torch.float64)) < size:
        return None
    parts = torch.linalg.solve(basis, core).reshape(len(core), heads, head_dim * size)
    weights, blocks = [], []
    for head, space in enumerate(spaces):
        u, s, v = torch.linalg.svd(parts[:, head], full_matrices=False)
        weights.append(u[:, 0])
        blocks.append(space @ (s[0] * v[0]).reshape(head_dim, size))
    return torch.stack(weights), torch.stack(blocks)
