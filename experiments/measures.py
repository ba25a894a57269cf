"""What a trained layer is, as numbers: how near a convolution, and how many heads it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import Lowered
from constructions.heads import count
from experiments.mixers import Convolution, Quadratic

STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
"""The 97.5 % point of Student's distribution with 1 to 19 degrees of freedom; it falls."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and half of its 95 % interval by Student's distribution; nan for one."""

    centre: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of some seeds' values."""
        if len(values) < 2:
            return cls(mean(values), math.nan)
        point = STUDENT[min(len(values) - 1, len(STUDENT)) - 1]
        return cls(mean(values), point * stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True)
class Lowering:
    """A trained quadratic layer beside the soft padding and convolution that `lower` makes of it.

    Args:
        ratio: the largest error over its certified bound; at most 1 if the bound holds.
        distance: of the layer to the convolution with one tap for each head, at the pixel nearest
            to its centre, over the size of the layer's output, in root mean squares.
        taps: how many different pixels the heads look at.
        on_target: the mean over the heads of the weight at that pixel, on an endless grid.
    """

    ratio: float
    distance: float
    taps: int
    on_target: float


def lowering(layer: Quadratic, tokens: Tensor) -> Lowering:
    """Certify a trained layer on the tokens that it receives, against its lowered convolution."""
    with torch.no_grad():
        wide = tokens.double()
        sharpness, centres = layer.log_sharpness.double().exp(), layer.centres.double()
        matrices, bias = layer.matrices().double(), layer.mix.bias.double()
        # -α ‖δ - Δ‖² is w · (δ, ‖δ‖²) and a constant: the last axis first, as ConViT has it.
        coefficients = torch.cat(
            [2 * sharpness[:, None] * centres.flip(1), -sharpness[:, None]], dim=1
        )
        identity = torch.eye(matrices.shape[1], dtype=torch.float64).expand(len(matrices), -1, -1)
        lowered = Lowered.from_scores(coefficients, identity, matrices, bias)
        image = on_grid(wide, layer.side)
        away = layer.displacements - centres[:, None, None]
        weights = (-sharpness[:, None, None] * away.square().sum(-1)).softmax(-1)
        seen = weights @ wide.unsqueeze(1)
        own = sum((seen[:, h] @ matrices[h] for h in range(len(matrices))), bias)
        exact = on_grid(own, layer.side)
        error = (lowered(image) - exact).abs() / lowered.error_bound(image)
        nearest = centres.round()
        hard = convolved(image, nearest, matrices, bias)
        size = (exact - bias[:, None, None]).square().mean().sqrt()
        distance = (hard - exact).square().mean().sqrt() / size
        reach = torch.arange(-20.0, 21.0, dtype=torch.float64)
        terms = (-sharpness[:, None, None] * (reach - (centres - nearest)[..., None]) ** 2).exp()
        on_target = (terms[..., 20] / terms.sum(-1)).prod(1)
    taps = len({tuple(row) for row in nearest.tolist()})
    return Lowering(error.max().item(), distance.item(), taps, on_target.mean().item())


def on_grid(tokens: Tensor, side: int) -> Tensor:
    """Tokens, (N, side², C), as an image."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


def convolved(image: Tensor, offsets: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
    """The convolution with a tap at each whole offset, the edge replicated."""
    reach = int(offsets.abs().max().item()) if len(offsets) else 0
    padded = F.pad(image, (reach,) * 4, mode="replicate") if reach else image
    height, width = image.shape[2:]
    y = bias[:, None, None].expand(len(image), -1, height, width)
    for (row, column), matrix in zip(offsets.long().tolist(), matrices, strict=True):
        seen = padded[:, :, reach + row :, reach + column :][:, :, :height, :width]
        y = y + torch.einsum("nihw,io->nohw", seen, matrix)
    return y


def taps_of(layer: nn.Module) -> Tensor | None:
    """The matrix of a layer's taps, (taps, C²): heads of one pixel added up; None with content."""
    if isinstance(layer, Convolution):
        return layer.conv.weight.detach().flatten(2).permute(2, 0, 1).flatten(1)
    if not isinstance(layer, Quadratic):
        return None
    by_tap: dict[tuple[float, ...], Tensor] = {}
    for row, matrix in zip(layer.centres.detach().round().tolist(), layer.matrices(), strict=True):
        key = tuple(row)
        by_tap[key] = by_tap.get(key, torch.zeros_like(matrix)) + matrix
    return torch.stack(list(by_tap.values())).flatten(1)


def heads_for(taps: Tensor, floor: float) -> int:
    """The least number of heads whose best error is not above a floor, over the kernel's norm.

    A lower bound for any heads with content-independent weights: the Eckart-Young tail of the
    matrix of the taps (T10's first part).
    """
    return next(k for k, left in enumerate(floors(taps)) if left <= floor)


def floors(taps: Tensor) -> list[float]:
    """What no 0, 1, ... heads can be below, over the kernel's norm: truncation to these ranks."""
    values = torch.linalg.svdvals(taps.double())
    size = values.norm()
    left = [values[k:].norm() for k in range(len(values) + 1)]
    return [float(tail / size) if size else 0.0 for tail in left]


@dataclass(frozen=True)
class Pruning:
    """How many heads a layer's convolution takes, and what fewer leave.

    Args:
        masked: T10's count: so many heads that see the window alone make it, and no fewer.
        floors: the error of no, one, two, ... heads over the kernel's norm is at least that.
    """

    masked: int
    floors: list[float]

    @classmethod
    def of(cls, taps: Tensor) -> Pruning:
        """Count the heads of taps, (taps, C²)."""
        # A count is of the taps as rows: where they stand, and in which order, is nothing to it.
        conv = nn.Conv1d(1, taps.shape[1], len(taps), bias=False)
        with torch.no_grad():
            conv.weight.copy_(taps.T.unsqueeze(1))
        return cls(count(conv).masked, floors(taps))
