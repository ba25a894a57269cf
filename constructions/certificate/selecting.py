"""Selecting heads: one for each tap, each of which tends to one key, or to the sink.

They are made anew from the convolution, so that a wrong layer is judged by the right ones. Numbers
in brackets are equations on the page of `layer_error_is_certified`, or, where it says so (T4), of
`attention_is_soft_padding_then_convolution`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from constructions.certificate.bounds import seen_moduli
from constructions.certificate.comparison import Comparison
from constructions.certificate.head_errors import HeadErrors, applied_by, largest_moduli
from constructions.certificate.masses import gap_mass, soft_padding_mass, table_mass
from constructions.certificate.rounding import ROUND_UP, head_rounding, may_overflow
from constructions.encodings import Encoding
from constructions.evaluation import EVALUATIONS
from constructions.formats import accumulator
from constructions.geometry.lattice import displacements
from constructions.geometry.view import View
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import below_peaks
from constructions.layer.soft_padding import SoftPadding
from constructions.matrix_units import Products
from constructions.normalisers import Softmax


def selecting_errors(
    comparison: Comparison, layer: MultiHeadSelfAttention, shifts: Tensor | None = None
) -> HeadErrors:
    """What the heads of the construction do to this input at the layer's sharpness.

    Nothing but the layer's part in the construction is read: its encoding, normaliser, boundary,
    evaluation, sharpness and dtype.

    Args:
        comparison: the convolution and the input.
        layer: whose heads select.
        shifts: of the heads of the construction, (H, d); None for a head for each tap.

    Raises:
        ValueError: the weights are not saturated, and the normaliser is not softmax, or nothing is
            known of what the heads tend to beyond the edge.
    """
    if layer.is_saturated(layer.dtype):
        return _one_hot_errors(comparison, layer)
    if not isinstance(layer.normaliser, Softmax):
        raise ValueError(
            f"layer has the normaliser {layer.normaliser} below its one-hot gap; accepted: "
            "softmax, or a saturated layer"
        )
    parts = layer.encoding.axes(comparison.geometry.dimension)
    if parts is not None:
        return Selecting.of(comparison, layer, shifts).by_axes(parts)
    mode = comparison.stencil.border.name
    if layer.boundary == "natural" and mode != "zeros":
        raise ValueError(
            f"layer has the natural border {mode!r} of {layer.encoding}, whose scores are not "
            "known to be sums over axes; accepted: a padded boundary, zeros, or a saturated layer"
        )
    return Selecting.of(comparison, layer, shifts).by_scores()


def _one_hot_errors(comparison: Comparison, layer: MultiHeadSelfAttention) -> HeadErrors:
    """None, but where a fused kernel flushes a pixel, or overflows on its way to a row's peak."""
    heads = HeadErrors.none(comparison.limit)
    if EVALUATIONS[layer.evaluation].operation != "attention":
        return heads
    moduli = comparison.limit.abs()
    flushed = moduli < applied_by(layer, layer.dtype).underflow
    view, _ = comparison.seen_by(layer.boundary)
    overflow = may_overflow(largest_moduli(view.values), view.keys.size, layer.dtype)
    if not overflow.any() and not (flushed & (moduli > 0)).any():
        return heads
    rounding = moduli.where(flushed, 0.0).masked_fill(overflow, math.inf)
    return replace(heads, rounding=rounding)


@dataclass(frozen=True)
class Selecting:
    """One softmax head for each tap, on the keys of one input.

    Args:
        comparison: the convolution and the input.
        encoding: of which the scores are products.
        shifts: (H, d), float64.
        view: the input, and the keys.
        sink_height: how far one more key, of zero value, stands below a target; None for none.
        sharpness: the gap in score.
        score_error: what the encoding's own rounding can do to a score.
        dtype: of the layer.
        evaluation: the name of the layer's way of computing.
        products: how weights are applied to values.
    """

    comparison: Comparison
    encoding: Encoding
    shifts: Tensor
    view: View
    sink_height: float | None
    sharpness: float
    score_error: float
    dtype: torch.dtype
    evaluation: str
    products: Products

    @classmethod
    def of(
        cls,
        comparison: Comparison,
        layer: MultiHeadSelfAttention,
        shifts: Tensor | None = None,
    ) -> Selecting:
        """The heads of the convolution, of the kind that the layer has."""
        encoding, sharpness = layer.encoding, layer.sharpness
        if shifts is None:
            shifts = comparison.stencil.offsets.to("cpu", torch.float64)
        view, sink_height = comparison.seen_by(layer.boundary)
        return cls(
            comparison=comparison,
            encoding=encoding,
            shifts=shifts,
            view=view,
            sink_height=sink_height,
            sharpness=sharpness,
            score_error=sharpness * encoding.relative_score_error(shifts, view.keys),
            dtype=layer.dtype,
            evaluation=layer.evaluation,
            products=applied_by(layer, layer.dtype),
        )

    @property
    def has_sink(self) -> bool:
        """Whether there is a sink."""
        return self.sink_height is not None

    @property
    def factored(self) -> bool:
        """Whether the softmaxes of the axes are applied one after another."""
        return self.evaluation == "factored"

    @property
    def streamed(self) -> bool:
        """Whether a fused kernel goes through the keys in blocks, and normalises last."""
        return EVALUATIONS[self.evaluation].operation == "attention"

    @property
    def together(self) -> tuple[int]:
        """The one softmax over all keys, the sink included."""
        return (self.view.keys.size + self.has_sink,)

    def by_axes(self, parts: tuple[Encoding, ...]) -> HeadErrors:
        """Of scores that are sums over axes: the deviation is P's own, (4); (12) of T4.

        Args:
            parts: the encoding of each axis.
        """
        view, values = self.view, self.view.values
        padding = SoftPadding.of(
            parts,
            self.sharpness,
            self.view.keys,
            view.targets,
            gap=self.encoding.gap(self.shifts, self.view.keys),
            sink_height=self.sink_height,
            dtype=torch.float64,
        )
        lit = torch.ones(1, 1, *view.pixels.shape)
        is_pixel = replace(view, image=lit).at_targets[0, 0] > 0
        mass = soft_padding_mass(
            padding, is_pixel, self.sharpness, self.score_error, sink_height=self.sink_height
        )
        seen = seen_moduli(padding, values, accumulator(self.dtype))
        largest = largest_moduli(values)
        return HeadErrors(
            deviation=padding(values) - self.comparison.limit,
            signed=True,
            # (14): P itself is evaluated in float64, one axis after another.
            evaluated=head_rounding(
                seen,
                largest,
                mass,
                self.view.keys.shape,
                torch.float64,
                score_error=self.score_error,
                rescaled=self.has_sink,
            ),
            rounding=head_rounding(
                seen,
                largest,
                mass,
                self.view.keys.shape if self.factored else self.together,
                self.dtype,
                score_error=self.score_error,
                rescaled=self.factored and self.has_sink,
                streamed=self.streamed,
                products=self.products,
            ),
        )

    def by_scores(self) -> HeadErrors:
        """Of any other encoding: Λ / (1 + Λ) times the range of the channel, after (4)."""
        mass = self._mass()
        deviation = mass / (1 + mass) * ROUND_UP * self.comparison.spread(has_sink=self.has_sink)
        largest = largest_moduli(self.view.values)
        rounding = head_rounding(
            largest.expand_as(deviation),
            largest,
            mass,
            self.together,
            self.dtype,
            score_error=self.score_error,
            streamed=self.streamed,
            products=self.products,
        )
        return HeadErrors(deviation, False, torch.zeros_like(deviation), rounding)

    def _mass(self) -> float:
        """Λ of every head, from its scores at all displacements, or from the gap alone."""
        box = displacements(self.view.keys, self.view.queries).positions().double()
        unit = self.sharpness / self.encoding.gap(self.shifts, self.view.keys)
        below = below_peaks(self.encoding, box, self.shifts, self.view.keys) * unit
        elsewhere = (box != self.shifts.unsqueeze(1)).any(dim=-1)
        by_scores = table_mass(
            below, elsewhere, self.sharpness, self.score_error, sink_height=self.sink_height
        )
        return min(
            by_scores, gap_mass(self.sharpness, self.view.keys.size, sink_height=self.sink_height)
        )
