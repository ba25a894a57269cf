"""Tables of scores by displacement, as Swin and BEiT number them (T14, equation 19).

A table is any function of the displacement, so that it makes every border that such a function
can: it orders displacements, and a query sees the first one that is on the grid. With a distance
for score that is the nearest pixel; with the displacements taken modulo the image the pixel around
it; with the displacement two nearer as the second one the pixel mirrored by one. By two it makes
none: of four pixels on, the query whose target is one beyond the edge wants Δ - 2 before Δ - 4, and
its neighbour, which sees both, the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice, displacements
from constructions.sources import Stencil
from constructions.stock.canvas import BORDERS, Canvas

OF_TABLES = ("replicate", "circular", "reflect")
"""The borders, beside none, that a table of displacements makes of pixels alone."""


def window_of(canvas: Canvas) -> tuple[int, int]:
    """Rows and columns of the box of tokens; a line is a window of one row."""
    columns = canvas.shape[-1]
    return (canvas.shape[0], columns) if len(canvas.shape) == 2 else (1, columns)


def border_of(stencil: Stencil) -> str:
    """That of a convolution; "zeros" for one that never leaves the image.

    Raises:
        ValueError: it reflects more than a table can.
    """
    geometry = stencil.geometry
    if not geometry.can_miss:
        return "zeros"
    beyond = max(*geometry.before, *geometry.after)
    if stencil.border.name == "reflect" and beyond > 1:
        raise ValueError(
            f"conv reflects {beyond} pixels; accepted: one, since for two of them neighbouring "
            f"queries want two displacements in opposite orders, and a table has one ({BORDERS})"
        )
    return stencil.border.name


def scores(away: Tensor, shifts: Tensor, border: str, size: tuple[int, ...], gap: float) -> Tensor:
    """Of every displacement and head, (M, H): 0 for the shift, lower by multiples of the gap.

    Args:
        away: displacements, (M, d), integers.
        shifts: of the heads, (H, d), integers.
        border: "replicate" for minus the distance, row and column added; "circular" for the
            displacements modulo the image; "reflect" for the shift first and two nearer second, on
            each axis; else the shift alone is 0.
        size: of the image.
        gap: between the highest score and the next.
    """
    off = away[:, None] - shifts[None]
    if border == "circular":
        off = off.remainder(torch.tensor(size))
    if border == "reflect":
        second = off == -2 * shifts.sign()
        return -gap * torch.where(off == 0, 0, torch.where(second, 1, 2)).sum(dim=2)
    distance = off.abs().sum(dim=2)
    return -gap * (distance if border == "replicate" else distance.clamp(max=1))


def fill(table: Tensor, shifts: Tensor, window: tuple[int, int], border: str, gap: float) -> None:
    """The entries for displacements within the window, (entries, heads), in place."""
    box = Lattice.box(window)
    # The first entry is that of the greatest displacement: the class subtracts key from query.
    away = displacements(box, box).positions().flip(0)
    two = torch.nn.functional.pad(shifts, (2 - shifts.shape[1], 0))
    with torch.no_grad():
        table[: len(away)] = scores(away, two, border, window, gap).to(table)
