"""Rotations: constant queries and keys of transformers' rotary models, and how large they must be.

Theorem: `rotations_select_shifts_without_resonance`; the letters are those of its equation 22.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from constructions.encodings.rotary import least_drop
from constructions.formats import OWN, unit_roundoff
from constructions.normalisers import Softmax
from constructions.stock.canvas import Canvas, OnCanvas

THEOREM = "rotations_select_shifts_without_resonance"


def head_dim_for(inner: int) -> int:
    """An even number that holds the values, and eight frequencies at least."""
    return max(16, inner + inner % 2)


@dataclass(frozen=True)
class Rotations:
    """A module's frequencies, and what they tell apart on so many tokens.

    Args:
        frequencies: θ_f, the float32 numbers that the module has.
        dtype: of the module.
        length: T, of the sequence.
        reach: the greatest distance from a target to a key.
    """

    frequencies: tuple[float, ...]
    dtype: torch.dtype
    length: int
    reach: int

    @property
    def scores_err(self) -> float:
        """By how much a score, for s = 1, may err.

        Tables of cosines and sines, of queries and of keys, are computed in float32, all else in
        the module's format: 6u for each of F pairs of the rotated query, 2F for the sum of their
        products, and some for the division by the root of D_k, the mask and the softmax's maximum.
        """
        count, v, u = len(self.frequencies), unit_roundoff(torch.float32), unit_roundoff(self.dtype)
        tables = 2 * (self.length - 1) * math.fsum(self.frequencies) + 10 * count
        return (v * tables + u * count * (4 * count + 20)) * (1 + 2**-8)

    @property
    def drop(self) -> float:
        """The least fall of a score from its target's, for s = 1."""
        ones = (1.0,) * len(self.frequencies)
        return least_drop(self.frequencies, ones, max(1, self.reach))[0]

    def scale(self, sharpness: float | None, softmax: torch.dtype, *, sink: bool = False) -> float:
        """What multiplies the queries: for a sharpness, or for a softmax that is then one-hot.

        A sink stands half a drop below a target; it errs by no more than a score does.

        Args:
            sharpness: the gap in score; None for one-hot weights.
            softmax: the format in which the module forms it.
            sink: whether there is one.

        Raises:
            ValueError: scores err by as much as the frequencies tell apart.
        """
        room = self.drop / (1 + sink) - 2 * self.scores_err
        if room <= 0:
            raise ValueError(
                f"spatial_shape gives {self.length} tokens, on which the frequencies leave a gap "
                f"of {self.drop:.3g} and scores err by {self.scores_err:.3g}; accepted: fewer "
                f"tokens (theorem {THEOREM})"
            )
        wanted = Softmax().one_hot_gap(softmax) if sharpness is None else float(sharpness)
        if not 0 < wanted < math.inf:
            raise ValueError(
                f"sharpness is {sharpness}; accepted: a positive, finite number or None"
            )
        if sharpness is not None:
            return wanted / self.drop
        return wanted / room * OWN

    def queries(self, shifts: Tensor, scale: float, head_dim: int) -> Tensor:
        """Of every head, (H, D_k): s sqrt(D_k) (cos θ Δ, sin θ Δ), all cosines first."""
        turned = shifts.double().unsqueeze(-1) * torch.tensor(self.frequencies, dtype=torch.float64)
        return scale * math.sqrt(head_dim) * torch.cat([turned.cos(), turned.sin()], dim=1)

    def key(self, head_dim: int) -> Tensor:
        """The one of all heads, (D_k,): 1 in the first half, 0 in the second."""
        return (torch.arange(head_dim) < head_dim // 2).double()


class Rotated(OnCanvas):
    """A rotary module of transformers, with the tables of its own rotary embedding.

    Args:
        module: the target's own.
        rotary: the embedding of the same model.
        canvas: where the tokens stand.
        channels: D_in and D_out.
        width: of the tokens.
        causal: whether the module is given its causal mask.
    """

    def __init__(
        self,
        module: nn.Module,
        rotary: nn.Module,
        canvas: Canvas,
        channels: tuple[int, int],
        width: int,
        *,
        causal: bool,
    ) -> None:
        super().__init__(module, canvas, channels, width, constant=True)
        self.rotary, self.causal = rotary, causal

    def tokens(self, x: Tensor) -> tuple[object, ...]:
        """Tokens, cosines and sines of their positions, and the mask or None."""
        tokens = self.placed(x)
        length = tokens.shape[1]
        positions = torch.arange(length, device=x.device).unsqueeze(0)
        mask = x.new_full((length, length), -math.inf).triu(1) if self.causal else None
        return tokens, self.rotary(tokens, positions), mask


def frequencies_of(rotary: Any) -> tuple[float, ...]:
    """Those that an embedding stores."""
    found: list[float] = rotary.inv_freq.double().tolist()
    return tuple(found)


def set_parameters(
    module: Any, queries: Tensor, key: Tensor, factors: tuple[Tensor, Tensor], constant: int
) -> None:
    """Queries and keys of the constant channel, values and outputs of the heads; all else 0.

    Args:
        module: with q_proj, k_proj, v_proj and o_proj, as many keys as queries.
        queries: of every head, (H, D_k).
        key: of all heads, (D_k,).
        factors: W_val, (H, channels, D_h), and W_out, (H, D_h, D_out).
        constant: number of the channel that is 1.
    """
    value, output = factors
    count, used, inner = value.shape
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.q_proj.weight[:, constant] = queries.flatten()
        module.k_proj.weight[:, constant] = key.repeat(count)
        values = module.v_proj.weight.view(count, -1, module.v_proj.in_features)
        values[:, :inner, :used] = value.transpose(1, 2)
        outputs = module.o_proj.weight.view(module.o_proj.out_features, count, -1)
        outputs[: output.shape[2], :, :inner] = output.permute(2, 0, 1)
