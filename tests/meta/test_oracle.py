"""The oracle is right: torch's convolution on integers, the scalar sum on floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, find, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.support.oracle import (
    Exact,
    Integers,
    convolve,
    convolve_module,
    convolve_transposed,
    exact_error,
    exactly,
    numbers,
)
from tests.support.strategies import (
    CONVOLUTIONS,
    TRANSPOSED,
    Case,
    Convolution,
    integer_cases,
    real_cases,
)

FORMATS = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)

Call: TypeAlias = tuple[list[Integers], dict[str, Any]]
"""The arrays x, weight, bias and the options of one call of the oracle."""


def call_of(case: Case) -> Call:
    """The call that the integer case stands for."""
    conv = case.conv
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
    arrays = [numbers(t).astype(np.int64) for t in (case.x, conv.weight, bias)]
    names = ["stride", "padding", "dilation", "groups"]
    names += ["output_padding"] if conv.transposed else ["padding_mode"]
    options = {name: getattr(conv, name) for name in names}
    if case.output_size is not None:
        options["output_size"] = case.output_size[-len(conv.kernel_size) :]
    return arrays, options


def oracle_of(case: Case) -> Callable[..., Integers]:
    return convolve_transposed if case.conv.transposed else convolve


def agrees_with_torch(case: Case, call: Call) -> bool:
    arrays, options = call
    expected = numbers(case.run(case.conv))
    found = oracle_of(case)(*arrays, **options)
    return found.shape == expected.shape and bool((found == expected).all())


@given(integer_cases(torch.float64))
def test_oracle_equals_torch_bit_for_bit_on_integers(case: Case) -> None:
    assert agrees_with_torch(case, call_of(case))


@given(integer_cases(torch.float64, padding_modes=["zeros"]))
def test_oracle_takes_the_options_of_the_functional_convolutions(case: Case) -> None:
    (x, weight, bias), options = call_of(case)
    assume("output_size" not in options)  # an argument of the module, not of the function
    rank = weight.ndim - 2
    function = getattr(torch.nn.functional, f"conv{'_transpose' * case.conv.transposed}{rank}d")
    found = oracle_of(case)(x, weight, bias, **options)
    options.pop("padding_mode", None)
    expected = function(*(torch.from_numpy(a).double() for a in (x, weight, bias)), **options)
    np.testing.assert_array_equal(found.astype(np.float64), numbers(expected), strict=True)


@FORMATS
@given(data=st.data())
def test_oracle_reads_integers_of_every_format(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(integer_cases(dtype))
    arrays, options = call_of(case)
    exact = convolve_module(case.conv, case.x, case.output_size)
    assert exact.exponent >= 0
    np.testing.assert_array_equal(
        exact.nearest(), oracle_of(case)(*arrays, **options).astype(np.float64), strict=True
    )


@given(integer_cases(torch.float64), st.integers(60, 300))
def test_integers_never_overflow(case: Case, bits: int) -> None:
    (x, weight, bias), options = call_of(case)
    oracle, factor = oracle_of(case), 1 << bits
    y = oracle(x, weight, **options)
    scaled = oracle(x.astype(object) * factor, weight.astype(object) * factor, **options)
    assert (scaled == y * factor**2).all()
    assert (oracle(x, weight, bias.astype(object) * 0, **options) == y).all()


def test_oracle_refuses_floats() -> None:
    with pytest.raises(TypeError, match="float64"):
        convolve(np.zeros((1, 3)), np.zeros((1, 1, 2), dtype=np.int64))


@pytest.mark.parametrize(
    ("oracle", "options", "message"),
    [
        (convolve, {"dilation": 3}, r"spatial shape \(0,\)"),
        (convolve, {"padding": 3, "padding_mode": "reflect"}, "reflect padding"),
        (convolve, {"padding": 4, "padding_mode": "circular"}, "circular padding"),
        (convolve, {"padding": 1, "padding_mode": "mirror"}, "mirror"),
        (convolve, {"padding": "full"}, "full"),
        (convolve_transposed, {"padding": 2}, r"spatial shape \(0,\)"),
        (convolve_transposed, {"stride": 2, "output_size": [8]}, "output_size"),
    ],
)
def test_oracle_refuses_what_torch_refuses(
    oracle: Callable[..., Integers], options: dict[str, Any], message: str
) -> None:
    image, kernel = np.ones((1, 1, 3), dtype=np.int64), np.ones((1, 1, 2), dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        oracle(image, kernel, **options)


@given(integer_cases(torch.float64, layers=CONVOLUTIONS, padding_modes=["zeros"]), st.data())
def test_transposed_convolution_is_the_adjoint_of_convolution(
    case: Case, data: st.DataObject
) -> None:
    """<convolve(x), y> = <x, convolve_transposed(y)>: the two definitions, held together."""
    (x, weight, _), options = call_of(case)
    del options["padding_mode"]
    if options["padding"] == "valid":
        options["padding"] = 0
    elif options["padding"] == "same":  # may be lopsided, and a transposed crop is not
        reach = np.subtract(weight.shape[2:], 1) * options["dilation"]
        options["padding"] = tuple(int(r + 1) // 2 for r in reach)
    z = convolve(x, weight, **options)
    y = np.asarray(data.draw(npst.arrays(np.int64, z.shape, elements=st.integers(-9, 9))))
    back = convolve_transposed(y, weight, **options, output_size=x.shape[-weight.ndim + 2 :])
    assert (z * y).sum() == (x.astype(object) * back).sum()


# Floats, exactly.

FLOATS = npst.arrays(
    np.float64,
    npst.array_shapes(max_dims=3, min_side=0, max_side=4),
    elements=st.floats(allow_nan=False, allow_infinity=False),
)


@given(FLOATS)
def test_floats_are_read_exactly(values: Any) -> None:
    exact = exactly(values)
    for value, numerator in zip(values.ravel(), exact.numerators.ravel(), strict=True):
        assert Fraction(float(value)) == numerator * Fraction(2) ** exact.exponent
    np.testing.assert_array_equal(exact.nearest(), values, strict=True)
    assert not exact_error(values, exact).any()


def test_only_finite_numbers_are_read() -> None:
    with pytest.raises(ValueError, match="finite"):
        exactly(np.array([1.0, math.nan]))


@given(
    st.integers(-(1 << 200), 1 << 200),
    st.integers(-1200, 800),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_error_is_the_least_float_not_below_the_true_error(
    numerator: int, exponent: int, actual: float
) -> None:
    exact = Exact(np.array([numerator], dtype=object), exponent)
    error = exact_error(np.array([actual]), exact).item()
    truth = abs(Fraction(actual) - numerator * Fraction(2) ** exponent)
    assert error == math.inf or Fraction(error) >= truth
    below = math.nextafter(error, 0.0)
    assert truth == 0 if error == 0 else truth > Fraction(below)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_errs_infinitely(value: float) -> None:
    exact = exactly(np.array([1.0, 2.0]))
    np.testing.assert_array_equal(exact_error(np.array([value, 2.0]), exact), [math.inf, 0.0])


def test_errors_between_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        exact_error(np.zeros((1, 3)), exactly(np.zeros(3)))


def seen(p: int, n: int, mode: str) -> int | None:
    """The pixel of an axis of n that shows at position p, one position at a time."""
    if 0 <= p < n:
        return p
    if mode == "circular":
        return p + n if p < 0 else p - n
    if mode == "replicate":
        return 0 if p < 0 else n - 1
    if mode == "reflect":
        return -p if p < 0 else 2 * (n - 1) - p
    return None


def source(case: Case, axis: int, q: int, j: int) -> int | None:
    """The pixel that tap j brings to output q, along one axis."""
    conv, n = case.conv, case.x.shape[axis - len(case.conv.kernel_size)]
    stride, step = conv.stride[axis], conv.dilation[axis]
    if conv.transposed:
        assert not isinstance(conv.padding, str)
        i, rest = divmod(q + conv.padding[axis] - j * step, stride)
        return i if rest == 0 and 0 <= i < n else None
    if isinstance(conv.padding, str):
        low = step * (conv.kernel_size[axis] - 1) // 2 if conv.padding == "same" else 0
    else:
        low = conv.padding[axis]
    return seen(q * stride + j * step - low, n, conv.padding_mode)


def scalar_sum(case: Case, position: tuple[int, ...]) -> Fraction:
    """One output as a sum of fractions, one product at a time."""
    conv, rank = case.conv, len(case.conv.kernel_size)
    batch, channel, q = position[: -rank - 1], position[-rank - 1], position[-rank:]
    x, weight = numbers(case.x), numbers(conv.weight)
    outputs, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    group, within = divmod(channel, outputs)
    total = Fraction(0 if conv.bias is None else numbers(conv.bias)[channel])
    for tap in np.ndindex(*conv.kernel_size):
        pixel = [source(case, axis, q[axis], tap[axis]) for axis in range(rank)]
        if None in pixel:
            continue
        for c in range(group * inputs, (group + 1) * inputs):
            block = (c, within) if conv.transposed else (channel, c - group * inputs)
            value, matrix = x[(*batch, c, *pixel)].item(), weight[(*block, *tap)].item()
            total += Fraction(value) * Fraction(matrix)
    return total


@FORMATS
@given(data=st.data())
def test_oracle_equals_the_sum_of_fractions(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(real_cases(dtype))
    exact = convolve_module(case.conv, case.x, case.output_size)
    magnitudes = convolve_module(case.conv, case.x, case.output_size, magnitudes=True)
    assert magnitudes.exponent == exact.exponent
    assert (abs(exact.numerators) <= magnitudes.numerators).all()
    if 0 in exact.shape:
        return
    position = data.draw(st.tuples(*(st.integers(0, size - 1) for size in exact.shape)))
    found = exact.numerators[position] * Fraction(2) ** exact.exponent
    assert found == scalar_sum(case, position)


# Negative controls: oracles that are wrong in one thing, which torch contradicts.


def with_flipped_kernel(call: Call) -> Call:
    (x, weight, bias), options = call
    return [x, np.flip(weight, tuple(range(2, weight.ndim))), bias], options


def with_swapped_axes(call: Call) -> Call:
    (x, weight, bias), options = call
    square = weight.ndim > 3 and weight.shape[-1] == weight.shape[-2]
    return [x, weight.swapaxes(-1, -2) if square else weight, bias], options


def with_swapped_channels(call: Call) -> Call:
    (x, weight, bias), options = call
    square = weight.shape[0] == weight.shape[1]
    return [x, weight.swapaxes(0, 1) if square else weight, bias], options


def with_channels_dealt_to_groups(call: Call) -> Call:
    """Channel c belongs to group c % groups, not to group c // (channels per group)."""
    (x, weight, bias), options = call
    axis = x.ndim - weight.ndim + 1
    dealt = np.arange(x.shape[axis]).reshape(-1, options["groups"]).T.ravel()
    return [x.take(dealt, axis), weight, bias], options


def without_last_tap(call: Call) -> Call:
    (x, weight, bias), options = call
    shortened = weight.copy()
    shortened.reshape(*weight.shape[:2], -1)[:, :, -1] = 0
    return [x, shortened, bias], options


def without_bias(call: Call) -> Call:
    (x, weight, bias), options = call
    return [x, weight, 0 * bias], options


def with_same_padding_leaning_low(call: Call) -> Call:
    arrays, options = call
    if options["padding"] == "same":
        reach = np.subtract(arrays[1].shape[2:], 1) * options["dilation"]
        options["padding"] = [(int(r) - int(r) // 2, int(r) // 2) for r in reach]
    return arrays, options


def with_zeros_for_replicate(call: Call) -> Call:
    return _with_border("zeros", "replicate", call)


def with_replicate_for_zeros(call: Call) -> Call:
    return _with_border("replicate", "zeros", call)


def with_replicate_for_reflect(call: Call) -> Call:
    return _with_border("replicate", "reflect", call)


def with_replicate_for_circular(call: Call) -> Call:
    return _with_border("replicate", "circular", call)


def _with_border(wrong: str, right: str, call: Call) -> Call:
    arrays, options = call
    return arrays, options | ({"padding_mode": wrong} if options["padding_mode"] == right else {})


def with_reflection_that_repeats_the_edge(call: Call) -> Call:
    (x, weight, bias), options = call
    if options["padding_mode"] == "reflect" and not isinstance(options["padding"], str):
        sides = [(0, 0)] * (x.ndim - weight.ndim + 2) + [
            (side, side) for side in options["padding"]
        ]
        x, options["padding"] = np.pad(x, sides, mode="symmetric"), 0
    return [x, weight, bias], options


ANYWHERE = [
    with_flipped_kernel,
    with_swapped_axes,
    with_swapped_channels,
    with_channels_dealt_to_groups,
    without_last_tap,
    without_bias,
]
AT_BORDERS = [
    with_same_padding_leaning_low,
    with_zeros_for_replicate,
    with_replicate_for_zeros,
    with_replicate_for_reflect,
    with_replicate_for_circular,
    with_reflection_that_repeats_the_edge,
]
CONTROLS = [
    *((CONVOLUTIONS, wrong) for wrong in ANYWHERE + AT_BORDERS),
    *((TRANSPOSED, wrong) for wrong in ANYWHERE),
]


@pytest.mark.parametrize(
    ("layers", "wrong"),
    CONTROLS,
    ids=[f"{layers[0].__name__[:-2]}-{wrong.__name__}" for layers, wrong in CONTROLS],
)
def test_torch_contradicts_an_oracle(
    layers: tuple[type[Convolution], ...], wrong: Callable[[Call], Call]
) -> None:
    find(  # raises NoSuchExample if none is found
        integer_cases(torch.float64, layers),
        lambda case: not agrees_with_torch(case, wrong(call_of(case))),
        settings=settings(
            max_examples=500, phases=[Phase.generate], derandomize=True, database=None
        ),
    )
