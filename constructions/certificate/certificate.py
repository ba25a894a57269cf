"""Certificates: a layer held against the exact convolution, output by output.

Theorem: `layer_error_is_certified`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from constructions.certificate.bounds import layer_bound
from constructions.certificate.comparison import Comparison
from constructions.certificate.head_errors import HeadErrors
from constructions.certificate.mixing import mixing_bound
from constructions.certificate.mixtures import mixtures_bound
from constructions.certificate.narrow import Applied, applied_of
from constructions.certificate.reproduction import where_to_read
from constructions.certificate.selecting import selecting_errors
from constructions.certificate.stacks import Stack, layers_in, stack_bound
from constructions.certificate.uniform import uniform_errors
from constructions.encodings import Mixing, Mixtures
from constructions.evaluation import EVALUATIONS
from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import Products, products_of
from constructions.sources import AnySource


@dataclass(frozen=True)
class Certificate:
    """What a layer differs from a convolution by, and what it may.

    All tensors are float64, on the CPU, of the output's shape.

    Args:
        error: |layer - convolution|, the convolution being that of the stored numbers over the
            reals, computed in float64.
        leak: the part of the bound that the reals have: attention to other keys.
        rounding: the part that floating point adds, the reference's own included. It is a worst
            case and grows with the number of terms; inf where the layer's sums may overflow.
        conv_error: |torch's convolution - convolution|, for comparison; NaN where torch has none,
            such as average pooling of volumes in half precision on a CPU, or may crash.
    """

    error: Tensor
    leak: Tensor
    rounding: Tensor
    conv_error: Tensor

    @property
    def bound(self) -> Tensor:
        """What the error may be: leak + rounding."""
        return self.leak + self.rounding

    @property
    def ratio(self) -> float:
        """The largest error over bound; 0/0 is 0, a positive error over a zero bound is inf."""
        return float(self.quotient().max()) if self.error.numel() else 0.0

    def quotient(self) -> Tensor:
        """Error over bound at every output; 0 where the bound is inf, an overflow."""
        quotient = self.error / self.bound
        return quotient.masked_fill((self.error == 0) | self.bound.isinf(), 0.0)

    @property
    def holds(self) -> bool:
        """Whether the error is within the bound at every output."""
        return self.ratio <= 1.0

    def __repr__(self) -> str:
        def largest(part: Tensor) -> str:
            return f"{float(part.max()) if part.numel() else 0.0:.3g}"

        return (
            f"Certificate(holds={self.holds}, ratio={self.ratio:.3g}, "
            f"error={largest(self.error)}, bound={largest(self.bound)}, "
            f"leak={largest(self.leak)}, rounding={largest(self.rounding)}, "
            f"conv_error={largest(self.conv_error)}; largest entries)"
        )


def certify(
    layer: MultiHeadSelfAttention | nn.Sequential,
    conv: AnySource,
    x: Tensor,
    *,
    output_size: Sequence[int] | None = None,
) -> Certificate:
    """Compare a layer with the exact convolution of the stored numbers, and bound the difference.

    The bound speaks of the attention layer that the construction builds from `conv` at the layer's
    sharpness; any other layer is judged by it. It assumes gradual underflow, sums in any order by
    rounded additions or fused multiply-adds, and an exponential within 20 units in the last place.
    Where torch's flags, as they are now, let x's device round the operands of float32 products, as
    TF32 does, the bound allows for that and for the sums of matrix units. Without oneDNN torch may
    transform its own convolution on a CPU (NNPACK), as `conv_error` then shows; the layer asks for
    plain sums.

    Layers in a sequence, as a depth above 1 makes them, are bounded each on what it receives, and
    what each may err by is carried through those after it (theorem `depth_buys_heads`).

    Args:
        layer: an attention layer, or a sequence of them, as `attention_from_conv` returns it.
        conv: the convolution it is compared with.
        x: a finite input of both, batched or not.
        output_size: of a transposed convolution, as torch takes it.

    Returns:
        The certificate; it holds for an empty batch.

    Raises:
        TypeError: layer or conv is of another kind.
        ValueError: x is not finite; dtypes or devices differ; autocast is on; content terms are
            live; or the normaliser is not softmax and the weights are not saturated.
    """
    layers = (layer,) if isinstance(layer, MultiHeadSelfAttention) else layers_in(layer)
    if not layers:
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: an nn.Sequential of layers, or a "
            "MultiHeadSelfAttention; assert_equivalent takes any module"
        )
    return certificate_of(layer, conv, x, None, output_size)


def certificate_of(
    layer: MultiHeadSelfAttention | nn.Sequential,
    conv: AnySource,
    x: Tensor,
    y: Tensor | None,
    output_size: Sequence[int] | None,
) -> Certificate:
    """That of what a layer has made of an input, y; None for what it makes of it now."""
    if isinstance(layer, MultiHeadSelfAttention):
        comparison = compared(layer, conv, x, output_size)
        bound = bound_of(comparison, layer, x.dtype)
    else:
        comparison, bound = compared_stack(layer, conv, x, output_size)
    y = called(layer, x, output_size) if y is None else y
    check_shape(y, comparison, lambda: where_to_read(layer, conv, x, transforms=False))
    return held_against(comparison, bound, y, conv, x, output_size)


def compared_stack(
    layers: nn.Sequential, conv: AnySource, x: Tensor, output_size: Sequence[int] | None = None
) -> tuple[Comparison, tuple[Tensor, Tensor]]:
    """The convolution and its input, and the bound of layers one after another."""
    if output_size is not None:
        raise ValueError(
            f"output_size is {output_size}; accepted: None for layers in a sequence, which is "
            "called with an image alone"
        )
    for layer in layers_in(layers):
        _check_content(layer)
    comparison = Comparison.of(conv, x)
    for layer in layers_in(layers):
        _check_fits(layer, x)
    stack = Stack.of(layers, conv)
    if stack is None:
        raise ValueError(
            f"layer is a sequence of {len(layers)}; accepted: what attention_from_conv(conv, "
            f"depth={len(layers)}) makes; assert_equivalent takes any module"
        )
    return comparison, stack_bound(comparison, stack, x, bound_of)


def compared(
    layer: MultiHeadSelfAttention,
    conv: AnySource,
    x: Tensor,
    output_size: Sequence[int] | None = None,
) -> Comparison:
    """The convolution and its input, checked to be such as the layer can be held against.

    Raises:
        TypeError: as `certify`.
        ValueError: as `certify`.
    """
    _check_content(layer)
    comparison = Comparison.of(conv, x, output_size)
    _check_fits(layer, x)
    return comparison


def _check_content(layer: MultiHeadSelfAttention) -> None:
    """Raise a ValueError unless a layer's scores are of positions alone."""
    if layer.has_live_content():
        raise ValueError("layer has live content terms; accepted: scores of positions alone")


def _check_fits(layer: MultiHeadSelfAttention, x: Tensor) -> None:
    """Raise a ValueError unless a layer has the dtype and the device of the input."""
    for what, of_layer, of_x in (
        ("dtype", layer.dtype, x.dtype),
        ("device", layer.numbers.device, x.device),
    ):
        if of_layer != of_x and not (what == "dtype" and layer.in_channels is None):
            raise ValueError(f"layer has {what} {of_layer}, x has {of_x}; accepted: the same")


def bound_of(
    comparison: Comparison, layer: MultiHeadSelfAttention, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Leak and rounding, by the kind of the layer's heads: mixing, uniform or selecting.

    Nothing else asks for the kind.
    """
    encoding, window = layer.encoding, comparison.window
    applied: Applied | None = None
    if window is not None:
        heads = uniform_errors(comparison.stencil, comparison.view, window, layer, dtype)
    elif isinstance(encoding, Mixtures):
        return mixtures_bound(comparison, encoding, layer)
    elif isinstance(encoding, Mixing):
        return mixing_bound(comparison, encoding, layer)
    else:
        applied = applied_of(comparison.stencil, layer)
        heads = selecting_errors(comparison, layer, None if applied is None else applied.shifts)
    exact = accumulator(dtype)
    # One-hot heads hand on pixels as they are stored.
    handed_on = dtype if layer.is_saturated(dtype) else exact
    return judged_by_heads(layer, dtype, handed_on, applied)(comparison, heads)


def judged_by_heads(
    layer: MultiHeadSelfAttention,
    dtype: torch.dtype,
    handed_on: torch.dtype,
    applied: Applied | None = None,
) -> Callable[[Comparison, HeadErrors], tuple[Tensor, Tensor]]:
    """The bound of a layer by what its heads do.

    Args:
        layer: an attention layer whose heads select taps.
        dtype: of its input.
        handed_on: the format of what its heads see.
        applied: what its heads apply at each tap, if it is not the tap's matrix.
    """
    exact = accumulator(dtype)
    operation = EVALUATIONS[layer.evaluation].operation
    products = products_of(operation, exact, layer.numbers.device.type)
    return partial(
        bound_by_heads,
        sums=exact,
        stored=dtype,
        products=products,
        operands=(dtype if applied is None else exact, handed_on),
        applied=applied,
    )


def bound_by_heads(
    comparison: Comparison,
    heads: HeadErrors,
    sums: torch.dtype,
    stored: torch.dtype,
    products: Products,
    operands: Sequence[torch.dtype],
    applied: Applied | None = None,
) -> tuple[Tensor, Tensor]:
    """Leak and rounding of a layer whose heads select taps, of the output's shape."""
    exact = comparison.exact
    spatial = exact.shape[2 - comparison.limit.dim() :]
    images = exact.reshape(-1, comparison.stencil.out_channels, *spatial)
    leak, rounding = layer_bound(
        comparison.stencil,
        comparison.limit,
        images,
        heads,
        sums=sums,
        stored=stored,
        products=products,
        operands=operands,
        applied=applied,
    )
    return leak.reshape(exact.shape), rounding.reshape(exact.shape)


def check_shape(y: Tensor, comparison: Comparison, advice: Callable[[], str]) -> None:
    """Raise an AssertionError where an output has not the shape of the convolution's."""
    exact = comparison.exact
    if y.shape != exact.shape:
        raise AssertionError(
            f"the layer is not the convolution: its output has shape {tuple(y.shape)}, the "
            f"convolution's has {tuple(exact.shape)}: no error to hold against a bound.\n{advice()}"
        )


def called(layer: nn.Module, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
    """What a layer makes of an input."""
    arguments = () if output_size is None else ([int(n) for n in output_size],)
    with torch.no_grad():
        y: Tensor = layer(x, *arguments)
        return y


def held_against(
    comparison: Comparison,
    bound: tuple[Tensor, Tensor],
    y: Tensor,
    conv: AnySource,
    x: Tensor,
    output_size: Sequence[int] | None = None,
) -> Certificate:
    """An output of a layer against the exact convolution; torch's own is run beside it."""
    exact = comparison.exact
    conv_error = torch.full_like(exact, math.nan)
    if not may_crash(conv, x):
        with contextlib.suppress(NotImplementedError):
            conv_error = _distance(called(conv, x, output_size), exact)
    leak, rounding = bound
    return Certificate(
        error=_distance(y, exact), leak=leak, rounding=rounding, conv_error=conv_error
    )


def may_crash(conv: AnySource, x: Tensor) -> bool:
    """Whether torch's own convolution may end the process: seen in torch 2.13, now and then.

    In float16 on a CPU, in one dimension, strided and dilated, such as with a kernel of one tap.
    """
    strided = isinstance(conv, nn.Conv1d) and conv.stride[0] > 1 and conv.dilation[0] > 1
    return strided and x.dtype == torch.float16 and x.device.type == "cpu"


def _distance(y: Tensor, exact: Tensor) -> Tensor:
    """|y - exact|; inf where an overflow left no number."""
    # Widened first: torch takes longer over operands of two formats.
    distance = y.detach().cpu().to(exact.dtype, copy=True).sub_(exact).abs_()
    return distance.nan_to_num_(math.inf, posinf=math.inf)
