"""Evaluations: ways of computing the same layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from constructions.attention import Evaluation, MultiHeadSelfAttention, Tokens
from constructions.formats import accumulator


@dataclass(frozen=True)
class Dense:
    """The definition: every head's weights over all keys, times the values.

    Sums run in the accumulator format, and the output is rounded to the dtype of the tokens once,
    at the end. Time and memory grow with heads x queries x keys.
    """

    name: str = "dense"

    def __call__(self, layer: MultiHeadSelfAttention, tokens: Tokens) -> Tensor:
        """The output (N, D_out, Q); see `Evaluation`."""
        dtype = tokens.at_keys.dtype
        exact = accumulator(dtype)
        batch, keys, channels = tokens.at_keys.shape
        weights = layer.weights(tokens).to(exact)
        if weights.dim() == 3:
            # The heads see positions alone, so their weights serve the whole batch.
            values = tokens.at_keys.to(exact).transpose(0, 1).reshape(keys, batch * channels)
            seen = (weights @ values).reshape(*weights.shape[:2], batch, channels).movedim(2, 0)
        else:
            seen = weights @ tokens.at_keys.to(exact).unsqueeze(1)
        # seen: (N, H, Q, D_in), softmax(A^h) X
        _, heads, queries, _ = seen.shape
        groups, width = layer.groups, channels // layer.groups
        grouped = seen.reshape(batch, heads, queries, groups, width).permute(3, 0, 2, 1, 4)
        concatenated = grouped.reshape(groups, batch * queries, heads * width)
        mixing = layer.mixing(exact).movedim(1, 0).reshape(groups, heads * width, -1)
        mixed = (concatenated @ mixing).reshape(groups, batch, queries, mixing.shape[-1])
        y = mixed.permute(1, 0, 3, 2).reshape(batch, layer.out_channels, queries)
        if layer.bias is not None:
            y = y + layer.bias.to(exact).unsqueeze(-1)
        return y.to(dtype)


EVALUATIONS: Mapping[str, Evaluation] = {"dense": Dense()}
