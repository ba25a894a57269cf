"""Lowering: a positional layer as soft paddings and convolutions, with a certified error.

A head whose score is a function g of key minus query alone sees

    conv_g(X) / (conv_g(1) + e^sink)

a convolution with the kernel e^g, renormalised where the kernel leaves the box of keys. For scores
that are sums over axes it is one small banded matrix for each axis. Heads of one precision, whose
shifts differ by whole pixels, share these matrices; and a sharp head needs its window alone.
Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constructions.certificate.rounding import gamma
from constructions.encodings import Encoding, Gaussian, Quadratic, Scored
from constructions.formats import DOUBLE
from constructions.geometry.lattice import Lattice
from constructions.heads import Kind
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.parameters import CONTENT
from constructions.lowering.bands import SumOverAxes
from constructions.lowering.groups import ScoredHead, completed_squares, grouped
from constructions.lowering.lowered import Lowered
from constructions.lowering.modules import READERS, lowered_module, reader_of
from constructions.lowering.tables import OfEncoding
from constructions.normalisers import Softmax
from constructions.tracing import has_values


def lower(
    layer: MultiHeadSelfAttention | nn.Module,
    *,
    grid: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> Lowered:
    """A positional attention layer, as trained or edited, at nearly a convolution's cost.

    Each head may have a real shift and a positional key of its own. Heads are grouped by their
    precision, and by what their shifts have beyond whole pixels: one soft padding for each group.
    Scores that are no sums over axes are taken as tables by displacement, at the cost of dense
    attention without its scores.
    The result is a copy of the numbers that the layer has now; it stands for the layer within its
    `error_bound`, and says its `cost`.

    Modules of timm and transformers are taken too, where their content terms are off (the key
    matrix, or the query's with its bias, is zero): the window attention of Swin, the attention of
    BEiT (its class token of zeros), of a T5 encoder, and the gated one of ConViT (its gates rounded
    into the values), in evaluation and without a mask; those of BLOOM and MPT, causal with ALiBi;
    and that of Llama where queries and keys are biases alone. The result is called with the image
    whose pixels are the tokens.

    Args:
        layer: an attention layer without content terms.
        grid: of a module of others, the pixels on each axis; None where the module says.
        tolerance: the mass that a window may leave out of a row; 0 for no window; None for the
            unit roundoff of the layer's dtype. Tables have no windows.

    Raises:
        TypeError: not an attention layer of this package, nor of a class that is known.
        ValueError: live content terms, another normaliser than softmax, an encoding of positions
            or whose heads mix, or a head that does not fall off.
    """
    if isinstance(layer, nn.Module) and reader_of(layer) is not None:
        return lowered_module(layer, grid)
    if not isinstance(layer, MultiHeadSelfAttention):
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: an attention layer of this package, or "
            f"one of {', '.join(READERS)}"
        )
    if grid is not None:
        raise ValueError(f"grid is {grid}; accepted: None, for a layer that takes images")
    heads = _read(layer)
    return Lowered(
        groups=grouped(heads.scored()),
        value=heads.value,
        output=heads.output,
        bias=layer.bias,
        geometry=layer.geometry,
        border=layer.border,
        boundary=layer.boundary_rule,
        depthwise=layer.in_channels is None,
        tolerance=tolerance,
    )


@dataclass(frozen=True)
class _PositionalHeads:
    """Heads without content terms, as they are now.

    Args:
        encoding: what a relative position looks like.
        shifts: (H, d), float64.
        positional_key: (H, D_p, D_p), float64.
        sharpness: the gap in score.
        sink_height: how far below a target the sink stands, in gaps; None without a sink.
        value: W_val, (H, G, D_in / G, D_h).
        output: W_out, (H, G, D_h, D_out / G).
    """

    encoding: Encoding
    shifts: Tensor
    positional_key: Tensor
    sharpness: float
    sink_height: float | None
    value: Tensor
    output: Tensor

    def scored(self) -> list[ScoredHead]:
        """The score of each head as a function of key minus target, and its target."""
        if isinstance(self.encoding, Quadratic):
            return self._squares(self.encoding)
        return self._sums_over_axes() if self._is_sum_over_axes() else self._tables()

    def _has_plain_key(self) -> Tensor:
        """Which heads have the identity, as the construction has it."""
        identity = torch.eye(self.positional_key.shape[-1], dtype=DOUBLE)
        return (self.positional_key == identity).all(dim=-1).all(dim=-1)

    def _squares(self, encoding: Quadratic) -> list[ScoredHead]:
        """Equation (12): any shift and any positional key, as a peak and a precision."""
        shifts, keys, plain = self.shifts, self.positional_key, self._has_plain_key()
        _, named = encoding.encode(shifts, shifts, Lattice.box((1,) * shifts.shape[1]))
        coefficients = (keys @ named.unsqueeze(-1)).squeeze(-1) * self.sharpness
        size = (keys.abs() @ named.abs().unsqueeze(-1)).squeeze(-1) * self.sharpness
        slack = size * gamma(keys.shape[-1] + 4, DOUBLE)
        slack[plain] = 0.0
        # The shift itself, where it is the peak: not divided and multiplied.
        known = [s if p else None for s, p in zip(shifts, plain.tolist(), strict=True)]
        sinks = None
        if self.sink_height is not None:
            sinks = shifts, self.sink_height * self.sharpness
        return completed_squares(coefficients, slack, sinks, "positional_key", known)

    def _sums_over_axes(self) -> list[ScoredHead]:
        """Scores of another encoding, whose structure must be that of the construction."""
        shifts, encoding = self.shifts, self.encoding
        rows = [tuple(row) for row in shifts.tolist()]
        scores = SumOverAxes(encoding, tuple(rows), self.sharpness, self.sink_height)
        none = (0.0,) * (1 + shifts.shape[1])
        return [ScoredHead(scores, tuple(int(s) for s in row), none) for row in rows]

    def _is_sum_over_axes(self) -> bool:
        """Whether the scores are sums over axes as the construction makes them."""
        known = self.encoding.axes(self.shifts.shape[1]) is not None
        whole = torch.equal(self.shifts, self.shifts.round())
        return known and whole and bool(self._has_plain_key().all())

    def _tables(self) -> list[ScoredHead]:
        """Scores of any encoding, each head by its table; one table for all that shift one."""
        if self.encoding.absolute:
            raise ValueError(
                f"layer has the encoding {self.encoding}, which encodes where keys stand; "
                "accepted: one of displacements"
            )
        plain, dimension = self._has_plain_key().tolist(), self.shifts.shape[1]
        sink = None if self.sink_height is None else -self.sink_height * self.sharpness
        none, first, found = (0.0,) * (1 + dimension), None, []
        for head, shift in enumerate(self.shifts):
            moves = isinstance(self.encoding, Scored | Gaussian) and plain[head]
            moves = moves and torch.equal(shift, shift.round())
            pixels = tuple(int(s) for s in shift.tolist()) if moves else (0,) * dimension
            scores = OfEncoding(
                sink=sink,
                encoding=self.encoding,
                shifts=self.shifts,
                head=head,
                positional_key=None if plain[head] else self.positional_key[head],
                sharpness=self.sharpness,
                origin=pixels,
            )
            if moves:  # s(δ - Δ) is one function of key less target
                scores = first = first or scores
            found.append(ScoredHead(scores, pixels, none))
        return found


def _read(layer: MultiHeadSelfAttention) -> _PositionalHeads:
    """All that lowering asks of a layer's heads; the only place that does.

    Raises:
        ValueError: the heads depend on the input, or their weights are of another kind.
    """
    if not has_values(layer.numbers):
        raise ValueError("layer is on the meta device; accepted: one whose numbers can be read")
    for name in CONTENT:
        term: Tensor | None = getattr(layer, name)
        if term is not None and term.detach().count_nonzero():
            raise ValueError(
                f"layer has live content terms ({name} is not zero), so that its weights depend on "
                "the input; accepted: positional terms alone"
            )
    if not isinstance(layer.normaliser, Softmax):
        raise ValueError(
            f"layer has the normaliser {layer.normaliser}, whose weights are not a quotient of two "
            "convolutions; accepted: softmax"
        )
    if layer.kind is Kind.MIXING:
        raise ValueError(
            f"layer has the encoding {layer.encoding}, whose heads mix all taps with gains of the "
            "grid; accepted: one that selects shifts"
        )
    heads = layer.heads
    value, output = (matrices.to(layer.dtype) for matrices in heads.matrices())
    return _PositionalHeads(
        encoding=heads.encoding,
        shifts=heads.shifts.detach().to("cpu", DOUBLE),
        positional_key=heads.positional_key.detach().to("cpu", DOUBLE),
        sharpness=layer.sharpness,
        sink_height=layer.sink_height,
        value=value,
        output=output,
    )
