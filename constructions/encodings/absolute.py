"""Absolute encodings: keys are encoded by where they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.encodings.completed import complete_encoding
from constructions.geometry.lattice import Lattice


@dataclass(frozen=True)
class Absolute(Encoding):
    """An encoding seen from the first pixel: the same scores, of absolute positions.

    `r_k` stands for `r_δ`, and the query names its target, v(q + Δ) for v(Δ): one dot product of a
    feature of the key and one of the query, as stock attention has it. Where the score of the
    encoding depends on δ - Δ alone, up to a constant of the row, the weights are the same. Theorem:
    `absolute_scores_select_the_same_shift`.

    Args:
        relative: the encoding, of such scores; an object of its two methods is completed.

    Raises:
        TypeError: relative is not an encoding.
    """

    relative: Encoding

    theorem: ClassVar[str] = "absolute_scores_select_the_same_shift"
    absolute: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "relative", complete_encoding(self.relative, "relative"))

    @property
    def crowded(self) -> bool:
        """As in the relative encoding: the scores are the same."""
        return self.relative.crowded

    @property
    def bounded_reach(self) -> bool:
        """As in the relative encoding."""
        return self.relative.bounded_reach

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """Those of the relative encoding; a circle is made of relative positions alone."""
        return {
            mode: self if encoding == self.relative else encoding
            for mode, encoding in self.relative.natural_borders.items()
        }

    def on_axis(self, axis: int) -> Encoding | None:
        """That of the relative encoding."""
        return self.relative.on_axis(axis)

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features of positions and names of targets; see `Encoding.encode`."""
        return self.relative.encode(displacements, shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """That of the relative encoding."""
        return self.relative.gap(shifts, grid)

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """That of the relative encoding, which has to cover positions too."""
        return self.relative.score_error(shifts, grid)
