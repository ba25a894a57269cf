"""Soft padding: the one operator P behind every head of a positional layer.

A head whose scores depend on k - (q + Δ_h) alone has the weights A^h[q, ·] = P[q + Δ_h, ·], with
one P for all heads: row t of P says what attention sees at position t. So the layer is P, a soft
padding of the image, and then the ordinary convolution. For scores that are sums over axes

    P = r · (P_1 ⊗ … ⊗ P_d)

with one small factor for each axis; r is 1, or with a sink what the sink leaves of each row.
Theorem: `attention_is_soft_padding_then_convolution`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.encodings import Encoding
from constructions.formats import accumulator
from constructions.lattice import Lattice, displacements, spread

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


def _applied(factor: Tensor, values: Tensor, dim: int) -> Tensor:
    """Multiply along one axis, leaving out blocks of weights that are exactly zero."""
    total, keys = factor.shape
    if total < 2 * BLOCK or torch.compiler.is_compiling():
        return _multiplied(factor, values, dim)
    lit = (factor.detach() != 0).to(torch.uint8)
    first, last = lit.argmax(dim=1), keys - 1 - lit.flip(1).argmax(dim=1)
    firsts, lasts = first.tolist(), last.tolist()
    widest = max(b - a for a, b in zip(firsts, lasts, strict=True)) + 1
    rows = max(BLOCK, widest)
    if total < 2 * rows:  # hardly anything is zero
        return _multiplied(factor, values, dim)
    parts = []
    for start in range(0, total, rows):
        end = min(start + rows, total)
        left, right = min(firsts[start:end]), max(lasts[start:end]) + 1
        window = values.narrow(dim, left, right - left)
        parts.append(_multiplied(factor[start:end, left:right], window, dim))
    return torch.cat(parts, dim=dim)


def _multiplied(factor: Tensor, values: Tensor, dim: int) -> Tensor:
    if dim == values.dim() - 1:
        return values @ factor.T
    # The axis is made the rows of matrices, so that nothing is moved in memory.
    rows = factor @ values.flatten(dim + 1)
    return rows.reshape(*rows.shape[:-1], *values.shape[dim + 1 :])
