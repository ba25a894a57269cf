"""Bounds where numbers overflow: inf, never NaN, and finite where nothing can overflow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.certificate import Certificate
from constructions.formats import FORMATS

EVERY_FORMAT = pytest.mark.parametrize("dtype", FORMATS, ids=str)
IN_EVERY_WAY = pytest.mark.parametrize("evaluation", ["dense", "factored", "fused"])


def has_numbers(certificate: Certificate) -> bool:
    parts = certificate.leak, certificate.rounding, certificate.bound, certificate.error
    return not any(part.isnan().any() for part in parts)


def light(dtype: torch.dtype, **options: Any) -> nn.Conv1d:
    """One channel and one tap, of a weight with which no sum over taps overflows."""
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=dtype, **options)
    with torch.no_grad():
        conv.weight.fill_(2.0**-8)
    return conv


@IN_EVERY_WAY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_heads_that_may_overflow_before_the_convolution_does_make_it_infinite(
    dtype: torch.dtype, evaluation: str
) -> None:
    conv = light(dtype)
    layer = attention_from_conv(conv, sharpness=0.02, evaluation=evaluation)
    largest = torch.finfo(dtype).max
    at_most = certify(layer, conv, torch.full((1, 1, 2), largest, dtype=dtype))
    assert at_most.holds
    assert has_numbers(at_most)
    assert at_most.bound.isinf().all()
    # Two keys, and so a fused kernel may add up twice the largest before it divides.
    below = certify(layer, conv, torch.full((1, 1, 2), largest * 0.49, dtype=dtype))
    assert below.holds
    assert below.bound.isfinite().all()


@EVERY_FORMAT
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
def test_one_hot_heads_hand_on_the_largest_number_as_it_is(
    dtype: torch.dtype, evaluation: str
) -> None:
    conv = light(dtype)
    x = torch.full((1, 1, 3), torch.finfo(dtype).max, dtype=dtype)
    certificate = certify(attention_from_conv(conv, evaluation=evaluation), conv, x)
    assert certificate.holds
    assert certificate.bound.isfinite().all()


def test_a_fused_kernel_may_overflow_on_its_way_to_the_peak_of_a_row() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.fill_(2.0**-8)
    # Of 40 x 40 keys those before the 512th, itself the peak of its row, hold two that tie.
    x = torch.full((1, 1, 40, 40), torch.finfo(torch.float32).max)
    certificate = certify(attention_from_conv(conv, evaluation="fused"), conv, x)
    assert certificate.holds
    assert certificate.bound.isinf().all()
    smaller = certify(attention_from_conv(conv, evaluation="fused"), conv, x / 2000)
    assert smaller.holds
    assert smaller.bound.isfinite().all()


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["one sign", "both signs"])
def test_a_reference_that_overflows_makes_the_bound_infinite(sign: float) -> None:
    largest = torch.finfo(torch.float64).max
    x = torch.tensor([[[largest, sign * largest, largest, largest]]], dtype=torch.float64)
    pool = nn.AvgPool1d(2)  # adds before it divides
    certificate = certify(attention_from_conv(pool).double(), pool, x)
    assert certificate.holds
    assert has_numbers(certificate)
    assert certificate.bound.isinf().all()
    half = certify(attention_from_conv(pool).double(), pool, x * 0.49)
    assert half.holds
    assert half.bound.isfinite().all()


@st.composite
def largest_pixels(draw: st.DrawFn, dtype: torch.dtype) -> tuple[Any, Tensor]:
    """A convolution or a pooling, and pixels near the largest number of a format, or zero."""
    dimension, largest = draw(st.integers(1, 2)), torch.finfo(dtype).max
    size = draw(st.integers(3, 9))
    near = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1 - 2.0**-8, 1 - 2.0**-20, -(1 - 2.0**-50)])
    count = size**dimension
    pixels = draw(st.lists(near, min_size=count, max_size=count))
    x = (torch.tensor(pixels, dtype=torch.float64) * largest).to(dtype)
    x = x.clamp(-largest, largest).reshape(1, 1, *[size] * dimension)
    if draw(st.booleans()):
        pooling: Any = (nn.AvgPool1d, nn.AvgPool2d)[dimension - 1]
        return pooling(draw(st.integers(1, 3))), x
    kind: Any = (nn.Conv1d, nn.Conv2d)[dimension - 1]
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"]))
    conv = kind(1, 2, 3, padding=1, padding_mode=mode, dtype=dtype)
    entries = st.sampled_from([0.0, 1.0, -1.0, 0.3, 2.0**-12, 1 / largest, math.inf])
    for parameter in conv.parameters():
        values = [draw(entries) for _ in range(parameter.numel())]
        numbers = torch.tensor(values, dtype=torch.float64).clamp(max=largest)
        with torch.no_grad():
            parameter.copy_(numbers.reshape(parameter.shape).to(dtype))
    return conv, x


@EVERY_FORMAT
@IN_EVERY_WAY
@given(data=st.data(), sharpness=st.sampled_from([None, 5e-324, 0.02, 0.5, 3.0, 20.0, 60.0]))
def test_bound_of_the_largest_pixels_is_a_number_or_infinite(
    dtype: torch.dtype, evaluation: str, data: st.DataObject, sharpness: float | None
) -> None:
    source, x = data.draw(largest_pixels(dtype))
    if isinstance(source, nn.AvgPool1d | nn.AvgPool2d):
        way = "auto" if evaluation == "fused" else evaluation
        layer = attention_from_conv(source, evaluation=way).to(dtype)
    else:
        layer = attention_from_conv(
            source, sharpness=sharpness, evaluation=evaluation, boundary="padded"
        )
    certificate = certify(layer, source, x)
    assert has_numbers(certificate)
    assert certificate.holds
