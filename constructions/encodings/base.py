"""What an encoding is: features of displacements, names of shifts, and the gap between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice


@runtime_checkable
class EncodingLike(Protocol):
    """An object of the two methods of an encoding; `complete_encoding` makes one of it."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """As `Encoding.encode`."""

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """As `Encoding.gap`."""


class Encoding(ABC):
    """A relative positional encoding that lets a head select a shift.

    The score of head h at displacement δ is `sharpness / gap * <names[h], features(δ)>`, up to a
    constant for each head.

    A subclass has `encode` and `gap`, and states what else is true of it, each as a class attribute
    or as a property. What it does not state is not taken for granted.
    """

    @abstractmethod
    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features of displacements and names of shifts.

        Args:
            displacements: (M, d), key minus query, in pixels, floating point.
            shifts: (H, d), the displacement that each head selects, of the same dtype.
            grid: the lattice that the keys stand on.

        Returns:
            features (M, D_p), the r_δ of the paper, and names (H, D_p), its v, of the dtype of
            the displacements.
        """

    @abstractmethod
    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The least difference in `<names[h], features>` between a head's shift and any other.

        A lower bound will do; the scores are divided by it. Positive and finite. Other
        displacements are those from any target to any key (see `farthest`).

        Raises:
            ValueError: the encoding cannot select these shifts.
        """

    @property
    def theorem(self) -> str | None:
        """The slug of the theorem that proves the gap.

        Without one a layer is computed densely even where its weights are one-hot.
        """
        return None

    @property
    def crowded(self) -> bool:
        """Whether many keys can score about as much as the runner-up."""
        return True

    @property
    def absolute(self) -> bool:
        """Whether keys are encoded by where they stand, and not by where they stand from the query.

        Then `encode` takes positions of keys for the displacements, and targets for the shifts.
        """
        return False

    @property
    def bounded_reach(self) -> bool:
        """Whether the gap holds within the distances of `farthest` alone."""
        return False

    @property
    def everywhere(self) -> bool:
        """Whether it selects any shifts on any grid, so that `gap` never raises."""
        return False

    @property
    def integer_differences(self) -> bool:
        """Whether scores of integer points are integers, and functions of δ - Δ, plus a constant.

        The constant is the head's own. Positions and targets can then stand for displacements and
        shifts.
        """
        return False

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """For a `padding_mode`, the encoding whose heads continue the image so by themselves.

        None where there is none. A mode that is missing has none, except for zeros, which a sink
        makes: there it is the encoding itself.
        """
        return {}

    def on_axis(self, axis: int) -> Encoding | None:
        """The one-dimensional encoding of an axis, where the score is the sum of such; else None.

        Each must score by a function of δ_i - Δ_i, up to a constant of the head.
        """
        return None

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """How much a computed `<names[h], features>` may err: 0 for exact integers."""
        return 0.0

    def axes(self, dimension: int) -> tuple[Encoding, ...] | None:
        """The one-dimensional encodings that the score is the sum of, if it is such a sum."""
        parts = [self.on_axis(axis) for axis in range(dimension)]
        known = tuple(part for part in parts if part is not None)
        return known if len(known) == dimension else None

    def natural(self, padding_mode: str) -> Encoding | None:
        """The encoding whose heads make a border by themselves, or None; see `natural_borders`.

        Args:
            padding_mode: torch's name of it.
        """
        return self.natural_borders.get(padding_mode, self if padding_mode == "zeros" else None)

    def relative_score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """What rounding can do to a difference of two scores, over the sharpness."""
        shifts = shifts.to("cpu", torch.float64)
        error = float(self.score_error(shifts, grid))
        # Of exact scores no gap is asked for: it can take long.
        return 2 * error / self.gap(shifts, grid) if error else 0.0


class Mixing(Encoding):
    """An encoding whose heads each see a mixture of all taps, and together tell them apart.

    Head h sees Σ_k softmax(scores)_k X_k; multiplied by its gain and by Σ_δ coefficients[h, δ] W_δ
    and summed over heads this is the convolution.
    """

    @abstractmethod
    def heads(self, offsets: Tensor) -> Tensor:
        """Names of the heads, (H, d), for the offsets of the taps (N, d)."""

    @abstractmethod
    def coefficients(self, offsets: Tensor) -> Tensor:
        """What each head contributes to each tap, (H, N), float64."""

    @abstractmethod
    def gains(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """The sum of the exponentials of each head's centred scores, (H,), float64."""

    def taps_of(self, mixtures: Tensor, shifts: Tensor, taps: int) -> Tensor:
        """The matrices of the taps, from what the heads apply: the way back from `coefficients`.

        Args:
            mixtures: (H, ...).
            shifts: names of the heads, (H, d), which begin with the offsets of the taps.
            taps: N, those that are 0 included.
        """
        # M = b W, and b has as many independent columns as there are taps.
        mixed = self.coefficients(shifts[:taps]).to(mixtures.device)
        found: Tensor = torch.linalg.pinv(mixed) @ mixtures.to(mixed.dtype).flatten(1)
        return found.reshape(taps, *mixtures.shape[1:])


def farthest(shifts: Tensor, grid: Lattice) -> tuple[int, ...]:
    """How far a key of the grid can be from a target, on each axis, in pixels.

    A target is a query displaced by one of the shifts. It leaves the keys of a convolution by at
    most the padding, which is at most the largest shift, and those of a transposed one by less than
    its stride, the spacing of the keys, or its dilation, a step of the shifts, more.
    """
    beyond = shifts.abs().amax(dim=0) + shifts.amax(dim=0) - shifts.amin(dim=0)
    extents = zip(grid.shape, grid.spacing, beyond.tolist(), strict=True)
    return tuple((n - 1) * s + s - 1 + int(b) for n, s, b in extents)
