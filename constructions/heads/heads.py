"""Heads: the noun between a convolution and a layer.

A tap is an offset and a matrix; a head is a place to look and a matrix to apply. What a head sees,
Σ_k a_k X_k with weights a from the scores of its shift, is multiplied by W_val^h W_out^h and added
up over the heads (arXiv 1911.03584, eqs. 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from constructions.encodings import Encoding, Mixing
from constructions.geometry.lattice import Lattice


class Kind(Enum):
    """What the heads of a layer do together."""

    SELECTING = "selecting"
    """Each looks at one place, the sharper the more; it applies the matrix of a tap."""
    MIXING = "mixing"
    """Each sees a mixture of all taps; multiplied by its gain, together they tell them apart."""
    UNIFORM = "uniform"
    """One that shares its attention evenly over a window, every channel alike and apart."""

    @property
    def takes_sharpness(self) -> bool:
        """Whether a sharpness multiplies the scores: else they are what they are."""
        return self is Kind.SELECTING


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a layer: for each where it looks, and the matrices that it applies.

    Args:
        encoding: what a relative position looks like, and how a head names its shift.
        shifts: Δ, (H, d), key minus query in pixels: the place that each head looks at, or what
            names it.
        positional_key: Ŵ_key, (H, D_p, D_k), the identity as the constructions have it.
        value: W_val, (H, G, D_in / G, D_h), diagonal blocks.
        output: W_out, (H, G, D_h, D_out / G), likewise.
        kind: what they do together.

    Raises:
        ValueError: shapes that do not go together, or mixing heads of an encoding without gains.
    """

    encoding: Encoding
    shifts: Tensor
    positional_key: Tensor
    value: Tensor
    output: Tensor
    kind: Kind = Kind.SELECTING

    def __post_init__(self) -> None:
        value, output = self.value.shape, self.output.shape
        fits = len(value) == len(output) == 4 and value[:2] == output[:2] and value[3] == output[2]
        if not fits:
            raise ValueError(
                f"value has shape {tuple(value)} and output {tuple(output)}; accepted: "
                "(heads, groups, D_in / groups, D_h) and (heads, groups, D_h, D_out / groups)"
            )
        if self.shifts.dim() != 2 or len(self.shifts) != value[0]:
            raise ValueError(
                f"shifts has shape {tuple(self.shifts.shape)}; accepted: ({value[0]}, d), a shift "
                "for each head"
            )
        key = self.positional_key
        if key.dim() != 3 or len(key) != value[0]:
            raise ValueError(
                f"positional_key has shape {tuple(key.shape)}; accepted: ({value[0]}, D_p, D_k), a "
                "matrix for each head"
            )
        if self.kind is Kind.MIXING and not isinstance(self.encoding, Mixing):
            raise ValueError(
                f"encoding is {self.encoding}; accepted: one that has gains, for heads that mix"
            )

    def __len__(self) -> int:
        """H."""
        return len(self.value)

    @property
    def groups(self) -> int:
        """G, the blocks of W_val and W_out."""
        return self.value.shape[1]

    @property
    def in_channels(self) -> int | None:
        """D_in; None where every channel is treated alike and apart."""
        return None if self.is_channelwise else self.groups * self.value.shape[2]

    @property
    def out_channels(self) -> int | None:
        """D_out; None likewise."""
        return None if self.is_channelwise else self.groups * self.output.shape[3]

    @property
    def takes_sharpness(self) -> bool:
        """Whether a sharpness multiplies the scores."""
        return self.kind.takes_sharpness

    @property
    def is_channelwise(self) -> bool:
        """Whether every channel of the input is treated alike and apart."""
        return self.kind is Kind.UNIFORM

    def gains(self, keys: Lattice) -> Tensor | None:
        """What each head is multiplied by on a lattice of keys, (H,); None for nothing.

        Raises:
            ValueError: the encoding does not apply on these keys.
        """
        if self.kind is not Kind.MIXING:
            return None
        assert isinstance(self.encoding, Mixing)
        return self.encoding.gains(self.shifts.detach(), keys)
