"""Hypothesis strategies: every torch convolution, its input, and the sharpness of attention.

Strategies are plural nouns, the most general domain first, and their conditions stand inside them
with the reason. `geometries` draws every option of torch's six convolutions at once, hard cases
included (see `tests/meta/test_strategies.py`, which counts them); `integer_cases` and `real_cases`
fill the tensors for the two regimes of numerical evidence, exact and bounded.

All randomness is Hypothesis's: numbers are read from drawn bytes, laid out so that zero bytes mean
zero and small bytes mean simple numbers, and failures shrink to small images of small numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions.matrix_units import products_of
from tests.conftest import DEVICES, is_present
from tests.support.oracle import numbers

Convolution: TypeAlias = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)

CONVOLUTIONS: tuple[type[Convolution], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[type[Convolution], ...] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
LAYERS = CONVOLUTIONS + TRANSPOSED
PADDING_MODES = ("zeros", "replicate", "reflect", "circular")

a_share = settings(max_examples=settings().max_examples // 2)
"""For a property of which others, beside it, test a part each, or whose examples take long."""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """A convolution, an input, and what else it is called with.

    Attributes:
        conv: The convolution, its weight and bias filled.
        x: The input, (N, C, *spatial) or (C, *spatial), in the convolution's dtype.
        output_size: For a transposed convolution, the argument of the call; None for none.
    """

    conv: Convolution
    x: Tensor
    output_size: list[int] | None = None

    @classmethod
    def of(
        cls,
        conv: Convolution,
        *,
        weight: Sequence[float],
        bias: Sequence[float] | None,
        x: Sequence[float],
        shape: Sequence[int],
        output_size: list[int] | None = None,
    ) -> Case:
        """The case of these numbers, row-major; what `repr` prints, to be pasted into a test."""
        with torch.no_grad():
            conv.weight.copy_(torch.tensor(weight, dtype=torch.float64).view_as(conv.weight))
            if conv.bias is not None:
                conv.bias.copy_(torch.tensor(bias, dtype=torch.float64))
        image = torch.tensor(x, dtype=torch.float64).reshape(*shape)
        return cls(conv, image.to(conv.weight.dtype), output_size)

    def run(self, module: nn.Module) -> Tensor:
        """The module called on the input as the convolution is called.

        torch's own in one dimension may end the process in float16 (2.13, on a CPU, strided and
        dilated, with a kernel of one tap): it is then asked in float32, of which this is the cast.
        """
        result: Tensor
        if type(module) is nn.Conv1d and self.x.dtype == torch.float16 and module.dilation[0] > 1:
            wide: Tensor = copy.deepcopy(module).float()(self.x.float())
            return wide.half()
        if self.output_size is None:
            result = module(self.x)
        else:
            result = module(self.x, output_size=self.output_size)
        return result

    def to(self, device: str) -> Case:
        """The case on a device; the convolution itself moves, as torch's modules do."""
        return Case(self.conv.to(device), self.x.to(device), self.output_size)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # else Hypothesis prints a dataclass field by field

    def __repr__(self) -> str:
        """The call that makes this case again."""
        bias = None if self.conv.bias is None else _literals(self.conv.bias)
        size = "" if self.output_size is None else f", output_size={self.output_size}"
        return (
            f"Case.of({_constructor_call(self.conv)}, weight={_literals(self.conv.weight)}, "
            f"bias={bias}, x={_literals(self.x)}, shape={tuple(self.x.shape)}{size})"
        )


def _literals(tensor: Tensor) -> str:
    """The tensor's numbers, row-major, none rounded: whole numbers as integers, save -0.0."""
    values = numbers(tensor).ravel().tolist()
    simple = [
        repr(v)
        if v != math.trunc(v) or (v == 0 and math.copysign(1, v) < 0) or abs(v) > 1e15
        else str(int(v))
        for v in values
    ]
    return f"[{', '.join(simple)}]"


def _constructor_call(conv: Convolution) -> str:
    defaults = {
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "output_padding": 0,
        "groups": 1,
        "padding_mode": "zeros",
    }
    options = {name: _collapsed(getattr(conv, name)) for name in defaults}
    words = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name]]
    if conv.bias is None:
        words.append("bias=False")
    arguments = [conv.in_channels, conv.out_channels, _collapsed(conv.kernel_size), *words]
    return f"nn.{type(conv).__name__}({', '.join(map(str, arguments))}, dtype={conv.weight.dtype})"


def _collapsed(option: Any) -> Any:
    """One number where a tuple repeats it: torch takes both forms."""
    same = isinstance(option, tuple) and len(set(option)) == 1
    return option[0] if same else option


# Geometry: every option torch has.


@dataclass(frozen=True)
class Geometry:
    """A torch convolution without its numbers.

    Attributes:
        layer: The class.
        options: Its constructor's arguments, save dtype.
        shape: The shape of an input that it accepts.
        output_size: An `output_size` that it accepts for this input, or None.
    """

    layer: type[Convolution]
    options: Mapping[str, Any]
    shape: tuple[int, ...]
    output_size: list[int] | None

    def shapes(self, conv: Convolution) -> list[tuple[int, ...]]:
        """The shapes of weight, bias and input."""
        biases = 0 if conv.bias is None else conv.out_channels
        return [tuple(conv.weight.shape), (biases,), self.shape]

    def build(self, dtype: torch.dtype) -> Convolution:
        """The module, its numbers to be filled; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            return self.layer(**self.options, dtype=dtype)


@dataclass(frozen=True)
class _Limits:
    """Sizes that keep one example, dense attention included, at a few milliseconds.

    `reach` is dilation * (kernel - 1), the distance from the first tap to the last.
    """

    rank: int
    pixels: int
    kernel: int
    reach: int
    padding: int
    stride: int


_LIMITS = {
    nn.Conv1d: _Limits(rank=1, pixels=12, kernel=4, reach=9, padding=5, stride=5),
    nn.Conv2d: _Limits(rank=2, pixels=6, kernel=4, reach=9, padding=3, stride=5),
    nn.Conv3d: _Limits(rank=3, pixels=4, kernel=3, reach=4, padding=2, stride=4),
    nn.ConvTranspose1d: _Limits(rank=1, pixels=6, kernel=4, reach=9, padding=5, stride=5),
    nn.ConvTranspose2d: _Limits(rank=2, pixels=3, kernel=4, reach=6, padding=4, stride=4),
    nn.ConvTranspose3d: _Limits(rank=3, pixels=2, kernel=3, reach=2, padding=3, stride=2),
}
_LARGEST_DILATION = 3
_BATCHES: list[list[int]] = [[1], [2], [], [1], [2], [], [1], [2], [0]]


@st.composite
def geometries(
    draw: st.DrawFn,
    layers: Sequence[type[Convolution]] = LAYERS,
    padding_modes: Sequence[str] = PADDING_MODES,
) -> Geometry:
    """Every torch convolution with an input that it accepts, all options at once.

    Conditions, torch's own, met by drawing each option within what the others leave:

    * the kernel fits into the padded image, and a transposed output is not empty;
    * reflect padding is less than the image, and circular padding at most the image;
    * "same" needs stride 1; transposed convolutions know neither strings nor modes;
    * output_padding is less than the stride or the dilation, output_size less than a stride
      beyond the smallest output.

    Args:
        draw: Hypothesis's.
        layers: The classes to choose from.
        padding_modes: The modes to choose from; transposed convolutions always pad with zeros.
    """
    layer = draw(st.sampled_from(layers))
    limits = _LIMITS[layer]
    groups = draw(st.sampled_from([1, 2, 1, 2, 3, 4]))
    width = st.integers(1, 3 if groups == 1 else 4 // groups)
    in_channels, out_channels = groups * draw(width), groups * draw(width)
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if layer in TRANSPOSED:
        axes, sizes = _transposed_axes(draw, limits)
    else:
        options["padding_mode"] = draw(st.sampled_from(padding_modes))
        axes, sizes = _axes(draw, limits, options["padding_mode"]), None
    spatial = [axis.pop("pixels") for axis in axes]
    for name in axes[0]:
        option = tuple(axis[name] for axis in axes)
        options[name] = _collapsed(option)
    batch = draw(st.sampled_from(_BATCHES))
    lead = [*batch, in_channels]
    if sizes is not None and draw(st.booleans()):
        sizes = [*batch, out_channels, *sizes]  # torch takes the output's whole shape, too
    return Geometry(layer, options, (*lead, *spatial), sizes)


def _axes(draw: st.DrawFn, limits: _Limits, mode: str) -> list[dict[str, Any]]:
    style = draw(st.sampled_from(["integers", "same", "integers", "valid"]))
    axes = []
    for _ in range(limits.rank):
        n = draw(st.integers(1, limits.pixels))
        farthest = {"reflect": n - 1, "circular": n}.get(mode, limits.reach)
        padding: int | str
        if style == "integers":
            padding = draw(st.integers(0, min(limits.padding, farthest)))
            reach = n + 2 * padding - 1
        else:
            padding = style
            # "same" pads half the reach, rounded up, on the high side.
            reach = 2 * farthest if style == "same" else n - 1
        kernel, dilation = _kernels(draw, limits, reach)
        stride = 1 if style == "same" else draw(st.integers(1, limits.stride))
        axes.append(
            {
                "pixels": n,
                "kernel_size": kernel,
                "stride": stride,
                "dilation": dilation,
                "padding": padding,
            }
        )
    return axes


def _transposed_axes(
    draw: st.DrawFn, limits: _Limits
) -> tuple[list[dict[str, Any]], list[int] | None]:
    sized = draw(st.booleans())
    axes, sizes = [], []
    for _ in range(limits.rank):
        n = draw(st.integers(1, limits.pixels))
        kernel, dilation = _kernels(draw, limits, limits.reach)
        stride = draw(st.integers(1, limits.stride))
        output_padding = draw(st.integers(0, max(stride, dilation) - 1))
        # output_size replaces output_padding, and reaches less: the dilation does not count.
        extra = draw(st.integers(0, stride - 1)) if sized else output_padding
        uncropped = (n - 1) * stride + dilation * (kernel - 1) + 1 + extra
        padding = draw(st.integers(0, min(limits.padding, (uncropped - 1) // 2)))
        sizes.append(uncropped - 2 * padding)
        axes.append(
            {
                "pixels": n,
                "kernel_size": kernel,
                "stride": stride,
                "dilation": dilation,
                "padding": padding,
                "output_padding": output_padding,
            }
        )
    return axes, sizes if sized else None


def _kernels(draw: st.DrawFn, limits: _Limits, reach: int) -> tuple[int, int]:
    """(kernel, dilation) with dilation * (kernel - 1) within the reach."""
    reach = min(reach, limits.reach)
    kernel = draw(st.integers(1, min(limits.kernel, reach + 1)))
    most = _LARGEST_DILATION if kernel == 1 else min(_LARGEST_DILATION, reach // (kernel - 1))
    return kernel, draw(st.integers(1, most))


# Numbers.


@st.composite
def integer_cases(
    draw: st.DrawFn,
    dtype: torch.dtype = torch.float64,
    layers: Sequence[type[Convolution]] = LAYERS,
    padding_modes: Sequence[str] = PADDING_MODES,
) -> Case:
    """Cases on which a convolution is exact in `dtype`, in any order of summation: integers.

    Condition: sum |W| |X| + |b| <= 2**p, p the precision of `dtype`, at every output. Then all
    numbers, products and partial sums are integers of at most p bits, which the format contains.
    The limit is approached: some cases have a few ones, others use all p bits. Where a device that
    is here may round operands (TF32 on a GPU), kernel and pixels have no more bits than it keeps.

    Args:
        draw: Hypothesis's.
        dtype: The format of all the tensors.
        layers: The classes to choose from.
        padding_modes: As in `geometries`.
    """
    limit = 1 << precision(dtype)
    here = [device for device in DEVICES if is_present(device)]
    kept = min(products_of("convolution", dtype, device).exact_to for device in here)
    pool = _pool(draw)
    widths = [draw(st.sampled_from([1, 9, limit])) for _ in range(3)]
    geometry = draw(geometries(layers, padding_modes))
    conv = geometry.build(dtype)
    weight_words, bias_words, x_words = _words(pool, geometry.shapes(conv))
    # Half the budget for the kernel, so that pixels of size 1 and some bias always fit.
    weight = _integers(weight_words, min(widths[0], kept, limit // (2 * terms(conv))))
    spent = _greatest_row(conv, weight)
    bias = _integers(bias_words, min(widths[1], limit - spent))
    left = limit - int(abs(bias).max(initial=0))
    x = _integers(x_words, min(widths[2], kept, left // max(spent, 1)))
    return _filled(geometry, conv, weight, bias, x)


@st.composite
def real_cases(
    draw: st.DrawFn,
    dtype: torch.dtype = torch.float64,
    layers: Sequence[type[Convolution]] = LAYERS,
    padding_modes: Sequence[str] = PADDING_MODES,
) -> Case:
    """Cases of floats of `dtype` over its whole range, zeros of both signs and subnormals included.

    Each tensor has a largest binary exponent and a width of exponents below it, both drawn, so
    that some cases are tame and others lose all their small terms or underflow.

    Condition: (number of terms) max |W| max |X| and max |b| are at most 2**-3 of the greatest
    power of two of the format (2**-9 for float64, whose bounds are themselves float64 numbers).
    Reason: no partial sum then overflows in any order, nor where attention of finite sharpness
    mixes all pixels before it multiplies, and T7 speaks of finite results only.

    Args:
        draw: Hypothesis's.
        dtype: The format of all the tensors.
        layers: The classes to choose from.
        padding_modes: As in `geometries`.
    """
    least = math.frexp(torch.finfo(dtype).smallest_normal)[1] + 1 - precision(dtype)
    greatest = math.frexp(torch.finfo(dtype).max)[1] - (9 if dtype == torch.float64 else 3)
    pool = _pool(draw)
    # Every number is less than 2**top, and the sum of products than 2**greatest.
    x_top = draw(_exponents(least, greatest - _TERM_BITS))
    weight_top = draw(_exponents(least, greatest - _TERM_BITS - max(x_top, 0)))
    bias_top = draw(_exponents(least, greatest))
    tops = (weight_top, bias_top, x_top)
    widths = [draw(st.sampled_from([1, 4, 24, 200])) for _ in tops]
    geometry = draw(geometries(layers, padding_modes))
    conv = geometry.build(dtype)
    weight, bias, x = (
        _reals(words, top, width, dtype)
        for words, top, width in zip(_words(pool, geometry.shapes(conv)), tops, widths, strict=True)
    )
    return _filled(geometry, conv, weight, bias, x)


LEAST_SHARPNESS, GREATEST_SHARPNESS = 1e-3, 2000.0


def sharpnesses() -> st.SearchStrategy[float]:
    """Finite positive sharpnesses: vague to saturated, and both sides of every threshold.

    17.33, 92.88, 103.97 and 745.13 saturate float16, bfloat16, float32 and float64 (T8); 87.34
    does where subnormals are flushed; 46 is of a remark (T8); at 38 1 - theta**-d cancels.
    """
    thresholds = (1.0, 17.3, 17.33, 38.0, 46.0, 87.34, 88.0, 92.88, 103.97, 104.0, 745.13, 746.0)
    near = st.sampled_from([-1e-2, -1e-9, 0.0, 1e-9, 1e-2])
    return st.one_of(
        st.builds(lambda value, offset: value * (1 + offset), st.sampled_from(thresholds), near),
        st.floats(LEAST_SHARPNESS, 1e-1),
        st.floats(1e-1, 20.0),
        st.floats(20.0, GREATEST_SHARPNESS),
    )


def precision(dtype: torch.dtype) -> int:
    """Bits of the significand, the hidden one included: 2**p and all integers below are exact."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def terms(conv: Convolution) -> int:
    """The greatest number of products in one output: taps times input channels of a group."""
    return math.prod(conv.kernel_size) * conv.in_channels // conv.groups


def _greatest_row(conv: Convolution, weight: NDArray[np.int64]) -> int:
    """The maximum over output channels of sum |W| over taps and input channels."""
    blocks = abs(weight).reshape(conv.groups, -1, *weight.shape[1:])
    inputs = 1 if isinstance(conv, TRANSPOSED) else 2
    return int(blocks.sum(axis=(inputs, *range(3, blocks.ndim))).max())


def _filled(
    geometry: Geometry,
    conv: Convolution,
    weight: NDArray[Any],
    bias: NDArray[Any],
    x: NDArray[Any],
) -> Case:
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight))
        if conv.bias is not None:
            conv.bias.copy_(torch.from_numpy(bias))
    return Case(conv, torch.from_numpy(x).to(conv.weight.dtype), geometry.output_size)


_Words: TypeAlias = NDArray[np.uint64]

_TERM_BITS = 7  # terms(conv) <= 81: 3 channels, 27 taps
_MULTIPLIER = 0x9E3779B97F4A7C15


def _pool(draw: st.DrawFn) -> _Words:
    """32 words of 64 bits, for all the tensors of a case.

    Drawn bytes are what an example costs. They are the first draw, of one size, and no other draw
    is like them, which is what keeps them: Hypothesis varies an example by copying draws onto
    similar ones, and fills with zeros what no longer fits.
    """
    data = draw(st.binary(min_size=8 * 32, max_size=8 * 32))
    return np.frombuffer(data, dtype=">u8").astype(np.uint64)


def _words(pool: _Words, shapes: Sequence[Sequence[int]]) -> list[_Words]:
    """Tensors of words from the pool in turn.

    When it is used up it is used again, multiplied once more by an odd constant (of Fibonacci
    hashing), which leaves zeros and multiples of 8 what they are and changes the rest.
    """
    sizes = [math.prod(shape) for shape in shapes]
    repeat, position = np.divmod(np.arange(sum(sizes)), len(pool))
    words = pool[position] * np.uint64(_MULTIPLIER) ** repeat.astype(np.uint64)
    parts = np.split(words, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _integers(words: _Words, width: int) -> NDArray[np.int64]:
    """Integers of at most `width` in size; words 0, 1, 2, 3, ... are 0, 1, -1, 2, ..."""
    index = (words % np.uint64(2 * width + 1)).astype(np.int64)
    return np.where(index % 2 == 1, (index + 1) // 2, -(index // 2))


def _reals(words: _Words, top: int, width: int, dtype: torch.dtype) -> NDArray[np.float64]:
    """Numbers less than 2**top in size, with `width` different exponents, before rounding."""
    # From the low bits up: 3 make one value in 8 zero, 1 the sign, 8 the exponent, 52 the fraction.
    zero = words % np.uint64(8) == 0
    sign = np.where(words >> np.uint64(3) & np.uint64(1), -1.0, 1.0)
    exponent = top - (words >> np.uint64(4) & np.uint64(255)).astype(np.int64) % width
    fraction = 0.5 + (words >> np.uint64(12)).astype(np.float64) * 2.0**-53
    values = np.where(zero, 0.0, np.ldexp(fraction, exponent)) * sign
    # Fractions next to 1 would round to 2**top.
    largest = math.ldexp(1 - 2.0 ** -precision(dtype), top)
    return np.asarray(np.clip(values, -largest, largest), dtype=np.float64)


def _exponents(least: int, greatest: int) -> st.SearchStrategy[int]:
    """Half the time near 0, where formats are plain; else anywhere in the range, or at its ends."""
    plain = st.integers(-4, min(greatest, 4))
    ends = st.sampled_from([greatest, greatest - 1, least, least + 1, least + 8])
    return plain | st.integers(least, greatest) | plain | ends
