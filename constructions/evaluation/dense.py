"""The dense evaluation: the definition."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from constructions.formats import accumulator
from constructions.geometry.view import View
from constructions.heads import Heads
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.state import OutputSize
from constructions.layer.structure import applied
from constructions.matrix_units import Operation


@dataclass(frozen=True)
class Dense:
    """The definition: every head's weights over all keys, times the values.

    Sums run in the accumulator format, and the output is rounded to the dtype of the image once,
    at the end. Time and memory grow with heads x queries x keys.
    """

    name: str = "dense"
    operation: Operation = "matmul"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """The definition always applies."""
        return None

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """Any input will do."""
        return None

    def straight(
        self, layer: MultiHeadSelfAttention, x: Tensor, output_size: OutputSize
    ) -> Tensor | None:
        """Nothing: keys and queries stand on a view."""
        return None

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        exact = accumulator(view.image.dtype)
        values = view.values.to(exact).flatten(2)  # (N, C, K)
        batch, channels, keys = values.shape
        weights = layer.weights(view).to(exact)[..., :keys]  # the value of a sink is zero
        if weights.dim() == 3:
            # The heads see positions alone, so their weights serve the whole batch.
            columns = values.permute(2, 0, 1).reshape(keys, batch * channels)
            seen = (weights @ columns).reshape(*weights.shape[:2], batch, channels).movedim(2, 0)
        else:
            seen = weights @ values.transpose(1, 2).unsqueeze(1)
        return concatenated(layer.heads, layer.bias, view, seen)


def concatenated(heads: Heads, bias: Tensor | None, view: View, seen: Tensor) -> Tensor:
    """What the heads see, softmax(A^h) X, times W_val^h W_out^h, summed over heads.

    Args:
        heads: of the layer.
        bias: b_out, (D_out,), or None.
        view: of the input.
        seen: (N, H, Q, D_in), in the accumulator format.

    Returns:
        (N, D_out, *queries.shape), rounded to the dtype of the image.
    """
    batch, count, queries, channels = seen.shape
    groups, width = heads.groups, channels // heads.groups
    grouped = seen.reshape(batch, count, queries, groups, width).permute(3, 0, 2, 1, 4)
    columns = grouped.reshape(groups, batch * queries, count * width)
    matrices = (
        applied(heads, view.keys, seen.dtype).movedim(1, 0).reshape(groups, count * width, -1)
    )
    outputs = (columns @ matrices).reshape(groups, batch, queries, matrices.shape[-1])
    y = outputs.permute(1, 0, 3, 2).reshape(batch, groups * matrices.shape[-1], *view.queries.shape)
    if bias is not None:
        y = y + bias.to(seen.dtype).reshape(-1, *(1 for _ in view.queries.shape))
    return y.to(view.image.dtype)
