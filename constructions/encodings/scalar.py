"""The scalar encoding: one number for each displacement, and heads that mix all taps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from constructions.encodings.base import Encoding, Mixing
from constructions.formats import unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_values

RATIO_BITS = range(4, 9)
"""log2 ρ: below 16 the bound on the amplification fails, above 256 it gains next to nothing."""

LARGEST_EXPONENT = 1023
"""Of a power of two in float64, in which all numbers of the encoding are exact."""


@dataclass(frozen=True)
class Scalar(Mixing):
    """One number for each displacement: N + 1 heads that express a convolution, and select nothing.

    `r_δ = ρ^j` for the tap that is j-th in the order of the offsets, `r_δ = 4ρ^N` for every other
    displacement, `v_h = -4ρ^(-h-1)` for h < N and 0 for the last head: D_p = 1, and finite logits.
    Head h < N sees the first h + 1 taps almost alike and little else, the last one sees all keys
    alike; differences of heads are taps, exactly. ρ is a power of two, from 16 (255 taps) to 256
    (127 taps), so that scores are exact. Every query must see its whole window among the keys, and
    the gains of the heads depend on how many keys there are. Theorem:
    `one_dimension_expresses_every_convolution`.

    Args:
        torus: whether displacements are taken modulo the grid, for circular borders.

    Raises:
        TypeError: torus is not a bool.
    """

    torus: bool = False

    theorem: ClassVar[str] = "one_dimension_expresses_every_convolution"

    def __post_init__(self) -> None:
        if not isinstance(self.torus, bool):
            raise TypeError(f"torus is a {type(self.torus).__name__}; accepted: a bool")

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        """A torus has no border; where a window loses taps to a border, its mixtures are wrong."""
        return {"circular": Scalar(torus=True), "zeros": None}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Features (M, 1) and names (H, 1); see `Encoding.encode`.

        Raises:
            ValueError: there are more taps than the format has powers of two for.
        """
        taps, order = len(shifts) - 1, order_of(shifts)
        features, names = _numbers(taps, shifts.dtype, shifts.device)
        here, there = self._modulo(shifts, grid), self._modulo(displacements, grid)
        met = (there.unsqueeze(1) == here).all(dim=-1)  # (M, H), which is no tap for the last head
        place = torch.where(met, order, taps).amin(dim=-1)
        return features[place].unsqueeze(-1), names[order].unsqueeze(-1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """The unit of its scores, which no sharpness multiplies.

        Raises:
            ValueError: there are more taps than float64 has powers of two for.
        """
        _ratio_bits(len(shifts) - 1)
        return 1.0

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        """Products are exact; differences of small scores, at most 1/4, are rounded thrice."""
        return unit_roundoff(torch.float64)

    def heads(self, offsets: Tensor) -> Tensor:
        """The offsets themselves, and one displacement beyond all of them: (N + 1, d)."""
        beyond = offsets.amax(dim=0, keepdim=True)
        beyond[:, 0] += 1
        return torch.cat([offsets, beyond])

    def coefficients(self, offsets: Tensor) -> Tensor:
        """The inverse of the matrix of exponentials, (N + 1, N), float64 on the CPU.

        Heads in the order of `heads(offsets)`, taps in that of the offsets.
        """
        taps = len(offsets)
        if not has_values(offsets, traced=True):
            return offsets.new_empty(taps + 1, taps, dtype=torch.float64)
        order, weights = order_of(offsets).cpu(), _exponentials(taps)
        outside = weights[:taps, taps:]
        # Less what a head sees everywhere; the last head takes that away.
        inside = weights[:taps, :taps] - outside
        inverse = torch.linalg.inv(inside)
        # One Newton step: the residual is as small as float64 has it.
        identity = torch.eye(taps, dtype=torch.float64, device="cpu")
        inverse = inverse + inverse @ (identity - inside @ inverse)
        of_last = -(inverse @ outside).T
        return torch.cat([inverse.T[order], of_last])[:, order]

    def gains(self, shifts: Tensor, keys: Lattice) -> Tensor:
        """Z_h: N taps and `keys.size - N` others, for every query that sees its whole window.

        Raises:
            ValueError: two taps of a torus are one pixel.
        """
        taps, order = len(shifts) - 1, order_of(shifts)
        if self.torus and has_values(shifts):
            check_distinct(shifts[order < taps], keys)
        weights = _exponentials(taps).to(wide_device(shifts.device))
        sums = weights[:, :taps].sum(dim=-1) + (keys.size - taps) * weights[:, taps]
        return sums[order.to(sums.device)]

    def _modulo(self, points: Tensor, grid: Lattice) -> Tensor:
        return points.remainder(points.new_tensor(grid.shape)) if self.torus else points


def check_distinct(window: Tensor, keys: Lattice) -> None:
    """Raise a ValueError where two taps (N, d) of a torus of keys are one pixel."""
    pixels = len(set(map(tuple, window.remainder(window.new_tensor(keys.shape)).tolist())))
    if pixels < len(window):
        raise ValueError(
            f"keys form a torus of shape {keys.shape}, on which {len(window)} taps meet "
            f"{pixels} pixels; accepted: a larger image, or boundary='padded'"
        )


def order_of(points: Tensor) -> Tensor:
    """The place of each point in lexicographic order: int64, (H,). Equal points share a place."""
    before = torch.zeros(len(points), len(points), dtype=torch.bool, device=points.device)
    equal = ~before
    for coordinate in points.unbind(dim=-1):
        mine, other = coordinate.unsqueeze(1), coordinate.unsqueeze(0)
        before |= equal & (other < mine)
        equal &= other == mine
    return before.sum(dim=-1)


def _ratio_bits(taps: int) -> int:
    """log2 ρ: the largest for which 4 ρ^N is a float64."""
    bits = min(RATIO_BITS[-1], (LARGEST_EXPONENT - 2) // max(taps, 1))
    if bits < RATIO_BITS[0]:
        most = (LARGEST_EXPONENT - 2) // RATIO_BITS[0]
        raise ValueError(
            f"offsets are {taps} taps; accepted: at most {most}, since float64 has no more powers "
            "of 16 for the scalar encoding"
        )
    return bits


def _numbers(taps: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """r of each tap in order and of all else, and v of each head in order: both (N + 1,), exact."""
    bits = _ratio_bits(taps)
    if 2 + bits * taps >= math.frexp(torch.finfo(dtype).max)[1]:
        raise ValueError(
            f"offsets are {taps} taps, encoded in {dtype}; accepted: fewer, or a device with "
            f"float64, since the scalar encoding takes powers of two up to 2^{2 + bits * taps}"
        )
    features = [math.ldexp(1.0, bits * j) for j in range(taps)] + [math.ldexp(4.0, bits * taps)]
    names = [-math.ldexp(4.0, -bits * (h + 1)) for h in range(taps)] + [0.0]
    return (
        torch.tensor(features, dtype=dtype, device=device),
        torch.tensor(names, dtype=dtype, device=device),
    )


def _exponentials(taps: int) -> Tensor:
    """E: each head's weights of the taps in order and of all else, its own tap's 1: float64."""
    features, names = _numbers(taps, torch.float64, torch.device("cpu"))
    scores = names.unsqueeze(1) * features
    return (scores - scores.diagonal().unsqueeze(1)).exp()


def wide_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
