"""Lowering: a positional layer as soft paddings and convolutions, with a certified error.

A head whose score is a function g of key minus query alone sees

    conv_g(X) / (conv_g(1) + e^sink)

a convolution with the kernel e^g, renormalised where the kernel leaves the box of keys. For scores
that are sums over axes it is one small banded matrix for each axis. Heads of one precision, whose
shifts differ by whole pixels, share these matrices; and a sharp head needs its window alone.
Theorem: `positional_heads_are_convolutions`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.certificate.rounding import gamma, head_rounding
from constructions.encodings import Mixing, Quadratic, on_axes
from constructions.formats import accumulator, check_format, smallest_subnormal, unit_roundoff
from constructions.geometry.geometry import Geometry, checked_spatial_shape
from constructions.geometry.lattice import Lattice, displacements
from constructions.geometry.padding_modes import PaddingMode, Zeros, check_reach
from constructions.geometry.view import Boundary, Natural, View
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.soft_padding import SINK_HEIGHT
from constructions.lowering.bands import DOUBLE, OWN, Banded, Scores, Squares, SumOverAxes
from constructions.matrix_units import Products, products_of
from constructions.normalisers import Softmax

SHOWN = 64
"""Pixels on each axis of the image that the representation states the cost for."""


@dataclass(frozen=True)
class Cost:
    """Multiplications, each with an addition, for one image.

    Args:
        padding: of the soft paddings.
        mixing: of the convolutions after them.
        dense: of the layer's definition: weights times values, and their mixing.
    """

    padding: int
    mixing: int
    dense: int

    @property
    def total(self) -> int:
        """What the lowered layer multiplies."""
        return self.padding + self.mixing

    def __str__(self) -> str:
        return f"{self.total:.3g} multiply-adds, dense {self.dense:.3g}"


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

    def taps(self, queries: Lattice) -> Taps:
        """Where their targets stand, and which of them each head is asked for."""
        origin, shape, spacing, stride, dilation, places = [], [], [], [], [], []
        for axis, shifts in enumerate(zip(*self.shifts, strict=True)):
            low, size = min(shifts), queries.shape[axis]
            step = queries.spacing[axis] if size > 1 else 0
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
            return _convolved(at_targets, kernel, size, self.stride, self.dilation)
        ones = (1,) * len(self.stride)
        total: Tensor | None = None
        for place, matrix in zip(self.places, matrices, strict=True):
            seen = at_targets
            for axis, tap in enumerate(place):
                first, step = tap * self.dilation[axis], self.stride[axis]
                rows = torch.arange(self.outputs[axis], device=seen.device) * step + first
                seen = seen.index_select(2 + axis, rows)
            mixed = _convolved(seen, matrix.unsqueeze(0), ones, ones, ones)
            total = mixed if total is None else total + mixed
        assert total is not None
        return total


def _flat(place: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The terms of a row-major number."""
    return [p * math.prod(shape[axis + 1 :]) for axis, p in enumerate(place)]


def _convolved(
    image: Tensor,
    kernel: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """torch's convolution with (taps, G, D_in / G, D_out / G)."""
    _, groups, _, width = kernel.shape
    weight = kernel.permute(1, 3, 2, 0).reshape(groups * width, -1, *size)
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    return convolution(image, weight, None, stride=stride, dilation=dilation, groups=groups)


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
    paddings: tuple[Banded, ...]
    taps: Taps
    matrices: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """What is added."""
        if self.value is None:
            return self.taps(self.matrices, self.paddings[0](values))
        read = _mixed(self.value, values)
        batch, parts, grid = len(read), len(self.value), read.shape[2:]
        by_head = read.reshape(batch, parts, len(self.paddings), -1, *grid).unbind(2)
        seen = [
            padding(head.reshape(batch, -1, *grid)).reshape(batch, parts, -1, *self.taps.outputs)
            for padding, head in zip(self.paddings, by_head, strict=True)
        ]
        return self.taps(self.matrices, torch.cat(seen, dim=2).flatten(1, 2))


def _mixed(matrix: Tensor, values: Tensor) -> Tensor:
    """A matrix for each pixel, (G, D_in / G, D_h), applied to (N, D_in, *shape)."""
    ones = (1,) * (values.dim() - 2)
    return _convolved(values, matrix.unsqueeze(0), ones, ones, ones)


@dataclass(frozen=True)
class Stored:
    """Moduli of matrices, and what the stored ones may err."""

    size: Tensor
    error: Tensor


class Lowered(nn.Module):
    """A positional layer as soft paddings and convolutions; made by `lower`, or `from_scores`.

    It is called as the layer it stands for. It holds a copy of the layer's numbers, as they were.

    Args:
        groups: the heads, by what they share; those of a group may be taken apart.
        value: W_val of all heads, (H, G, D_in / G, D_h); its dtype is the layer's.
        output: W_out, (H, G, D_h, D_out / G).
        bias: b_out, (D_out,), or None.
        geometry: where pixels and queries stand.
        border: what stands beyond the edge.
        boundary: whether that is made of keys.
        depthwise: whether every channel of the input is treated alike and apart.
        tolerance: the mass that a window may leave out; None for the dtype's unit roundoff.
    """

    value: Tensor
    output: Tensor
    bias: Tensor | None

    def __init__(
        self,
        *,
        groups: Sequence[Group],
        value: Tensor,
        output: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        border: PaddingMode,
        boundary: Boundary,
        depthwise: bool = False,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.tolerance = unit_roundoff(value.dtype) if tolerance is None else float(tolerance)
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"tolerance is {tolerance}; accepted: from 0, for no window, to less than 1"
            )
        _, _, inputs, width = value.shape
        parts = [group.parts(inputs, width, output.shape[3]) for group in groups]
        self.head_groups = tuple(part for group in parts for part in group)
        self.geometry = geometry
        self.border = border
        self.boundary_rule = boundary
        self.depthwise = depthwise
        for name, tensor in (("value", value), ("output", output), ("bias", bias)):
            copy = None if tensor is None else tensor.detach().clone()
            self.register_buffer(name, copy, persistent=False)
        self._ready: tuple[tuple[object, ...], list[Step]] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's values."""
        return self.value.dtype

    @classmethod
    def from_scores(
        cls,
        weight: Tensor,
        value: Tensor,
        output: Tensor,
        bias: Tensor | None = None,
        *,
        tolerance: float | None = None,
    ) -> Lowered:
        """The layer with the scores w_h · (δ, ‖δ‖²), as a gated head of ConViT has them.

        These are -a ‖δ - Δ‖² up to a constant, with the real a = -w_last and Δ = w / 2a. Keys and
        queries are the pixels, in natural units, and nothing stands beyond the edge. A bias of the
        scores cancels. Source: arXiv 2103.10697, eqs. 4 to 7.

        Args:
            weight: (H, d + 1), that of ConViT's `pos_proj`: the displacement δ = k - q with the
                last axis first, and then its square.
            value: W_val, (H, D_in, D_h), whose dtype the layer has; a gate is a factor of it.
            output: W_out, (H, D_h, D_out).
            bias: (D_out,) or None.
            tolerance: as in `lower`.

        Raises:
            ValueError: a shape, or a head whose weight of the square is not negative.
        """
        d = weight.shape[-1] - 1
        if weight.dim() != 2 or d not in (1, 2, 3):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; accepted: (heads, d + 1), d from 1 to 3"
            )
        for name, tensor in (("value", value), ("output", output)):
            if tensor.dim() != 3 or len(tensor) != len(weight):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; accepted: three sizes, the first of "
                    f"them {len(weight)}, a matrix for each head"
                )
        if value.shape[2] != output.shape[1]:
            raise ValueError(
                f"value has shape {tuple(value.shape)} and output {tuple(output.shape)}; accepted: "
                "(H, D_in, D_h) and (H, D_h, D_out)"
            )
        check_format(value.dtype, "value")
        given = weight.detach().to("cpu", DOUBLE)
        coefficients = torch.cat([given[:, -1:], given[:, :-1].flip(1)], dim=1)
        slack = coefficients.abs() * 2 * unit_roundoff(DOUBLE)
        slack[:, 0] = 0.0
        ones = (1,) * d
        zeros = (0,) * d
        return cls(
            groups=_grouped(_squares(coefficients, slack, None, "weight")),
            value=value.unsqueeze(1),
            output=output.to(value.dtype).unsqueeze(1),
            bias=bias,
            geometry=Geometry(ones, ones, zeros, zeros, ones, ones, zeros, transposed=False),
            border=Zeros(),
            boundary=Natural(),
            tolerance=tolerance,
        )

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (N, D_in, *spatial) or (D_in, *spatial), of the layer's dtype.
            output_size: of a transposed convolution, as torch takes it.

        Returns:
            (N, D_out, *output) or (D_out, *output).

        Raises:
            ValueError: as the layer does.
        """
        view, values = self._seen(x, output_size)
        total, *others = (step(values) for step in self._steps(view))
        for other in others:
            total = total + other
        if self.bias is not None:
            total = total + self.bias.to(total.dtype).reshape(-1, *(1 for _ in view.queries.shape))
        return self._shaped(total.to(self.dtype), x)

    def error_bound(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """How far the output can be from the layer's own function, computed without any error.

        Equations (9) to (11) and (15) to (17) of the theorem: what windows leave out, and rounding.

        Args:
            x: as in `forward`, finite.
            output_size: as in `forward`.

        Returns:
            float64, on the CPU, of the shape of the output; inf where a sum may overflow.
        """
        with torch.no_grad():
            view, values = self._seen(x.detach(), output_size)
            keys, exact = self.boundary_rule.keys(view), accumulator(self.dtype)
            values = values.to("cpu", DOUBLE)
            ones = (1,) * len(keys.shape)
            outputs = self.output.shape[1] * self.output.shape[3]
            total = torch.zeros(len(values), outputs, *view.queries.shape, dtype=DOUBLE)
            if self.bias is not None:
                total = total + self.bias.to("cpu", DOUBLE).abs().reshape(-1, *ones)
            error, terms = torch.zeros_like(total), 1 + len(self.head_groups)
            formed, largest = self._formed(), 0.0
            for group in self.head_groups:
                taps = group.taps(view.queries)
                pixels, wrong, matrices = self._read(group, values)
                strayed, seen = self._strayed(group, keys, view.queries, pixels, wrong)
                stored = matrices.size + matrices.error
                error = error + taps(stored, strayed) + taps(matrices.error, seen + strayed)
                total = total + taps(stored, seen + strayed)
                if total.numel():
                    largest = max(largest, float((seen + strayed).max()) + float(stored.max()))
                terms += taps.count * stored.shape[2]
            growth = formed.growth(terms)
            error = error + growth * total + formed.lost(terms, largest)
            overflow = total * (1 + growth) > torch.finfo(exact).max
            error = self._shaped(error.masked_fill(overflow, math.inf), x)
            y = self(x, output_size).to("cpu", DOUBLE).abs()
            if self.dtype != exact:
                u = unit_roundoff(self.dtype)
                error = error + u / (1 - u) * y + 2 * smallest_subnormal(self.dtype)
            return torch.where(y.isfinite(), error * OWN, math.inf)

    def _formed(self) -> Products:
        """How the layer's device forms its sums of products, as torch's flags are now."""
        return products_of("convolution", accumulator(self.dtype), self.value.device.type)

    def _is_narrow(self, group: Group) -> bool:
        """Whether the one head of a group reads fewer channels than the pixels have."""
        return len(group.heads) == 1 and self.value.shape[3] < self.value.shape[2]

    def _matrices(self, group: Group) -> tuple[Tensor | None, Tensor]:
        """What is applied before P, and after it, in float64: W_val and W_out, or their product."""
        heads = list(group.heads)
        value, output = self.value[heads].to(DOUBLE), self.output[heads].to(DOUBLE)
        return (value[0], output) if self._is_narrow(group) else (None, value @ output)

    def _read(self, group: Group, values: Tensor) -> tuple[Tensor, Tensor, Stored]:
        """Equation (16): what a group reads of the pixels, what that may err, and its matrices."""
        exact = accumulator(self.dtype)
        first, after = (None if t is None else t.cpu() for t in self._matrices(group))
        assert after is not None
        if first is not None:
            terms = first.shape[1]
            size = _mixed(first.abs(), values.abs()) * (1 + gamma(terms + 1, DOUBLE))
            formed = self._formed()
            wrong = (formed.growth(terms + 1) + gamma(terms + 1, DOUBLE)) * size
            lost = (1 + values.abs().amax()) * formed.lost(terms, 1 + float(first.abs().max()))
            return _mixed(first, values), wrong + lost, Stored(after.abs(), 0 * after)
        heads = list(group.heads)
        value, output = (t[heads].to("cpu", DOUBLE).abs() for t in (self.value, self.output))
        product = value @ output
        own = gamma(value.shape[-1] + 1, DOUBLE) * product
        cast = 0.0 if exact == DOUBLE else unit_roundoff(exact)
        error = own + cast * (after.abs() + own) + smallest_subnormal(exact)
        return values, torch.zeros_like(values), Stored(after.abs(), error)

    def _strayed(
        self, group: Group, keys: Lattice, queries: Lattice, pixels: Tensor, wrong: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Equations (9) and (15): what P may err at the targets, and what it sees of moduli."""
        exact, has_sink = accumulator(self.dtype), group.scores.has_sink
        padding = group.scores.padding(keys, group.taps(queries).targets, self.tolerance)
        wide = pixels.flatten(2)
        low, high = wide.amin(dim=-1), wide.amax(dim=-1)
        if has_sink:
            low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        size = pixels.abs() + wrong
        largest = size.flatten(2).amax(dim=-1).reshape(*low.shape, *(1 for _ in keys.shape))
        spread = (high - low).reshape(largest.shape) + 2 * wrong.amax()
        seen = padding(size)
        sizes = [max(s.columns[1] - s.columns[0] for s, _ in f) for f in padding.factors]
        rounding = head_rounding(
            seen,
            largest,
            float(math.prod(sizes)),
            sizes,
            DOUBLE,
            score_error=group.score_error(keys, queries),
            rescaled=has_sink,
        )
        if exact != DOUBLE:
            steps = len(sizes) + 2 * has_sink
            relative, formed = gamma(steps, exact), self._formed()
            for columns in sizes:
                once = formed.growth(columns)
                relative += once + relative * once
            lost = 4 * formed.lost(sum(sizes) + 1, 1.0) * (1 + relative) * (1 + largest)
            rounding = rounding + relative * (seen + rounding) + lost
        return padding.outside * spread + rounding + padding(wrong), seen

    def cost(self, spatial_shape: Sequence[int]) -> Cost:
        """What the layer multiplies for one image of a shape, counted before it runs.

        Raises:
            ValueError: the shape leaves no output.
        """
        shape = tuple(int(n) for n in spatial_shape)
        if len(shape) != self.geometry.dimension:
            raise ValueError(f"spatial_shape is {shape}; accepted: {self.geometry.dimension} sizes")
        view = View.of(torch.empty(1, 1, *shape, device="meta"), self.geometry)
        keys, queries = self.boundary_rule.keys(view), view.queries
        heads, blocks, inputs, width = self.value.shape
        outputs = self.output.shape[3]
        padding = mixing = 0
        for group in self.head_groups:
            taps, narrow = group.taps(queries), self._is_narrow(group)
            read = width if narrow else inputs
            mixing += blocks * (inputs * width * keys.size if narrow else 0)
            mixing += blocks * taps.count * queries.size * read * outputs
            grid = list(keys.shape)
            for axis in range(len(grid)):
                spans = group.scores.spans(axis, keys, taps.targets, self.tolerance)
                others = math.prod(n for other, n in enumerate(grid) if other != axis)
                padding += blocks * read * others * sum(span.size for span in spans)
                grid[axis] = taps.targets.shape[axis]
        each = keys.size * inputs + min(inputs * outputs, width * (inputs + outputs))
        dense = heads * queries.size * blocks * each
        return Cost(padding, mixing, dense)

    def extra_repr(self) -> str:
        """Describe the groups, and what they cost."""
        shape = (SHOWN,) * self.geometry.dimension
        lines = [f"heads={len(self.value)}, groups={len(self.head_groups)}"]
        keys = Lattice.box(shape)
        for group in self.head_groups:
            widths = [group.scores.width(a, keys, self.tolerance) for a in range(len(shape))]
            window = " x ".join("all" if w >= SHOWN - 1 else str(2 * w + 1) for w in widths)
            precision = getattr(group.scores, "precision", None)
            named = "" if precision is None else f"precision={precision:g}, "
            lines.append(f"{named}heads={len(group.heads)}, window={window}")
        with contextlib.suppress(ValueError):  # the image is too small for the kernel
            lines.append(f"cost at {' x '.join(map(str, shape))}: {self.cost(shape)}")
        return "\n".join(lines)

    def _seen(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[View, Tensor]:
        """The input on its lattices, and what stands on the keys, in the accumulator's format."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
        channels = self.value.shape[1] * self.value.shape[2]
        expected = None if self.depthwise else channels
        shape = checked_spatial_shape(x, expected, self.geometry.dimension)
        if x.dtype != self.dtype:
            raise ValueError(f"x has dtype {x.dtype}; accepted: {self.dtype}, the layer's")
        geometry = self.geometry
        if output_size is not None:
            geometry = geometry.with_output_size(shape, output_size)
        image = x if x.dim() == len(shape) + 2 else x.unsqueeze(0)
        if self.depthwise:
            image = image.flatten(0, 1).unsqueeze(1)
        view = View.of(image, geometry)
        check_reach(self.border, view.pixels, view.targets)
        values = self.boundary_rule.values(view, self.border)
        return view, values.to(accumulator(self.dtype))

    def _shaped(self, y: Tensor, x: Tensor) -> Tensor:
        """The output in the shape that the input asks for."""
        batched = x.dim() == self.geometry.dimension + 2
        if self.depthwise:
            y = y.reshape(*x.shape[: 1 + batched], *y.shape[2:])
            return y
        return y if batched else y.squeeze(0)

    def _steps(self, view: View) -> list[Step]:
        """The groups on the lattices of an input; those of the last input are kept."""
        keys, device = self.boundary_rule.keys(view), view.image.device
        asked = keys, view.queries, device, self.dtype
        if self._ready is not None and self._ready[0] == asked:
            return self._ready[1]
        exact, queries = accumulator(self.dtype), view.queries

        def padding(group: Group) -> Banded:
            whole = group.scores.padding(keys, group.taps(queries).targets, self.tolerance)
            return whole.to(device, exact)

        steps, narrow = [], [group for group in self.head_groups if self._is_narrow(group)]
        for group in self.head_groups:
            if group not in narrow:
                after = self._matrices(group)[1].to(exact)
                steps.append(Step(None, (padding(group),), group.taps(queries), after))
        if narrow:
            # Heads that share no P are concatenated, as attention has it.
            heads = [group.heads[0] for group in narrow]
            value = torch.cat(list(self.value[heads].to(exact)), dim=-1)
            output = torch.cat(list(self.output[heads].to(exact)), dim=-2).unsqueeze(0)
            paddings = tuple(padding(group) for group in narrow)
            steps.append(Step(value, paddings, narrow[0].taps(queries), output))
        self._ready = asked, steps
        return steps


def lower(layer: MultiHeadSelfAttention, *, tolerance: float | None = None) -> Lowered:
    """A positional attention layer, as trained or edited, at nearly a convolution's cost.

    Each head may have a real shift and a positional key of its own. Heads are grouped by their
    precision, and by what their shifts have beyond whole pixels: one soft padding for each group.
    The result is a copy of the numbers that the layer has now; it stands for the layer within its
    `error_bound`, and says its `cost`.

    Args:
        layer: an attention layer without content terms.
        tolerance: the mass that a window may leave out of a row; 0 for no window; None for the
            unit roundoff of the layer's dtype.

    Raises:
        TypeError: not an attention layer of this package.
        ValueError: live content terms, another normaliser than softmax, an encoding whose scores
            are no sums over axes or whose heads mix, or a head that does not fall off.
    """
    if not isinstance(layer, MultiHeadSelfAttention):
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: an attention layer of this package"
        )
    if layer.value.is_meta:
        raise ValueError("layer is on the meta device; accepted: one whose numbers can be read")
    for name in layer.content:
        if getattr(layer, name).detach().count_nonzero():
            raise ValueError(
                f"layer has live content terms ({name} is not zero), so that its weights depend on "
                "the input; accepted: positional terms alone"
            )
    if not isinstance(layer.normaliser, Softmax):
        raise ValueError(
            f"layer has the normaliser {layer.normaliser}, whose weights are not a quotient of two "
            "convolutions; accepted: softmax"
        )
    if isinstance(layer.encoding, Mixing):
        raise ValueError(
            f"layer has the encoding {layer.encoding}, whose heads mix all taps with gains of the "
            "grid; accepted: one that selects shifts"
        )
    value, output = layer.head_matrices()
    return Lowered(
        groups=_grouped(_scores_of(layer)),
        value=value,
        output=output,
        bias=layer.bias,
        geometry=layer.geometry,
        border=layer.border,
        boundary=layer.boundary_rule,
        depthwise=layer.in_channels is None,
        tolerance=tolerance,
    )


Scored = tuple[Scores, tuple[int, ...], tuple[float, ...]]
"""A score as a function of key minus target, the whole pixels of the shift, and the slack."""


def _grouped(heads: Sequence[Scored]) -> tuple[Group, ...]:
    """Heads of one score together, in the order of the first of each."""
    found: dict[Scores, list[int]] = {}
    for number, (scores, _, _) in enumerate(heads):
        found.setdefault(scores, []).append(number)
    return tuple(
        Group(
            scores,
            tuple(numbers),
            tuple(heads[n][1] for n in numbers),
            tuple(map(max, zip(*(heads[n][2] for n in numbers), strict=True))),
        )
        for scores, numbers in found.items()
    )


def _scores_of(layer: MultiHeadSelfAttention) -> list[Scored]:
    """What the positional parameters say."""
    shifts = layer.positional_shift.detach().to("cpu", DOUBLE)
    keys = layer.positional_key.detach().to("cpu", DOUBLE)
    identity = torch.eye(keys.shape[-1], dtype=DOUBLE)
    plain = (keys == identity).all(dim=-1).all(dim=-1)
    sharpness = layer.sharpness
    if isinstance(layer.encoding, Quadratic):
        _, named = layer.encoding.encode(shifts, shifts, Lattice.box((1,) * shifts.shape[1]))
        coefficients = (keys @ named.unsqueeze(-1)).squeeze(-1) * sharpness
        size = (keys.abs() @ named.abs().unsqueeze(-1)).squeeze(-1) * sharpness
        slack = size * gamma(keys.shape[-1] + 4, DOUBLE)
        slack[plain] = 0.0
        # The shift itself, where it is the peak: not divided and multiplied.
        known = [s if p else None for s, p in zip(shifts, plain.tolist(), strict=True)]
        sinks = (shifts, SINK_HEIGHT * sharpness) if layer.has_sink else None
        return _squares(coefficients, slack, sinks, "positional_key", known)
    if on_axes(layer.encoding, layer.geometry.dimension) is None:
        raise ValueError(
            f"layer has the encoding {layer.encoding}, whose scores are not known to be sums over "
            "axes; accepted: one that is a sum over axes, such as the quadratic"
        )
    if not plain.all() or not torch.equal(shifts, shifts.round()):
        raise ValueError(
            f"layer has positional keys or shifts edited off the structure of {layer.encoding}; "
            "accepted: identity matrices and whole pixels, or the quadratic encoding"
        )
    rows = [tuple(row) for row in shifts.tolist()]
    scores = SumOverAxes(layer.encoding, tuple(rows), sharpness, layer.has_sink)
    none = (0.0,) * (1 + shifts.shape[1])
    return [(scores, tuple(int(s) for s in row), none) for row in rows]


def _squares(
    coefficients: Tensor,
    slack: Tensor,
    sinks: tuple[Tensor, float] | None,
    argument: str,
    known: Sequence[Tensor | None] | None = None,
) -> list[Scored]:
    """Complete the square of each head's coefficients of ‖δ‖² and δ, (H, d + 1).

    Args:
        coefficients: float64.
        slack: what they may err.
        sinks: the shifts that the heads are named by, and how far below these a sink stands.
        argument: the name of what was given.
        known: the shifts of those heads whose coefficients were made of them.
    """
    found: list[Scored] = []
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
        found.append((scores, pixels, tuple(slack[head].tolist())))
    return found
