"""Heads: the noun between a convolution and a layer.

A tap is an offset and a matrix; a head is a place to look and a matrix to apply. What a head sees,
Σ_k a_k X_k with weights a from the scores of its shift, is multiplied by W_val^h W_out^h and added
up over the heads (arXiv 1911.03584, eqs. 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from constructions.encodings import Encoding, Mixing, Mixtures
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
        value: W_val, (H, G, D_in / G, D_h), diagonal blocks; None for the identity.
        output: W_out, (H, G, D_h, D_out / G), likewise; one of the two is given.
        kind: what they do together.

    Raises:
        ValueError: shapes that do not go together, or mixing heads of an encoding without gains.
    """

    encoding: Encoding
    shifts: Tensor
    positional_key: Tensor
    value: Tensor | None
    output: Tensor | None
    kind: Kind = Kind.SELECTING

    def __post_init__(self) -> None:
        given = [m for m in (self.value, self.output) if m is not None]
        shapes = [tuple(m.shape) for m in given]
        fits = bool(shapes) and all(len(shape) == 4 for shape in shapes)
        if fits and len(shapes) == 2:
            fits = shapes[0][:2] == shapes[1][:2] and shapes[0][3] == shapes[1][2]
        if not fits:
            raise ValueError(
                f"value and output have shapes {shapes}; accepted: (heads, groups, D_in / groups, "
                "D_h) and (heads, groups, D_h, D_out / groups), or one of them and None"
            )
        if self.shifts.dim() != 2 or len(self.shifts) != len(self):
            raise ValueError(
                f"shifts has shape {tuple(self.shifts.shape)}; accepted: ({len(self)}, d), a shift "
                "for each head"
            )
        key = self.positional_key
        if key.dim() != 3 or len(key) != len(self):
            raise ValueError(
                f"positional_key has shape {tuple(key.shape)}; accepted: ({len(self)}, D_p, D_k), "
                "a matrix for each head"
            )
        if self.kind is Kind.MIXING and not isinstance(self.encoding, Mixing):
            raise ValueError(
                f"encoding is {self.encoding}; accepted: one that has gains, for heads that mix"
            )

    @property
    def _first(self) -> Tensor:
        """W_val, or W_out after an identity."""
        first = self.output if self.value is None else self.value
        assert first is not None
        return first

    @property
    def _last(self) -> Tensor:
        """W_out, or W_val before an identity."""
        last = self.value if self.output is None else self.output
        assert last is not None
        return last

    def __len__(self) -> int:
        """H."""
        return len(self._first)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """Of the matrices."""
        return self._first.device

    @property
    def groups(self) -> int:
        """G, the blocks of W_val and W_out."""
        return self._first.shape[1]

    @property
    def in_channels(self) -> int | None:
        """D_in; None where every channel is treated alike and apart."""
        return None if self.is_channelwise else self.groups * self._first.shape[2]

    @property
    def out_channels(self) -> int | None:
        """D_out; None likewise."""
        return None if self.is_channelwise else self.groups * self._last.shape[3]

    @property
    def dimensions(self) -> tuple[int, int]:
        """D_in and D_out of all groups; 1 where channels are treated apart."""
        return self.groups * self._first.shape[2], self.groups * self._last.shape[3]

    def matrices(self) -> tuple[Tensor, Tensor]:
        """W_val, (H, G, D_in / G, D_h), and W_out, (H, G, D_h, D_out / G); identities expanded."""

        def identity(width: int) -> Tensor:
            one = torch.eye(width, dtype=self.dtype, device=self.device)
            return one.expand(len(self), self.groups, width, width)

        value, output = self.value, self.output
        if value is None:
            value = identity(self._first.shape[2])
        if output is None:
            output = identity(self._last.shape[3])
        return value, output

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

    def second(self, keys: Lattice) -> tuple[Heads, Tensor] | None:
        """The second softmax of signed heads, and how much of it is taken away, (H,); or None.

        Args:
            keys: where the keys stand.
        """
        encoding = self.encoding
        if not isinstance(encoding, Mixtures) or encoding.minus is None:
            return None
        shares = encoding.shares(self.shifts.detach(), keys)
        return replace(self, encoding=encoding.minus), shares
