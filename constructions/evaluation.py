"""Evaluations: ways of computing the same layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from constructions.attention import Evaluation, MultiHeadSelfAttention
from constructions.borders import padded
from constructions.boundaries import View
from constructions.encodings import Mixing, on_axes
from constructions.formats import accumulator
from constructions.normalisers import Softmax
from constructions.stencil import convolve


@dataclass(frozen=True)
class Dense:
    """The definition: every head's weights over all keys, times the values.

    Sums run in the accumulator format, and the output is rounded to the dtype of the image once,
    at the end. Time and memory grow with heads x queries x keys.
    """

    name: str = "dense"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """The definition always applies."""
        return None

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        exact = accumulator(view.image.dtype)
        values = layer.values(view).to(exact).flatten(2)  # (N, C, K)
        batch, channels, keys = values.shape
        weights = layer.weights(view).to(exact)[..., :keys]  # the value of a sink is zero
        if weights.dim() == 3:
            # The heads see positions alone, so their weights serve the whole batch.
            columns = values.permute(2, 0, 1).reshape(keys, batch * channels)
            seen = (weights @ columns).reshape(*weights.shape[:2], batch, channels).movedim(2, 0)
        else:
            seen = weights @ values.transpose(1, 2).unsqueeze(1)
        # seen: (N, H, Q, D_in), softmax(A^h) X
        _, heads, queries, _ = seen.shape
        groups, width = layer.groups, channels // layer.groups
        grouped = seen.reshape(batch, heads, queries, groups, width).permute(3, 0, 2, 1, 4)
        concatenated = grouped.reshape(groups, batch * queries, heads * width)
        mixing = layer.head_mixing(view, exact).movedim(1, 0).reshape(groups, heads * width, -1)
        mixed = (concatenated @ mixing).reshape(groups, batch, queries, mixing.shape[-1])
        y = mixed.permute(1, 0, 3, 2).reshape(batch, groups * mixing.shape[-1], *view.queries.shape)
        if layer.bias is not None:
            y = y + layer.bias.to(exact).reshape(-1, *(1 for _ in view.queries.shape))
        return y.to(view.image.dtype)


@dataclass(frozen=True)
class Factored:
    """Soft padding, then the ordinary convolution: the theorem that makes the layer practical.

    Shifts, sharpness and matrices are read from the layer's own parameters. The cost is that of
    the convolution and, unless the layer is saturated, of one small matrix product for each axis,
    for all heads together. Theorem: `attention_is_soft_padding_then_convolution`.
    """

    name: str = "factored"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """The heads must share P, and P must factor or be a gather."""
        if isinstance(layer.encoding, Mixing):
            return f"the heads of {layer.encoding} mix all taps and share no operator"
        if not layer.shares_structure():
            return (
                "content terms or per-head positional parameters are trained, or edited off the "
                "structure that the heads share"
            )
        by_axis = on_axes(layer.encoding, layer.geometry.dimension) is not None
        if layer.positional_sharpness is None:
            if by_axis or hasattr(layer.encoding, "theorem"):
                return None
            return f"{layer.encoding} names no theorem by which its heads are one-hot"
        if not by_axis:
            return f"the scores of {layer.encoding} are not known to be sums over axes"
        if not isinstance(layer.normaliser, Softmax):
            return f"the weights of {layer.normaliser} are not known to be products over axes"
        return None

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        dtype = view.image.dtype
        exact = accumulator(dtype)
        matrices = layer.tap_matrices(exact)
        geometry, padding = layer.geometry, (0,) * layer.geometry.dimension
        layer.gap(layer.boundary_rule.keys(view))  # raises where there is none
        if not layer.is_saturated(dtype):
            at_targets = layer.soft_padding(view)(layer.values(view).to(exact))
        elif layer.border.mode == "zeros" and geometry.pads_evenly:
            at_targets, padding = view.image.to(exact), geometry.before
        else:
            at_targets = padded(view.image.to(exact), view.pixels, view.targets, layer.border)
        bias = None if layer.bias is None else layer.bias.to(exact)
        return convolve(geometry, matrices, at_targets, bias, padding).to(dtype)


EVALUATIONS: Mapping[str, Evaluation] = {e.name: e for e in (Factored(), Dense())}
