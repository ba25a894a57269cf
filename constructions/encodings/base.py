"""What an encoding is: features of displacements, names of shifts, and the gap between them."""

from __future__ import annotations

from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice


@runtime_checkable
class Encoding(Protocol):
    """A relative positional encoding that lets a head select a shift.

    The score of head h at displacement δ is `sharpness / gap * <queries[h], features(δ)>`, up to a
    constant for each head.

    An encoding may also state

    * `theorem`: the slug of the theorem that proves its gap. Without one a layer is computed
      densely even where its weights are one-hot;
    * `on_axis(axis)`: the one-dimensional encodings of whose scores its own is the sum, or None;
    * `natural_borders`: for a `padding_mode`, the encoding whose heads continue the image so by
      themselves, or None (default: itself for zeros, which a sink makes, and none else);
    * `score_error(shifts, grid)`: how much a computed `<queries[h], features>` may err (default:
      0, for exact integers);
    * `bounded_reach`: whether its gap holds within the distances of `farthest` alone (default:
      False);
    * `everywhere`: whether it selects any shifts on any grid, so that `gap` never raises (default:
      False);
    * `crowded`: whether many keys can score about as much as the runner-up (default: True);
    * `integer_differences`: whether scores of integer points are made of integers, and functions of
      δ - Δ alone, plus a constant of the head, so that positions and targets can stand for
      displacements and shifts (default: False);
    * `absolute`: whether keys are encoded by where they stand, and not by where they stand from the
      query (default: False). Then `encode` takes positions of keys for the displacements, and
      targets for the shifts.
    """

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features of displacements and names of shifts.

        Args:
            displacements: (M, d), key minus query, in pixels, floating point.
            shifts: (H, d), the displacement that each head selects, of the same dtype.
            grid: the lattice that the keys stand on.

        Returns:
            features (M, D_p), the r_δ of the paper, and queries (H, D_p), its v.
        """

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The least difference in `<queries[h], features>` between a head's shift and any other.

        A lower bound will do; the scores are divided by it. Other displacements are those from any
        target to any key (see `farthest`).

        Raises:
            ValueError: the encoding cannot select these shifts.
        """


@runtime_checkable
class Mixing(Encoding, Protocol):
    """An encoding whose heads each see a mixture of all taps, and together tell them apart.

    Head h sees Σ_k softmax(scores)_k X_k; multiplied by its gain and by Σ_δ coefficients[h, δ] W_δ
    and summed over heads this is the convolution.
    """

    def heads(self, offsets: Tensor) -> Tensor:
        """Names of the heads, (H, d), for the offsets of the taps (N, d)."""

    def coefficients(self, offsets: Tensor) -> Tensor:
        """What each head contributes to each tap, (H, N), float64."""

    def gains(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """The sum of the exponentials of each head's centred scores, (H,), float64."""


def is_mixing(encoding: Encoding) -> TypeGuard[Mixing]:
    """Whether an encoding's heads mix: what isinstance says, in a tenth of its time."""
    return all(hasattr(encoding, name) for name in ("heads", "coefficients", "gains"))


def on_axes(encoding: Encoding, dimension: int) -> tuple[Encoding, ...] | None:
    """The one-dimensional encodings that an encoding's score is the sum of, if it is such a sum."""
    on_axis = getattr(encoding, "on_axis", None)
    parts = [None if on_axis is None else on_axis(axis) for axis in range(dimension)]
    known = tuple(part for part in parts if part is not None)
    return known if len(known) == dimension else None


def relative_score_error(encoding: Encoding, shifts: Tensor, grid: Lattice) -> float:
    """What the rounding of an encoding can do to a difference of two scores, over the sharpness."""
    error = getattr(encoding, "score_error", None)
    if error is None:
        return 0.0
    shifts = shifts.to("cpu", torch.float64)
    return 2 * float(error(shifts, grid)) / encoding.gap(shifts, grid)


def farthest(shifts: Tensor, grid: Lattice) -> tuple[int, ...]:
    """How far a key of the grid can be from a target, on each axis, in pixels.

    A target is a query displaced by one of the shifts. It leaves the keys of a convolution by at
    most the padding, which is at most the largest shift, and those of a transposed one by less than
    its stride, the spacing of the keys, or its dilation, a step of the shifts, more.
    """
    beyond = shifts.abs().amax(dim=0) + shifts.amax(dim=0) - shifts.amin(dim=0)
    extents = zip(grid.shape, grid.spacing, beyond.tolist(), strict=True)
    return tuple((n - 1) * s + s - 1 + int(b) for n, s, b in extents)
