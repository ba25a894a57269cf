"""What the heads of a layer should do, by the definition of the convolution, and ways to be wrong.

Shared by the tests of T1, T2 and T3. Nothing here comes from `constructions`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.support.oracle import exactly
from tests.support.strategies import Case, Convolution

Wrong = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Targets:
    """The one key that each head attends at each query.

    Attributes:
        grid: The shape of the keys: the padded image, zero-stuffed for a transposed convolution.
        keys: The target of each head at each query, row-major: (taps, outputs).
    """

    grid: tuple[int, ...]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, case: Case) -> "Targets":
        """On the grid of the keys, numbered from 0, output o meets tap j at o*stride + j*dilation.

        A transposed convolution meets its taps in reverse, with stride 1.
        """
        conv, output = case.conv, output_shape(case)
        reach = [r * (k - 1) for r, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        strides: Sequence[int] = conv.stride
        if conv.transposed:
            strides = [1] * len(reach)
            grid = [n + far for n, far in zip(output, reach, strict=True)]
        else:
            added = {"same": reach, "valid": [0] * len(reach)}
            sides = conv.padding
            total = added[sides] if isinstance(sides, str) else [2 * side for side in sides]
            pixels = case.x.shape[-len(reach) :]
            grid = [n + more for n, more in zip(pixels, total, strict=True)]
        met = [
            [o * s + j * r for o, s, j, r in zip(out, strides, tap, conv.dilation, strict=True)]
            for tap, out in product(np.ndindex(*conv.kernel_size), np.ndindex(*output))
        ]
        keys = np.ravel_multi_index(np.array(met).T, grid)
        return cls(tuple(grid), keys.reshape(-1, int(np.prod(output))))

    def position(self, head: int, query: int) -> tuple[int, ...]:
        """Where on the grid a head's target stands."""
        return tuple(int(i) for i in np.unravel_index(self.keys[head, query], self.grid))

    def one_hot(self) -> NDArray[np.float64]:
        """The weights of T1: (taps, outputs, keys)."""
        return np.eye(int(np.prod(self.grid)))[self.keys]


def output_shape(case: Case) -> tuple[int, ...]:
    """The spatial shape of the convolution's output."""
    rank = len(case.conv.kernel_size)
    with torch.no_grad():
        wide = Case(copy.deepcopy(case.conv).float(), case.x.float(), case.output_size)
        return tuple(wide.run(wide.conv).shape[-rank:])


def off_target(row: NDArray[np.float64], target: int) -> Fraction:
    """The exact sum of one row of stored weights, its target left out."""
    weights = exactly(np.delete(row, target))
    return Fraction(int(weights.numerators.sum())) * Fraction(2) ** weights.exponent


# Layers that are wrong in one way -----------------------------------------------------------------


def _shifts(layer: nn.Module) -> torch.Tensor:
    shifts = layer.positional_shift
    assert isinstance(shifts, torch.Tensor)
    return shifts.detach()


def _matrices(layer: nn.Module) -> list[torch.Tensor]:
    """What is stored of the heads' matrices, to be edited: the heads, taps of a kernel, last."""
    if isinstance(layer.weight, nn.Parameter):
        return [layer.weight.detach().flatten(2)]
    return [f.detach() for f in (layer.value, layer.output) if isinstance(f, nn.Parameter)]


def reversed_kernel(layer: nn.Module) -> None:
    """The first matrix at the last offset."""
    _shifts(layer).copy_(_shifts(layer).flip(0))


def query_minus_key(layer: nn.Module) -> None:
    """The convention of the paper's Lemma 1: heads attend q - f(h)."""
    _shifts(layer).neg_()


def swapped_axes(layer: nn.Module) -> None:
    """Rows for columns."""
    _shifts(layer).copy_(_shifts(layer).flip(1))


def repeated_shift(layer: nn.Module) -> None:
    """Two heads at one offset, none at another."""
    _shifts(layer)[1] = _shifts(layer)[0]


def shift_between_pixels(layer: nn.Module) -> None:
    """Targets half-way between two keys."""
    _shifts(layer)[:, 0] += 0.5


def target_beyond_the_grid(layer: nn.Module) -> None:
    """No key stands where the first head looks."""
    _shifts(layer)[0] -= 100


def missing_head(layer: nn.Module) -> None:
    """The first head counts for nothing."""
    for matrices in _matrices(layer):
        matrices[..., 0] = 0


def shared_matrices(layer: nn.Module) -> None:
    """One matrix for all heads."""
    for matrices in _matrices(layer):
        matrices.copy_(matrices[..., :1].clone().expand_as(matrices))


def half_the_sharpness(layer: nn.Module) -> None:
    """Scores of half the size, while the layer still states its sharpness."""
    assert isinstance(layer.positional_key, torch.Tensor)
    layer.positional_key.mul_(0.5)


every_wrong_layer = pytest.mark.parametrize(
    ("rank", "wrong"),
    [
        pytest.param(rank, wrong, id=f"{wrong.__name__} in {rank}d")
        for rank in (1, 2, 3)
        for wrong in (
            reversed_kernel,
            query_minus_key,
            swapped_axes,
            repeated_shift,
            missing_head,
            shared_matrices,
        )
        if not (wrong is swapped_axes and rank == 1)  # one axis has nothing to swap with
    ],
)


def generic_case(
    rank: int,
    dtype: torch.dtype = torch.float64,
    padding_mode: Any = "zeros",
    kernel: Sequence[int] = (2, 3, 2),
) -> Case:
    """A small convolution in which nothing is symmetric and no two numbers that meet are equal.

    By default the kernel is 2, 2 x 3 or 2 x 3 x 2, so that its window is not centred.
    """
    layers: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    size: Any = tuple(kernel[:rank])
    pixels = (5, 4, 3)[:rank]
    with torch.random.fork_rng(devices=[]):
        conv = layers[rank](2, 3, size, padding=1, padding_mode=padding_mode, dtype=dtype)
    with torch.no_grad():
        for first, parameter in enumerate(conv.parameters()):
            count = torch.arange(parameter.numel(), dtype=dtype)
            parameter.copy_((1 + first + count).view_as(parameter))
    x = torch.arange(2 * int(np.prod(pixels)), dtype=dtype).square() % 47
    return Case(conv, x.reshape(1, 2, *pixels))
