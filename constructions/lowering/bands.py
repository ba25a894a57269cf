"""Bands: the soft padding of positional heads on given lattices, with windows for sharp heads.

One factor for each axis, in spans of rows, each with the columns that its windows need. A window
leaves out what is provably below a tolerance. In traced code, whose sizes may be symbols, a factor
is one matrix that is zero outside of the same windows. Theorem:
`positional_heads_are_convolutions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from constructions.encodings import Encoding
from constructions.encodings.sizes import traced_gap
from constructions.formats import DOUBLE, OWN, unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.layer.soft_padding import BLOCK, Banded, Factor, Full, SoftPadding, Span, along
from constructions.tracing import constant_of_traced_code, is_traced

LOWEST = 746.0
"""Below -LOWEST an exponential is less than half of the smallest float64."""

FARTHEST = 2**40
"""More keys than there are on any axis."""


class Scores(Protocol):
    """The scores of the heads that share one P, as a function of key minus target."""

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""

    @property
    def precision(self) -> float | None:
        """The precision that the representation names; None where scores have none."""

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """How many keys a window has on either side of the nearest one."""

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """Where the factor of an axis is not zero."""

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> SoftPadding:
        """P, its factors banded, in float64 on the CPU."""

    def mass_outside(self, keys: Lattice, targets: Lattice, tolerance: float) -> Tensor:
        """τ: a bound on the mass of each row outside of its window, (*targets.shape), float64."""

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """What a computed score, over all, may err."""


@dataclass(frozen=True)
class _Axis:
    """A factor of P, and what it was normalised by.

    Args:
        factor: the windowed rows of the axis.
        log_sum: log of the sum in each window, its nearest key at 1.
        peak: the score of that key.
    """

    factor: Factor
    log_sum: Tensor
    peak: Tensor


@dataclass(frozen=True)
class Squares:
    """Scores -a ‖key - target - f‖².

    Args:
        precision: a.
        fraction: f, from -1/2 to 1/2, what the shift of a head has beyond whole pixels.
        sink: the score of the sink, or None.
    """

    precision: float
    fraction: tuple[float, ...]
    sink: float | None

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""
        return self.sink is not None

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """The least with a certified tail below the tolerance; all keys if there is none."""
        return self._least_width(axis, keys, tolerance, keys.shape[axis] - 1)

    def _least_width(self, axis: int, keys: Lattice, tolerance: float, most: int) -> int:
        """The least with a certified tail below the tolerance, or the most that there is."""
        spacing = keys.spacing[axis]
        # The nearest key is half a spacing away at most; a target among adjacent keys has one at f.
        near = abs(self.fraction[axis]) if spacing == 1 else 0.5
        decay = self.precision * spacing**2

        def mass(width: int) -> float:
            return _tail(decay, width + 1, near) + _tail(decay, width + 1, -near)

        least, enough = 0, most
        while least < enough:
            middle = (least + enough) // 2
            if mass(middle) <= tolerance / keys.dimension:
                enough = middle
            else:
                least = middle + 1
        return enough

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """Blocks of rows, each as wide as its windows together."""
        width, last = self.width(axis, keys, tolerance), keys.shape[axis] - 1
        nearest = self._nearest(axis, keys, targets)
        total = len(nearest)
        rows = max(BLOCK, 2 * width)
        starts = list(range(0, total, rows))
        ends = [min(start + rows, total) for start in starts]
        lows = (nearest[starts] - width).clamp(min=0).tolist()
        highs = (nearest[[end - 1 for end in ends]] + width).clamp(max=last).tolist()
        return [
            Span((start, end), (low, high + 1))
            for start, end, low, high in zip(starts, ends, lows, highs, strict=True)
        ]

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> SoftPadding:
        """P, its factors banded, or one matrix each in traced code, in float64 on the CPU."""
        made = self._whole_factor if is_traced() else self._factor
        axes = [made(axis, keys, targets, tolerance) for axis in range(keys.dimension)]
        return SoftPadding(tuple(axis.factor for axis in axes), self._left_by_sink(axes))

    def mass_outside(self, keys: Lattice, targets: Lattice, tolerance: float) -> Tensor:
        """τ: a bound on the mass of each row outside of its window, equations (10) and (11)."""
        axes = [self._factor(axis, keys, targets, tolerance) for axis in range(keys.dimension)]
        outside = []
        for axis, found in enumerate(axes):
            width = self.width(axis, keys, tolerance)
            tails = self._tails(axis, keys, targets, width) / found.log_sum.exp()
            outside.append(along(tails, axis, keys.dimension))
        mass = sum(outside[1:], start=outside[0]).expand(targets.shape).clamp(max=1.0)
        left = self._left_by_sink(axes)
        if left is not None:
            # The sink leaves the same of what is outside, and the window has not got it all.
            mass = mass * (left / (1 - mass)).clamp(max=1.0)
        return mass * OWN

    def _left_by_sink(self, axes: Sequence[_Axis]) -> Tensor | None:
        """r': what the sink leaves of each windowed row."""
        if self.sink is None:
            return None
        logs = [
            along(found.log_sum + found.peak, axis, len(axes)) for axis, found in enumerate(axes)
        ]
        return torch.sigmoid(sum(logs[1:], start=logs[0]) - self.sink)

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """Four roundings of a score that counts."""
        return 8 * unit_roundoff(DOUBLE) * (LOWEST + 2 * abs(self.sink or 0.0))

    def _nearest(self, axis: int, keys: Lattice, targets: Lattice) -> Tensor:
        """The key nearest to each target, by number."""
        places = targets.axes()[axis] - keys.origin[axis]
        steps = (places.to(DOUBLE) + self.fraction[axis]) / keys.spacing[axis]
        return steps.round().clamp(0, keys.shape[axis] - 1).long()

    def _factor(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> _Axis:
        """The factor of an axis."""
        fraction, width = self.fraction[axis], self.width(axis, keys, tolerance)
        nearest = self._nearest(axis, keys, targets)
        at_keys, at_targets = keys.axes()[axis], targets.axes()[axis]
        known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        spans = tuple(self.spans(axis, keys, targets, tolerance))
        blocks, log_sums = [], []
        for span in spans:
            (start, end), (first, stop) = span.rows, span.columns
            ends = nearest[[start, end - 1]] - first
            # Blocks that look alike are one.
            alike = (
                end - start,
                stop - first,
                int(at_targets[start] - at_keys[first]),
                *ends.tolist(),
            )
            if alike not in known:
                key, target = at_keys[first:stop], at_targets[start:end]
                scores = self._scores(axis, key, target, at_keys[nearest[start:end]])
                number = torch.arange(first, stop)
                beyond = (number - nearest[start:end, None]).abs() > width
                scores = scores.masked_fill(beyond, -math.inf)
                known[alike] = scores.softmax(dim=-1), scores.logsumexp(dim=-1)
            entries, log_sum = known[alike]
            blocks.append(entries)
            log_sums.append(log_sum)
        peak = (at_keys[nearest] - at_targets).to(DOUBLE) - fraction
        factor = Banded(spans, keys.shape[axis], tuple(blocks))
        return _Axis(factor, torch.cat(log_sums), -self.precision * peak.square())

    def _whole_factor(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> _Axis:
        """The factor of an axis of any size as one matrix, without a look at any number."""
        nearest = self._nearest(axis, keys, targets)
        at_keys, at_targets = keys.axes()[axis], targets.axes()[axis]
        scores = self._scores(axis, at_keys, at_targets, at_keys[nearest])
        # On an axis with fewer keys than the window has, none is beyond it.
        width = self._least_width(axis, keys, tolerance, FARTHEST)
        beyond = (torch.arange(keys.shape[axis]) - nearest.unsqueeze(-1)).abs() > width
        scores = scores.masked_fill(beyond, -math.inf)
        peak = (at_keys[nearest] - at_targets).to(DOUBLE) - self.fraction[axis]
        factor = Full(scores.softmax(dim=-1))
        return _Axis(factor, scores.logsumexp(dim=-1), -self.precision * peak.square())

    def _scores(self, axis: int, keys: Tensor, targets: Tensor, nearest: Tensor) -> Tensor:
        """Scores below that of the nearest key, (targets, keys), of positions."""
        key, near = keys, nearest.unsqueeze(-1)
        # A difference of squares as a product does not cancel, however far the target.
        sums = (key + near - 2 * targets.unsqueeze(-1)).to(DOUBLE) - 2 * self.fraction[axis]
        return -self.precision * ((key - near).to(DOUBLE) * sums)

    def _tails(self, axis: int, keys: Lattice, targets: Lattice, width: int) -> Tensor:
        """A bound on each row's mass outside of its window, its nearest key at 1."""
        spacing, last = keys.spacing[axis], keys.shape[axis] - 1
        nearest = self._nearest(axis, keys, targets)
        offset = (keys.axes()[axis][nearest] - targets.axes()[axis]).to(DOUBLE)
        offset = (offset - self.fraction[axis]) / spacing
        decay, out = self.precision * spacing**2, width + 1
        mass = torch.zeros_like(offset)
        for side, keys_left in ((offset, last - nearest - width), (-offset, nearest - width)):
            first = (-decay * out * (out + 2 * side)).exp()
            ratio = (-decay * (2 * out + 1 + 2 * side)).exp()
            terms = torch.minimum(keys_left.to(DOUBLE), 1 / (1 - ratio))
            mass = mass + torch.where(keys_left > 0, first * terms, 0.0)
        return mass


def _tail(decay: float, first: int, near: float) -> float:
    """The sum of e^(-decay n (n - 2 near)) over n >= first >= 1, as the geometric series above."""
    ratio = math.exp(-decay * (2 * first + 1 - 2 * near))
    return math.exp(-decay * first * (first - 2 * near)) / (1 - ratio) if ratio < 1 else math.inf


@dataclass(frozen=True)
class SumOverAxes:
    """Scores of an encoding that is a sum over axes: whole rows, without a window.

    Args:
        encoding: the encoding.
        shifts: of the heads, which its gap is for.
        sharpness: the gap in score.
        sink_height: how far below a target the sink stands, in gaps; None without a sink.
    """

    encoding: Encoding
    shifts: tuple[tuple[float, ...], ...]
    sharpness: float
    sink_height: float | None

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""
        return self.sink_height is not None

    @property
    def precision(self) -> None:
        """None: its scores need not be squares."""
        return None

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """All keys."""
        return keys.shape[axis] - 1

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """One block."""
        return [Span((0, targets.shape[axis]), (0, keys.shape[axis]))]

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> SoftPadding:
        """P, in float64 on the CPU, each factor in one span: as many products as are counted."""
        parts = self.encoding.axes(keys.dimension)
        assert parts is not None
        whole = SoftPadding.of(
            parts,
            self.sharpness,
            keys,
            targets,
            gap=self._gap(keys),
            sink_height=self.sink_height,
            dtype=DOUBLE,
        )
        if is_traced():
            return whole
        factors = tuple(
            Banded(
                tuple(self.spans(axis, keys, targets, tolerance)),
                keys.shape[axis],
                (factor.matrix,),
            )
            for axis, factor in enumerate(whole.factors)
        )
        return SoftPadding(factors, whole.kept)

    def _gap(self, keys: Lattice) -> Tensor | float:
        """That of the encoding; in traced code as a function of sizes, where it has such a form."""
        shifts = torch.tensor(self.shifts, dtype=DOUBLE)
        if not is_traced():
            return self.encoding.gap(shifts, keys)
        constant = self._constant_gap
        return traced_gap(self.encoding, shifts, keys, bound=False, constant=constant)

    @constant_of_traced_code
    def _constant_gap(self, *keys: tuple[int, ...]) -> float:
        return self.encoding.gap(torch.tensor(self.shifts, dtype=DOUBLE), Lattice(*keys))

    def mass_outside(self, keys: Lattice, targets: Lattice, tolerance: float) -> Tensor:
        """None, as there are no windows."""
        return torch.zeros(targets.shape, dtype=DOUBLE)

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """The encoding's own, and three roundings of a score that counts."""
        shifts = torch.tensor(self.shifts, dtype=DOUBLE)
        own = 8 * unit_roundoff(DOUBLE) * (LOWEST + self.sharpness)
        return own + self.sharpness * self.encoding.relative_score_error(shifts, keys)
