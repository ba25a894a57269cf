"""Stacked heads: a convolution as several layers, whose shifts add and whose heads multiply.

Layer by layer a kernel is a train of tensors: a tap is named by one index for each layer, and its
matrix is the product of those that the layers apply there,

    W_δ = U_1(t_1) U_2(t_2) ... U_L(t_L),        δ = t_1 + t_2 + ... + t_L.

The numbers of channels between the layers are the ranks of the kernel's unfoldings, which is least.
Theorem: `depth_buys_heads`, whose equations numbers in brackets are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from constructions.formats import accumulator, unit_roundoff
from constructions.geometry.geometry import Geometry
from constructions.geometry.window import WindowGeometry
from constructions.heads.skeletons import skeleton
from constructions.sources import Stencil
from constructions.sources.native import NativeConvolution

MOST_LAYERS = 64
"""Of one convolution: none has use for more."""

CLAMPED = ("zeros", "replicate", "circular")
"""Borders on which steps in one direction add up, the image's own grid kept between them: (9)."""


@dataclass(frozen=True)
class Digit:
    """The steps that one layer takes along an axis: unit times -low, ..., high.

    Args:
        unit: in taps.
        low: how many steps back.
        high: how many steps forth.
    """

    unit: int
    low: int
    high: int

    @property
    def taps(self) -> int:
        """How many steps there are to choose from."""
        return self.low + 1 + self.high


@lru_cache(maxsize=4096)
def digits(low: int, high: int, layers: int) -> tuple[Digit, ...]:
    """Digits of -low, ..., high, all of one sign in each number, of few taps altogether: (8).

    The first has unit 1. Of all units floor((m + 1) / b), m the larger end and b the digit's
    values, those with the smallest sum of taps, and of these the largest last digit.
    """
    if layers == 1:
        return (Digit(1, low, high),)
    most = max(low, high)
    found: tuple[Digit, ...] | None = None
    for values in range(1, most + 2):
        unit = (most + 1) // values
        last = Digit(unit, min(values - 1, low // unit), min(values - 1, high // unit))
        left = _left(low, unit, last.low), _left(high, unit, last.high)
        if found is not None and last.taps > _taps(found):
            break
        whole = (*digits(*left, layers - 1), last)
        if found is None or _taps(whole) <= _taps(found):
            found = whole
    assert found is not None
    return found


def _left(reach: int, unit: int, steps: int) -> int:
    """What smaller digits have to reach beside so many steps."""
    return max(reach - unit * steps, unit - 1) if steps else reach


def _taps(found: Sequence[Digit]) -> int:
    return sum(digit.taps for digit in found)


def steps_of(number: int, found: Sequence[Digit]) -> tuple[int, ...]:
    """The steps that add up to a number, none against its sign: the largest units first."""
    left, steps = abs(number), []
    for digit in reversed(found):
        most = digit.low if number < 0 else digit.high
        step = min(left // digit.unit, most)
        left -= step * digit.unit
        steps.append(-step if number < 0 else step)
    assert left == 0
    return tuple(reversed(steps))


@dataclass(frozen=True)
class Plan:
    """Which layer takes which steps.

    Args:
        geometries: of each layer.
        indices: for each tap of the convolution, in order, its index in every layer.
    """

    geometries: tuple[Geometry, ...]
    indices: tuple[tuple[int, ...], ...]

    @property
    def heads(self) -> tuple[int, ...]:
        """How many heads each layer has."""
        return tuple(geometry.taps for geometry in self.geometries)

    def spread(self, matrices: Tensor) -> Tensor:
        """The matrices of the taps by their indices in the layers, (*heads, ...); else zeros."""
        kernel = matrices.new_zeros(*self.heads, *matrices.shape[1:])
        columns = zip(*self.indices, strict=True)
        kernel[tuple(torch.tensor(column, device=matrices.device) for column in columns)] = matrices
        return kernel


def stacked(stencil: Stencil, depth: int, boundary: str = "auto") -> tuple[Stencil, ...]:
    """A stencil as several, to be applied one after another; the bias is in the last.

    Two layers of an image are the first axis, then the rest. As many as axes: an axis each. More:
    axes in digits, on the image's own grid or, if the boundary is "padded", on the padded one.

    Args:
        stencil: of a convolution.
        depth: how many.
        boundary: as `attention_from_conv` takes it.

    Raises:
        ValueError: there is no such train of layers, or numbers are not there or not finite.
    """
    return planned(stencil, plan(stencil, depth, boundary))


def planned(stencil: Stencil, found: Plan) -> tuple[Stencil, ...]:
    """The stencils of the layers of a plan; errors are those of `stacked`."""
    matrices, depth = stencil.matrices, len(found.geometries)
    if matrices.is_meta or not bool(matrices.isfinite().all()):
        where = "on the meta device" if matrices.is_meta else "infinite or NaN"
        raise ValueError(
            f"depth is {depth}, and the weights of conv are {where}; accepted: finite numbers, "
            "whose ranks are the widths between the layers"
        )
    parts = train(found.spread(matrices))
    layers = []
    for number, (geometry, part) in enumerate(zip(found.geometries, parts, strict=True)):
        bias = stencil.bias if number == depth - 1 else None
        native = native_of(geometry, stencil.border.name)
        layers.append(Stencil(geometry, stencil.border, part, bias, native))
    return tuple(layers)


# Where each layer looks ---------------------------------------------------------------------------


def plan(stencil: Stencil, depth: int, boundary: str = "auto") -> Plan:
    """Which layer takes which steps; see `stacked`."""
    geometry = stencil.geometry
    d = geometry.dimension
    if isinstance(geometry, WindowGeometry):
        raise ValueError(
            f"depth is {depth}; accepted: 1 for an average pooling, which is one head already"
        )
    if depth < d:  # the first axes, and the rest together
        alone = [(axis,) for axis in range(depth - 1)]
        return _by_axes(geometry, [*alone, tuple(range(depth - 1, d))])
    padded = boundary == "padded"
    return _by_digits(geometry, _shared(stencil, depth, padded), padded)


def _by_axes(geometry: Geometry, together: Sequence[tuple[int, ...]]) -> Plan:
    size = geometry.kernel_size
    indices = []
    for tap in itertools.product(*map(range, size)):
        index = [0] * len(together)
        for layer, axes in enumerate(together):
            for axis in axes:
                index[layer] = index[layer] * size[axis] + tap[axis]
        indices.append(tuple(index))
    geometries = tuple(restricted(geometry, axes) for axes in together)
    return Plan(geometries, tuple(indices))


def restricted(geometry: Geometry, axes: Sequence[int]) -> Geometry:
    """The geometry along some axes alone: one tap on the others."""

    def on(numbers: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(n if axis in axes else other for axis, n in enumerate(numbers))

    return replace(
        geometry,
        kernel_size=on(geometry.kernel_size, 1),
        dilation=on(geometry.dilation, 1),
        before=on(geometry.before, 0),
        after=on(geometry.after, 0),
        query_spacing=on(geometry.query_spacing, 1),
        pixel_spacing=on(geometry.pixel_spacing, 1),
        output_padding=on(geometry.output_padding, 0),
    )


def _by_digits(
    geometry: Geometry, by_axis: Sequence[tuple[tuple[Digit, ...], int]], padded: bool
) -> Plan:
    geometries = [
        layer
        for axis, (found, _) in enumerate(by_axis)
        for layer in _along(geometry, axis, found, padded)
    ]
    indices = []
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        index: list[int] = []
        for (found, low), j in zip(by_axis, tap, strict=True):
            steps = steps_of(j - low, found)
            index += [step + digit.low for step, digit in zip(steps, found, strict=True)]
        indices.append(tuple(index))
    return Plan(tuple(geometries), tuple(indices))


def _along(
    geometry: Geometry, axis: int, found: Sequence[Digit], padded: bool
) -> Iterator[Geometry]:
    """The layers of one axis, the unit of 1 first, the stride last."""
    whole = restricted(geometry, (axis,))
    if len(found) == 1:
        yield whole
        return
    dilation, stride = whole.dilation[axis], whole.query_spacing[axis]
    before, after = whole.before[axis], whole.after[axis]
    shrink = dilation * (whole.kernel_size[axis] - 1) - before - after
    for number, digit in enumerate(found):
        step, is_last = dilation * digit.unit, number == len(found) - 1
        if padded:  # all of the padding at once: later layers stay within
            low, high = (before, after) if number == 0 else (0, 0)
        else:
            low, high = step * digit.low, step * digit.high - (shrink if is_last else 0)

        def at_axis(numbers: tuple[int, ...], own: int) -> tuple[int, ...]:
            return tuple(own if a == axis else n for a, n in enumerate(numbers))

        yield replace(
            whole,
            kernel_size=at_axis(whole.kernel_size, digit.taps),
            dilation=at_axis(whole.dilation, step),
            before=at_axis(whole.before, low),
            after=at_axis(whole.after, high),
            query_spacing=at_axis(whole.query_spacing, stride if is_last else 1),
        )


def _shared(
    stencil: Stencil, depth: int, padded: bool
) -> tuple[tuple[tuple[Digit, ...], int], ...]:
    """The digits of each axis, and how many taps stand before the query: few heads altogether."""
    geometry = stencil.geometry
    d = geometry.dimension
    objections = [_objection(stencil, axis, padded) for axis in range(d)]
    best: tuple[tuple[tuple[Digit, ...], int], ...] | None = None
    for cuts in itertools.combinations(range(1, depth), d - 1):
        counts = [b - a for a, b in itertools.pairwise((0, *cuts, depth))]
        if any(n > 1 and why for n, why in zip(counts, objections, strict=True)):
            continue
        found = []
        for axis, layers in enumerate(counts):
            taps = geometry.kernel_size[axis]
            is_divided = layers > 1 and not padded
            low = geometry.before[axis] // geometry.dilation[axis] if is_divided else 0
            found.append((digits(low, taps - 1 - low, layers), low))
        if best is None or sum(_taps(f) for f, _ in found) < sum(_taps(f) for f, _ in best):
            best = tuple(found)
    if best is None:
        why = next(why for why in objections if why)
        accepted = f"{d}, an axis each" if d > 1 else "1"
        raise ValueError(f"depth is {depth}; accepted: {accepted}{why}")
    return best


def _objection(stencil: Stencil, axis: int, padded: bool) -> str | None:
    """Why an axis cannot be divided into digits, and the way out; None if it can."""
    geometry, mode = stencil.geometry, stencil.border.name
    if geometry.transposed:
        return ", since the pixels of a transposed convolution stand apart"
    if padded:
        return None
    dilation, before, after = (
        numbers[axis] for numbers in (geometry.dilation, geometry.before, geometry.after)
    )
    out = ", or boundary='padded', since on the image's own grid "
    reach = dilation * (geometry.kernel_size[axis] - 1)
    if mode not in CLAMPED:
        return f"{out}{mode} padding of two steps is not that of their sum"
    if before < 0 or before % dilation or before > reach:
        return f"{out}padding {before} and dilation {dilation} leave no tap at the query"
    if before + after > reach:
        return f"{out}padding {before} puts queries beyond the image"
    return None


def native_of(geometry: Geometry, padding_mode: str) -> NativeConvolution | None:
    """The convolution of torch's that has a geometry, or None where there is none."""
    axes = range(geometry.dimension)
    reach = [geometry.dilation[a] * (geometry.kernel_size[a] - 1) for a in axes]
    padding: tuple[int, ...] | str = geometry.before
    if geometry.transposed:
        padding = tuple(reach[a] - geometry.before[a] for a in axes)
        if geometry.after != geometry.before or min(padding) < 0:
            return None
    elif geometry.before != geometry.after or min(geometry.before) < 0:
        same = tuple(n // 2 for n in reach), tuple(n - n // 2 for n in reach)
        if (geometry.before, geometry.after) != same or max(geometry.query_spacing) > 1:
            return None
        padding = "same"
    return NativeConvolution(
        kernel_size=geometry.kernel_size,
        stride=geometry.pixel_spacing if geometry.transposed else geometry.query_spacing,
        padding=padding,
        dilation=geometry.dilation,
        padding_mode=padding_mode,
        output_padding=geometry.output_padding,
        transposed=geometry.transposed,
    )


# What each layer applies --------------------------------------------------------------------------


def train(kernel: Tensor) -> tuple[Tensor, ...]:
    """The matrices of the layers: products of these, index by index, are the kernel: (10).

    The width between two layers is the rank of the unfolding there, of the widest group; 1 where it
    is 0. Where an unfolding has full rank, one side of the cut holds its numbers as they are, and
    the other zeros and ones.

    Args:
        kernel: (taps of layer 1, ..., taps of layer L, G, D_in / G, D_out / G).

    Returns:
        For each layer (taps, G, inputs / G, outputs / G), in the kernel's dtype, on its device.
    """
    taps, (groups, inputs, outputs) = kernel.shape[:-3], kernel.shape[-3:]
    roundoff = unit_roundoff(accumulator(kernel.dtype))
    wide = kernel.detach().to("cpu", torch.float64)
    left = list(wide.movedim((-3, -2), (0, 1)))  # of each group (inputs, taps, ..., outputs)
    parts, width = [], inputs
    for count in taps[:-1]:
        pairs = [skeleton(rest.reshape(width * count, -1), roundoff) for rest in left]
        rank = max(len(second) for _, second in pairs)
        part = wide.new_zeros(groups, width, count, rank)
        for group, (first, second) in enumerate(pairs):
            part[group, ..., : len(second)] = first.reshape(width, count, -1)
            left[group] = torch.cat([second, second.new_zeros(rank - len(second), second.shape[1])])
        parts.append(part.permute(2, 0, 1, 3))
        width = rank
    last = torch.stack([rest.reshape(width, taps[-1], outputs) for rest in left])
    parts.append(last.permute(2, 0, 1, 3))
    return tuple(part.to(kernel).contiguous() for part in parts)
