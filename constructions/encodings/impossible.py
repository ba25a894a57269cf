"""What cannot express convolution: ALiBi beyond 1 x 1 kernels, and no positions at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.geometry.lattice import Lattice

TIES = "ties_cannot_express_convolution"

IMPOSSIBLE: Mapping[str, str] = {
    "none": (
        "without positions all keys but the query's own tie, and only 1 x 1 kernels and the mean "
        f"over all keys come out (theorem `{TIES}`)"
    ),
}
"""Names that `attention_from_conv` may meet as an encoding, and why none is built for them."""


@dataclass(frozen=True)
class Alibi(Encoding):
    """Scores that fall with the distance, as in ALiBi: a head attends to its query's own pixel.

    `r_δ = |δ_1| + ... + |δ_d|` and v = -1, D_p = 1. The slope is the sharpness. The gap is 1 for a
    shift of 0, and every other shift ties with its mirror image: heads select the shift 0 alone,
    and a layer with a head for each tap has 1 x 1 kernels alone, without padding (which shifts them
    here). Heads of several slopes together express every kernel that depends on the distance alone,
    by equation 13 of the theorem; none is built. Source: arXiv 2108.12409, whose keys after the
    query are masked. Theorem: `ties_cannot_express_convolution`.

    Args:
        causal: whether keys after the query are masked, in one dimension.

    Raises:
        TypeError: causal is not a bool.
    """

    causal: bool = False

    theorem: ClassVar[str] = TIES
    crowded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.causal, bool):
            raise TypeError(f"causal is {self.causal!r}; accepted: True or False")

    def on_axis(self, axis: int) -> Alibi | None:
        """Itself, a sum over axes; None if causal, where rows without any key can stand."""
        return None if self.causal else self

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """The nearest pixel of a query beyond the edge is on the edge; a mask may hide it."""
        return {} if self.causal else {"replicate": self}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 1) and names (H, 1); see `Encoding.encode`."""
        features = displacements.abs().sum(dim=-1, keepdim=True)
        if self.causal:
            after = (displacements > 0).any(dim=-1, keepdim=True)
            features = features.masked_fill(after, math.inf)
        return features, shifts.new_full((len(shifts), 1), -1.0)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1 for shifts of 0: another integer point is at a distance of at least 1.

        Raises:
            ValueError: a shift is not 0, or causal scores in more than one dimension.
        """
        if self.causal and grid.dimension > 1:
            raise ValueError(
                f"encoding is {self} in {grid.dimension} dimensions; accepted: a convolution in "
                "one dimension, since only there keys come after each other"
            )
        if bool(shifts.any()):
            reason = "fall with every step back" if self.causal else "are those of its mirror image"
            raise ValueError(
                f"encoding is {self}, whose scores at a shift {reason}; accepted: it selects the "
                f"shift 0 alone, a kernel of one pixel without padding (theorem `{self.theorem}`)"
            )
        return 1.0
