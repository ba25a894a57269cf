"""Comparisons: a convolution and an input, the truth, and what attention may do to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.certificate.bounds import (
    ROUND_UP,
    HeadErrors,
    gamma,
    gap_mass,
    head_rounding,
    seen_moduli,
    soft_padding_mass,
    table_mass,
)
from constructions.encodings import Encoding, Window, on_axes, relative_score_error
from constructions.evaluation import EVALUATIONS
from constructions.formats import accumulator, check_format, unit_roundoff
from constructions.geometry.geometry import checked_spatial_shape
from constructions.geometry.lattice import Lattice, displacements
from constructions.geometry.padding_modes import PADDING_MODES, padded
from constructions.geometry.view import BOUNDARIES, Boundary, View
from constructions.geometry.window import WindowGeometry
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import below_peaks
from constructions.layer.soft_padding import SINK_HEIGHT, SoftPadding
from constructions.matrix_units import Products, products_of
from constructions.normalisers import Softmax
from constructions.sources import AnyConvolution, AnyPooling, stencil_of
from constructions.sources.stencil import Stencil, in_bands

NON_FINITE = "theorem T9, docs/theorems/dense_attention_spreads_non_finite_pixels.md"


@dataclass(frozen=True)
class Comparison:
    """A convolution or an average pooling, an input, and all that does not depend on the layer.

    Everything is float64 on the CPU, where torch's convolutions are plain sums.

    Args:
        stencil: of the convolution.
        exact: the convolution of the stored numbers, as torch shapes it.
        view: the input on its lattices, batched; channels in the batch for a pooling.
        limit: what the heads should see at the targets, (N, D_in, *targets.shape): a pixel, or
            for a pooling the mean over a window.
    """

    stencil: Stencil
    exact: Tensor
    view: View
    limit: Tensor

    @classmethod
    def of(
        cls,
        conv: AnyConvolution | AnyPooling,
        x: Tensor,
        output_size: Sequence[int] | None = None,
    ) -> Comparison:
        """Check the arguments and compute the truth.

        Raises:
            TypeError: conv or x is of another kind.
            ValueError: dtypes or devices differ, or a number is not finite.
        """
        stencil = stencil_of(conv, torch.float64).to("cpu", torch.float64)
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
        check_format(x.dtype, "x")
        wide = copy.deepcopy(conv).to("cpu", torch.float64)
        geometry = stencil.geometry
        channels = None if isinstance(geometry, WindowGeometry) else stencil.in_channels
        spatial_shape = checked_spatial_shape(x, channels, geometry.dimension)
        parameters = {f"conv.{name}": tensor.data for name, tensor in conv.named_parameters()}
        for name, tensor in parameters.items():
            if tensor.dtype != x.dtype or tensor.device != x.device:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}; "
                    "accepted: one dtype and one device"
                )
        for name, tensor in {"x": x, **parameters}.items():
            if tensor.numel() and not all(n.isfinite() for n in tensor.aminmax()):
                raise ValueError(
                    f"{name} has infinite or NaN entries; accepted: finite ones ({NON_FINITE})"
                )
        if output_size is not None:
            geometry = geometry.with_output_size(spatial_shape, output_size)
        image = x.detach().cpu().double()
        batch = image.reshape(-1, stencil.in_channels, *spatial_shape)
        view = View.of(batch, geometry)
        if isinstance(geometry, WindowGeometry):
            keys, values = _window_keys(view, geometry)
            limit = _uniform(view, keys, geometry)(values)
        else:
            limit = padded(view.image, view.pixels, view.targets, stencil.border)
        with torch.no_grad():
            exact = _by_torch(wide, image, output_size)
        return cls(stencil, exact, view, limit)

    def spread(self, *, has_sink: bool = False) -> Tensor:
        """The largest distance of a limit from any pixel, zeros of border and sink included."""
        both = torch.cat([self.limit.flatten(2), self.view.image.flatten(2)], dim=-1)
        if has_sink:  # its value is zero, whether or not a target of this image has left the grid
            both = F.pad(both, (0, 1))
        shape = (*both.shape[:2], *(1 for _ in self.limit.shape[2:]))
        highest, lowest = both.amax(-1).reshape(shape), both.amin(-1).reshape(shape)
        return torch.maximum(highest - self.limit, self.limit - lowest)

    def head_errors(self, layer: MultiHeadSelfAttention) -> HeadErrors:
        """What the heads of the construction do to this input at the layer's sharpness.

        Nothing but the layer's part in the construction is read: its encoding, normaliser,
        boundary, evaluation, sharpness and dtype.

        Raises:
            ValueError: the normaliser is not softmax, and the weights are not saturated.
        """
        if isinstance(self.stencil.geometry, WindowGeometry):
            return self._window_errors(layer, self.stencil.geometry)
        if layer.is_saturated(layer.dtype):
            return HeadErrors.none(self.limit)
        if not isinstance(layer.normaliser, Softmax):
            raise ValueError(
                f"layer has the normaliser {layer.normaliser} below its one-hot gap; accepted: "
                "softmax, or a saturated layer"
            )
        view, border, sharpness = self.view, self.stencil.border, layer.sharpness
        encoding, dimension = layer.encoding, self.stencil.geometry.dimension
        shifts = self.stencil.offsets.to("cpu", torch.float64)
        boundary: Boundary = BOUNDARIES[layer.boundary]
        has_sink = boundary.has_sink(border, self.stencil.geometry)
        keys, values = boundary.keys(view), boundary.values(view, border)
        largest = _largest(values)
        together = (keys.size + has_sink,)
        score_error = sharpness * relative_score_error(encoding, shifts, keys)
        parts = on_axes(encoding, dimension)
        streamed = EVALUATIONS[layer.evaluation].operation == "attention"
        if parts is None:
            if boundary.name == "natural" and border.name != "zeros":
                raise ValueError(
                    f"layer has the natural border {border.name!r} of {encoding}, whose scores are "
                    "not known to be sums over axes; accepted: a padded boundary, zeros, or a "
                    "saturated layer"
                )
            bound = self._mass(encoding, shifts, keys, sharpness, has_sink, score_error)
            strayed = bound / (1 + bound) * ROUND_UP * self.spread(has_sink=has_sink)
            rounding = head_rounding(
                largest.expand_as(strayed),
                largest,
                bound,
                together,
                layer.dtype,
                score_error=score_error,
                streamed=streamed,
                products=_applied_by(layer),
            )
            return HeadErrors(strayed, False, torch.zeros_like(strayed), rounding)

        padding = SoftPadding.of(
            parts,
            sharpness,
            keys,
            view.targets,
            gap=encoding.gap(shifts, keys),
            sink_height=SINK_HEIGHT if has_sink else None,
            dtype=torch.float64,
        )
        lit = torch.ones(1, 1, *view.pixels.shape)
        is_pixel = padded(lit, view.pixels, view.targets, border)[0, 0] > 0
        mass = soft_padding_mass(padding, is_pixel, sharpness, score_error)
        seen = seen_moduli(padding, values, accumulator(layer.dtype))

        def rounded(
            sizes: Sequence[int],
            dtype: torch.dtype,
            *,
            rescaled: bool,
            streamed: bool = False,
            products: Products | None = None,
        ) -> Tensor:
            return head_rounding(
                seen,
                largest,
                mass,
                sizes,
                dtype,
                score_error=score_error,
                rescaled=rescaled,
                streamed=streamed,
                products=products,
            )

        factored = layer.evaluation == "factored"
        return HeadErrors(
            deviation=padding(values) - self.limit,
            signed=True,
            evaluated=rounded(keys.shape, torch.float64, rescaled=has_sink),
            rounding=rounded(
                keys.shape if factored else together,
                layer.dtype,
                rescaled=factored and has_sink,
                streamed=streamed,
                products=_applied_by(layer),
            ),
        )

    def _mass(
        self,
        encoding: Encoding,
        shifts: Tensor,
        keys: Lattice,
        sharpness: float,
        has_sink: bool,
        score_error: float,
    ) -> float:
        """Bound on the off-limit mass of every head, from its scores at all displacements."""
        box = displacements(keys, self.view.queries).positions().double()
        below = below_peaks(encoding, box, shifts, keys) * (sharpness / encoding.gap(shifts, keys))
        elsewhere = (box != shifts.unsqueeze(1)).any(dim=-1)
        by_scores = table_mass(below, elsewhere, sharpness, score_error, has_sink=has_sink)
        return min(by_scores, gap_mass(sharpness, keys.size, has_sink=has_sink))

    def _window_errors(self, layer: MultiHeadSelfAttention, geometry: WindowGeometry) -> HeadErrors:
        """Those of a uniform head: it has no leak, but its weights 1/m round."""
        keys, values = _window_keys(self.view, geometry)
        padding = _uniform(self.view, keys, geometry)
        seen, largest = padding(values.abs()), _largest(values)
        ties = math.prod(geometry.window) - 1.0  # keys beside one, all as heavy

        def rounded(
            sizes: Sequence[int], dtype: torch.dtype, products: Products | None = None
        ) -> Tensor:
            return head_rounding(seen, largest, ties, sizes, dtype, products=products)

        # The layer stores window / divisor rounded, perhaps to float32 before it was moved.
        exact = self.stencil.matrices.item()
        stored = layer.mixing(torch.float64).detach().cpu().max().item()
        most = max(unit_roundoff(layer.dtype), unit_roundoff(torch.float32)) * abs(exact)
        constant = min(abs(stored - exact), most) / abs(exact)
        # The reference adds the window up and divides.
        reference = gamma(math.prod(geometry.window) + 1, torch.float64) * seen
        factored = layer.evaluation == "factored"
        return HeadErrors(
            deviation=torch.zeros_like(seen),
            signed=True,
            evaluated=rounded(keys.shape, torch.float64) + reference,
            rounding=rounded(
                keys.shape if factored else (keys.size,), layer.dtype, _applied_by(layer)
            )
            + constant * seen,
        )


def _applied_by(layer: MultiHeadSelfAttention) -> Products:
    """How the layer's device multiplies weights and values, as torch's flags are now."""
    device_type = layer.value.device.type
    if EVALUATIONS[layer.evaluation].operation == "attention":
        # Stock kernels are given the layer's own format.
        return products_of("attention", layer.dtype, device_type)
    return products_of("matmul", accumulator(layer.dtype), device_type)


def _by_torch(wide: nn.Module, image: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """torch's own convolution, its own padding included, in bands of rows."""
    if output_size is not None:
        exact: Tensor = wide(image, list(output_size))
        return exact
    if not isinstance(wide, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        exact = wide(image)
        return exact
    batched = image.dim() == wide.weight.dim()
    mode = "constant" if wide.padding_mode == "zeros" else wide.padding_mode
    padded = F.pad(
        image if batched else image.unsqueeze(0), wide._reversed_padding_repeated_twice, mode
    )
    bare = copy.copy(wide)
    bare.padding, bare.padding_mode = (0,) * len(wide.kernel_size), "zeros"
    extent = wide.dilation[0] * (wide.kernel_size[0] - 1) + 1
    exact = in_bands(bare, padded, wide.weight, extent, wide.stride[0])
    return exact if batched else exact.squeeze(0)


def _uniform(view: View, keys: Lattice, geometry: WindowGeometry) -> SoftPadding:
    """The operator of the one head of a pooling, the same at any sharpness."""
    parts = on_axes(Window(geometry.window), geometry.dimension)
    assert parts is not None
    return SoftPadding.of(
        parts, 1.0, keys, view.targets, gap=1.0, sink_height=None, dtype=torch.float64
    )


def _window_keys(view: View, geometry: WindowGeometry) -> tuple[Lattice, Tensor]:
    """The keys that share the attention of a uniform head, and what stands on them."""
    if geometry.counted == "pixels":
        return view.pixels, view.image
    return view.explicit_keys, padded(
        view.image, view.pixels, view.explicit_keys, PADDING_MODES["zeros"]
    )


def _largest(values: Tensor) -> Tensor:
    """R: the largest modulus in each channel of each image."""
    return (
        values.abs().flatten(2).amax(-1).reshape(*values.shape[:2], *(1 for _ in values.shape[2:]))
    )
