"""What a figure of heads shows: checked arguments, weights, and where everything stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from constructions.geometry.lattice import Lattice
from constructions.heads import Kind
from constructions.layer.attention import MultiHeadSelfAttention

MOST_HEADS = 49
"""So many heads are drawn where nobody says which."""
MOST_CELLS = {1: 64, 2: 16}
"""By dimension: of a longer axis a panel shows the part about the query and its targets."""

Place = tuple[float, float]
Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """What is drawn; in one dimension a grid of one row.

    Args:
        background: the image, (H, W), or (H, W, 3) with colours from 0 to 1.
        pixels: where the image stands.
        keys: where the keys stand.
        is_padded: whether the border is made of keys.
        query: the query's position.
        output: its index among the outputs, for the reader.
        numbers: of the heads that are drawn.
        weights: of these heads, (H', keys), float64.
        sink: what each gives to the sink, (H',), or None without one.
        shifts: of all heads; None where heads select no single place.
        total: how many heads there are.
    """

    background: Tensor
    pixels: Lattice
    keys: Lattice
    is_padded: bool
    query: tuple[int, int]
    output: tuple[int, ...]
    numbers: Sequence[int]
    weights: Tensor
    sink: Tensor | None
    shifts: Sequence[Place] | None
    total: int

    @property
    def dimension(self) -> int:
        """That of the layer."""
        return len(self.output)

    @classmethod
    def of(
        cls,
        layer: MultiHeadSelfAttention,
        image: Tensor,
        query: Sequence[int] | None,
        heads: Sequence[int] | None,
    ) -> Scene:
        """The scene of checked arguments."""
        d = layer.geometry.dimension
        if d > 2:
            raise ValueError(f"layer has {d} spatial axes; accepted: 1 or 2, which can be drawn")
        channels = _channels(image, d)
        x = None
        if layer.has_live_content():
            _check_input(layer, channels)
            x = channels
        shape = tuple(channels.shape[1:])
        pixels, _, explicit_keys, queries = layer.geometry.lattices(shape)
        keys = layer.boundary_rule.keys(pixels, explicit_keys)
        output = _output_index(query, queries.shape)
        number = 0
        for index, size in zip(output, queries.shape, strict=True):
            number = number * size + index
        if heads is None:
            heads = range(min(layer.num_heads, MOST_HEADS))
        if isinstance(heads, Sequence) and not heads:
            raise ValueError("heads is empty; accepted: None, or at least one number of a head")
        with torch.no_grad():
            weights = layer.attention_weights(shape, x, queries=[number], heads=heads)
        rows = weights.reshape(len(heads), -1).cpu().double()  # exact from any format
        shifts = None
        if layer.heads.kind is Kind.SELECTING:
            shifts = [_in_plane(shift) for shift in layer.heads.shifts.detach().tolist()]
        axes = zip(queries.origin, queries.spacing, output, strict=True)
        row, column = _in_plane([start + step * index for start, step, index in axes])
        return cls(
            background=background_of(channels.detach().cpu()),
            pixels=_lattice_in_plane(pixels),
            keys=_lattice_in_plane(keys),
            is_padded=layer.boundary == "padded",
            query=(int(row), int(column)),
            output=output,
            numbers=tuple(heads),
            weights=rows[:, : keys.size],
            sink=rows[:, -1] if layer.has_sink else None,
            shifts=shifts,
            total=layer.num_heads,
        )

    @cached_property
    def top(self) -> float:
        """The weight of the full colour: the largest of all, or 1 where there is none."""
        parts = [self.weights, *([] if self.sink is None else [self.sink.unsqueeze(-1)])]
        largest = torch.cat(parts, -1).nan_to_num(0.0, 0.0, 0.0).max().item()
        return largest if largest > 0 else 1.0

    @cached_property
    def targets(self) -> Sequence[Place]:
        """Where the heads that are drawn look."""
        if self.shifts is None:
            return []
        row, column = self.query
        shifts = [self.shifts[number] for number in self.numbers]
        return [(row + down, column + along) for down, along in shifts]

    @cached_property
    def everything(self) -> Extent:
        """Left, right, bottom and top edge of pixels, keys, query and targets."""
        lattices = (self.pixels, self.keys)
        points = [
            *(lattice.origin for lattice in lattices),
            *(lattice.last for lattice in lattices),
            self.query,
            *self.targets,
        ]
        rows, columns = zip(*points, strict=True)
        return (
            math.floor(min(columns)) - 0.5,
            math.ceil(max(columns)) + 0.5,
            math.ceil(max(rows)) + 0.5,
            math.floor(min(rows)) - 0.5,
        )

    @cached_property
    def window(self) -> Extent:
        """The part of everything that the panels show."""
        left, right, bottom, top = self.everything
        most = MOST_CELLS[self.dimension]
        rows, columns = zip(self.query, *self.targets, strict=True)
        left, right = _about(columns, left, right, most)
        top, bottom = _about(rows, top, bottom, most)
        return left, right, bottom, top

    @property
    def is_part(self) -> bool:
        """Whether the panels leave away a part of everything."""
        return self.window != self.everything

    @property
    def uses_sink(self) -> bool:
        """Whether any of the heads that are drawn gives anything to the sink."""
        return self.sink is not None and bool(self.sink.count_nonzero())

    @cached_property
    def elsewhere(self) -> Tensor:
        """What each head gives to keys outside the window, (H',)."""
        left, right, bottom, top = self.window
        row, column = self.keys.positions().T
        outside = (row < top) | (row > bottom) | (column < left) | (column > right)
        return self.weights[:, outside].sum(-1)

    @property
    def has_cells_without_key(self) -> bool:
        """Whether the window has places with neither a key nor a pixel."""
        left, right, bottom, top = self.window
        places = torch.zeros(int(bottom - top), int(right - left), dtype=torch.bool)
        for lattice in (self.keys, self.pixels):
            row, column = lattice.positions().T
            row, column = row - math.ceil(top), column - math.ceil(left)
            inside = (row >= 0) & (column >= 0)
            inside &= (row < len(places)) & (column < places.shape[1])
            places[row[inside], column[inside]] = True
        return not bool(places.all())

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of panels: those of the kernel where they fit, else nearly square."""
        count = len(self.numbers)
        if self.dimension == 1:
            columns = -(-count // 12)
            return -(-count // columns), columns
        if self.shifts is not None:
            distinct = {self.shifts[number] for number in self.numbers}
            rows, columns = (len(set(axis)) for axis in zip(*distinct, strict=True))
            is_full = rows * columns == count == len(distinct)
            if is_full and max(rows, columns) <= 2 * min(rows, columns):
                return rows, columns
        columns = math.ceil(math.sqrt(count))
        return -(-count // columns), columns

    @property
    def inches(self) -> tuple[float, float]:
        """A size of the whole figure that leaves each panel room."""
        rows, columns = self.grid
        if self.dimension == 1:
            return 10.0, 3.2 + 0.7 * rows + (0.8 if self.is_part else 0.0)
        left, right, bottom, top = self.window
        width = max(6.25, 1.1 * columns)
        text = 0.5 if self.uses_sink or self.elsewhere.any() else 0.25
        height = rows * (width / columns * (bottom - top) / (right - left) + text)
        return 3.75 + width, min(max(height, 5.0), 14.0)


def _channels(image: Tensor, dimension: int) -> Tensor:
    """A checked image as (C, *spatial)."""
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a {type(image).__name__}; accepted: a torch.Tensor")
    shape, d = tuple(image.shape), dimension
    axes = ("L",) if d == 1 else ("H", "W")
    accepted = (
        f"accepted: ({', '.join(axes)}{',' * (d == 1)}), (C, {', '.join(axes)}) or "
        f"(1, C, {', '.join(axes)}), none of them 0, for a layer in {d} dimension{'s' * (d > 1)}"
    )
    is_batch_of_one = len(shape) == d + 2 and shape[0] == 1
    if not (len(shape) in (d, d + 1) or is_batch_of_one) or 0 in shape:
        raise ValueError(f"image has shape {shape}; {accepted}")
    if image.is_complex():
        raise ValueError(f"image has dtype {image.dtype}; accepted: real numbers")
    if is_batch_of_one:
        return image[0]
    return image.unsqueeze(0) if len(shape) == d else image


def _check_input(layer: MultiHeadSelfAttention, channels: Tensor) -> None:
    """Raise a ValueError unless the image is what a layer with live content terms takes."""
    why = "since the layer's content terms are live and its weights depend on the image"
    wanted = 1 if layer.in_channels is None else layer.in_channels
    if len(channels) != wanted:
        raise ValueError(f"image has {len(channels)} channels; accepted: {wanted}, {why}")
    own = layer.value
    if (channels.dtype, channels.device) != (own.dtype, own.device):
        raise ValueError(
            f"image is {channels.dtype} on {channels.device}; accepted: {own.dtype} on "
            f"{own.device}, {why}"
        )


def _output_index(query: Sequence[int] | None, outputs: tuple[int, ...]) -> tuple[int, ...]:
    """A checked index of an output; the middle one for None."""
    if query is None:
        return tuple(size // 2 for size in outputs)
    largest = tuple(size - 1 for size in outputs)
    accepted = f"accepted: None, or a tuple of integers from {(0,) * len(outputs)} to {largest}"
    if isinstance(query, str) or not isinstance(query, Sequence):
        raise TypeError(f"query is a {type(query).__name__}; {accepted}")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in query):
        raise TypeError(f"query is {query!r}; {accepted}")
    index = tuple(query)
    if len(index) != len(outputs) or not all(
        0 <= n < size for n, size in zip(index, outputs, strict=True)
    ):
        raise ValueError(f"query is {index}; {accepted}")
    return index


def _in_plane(point: Sequence[float]) -> Place:
    """A point of one or two dimensions, as row and column."""
    return (0.0, point[0]) if len(point) == 1 else (point[0], point[1])


def _lattice_in_plane(lattice: Lattice) -> Lattice:
    if lattice.dimension == 2:
        return lattice
    return Lattice((1, *lattice.shape), (1, *lattice.spacing), (0, *lattice.origin))


def _about(places: Sequence[float], first: float, last: float, most: int) -> tuple[float, float]:
    """The part of an axis that is shown: all of it, or `most` cells that hold the places."""
    if last - first <= most:
        return first, last
    low, high = math.floor(min(places)) - 0.5, math.ceil(max(places)) + 0.5
    spare = max(0, most - int(high - low))
    low = max(first, low - spare // 2)
    high = min(last, max(high, low + most))
    return min(low, max(first, high - most)), high


def background_of(channels: Tensor) -> Tensor:
    """What stands behind the weights: (H, W), or (H, W, 3) with colours from 0 to 1."""
    values = channels.double()
    # A value that is not finite has no shade.
    values = values.masked_fill(~values.isfinite(), math.nan)
    if values.dim() == 2:
        return values.mean(0, keepdim=True)
    if len(values) != 3:
        return values.mean(0)
    if channels.dtype == torch.uint8:
        return (values / 255).permute(1, 2, 0)
    lowest, highest = range_of(values)
    if lowest < 0 or highest > 1:
        values = (values - lowest) / (highest - lowest)
    return values.permute(1, 2, 0)


def range_of(values: Tensor) -> tuple[float, float]:
    """The least and the largest number, never the same."""
    numbers = values[~values.isnan()]
    if len(numbers) == 0:
        return 0.0, 1.0
    lowest, highest = numbers.min().item(), numbers.max().item()
    return lowest, (highest if highest > lowest else lowest + 1)
