"""Convolutions as plain sums: tap by tap they are torch's own, and never copy a pixel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import attention_from_conv, certify
from constructions.certificate import comparison
from constructions.sources import stencil, sums
from constructions.sources.sums import by_taps, pays_by_taps
from tests.support.helpers import filled, integers

CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@given(data=st.data(), rank=st.sampled_from([1, 2, 3]))
def test_convolution_by_taps_is_torchs_own_on_integers(data: st.DataObject, rank: int) -> None:
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    reach = [step * (n - 1) for step, n in zip(dilation, kernel, strict=True)]
    shape = [n + 1 + data.draw(st.integers(0, 3)) for n in reach]
    batch, inputs, outputs = (
        data.draw(st.integers(*range_)) for range_ in ((0, 2), (1, 3), (1, 3))
    )
    image = integers(batch, inputs, *shape, dtype=torch.float64)
    weight = integers(outputs, inputs, *kernel, dtype=torch.float64)
    expected = CONVOLUTIONS[rank](image, weight, dilation=dilation)
    assert torch.equal(by_taps(image, weight, dilation), expected)


def test_taps_in_the_reverse_order_are_another_convolution() -> None:
    image, weight = integers(1, 2, 6, 5).double(), integers(3, 2, 2, 3).double()
    wrong = by_taps(image, weight.flip(2, 3), (1, 1))
    assert not torch.equal(wrong, F.conv2d(image, weight))


def test_it_is_for_long_products_in_float64_of_stride_1_without_groups() -> None:
    image, weight = torch.zeros(1, 16, 32, 32).double(), torch.zeros(4, 16, 3, 3).double()
    assert pays_by_taps(image, weight, (1, 1))
    assert not pays_by_taps(image.float(), weight.float(), (1, 1))
    assert not pays_by_taps(image, weight, (1, 2))
    assert not pays_by_taps(image, weight, (1, 1), groups=2)
    assert not pays_by_taps(image[:, :15], weight[:, :15], (1, 1))
    assert not pays_by_taps(image[:, :, :31], weight, (1, 1))
    assert not pays_by_taps(image.to("meta"), weight.to("meta"), (1, 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
def test_certificate_is_the_same_by_taps_or_in_bands(
    sharpness: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, bias=bias))
    layer, x = attention_from_conv(conv, sharpness=sharpness), integers(2, 2, 6, 7)
    in_bands, calls = certify(layer, conv, x), list[int]()
    monkeypatch.setattr(sums, "LONG_PRODUCTS", (1, 1))

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return by_taps(*arguments)

    for module in (comparison, stencil):
        monkeypatch.setattr(module, "by_taps", counted)
    certificate = certify(layer, conv, x)
    assert calls
    assert torch.equal(certificate.error, in_bands.error)  # of integers, or of one order of sums
    assert certificate.holds
    same = certificate.leak - in_bands.leak
    # Each is within (15) of the leak: 2 n + 64 roundings of float64, of what is itself so small.
    assert (same.abs() <= (4 * 18 + 128) * 2.0**-53 * in_bands.bound).all()
