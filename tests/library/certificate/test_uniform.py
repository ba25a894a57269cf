"""The uniform head of a pooling: what it sees, and what its weights round.

That a pooling layer is within its certificate is tested in `sources/test_poolings.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import attention_from_conv, certify
from constructions.certificate.comparison import Comparison
from constructions.formats import FORMATS
from tests.support.helpers import integers


@given(width=st.sampled_from([1, 2, 4, 8]), windows=st.integers(1, 4), channels=st.integers(1, 3))
def test_a_window_of_a_power_of_two_keys_is_seen_as_its_mean_exactly(
    width: int, windows: int, channels: int
) -> None:
    x = integers(2, channels, width * windows)
    comparison = Comparison.of(nn.AvgPool1d(width), x)
    assert comparison.window is not None
    means = x.double().numpy().reshape(2 * channels, 1, windows, width).mean(axis=-1)
    # Keys of one weight, a power of two: nothing rounds.
    assert np.array_equal(comparison.limit.numpy(), means)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_quotient_that_is_off_by_more_than_a_rounding_is_not_granted(dtype: torch.dtype) -> None:
    pool, x = nn.AvgPool2d(2, divisor_override=3), integers(1, 2, 4, 4, dtype=dtype) + 1
    layer = attention_from_conv(pool).to(dtype)
    assert certify(layer, pool, x).holds
    with torch.no_grad():
        layer.value.mul_(1.25)
    assert not certify(layer, pool, x).holds


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_a_pooling_to_one_pixel_has_the_bound_of_the_window_that_it_is(dtype: torch.dtype) -> None:
    x = integers(2, 3, 4, 5, dtype=dtype)
    whole, window = nn.AdaptiveAvgPool2d(1), nn.AvgPool2d((4, 5))
    certificates = [
        certify(attention_from_conv(pool).to(dtype), pool, x) for pool in (whole, window)
    ]
    assert all(certificate.holds for certificate in certificates)
    assert certificates[0].bound.isfinite().all()
    assert torch.equal(certificates[0].bound, certificates[1].bound)
