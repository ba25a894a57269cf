"""Groups: heads that share one P, and the convolution that follows it.

Heads of one precision, whose shifts differ by whole pixels, ask the same P for rows at different
places: these are the taps of a convolution. Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from constructions.formats import DOUBLE
from constructions.geometry.lattice import Lattice, displacements
from constructions.layer.soft_padding import SoftPadding
from constructions.lowering.bands import Scores, Squares
from constructions.sources.sums import plain_sum
from constructions.tracing import is_traced


@dataclass(frozen=True)
class ScoredHead:
    """A head's score as a function of key minus target, and where its target is.

    Args:
        scores: the score.
        shift: the whole pixels from query to target.
        slack: what the numbers in the score may err, as in `Group`.
    """

    scores: Scores
    shift: tuple[int, ...]
    slack: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """Heads that share one P: soft padding, and then a convolution.

    Args:
        scores: the score that they share.
        heads: their numbers in the layer.
        shifts: the whole pixels of their shifts.
        slack: what the numbers in the scores may err, as coefficients of ‖δ‖² and of each |δ_i|.
    """

    scores: Scores
    heads: tuple[int, ...]
    shifts: tuple[tuple[int, ...], ...]
    slack: tuple[float, ...]

    def score_error(self, keys: Lattice, queries: Lattice) -> float:
        """What a difference of two computed scores may err."""
        box = displacements(keys, queries)
        far = [max(abs(a), abs(b)) for a, b in zip(box.origin, box.last, strict=True)]
        sizes = [sum(f * f for f in far), *far]
        own = 2 * math.fsum(s * size for s, size in zip(self.slack, sizes, strict=True))
        return self.scores.score_error(keys, queries) + own

    def parts(self, inputs: int, width: int, outputs: int) -> tuple[Group, ...]:
        """The group; or its heads apart, where narrow matrices cost less than a kernel of products.

        Args:
            inputs: D_in / G, which P and the matrices of a group have to do with.
            width: D_h, which P has to do with where a head stands apart.
            outputs: D_out / G.
        """
        wide = len(self.heads) * width > inputs or width * (inputs + outputs) >= inputs * outputs
        if wide or len(self.heads) == 1:
            return (self,)
        each = zip(self.heads, self.shifts, strict=True)
        return tuple(replace(self, heads=(head,), shifts=(shift,)) for head, shift in each)

    def is_narrow(self, value: Tensor) -> bool:
        """Whether its one head reads fewer channels than the pixels have.

        Args:
            value: W_val of all heads of the layer, (H, G, D_in / G, D_h).
        """
        return len(self.heads) == 1 and value.shape[3] < value.shape[2]

    def matrices(self, value: Tensor, output: Tensor) -> tuple[Tensor | None, Tensor]:
        """What is applied before P, and after it, in float64: W_val and W_out, or their product.

        Args:
            value: W_val of all heads of the layer, (H, G, D_in / G, D_h).
            output: W_out, (H, G, D_h, D_out / G).
        """
        heads = list(self.heads)
        first, after = value[heads].to(DOUBLE), output[heads].to(DOUBLE)
        return (first[0], after) if self.is_narrow(value) else (None, first @ after)

    def taps(self, queries: Lattice) -> Taps:
        """Where their targets stand, and which of them each head is asked for."""
        origin, shape, spacing, stride, dilation, places = [], [], [], [], [], []
        for axis, shifts in enumerate(zip(*self.shifts, strict=True)):
            low, size = min(shifts), queries.shape[axis]
            # Traced code runs on axes of other sizes too.
            step = queries.spacing[axis] if is_traced() or size > 1 else 0
            unit = math.gcd(step, *(s - low for s in shifts)) or 1
            place = [(s - low) // unit for s in shifts]
            far = math.gcd(*place) or 1
            origin.append(queries.origin[axis] + low)
            shape.append(((size - 1) * step) // unit + max(place) + 1)
            spacing.append(unit)
            stride.append(step // unit or 1)
            dilation.append(far)
            places.append([p // far for p in place])
        return Taps(
            targets=Lattice(tuple(shape), tuple(spacing), tuple(origin)),
            outputs=queries.shape,
            stride=tuple(stride),
            dilation=tuple(dilation),
            places=tuple(zip(*places, strict=True)),
        )


@dataclass(frozen=True)
class Taps:
    """The convolution of a group.

    Args:
        targets: where the rows of P stand.
        outputs: the shape of the output.
        stride: rows from output to output, on each axis.
        dilation: rows from tap to tap.
        places: the tap of each head.
    """

    targets: Lattice
    outputs: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """That of the least kernel with all taps."""
        return tuple(max(places) + 1 for places in zip(*self.places, strict=True))

    @property
    def is_kernel(self) -> bool:
        """Whether the taps fill at least half of that kernel; else they go one by one."""
        return math.prod(self.kernel_size) <= 2 * len(self.places)

    @property
    def count(self) -> int:
        """How many matrices each output is multiplied by."""
        return math.prod(self.kernel_size) if self.is_kernel else len(self.places)

    def __call__(self, matrices: Tensor, at_targets: Tensor) -> Tensor:
        """The convolution of what stands at the targets: (N, D_out, *outputs).

        Args:
            matrices: of the heads, (heads, G, D_in / G, D_out / G).
            at_targets: (N, D_in, *targets.shape).
        """
        if self.is_kernel:
            size = self.kernel_size
            numbers = [sum(_flat(place, size)) for place in self.places]
            kernel = matrices
            if numbers != list(range(math.prod(size))):
                index = torch.tensor(numbers, device=matrices.device)
                none = matrices.new_zeros(math.prod(size), *matrices.shape[1:])
                kernel = none.index_add(0, index, matrices)
            return convolved(at_targets, kernel, size, self.stride, self.dilation)
        ones = (1,) * len(self.stride)
        total: Tensor | None = None
        for place, matrix in zip(self.places, matrices, strict=True):
            asked = at_targets
            for axis, tap in enumerate(place):
                first, step = tap * self.dilation[axis], self.stride[axis]
                rows = torch.arange(self.outputs[axis], device=asked.device) * step + first
                asked = asked.index_select(2 + axis, rows)
            mixed = convolved(asked, matrix.unsqueeze(0), ones, ones, ones)
            total = mixed if total is None else total + mixed
        assert total is not None
        return total


def _flat(place: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The terms of a row-major number."""
    return [p * math.prod(shape[axis + 1 :]) for axis, p in enumerate(place)]


def convolved(
    image: Tensor,
    kernel: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """torch's convolution with (taps, G, D_in / G, D_out / G), as a plain sum."""
    _, groups, _, width = kernel.shape
    weight = kernel.permute(1, 3, 2, 0).reshape(groups * width, -1, *size)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]

    def of(images: Tensor) -> Tensor:
        return convolution(images, weight, None, stride=stride, dilation=dilation, groups=groups)

    return plain_sum(of, image)


@dataclass(frozen=True)
class Step:
    """What is added to the output, on given lattices and ready to run.

    Args:
        value: W_val of the heads side by side, (G, D_in / G, heads D_h), where it is applied first.
        paddings: P of each of these heads; else one, of the pixels.
        taps: the convolution after it.
        matrices: of that convolution, (heads, G, D / G, D_out / G).
    """

    value: Tensor | None
    paddings: tuple[SoftPadding, ...]
    taps: Taps
    matrices: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """What is added."""
        if self.value is None:
            return self.taps(self.matrices, self.paddings[0](values))
        read = applied_by_pixel(self.value, values)
        parts, heads, grid = len(self.value), len(self.paddings), read.shape[2:]
        batch = read.shape[0]  # len() would make a number of a symbol
        width = self.value.shape[2] // heads
        by_head = read.reshape(batch, parts, heads, width, *grid).unbind(2)
        at_outputs = [
            padding(head.flatten(1, 2)).reshape(batch, parts, width, *self.taps.outputs)
            for padding, head in zip(self.paddings, by_head, strict=True)
        ]
        return self.taps(self.matrices, torch.cat(at_outputs, dim=2).flatten(1, 2))


def applied_by_pixel(matrix: Tensor, values: Tensor) -> Tensor:
    """A matrix for each pixel, (G, D_in / G, D_h), applied to (N, D_in, *shape)."""
    ones = (1,) * (values.dim() - 2)
    return convolved(values, matrix.unsqueeze(0), ones, ones, ones)


def grouped(heads: Sequence[ScoredHead]) -> tuple[Group, ...]:
    """Heads of one score together, in the order of the first of each."""
    found: dict[Scores, list[int]] = {}
    for number, head in enumerate(heads):
        found.setdefault(head.scores, []).append(number)
    return tuple(
        Group(
            scores,
            tuple(numbers),
            tuple(heads[n].shift for n in numbers),
            tuple(map(max, zip(*(heads[n].slack for n in numbers), strict=True))),
        )
        for scores, numbers in found.items()
    )


def completed_squares(
    coefficients: Tensor,
    slack: Tensor,
    sinks: tuple[Tensor, float] | None,
    argument: str,
    known: Sequence[Tensor | None] | None = None,
) -> list[ScoredHead]:
    """Complete the square of each head's coefficients of ‖δ‖² and δ, (H, d + 1).

    Args:
        coefficients: float64.
        slack: what they may err.
        sinks: the shifts that the heads are named by, and how far below these a sink stands.
        argument: the name of what was given.
        known: the shifts of those heads whose coefficients were made of them.
    """
    found: list[ScoredHead] = []
    for head, row in enumerate(coefficients):
        precision = -float(row[0])
        if not (precision > 0 and bool(row.isfinite().all())):
            raise ValueError(
                f"{argument} gives head {head} the score {-precision:g} ‖δ‖², which does not fall "
                "off; accepted: a negative, finite one"
            )
        shift = None if known is None else known[head]
        if shift is None:
            shift = row[1:] / (2 * precision)
        whole = shift.round()
        whole = torch.where(shift - whole == 0.5, whole + 1, whole)
        sink = None
        if sinks is not None:
            named, height = sinks
            sink = -height - precision * float((named[head] - shift).square().sum())
        scores = Squares(
            precision=precision,
            fraction=tuple((shift - whole).tolist()),
            sink=sink,
        )
        pixels = tuple(int(w) for w in whole.tolist())
        found.append(ScoredHead(scores, pixels, tuple(slack[head].tolist())))
    return found
