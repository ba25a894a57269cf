"""The factored evaluation: soft padding, then the convolution."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from constructions.encodings import Mixtures
from constructions.formats import accumulator, position_format
from constructions.geometry.lattice import Lattice
from constructions.geometry.view import View
from constructions.heads import Heads, Kind
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import below_peaks
from constructions.layer.state import OutputSize
from constructions.layer.structure import applied, kernel, products
from constructions.matrix_units import Operation
from constructions.normalisers import Softmax
from constructions.sources.native import NativeConvolution
from constructions.sources.stencil import convolve
from constructions.sources.sums import plain_sum
from constructions.tracing import is_traced


@dataclass(frozen=True)
class Factored:
    """Soft padding, then the ordinary convolution: the theorem that makes the layer practical.

    Shifts, sharpness and matrices are read from the layer's own parameters. The cost is that of
    the convolution and, unless the layer is saturated, of one small matrix product for each axis,
    for all heads together. Theorem: `attention_is_soft_padding_then_convolution`.
    """

    name: str = "factored"
    operation: Operation = "convolution"

    def objection(self, layer: MultiHeadSelfAttention) -> str | None:
        """The heads must share P, and P must factor or be a gather."""
        if layer.kind is Kind.MIXING:
            encoding = layer.encoding
            if not isinstance(encoding, Mixtures):
                return f"the heads of {encoding} mix all taps and share no operator"
            if not encoding.sees_taps_alone:
                return "the heads see all keys, and not those of their window alone"
        if not layer.shares_structure():
            return (
                "content terms or per-head positional parameters are trained, or edited off the "
                "structure that the heads share"
            )
        if layer.kind is Kind.MIXING:
            return None
        saturated = layer.positional_sharpness is None
        if saturated and layer.encoding.theorem is not None:
            return None
        by_axis = layer.encoding.axes(layer.geometry.dimension) is not None
        if saturated:
            if by_axis:
                return None
            return f"{layer.encoding} names no theorem by which its heads are one-hot"
        if not by_axis:
            return f"the scores of {layer.encoding} are not known to be sums over axes"
        if not isinstance(layer.normaliser, Softmax):
            return f"the weights of {layer.normaliser} are not known to be products over axes"
        return None

    def limit(self, layer: MultiHeadSelfAttention, view: View) -> str | None:
        """Any input will do."""
        return None

    def straight(
        self, layer: MultiHeadSelfAttention, x: Tensor, output_size: OutputSize
    ) -> Tensor | None:
        """The convolution itself, by torch's own call, of a saturated layer: a gather needs no P.

        Equal bits make equal gradients, so that it trains as the convolution does.
        """
        native = layer.native
        if not (
            isinstance(native, NativeConvolution)
            and layer.stores_kernel
            and layer.encoding.everywhere
            and layer.is_in_order()
            and layer.is_saturated(x.dtype)
        ):
            return None
        extra = None
        if not is_traced():
            extra = layer.output_padding_for(
                tuple(x.shape[-layer.geometry.dimension :]), output_size
            )
        elif output_size is not None:
            return None
        weight, bias, exact = layer.weight, layer.bias, accumulator(x.dtype)
        if x.dtype == weight.dtype == exact:
            return native(x, weight, bias, layer.groups, extra)
        wide = None if bias is None else bias.to(exact)
        return native(x.to(exact), weight.to(exact), wide, layer.groups, extra).to(x.dtype)

    def __call__(self, layer: MultiHeadSelfAttention, view: View) -> Tensor:
        """The output; see `Evaluation`."""
        dtype = view.image.dtype
        exact = accumulator(dtype)
        if layer.kind is Kind.MIXING:
            return mixed(layer, view)
        geometry, padding = layer.geometry, (0,) * layer.geometry.dimension
        if not layer.encoding.everywhere:
            layer.gap(view.keys)  # raises where there is none
        if not layer.is_saturated(dtype):
            at_targets = layer.soft_padding(view)(view.values.to(exact))
        elif layer.border.name == "zeros" and geometry.pads_evenly:
            at_targets, padding = view.image.to(exact), geometry.before
        else:
            at_targets = replace(view, image=view.image.to(exact)).at_targets
        if layer.kind is Kind.UNIFORM:  # one number for every channel
            return (at_targets * products(layer.heads, exact).reshape(())).to(dtype)
        bias = None if layer.bias is None else layer.bias.to(exact)
        if layer.stores_kernel and not geometry.transposed and layer.is_in_order():
            weight = layer.weight.to(exact)
        else:
            weight = kernel(layer.heads, geometry, exact)
        return convolve(geometry, weight, at_targets, bias, padding, layer.groups).to(dtype)


def mixed(layer: MultiHeadSelfAttention, view: View) -> Tensor:
    """The layer of heads that see the window alone: each is a convolution, alike for all channels.

    H (taps + D_out / G) products for a pixel and channel, where a convolution has taps D_out / G.
    Theorem: `heads_count_the_rank_of_the_kernel`, equation (26).
    """
    heads, geometry, exact = layer.heads, layer.geometry, accumulator(view.image.dtype)
    encoding, keys = heads.encoding, view.keys
    assert isinstance(encoding, Mixtures)
    weights = window_weights(heads, geometry.offsets(heads.shifts.device), keys)
    second = heads.second(keys)
    if second is not None:
        others, shares = second
        offsets = geometry.offsets(heads.shifts.device)
        weights = weights - shares.unsqueeze(1) * window_weights(others, offsets, keys)
    image = replace(view, image=view.image.to(exact)).at_targets
    channels, groups = image.shape[1], heads.groups
    matrices = applied(heads, keys, exact)  # (H, G, D_in / G, D_out / G)
    dimension = geometry.dimension
    pointwise = (F.conv1d, F.conv2d, F.conv3d)[dimension - 1]
    y: Tensor | None = None
    for head, matrix in zip(weights.to(image), matrices, strict=True):
        # One kernel for every channel: torch is fast where each is a group with a copy of it.
        kernel = head.reshape(1, 1, *geometry.kernel_size)
        copies = kernel.repeat(channels, 1, *(1 for _ in range(dimension)))
        seen = convolve(geometry, copies, image, groups=channels)
        last = matrix.transpose(1, 2).flatten(0, 1)
        last = last.reshape(*last.shape, *(1 for _ in range(dimension)))
        part = plain_sum(partial(pointwise, weight=last, groups=groups), seen)
        y = part if y is None else y + part
    assert y is not None
    if layer.bias is not None:
        y = y + layer.bias.to(exact).reshape(-1, *(1 for _ in range(dimension)))
    return y.to(view.image.dtype)


def window_weights(heads: Heads, offsets: Tensor, keys: Lattice) -> Tensor:
    """The softmax of each head at the taps, in float64, (H, taps); gains are its sums."""
    encoding = heads.encoding
    assert isinstance(encoding, Mixtures)
    position = position_format(heads.device)
    shifts = heads.shifts.detach().to(position)
    # A tap that no head sees may be, on a small torus, the pixel of one that is seen.
    places = list(encoding.places)
    scores = below_peaks(encoding, offsets[places].to(position), shifts, keys)
    gains = encoding.gains(shifts, keys).to(scores)
    weights = scores.new_zeros(len(scores), len(offsets))
    weights[:, places] = scores.exp() / gains.unsqueeze(-1)
    return weights
