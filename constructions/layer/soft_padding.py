"""Soft padding: the one operator P behind every head of a positional layer.

A head whose scores depend on k - (q + Δ_h) alone has the weights A^h[q, ·] = P[q + Δ_h, ·], with
one P for all heads: row t of P says what attention sees at position t. So the layer is P, a soft
padding of the image, and then the ordinary convolution. For scores that are sums over axes

    P = r · (P_1 ⊗ … ⊗ P_d)

with one small factor for each axis; r is 1, or with a sink what the sink leaves of each row. A
factor is a full matrix, or banded: spans of rows, each with the columns that it is not zero on. On
a long axis the factor of squares is made in bands, so that memory grows with the axis alone.
Theorem: `attention_is_soft_padding_then_convolution`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.encodings import Encoding, Gaussian, Quadratic
from constructions.formats import accumulator, smallest_normal
from constructions.geometry.lattice import Lattice, displacements, spread
from constructions.layer.scores import check_scale
from constructions.normalisers import Softmax
from constructions.tracing import has_values, is_traced

BLOCK = 32
"""The least number of rows of a factor that are multiplied at once, if there are as many."""

LONG = 2**18
"""Entries of a factor from which it is made in bands, if its scores are known to fall off."""

FAR = 2.0**12
"""How far above the smallest normal number a weight is whose products with pixels may underflow."""

LIFTS = {torch.float32: 2.0**60, torch.float64: 2.0**500}
"""What values are multiplied by, and divided by in the end, where far weights make them tiny."""

LANES = 16
"""Numbers that a processor adds side by side, or a multiple: where bands begin, in columns."""


@dataclass(frozen=True)
class SoftPadding:
    """P on given lattices.

    Args:
        factors: for each axis (targets, keys), rows of which sum to 1.
        kept: (*targets.shape), what the sink leaves of each row; None without a sink.
    """

    factors: tuple[Factor, ...]
    kept: Tensor | None

    @classmethod
    def of(
        cls,
        encoding: tuple[Encoding, ...],
        sharpness: Tensor | float,
        keys: Lattice,
        targets: Lattice,
        *,
        gap: Tensor | float,
        sink_height: float | None,
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
            sink_height: how far below a target the sink stands, in gaps; None without a sink.
            dtype: of the result.
            exact: in which scores are formed.
            device: of the result.

        Raises:
            ValueError: the sharpness overflows.
        """
        d = keys.dimension
        scale = sharpness / gap
        check_scale(scale, gap, dtype)
        factors: list[Factor] = []
        logs = []
        for axis, part in enumerate(encoding):
            scores = _AxisScores.of(part, keys.axis(axis), targets.axis(axis), exact, device)
            bands = _bands(part, scale, keys.axis(axis), targets.axis(axis), accumulator(dtype))
            factor, log = scores.factor(scale, dtype, bands)
            factors.append(factor)
            logs.append(along(log, axis, d))
        kept = None
        if sink_height is not None:
            total = sum(logs[1:], start=logs[0])
            kept = torch.sigmoid(total + sink_height * sharpness).to(dtype)
        return cls(tuple(factors), kept)

    def __call__(self, values: Tensor) -> Tensor:
        """P applied to (N, C, *keys.shape): (N, C, *targets.shape), summed in the values' dtype."""
        lift = self._lift(values)
        if lift > 1:
            values = values * lift
        for axis, factor in enumerate(self.factors):
            values = factor.cast(values.dtype)(values, 2 + axis)
        if lift > 1:
            values = values.mul_(1 / lift)
        if self.kept is None:
            return values
        kept = self.kept.to(values.dtype)
        if kept.requires_grad or not self.factors:
            return values * kept
        return values.mul_(kept)  # what has just been made, and nobody else refers to

    def _lift(self, values: Tensor) -> float:
        """A power of two that keeps products with far weights from underflow; 1 for none.

        A processor takes a hundred times as long over a product or a sum that is subnormal, and far
        weights, which count for nothing, make many. All numbers that are normal have the same bits
        either way; of others less is lost. Gradients would be lost on the way back, so that values
        with a history are multiplied as they are.
        """
        tensors = [tensor for factor in self.factors for tensor in factor.tensors]
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in (values, *tensors))
        if (
            values.dtype not in LIFTS
            or values.device.type != "cpu"
            or not values.numel()
            or not has_values(values, *tensors)
            or trained
            or not self._has_far_weights
        ):
            return 1.0
        lift = LIFTS[values.dtype]
        least, most = values.aminmax()
        largest = max(-least.item(), most.item())
        return lift if largest < torch.finfo(values.dtype).max / (4 * lift) else 1.0

    @cached_property
    def _has_far_weights(self) -> bool:
        """Whether any weight is so small that its product with a pixel may be subnormal."""
        for factor in self.factors:
            for tensor in factor.tensors:
                far = FAR * smallest_normal(tensor.dtype)
                if ((tensor > 0) & (tensor < far)).any():
                    return True
        return False

    def to(self, device: torch.device, dtype: torch.dtype) -> SoftPadding:
        """The same elsewhere or in another format; entries that are one are still one."""
        known: dict[int, Tensor] = {}

        def moved(entries: Tensor) -> Tensor:
            if id(entries) not in known:
                known[id(entries)] = entries.to(device, dtype)
            return known[id(entries)]

        factors = tuple(
            factor.remade(tuple(moved(entries) for entries in factor.tensors))
            for factor in self.factors
        )
        return SoftPadding(factors, None if self.kept is None else self.kept.to(device, dtype))


def along(row: Tensor, axis: int, dimension: int) -> Tensor:
    """A one-dimensional tensor laid along one of d axes."""
    return row.reshape([-1 if a == axis else 1 for a in range(dimension)])


@dataclass(frozen=True)
class _AxisScores:
    """The scores of an encoding on one axis, in its own units.

    Args:
        table: the score at every displacement, (M,), the target's own at 0.
        keys: where the keys stand.
        targets: where the rows stand.
    """

    table: Tensor
    keys: Lattice
    targets: Lattice

    @classmethod
    def of(
        cls,
        encoding: Encoding,
        keys: Lattice,
        targets: Lattice,
        exact: torch.dtype,
        device: torch.device | str | None,
    ) -> _AxisScores:
        """Those of a head of shift 0."""
        here = torch.zeros(1, 1, dtype=exact, device=device)
        box = displacements(keys, targets).positions(device).to(exact)
        features, query = encoding.encode(torch.cat([box, here]), here, keys)
        score = features @ query[0]
        return cls(score[:-1] - score[-1], keys, targets)

    def factor(
        self, scale: Tensor | float, dtype: torch.dtype, bands: Sequence[Span]
    ) -> tuple[Factor, Tensor]:
        """The factor, and the logarithm of what each row was divided by.

        Args:
            scale: what multiplies the scores.
            dtype: of the result.
            bands: what is not zero of it, with all rows in order; none for all of it.
        """
        if not bands:
            entries, log = _normalised(spread(self.table, self.keys, self.targets), scale, dtype)
            return Full(entries), log
        known: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        parts = []
        for span in bands:
            # Spans that look alike are one.
            (start, stop), (first, last) = span.rows, span.columns
            keys = _part(self.keys, first, last)
            targets = _part(self.targets, start, stop)
            box = displacements(keys, targets)
            alike = (box.origin[0], stop - start, last - first)
            if alike not in known:
                lowest = box.origin[0] - displacements(self.keys, self.targets).origin[0]
                table = self.table.narrow(0, lowest, box.size)
                known[alike] = _normalised(spread(table, keys, targets), scale, dtype)
            parts.append(known[alike])
        factor = Banded(tuple(bands), self.keys.size, tuple(entries for entries, _ in parts))
        return factor, torch.cat([log for _, log in parts])


def _part(line: Lattice, start: int, stop: int) -> Lattice:
    """Some neighbours of a lattice of dimension 1."""
    (origin,), (spacing,) = line.origin, line.spacing
    return Lattice((stop - start,), line.spacing, (origin + spacing * start,))


def _normalised(rows: Tensor, scale: Tensor | float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Softmax of scores, and the logarithm of what each row was divided by."""
    highest = rows.amax(dim=-1)
    scores = (rows - highest.unsqueeze(-1)) * scale
    weights = scores.to(accumulator(dtype)).softmax(dim=-1)
    # A weight that is subnormal makes products with it ten times as slow. It counts for nothing: an
    # exponential may be flushed to zero as far up (T7, hypothesis 3).
    weights = weights.where(weights >= smallest_normal(weights.dtype), 0.0)
    return weights.to(dtype), scores.logsumexp(dim=-1) + highest * scale


def _bands(
    encoding: Encoding,
    scale: Tensor | float,
    keys: Lattice,
    targets: Lattice,
    accumulator: torch.dtype,
) -> list[Span]:
    """Spans of a long factor of squares, beside which it is exactly zero; none for another factor.

    A weight is zero where a score is a gap Θ below the highest of its row (equation (17) of the
    theorem): where the squared distance is Θ / scale more than that of the nearest key.
    """
    precision = _precision(encoding)
    if is_traced() or keys.size * targets.size < LONG or precision is None:
        return []
    if isinstance(scale, Tensor) and not has_values(scale):
        return []
    fall = precision * float(scale.detach() if isinstance(scale, Tensor) else scale)
    if not fall > 0:
        return []
    place = targets.positions("cpu")[:, 0].double()
    (origin,), (spacing,), last = keys.origin, keys.spacing, keys.size - 1
    nearest = ((place - origin) / spacing).round().clamp(0, last) * spacing + origin
    reach = ((nearest - place).square() + Softmax().one_hot_gap(accumulator) / fall).sqrt()
    # One key more on either side, for what these numbers have been rounded.
    low = (((place - reach - origin) / spacing).floor() - 1).clamp(0, last).long()
    high = (((place + reach - origin) / spacing).ceil() + 1).clamp(0, last).long()
    widest = int((high - low).amax()) + 1
    rows = -(-max(BLOCK, widest) // LANES) * LANES
    if targets.size < 2 * rows:
        return []
    starts = range(0, targets.size, rows)
    stops = [min(start + rows, targets.size) for start in starts]
    # From a multiple of the lanes on, sums have the bits of those over whole rows.
    firsts = (low[[*starts]] // LANES * LANES).tolist()
    lasts = high[[stop - 1 for stop in stops]].tolist()
    return [
        Span((start, stop), (first, end + 1))
        for start, stop, first, end in zip(starts, stops, firsts, lasts, strict=True)
    ]


def _precision(encoding: Encoding) -> float | None:
    """a, where the scores of an encoding of one axis are -a times squared distances."""
    if isinstance(encoding, Quadratic):
        return 1.0
    if isinstance(encoding, Gaussian):
        return 1.0 if encoding.precision is None else float(encoding.precision[0][0])
    return None


# Factors ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """Rows of a factor, and the columns that they are not zero on: first and last + 1 of each."""

    rows: tuple[int, int]
    columns: tuple[int, int]

    @property
    def width(self) -> int:
        """The columns."""
        return self.columns[1] - self.columns[0]

    @property
    def size(self) -> int:
        """The entries."""
        return (self.rows[1] - self.rows[0]) * self.width


Remade = Callable[[tuple[Tensor, ...]], "Factor"]
"""Makes a factor of the same kind and the same spans from other tensors."""


class Factor(ABC):
    """A matrix (targets, keys) that is applied along one axis of an image."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of, and differentiated by."""

    @property
    @abstractmethod
    def remade(self) -> Remade:
        """What makes another such factor; it holds no tensor."""

    @property
    @abstractmethod
    def matrix(self) -> Tensor:
        """All entries, (targets, keys), zeros included."""

    @abstractmethod
    def spans(self) -> Sequence[Span]:
        """What is multiplied, in order of rows; fewer than two where one product does."""

    @abstractmethod
    def entries_of(self, spans: Sequence[Span]) -> Sequence[Tensor]:
        """The entries of each of its spans."""

    @abstractmethod
    def at_once(self, values: Tensor, dim: int) -> Tensor:
        """The product, without a look at any entry."""

    @abstractmethod
    def transposed(self, values: Tensor, dim: int) -> Tensor:
        """The product of the transposed matrix."""

    @abstractmethod
    def collected(self, products: Sequence[Tensor], spans: Sequence[Span]) -> tuple[Tensor, ...]:
        """The gradients of its tensors, from those of the entries of its spans."""

    def cast(self, dtype: torch.dtype) -> Factor:
        """The same in another format; entries that are one are still one."""
        known = {id(tensor): tensor for tensor in self.tensors}
        if all(tensor.dtype == dtype for tensor in known.values()):
            return self
        cast = {number: tensor.to(dtype) for number, tensor in known.items()}
        return self.remade(tuple(cast[id(tensor)] for tensor in self.tensors))

    def __call__(self, values: Tensor, dim: int) -> Tensor:
        """The product with what stands along an axis, in the spans alone.

        Traced code is not written for the numbers that it is traced with, nor are there any for a
        batch under `torch.vmap`: then no entry is looked at, and derivatives are torch's own.
        """
        tensors = self.tensors
        if not has_values(*tensors):
            return self.at_once(values, dim)
        spans = self.spans()
        if len(spans) < 2:
            return self.at_once(values, dim)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (values, *tensors)):
            y: Tensor = InSpans.apply(  # type: ignore[no-untyped-call]
                values, dim, self.remade, spans, *tensors
            )
            return y
        return _in_spans(self, spans, values, dim)


@dataclass(frozen=True)
class Full(Factor):
    """A factor that is one matrix, some of whose entries may be exactly zero.

    Args:
        entries: (targets, keys).
    """

    entries: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrix."""
        return (self.entries,)

    @property
    def remade(self) -> Remade:
        """The class itself."""
        return _full

    @property
    def matrix(self) -> Tensor:
        """The matrix."""
        return self.entries

    def spans(self) -> Sequence[Span]:
        """Blocks of rows without the zeros beside them, looked for once."""
        return self._spans

    @cached_property
    def _spans(self) -> Sequence[Span]:
        return _blocks(self.entries)

    def entries_of(self, spans: Sequence[Span]) -> Sequence[Tensor]:
        """Parts of the matrix."""
        return [self.entries[slice(*span.rows), slice(*span.columns)] for span in spans]

    def at_once(self, values: Tensor, dim: int) -> Tensor:
        """The product with the whole matrix."""
        return _multiplied(self.entries, values, dim)

    def transposed(self, values: Tensor, dim: int) -> Tensor:
        """In blocks of its own."""
        return Full(self.entries.T)(values, dim)

    def collected(self, products: Sequence[Tensor], spans: Sequence[Span]) -> tuple[Tensor, ...]:
        """One matrix, zero outside of the spans."""
        return (_spread(products, spans, self.entries.shape[1]),)


def _full(tensors: tuple[Tensor, ...]) -> Factor:
    (entries,) = tensors
    return Full(entries)


@dataclass(frozen=True)
class Banded(Factor):
    """A factor of which only the entries of given spans are stored.

    Args:
        bands: the spans, in order and with all rows.
        keys: the columns.
        entries: of each span, (rows, columns); spans that look alike may share one tensor.
    """

    bands: tuple[Span, ...]
    keys: int
    entries: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The entries."""
        return self.entries

    @property
    def remade(self) -> Remade:
        """The class, with these spans."""
        return partial(Banded, self.bands, self.keys)

    @property
    def matrix(self) -> Tensor:
        """All entries."""
        return _spread(self.entries, self.bands, self.keys)

    def spans(self) -> Sequence[Span]:
        """As given."""
        return self.bands

    def entries_of(self, spans: Sequence[Span]) -> Sequence[Tensor]:
        """As given."""
        return self.entries

    def at_once(self, values: Tensor, dim: int) -> Tensor:
        """The product, with torch's own derivatives."""
        return _in_spans(self, self.bands, values, dim)

    def transposed(self, values: Tensor, dim: int) -> Tensor:
        """Of each span, added where their columns meet."""
        parts = [
            _multiplied(entries.T, values.narrow(dim, start, end - start), dim)
            for entries, (start, end) in zip(
                self.entries, (span.rows for span in self.bands), strict=True
            )
        ]
        return _added([span.columns for span in self.bands], parts, self.keys, dim)

    def collected(self, products: Sequence[Tensor], spans: Sequence[Span]) -> tuple[Tensor, ...]:
        """As they come."""
        return tuple(products)


def _spread(entries: Sequence[Tensor], spans: Sequence[Span], keys: int) -> Tensor:
    """The matrix that has these entries in these spans, and zeros beside them."""
    rows = [
        F.pad(part, (span.columns[0], keys - span.columns[1]))
        for part, span in zip(entries, spans, strict=True)
    ]
    return torch.cat(rows)


def _blocks(matrix: Tensor) -> list[Span]:
    """What of a full matrix is multiplied; nothing said where hardly anything is zero.

    A block has as many rows as the widest row has columns, or more.
    """
    total, keys = matrix.shape
    if total < 2 * BLOCK:
        return []
    lit = (matrix.detach() != 0).to(torch.uint8)
    first, last = lit.argmax(dim=1), keys - 1 - lit.flip(1).argmax(dim=1)
    firsts, lasts = first.tolist(), last.tolist()
    widest = max(b - a for a, b in zip(firsts, lasts, strict=True)) + 1
    rows = max(BLOCK, widest)
    if total < 2 * rows:
        return []
    starts = range(0, total, rows)
    parts = [slice(start, min(start + rows, total)) for start in starts]
    return [Span((p.start, p.stop), (min(firsts[p]), max(lasts[p]) + 1)) for p in parts]


# Products and their derivatives -------------------------------------------------------------------


def _in_spans(factor: Factor, spans: Sequence[Span], values: Tensor, dim: int) -> Tensor:
    """The rows of each span, one after another."""
    parts = [
        _multiplied(entries, values.narrow(dim, span.columns[0], span.width), dim)
        for entries, span in zip(factor.entries_of(spans), spans, strict=True)
    ]
    return torch.cat(parts, dim=dim)


class InSpans(torch.autograd.Function):
    """`_in_spans`, whose derivatives are in spans too.

    Left to itself, torch spreads the gradient of each span over a whole image of zeros.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        values: Tensor, dim: int, remade: Remade, spans: Sequence[Span], *tensors: Tensor
    ) -> Tensor:
        """As without gradients, to the bit."""
        factor = remade(tuple(tensor.detach() for tensor in tensors))
        return _in_spans(factor, spans, values.detach(), dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the derivatives are made of."""
        values, ctx.dim, ctx.remade, ctx.spans, *tensors = inputs
        ctx.save_for_backward(values, *tensors)
        ctx.save_for_forward(values, *tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The transposed factor; and products of what comes and what was given, summed."""
        (gradient,), (values, *tensors) = gradients, ctx.saved_tensors
        factor: Factor = ctx.remade(tuple(tensors))
        of_values: Tensor | None = None
        of_tensors: tuple[Tensor | None, ...] = (None,) * len(tensors)
        if ctx.needs_input_grad[0]:
            of_values = factor.transposed(gradient, ctx.dim)
        if any(ctx.needs_input_grad[4:]):
            products = [_product(gradient, values, ctx.dim, span) for span in ctx.spans]
            of_tensors = factor.collected(products, ctx.spans)
        return of_values, None, None, None, *of_tensors

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """The product rule."""
        (values, *tensors), (of_values, _, _, _, *of_tensors) = ctx.saved_tensors, tangents
        parts = []
        if any(tangent is not None for tangent in of_tensors):
            moved = (
                torch.zeros_like(tensor) if tangent is None else tangent
                for tensor, tangent in zip(tensors, of_tensors, strict=True)
            )
            parts.append(ctx.remade(tuple(moved)).at_once(values, ctx.dim))
        if of_values is not None:
            parts.append(_in_spans(ctx.remade(tuple(tensors)), ctx.spans, of_values, ctx.dim))
        total: Tensor = sum(parts[1:], start=parts[0])
        return total


def _product(rows: Tensor, columns: Tensor, dim: int, span: Span) -> Tensor:
    """The gradient of a span's entries: products along one axis, summed over all others."""
    above = rows.narrow(dim, span.rows[0], span.rows[1] - span.rows[0])
    beside = columns.narrow(dim, span.columns[0], span.width)
    if dim == columns.dim() - 1:
        return above.flatten(0, -2).T @ beside.flatten(0, -2)
    return (above.flatten(dim + 1) @ beside.flatten(dim + 1).mT).flatten(0, -3).sum(0)


def _added(
    places: Sequence[tuple[int, int]], parts: Sequence[Tensor], total: int, dim: int
) -> Tensor:
    """Parts of an axis, each put to its place, and the sum where places meet.

    Args:
        places: first and last + 1 of each part.
        parts: what is added, along `dim`.
        total: the length of the axis.
        dim: the axis.
    """
    edges = sorted({0, total, *(edge for place in places for edge in place)})
    waiting = sorted(range(len(parts)), key=lambda number: places[number][0], reverse=True)
    here: list[int] = []
    sums = []
    for left, right in pairwise(edges):
        here = [number for number in here if places[number][1] > left]
        while waiting and places[waiting[-1]][0] == left:
            here.append(waiting.pop())
        # In torch's own order, the last part first, so that the sum has its bits.
        stretches = [
            parts[number].narrow(dim, left - places[number][0], right - left)
            for number in sorted(here, reverse=True)
        ]
        if stretches:
            sums.append(sum(stretches[1:], start=stretches[0]))
        else:
            shape = [*parts[0].shape]
            shape[dim] = right - left
            sums.append(parts[0].new_zeros(shape))
    return torch.cat(sums, dim=dim)


def _multiplied(matrix: Tensor, values: Tensor, dim: int) -> Tensor:
    if dim == values.dim() - 1:
        return values @ matrix.T
    # The axis is made the rows of matrices, so that nothing is moved in memory.
    rows = matrix @ values.flatten(dim + 1)
    return rows.reshape(*rows.shape[:-1], *values.shape[dim + 1 :])
