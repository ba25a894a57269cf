"""Comparisons: a convolution, an input, and the truth: what the one makes of the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions.certificate.uniform import window_means
from constructions.formats import check_format
from constructions.geometry.geometry import Geometry, checked_spatial_shape
from constructions.geometry.view import BOUNDARIES, PADDED, View, boundary_of
from constructions.geometry.window import WindowGeometry
from constructions.layer.inputs import is_autocast
from constructions.sources import AnyConvolution, AnyPooling, stencil_of
from constructions.sources.stencil import Stencil, in_bands
from constructions.sources.sums import by_taps, pays_by_taps

NON_FINITE = "theorem T9, docs/theorems/dense_attention_spreads_non_finite_pixels.md"


@dataclass(frozen=True)
class Comparison:
    """A convolution or an average pooling, an input, and all that does not depend on the layer.

    Everything is float64 on the CPU, where torch's convolutions are plain sums.

    Args:
        stencil: of the convolution.
        geometry: of the stencil, with the output size that was asked for.
        exact: the convolution of the stored numbers, as torch shapes it.
        view: the input on its lattices, batched, all keys explicit; for a pooling those that share
            the attention, and channels in the batch.
        limit: what the heads should see at the targets, (N, D_in, *targets.shape): a pixel, or
            for a pooling the mean over a window.
        window: the geometry, if it is that of a pooling.
    """

    stencil: Stencil
    geometry: Geometry
    exact: Tensor
    view: View
    limit: Tensor
    window: WindowGeometry | None

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
            ValueError: dtypes or devices differ, a number is not finite, or autocast is on.
        """
        stencil = stencil_of(conv).to("cpu", torch.float64)
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
        check_format(x.dtype, "x")
        _check_no_autocast(x.device.type)
        wide = copy.deepcopy(conv).to("cpu", torch.float64)
        geometry = stencil.geometry
        window = geometry if isinstance(geometry, WindowGeometry) else None
        channels = None if window is not None else stencil.in_channels
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
        boundary = PADDED if window is None else boundary_of(window)
        view = View.of(batch, geometry, stencil.border, boundary)
        limit = view.at_targets if window is None else window_means(view, window)
        with torch.no_grad():
            exact = _by_torch(wide, image, output_size)
        return cls(stencil, geometry, exact, view, limit, window)

    def spread(self, *, has_sink: bool = False) -> Tensor:
        """The largest distance of a limit from any pixel, zeros of border and sink included."""
        both = torch.cat([self.limit.flatten(2), self.view.image.flatten(2)], dim=-1)
        if has_sink:  # its value is zero, whether or not a target of this image has left the grid
            both = F.pad(both, (0, 1))
        shape = (*both.shape[:2], *(1 for _ in self.limit.shape[2:]))
        highest, lowest = both.amax(-1).reshape(shape), both.amin(-1).reshape(shape)
        return torch.maximum(highest - self.limit, self.limit - lowest)

    def seen_by(self, boundary: str) -> tuple[View, float | None]:
        """The input with the keys of a boundary, and the height of the sink, if there is one."""
        rule, border = BOUNDARIES[boundary], self.stencil.border
        view = View.of(self.view.image, self.geometry, border, rule)
        # The layer has its sink or not before it knows of an output size.
        return view, rule.sink(border, self.stencil.geometry)


def _check_no_autocast(device_type: str) -> None:
    """Raise a ValueError under autocast, where the numbers compared would not be those stored.

    A convolution rounds pixels and weights to autocast's format, the layer its pixels alone, and a
    module of others whatever it multiplies; so would the bound be, where it runs in float32.
    """
    for kind in {device_type, "cpu"}:
        if is_autocast(kind):
            wanted = torch.get_autocast_dtype(kind)
            raise ValueError(
                f"autocast is on for {kind}, and rounds what is compared to {wanted}; accepted: a "
                "call outside of it, or within torch.autocast(..., enabled=False), of the modules "
                f"and x as they are, or of all of them moved .to({wanted})"
            )


def _by_torch(wide: nn.Module, image: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """torch's own convolution, its own padding included: tap by tap, or in bands of rows."""
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
    if pays_by_taps(padded, wide.weight, wide.stride, wide.groups):
        exact = by_taps(padded, wide.weight, wide.dilation)
        if wide.bias is not None:
            exact = exact + wide.bias.reshape(-1, *(1 for _ in wide.kernel_size))
        return exact if batched else exact.squeeze(0)
    bare = copy.copy(wide)
    bare.padding, bare.padding_mode = (0,) * len(wide.kernel_size), "zeros"
    extent = wide.dilation[0] * (wide.kernel_size[0] - 1) + 1
    exact = in_bands(bare, padded, wide.weight, extent, wide.stride[0])
    return exact if batched else exact.squeeze(0)
