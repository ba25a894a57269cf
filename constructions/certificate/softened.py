"""Weak sharpness: the sharpness at which heads would make what a layer returned, if there is one.

The heads are the right ones, softer: on all keys with the border made of keys, on the pixels alone
with a sink or without, or, of a module of others, on the keys of their own window. What is fitted
is one number, or two with a sink; whether the fit explains the output is for a bound to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.certificate.comparison import Comparison
from constructions.certificate.head_errors import HeadErrors, applied_by, largest_moduli
from constructions.certificate.rounding import head_rounding
from constructions.certificate.selecting import Selecting
from constructions.encodings import Encoding, Quadratic
from constructions.formats import DOUBLE
from constructions.geometry.view import NATURAL, PADDED
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.soft_padding import SoftPadding
from constructions.matrix_units import products_of
from constructions.sources.stencil import Stencil

STARTS = [2.0**k for k in (-3, -1, 0, 1, 2, 3, 5)]
"""Sharpnesses that a fit may start from."""

SINKS = [2.0, 16.0, 64.0]
"""How far below a target a sink may stand where a fit starts."""

STEP = 2.0**-20
"""What the logarithm of a number is moved by to see what it does."""

NEARER = 0.99
"""How much nearer a step has to lead that others are to follow."""

HALVINGS = 6
"""Of a step that leads no nearer."""

ROUNDS = 30
"""Steps of a fit at the most."""

Numbers = tuple[float, ...]
"""The sharpness; and, where there is one, how far below a target its sink stands."""

Bound = Callable[[Comparison, HeadErrors], tuple[Tensor, Tensor]]
"""Leak and rounding by what the heads do."""


@dataclass(frozen=True)
class Softened:
    """One kind of soft heads.

    Args:
        kind: "axes", of `Selecting`, or "window".
        boundary: the name of the boundary that the keys are of.
        has_sink: whether there is a sink.
        encoding: of the scores.
        dtype: of the layer.
        layer: the layer, if it is one of this package.
    """

    kind: str
    boundary: str
    has_sink: bool
    encoding: Encoding
    dtype: torch.dtype
    layer: MultiHeadSelfAttention | None

    def output(self, comparison: Comparison, numbers: Numbers) -> Tensor:
        """What such heads make over the reals, (N, D_out, *queries.shape), without the bias."""
        if self.kind == "window":
            return self._in_window(comparison, numbers[0]).convolve(comparison.limit)
        parts = self.encoding.axes(comparison.geometry.dimension)
        assert parts is not None
        heads = self._heads(comparison, numbers)
        padding = SoftPadding.of(
            parts,
            heads.sharpness,
            heads.view.keys,
            heads.view.targets,
            gap=self.encoding.gap(heads.shifts, heads.view.keys),
            sink_height=heads.sink_height,
            dtype=DOUBLE,
        )
        return comparison.stencil.convolve(padding(heads.view.values))

    def rounding(
        self, comparison: Comparison, numbers: Numbers, exact: Tensor, of: Bound
    ) -> Tensor:
        """What floating point may add to what such heads make.

        Args:
            comparison: the convolution and its input.
            numbers: of the heads.
            exact: their output.
            of: the bound of a layer by its heads.
        """
        nothing = exact.new_zeros(())
        if self.kind == "window":
            # Each head sees no more than the largest modulus, and errs as if it saw that.
            largest = largest_moduli(comparison.limit)
            taps = comparison.stencil.geometry.taps
            added = head_rounding(largest, largest, float(taps), (taps,), self.dtype)
            limit = largest.expand_as(comparison.limit)
            heads = HeadErrors(nothing, True, nothing, added.expand_as(limit))
        else:
            parts = self.encoding.axes(comparison.geometry.dimension)
            assert parts is not None
            found = self._heads(comparison, numbers).by_axes(parts)
            limit = comparison.limit + found.deviation
            heads = replace(found, deviation=nothing)
        return of(replace(comparison, limit=limit.contiguous(), exact=exact), heads)[1]

    def _heads(self, comparison: Comparison, numbers: Numbers) -> Selecting:
        sharpness = numbers[0]
        sink_height = numbers[1] / sharpness if self.has_sink else None
        view, _ = comparison.seen_by(self.boundary)
        shifts = comparison.stencil.offsets.to("cpu", DOUBLE)
        evaluation, products = "dense", products_of("any", self.dtype, "cpu")
        if self.layer is not None:
            evaluation = self.layer.evaluation
            products = applied_by(self.layer, self.dtype)
        return Selecting(
            comparison=comparison,
            encoding=self.encoding,
            shifts=shifts,
            view=view,
            sink_height=sink_height,
            sharpness=sharpness,
            score_error=sharpness * self.encoding.relative_score_error(shifts, view.keys),
            dtype=self.dtype,
            evaluation=evaluation,
            products=products,
        )

    def _in_window(self, comparison: Comparison, sharpness: float) -> Stencil:
        """A softmax over the taps, the same at every query: one more kernel."""
        stencil = comparison.stencil
        shifts = stencil.offsets.to(DOUBLE)
        apart = (shifts.unsqueeze(1) - shifts).square().sum(-1)
        weights = (-sharpness * apart).softmax(-1)  # (heads, taps)
        return replace(stencil, matrices=torch.einsum("ht,hgio->tgio", weights, stencil.matrices))


def softenings(
    comparison: Comparison, layer: MultiHeadSelfAttention | None, dtype: torch.dtype
) -> Iterator[Softened]:
    """The kinds of soft heads that a layer may have."""
    d, mode = comparison.geometry.dimension, comparison.stencil.border.name
    can_sink = NATURAL.sink(comparison.stencil.border, comparison.geometry) is not None
    if layer is not None:
        parts = layer.encoding.axes(d) if layer.kind.takes_sharpness else None
        if parts is not None and layer.border == comparison.stencil.border:
            for has_sink in (True, False)[layer.sink_height is None :]:
                yield Softened("axes", layer.boundary, has_sink, layer.encoding, dtype, layer)
        return
    if comparison.stencil.geometry.taps > 1:
        yield Softened("window", PADDED.name, False, Quadratic(), dtype, None)
    yield Softened("axes", PADDED.name, False, Quadratic(), dtype, None)
    if can_sink:
        yield Softened("axes", NATURAL.name, True, Quadratic(), dtype, None)
    if can_sink or mode == "replicate":
        yield Softened("axes", NATURAL.name, False, Quadratic(), dtype, None)


def fitted(heads: Softened, comparison: Comparison, y: Tensor) -> Numbers:
    """The numbers at which soft heads come nearest to an output, by least squares.

    Args:
        heads: of which kind.
        comparison: the convolution and its input.
        y: the output less the bias, float64.
    """

    def residual(numbers: Sequence[float]) -> Tensor:
        """By logarithms."""
        at = tuple(math.exp(min(max(n, -20.0), 7.0)) for n in numbers)
        return (heads.output(comparison, at) - y).flatten()

    sharpnesses, sinks = list(STARTS), list(SINKS)
    if heads.layer is not None:  # of several that do as well the first is taken
        sharpnesses = [heads.layer.sharpness / 2**k for k in range(7)]
        sinks = [heads.layer.sharpness * (heads.layer.sink_height or 1.0), *SINKS]
    best: tuple[float, list[float]] = math.inf, []
    for sink in sinks if heads.has_sink else sinks[:1]:
        fixed = [math.log(sink)] if heads.has_sink else []
        starts = [[math.log(a), *fixed] for a in sharpnesses]
        numbers = min(starts, key=lambda start: float(residual(start).norm()))
        best = min(best, _descended(residual, numbers), key=lambda found: found[0])
    return tuple(math.exp(n) for n in best[1])


def _descended(
    residual: Callable[[Sequence[float]], Tensor], numbers: list[float]
) -> tuple[float, list[float]]:
    """Gauss and Newton's descent: how large the residual is in the end, and where."""
    error = residual(numbers)
    for _ in range(ROUNDS):
        columns = [
            (residual([n + STEP * (i == j) for j, n in enumerate(numbers)]) - error) / STEP
            for i in range(len(numbers))
        ]
        jacobian = torch.stack(columns)
        # The pseudoinverse: a sharpness that saturates leaves no trace of itself.
        step = -torch.linalg.pinv(jacobian @ jacobian.T) @ (jacobian @ error)
        step = step.clamp(-1.0, 1.0)
        for _ in range(HALVINGS):
            moved = [n + float(s) for n, s in zip(numbers, step, strict=True)]
            better = residual(moved)
            if better.norm() < error.norm():
                break
            step = step / 2
        else:
            break
        has_come_nearer = better.norm() < NEARER * error.norm()
        numbers, error = moved, better
        if not has_come_nearer:
            break
    return float(error.norm()), numbers
