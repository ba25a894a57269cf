"""Tables of scores by displacement, as Swin and BEiT number them (T14, equation 19)."""

from __future__ import annotations

import torch
from torch import Tensor

from constructions.stock.canvas import Canvas


def window_of(canvas: Canvas) -> tuple[int, int]:
    """Rows and columns of the box of tokens; a line is a window of one row."""
    columns = canvas.shape[-1]
    return (canvas.shape[0], columns) if len(canvas.shape) == 2 else (1, columns)


def rows_of(shifts: Tensor, window: tuple[int, int]) -> list[int | None]:
    """The entry of each shift, key minus query, in the table of a window; None beyond it."""
    found: list[int | None] = []
    for shift in shifts.tolist():
        i, j = shift if len(shift) == 2 else (0, *shift)
        inside = abs(i) < window[0] and abs(j) < window[1]
        row = (window[0] - 1 - i) * (2 * window[1] - 1) + window[1] - 1 - j
        found.append(row if inside else None)
    return found


def fill(table: Tensor, shifts: Tensor, window: tuple[int, int], gap: float) -> None:
    """0 for the shift of each head, minus the gap elsewhere: (entries, heads), in place."""
    with torch.no_grad():
        table.fill_(-gap)
        for head, row in enumerate(rows_of(shifts, window)):
            if row is not None:
                table[row, head] = 0
