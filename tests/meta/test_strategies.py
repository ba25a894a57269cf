"""The strategies are as general as they say, within what they say, and find the hard cases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from tests.support.oracle import convolve_module, numbers
from tests.support.strategies import (
    CONVOLUTIONS,
    GREATEST_SHARPNESS,
    LAYERS,
    LEAST_SHARPNESS,
    PADDING_MODES,
    TRANSPOSED,
    Case,
    Convolution,
    Geometry,
    geometries,
    integer_cases,
    precision,
    real_cases,
    sharpnesses,
    terms,
)

FORMATS = pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)


@FORMATS
@given(data=st.data())
def test_torch_accepts_every_case(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(st.one_of(integer_cases(dtype), real_cases(dtype)))
    y = case.run(case.conv)
    assert y.dtype == case.x.dtype == case.conv.weight.dtype == dtype
    assert min(y.shape[-len(case.conv.kernel_size) :]) >= 1
    assert y.shape == convolve_module(case.conv, case.x, case.output_size).shape


@FORMATS
@given(data=st.data())
def test_integer_cases_are_exact_in_any_order(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(integer_cases(dtype))
    magnitudes = convolve_module(case.conv, case.x, case.output_size, magnitudes=True)
    assert magnitudes.exponent >= 0
    assert (magnitudes.at(0) <= 1 << precision(dtype)).all()


@FORMATS
@given(data=st.data())
def test_real_cases_never_overflow(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(real_cases(dtype))
    x, weight = numbers(case.x), numbers(case.conv.weight)
    bias = np.zeros(1) if case.conv.bias is None else numbers(case.conv.bias)
    greatest = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 3)
    products = terms(case.conv) * abs(weight).max() * abs(x).max(initial=0)
    assert products <= greatest
    assert abs(bias).max() <= greatest
    assert torch.isfinite(case.run(case.conv)).all()


@FORMATS
@given(data=st.data())
def test_a_printed_case_is_the_case(dtype: torch.dtype, data: st.DataObject) -> None:
    case = data.draw(st.one_of(integer_cases(dtype), real_cases(dtype)))
    again = eval(repr(case), {"Case": Case, "nn": nn, "torch": torch})
    assert repr(again) == repr(case)
    assert str(again.conv) == str(case.conv)
    assert again.output_size == case.output_size
    parameters = zip(again.conv.parameters(), case.conv.parameters(), strict=True)
    for ours, theirs in [(again.x, case.x), *parameters]:
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert numbers(ours).tobytes() == numbers(theirs).tobytes()


@given(data=st.data())
def test_cases_leave_the_generator_of_torch_alone(data: st.DataObject) -> None:
    before = torch.get_rng_state()
    data.draw(real_cases())
    assert torch.equal(torch.get_rng_state(), before)


@given(geometries(layers=[nn.Conv2d], padding_modes=["circular"]))
def test_the_domain_can_be_narrowed(geometry: Geometry) -> None:
    assert geometry.layer is nn.Conv2d
    assert geometry.options["padding_mode"] == "circular"


@given(sharpnesses())
def test_sharpnesses_are_positive_and_finite(sharpness: float) -> None:
    assert LEAST_SHARPNESS <= sharpness <= GREATEST_SHARPNESS


# The hard cases are really found: each in at least 1 example of 200, in fixed runs.


@dataclass(frozen=True)
class Axis:
    """One axis of a case; `low` and `high` are its padding, or its crop where transposed."""

    pixels: int
    kernel: int
    stride: int
    dilation: int
    low: int
    high: int
    output_padding: int

    @property
    def reach(self) -> int:
        """From the first tap to the last."""
        return self.dilation * (self.kernel - 1)


def pixels(case: Case) -> tuple[int, ...]:
    return tuple(case.x.shape[-len(case.conv.kernel_size) :])


def axes(case: Case) -> list[Axis]:
    conv, padding = case.conv, case.conv.padding
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    low = [r // 2 if padding == "same" else 0 for r in reach]
    high = [r - r // 2 if padding == "same" else 0 for r in reach]
    if not isinstance(padding, str):
        low = high = list(padding)
    options = conv.kernel_size, conv.stride, conv.dilation, low, high, conv.output_padding
    return [Axis(*axis) for axis in zip(pixels(case), *options, strict=True)]


def somewhere(holds: Callable[[Axis], bool], mode: str | None = None) -> Callable[[Case], bool]:
    """Whether it holds on some axis, under this padding mode."""
    return lambda case: mode in (None, case.conv.padding_mode) and any(map(holds, axes(case)))


def is_called_with(size: str) -> Callable[[Case], bool]:
    """Whether output_size is none, the spatial shape, or the whole shape."""

    def holds(case: Case) -> bool:
        extra = None if case.output_size is None else len(case.output_size) - len(pixels(case))
        return {"none": extra is None, "spatial": extra == 0, "whole": bool(extra)}[size]

    return holds


T = TypeVar("T")
Features = dict[str, Callable[[Case], bool]]

ALL: Features = {
    "one pixel": lambda case: set(pixels(case)) == {1},
    "one pixel on one axis of several": lambda case: 1 == min(pixels(case)) < max(pixels(case)),
    "a batch of zero": lambda case: len(case.x) == 0,
    "no batch": lambda case: case.x.ndim == len(pixels(case)) + 1,
    "several images": lambda case: case.x.ndim == len(pixels(case)) + 2 and len(case.x) > 1,
    "a bias": lambda case: case.conv.bias is not None,
    "no bias": lambda case: case.conv.bias is None,
    "one channel": lambda case: case.conv.in_channels == case.conv.out_channels == 1,
    "groups of several channels": lambda case: 1 < case.conv.groups < case.conv.in_channels,
    "depthwise": lambda case: 1 < case.conv.groups == case.conv.in_channels,
    "depthwise, several outputs for an input": lambda case: (
        1 < case.conv.groups == case.conv.in_channels < case.conv.out_channels
    ),
    "a rectangular kernel": lambda case: len(set(case.conv.kernel_size)) > 1,
    "unequal strides": lambda case: len(set(case.conv.stride)) > 1,
    "unequal dilations": lambda case: len(set(case.conv.dilation)) > 1,
    "a single tap": lambda case: set(case.conv.kernel_size) == {1},
    "a single tap, dilated": lambda case: (
        set(case.conv.kernel_size) == {1} and max(case.conv.dilation) > 1
    ),
    "an even kernel": somewhere(lambda a: a.kernel % 2 == 0),
    "a dilated kernel": somewhere(lambda a: a.dilation > 1 < a.kernel),
    "a kernel larger than the image": somewhere(lambda a: a.reach >= a.pixels),
    "a stride beyond the kernel": somewhere(lambda a: a.stride > a.reach + 1),
    "a stride beyond the image": somewhere(lambda a: a.stride > a.pixels),
}
CONVOLVED: Features = {
    "padding in numbers": lambda case: not isinstance(case.conv.padding, str),
    "unequal paddings": lambda case: len({a.low for a in axes(case)}) > 1,
    "valid": lambda case: case.conv.padding == "valid",
    "same": lambda case: case.conv.padding == "same",
    "outputs that see padding alone": somewhere(lambda a: a.low > a.reach),
    "pixels that no output sees": somewhere(
        lambda a: (a.pixels + a.low + a.high - a.reach - 1) % a.stride > a.high
    ),
    **{
        f"{mode}, {name}": somewhere(holds, mode)
        for mode in PADDING_MODES
        for name, holds in {
            "a border": lambda a: a.high > 0,
            "no border": lambda a: a.high == 0,
            "a lopsided border": lambda a: a.low < a.high,
        }.items()
    },
    "reflect, the whole image": somewhere(lambda a: 0 < a.low == a.pixels - 1, "reflect"),
    "circular, the whole image": somewhere(lambda a: 0 < a.low == a.pixels, "circular"),
    "replicate, beyond the image": somewhere(lambda a: a.low > a.pixels, "replicate"),
    "zeros, beyond the image": somewhere(lambda a: a.low > a.pixels, "zeros"),
}
SCATTERED: Features = {
    "output_padding": somewhere(lambda a: a.output_padding > 0),
    "output_padding within the dilation alone": somewhere(lambda a: a.output_padding >= a.stride),
    "output_padding without output_size": lambda case: (
        case.output_size is None and max(case.conv.output_padding) > 0
    ),
    **{f"output_size: {size}": is_called_with(size) for size in ("none", "spatial", "whole")},
    "a crop": somewhere(lambda a: a.low > 0),
    "a crop beyond the kernel": somewhere(lambda a: a.low > a.reach),
    "unequal crops": lambda case: len({a.low for a in axes(case)}) > 1,
    "gaps between the copies of a kernel": somewhere(
        lambda a: a.stride > a.reach + 1 and a.pixels > 1
    ),
    "copies that overlap": somewhere(lambda a: a.stride <= a.reach and a.pixels > 1),
}


def counted(
    examples: st.SearchStrategy[T], features: Mapping[str, Callable[[T], bool]], number: int
) -> Counter[str]:
    """In how many of a fixed number of examples each feature is seen."""
    counts = Counter(dict.fromkeys(features, 0))

    @settings(max_examples=number, derandomize=True, database=None, phases=[Phase.generate])
    @given(examples)
    def count(example: T) -> None:
        counts.update(name for name, holds in features.items() if holds(example))

    count()
    return counts


def by_class(layers: tuple[type[Convolution], ...]) -> Features:
    def is_one(layer: type[Convolution]) -> Callable[[Case], bool]:
        return lambda case: type(case.conv) is layer

    return {layer.__name__: is_one(layer) for layer in layers}


@pytest.mark.parametrize(
    ("layers", "features"),
    [(CONVOLUTIONS, ALL | CONVOLVED), (TRANSPOSED, ALL | SCATTERED)],
    ids=["convolutions", "transposed convolutions"],
)
def test_hard_geometries_are_found(
    layers: tuple[type[Convolution], ...], features: Features
) -> None:
    counts = counted(integer_cases(torch.float32, layers), features | by_class(layers), 500)
    rare = {name: count for name, count in counts.items() if count < 5}
    assert not rare


@FORMATS
def test_integers_use_all_the_bits_of_the_format(dtype: torch.dtype) -> None:
    def greatest(case: Case) -> int:
        magnitudes = convolve_module(case.conv, case.x, case.output_size, magnitudes=True)
        return int(magnitudes.at(0).max(initial=0))

    limit = 1 << precision(dtype)
    counts = counted(
        integer_cases(dtype),
        {
            "the last bit in use": lambda case: greatest(case) > limit // 2,
            "a few ones": lambda case: greatest(case) <= 16,
            **by_class(LAYERS),
        },
        150,
    )
    assert min(counts.values()) >= 3, counts


@FORMATS
def test_hard_numbers_are_found(dtype: torch.dtype) -> None:
    facts = torch.finfo(dtype)

    def of_image(holds: Callable[[NDArray[np.float64]], bool]) -> Callable[[Case], bool]:
        return lambda case: case.x.numel() > 0 and holds(numbers(case.x))

    def is_lost(case: Case) -> bool:
        """Some output is too small for the format, and not zero."""
        y = abs(convolve_module(case.conv, case.x, case.output_size).nearest())
        return bool(((y > 0) & (y < facts.tiny)).any())

    counts = counted(
        real_cases(dtype),
        {
            "negative": of_image(lambda x: bool((x < 0).any())),
            "zero": of_image(lambda x: bool((x == 0).any())),
            "negative zero": of_image(lambda x: bool(((x == 0) & np.signbit(x)).any())),
            "zero only": of_image(lambda x: not x.any()),
            "subnormal": of_image(
                lambda x: bool(((x != 0) & (abs(x) < facts.smallest_normal)).any())
            ),
            "large": of_image(lambda x: abs(x).max() > facts.max / 2**20),
            "many scales": of_image(
                lambda x: abs(x).max() / 2**20 > abs(x[x != 0]).min(initial=math.inf)
            ),
            "a subnormal output": is_lost,
        },
        150,
    )
    assert min(counts.values()) >= 1, counts
    assert counts["zero only"] < 50, counts


def test_sharpnesses_of_every_kind_are_found() -> None:
    def within(low: float, high: float) -> Callable[[float], bool]:
        return lambda sharpness: low <= sharpness <= high

    edges = [1e-3, 1e-1, 17.3, 17.34, 46.0, 87.33, 92.88, 103.97, 104.0, 745.13, 2000.0]
    bands = {f"{low} to {high}": within(low, high) for low, high in pairwise(edges)}
    counts = counted(sharpnesses(), bands, 300)
    assert min(counts.values()) >= 3, counts
