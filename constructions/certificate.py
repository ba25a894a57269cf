"""Certificates: a layer held against the exact convolution, output by output.

Theorem: `layer_error_is_certified`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from constructions.attention import MultiHeadSelfAttention
from constructions.borders import padded
from constructions.bounds import HeadBound, encoding_mass, layer_bound
from constructions.formats import accumulator, check_format, unit_roundoff
from constructions.lattice import Lattice
from constructions.normalisers import Softmax
from constructions.stencil import (
    AnyConvolution,
    Stencil,
    check_convolution,
    checked_spatial_shape,
)

CLAIM = "Theorem: layer_error_is_certified, docs/theorems/layer_error_is_certified.md"
NON_FINITE = "theorem T9, docs/theorems/dense_attention_spreads_non_finite_pixels.md"


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
        conv_error: |torch's convolution - convolution|, for comparison.
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
    conv: AnyConvolution,
    x: Tensor,
    *,
    output_size: Sequence[int] | None = None,
) -> Certificate:
    """Compare a layer with the exact convolution of the stored numbers, and bound the difference.

    The bound speaks of the attention layer that the construction builds from `conv` at the layer's
    sharpness; any other layer is judged by it. It assumes gradual underflow, sums in any order by
    rounded additions or fused multiply-adds, and an exponential within 20 units in the last place.

    Args:
        layer: an attention layer, as `attention_from_conv` returns it.
        conv: the convolution it is compared with.
        x: a finite input of both, batched or not.
        output_size: of a transposed convolution, as torch takes it.

    Returns:
        The certificate; it holds for an empty batch.

    Raises:
        TypeError: layer or conv is of another kind.
        ValueError: x is not finite; dtypes or devices differ; content terms are live; or the
            normaliser is not softmax and the weights are not saturated.
    """
    if not isinstance(layer, MultiHeadSelfAttention):
        raise TypeError(
            f"layer is a {type(layer).__name__}; accepted: a MultiHeadSelfAttention; "
            "assert_equivalent takes any module"
        )
    if layer.has_live_content():
        raise ValueError("layer has live content terms; accepted: scores of positions alone")
    case = _Case.of(conv, x, output_size)
    for what in ("dtype", "device"):
        of_layer, of_x = getattr(layer.value, what), getattr(x, what)
        if of_layer != of_x:
            raise ValueError(f"layer has {what} {of_layer}, x has {of_x}; accepted: the same")
    return case.certificate(layer, _head_bound(layer, case.keys), sums=accumulator(x.dtype))


def assert_equivalent(layer: nn.Module, conv: AnyConvolution, x: Tensor, leak: float = 0.0) -> None:
    """Raise an AssertionError unless a module computes a convolution, within rounding.

    An attention layer of ours is held to its certificate. Any other module is held to the rounding
    of a sum of the convolution's terms in any order in x's own dtype, plus the leak.

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
        head = HeadBound(epsilon=leak)
        certificate = _Case.of(conv, x, None).certificate(layer, head, sums=x.dtype)
    if certificate.holds:
        return
    quotient = certificate.quotient()
    worst = tuple(int(i) for i in torch.unravel_index(quotient.argmax(), quotient.shape))
    raise AssertionError(
        f"the layer is not the convolution: at output {worst} the error is "
        f"{float(certificate.error[worst]):.6g}, the bound {float(certificate.bound[worst]):.6g} "
        f"(leak {float(certificate.leak[worst]):.3g}, "
        f"rounding {float(certificate.rounding[worst]):.3g}).\n"
        f"{CLAIM}\n"
        f"layer: {layer}\n"
        f"{_Case.of(conv, x, None).reproduction()}"
    )


@dataclass(frozen=True)
class _Case:
    """A convolution and an input, with all that does not depend on the layer.

    Args:
        conv: the convolution.
        x: the input, batched or not.
        arguments: what both are called with beside x.
        stencil: of the convolution, float64 on the CPU.
        exact: the convolution of the stored numbers, float64 on the CPU.
        keys: where the keys stand.
        padded: the keys, (N, D_in, *keys.shape), float64 on the CPU.
    """

    conv: AnyConvolution
    x: Tensor
    arguments: tuple[list[int], ...]
    stencil: Stencil
    exact: Tensor
    keys: Lattice
    padded: Tensor

    @classmethod
    def of(cls, conv: AnyConvolution, x: Tensor, output_size: Sequence[int] | None) -> _Case:
        """Check the arguments and compute the exact convolution."""
        check_convolution(conv)
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; accepted: a torch.Tensor")
        check_format(x.dtype, "x")
        spatial_shape = checked_spatial_shape(x, conv.in_channels, len(conv.kernel_size))
        operands = {"conv.weight": conv.weight, "conv.bias": conv.bias, "x": x}
        for name, tensor in operands.items():
            if tensor is None:
                continue
            if tensor.dtype != x.dtype or tensor.device != x.device:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}, x is {x.dtype} on {x.device}; "
                    "accepted: one dtype and one device"
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"{name} has infinite or NaN entries; accepted: finite ones ({NON_FINITE})"
                )
        arguments = () if output_size is None else ([int(n) for n in output_size],)
        # float64 on the CPU: a plain sum, on every machine.
        wide = copy.deepcopy(conv).to("cpu", torch.float64)
        stencil = Stencil.from_conv(wide)
        geometry = stencil.geometry
        if arguments:
            geometry = geometry.with_output_size(spatial_shape, *arguments)
        pixels, keys = geometry.pixels(spatial_shape), geometry.keys(spatial_shape)
        batched = x.dim() == geometry.dimension + 2
        image = x.detach().cpu().double()
        stuffed = padded(image if batched else image[None], pixels, keys, stencil.border)
        with torch.no_grad():
            exact = wide(image, *arguments)
        return cls(conv, x, arguments, stencil, exact, keys, stuffed)

    def certificate(self, layer: nn.Module, head: HeadBound, *, sums: torch.dtype) -> Certificate:
        """Run the layer and torch's convolution, and hold both against the exact one."""
        with torch.no_grad():
            y, own = layer(self.x, *self.arguments), self.conv(self.x, *self.arguments)
        if y.shape != self.exact.shape:
            raise AssertionError(
                f"the layer is not the convolution: its output has shape {tuple(y.shape)}, the "
                f"convolution's has {tuple(self.exact.shape)}; the error is within no bound.\n"
                f"{CLAIM}\n{self.reproduction()}"
            )
        batched_exact = self.exact.reshape(-1, *self.exact.shape[-self.keys.dimension - 1 :])
        leak, rounding = layer_bound(
            self.stencil, self.padded, batched_exact, head, sums=sums, stored=self.x.dtype
        )
        return Certificate(
            error=_distance(y, self.exact),
            leak=leak.reshape(self.exact.shape),
            rounding=rounding.reshape(self.exact.shape),
            conv_error=_distance(own, self.exact),
        )

    def reproduction(self) -> str:
        """Code that makes the convolution and the input again."""
        conv = self.conv
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        names += ("groups", "padding_mode", *(("output_padding",) if conv.transposed else ()))
        options = ", ".join(f"{name}={getattr(conv, name)!r}" for name in names)
        tensors = {**conv.state_dict(), "x": self.x.detach()}
        rows = [f"{n!r}: torch.tensor({t.tolist()}, dtype=wide)" for n, t in tensors.items()]
        return (
            "To reproduce, where `layer` is your module:\n"
            "import torch\n"
            "from constructions import assert_equivalent\n"
            f"conv = torch.nn.{type(conv).__name__}({options}, bias={conv.bias is not None}, "
            f"dtype={conv.weight.dtype})\n"
            "wide = torch.float64\n"
            "tensors = {" + ", ".join(rows) + "}\n"
            "x = tensors.pop('x').to(conv.weight.dtype)\n"
            "conv.load_state_dict(tensors)\n"
            "assert_equivalent(layer, conv, x)\n"
        )


def _head_bound(layer: MultiHeadSelfAttention, keys: Lattice) -> HeadBound:
    sharpness, dtype = layer.sharpness, layer.dtype
    mass = encoding_mass(layer.encoding, sharpness, keys)
    # In half precision tails vanish when they are cast, and the peak is 1 if they are few (T8).
    exact = dtype == accumulator(dtype) or not isinstance(layer.normaliser, Softmax)
    peak_is_one = exact or 16 * mass <= unit_roundoff(dtype)
    if sharpness >= layer.normaliser.one_hot_gap(dtype) and peak_is_one:
        return HeadBound()  # one-hot: a gather, which rounds nothing
    if not isinstance(layer.normaliser, Softmax):
        raise ValueError(
            f"layer has the normaliser {layer.normaliser} below its one-hot gap; accepted: "
            "softmax, or a saturated layer"
        )
    return HeadBound.of_softmax(mass, keys.size, dtype)


def _distance(y: Tensor, exact: Tensor) -> Tensor:
    """|y - exact|; inf where an overflow left no number."""
    return (y.detach().cpu().double() - exact).abs().nan_to_num(math.inf, posinf=math.inf)
