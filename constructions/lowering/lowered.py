"""The lowered layer: soft paddings and convolutions, its cost counted and its error certified."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from constructions.formats import (
    DOUBLE,
    OWN,
    accumulator,
    check_format,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.geometry.geometry import Geometry
from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import PaddingMode, Zeros
from constructions.geometry.view import NATURAL, Boundary, View
from constructions.layer.inputs import check_image, is_autocast, without_autocast
from constructions.layer.soft_padding import SoftPadding
from constructions.lowering.bound import Summands, error_bound
from constructions.lowering.groups import Group, Step, completed_squares, grouped
from constructions.lowering.state import Numbers, not_in_inference
from constructions.tracing import is_traced

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
class _Ready:
    """What is kept of the last input.

    Args:
        asked: what the steps depend on.
        steps: the groups on its lattices.
        made_of: the matrices, kept so that no other ones are taken for them.
    """

    asked: tuple[object, ...]
    steps: list[Step]
    made_of: tuple[Tensor, ...]


class Lowered(Numbers):
    """A positional layer as soft paddings and convolutions; made by `lower`, or `from_scores`.

    It is called as the layer it stands for. It holds a copy of the layer's numbers, as they were.

    Its state_dict has the matrices and the bias, and a digest of what they are laid out for: the
    groups, the geometry and the tolerance, which are not tensors. One that was lowered from a layer
    of the same positions takes it, and any other refuses it. The soft paddings of the last input
    are kept, except in traced code, where P is made of full matrices.

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
        exact = unit_roundoff(value.dtype) if tolerance is None else float(tolerance)
        if not 0 <= exact < 1:
            raise ValueError(
                f"tolerance is {tolerance}; accepted: from 0, for no window, to less than 1"
            )
        _, _, inputs, width = value.shape
        parts = [group.parts(inputs, width, output.shape[3]) for group in groups]
        head_groups = tuple(part for group in parts for part in group)
        rules = geometry, boundary, border, depthwise, exact
        super().__init__(value, output, bias, repr((head_groups, rules)))
        self.tolerance = exact
        self.head_groups = head_groups
        self.geometry = geometry
        self.border = border
        self.boundary_rule = boundary
        self.depthwise = depthwise
        self._ready: _Ready | None = None

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
            groups=grouped(completed_squares(coefficients, slack, None, "weight")),
            value=value.unsqueeze(1),
            output=output.to(value.dtype).unsqueeze(1),
            bias=bias,
            geometry=Geometry(ones, ones, zeros, zeros, ones, ones, zeros, transposed=False),
            border=Zeros(),
            boundary=NATURAL,
            tolerance=tolerance,
        )

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer.

        Args:
            input: (N, D_in, *spatial) or (D_in, *spatial), of the layer's dtype.
            output_size: of a transposed convolution, as torch takes it.

        Returns:
            (N, D_out, *output) or (D_out, *output); under autocast, of the autocast dtype.

        Raises:
            TypeError: as the layer does.
            ValueError: as the layer does.
        """
        self._check(input)
        if is_autocast(input.device.type):
            with without_autocast(self.dtype, input.device.type) as wanted:
                return self._applied(input.to(wanted), output_size)
        return self._applied(input, output_size)

    def _applied(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        """The output, of the input's dtype."""
        view, values = self._on_keys(x, output_size)
        total, *others = (step(values) for step in self._steps(view))
        for other in others:
            total = total + other
        if self.bias is not None:
            total = total + self.bias.to(total.dtype).reshape(-1, *(1 for _ in view.queries.shape))
        return self._shaped(total.to(x.dtype), x)

    def error_bound(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """How far the output can be from the layer's own function, computed without any error.

        Equations (9) to (11) and (15) to (17) of the theorem: what windows leave out, and rounding.

        Args:
            x: as in `forward`, finite.
            output_size: as in `forward`.

        Returns:
            float64, on the CPU, of the shape of the output; inf where a sum may overflow.

        Raises:
            TypeError: as `forward`.
            ValueError: as `forward`; or autocast is on.
        """
        self._check(x)
        if is_autocast(x.device.type):
            raise ValueError(
                "autocast is on; accepted: off, since the bound is that of the layer's own dtype, "
                f"{self.dtype}"
            )
        with torch.no_grad():
            view, values = self._on_keys(x.detach(), output_size)
            error = error_bound(
                Summands(self.head_groups, self.value, self.output, self.bias, self.tolerance),
                values.to("cpu", DOUBLE),
                view.keys,
                view.queries,
            )
            error = self._shaped(error, x)
            y = self(x, output_size).to("cpu", DOUBLE).abs()
            if self.dtype != accumulator(self.dtype):
                u = unit_roundoff(self.dtype)
                error = error + u / (1 - u) * y + 2 * smallest_subnormal(self.dtype)
            return torch.where(y.isfinite(), error * OWN, math.inf)

    def cost(self, spatial_shape: Sequence[int]) -> Cost:
        """What the layer multiplies for one image of a shape, counted before it runs.

        Raises:
            ValueError: the shape leaves no output.
        """
        shape = tuple(int(n) for n in spatial_shape)
        if len(shape) != self.geometry.dimension:
            raise ValueError(f"spatial_shape is {shape}; accepted: {self.geometry.dimension} sizes")
        view = self._view(torch.empty(1, 1, *shape, device="meta"), self.geometry)
        keys, queries = view.keys, view.queries
        heads, blocks, inputs, width = self.value.shape
        outputs = self.output.shape[3]
        padding = mixing = 0
        for group in self.head_groups:
            taps, narrow = group.taps(queries), group.is_narrow(self.value)
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
            precision = group.scores.precision
            named = "" if precision is None else f"precision={precision:g}, "
            lines.append(f"{named}heads={len(group.heads)}, window={window}")
        with contextlib.suppress(ValueError):  # the image is too small for the kernel
            lines.append(f"cost at {' x '.join(map(str, shape))}: {self.cost(shape)}")
        return "\n".join(lines)

    def _check(self, x: Tensor) -> None:
        """Raise unless x is an image that the layer takes."""
        channels = self.value.shape[1] * self.value.shape[2]
        expected = None if self.depthwise else channels
        check_image(x, self.value, expected, self.geometry.dimension)

    def _on_keys(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[View, Tensor]:
        """The input on its lattices, and what stands on the keys, in the accumulator's format."""
        geometry, d = self.geometry, self.geometry.dimension
        if output_size is not None:
            geometry = geometry.with_output_size(tuple(x.shape[-d:]), output_size)
        image = x if x.dim() == d + 2 else x.unsqueeze(0)
        if self.depthwise:
            image = image.flatten(0, 1).unsqueeze(1)
        view = self._view(image, geometry)
        return view, view.values.to(accumulator(self.dtype))

    def _view(self, image: Tensor, geometry: Geometry) -> View:
        return View.of(image, geometry, self.border, self.boundary_rule)

    def _shaped(self, y: Tensor, x: Tensor) -> Tensor:
        """The output in the shape that the input asks for."""
        batched = x.dim() == self.geometry.dimension + 2
        if self.depthwise:
            y = y.reshape(*x.shape[: 1 + batched], *y.shape[2:])
            return y
        return y if batched else y.squeeze(0)

    def _steps(self, view: View) -> list[Step]:
        """The groups on the lattices of an input; those of the last input are kept.

        What is kept serves inputs with gradients too, wherever it was made.
        """
        versions = None if is_traced() else self.versions()
        if versions is None:
            return self._made(view)
        asked = view.keys, view.queries, view.image.device, self.dtype, versions
        if self._ready is None or self._ready.asked != asked:
            with not_in_inference():
                self._ready = _Ready(asked, self._made(view), (self.value, self.output))
        return self._ready.steps

    def _made(self, view: View) -> list[Step]:
        """The groups on the lattices of an input."""
        keys, queries, device = view.keys, view.queries, view.image.device
        exact = accumulator(self.dtype)

        def padding(group: Group) -> SoftPadding:
            whole = group.scores.padding(keys, group.taps(queries).targets, self.tolerance)
            return whole.to(device, exact)

        steps, narrow = [], [group for group in self.head_groups if group.is_narrow(self.value)]
        for group in self.head_groups:
            if group not in narrow:
                _, after = group.matrices(self.value, self.output)
                steps.append(Step(None, (padding(group),), group.taps(queries), after.to(exact)))
        if narrow:
            # Heads that share no P are concatenated, as attention has it.
            heads = [group.heads[0] for group in narrow]
            value = torch.cat(list(self.value[heads].to(exact)), dim=-1)
            output = torch.cat(list(self.output[heads].to(exact)), dim=-2).unsqueeze(0)
            paddings = tuple(padding(group) for group in narrow)
            steps.append(Step(value, paddings, narrow[0].taps(queries), output))
        return steps
