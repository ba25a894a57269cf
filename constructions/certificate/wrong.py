"""Wrong constructions by name: what a layer may compute in place of the convolution.

Each is a convolution itself, with other taps, another border or no bias, so that it has a bound of
its own. They serve to say of a layer that fails what it is, never to let one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from constructions.certificate.comparison import Comparison
from constructions.geometry.geometry import Geometry
from constructions.geometry.padding_modes import PADDING_MODES
from constructions.geometry.view import PADDED, View
from constructions.sources.stencil import Stencil

MOST_TAPS_IN_PAIRS = 32
"""Of a kernel of more taps, none are tried in pairs."""

NUMBERS = 2**22
"""Numbers that the search through single heads may keep at a time."""


@dataclass(frozen=True)
class Wrong:
    """A wrong construction.

    Args:
        name: what is wrong.
        stencil: what it computes, on the queries of the right one.
    """

    name: str
    stencil: Stencil

    def on(self, image: Tensor) -> Comparison:
        """Its own truth, batched.

        Args:
            image: (N, D_in, *spatial), float64.

        Raises:
            ValueError: its border does not reach so far.
        """
        stencil = self.stencil
        view = View.of(image, stencil.geometry, stencil.border, PADDED)
        limit = view.at_targets
        exact = stencil.convolve(limit)
        if stencil.bias is not None:
            exact = exact + stencil.bias.reshape(-1, *(1 for _ in exact.shape[2:]))
        return Comparison(stencil, stencil.geometry, exact, view, limit, None)


def wrong_as_a_whole(stencil: Stencil, spatial_shape: tuple[int, ...]) -> Iterator[Wrong]:
    """The kernel flipped or with its axes swapped, q - k, another border, and no bias."""
    d, kernel = stencil.geometry.dimension, stencil.geometry.kernel_size
    long = [axis for axis in range(d) if kernel[axis] > 1]
    if len(long) > 1:
        for axis in long:
            yield Wrong(f"the kernel flipped on axis {axis}", _flipped(stencil, [axis]))
    if long:
        yield Wrong("the kernel flipped on all axes", _flipped(stencil, range(d)))
        yield Wrong("q - k in place of k - q", _negated(stencil, spatial_shape))
    for one, other in combinations(range(d), 2):
        swapped = _swapped(stencil, one, other, spatial_shape)
        if swapped is not None:
            yield Wrong(f"the kernel's axes {one} and {other} swapped", swapped)
    if max(stencil.geometry.pixel_spacing) == 1:  # torch's transposed convolutions have zeros
        for mode, border in PADDING_MODES.items():
            if border != stencil.border:
                yield Wrong(f"the border {mode!r}", replace(stencil, border=border))
    if stencil.bias is not None and stencil.bias.count_nonzero():
        yield Wrong("the bias missing", replace(stencil, bias=None))


def _flipped(stencil: Stencil, axes: range | list[int]) -> Stencil:
    kernel, matrices = stencil.geometry.kernel_size, stencil.matrices
    grid = matrices.reshape(*kernel, *matrices.shape[1:])
    return replace(stencil, matrices=grid.flip(list(axes)).reshape(matrices.shape))


def _negated(stencil: Stencil, spatial_shape: tuple[int, ...]) -> Stencil:
    """Every offset times -1."""
    geometry = stencil.geometry
    axes = zip(geometry.kernel_size, geometry.dilation, geometry.before, strict=True)
    before = tuple(r * (k - 1) - b for k, r, b in axes)
    moved = replace(geometry, before=before)
    flipped = _flipped(stencil, range(geometry.dimension))
    return replace(flipped, geometry=_with_queries_of(geometry, moved, spatial_shape))


def _swapped(
    stencil: Stencil, one: int, other: int, spatial_shape: tuple[int, ...]
) -> Stencil | None:
    """Two coordinates of every offset exchanged; None where no offset changes."""
    geometry, matrices = stencil.geometry, stencil.matrices
    order = list(range(geometry.dimension))
    order[one], order[other] = other, one
    names = ("kernel_size", "dilation", "before")
    size, dilation, before = (tuple(getattr(geometry, n)[a] for a in order) for n in names)
    if size[one] == size[other] == 1 and before[one] == before[other]:
        return None
    moved = replace(geometry, kernel_size=size, dilation=dilation, before=before)
    grid = matrices.reshape(*geometry.kernel_size, *matrices.shape[1:])
    return replace(
        stencil,
        geometry=_with_queries_of(geometry, moved, spatial_shape),
        matrices=grid.transpose(one, other).reshape(matrices.shape),
    )


def _with_queries_of(
    geometry: Geometry, moved: Geometry, spatial_shape: tuple[int, ...]
) -> Geometry:
    """The second geometry with as many targets as the queries of the first one need."""
    queries, pixels = geometry.queries(spatial_shape), geometry.pixels(spatial_shape)
    after = tuple(
        last + r * (k - 1) - b - end - extra
        for last, r, k, b, end, extra in zip(
            queries.last,
            moved.dilation,
            moved.kernel_size,
            moved.before,
            pixels.last,
            moved.output_padding,
            strict=True,
        )
    )
    return replace(moved, after=after)


def wrong_in_single_heads(comparison: Comparison, y: Tensor, most: float) -> list[Wrong]:
    """One head lost, doubled, elsewhere or with another's matrix: those that may explain an output.

    All are tried at some of the outputs alone; what is returned is to be held against the others.

    Args:
        comparison: the convolution and its input.
        y: the output of the layer, (N, D_out, *queries.shape), float64.
        most: how much what is returned may be off at those outputs.
    """
    stencil = comparison.stencil
    changes = list(_changes(stencil.matrices))
    if not changes or not y.numel():
        return []
    wide = max(len(changes), len(stencil.matrices) ** 2) * stencil.out_channels
    chosen = _chosen_outputs(comparison, y, max(8, min(256, NUMBERS // wide)))
    products = _products(comparison, chosen)
    exact = comparison.exact.reshape(y.shape).flatten(2).transpose(1, 2).flatten(0, 1)[chosen]
    given = y.flatten(2).transpose(1, 2).flatten(0, 1)[chosen]
    found = []
    for name, terms in changes:
        moved = exact
        for tap, matrix, times in terms:
            moved = moved + times * products[:, tap, matrix]
        if (given - moved).abs().max() <= most:
            matrices = stencil.matrices.clone()
            for tap, matrix, times in terms:
                matrices[tap] += times * stencil.matrices[matrix]
            found.append(Wrong(name, replace(stencil, matrices=matrices)))
    return found


Change = tuple[int, int, int]
"""At a tap, the matrix of a tap, so many times more."""


def _changes(matrices: Tensor) -> Iterator[tuple[str, list[Change]]]:
    """What single heads may do wrong; of heads whose matrix is zero nothing can be seen."""
    live = [h for h, matrix in enumerate(matrices) if matrix.count_nonzero()]
    taps = range(len(matrices))
    for h in live:
        yield f"head {h} lost", [(h, h, -1)]
        yield f"head {h} doubled", [(h, h, 1)]
    if len(matrices) > MOST_TAPS_IN_PAIRS:
        return
    for h in live:
        yield (
            f"the matrix of head {h} for all heads",
            [(tap, tap, -1) for tap in taps if tap != h]
            + [(tap, h, 1) for tap in taps if tap != h],
        )
        for tap in taps:
            if tap != h:
                yield f"head {h} where head {tap} looks", [(h, h, -1), (tap, h, 1)]
    for one, other in combinations(taps, 2):
        if not torch.equal(matrices[one], matrices[other]):
            exchanged = [(one, one, -1), (other, other, -1), (one, other, 1), (other, one, 1)]
            yield f"heads {one} and {other} swapped", exchanged


def _chosen_outputs(comparison: Comparison, y: Tensor, count: int) -> Tensor:
    """Numbers of pairs of image and query: where most is wrong, and evenly between all."""
    error = (y - comparison.exact.reshape(y.shape)).abs().amax(1).flatten()
    worst = error.nan_to_num(0.0).topk(min(count // 2, len(error))).indices
    even = torch.linspace(0, len(error) - 1, min(count // 2, len(error))).long()
    numbers: Tensor = torch.unique(torch.cat([worst, even]))
    return numbers


def _products(comparison: Comparison, chosen: Tensor) -> Tensor:
    """X_{q + δ_a} W_b at the chosen outputs: (chosen, taps a, taps b, D_out)."""
    stencil, geometry = comparison.stencil, comparison.geometry
    shape, targets = comparison.view.queries.shape, comparison.limit.shape[2:]
    rest = chosen
    places = torch.zeros(len(chosen), stencil.geometry.taps, dtype=torch.int64)
    steps = geometry.offsets("cpu") + torch.tensor(geometry.before)
    stride = 1
    for axis in reversed(range(geometry.dimension)):
        query = rest % shape[axis] * geometry.query_spacing[axis]
        rest = rest // shape[axis]
        places += (query.unsqueeze(1) + steps[:, axis]) * stride
        stride *= targets[axis]
    limit = comparison.limit.flatten(2)
    pixels = limit[rest.unsqueeze(1), :, places]  # (chosen, taps, D_in)
    parts = pixels.reshape(*pixels.shape[:2], stencil.groups, -1)
    mixed = torch.einsum("sagi,bgio->sabgo", parts, stencil.matrices)
    return mixed.flatten(3)
