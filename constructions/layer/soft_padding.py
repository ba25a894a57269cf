"""Soft padding: the one operator P behind every head of a positional layer.

A head whose scores depend on k - (q + Δ_h) alone has the weights A^h[q, ·] = P[q + Δ_h, ·], with
one P for all heads: row t of P says what attention sees at position t. So the layer is P, a soft
padding of the image, and then the ordinary convolution. For scores that are sums over axes

    P = r · (P_1 ⊗ … ⊗ P_d)

with one small factor for each axis; r is 1, or with a sink what the sink leaves of each row.
Theorem: `attention_is_soft_padding_then_convolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.encodings import Encoding
from constructions.formats import accumulator
from constructions.geometry.lattice import Lattice, displacements, spread

SINK_HEIGHT = 0.5
"""c: the sink stands at c times the gap below a target. Half is best (T5)."""

BLOCK = 32
"""Rows of a factor that are multiplied at once, and as many more as its widest row has columns."""


@dataclass(frozen=True)
class SoftPadding:
    """P on given lattices.

    Args:
        factors: for each axis (targets, keys), rows of which sum to 1.
        kept: (*targets.shape), what the sink leaves of each row; None without a sink.
    """

    factors: tuple[Tensor, ...]
    kept: Tensor | None

    @classmethod
    def of(
        cls,
        encoding: tuple[Encoding, ...],
        sharpness: Tensor | float,
        keys: Lattice,
        targets: Lattice,
        *,
        gap: float,
        has_sink: bool,
        dtype: torch.dtype,
        exact: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> SoftPadding:
        """P for scores that are sums over axes.

        Args:
            encoding: that of each axis.
            sharpness: the gap in score.
            keys: where the keys stand.
            targets: where the rows stand.
            gap: the unit of the scores, that of the encoding as a whole.
            has_sink: whether there is a sink, at half the gap.
            dtype: of the result.
            exact: in which scores are formed.
            device: of the result.
        """
        d = keys.dimension
        scale = sharpness / gap
        factors, logs = [], []
        for axis, part in enumerate(encoding):
            below, highest = _axis_scores(part, keys.axis(axis), targets.axis(axis), exact, device)
            scores = below * scale
            factors.append(scores.to(accumulator(dtype)).softmax(dim=-1).to(dtype))
            log = scores.logsumexp(dim=-1) + highest * scale
            logs.append(along(log, axis, d))
        kept = None
        if has_sink:
            total = sum(logs[1:], start=logs[0])
            kept = torch.sigmoid(total + SINK_HEIGHT * sharpness).to(dtype)
        return cls(tuple(factors), kept)

    def __call__(self, values: Tensor) -> Tensor:
        """P applied to (N, C, *keys.shape): (N, C, *targets.shape), summed in the values' dtype."""
        for axis, factor in enumerate(self.factors):
            values = _applied(factor.to(values.dtype), values, 2 + axis)
        if self.kept is None:
            return values
        kept = self.kept.to(values.dtype)
        if kept.requires_grad or not self.factors:
            return values * kept
        return values.mul_(kept)  # what has just been made, and nobody else refers to


def along(row: Tensor, axis: int, dimension: int) -> Tensor:
    """A one-dimensional tensor laid along one of d axes."""
    return row.reshape([-1 if a == axis else 1 for a in range(dimension)])


def _axis_scores(
    encoding: Encoding,
    keys: Lattice,
    targets: Lattice,
    exact: torch.dtype,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor]:
    """Scores on one axis below the highest of their row (targets, keys), and that highest one."""
    here = torch.zeros(1, 1, dtype=exact, device=device)
    box = displacements(keys, targets).positions(device).to(exact)
    features, query = encoding.encode(torch.cat([box, here]), here, keys)
    score = features @ query[0]
    rows = spread(score[:-1] - score[-1], keys, targets)
    highest = rows.amax(dim=-1)
    return rows - highest.unsqueeze(-1), highest


Block: TypeAlias = tuple[int, int, int, int]
"""Rows of a factor, and the columns that they see: first and last + 1 of each."""


def _applied(factor: Tensor, values: Tensor, dim: int) -> Tensor:
    """Multiply along one axis, leaving out blocks of weights that are exactly zero."""
    blocks = _blocks(factor)
    if len(blocks) < 2:
        return _multiplied(factor, values, dim)
    if torch.is_grad_enabled() and (factor.requires_grad or values.requires_grad):
        y: Tensor = InBlocks.apply(factor, values, dim, blocks)  # type: ignore[no-untyped-call]
        return y
    return _in_blocks(factor, values, dim, blocks)


def _blocks(factor: Tensor) -> list[Block]:
    """What of a factor is multiplied; not more than one block where hardly anything is zero."""
    total, keys = factor.shape
    if total < 2 * BLOCK or torch.compiler.is_compiling():
        return []
    lit = (factor.detach() != 0).to(torch.uint8)
    first, last = lit.argmax(dim=1), keys - 1 - lit.flip(1).argmax(dim=1)
    firsts, lasts = first.tolist(), last.tolist()
    widest = max(b - a for a, b in zip(firsts, lasts, strict=True)) + 1
    rows = max(BLOCK, widest)
    if total < 2 * rows:
        return []
    starts = range(0, total, rows)
    parts = [slice(start, min(start + rows, total)) for start in starts]
    return [(p.start, p.stop, min(firsts[p]), max(lasts[p]) + 1) for p in parts]


def _in_blocks(factor: Tensor, values: Tensor, dim: int, blocks: Sequence[Block]) -> Tensor:
    parts = [
        _multiplied(factor[start:end, left:right], values.narrow(dim, left, right - left), dim)
        for start, end, left, right in blocks
    ]
    return torch.cat(parts, dim=dim)


class InBlocks(torch.autograd.Function):
    """`_in_blocks`, whose derivatives are in blocks too.

    Left to itself, torch spreads the gradient of each block over a whole image of zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(factor: Tensor, values: Tensor, dim: int, blocks: Sequence[Block]) -> Tensor:
        """As without gradients, to the bit."""
        return _in_blocks(factor.detach(), values.detach(), dim, blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the derivatives are made of."""
        factor, values, ctx.dim, ctx.blocks = inputs
        ctx.save_for_backward(factor, values)
        ctx.save_for_forward(factor, values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The transposed factor; and products of what comes and what was given, summed."""
        (gradient,), (factor, values) = gradients, ctx.saved_tensors
        of_factor = of_values = None
        if ctx.needs_input_grad[0]:
            of_factor = _products(gradient, values, ctx.dim, ctx.blocks)
        if ctx.needs_input_grad[1]:
            of_values = _applied(factor.T, gradient, ctx.dim)
        return of_factor, of_values, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """The product rule."""
        (factor, values), (of_factor, of_values, *_) = ctx.saved_tensors, tangents
        parts = []
        if of_factor is not None:
            parts.append(_multiplied(of_factor, values, ctx.dim))
        if of_values is not None:
            parts.append(_in_blocks(factor, of_values, ctx.dim, ctx.blocks))
        total: Tensor = sum(parts[1:], start=parts[0])
        return total


def _products(rows: Tensor, columns: Tensor, dim: int, blocks: Sequence[Block]) -> Tensor:
    """The gradient of a factor: products along one axis, summed over all others."""
    keys, last = columns.shape[dim], columns.dim() - 1

    def part(start: int, end: int, left: int, right: int) -> Tensor:
        above = rows.narrow(dim, start, end - start)
        beside = columns.narrow(dim, left, right - left)
        if dim == last:
            product = above.flatten(0, -2).T @ beside.flatten(0, -2)
        else:
            product = (above.flatten(dim + 1) @ beside.flatten(dim + 1).mT).flatten(0, -3).sum(0)
        return F.pad(product, (left, keys - right))

    return torch.cat([part(*block) for block in blocks])


def _multiplied(factor: Tensor, values: Tensor, dim: int) -> Tensor:
    if dim == values.dim() - 1:
        return values @ factor.T
    # The axis is made the rows of matrices, so that nothing is moved in memory.
    rows = factor @ values.flatten(dim + 1)
    return rows.reshape(*rows.shape[:-1], *values.shape[dim + 1 :])
