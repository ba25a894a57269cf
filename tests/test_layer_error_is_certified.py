"""The attention layer built from a convolution differs from it, at every output, by at most a leak plus a rounding that are computed from the input at hand.

T7, `docs/theorems/layer_error_is_certified.md`. The truth is exact rational arithmetic in NumPy.
"""  # noqa: E501, the claim is one sentence

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, bounds, certify, formats
from constructions.attention import MultiHeadSelfAttention
from constructions.certificate import Certificate
from constructions.stencil import Stencil
from tests.ledger import record
from tests.oracle import convolve_module, exact_error, numbers
from tests.strategies import Case, integer_cases, real_cases, sharpnesses
from theory import layer_error_is_certified as theory
from theory.quadratic_scores_select_one_shift import ball, precision
from theory.saturated_softmax_is_one_hot import ACCUMULATOR, EXP_ULPS, FORMATS

SLUG = "layer_error_is_certified"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)


@symbolic
def test_the_proof_runs() -> None:
    assert theory.prove()


# The bound holds ----------------------------------------------------------------------------------


def true_ratio(case: Case, layer: MultiHeadSelfAttention, bound: Tensor) -> float:
    """The layer's largest error from the exact convolution, over the bound."""
    truth = convolve_module(case.conv, case.x, case.output_size)
    error = exact_error(numbers(case.run(layer)), truth)
    limit = bound.numpy()
    within = (error == 0) | np.isinf(limit)
    quotient = np.divide(error, limit, out=np.full_like(error, math.inf), where=limit > 0)
    return float(np.where(within, 0.0, quotient).max(initial=0.0))


def certified(case: Case, layer: MultiHeadSelfAttention) -> Certificate:
    return certify(layer, case.conv, case.x, output_size=case.output_size)


every_boundary = pytest.mark.parametrize("boundary", ["auto", "padded"])
every_evaluation = pytest.mark.parametrize("evaluation", ["dense", "factored"])


@bounded
@every_format
@every_boundary
@every_evaluation
@given(data=st.data())
def test_a_layer_of_any_sharpness_errs_within_the_bound(
    data: st.DataObject, device: str, dtype: torch.dtype, boundary: str, evaluation: str
) -> None:
    case = data.draw(real_cases(dtype), label="case").to(device)
    sharpness = data.draw(sharpnesses() | st.none(), label="sharpness")
    layer = attention_from_conv(
        case.conv, sharpness=sharpness, boundary=boundary, evaluation=evaluation
    )
    certificate = certified(case, layer)
    assert not certificate.bound.isnan().any()
    ratio = true_ratio(case, layer, certificate.bound)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1.0
    assert certificate.holds
    # The bound is sharp where the leak is what counts.
    leaking = (certificate.leak >= 10 * certificate.rounding) & (certificate.leak > 0)
    assert (certificate.bound <= 20 * certificate.error)[leaking].all()


@bounded
@every_format
@given(data=st.data())
def test_a_saturated_layer_errs_by_the_rounding_of_its_sum_alone(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(real_cases(dtype), label="case").to(device)
    layer = attention_from_conv(case.conv)
    certificate = certified(case, layer)
    assert (certificate.leak == 0).all()
    ratio = true_ratio(case, layer, certificate.rounding)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1.0


@exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_on_integers_a_saturated_layer_has_no_error_to_certify(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype), label="case").to(device)
    certificate = certified(case, attention_from_conv(case.conv))
    record(device=device, dtype=dtype)
    assert (certificate.error == 0).all()
    assert certificate.ratio == 0.0


@bounded
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sharpness", [None, 8.0], ids=["saturated", "sharpness 8"])
def test_sums_of_thousands_of_terms_in_low_precision_stay_within_the_bound(
    device: str, dtype: torch.dtype, sharpness: float | None
) -> None:
    # 4608 terms: n u = 18 in bfloat16, where the usual n u / (1 - n u) has no meaning.
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(512, 2, 3, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(torch.rand(conv.weight.shape, generator=generator))
    x = torch.rand(1, 512, 4, 4, generator=generator).to(dtype)
    case = Case(conv, x).to(device)
    layer = attention_from_conv(case.conv, sharpness=sharpness)
    certificate = certified(case, layer)
    ratio = true_ratio(case, layer, certificate.bound)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1.0
    assert certificate.bound.isfinite().all()


@bounded
def test_where_the_output_overflows_nothing_is_claimed() -> None:
    conv = nn.Conv1d(2, 1, 1, bias=False, dtype=torch.float16)
    nn.init.constant_(conv.weight, 200.0)
    x = torch.tensor([[[1.0, 200.0], [1.0, 200.0]]], dtype=torch.float16)
    certificate = certify(attention_from_conv(conv), conv, x)
    assert certificate.rounding.isinf().tolist() == [[[False, True]]]
    assert certificate.error.isinf().tolist() == [[[False, True]]]
    assert certificate.holds


# The bound is sharp -------------------------------------------------------------------------------


@bounded
@pytest.mark.parametrize("sharpness", [0.01, 0.7, 3.0, 12.0, 25.0])
def test_a_head_with_two_keys_attains_the_leak(sharpness: float) -> None:
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    x = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    certificate = certify(attention_from_conv(conv, sharpness=sharpness), conv, x)
    # The bound is exact up to what rounding can have done to the layer.
    assert (certificate.error + certificate.rounding >= certificate.leak).all()
    record(ratio=certificate.ratio, dtype=torch.float64)


@bounded
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 5.0, 20.0])
def test_the_leak_is_the_error_at_a_bright_pixel(rank: int, sharpness: float) -> None:
    convolution: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    conv = convolution(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, *[5] * rank, dtype=torch.float64)
    x.view(-1)[x.numel() // 2] = 1.0
    certificate = certify(attention_from_conv(conv, sharpness=sharpness), conv, x)
    assert certificate.holds
    assert (certificate.error + certificate.rounding >= certificate.leak).all()
    record(ratio=certificate.ratio, dtype=torch.float64)


# The code is the page -----------------------------------------------------------------------------


def as_page(
    seen: Fraction, largest: Fraction, mass: Fraction, keys: int, dtype: torch.dtype
) -> tuple[arb, arb]:
    """N_1 and N_2 of equations (9) and (11), evaluated rigorously."""
    name = str(dtype).removeprefix("torch.")
    of, exact_format = FORMATS[name], ACCUMULATOR[name]
    u, tiny = ball(exact_format.unit_roundoff), ball(exact_format.smallest_normal)
    eta = ball(exact_format.smallest_subnormal)
    same = of == exact_format
    u_w = arb(0) if same else ball(of.unit_roundoff)
    eta_w = arb(0) if same else ball(of.smallest_subnormal)
    tau = (EXP_ULPS + 2 * (1 - tiny.log())) * u * ball(1 + Fraction(1, 2**12))
    gamma = (1 + u) ** keys - 1
    beta = tau + 2 * keys * tiny + gamma
    rho = ((2 * u + u_w) * (1 + 2 * u) + beta) / (1 - beta)
    mu = (1 + tau) * (1 + rho) - 1
    z = keys * (2 * tiny * (1 + rho) + eta + eta_w)
    first = ((1 + mu) * (1 + gamma) - 1) * ball(seen) + (1 + gamma) * z * ball(largest) + keys * eta
    stored = (1 + u) ** 2 * ((1 + tau) * ball(mass) + 2 * keys * tiny) + keys * eta
    return first, 26 * (1 + gamma) * stored * ball(largest)


@bounded
@every_format
@given(
    exponent=st.integers(-400, 4),
    keys=st.integers(2, 10**5),
    largest=st.fractions(min_value=0, max_value=2**20, max_denominator=2**20),
    part=st.fractions(min_value=0, max_value=1, max_denominator=2**10),
)
def test_the_rounding_of_a_head_is_that_of_the_page_rounded_up(
    dtype: torch.dtype, exponent: int, keys: int, largest: Fraction, part: Fraction
) -> None:
    mass = Fraction(2) ** exponent
    largest = Fraction(float(largest))
    seen = Fraction(float(largest * part))
    coded = bounds.head_rounding(
        torch.tensor(float(seen), dtype=torch.float64),
        torch.tensor(float(largest), dtype=torch.float64),
        torch.tensor(float(mass), dtype=torch.float64),
        (keys,),
        dtype,
    )
    with precision(400):
        first, second = as_page(seen, largest, mass, keys, dtype)
        stated = first if first < second else second
        assert arb(coded.item()) >= stated
        # For one softmax the code doubles what underflow loses, and rounds up.
        assert arb(coded.item()) <= 2 * stated * ball(1 + Fraction(1, 2**40))


@bounded
@every_format
@given(terms=st.integers(1, 10**6))
def test_gamma_is_what_that_many_roundings_can_do(dtype: torch.dtype, terms: int) -> None:
    coded = bounds.gamma(terms, dtype)
    with precision(400):
        stated = (1 + arb(formats.unit_roundoff(dtype))) ** terms - 1
        if math.isinf(coded):
            assert stated.log() > 699
        else:
            # The argument of the exponential, below 700 < 2^10, is raised by one part in 2^46.
            assert stated <= arb(coded) <= stated * ball(1 + Fraction(1, 2**35))


# What the bound rejects ---------------------------------------------------------------------------


def reversed_kernel(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift.data = layer.positional_shift.data.flip(0)


def swapped_axes(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift.data = layer.positional_shift.data.flip(1)


def missing_head(layer: MultiHeadSelfAttention) -> None:
    layer.output.data[0] = 0


def two_heads_swapped(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift.data[[0, 1]] = layer.positional_shift.data[[1, 0]]


def matrices_shared_between_heads(layer: MultiHeadSelfAttention) -> None:
    layer.value.data[:] = layer.value.data[:1].clone()
    layer.output.data[:] = layer.output.data[:1].clone()


def weak_sharpness(layer: MultiHeadSelfAttention) -> None:
    layer.positional_key.data[:, 0] *= 1 / 32  # blurs, while the layer still states its sharpness
    layer.positional_key.data[:, 1:] *= 1 / 32


def forgotten_bias(layer: MultiHeadSelfAttention) -> None:
    layer.bias = None


WRONG_LAYERS: list[Callable[[MultiHeadSelfAttention], None]] = [
    reversed_kernel,
    swapped_axes,
    missing_head,
    two_heads_swapped,
    matrices_shared_between_heads,
    weak_sharpness,
    forgotten_bias,
]


def plain_case(dtype: torch.dtype, padding_mode: Any = "zeros") -> Case:
    """A 3 x 3 convolution whose taps and pixels all differ."""
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode=padding_mode, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return Case(conv, torch.rand(2, 2, 6, 5, generator=generator).to(dtype))


@control
@every_format
@pytest.mark.parametrize("sharpness", [None, 16.0], ids=["saturated", "sharpness 16"])
@pytest.mark.parametrize("spoil", WRONG_LAYERS, ids=lambda spoil: spoil.__name__)
def test_a_wrong_layer_breaks_its_certificate(
    dtype: torch.dtype, sharpness: float | None, spoil: Callable[[MultiHeadSelfAttention], None]
) -> None:
    case = plain_case(dtype)
    layer = attention_from_conv(case.conv, sharpness=sharpness)
    assert certified(case, layer).holds
    spoil(layer)
    assert not certified(case, layer).holds
    with pytest.raises(AssertionError, match=SLUG):
        assert_equivalent(layer, case.conv, case.x)


@control
@every_format
@pytest.mark.parametrize("wrong", ["replicate", "reflect", "circular"])
def test_a_wrong_border_breaks_the_certificate(dtype: torch.dtype, wrong: str) -> None:
    case = plain_case(dtype)
    other = plain_case(dtype, padding_mode=wrong)
    assert not certified(case, attention_from_conv(other.conv)).holds


@control
def test_half_the_leak_is_no_bound() -> None:
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    x = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    certificate = certify(attention_from_conv(conv, sharpness=3.0), conv, x)
    assert not replace(certificate, leak=certificate.leak / 2).holds


@control
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_bound_without_the_rounding_of_the_output_is_no_bound(dtype: torch.dtype) -> None:
    case = plain_case(dtype)
    certificate = certified(case, attention_from_conv(case.conv))
    wide = certify(
        attention_from_conv(copy.deepcopy(case.conv).float()),
        copy.deepcopy(case.conv).float(),
        case.x.float(),
    )
    assert certificate.holds
    assert not replace(certificate, rounding=wide.rounding).holds


@control
def test_a_bound_without_underflow_is_no_bound() -> None:
    # 1.5 η times 0.5 is 0.75 η, of which the format keeps η: an error of η/4, and the relative
    # part of the bound is far below it.
    eta = formats.smallest_subnormal(torch.float32)
    conv = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 0.75)
    x = torch.full((1, 1, 1), eta)
    certificate = certify(attention_from_conv(conv), conv, x)
    assert certificate.holds
    relative = bounds.gamma(2, torch.float32) * 0.75 * eta
    assert not replace(certificate, rounding=torch.full_like(certificate.error, relative)).holds


@control
def test_a_bound_for_the_short_sum_fails_the_long_one() -> None:
    # Adding 1 again and again to 2^24 in float32 loses every one of them: a module that sums so
    # is within the rounding of its 300 terms, and not within that of 30.
    class OneByOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x[:, :1] * 0
            for channel in range(x.shape[1]):
                total = total + x[:, channel : channel + 1]
            return total

    conv = nn.Conv1d(301, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.ones(1, 301, 1)
    x[:, 0] = 2.0**24
    assert_equivalent(OneByOne(), conv, x)
    stencil = Stencil.from_conv(copy.deepcopy(conv).double())
    short = bounds.gamma(30, torch.float32) * stencil.convolve(x.double())
    error = (OneByOne()(x).double() - stencil.convolve(x.double())).abs()
    assert (error > short).all()
