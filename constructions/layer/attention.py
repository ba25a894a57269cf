"""The layer: multi-head self-attention with relative positions, in any dimension.

    A^h_{q,k} =   X_q W_qry W_key^T X_k^T  +  X_q W_qry Ŵ_key^T r_δ
                + u^T W_key^T X_k^T        +  v^T Ŵ_key^T r_δ          δ = k - q
    Y = concat_h(softmax(A^h) X W_val^h) W_out + b_out

(arXiv 1911.03584, eqs. 1 to 3 and 8.) The layer holds the parameters; the encoding, the normaliser,
the border and the evaluation are objects that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Proxy

from constructions.formats import accumulator, position_format
from constructions.geometry.geometry import Geometry
from constructions.geometry.padding_modes import PaddingMode
from constructions.geometry.view import Boundary, View
from constructions.heads import Heads
from constructions.layer.inputs import (
    called_by_tracer,
    check_image,
    check_weights_fit,
    choice_of,
    is_autocast,
    without_autocast,
)
from constructions.layer.scores import ALL, Choice, ContentTerms, position_scores
from constructions.layer.shortcut import Shortcut
from constructions.layer.soft_padding import SoftPadding
from constructions.layer.state import AttentionState, OutputSize
from constructions.matrix_units import Operation
from constructions.normalisers import Normaliser
from constructions.sources.native import AnyNative
from constructions.tracing import has_values, is_traced

MOST_PADDINGS = 8
"""Soft paddings that a layer keeps, each for other lattices."""


class Evaluation(Protocol):
    """One way of computing the layer; all ways compute the same function of finite inputs."""

    @property
    def name(self) -> str:
        """The name that `attention_from_conv` takes."""

    @property
    def operation(self) -> Operation:
        """What it asks torch for, for which `matrix_units` says how a device multiplies."""

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """Why this way does not apply to the layer as it stands, or None."""

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """Why this way does not apply to an input, if it applies to the layer, or None."""

    def straight(
        self, layer: MultiHeadSelfAttention, x: Tensor, output_size: OutputSize
    ) -> Tensor | None:
        """The output straight from the input, where this way applies and needs no view; or None."""

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output, (N, D_out, *queries.shape), of the image's dtype."""


class MultiHeadSelfAttention(AttentionState):
    """The paper's multi-head self-attention layer, with all four score terms.

    It is called as the convolution it stands for: (N, D_in, *spatial) or (D_in, *spatial), to the
    shape that the convolution returns. It copies the numbers of the heads that it is made of; its
    content terms are zero. `attention_from_conv` makes it from a convolution.

    Position scores are formed from exact integers in float64, multiplied by the sharpness last and
    centred: a head's score at its own shift is 0. Scores and softmax run in float32 (float64 in a
    float64 layer); weights are then cast to the dtype of the layer. Neither autocast nor
    `.to(bfloat16)` changes this: positional parameters keep the dtype that they were made with.

    Args:
        heads: where each looks, and what it applies; dtype and device are those of its matrices,
            the dtype one of the four IEEE and brain formats.
        geometry: where pixels, keys and queries stand.
        border: what stands beyond the edge.
        boundary: whether that is made of keys.
        normaliser: scores to weights.
        evaluations: how the layer is computed: by the first of these that applies.
        sharpness: the gap in score between a head's shift and any other; None for the gap from
            which the weights are one-hot in the layer's dtype.
        bias: b_out, (D_out,), or None.
        native: the convolution or pooling that the heads express: the layer answers to its names,
            `kernel_size`, `stride` and the others of torch, and a head for each of its taps makes
            its kernel the layer's parameter.
    """

    def __init__(
        self,
        heads: Heads,
        *,
        geometry: Geometry,
        border: PaddingMode,
        boundary: Boundary,
        normaliser: Normaliser,
        evaluations: Sequence[Evaluation],
        sharpness: float | None = None,
        bias: Tensor | None = None,
        native: AnyNative | None = None,
    ) -> None:
        super().__init__(
            heads,
            geometry=geometry,
            border=border,
            boundary=boundary,
            normaliser=normaliser,
            sharpness=sharpness,
            bias=bias,
            native=native,
        )
        self._evaluations = tuple(evaluations)
        self._paddings: dict[tuple[object, ...], SoftPadding] = {}
        self._shortcut: Shortcut | None = None

    def __getstate__(self) -> dict[str, object]:
        """Without what is kept for speed alone."""
        return {**super().__getstate__(), "_paddings": {}, "_shortcut": None}

    @property
    def evaluation(self) -> str:
        """How the layer is computed: "factored", "fused", "flex" or "dense".

        By its structure; where "auto" has chosen "fused", an input beyond its range is computed
        densely.
        """
        return self._chosen_evaluation().name

    def forward(self, input: Tensor, output_size: OutputSize = None) -> Tensor:
        """Apply the layer.

        Args:
            input: (N, D_in, *spatial) or (D_in, *spatial).
            output_size: of a transposed convolution, as torch takes it.

        Returns:
            (N, D_out, *output) or (D_out, *output), of the dtype and on the device of the layer;
            under autocast, of the autocast dtype, as a convolution returns.

        Raises:
            TypeError: x is not a tensor, or output_size is given without a transposed convolution.
            ValueError: wrong rank, channels, dtype or device, an empty grid, a border or an output
                size that the image does not allow.
        """
        if not is_traced() and self._shortcut is not None and output_size is None:
            y = self._shortcut(self, input)
            if y is not None:
                return y
        if isinstance(input, Proxy):  # traced by torch.fx, as a leaf
            return called_by_tracer(self, input, output_size)
        self._check(input)
        if is_autocast(input.device.type):
            own = input.dtype if self.in_channels is None else self.dtype
            with without_autocast(own, input.device.type) as wanted:
                return self._evaluated(input.to(wanted), output_size)
        return self._evaluated(input, output_size)

    def _evaluated(self, x: Tensor, output_size: OutputSize) -> Tensor:
        y = self._evaluations[0].straight(self, x, output_size)
        if y is not None:
            if output_size is None:
                self._remember(x)
            return y
        batched = x.dim() == self.geometry.dimension + 2
        image = x if batched else x.unsqueeze(0)
        view = self.view(image, output_size)
        y = self._chosen_evaluation(view)(self, view)
        if self.in_channels is None:
            y = y.reshape(*image.shape[:2], *y.shape[2:])
        return y if batched else y.squeeze(0)

    def _remember(self, x: Tensor) -> None:
        """Keep the way to torch's own call, for images like this one."""
        if is_traced() or x.dtype != accumulator(x.dtype):
            return
        if self._shortcut is None or not self._shortcut.holds(self):
            self._shortcut = Shortcut.of(self)
        if self._shortcut is not None:
            self._shortcut.learn(x)

    def _check(self, x: Tensor) -> None:
        own: Tensor | None = None
        if self.in_channels is not None:
            own = self._parameters.get("weight")
            own = self.numbers if own is None else own
        check_image(x, own, self.in_channels, self.geometry.dimension)

    def view(self, image: Tensor, output_size: OutputSize = None) -> View:
        """The lattices that the layer sees an image on, and what stands on them.

        Args:
            image: (N, D_in, *spatial), in the dtype in which it is to be seen.
            output_size: as in `forward`.

        Raises:
            ValueError: no output is left, or the border does not reach as far.
        """
        geometry = self.sized(tuple(image.shape[2:]), output_size)
        if self.in_channels is None:
            image = image.flatten(0, 1).unsqueeze(1)
        return View.of(image, geometry, self.border, self.boundary_rule)

    def attention_weights(
        self,
        spatial_shape: Sequence[int],
        x: Tensor | None = None,
        output_size: OutputSize = None,
        *,
        queries: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> Tensor:
        """The attention weights of every head, the definition of the layer.

        Args:
            spatial_shape: the input's, unbatched and unpadded.
            x: the input itself, which a layer with live content terms needs.
            output_size: as in `forward`.
            queries: row-major numbers of the queries that are asked for; None for all.
            heads: numbers of the heads that are asked for; None for all.

        Returns:
            (H, queries, keys), row-major, of the layer's dtype; (N, H, queries, keys) for a layer
            with live content terms. Keys are the input's pixels (natural boundary), or the padded
            grid, zero-stuffed for a transposed convolution; the sink, if there is one, comes last.
            Memory and time go with the queries and heads that are asked for.

        Raises:
            TypeError: queries or heads are no sequence of integers.
            ValueError: as `forward`; content terms live and x is missing; a number of a query or a
                head that there is not; or more weights than the machine has memory for.
        """
        shape = tuple(int(n) for n in spatial_shape)
        self.sized(shape, output_size)
        live = self.has_live_content()
        if x is None:
            if live:
                raise ValueError(
                    "x is None; accepted: the input, since the layer's content terms are live and "
                    "its weights depend on it"
                )
            image = self.numbers.new_zeros(1, self.in_channels or 1, *shape).to(self.dtype)
        else:
            self._check(x)
            image = x if x.dim() == self.geometry.dimension + 2 else x.unsqueeze(0)
            if (given := tuple(image.shape[2:])) != shape:
                raise ValueError(f"x has spatial shape {given}; accepted: spatial_shape, {shape}")
        with without_autocast(self.dtype, image.device.type):
            view = self.view(image.to(self.dtype), output_size)
            counts = view.queries.size, self.num_heads
            choice = choice_of(queries, heads, *counts, self.numbers.device)
            rows = choice.rows(*counts) * (len(image) if live else 1)
            keys = view.keys.size + self.has_sink
            check_weights_fit(rows * keys, self.dtype, self.numbers.device)
            return self.weights(view, choice)

    def weights(self, view: View, choice: Choice = ALL) -> Tensor:
        """The attention weights for a given input; see `attention_weights`."""
        heads, dtype, gap = self.heads, view.image.dtype, self.gap(view.keys)
        scale = self.sharpness_in(dtype) / gap if self.kind.takes_sharpness else 1.0

        def scores_of(heads: Heads) -> Tensor:
            return position_scores(
                heads,
                view,
                gap=gap,
                scale=scale,
                sink_height=self.sink_height,
                shift_invariant=self.normaliser.shift_invariant,
                choice=choice,
            )

        scores = scores_of(heads)
        if self.has_live_content():
            query, key, bias = self.query, self.key, self.content_bias
            assert query is not None
            assert key is not None
            assert bias is not None
            terms = ContentTerms(query, key, bias)
            content = terms.scores(heads, view, accumulator(self.dtype), choice)
            scores = scores + (F.pad(content, (0, 1)) if self.has_sink else content)
        weights = self.normaliser(scores)
        if (second := heads.second(view.keys)) is not None:
            others, shares = second
            share = choice.of_heads(shares).to(weights).reshape(-1, 1, 1)
            weights = weights - share * self.normaliser(scores_of(others))
        return weights.to(dtype)

    def soft_padding(self, view: View) -> SoftPadding:
        """P, the operator that the heads share, its weights rounded to the dtype of the image.

        Only for an encoding that is a sum over axes. Those of the last lattices are kept, unless
        they have a gradient.
        """
        own: Tensor | None = self.positional_sharpness
        trained = own is not None and own.requires_grad
        if is_traced() or trained or (own is not None and not has_values(own)):
            return self._soft_padding(view)
        sharpness = None if own is None else own.item()
        inference = torch.is_inference_mode_enabled()  # whose tensors no gradient can pass
        asked = (
            *(view.keys, view.targets, view.image.dtype, view.image.device),
            *(sharpness, inference, self.sink_height),
        )
        if asked not in self._paddings:
            if len(self._paddings) >= MOST_PADDINGS:
                self._paddings.clear()
            self._paddings[asked] = self._soft_padding(view)
        return self._paddings[asked]

    def _soft_padding(self, view: View) -> SoftPadding:
        parts = self.encoding.axes(self.geometry.dimension)
        assert parts is not None
        return SoftPadding.of(
            parts,
            self.sharpness_in(view.image.dtype),
            view.keys,
            view.targets,
            gap=self.gap(view.keys),
            sink_height=self.sink_height,
            dtype=view.image.dtype,
            exact=position_format(view.image.device),
            device=view.image.device,
        )

    def extra_repr(self) -> str:
        """Describe the layer as torch's own modules do."""
        own: Tensor | None = self.positional_sharpness
        sharpness = "saturated" if own is None else f"{own.item():g}" if has_values(own) else "?"
        sharpness = sharpness if self.kind.takes_sharpness else "none"
        try:
            evaluation = self.evaluation
        except ValueError:
            evaluation = f"{self._evaluations[-1].name} (does not apply)"
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, "
            f"groups={self.groups}, encoding={self.encoding}, normaliser={self.normaliser}, "
            f"sharpness={sharpness}, padding_mode={self.border.name}, boundary={self.boundary}, "
            f"evaluation={evaluation}"
        )

    def _chosen_evaluation(self, view: View | None = None) -> Evaluation:
        """The first evaluation that applies, to an input if there is one; the last one must."""
        objection = None
        for evaluation in self._evaluations:
            objection = evaluation.objection(self)
            if objection is None and view is not None:
                objection = evaluation.limit(self, view)
            if objection is None:
                return evaluation
        raise ValueError(
            f"evaluation {self._evaluations[-1].name!r} does not apply: {objection}; accepted: "
            "'dense' or 'auto'"
        )
