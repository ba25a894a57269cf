"""The window bias: the one head of average pooling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.encodings.base import Encoding
from constructions.geometry.lattice import Lattice


@dataclass(frozen=True)
class Window(Encoding):
    """A window bias: a head attends alike to all keys from its query to the far end of a window.

    `r_δ` is 0 for 0 <= δ < size on every axis, else -inf, and v = 1. No shift is selected and no
    sharpness matters: the one head of average pooling.

    Args:
        size: keys per axis.
    """

    size: tuple[int, ...]

    def on_axis(self, axis: int) -> Window:
        """The window on one axis: 0 and -inf add up as the window is the product of intervals."""
        return Window((self.size[axis],))

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 1) and names (H, 1), for shifts of 0; see `Encoding.encode`."""
        size = displacements.new_tensor(self.size)
        inside = ((displacements >= 0) & (displacements < size)).all(dim=-1, keepdim=True)
        features = torch.where(inside, 0.0, -torch.inf).to(displacements.dtype)
        return features, torch.ones_like(shifts[:, :1])

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The unit of its scores, which are 0 and -inf at any sharpness."""
        return 1.0
