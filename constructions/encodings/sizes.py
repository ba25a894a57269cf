"""Gaps on grids of any size: what traced code divides by, whose sizes are symbols.

An exported layer runs on images of many sizes. The gap of most encodings is the same on all of
them, or has a closed form in the size. That of the others falls as the grid grows, so that what it
is on the largest grid is a lower bound on every smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from constructions.encodings.absolute import Absolute
from constructions.encodings.base import Encoding
from constructions.encodings.circle import Circle
from constructions.encodings.flattened import Flattened
from constructions.encodings.gaussian import Gaussian
from constructions.encodings.periodic import Periodic
from constructions.encodings.quadratic import Quadratic
from constructions.encodings.rotary import Rotary
from constructions.encodings.tables import BiasTable, RowColumn, T5Buckets
from constructions.encodings.window import Window
from constructions.geometry.lattice import Lattice
from constructions.tracing import has_symbolic_sizes, is_exported, is_fixed, largest, tensor_of

CONSTANT = (Quadratic, Window, Circle, BiasTable, RowColumn, T5Buckets)
"""Encodings whose gap does not depend on the grid."""

LONGEST = 2**24
"""Keys on an axis up to which periodic scores have a gap, in any dimension up to 3."""


def traced_gap(
    encoding: Encoding,
    shifts: Tensor,
    grid: Lattice,
    *,
    bound: bool,
    constant: Callable[..., float],
) -> Tensor | float:
    """The gap of an encoding in traced code, whose sizes may be symbols.

    A compiled layer is compiled anew for each grid where it has no closed form in the sizes.

    Args:
        encoding: of the heads.
        shifts: of the heads, (H, d).
        grid: the lattice that the keys stand on.
        bound: whether a lower bound of the gap will do, as it does for saturated weights.
        constant: a `constant_of_traced_code`, from shape, spacing and origin to the gap.

    Raises:
        ValueError: as `largest_grid`, in an exported layer.
    """
    gap = gap_of_any_size(encoding, shifts, grid)
    if gap is not None:
        return gap
    if not torch.compiler.is_compiling():  # but for `torch.jit.trace`, which writes numbers down
        return constant(*grid.constants)
    if is_exported():
        grid = largest_grid(encoding, grid, bound=bound)
    return constant(*grid.constants)


def gap_of_any_size(encoding: Encoding, shifts: Tensor, grid: Lattice) -> Tensor | float | None:
    """The gap of an encoding as a function of the sizes of a grid, or None if it has no such form.

    Args:
        encoding: of heads that select shifts.
        shifts: of the heads, (H, d).
        grid: the lattice that the keys stand on, whose sizes may be symbols.

    Returns:
        A number where it is the same on every grid; a float64 scalar where it depends on sizes.
    """
    if isinstance(encoding, Absolute):
        return gap_of_any_size(encoding.relative, shifts, grid)
    if isinstance(encoding, Periodic):
        return _periodic(encoding, shifts, grid)
    plain_squares = isinstance(encoding, Gaussian) and encoding.precision is None
    unbounded_digits = isinstance(encoding, Flattened) and encoding.radix is None
    if isinstance(encoding, CONSTANT) or plain_squares or unbounded_digits:
        return encoding.gap(shifts, grid)
    return None


def largest_grid(encoding: Encoding, grid: Lattice, *, bound: bool) -> Lattice:
    """The largest that a grid of an exported layer can be, on which the gap is least.

    Args:
        encoding: whose gap has no closed form in the sizes.
        grid: the lattice that the keys stand on, whose sizes may be symbols.
        bound: whether a lower bound of the gap will do, as it does for saturated weights.

    Raises:
        ValueError: sizes are symbols, and have no largest one; or nothing is known of the gap on
            smaller grids; or no bound will do; or the export is not strict, which cannot look at
            shifts.
    """
    name = f"encoding is {encoding}, whose gap has no closed form in the size of the grid"
    falls = _falls(encoding)
    if falls and not has_symbolic_sizes():
        raise ValueError(f"{name}; accepted: strict=True in torch.export, or another encoding")
    if all(is_fixed(size) for size in grid.shape):
        return grid
    if not falls:
        raise ValueError(f"{name}; accepted: static shapes, or another encoding")
    if not bound:
        raise ValueError(
            f"{name}, and the layer has a finite sharpness; accepted: static shapes, a saturated "
            "layer, or another encoding"
        )
    sizes = [largest(size) for size in grid.shape]
    shape = tuple(size for size in sizes if size is not None)
    if len(shape) < len(sizes):
        raise ValueError(
            f"{name}, and a dynamic size has no largest value; accepted: a Dim with a max for each "
            "dynamic size, static shapes, or another encoding"
        )
    return Lattice(shape, grid.spacing, grid.origin)


def _falls(encoding: Encoding) -> bool:
    """Whether the gap on a grid is at least that on a larger one, with the same features."""
    if isinstance(encoding, Absolute):
        return _falls(encoding.relative)
    return isinstance(encoding, Rotary | Gaussian | Flattened)


def _periodic(encoding: Periodic, shifts: Tensor, grid: Lattice) -> Tensor:
    """As `Periodic.gap`, of a size that is a symbol; there its refusal is a condition on sizes."""
    # `torch.jit.trace`, which would take the condition for a tensor, writes none down.
    for size in () if torch._C._get_tracing_state() else grid.shape:
        torch._check(size <= LONGEST)  # type: ignore[no-untyped-call]
    here = shifts.new_zeros((), dtype=torch.float64)
    longest = tensor_of(grid.shape, here).amax(dim=0)
    exact = 2 * (math.pi / longest).sin().square()
    gap = exact * (1 - 2**-49) - 2 * encoding.score_error(shifts, grid)
    return torch.where(longest == 1, 1.0, gap)
