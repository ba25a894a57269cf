"""Equivalence: any module held against a convolution, and told what it is where it is not.

Theorem: `layer_error_is_certified`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from constructions.certificate.certificate import (
    Certificate,
    bound_by_heads,
    bound_of,
    called,
    check_shape,
    compared,
    compared_stack,
    held_against,
    judged_by_heads,
)
from constructions.certificate.comparison import Comparison
from constructions.certificate.diagnosis import Suspect, told, where
from constructions.certificate.head_errors import HeadErrors
from constructions.certificate.reproduction import where_to_read
from constructions.certificate.softened import Bound
from constructions.certificate.stacks import Stack
from constructions.formats import accumulator
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import products_of
from constructions.sources import AnySource


def assert_equivalent(layer: nn.Module, conv: AnySource, x: Tensor, leak: float = 0.0) -> None:
    """Raise an AssertionError unless a module computes a convolution, within rounding.

    An attention layer of ours, or layers in a sequence that stand for the convolution, are held to
    their certificate. Any other module is held to the rounding of a sum of the convolution's terms
    in any order in x's own dtype, plus the leak; where torch's flags let x's device round the
    operands of float32 products, pixels, matrices and partial sums may each be rounded so once.
    Transforms are not covered; the message names them where torch's flags allow them.

    The message says which outputs fail and what they have in common; which wrong construction the
    output agrees with, within that construction's own bound, if it is one that is known by name
    (the kernel flipped or its axes swapped, q - k, a head lost, doubled or elsewhere, the bias
    missing, another border, weak sharpness); and whether a leak would do.

    Args:
        layer: any module that is called as the convolution is.
        conv: the convolution.
        x: a finite input of both.
        leak: off-target mass that is granted to another module's heads: each may err by this part
            of the range of its channel (theorem `attention_expresses_convolution`).

    Raises:
        AssertionError: naming the theorem, its page, the error, the bound, a diagnosis and a
            reproduction.
        TypeError: conv is not a convolution, or layer not a module.
        ValueError: as `certify`; or leak is not in [0, 1].
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer is a {type(layer).__name__}; accepted: a torch.nn.Module")
    if not 0.0 <= leak <= 1.0:
        raise ValueError(f"leak is {leak}; accepted: 0 to 1, the off-target mass of a head")
    own = layer if isinstance(layer, MultiHeadSelfAttention) else None
    if own is not None:
        comparison = compared(own, conv, x)
        bound = bound_of(comparison, own, x.dtype)
    elif isinstance(layer, nn.Sequential) and leak == 0 and Stack.of(layer, conv) is not None:
        comparison, bound = compared_stack(layer, conv, x)
    else:
        comparison = Comparison.of(conv, x)
        bound = bound_of_others(comparison, x, leak)
    y = called(layer, x)
    read = partial(where_to_read, layer, conv, x, transforms=own is None)
    check_shape(y, comparison, read)
    certificate = held_against(comparison, bound, y, conv, x)
    if certificate.holds:
        return
    quotient = certificate.quotient()
    worst = tuple(int(i) for i in torch.unravel_index(quotient.argmax(), quotient.shape))
    diagnosis = [
        *_diagnosed(own, comparison, certificate, y, x),
        _forgiven(own, comparison, certificate, x),
    ]
    raise AssertionError(
        f"the layer is not the convolution: at output {worst} the error is "
        f"{float(certificate.error[worst]):.6g}, the bound {float(certificate.bound[worst]):.6g} "
        f"(leak {float(certificate.leak[worst]):.3g}, "
        f"rounding {float(certificate.rounding[worst]):.3g}).\n"
        + "".join(f"{line}\n" for line in diagnosis)
        + read()
    )


def _by_heads(x: Tensor) -> Bound:
    """The bound of a module of others by what its heads do: sums in any order, in x's dtype."""
    products = products_of("any", x.dtype, x.device.type)
    return partial(
        bound_by_heads, sums=x.dtype, stored=x.dtype, products=products, operands=3 * (x.dtype,)
    )


def bound_of_others(comparison: Comparison, x: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    """Leak and rounding of a module of others, torch's own included, to which a leak is granted."""
    heads = HeadErrors.none(comparison.limit)
    granted = replace(heads, deviation=leak * comparison.spread(), signed=False)
    return _by_heads(x)(comparison, granted)


def diagnosed(
    layer: MultiHeadSelfAttention | nn.Sequential,
    conv: AnySource,
    x: Tensor,
    output_size: Sequence[int] | None = None,
) -> str:
    """Where a layer of this package fails, and what it computes: lines of `assert_equivalent`."""
    own = layer if isinstance(layer, MultiHeadSelfAttention) else None
    if isinstance(layer, MultiHeadSelfAttention):
        comparison = compared(layer, conv, x, output_size)
        bound = bound_of(comparison, layer, x.dtype)
    else:
        comparison, bound = compared_stack(layer, conv, x, output_size)
    y = called(layer, x, output_size)
    certificate = held_against(comparison, bound, y, conv, x, output_size)
    return "\n".join(_diagnosed(own, comparison, certificate, y, x))


def _diagnosed(
    own: MultiHeadSelfAttention | None,
    comparison: Comparison,
    certificate: Certificate,
    y: Tensor,
    x: Tensor,
) -> list[str]:
    """Where it fails, and what it computes."""
    channels = comparison.exact.shape[1 - comparison.limit.dim()]
    shape = (-1, channels, *comparison.exact.shape[2 - comparison.limit.dim() :])
    lines = [f"Where: {where((certificate.quotient() > 1).reshape(shape), comparison)}."]
    if comparison.window is not None:
        return lines
    output = y.detach().cpu().double().reshape(shape)
    by_heads = _by_heads(x) if own is None else judged_by_heads(own, x.dtype, accumulator(x.dtype))
    largest = certificate.bound.nan_to_num(0.0, 0.0, 0.0).max().item()
    suspect = Suspect(own, x.dtype, output, by_heads, largest)
    if own is None:
        return [*lines, told(suspect.named(comparison, lambda c: bound_of_others(c, x, 0.0)))]
    return [*lines, told(suspect.named(comparison, lambda c: bound_of(c, own, x.dtype)))]


def _forgiven(
    own: MultiHeadSelfAttention | None, comparison: Comparison, certificate: Certificate, x: Tensor
) -> str:
    """Whether a leak would do, and about the least that does, rounded up to three digits."""
    if own is not None:
        return "leak= does not forgive it: a layer of this package is held to its certificate."
    whole, _ = bound_of_others(comparison, x, 1.0)
    needed = (certificate.error - certificate.rounding) / whole
    least = float(needed.nan_to_num(0.0, posinf=math.inf).max())
    if 0.0 < least <= 1.0:
        unit = 10.0 ** (math.floor(math.log10(least)) - 2)
        for leak in (min(1.0, float(f"{math.ceil(least / unit) * unit:.3g}")), 1.0):
            if (certificate.error <= sum(bound_of_others(comparison, x, leak))).all():
                return f"leak={leak:g} would forgive it."
    return "No leak= forgives it: heads that attend to nothing that they should err by less."
