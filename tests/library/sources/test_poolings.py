"""Average pooling is one uniform head: every option of torch is a choice of the keys it shares."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify, convert, formats
from constructions.sources.poolings import Pooling as AnyPooling
from tests.support.helpers import integers, refused
from tests.support.ledger import record
from tests.support.oracle import numbers

Phrases = tuple[str, str, str]
POOLINGS: tuple[type[AnyPooling], ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


@st.composite
def poolings(draw: st.DrawFn) -> tuple[AnyPooling, Tensor]:
    """Every average pooling of torch, with an image of integers that it accepts.

    Conditions, torch's own: the padding is at most half the window, and a window fits into the
    padded image, that of a volume even into the image itself.
    """
    rank = draw(st.integers(1, 3))
    window = [draw(st.integers(1, 4)) for _ in range(rank)]
    stride = [draw(st.integers(1, 5)) for _ in range(rank)]
    padding = [draw(st.integers(0, size // 2)) for size in window]
    options: dict[str, Any] = {
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    if rank > 1:
        options["divisor_override"] = draw(
            # The last two are divisors whose quotient is subnormal in float16, or 0 in it.
            st.sampled_from([None, 1, 7, -3, 64, 100003, 10**9])
        )
    kind: Any = POOLINGS[rank - 1]
    pool = kind(
        tuple(window), draw(st.sampled_from([None, tuple(stride)])), tuple(padding), **options
    )
    least = [
        size if rank == 3 else max(1, size - 2 * pad)
        for size, pad in zip(window, padding, strict=True)
    ]
    shape = [draw(st.integers(size, size + 4)) for size in least]
    lead = draw(st.sampled_from([[2], [], [1], [0]]))
    channels = draw(st.integers(1, 3))
    x = integers(*lead, channels, *shape, dtype=torch.float64) * draw(st.sampled_from([1, 1000]))
    return pool, x


def pooled(pool: AnyPooling, x: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Average pooling by its definition: sums as integers, and divisors, of every output."""
    rank = POOLINGS.index(type(pool)) + 1
    window, padding = (tuple(np.atleast_1d(getattr(pool, n))) for n in ("kernel_size", "padding"))
    stride = window if pool.stride is None else tuple(np.atleast_1d(pool.stride))
    image = numbers(x).astype(np.int64)
    size = image.shape[-rank:]
    ranges = []
    for n, w, s, p in zip(size, window, stride, padding, strict=True):
        starts = []
        start = -p
        # A window belongs to the output while it ends in the padded image; in ceil mode, while it
        # begins before the padding on the far side does.
        while start + w <= n + p or (pool.ceil_mode and start < n and start - s + w < n + p):
            starts.append(start)
            start += s
        ranges.append([(a, w, n, p) for a in starts])
    lead = image.shape[:-rank]
    sums = np.zeros((*lead, *map(len, ranges)), dtype=object)
    divisors = np.zeros(tuple(map(len, ranges)), dtype=object)
    for index in itertools.product(*(range(len(r)) for r in ranges)):
        axes = [r[i] for r, i in zip(ranges, index, strict=True)]
        inside: Any = (..., *(slice(max(a, 0), min(a + w, n)) for a, w, n, _ in axes))
        at: Any = (..., *index)
        sums[at] = image[inside].sum(axis=tuple(range(-rank, 0)))
        if (override := getattr(pool, "divisor_override", None)) is not None:
            divisors[index] = override
        elif pool.count_include_pad:
            divisors[index] = math.prod(int(min(a + w, n + p) - a) for a, w, n, p in axes)
        else:
            divisors[index] = math.prod(int(min(a + w, n) - max(a, 0)) for a, w, n, _ in axes)
    return sums, divisors


def error_of(y: Tensor, pool: AnyPooling, x: Tensor) -> NDArray[np.float64]:
    """|y - pooling|, rounded up; exact, by multiplying with the divisors."""
    sums, divisors = pooled(pool, x)
    assert tuple(y.shape) == sums.shape
    values, errors = numbers(y), np.zeros(sums.shape)
    for index in np.ndindex(*sums.shape):
        divisor = Fraction(int(divisors[index[len(sums.shape) - divisors.ndim :]]))
        distance = abs(Fraction(float(values[index])) - Fraction(int(sums[index])) / divisor)
        errors[index] = math.nextafter(float(distance), math.inf) if distance else 0.0
    return errors


@pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
@given(drawn=poolings())
def test_a_uniform_head_pools_within_its_certificate(
    drawn: tuple[AnyPooling, Tensor], dtype: torch.dtype, evaluation: str, device: str
) -> None:
    pool, image = drawn
    x = image.to(device, dtype)
    layer = attention_from_conv(pool, evaluation=evaluation).to(device, dtype)
    certificate = certify(layer, pool, x)
    assert certificate.holds
    assert (certificate.leak == 0).all()
    error, bound = error_of(layer(x), pool, x), certificate.bound.numpy()
    assert (error <= bound).all()
    ratio = np.divide(error, bound, out=np.zeros_like(error), where=bound > 0)
    record(ratio=float(ratio.max(initial=0.0)), device=device, dtype=dtype)


@pytest.mark.parametrize("divisor", [16385, 100003, -100003, 2**24 + 1, 2**25, 10**9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_quotient_that_is_subnormal_is_within_the_certificate(
    dtype: torch.dtype, divisor: int
) -> None:
    pool = nn.AvgPool2d((1, 1), padding=(0, 0), divisor_override=divisor)
    x = torch.tensor([32.0, 0.0, -3.0, 65504.0]).reshape(1, 1, 2, 2).to(dtype)
    certificate = certify(attention_from_conv(pool).to(dtype), pool, x)
    assert certificate.holds
    error = error_of(attention_from_conv(pool).to(dtype)(x), pool, x)
    assert (error <= certificate.bound.numpy()).all()


def test_a_quotient_that_overflows_is_not_certified() -> None:
    pool, x = nn.AvgPool1d(1), torch.ones(1, 1, 4).half()
    assert certify(attention_from_conv(pool).half(), pool, x).bound.isfinite().all()
    wide = nn.AvgPool2d(257, divisor_override=1)  # 66049 is beyond float16
    layer, ones = attention_from_conv(wide).half(), torch.ones(1, 1, 257, 257).half()
    assert certify(layer, wide, ones).bound.isinf().all()
    for image in (0 * ones, ones / 2):
        assert certify(layer, wide, image).bound.isfinite().all()


@given(drawn=poolings())
def test_pooling_has_the_shape_and_the_dtype_that_torch_returns(
    drawn: tuple[AnyPooling, Tensor],
) -> None:
    pool, x = drawn
    layer = attention_from_conv(pool).double()
    assert layer(x).shape == pool(x).shape
    assert layer(x).dtype == pool(x).dtype
    assert layer.num_heads == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
def test_windows_of_a_power_of_two_pool_integers_bit_for_bit(
    dtype: torch.dtype, evaluation: str
) -> None:
    for pool in (nn.AvgPool1d(4), nn.AvgPool2d(2), nn.AvgPool3d((1, 2, 4), divisor_override=16)):
        x = integers(2, 3, *[8] * (POOLINGS.index(type(pool)) + 1), dtype=dtype)
        layer = attention_from_conv(pool, evaluation=evaluation).to(dtype)
        assert torch.equal(layer(x), pool(x))


def test_weights_are_uniform_over_what_torch_counts() -> None:
    pixels = attention_from_conv(nn.AvgPool1d(3, 1, 1, count_include_pad=False))
    assert (pixels.boundary, pixels.has_sink) == ("natural", False)
    weights = pixels.attention_weights((3,))[0]
    assert torch.equal(weights[0], torch.tensor([0.5, 0.5, 0.0]))
    padded = attention_from_conv(nn.AvgPool1d(2, 1, 1))
    assert (padded.boundary, padded.has_sink) == ("padded", False)
    weights = padded.attention_weights((2,))[0]  # one key before the two pixels, one after
    assert torch.equal(weights[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_networks_convert_with_their_pooling() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1))
    for dtype in (torch.float32, torch.float64):
        converted: Any = convert(model.to(dtype), sharpness=3.0, boundary="padded")
        pool = converted[1]
        assert pool.num_heads == 1
        x = integers(2, 4, 6, 6, dtype=dtype)
        source: Any = model[1]
        assert_equivalent(pool, source, x)
        assert pool(x).dtype == dtype
        assert not list(pool.parameters())
        assert not pool.state_dict()


class Sized(nn.AvgPool1d):
    """A pooling with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Something else."""
        return x


@pytest.mark.parametrize(
    ("pool", "options", "kind", "phrases"),
    [
        (
            lambda: nn.AvgPool1d(2),
            {"encoding": "periodic"},
            ValueError,
            ("encoding", "Periodic()", "none"),
        ),
        (
            lambda: nn.AvgPool1d(2),
            {"boundary": "natural"},
            ValueError,
            ("boundary", "'natural'", "'padded'"),
        ),
        (
            lambda: nn.AvgPool1d(3, padding=2),
            {},
            ValueError,
            ("conv", "padding (2,)", "at most half of its kernel_size, (3,)"),
        ),
        (
            lambda: nn.AvgPool2d(2, divisor_override=0),
            {},
            ValueError,
            ("conv", "divisor_override 0", "non-zero"),
        ),
        (lambda: Sized(2), {}, TypeError, ("conv", "Sized", "nn.AvgPool1d computes")),
        (lambda: nn.MaxPool2d(2), {}, TypeError, ("conv", "MaxPool2d", "nn.AvgPool2d")),
    ],
    ids=["encoding", "boundary", "padding", "divisor", "subclass", "other pooling"],
)
def test_pooling_is_refused(
    pool: Callable[[], Any],
    options: dict[str, Any],
    kind: type[Exception],
    phrases: Phrases,
) -> None:
    with refused(kind, *phrases):
        attention_from_conv(pool(), **options)


@pytest.mark.parametrize(
    "wrong",
    [nn.AvgPool1d(2, 2), nn.AvgPool1d(3, 1, 1), nn.AvgPool1d(3, 2, 1, count_include_pad=False)],
    ids=["window", "stride", "what is counted"],
)
def test_a_wrong_pooling_breaks_its_certificate(wrong: nn.AvgPool1d) -> None:
    pool, x = nn.AvgPool1d(3, 2, 1), integers(1, 2, 7) + 5
    if wrong(x).shape != pool(x).shape:
        with pytest.raises(AssertionError, match="shape"):
            certify(attention_from_conv(wrong), pool, x)
    else:
        assert not certify(attention_from_conv(wrong), pool, x).holds
