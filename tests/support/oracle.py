"""Convolutions by their definition, in exact arithmetic: what everything else is held against.

The oracle shares code with neither torch nor the constructions. It knows a convolution only as
the sum that defines it, one slice of the image per tap j, over Python's integers:

    convolve             Y[n, o, q] = b[o] + sum_{c, j} X[n, c, q*stride + j*dilation] W[o, c, j]
    convolve_transposed  Y[n, o, i*stride + j*dilation] += X[n, c, i] W[c, o, j], then cropped

where X is already continued beyond its border, and i, j, q have 1, 2 or 3 coordinates. A
floating-point tensor is, exactly, an integer tensor times one power of two (`Exact`), so the same
sums also give the exact real-number convolution of stored floats of any format.

Shapes follow torch: x is (N, C, *spatial) or (C, *spatial), weight is (out, in/groups, *kernel),
and (in, out/groups, *kernel) for a transposed convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn

Integers: TypeAlias = NDArray[Any]
"""An array of int64 or of Python integers."""

Floats: TypeAlias = NDArray[np.float64]

PerAxis: TypeAlias = int | Sequence[int]
"""One number for every axis, or one number each."""

Padding: TypeAlias = int | str | Sequence[int | tuple[int, int]]
"""As torch has it, or (low, high) for each axis."""


def convolve(
    x: Integers,
    weight: Integers,
    bias: Integers | None = None,
    *,
    stride: PerAxis = 1,
    padding: Padding = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Integers:
    """Convolution of integer arrays, exactly, whatever their size.

    Args:
        x: The image, (N, in, *spatial) or (in, *spatial).
        weight: The kernel, (out, in/groups, *kernel).
        bias: (out,), or None for none.
        stride: Distance between two outputs.
        padding: Pixels added on both sides of each axis, (low, high) for each axis, "same" or
            "valid".
        dilation: Distance between two taps.
        groups: Number of blocks of channels.
        padding_mode: How the image is continued: zeros, reflect, replicate or circular.

    Returns:
        Python integers, (N, out, *queries) or (out, *queries).

    Raises:
        TypeError: An array is not of integers.
        ValueError: The padded image is smaller than the kernel, or a border cannot be continued.
    """
    x, weight = _python_integers(x), _python_integers(weight)
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides, dilations = _per_axis(stride, rank), _per_axis(dilation, rank)
    borders = _borders(padding, kernel, dilations)
    batched = x.ndim == rank + 2
    image = _continued(x if batched else x[None], borders, padding_mode)
    reach = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
    queries = [
        (length - far - 1) // step + 1
        for length, far, step in zip(image.shape[2:], reach, strides, strict=True)
    ]
    _reject_empty(queries)

    blocks, matrices = _split(image, 1, groups), _split(weight, 0, groups)
    y = np.zeros((len(image), groups, matrices.shape[1], *queries), dtype=object)
    for tap in np.ndindex(*kernel):
        seen = blocks[_touched(tap, dilations, strides, queries)]
        y += _apply(matrices[(..., *tap)], seen)
    return _finished(y, bias, batched)


def convolve_transposed(
    x: Integers,
    weight: Integers,
    bias: Integers | None = None,
    *,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    output_padding: PerAxis = 0,
    dilation: PerAxis = 1,
    groups: int = 1,
    output_size: Sequence[int] | None = None,
) -> Integers:
    """Transposed convolution of integer arrays: every pixel scatters its copy of the kernel.

    Args:
        x: The image, (N, in, *spatial) or (in, *spatial).
        weight: The kernel, (in, out/groups, *kernel).
        bias: (out,), or None for none.
        stride: Distance between the copies of two neighbouring pixels.
        padding: Outputs cropped on both sides of each axis.
        output_padding: Outputs added to the high side.
        dilation: Distance between two taps.
        groups: Number of blocks of channels.
        output_size: The spatial shape of the output, instead of `output_padding`.

    Returns:
        Python integers, (N, out, *outputs) or (out, *outputs).

    Raises:
        TypeError: An array is not of integers.
        ValueError: The output is empty, or `output_size` is not one of the stride's choices.
    """
    x, weight = _python_integers(x), _python_integers(weight)
    kernel = weight.shape[2:]
    rank = len(kernel)
    strides, dilations = _per_axis(stride, rank), _per_axis(dilation, rank)
    crops, extras = _per_axis(padding, rank), _per_axis(output_padding, rank)
    batched = x.ndim == rank + 2
    image = x if batched else x[None]
    pixels = image.shape[2:]
    covered = [
        (length - 1) * stride + dilation * (size - 1) + 1
        for length, size, stride, dilation in zip(pixels, kernel, strides, dilations, strict=True)
    ]
    if output_size is not None:
        sizes = zip(output_size, covered, crops, strict=True)
        extras = tuple(size - (cover - 2 * crop) for size, cover, crop in sizes)
        if not all(0 <= extra < step for extra, step in zip(extras, strides, strict=True)):
            raise ValueError(f"output_size={tuple(output_size)} is not reached by {strides=}")
    canvas = [cover + extra for cover, extra in zip(covered, extras, strict=True)]
    outputs = [length - 2 * crop for length, crop in zip(canvas, crops, strict=True)]
    _reject_empty(outputs)

    blocks, matrices = _split(image, 1, groups), _split(weight, 0, groups).swapaxes(1, 2)
    y = np.zeros((len(image), groups, matrices.shape[1], *canvas), dtype=object)
    for tap in np.ndindex(*kernel):
        y[_touched(tap, dilations, strides, pixels)] += _apply(matrices[(..., *tap)], blocks)
    kept: tuple[Any, ...] = (
        ...,
        *(slice(crop, crop + size) for crop, size in zip(crops, outputs, strict=True)),
    )
    return _finished(y[kept], bias, batched)


def _python_integers(values: Integers) -> Integers:
    array = np.asarray(values)
    if array.dtype != object and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"the oracle adds integers, not {array.dtype}: see exactly()")
    return array.astype(object)


def _per_axis(value: PerAxis, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _borders(
    padding: Padding, kernel: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Pixels added to the (low, high) side of each axis; of an odd total, "same" adds more high."""
    if padding == "valid":
        return [(0, 0) for _ in kernel]
    if padding == "same":
        totals = [step * (size - 1) for step, size in zip(dilations, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        raise ValueError(f"{padding=} is neither 'same' nor 'valid'")
    sides = [padding] * len(kernel) if isinstance(padding, int) else padding
    return [(side, side) if isinstance(side, int) else side for side in sides]


def _continued(x: Integers, borders: list[tuple[int, int]], mode: str) -> Integers:
    """The padded image: position p of an axis of n pixels shows pixel source(p), or zero."""
    for axis, (low, high) in enumerate(borders, start=2):
        n = x.shape[axis]
        p = np.arange(-low, n + high)
        if mode in ("zeros", "replicate"):
            source = np.clip(p, 0, n - 1)
        elif mode == "reflect":
            if max(low, high) >= n:
                raise ValueError(f"reflect padding {(low, high)} needs more than {n} pixels")
            source = (n - 1) - abs((n - 1) - abs(p))
        elif mode == "circular":
            if max(low, high) > n:
                raise ValueError(f"circular padding {(low, high)} wraps {n} pixels more than once")
            source = p % n
        else:
            raise ValueError(f"padding_mode={mode!r} is not one of torch's four")
        x = x.take(source, axis)
        if mode == "zeros":
            outside = (slice(None),) * axis + ((p < 0) | (p >= n),)
            x[outside] = 0
    return x


def _split(array: Integers, axis: int, groups: int) -> Integers:
    """One axis of channels as two: (groups, channels per group)."""
    before, channels, after = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    return array.reshape(*before, groups, channels // groups, *after)


def _touched(
    tap: Sequence[int], dilations: Sequence[int], steps: Sequence[int], counts: Sequence[int]
) -> tuple[Any, ...]:
    """The positions that one tap touches, tap*dilation + step*(0, ..., count - 1), as an index."""
    slices = (
        slice(j * dilation, j * dilation + step * (count - 1) + 1, step)
        for j, dilation, step, count in zip(tap, dilations, steps, counts, strict=True)
    )
    return (..., *slices)


def _apply(matrices: Integers, pixels: Integers) -> Integers:
    """(groups, out, in) times (N, groups, in, *spatial) is (N, groups, out, *spatial)."""
    flat = pixels.reshape(*pixels.shape[:3], math.prod(pixels.shape[3:]))
    product: Integers = np.matmul(matrices, flat)
    return product.reshape(*product.shape[:3], *pixels.shape[3:])


def _finished(y: Integers, bias: Integers | None, batched: bool) -> Integers:
    y = y.reshape(len(y), y.shape[1] * y.shape[2], *y.shape[3:])
    if bias is not None:
        y = y + _python_integers(bias).reshape(-1, *[1] * (y.ndim - 2))
    return y if batched else y[0]


def _reject_empty(shape: Sequence[int]) -> None:
    if min(shape) < 1:
        raise ValueError(f"the output would have the spatial shape {tuple(shape)}")


# Floating point, exactly.


@dataclass(frozen=True, eq=False)
class Exact:
    """The real tensor numerators * 2**exponent, nothing rounded.

    Attributes:
        numerators: Python integers, with at least one axis.
        exponent: One power of two for the whole tensor.
    """

    numerators: Integers
    exponent: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.numerators.shape

    def at(self, exponent: int) -> Integers:
        """The numerators over another power of two, at most this one's, so that they stay whole."""
        return self.numerators * (1 << (self.exponent - exponent))

    def nearest(self) -> Floats:
        """Each element rounded once to float64, to nearest, ties to even.

        Raises:
            OverflowError: An element lies beyond float64.
        """
        up, down = 1 << max(self.exponent, 0), 1 << max(-self.exponent, 0)
        # Python rounds the quotient of two integers correctly, subnormal results included.
        return _elementwise(lambda m: m * up / down, self.numerators)


def exactly(values: NDArray[Any]) -> Exact:
    """Finite numbers, exactly: a float64 is m * 2**e with |m| < 2**53, here with one common e.

    Args:
        values: Integers, or floats of a format that float64 contains, with at least one axis.

    Raises:
        ValueError: A value is not finite.
    """
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        return Exact(_python_integers(values), 0)
    if not np.isfinite(values).all():
        raise ValueError("only finite numbers are exactly integers times a power of two")
    fractions, exponents = np.frexp(values.astype(np.float64))
    mantissas = np.ldexp(fractions, 53).astype(np.int64)
    lowest_bits = np.maximum(mantissas & -mantissas, 1)
    exponents = exponents - 53 + np.frexp(lowest_bits.astype(np.float64))[1] - 1
    nonzero = mantissas != 0
    common = int(exponents[nonzero].min()) if nonzero.any() else 0
    shifts = np.where(nonzero, exponents - common, 0)
    return Exact((mantissas // lowest_bits).astype(object) << shifts.astype(object), common)


def exact_error(actual: NDArray[Any], exact: Exact) -> Floats:
    """Elementwise |actual - exact|, rounded up to float64; infinite where actual is not finite.

    Zero exactly where the two are equal (0.0 and -0.0 alike).

    Raises:
        ValueError: The shapes differ.
    """
    actual = np.asarray(actual)
    if actual.shape != exact.shape:
        raise ValueError(f"shape {actual.shape} is compared with shape {exact.shape}")
    finite = np.isfinite(actual)
    found = exactly(np.where(finite, actual, 0))
    exponent = min(found.exponent, exact.exponent)
    distances = abs(found.at(exponent) - exact.at(exponent))
    return np.where(finite, _elementwise(lambda m: _rounded_up(m, exponent), distances), math.inf)


def _elementwise(function: Callable[[int], float], values: Integers) -> Floats:
    flat = [function(value) for value in values.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)


def _rounded_up(numerator: int, exponent: int) -> float:
    """The least float64 that is at least numerator * 2**exponent >= 0."""
    excess = max(numerator.bit_length() - 53, -1074 - exponent, 0)
    try:
        return math.ldexp(-(-numerator >> excess), exponent + excess)
    except OverflowError:
        return math.inf


# Adapters: the only place that knows torch.


def numbers(tensor: Tensor) -> Floats:
    """The stored numbers of a tensor of any format up to float64, unchanged, as a NumPy array."""
    import torch

    return np.asarray(tensor.detach().to("cpu", torch.float64).numpy())


def convolve_module(
    conv: nn.Module,
    x: Tensor,
    output_size: Sequence[int] | None = None,
    *,
    magnitudes: bool = False,
) -> Exact:
    """The real-number convolution of the numbers that a torch convolution and its input store.

    Args:
        conv: An nn.Conv1d/2d/3d or nn.ConvTranspose1d/2d/3d; read only through its attributes.
        x: Its input.
        output_size: As a transposed convolution is called with it.
        magnitudes: Instead sum |W| |X| + |b|, which every rounding bound is made of.

    Returns:
        Exactly what `conv(x, output_size)` approximates.
    """
    stored: Any = conv
    image, weight = exactly(numbers(x)), exactly(numbers(stored.weight))
    constant = Exact(np.zeros(stored.out_channels, dtype=object), 0)
    if stored.bias is not None:
        constant = exactly(numbers(stored.bias))
    exponent = min(image.exponent + weight.exponent, constant.exponent)
    operands = [
        image.numerators,
        weight.at(exponent - image.exponent),
        constant.at(exponent),
    ]
    if magnitudes:
        operands = [abs(operand) for operand in operands]
    options = {name: getattr(stored, name) for name in ("stride", "padding", "dilation", "groups")}
    if stored.transposed:
        size = None if output_size is None else output_size[-len(stored.kernel_size) :]
        y = convolve_transposed(
            *operands, **options, output_padding=stored.output_padding, output_size=size
        )
    else:
        y = convolve(*operands, **options, padding_mode=stored.padding_mode)
    return Exact(y, exponent)
