"""Drawing a scene with matplotlib: the map of the shifts, and a panel for each head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch, Rectangle
from matplotlib.textpath import TextPath
from torch import Tensor

from constructions.geometry.lattice import Lattice
from constructions.plotting.scene import Extent, Place, Scene, range_of

# Told apart with every kind of colour vision (Okabe and Ito).
QUERY, TARGET = "#0072B2", "#D55E00"
INK, LINES, PADDING, LEFT_OUT = "#333333", "#D5DAE0", "#E9EDF2", "#9AA3AD"
# From nothing at weight 0 to the full colour; and what that looks like on white.
WEIGHT = LinearSegmentedColormap.from_list("weight", [TARGET + "00", TARGET])
WEIGHT_ON_WHITE = LinearSegmentedColormap.from_list("weight_on_white", ["white", TARGET])
NO_KEY: dict[str, Any] = {"facecolor": "white", "edgecolor": LINES, "hatch": "////"}

LEAST_POINTS = 5.0
"""Of a legible letter: what has no room for it is left away."""
LEAST_CELL = 0.6
"""In pixels, of a shift on the map: cells of shifts that lie closer, as trained ones may, meet."""


def draw(scene: Scene, figure: Figure | SubFigure) -> None:
    """Draw the map of the shifts, the legend and a panel for each head."""
    _, width = scene.grid
    if scene.dimension == 1:
        rows = scene.grid[0]
        heights = (2.6 + (0.8 if scene.is_part else 0.0), 0.6 + 0.7 * rows)
        (key,), (panels,) = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    else:
        widths = (3.75, max(6.25, 1.1 * width))
        ((key, panels),) = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)
    _draw_key(scene, key)
    _draw_panels(scene, panels)


def _draw_key(scene: Scene, figure: SubFigure) -> None:
    """Draw where the heads look, the whole image if the panels show a part, and the legend."""
    shows_image = scene.is_part or scene.shifts is None
    shows_map = scene.shifts is not None
    column = figure.subplots(shows_map + shows_image, 1, squeeze=False).ravel().tolist()
    if scene.shifts is not None:
        width, height = _points(figure)
        part = 0.34 if scene.dimension == 1 or shows_image else 0.6
        _draw_shifts(column[0], scene.shifts, scene, (0.9 * width, part * height))
    if shows_image:
        _draw_overview(column[-1], scene)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, scene.top), WEIGHT_ON_WHITE),
        ax=column,
        location="bottom",
        shrink=0.9 if scene.dimension == 2 else 0.4,
        aspect=20 if scene.dimension == 2 else 30,
        ticks=(0, scene.top / 2, scene.top),
        format="{x:.3g}",
    )
    bar.set_label("attention of query q, as measured", color=INK)
    handles: list[Patch] = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=QUERY, linewidth=2)]
    labels = [f"query q, output {_tuple(scene.output)}"]
    if scene.is_padded and scene.keys.size > scene.pixels.size:
        handles.append(Patch(facecolor=PADDING, edgecolor=LINES))
        labels.append("padded keys")
    if scene.has_cells_without_key:
        handles.append(Patch(**NO_KEY))
        labels.append("no key")
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if scene.dimension == 2 else len(handles),
        frameon=False,
        labelcolor=INK,
    )


def _draw_shifts(
    axes: Axes, shifts: Sequence[Place], scene: Scene, room: tuple[float, float]
) -> None:
    """Draw the shifts where they stand about the query, with the numbers of their heads.

    Args:
        axes: where.
        shifts: of all heads.
        scene: which heads are drawn.
        room: width and height of the axes, in points.
    """
    at: dict[Place, list[int]] = {}
    for number, shift in enumerate(shifts):
        at.setdefault(shift, []).append(number)
    height, width = (_cell_size({shift[axis] for shift in at}) for axis in (0, 1))
    rows, columns = zip((0.0, 0.0), *at, strict=True)
    wide, high = max(columns) - min(columns) + width, max(rows) - min(rows) + height
    point = min(room[0] / wide, room[1] / high)
    labels = {
        shift: (", ".join(map(str, numbers)), f"δ = {_tuple(shift[2 - scene.dimension :])}")
        for shift, numbers in at.items()
    }
    all_numbers, all_offsets = zip(*labels.values(), strict=True)
    number_size = _fitting(all_numbers, width * point, min(22, 0.4 * height * point))
    offset_size = _fitting(all_offsets, width * point, min(9, 0.2 * height * point))
    for shift, (label, offset) in labels.items():
        down, along = shift
        corner = (along - width / 2, down - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor="white", edgecolor=INK))
        if number_size is None:
            continue
        up = 0.1 * height if offset_size is not None else 0.0
        is_drawn = not set(scene.numbers).isdisjoint(at[shift])
        colour = TARGET if is_drawn else LEFT_OUT
        _write(axes, (down - up, along), label, colour, number_size)
        if offset_size is not None:
            _write(axes, (down + 0.27 * height, along), offset, INK, offset_size)
    _frame(axes, (0, 0), (width, height), 2.5)
    each = "one head for each offset" if len(at) == len(shifts) else "the heads at each offset"
    title = f"{each} δ = k − q"
    size = _fitting([title], 1.1 * room[0], 10) or LEAST_POINTS
    axes.set_title(title, color=INK, fontsize=size)
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.invert_yaxis()
    axes.set_axis_off()


def _draw_overview(axes: Axes, scene: Scene) -> None:
    """Draw the whole image, with frames about the query and what the panels show."""
    _draw_ground(axes, scene)
    left, right, bottom, top = scene.everything
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.spines[:].set_color(LINES)
    _mark_query(axes, scene.query, 0)
    shape = scene.pixels.shape[2 - scene.dimension :]
    title = f"the image, {' × '.join(map(str, shape))}"
    if scene.is_part:
        left, right, bottom, top = scene.window
        frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=INK)
        axes.add_patch(frame)
        title += ", and the part that is shown"
    axes.set_title(title, color=INK, fontsize=10)


def _draw_panels(scene: Scene, figure: SubFigure) -> None:
    """Draw a panel for each head that is asked for."""
    rows, columns = scene.grid
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    width, height = _points(figure)
    width, height = 0.85 * width / columns, 0.75 * height / rows
    count = len(scene.numbers)
    if count < scene.total:
        left_out = scene.total - count
        figure.suptitle(
            f"{count} of {scene.total} heads, {left_out} left out", color=INK, fontsize=10
        )
    for panel in axes[count:]:
        panel.set_axis_off()
    for index, (number, panel) in enumerate(zip(scene.numbers, axes, strict=False)):
        _draw_head(panel, scene, index, (width, height))
        title, size = f"head {number}", _fitting([f"head {number}"], width, 10)
        if size is None:
            title, size = str(number), LEAST_POINTS
        panel.set_title(title, color=INK, fontsize=size, pad=3)
        _note_what_is_not_shown(panel, scene, index, width)


def _note_what_is_not_shown(axes: Axes, scene: Scene, index: int, width: float) -> None:
    """Write what a head gives to the sink, on the colour of so much weight, and elsewhere."""
    notes, shade = [], 0.0
    if scene.sink is not None and scene.uses_sink:
        sink = float(scene.sink[index])
        notes.append(f"sink {_weight(sink)}")
        shade = sink / scene.top
    if (elsewhere := float(scene.elsewhere[index])) > 0:
        notes.append(f"elsewhere {_weight(elsewhere)}")
    if not notes:
        return
    note = ", ".join(notes)
    box = {"facecolor": WEIGHT_ON_WHITE(shade), "edgecolor": LINES, "linewidth": 0.5}
    axes.set_xlabel(
        note,
        color="black",
        fontsize=_fitting([note], width, 8) or LEAST_POINTS,
        labelpad=4,
        bbox={"boxstyle": "round,pad=0.2", **box},
    )


def _draw_head(axes: Axes, scene: Scene, index: int, room: tuple[float, float]) -> None:
    """Draw the weights of one head over the image, the query, and the head's shift.

    Args:
        axes: where.
        scene: what.
        index: of the head among those that are drawn.
        room: width and height of the axes, in points.
    """
    _draw_ground(axes, scene)
    weights = scene.weights[index].reshape(scene.keys.shape)
    axes.imshow(
        _on_cells(weights, scene.keys).numpy(),
        cmap=WEIGHT,
        vmin=0,
        vmax=scene.top,
        extent=_extent(scene.keys),
        interpolation="nearest",
        aspect=_aspect(scene),
    )
    left, right, bottom, top = scene.window
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.spines[:].set_color(LINES)
    cell = min(room[0] / (right - left), room[1] / (bottom - top))
    if scene.dimension == 1:
        cell = room[0] / (right - left)
    if cell >= 4:
        columns, rows = (
            [start + step for step in range(1, int(stop - start))]
            for start, stop in ((left, right), (top, bottom))
        )
        axes.vlines(columns, top, bottom, color=LINES, linewidth=0.5)
        axes.hlines(rows, left, right, color=LINES, linewidth=0.5)
    _mark_query(axes, scene.query, cell)
    if scene.shifts is None:
        return
    (row, column), (to_row, to_column) = scene.query, scene.targets[index]
    if (row, column) != (to_row, to_column):
        axes.annotate(
            "",
            xy=(to_column, to_row),
            xytext=(column, row),
            arrowprops={
                "arrowstyle": "-|>",
                "color": INK,
                "shrinkA": 0,
                "shrinkB": 0,
                "mutation_scale": min(10.0, max(4.0, cell)),
            },
        )


def _draw_ground(axes: Axes, scene: Scene) -> None:
    """Draw the image, pale, on its padding; hatched where there is no key."""
    axes.patch.set(**NO_KEY)
    if scene.is_padded:
        left, right, bottom, top = _extent(scene.keys)
        padding = Rectangle((left, top), right - left, bottom - top, facecolor=PADDING)
        padding.set_zorder(-1)
        axes.add_patch(padding)
    image = scene.background
    lowest, highest = range_of(image)
    if image.dim() == 3:
        there = (~image.isnan()).all(-1, keepdim=True).double()
        image = torch.cat([1 - (1 - image.nan_to_num(1.0)) / 2, there], -1)
    axes.imshow(
        _on_cells(image, scene.pixels).numpy(),
        cmap="Greys",
        vmin=lowest,
        vmax=lowest + 3 * (highest - lowest),
        extent=_extent(scene.pixels),
        interpolation="nearest",
        aspect=_aspect(scene),
    )


def _mark_query(axes: Axes, query: Place, cell: float) -> None:
    """Frame the query's pixel, by a line that leaves a cell of so many points visible."""
    _frame(axes, query, (1, 1), min(2.5, max(1.0, cell / 5)))


def _frame(axes: Axes, place: Place, size: tuple[float, float], linewidth: float) -> None:
    """Frame a cell, of the given width and height about its place."""
    (row, column), (width, height) = place, size
    corner = (column - width / 2, row - height / 2)
    frame = Rectangle(corner, width, height, fill=False, edgecolor=QUERY, linewidth=linewidth)
    frame.set_zorder(3)
    axes.add_patch(frame)


def _on_cells(values: Tensor, lattice: Lattice) -> Tensor:
    """Values on a lattice as a grid of unit cells, with nothing between them.

    Nothing is NaN, or where there are four channels a transparent colour.
    """
    high, wide = (end - o + 1 for o, end in zip(lattice.origin, lattice.last, strict=True))
    empty = 0.0 if values.dim() == 3 else math.nan
    cells = values.new_full((high, wide, *values.shape[2:]), empty)
    cells[:: lattice.spacing[0], :: lattice.spacing[1]] = values
    return cells


def _extent(lattice: Lattice) -> Extent:
    """Left, right, bottom and top edge of a lattice's cells."""
    (row, column), (last_row, last_column) = lattice.origin, lattice.last
    return column - 0.5, last_column + 0.5, last_row + 0.5, row - 0.5


def _aspect(scene: Scene) -> Literal["equal", "auto"]:
    """In two dimensions pixels are squares."""
    return "equal" if scene.dimension == 2 else "auto"


def _cell_size(coordinates: set[float]) -> float:
    """The least distance between two of them, 1 for a single one; not below `LEAST_CELL`."""
    ordered = sorted(coordinates)
    steps = [after - before for before, after in itertools.pairwise(ordered)]
    return max(min(steps, default=1.0), LEAST_CELL)


def _points(figure: SubFigure) -> tuple[float, float]:
    """Width and height of a part of a figure, in points."""
    return 72 * figure.bbox.width / figure.dpi, 72 * figure.bbox.height / figure.dpi


def _write(axes: Axes, place: Place, text: str, color: str, size: float) -> None:
    """Write a text about its middle."""
    row, column = place
    axes.text(column, row, text, color=color, fontsize=size, ha="center", va="center")


def _fitting(texts: Sequence[str], width: float, most: float) -> float | None:
    """The largest size, up to a given one, in which each text is as wide as there is room.

    A fifth of the width is kept free, since a renderer rounds the width of small letters. None
    where that is not legible.
    """
    size = min(most, *(0.8 * width / _width(text) for text in texts))
    return size if size >= LEAST_POINTS else None


@lru_cache(maxsize=1024)
def _width(text: str) -> float:
    """A width that a text of size 1 does not exceed, in points: its outlines' control points."""
    return float(TextPath((0, 0), text, size=1).vertices[:, 0].max())


def _tuple(numbers: Sequence[float]) -> str:
    """A point for a reader."""
    parts = [f"{number:.3g}".replace("-", "−") for number in numbers]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"


def _weight(weight: float) -> str:
    """A weight for a reader, who is told where digits are missing."""
    text = f"{weight:.3g}"
    return text if float(text) == weight else f"≈ {text}"
