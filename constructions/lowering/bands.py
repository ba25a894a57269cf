"""Bands: the soft padding of positional heads on given lattices, with windows for sharp heads.

One factor for each axis, in blocks of rows, each with the columns that its windows need. A window
leaves out what is provably below a tolerance. Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from constructions.encodings import Encoding, on_axes, relative_score_error
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.layer.soft_padding import SoftPadding, along

DOUBLE = torch.float64

ROWS = 32
"""Rows of a factor that are multiplied at once: at least these, and as many as a window is wide."""

OWN = 1 + 2**-30
"""Covers what the bound itself, computed in float64 from terms of one sign, has lost."""

LOWEST = 746.0
"""Below -LOWEST an exponential is less than half of the smallest float64."""


@dataclass(frozen=True)
class Span:
    """Rows of a factor, and the columns that they are not zero on."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def size(self) -> int:
        """The entries."""
        return (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0])


@dataclass(frozen=True)
class Banded:
    """P on given lattices, as bands.

    Args:
        factors: for each axis the spans in order of rows, and the entries of each.
        kept: (*targets.shape), what a sink leaves of each row; None without a sink.
        outside: (*targets.shape), float64, a bound on the mass of a row outside of its window.
    """

    factors: tuple[tuple[tuple[Span, Tensor], ...], ...]
    kept: Tensor | None
    outside: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """P applied to (N, C, *keys.shape), in the format of its entries: (N, C, *targets)."""
        for axis, factor in enumerate(self.factors):
            dim = 2 + axis
            parts = []
            for span, entries in factor:
                first, end = span.columns
                window = values.narrow(dim, first, end - first)
                if dim == values.dim() - 1:
                    parts.append(window @ entries.T)
                else:
                    # The axis is made the rows of matrices, so that nothing is moved in memory.
                    rows = entries @ window.flatten(dim + 1)
                    parts.append(rows.reshape(*rows.shape[:-1], *values.shape[dim + 1 :]))
            values = torch.cat(parts, dim=dim)
        return values if self.kept is None else values * self.kept

    def to(self, device: torch.device, dtype: torch.dtype) -> Banded:
        """The same in another format, entries that are one still one."""
        moved: dict[int, Tensor] = {}
        for factor in self.factors:
            for _, entries in factor:
                if id(entries) not in moved:
                    moved[id(entries)] = entries.to(device, dtype)
        factors = tuple(
            tuple((span, moved[id(entries)]) for span, entries in factor) for factor in self.factors
        )
        kept = None if self.kept is None else self.kept.to(device, dtype)
        return Banded(factors, kept, self.outside)


class Scores(Protocol):
    """The scores of the heads that share one P, as a function of key minus target."""

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """How many keys a window has on either side of the nearest one."""

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """Where the factor of an axis is not zero."""

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> Banded:
        """P, in float64 on the CPU."""

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """What a computed score, over all, may err."""


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
        spacing, most = keys.spacing[axis], keys.shape[axis] - 1
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
        rows = max(ROWS, 2 * width)
        starts = list(range(0, total, rows))
        ends = [min(start + rows, total) for start in starts]
        lows = (nearest[starts] - width).clamp(min=0).tolist()
        highs = (nearest[[end - 1 for end in ends]] + width).clamp(max=last).tolist()
        return [
            Span((start, end), (low, high + 1))
            for start, end, low, high in zip(starts, ends, lows, highs, strict=True)
        ]

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> Banded:
        """P, in float64 on the CPU."""
        factors, outside, logs = [], [], []
        for axis in range(keys.dimension):
            width = self.width(axis, keys, tolerance)
            factor, total, peak = self._factor(axis, keys, targets, tolerance)
            tails = self._tails(axis, keys, targets, width) / total.exp()
            factors.append(factor)
            outside.append(along(tails, axis, keys.dimension))
            logs.append(along(total + peak, axis, keys.dimension))
        mass = sum(outside[1:], start=outside[0]).expand(targets.shape).clamp(max=1.0)
        kept = None
        if self.sink is not None:
            kept = torch.sigmoid(sum(logs[1:], start=logs[0]) - self.sink)
            # The sink keeps the same of what is outside, and the window has not got it all.
            mass = mass * (kept / (1 - mass)).clamp(max=1.0)
        return Banded(tuple(factors), kept, mass * OWN)

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """Four roundings of a score that counts."""
        return 8 * unit_roundoff(DOUBLE) * (LOWEST + 2 * abs(self.sink or 0.0))

    def _nearest(self, axis: int, keys: Lattice, targets: Lattice) -> Tensor:
        """The key nearest to each target, by number."""
        places = targets.axes()[axis] - keys.origin[axis]
        steps = (places.to(DOUBLE) + self.fraction[axis]) / keys.spacing[axis]
        return steps.round().clamp(0, keys.shape[axis] - 1).long()

    def _factor(
        self, axis: int, keys: Lattice, targets: Lattice, tolerance: float
    ) -> tuple[tuple[tuple[Span, Tensor], ...], Tensor, Tensor]:
        """Bands, log of the sum in each window below its nearest key, and the score there."""
        fraction, width = self.fraction[axis], self.width(axis, keys, tolerance)
        nearest = self._nearest(axis, keys, targets)
        at_keys, at_targets = keys.axes()[axis], targets.axes()[axis]
        known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        factor, totals = [], []
        for span in self.spans(axis, keys, targets, tolerance):
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
                key, target = at_keys[first:stop], at_targets[start:end, None]
                near = at_keys[nearest[start:end], None]
                # A difference of squares as a product does not cancel, however far the target.
                sums = (key + near - 2 * target).to(DOUBLE) - 2 * fraction
                scores = -self.precision * ((key - near).to(DOUBLE) * sums)
                number = torch.arange(first, stop)
                beyond = (number - nearest[start:end, None]).abs() > width
                scores = scores.masked_fill(beyond, -math.inf)
                known[alike] = scores.softmax(dim=-1), scores.logsumexp(dim=-1)
            entries, total = known[alike]
            factor.append((span, entries))
            totals.append(total)
        peak = (at_keys[nearest] - at_targets).to(DOUBLE) - fraction
        return tuple(factor), torch.cat(totals), -self.precision * peak.square()

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
        has_sink: whether there is a sink.
    """

    encoding: Encoding
    shifts: tuple[tuple[float, ...], ...]
    sharpness: float
    has_sink: bool

    def width(self, axis: int, keys: Lattice, tolerance: float) -> int:
        """All keys."""
        return keys.shape[axis] - 1

    def spans(self, axis: int, keys: Lattice, targets: Lattice, tolerance: float) -> list[Span]:
        """One block."""
        return [Span((0, targets.shape[axis]), (0, keys.shape[axis]))]

    def padding(self, keys: Lattice, targets: Lattice, tolerance: float) -> Banded:
        """P, in float64 on the CPU."""
        parts = on_axes(self.encoding, keys.dimension)
        assert parts is not None
        whole = SoftPadding.of(
            parts,
            self.sharpness,
            keys,
            targets,
            gap=self.encoding.gap(torch.tensor(self.shifts, dtype=DOUBLE), keys),
            has_sink=self.has_sink,
            dtype=DOUBLE,
        )
        factors = tuple(
            ((self.spans(axis, keys, targets, tolerance)[0], factor),)
            for axis, factor in enumerate(whole.factors)
        )
        return Banded(factors, whole.kept, torch.zeros(targets.shape, dtype=DOUBLE))

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """The encoding's own, and three roundings of a score that counts."""
        shifts = torch.tensor(self.shifts, dtype=DOUBLE)
        own = 8 * unit_roundoff(DOUBLE) * (LOWEST + self.sharpness)
        return own + self.sharpness * relative_score_error(self.encoding, shifts, keys)
