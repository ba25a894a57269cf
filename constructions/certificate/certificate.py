"""Certificates: a layer held against the exact convolution, output by output.

Theorem: `layer_error_is_certified`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from constructions.certificate.bounds import layer_bound
from constructions.certificate.comparison import Comparison
from constructions.certificate.head_errors import HeadErrors
from constructions.certificate.mixing import mixing_bound
from constructions.certificate.reproduction import reproduction
from constructions.certificate.selecting import selecting_errors
from constructions.certificate.uniform import uniform_errors
from constructions.encodings import Mixing
from constructions.evaluation import EVALUATIONS
from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import (
    IMAGES_TRANSFORMED,
    Products,
    may_transform,
    products_of,
)
from constructions.sources import AnySource

PAGE = "docs/theorems/layer_error_is_certified.md"


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
    layer: MultiHeadSelfAttention,
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

    Args:
        layer: an attention layer, as `attention_from_conv` returns it.
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
    if not isinstance(layer, MultiHeadSelfAttention):
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: a MultiHeadSelfAttention; "
            "assert_equivalent takes any module"
        )
    if layer.has_live_content():
        raise ValueError("layer has live content terms; accepted: scores of positions alone")
    comparison = Comparison.of(conv, x, output_size)
    for what, of_layer, of_x in (
        ("dtype", layer.dtype, x.dtype),
        ("device", layer.numbers.device, x.device),
    ):
        if of_layer != of_x and not (what == "dtype" and layer.in_channels is None):
            raise ValueError(f"layer has {what} {of_layer}, x has {of_x}; accepted: the same")
    bound = _bound_of(comparison, layer, x.dtype)
    return _certificate(comparison, bound, layer, conv, x, output_size)


def assert_equivalent(layer: nn.Module, conv: AnySource, x: Tensor, leak: float = 0.0) -> None:
    """Raise an AssertionError unless a module computes a convolution, within rounding.

    An attention layer of ours is held to its certificate. Any other module is held to the rounding
    of a sum of the convolution's terms in any order in x's own dtype, plus the leak; where torch's
    flags let x's device round the operands of float32 products, pixels, matrices and partial sums
    may each be rounded so once. Transforms are not covered; the message names them where torch's
    flags allow them.

    Args:
        layer: any module that is called as the convolution is.
        conv: the convolution.
        x: a finite input of both.
        leak: off-target mass that is granted to another module's heads: each may err by this part
            of the range of its channel (theorem `attention_expresses_convolution`).

    Raises:
        AssertionError: naming the theorem, its page, the error, the bound and a reproduction.
        TypeError: conv is not a convolution, or layer not a module.
        ValueError: as `certify`; or leak is not in [0, 1].
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer is a {type(layer).__name__}; accepted: a torch.nn.Module")
    if not 0.0 <= leak <= 1.0:
        raise ValueError(f"leak is {leak}; accepted: 0 to 1, the off-target mass of a head")
    if isinstance(layer, MultiHeadSelfAttention):
        certificate = certify(layer, conv, x)
    else:
        comparison = Comparison.of(conv, x)
        heads = HeadErrors.none(comparison.limit)
        granted = replace(heads, deviation=leak * comparison.spread(), signed=False)
        products = products_of("any", x.dtype, x.device.type)
        bound = _bound_by_heads(comparison, granted, x.dtype, x.dtype, products, 3 * (x.dtype,))
        certificate = _certificate(comparison, bound, layer, conv, x, None)
    if certificate.holds:
        return
    quotient = certificate.quotient()
    worst = tuple(int(i) for i in torch.unravel_index(quotient.argmax(), quotient.shape))
    raise AssertionError(
        f"the layer is not the convolution: at output {worst} the error is "
        f"{float(certificate.error[worst]):.6g}, the bound {float(certificate.bound[worst]):.6g} "
        f"(leak {float(certificate.leak[worst]):.3g}, "
        f"rounding {float(certificate.rounding[worst]):.3g}).\n"
        f"{_where_to_read(layer, conv, x)}"
    )


TRANSFORMED = (
    "Without oneDNN (torch.backends.mkldnn.enabled) torch hands convolutions of 16 images and more "
    "to NNPACK, whose transforms are no sums of products: no bound covers them. If that is what "
    "fails, it passes within torch.backends.nnpack.flags(enabled=False).\n"
)


def _where_to_read(layer: nn.Module, conv: AnySource, x: Tensor) -> str:
    own = isinstance(layer, MultiHeadSelfAttention)
    transforms = not own and may_transform(IMAGES_TRANSFORMED, x.dtype, x.device.type)
    return (
        f"{TRANSFORMED if transforms else ''}"
        f"Theorem: layer_error_is_certified, {PAGE}\nlayer: {layer}\n{reproduction(conv, x)}"
    )


def _bound_of(
    comparison: Comparison, layer: MultiHeadSelfAttention, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Leak and rounding, by the kind of the layer's heads: mixing, uniform or selecting.

    Nothing else asks for the kind.
    """
    encoding, window = layer.encoding, comparison.window
    if window is not None:
        heads = uniform_errors(comparison.stencil, comparison.view, window, layer, dtype)
    elif isinstance(encoding, Mixing):
        return mixing_bound(comparison, encoding, layer)
    else:
        heads = selecting_errors(comparison, layer)
    exact = accumulator(dtype)
    operation = EVALUATIONS[layer.evaluation].operation
    products = products_of(operation, exact, layer.numbers.device.type)
    # One-hot heads hand on pixels as they are stored.
    handed_on = dtype if layer.is_saturated(dtype) else exact
    return _bound_by_heads(comparison, heads, exact, dtype, products, (dtype, handed_on))


def _bound_by_heads(
    comparison: Comparison,
    heads: HeadErrors,
    sums: torch.dtype,
    stored: torch.dtype,
    products: Products,
    operands: Sequence[torch.dtype],
) -> tuple[Tensor, Tensor]:
    """Leak and rounding of a layer with one head for each tap, of the output's shape."""
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
    )
    return leak.reshape(exact.shape), rounding.reshape(exact.shape)


def _certificate(
    comparison: Comparison,
    bound: tuple[Tensor, Tensor],
    layer: nn.Module,
    conv: AnySource,
    x: Tensor,
    output_size: Sequence[int] | None,
) -> Certificate:
    """Run the layer and torch's convolution, and hold both against the exact one."""
    arguments = () if output_size is None else ([int(n) for n in output_size],)
    exact = comparison.exact
    with torch.no_grad():
        y = layer(x, *arguments)
        conv_error = torch.full_like(exact, math.nan)
        if not _crashes(conv, x):
            with contextlib.suppress(NotImplementedError):
                conv_error = _distance(conv(x, *arguments), exact)
    if y.shape != exact.shape:
        raise AssertionError(
            f"the layer is not the convolution: its output has shape {tuple(y.shape)}, the "
            f"convolution's has {tuple(exact.shape)}: no error to hold against a bound.\n"
            f"{_where_to_read(layer, conv, x)}"
        )
    leak, rounding = bound
    return Certificate(
        error=_distance(y, exact), leak=leak, rounding=rounding, conv_error=conv_error
    )


def _crashes(conv: AnySource, x: Tensor) -> bool:
    """Whether torch's own convolution may end the process: seen in torch 2.13, now and then.

    In float16 on a CPU, in one dimension, strided and dilated, such as with a kernel of one tap.
    """
    strided = isinstance(conv, nn.Conv1d) and conv.stride[0] > 1 and conv.dilation[0] > 1
    return strided and x.dtype == torch.float16 and x.device.type == "cpu"


def _distance(y: Tensor, exact: Tensor) -> Tensor:
    """|y - exact|; inf where an overflow left no number."""
    # Widened first: torch takes four times as long over operands of two formats.
    distance = y.detach().cpu().to(exact.dtype, copy=True).sub_(exact).abs_()
    return distance.nan_to_num_(math.inf, posinf=math.inf)
