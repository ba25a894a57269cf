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

from constructions import assert_equivalent, attention_from_conv, certify, formats, lower
from constructions.certificate import Certificate, gamma, head_rounding
from constructions.certificate.bounds import summed_moduli
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.matrix_units import PRECISION, Products
from constructions.sources import stencil_of
from tests.support import formal
from tests.support.helpers import edit_matrices
from tests.support.ledger import record
from tests.support.matrix_units import ROUNDINGS, OnUnit, Unit, allowed, units
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, a_share, integer_cases, real_cases, sharpnesses
from theory import layer_error_is_certified as theory
from theory.quadratic_scores_select_one_shift import ball, precision
from theory.saturated_softmax_is_one_hot import ACCUMULATOR, EXP_ROUNDOFFS, FORMATS

SLUG = "layer_error_is_certified"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)


@symbolic
def test_the_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


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
@a_share
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
    # The bound is sharp where the leak is what counts. Of leak >= 16 rounding follow bound <= 17/16
    # leak and, but for less than 1/16 by which the leak was rounded up, error >= 15/16 leak.
    leaking = (certificate.leak >= 16 * certificate.rounding) & (certificate.leak > 0)
    assert (14 * certificate.bound <= 17 * certificate.error)[leaking].all()


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
    tau = (EXP_ROUNDOFFS + 2 * (1 - tiny.log())) * u * ball(1 + Fraction(1, 2**12))
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
    coded = head_rounding(
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
    coded = gamma(terms, dtype)
    with precision(400):
        stated = (1 + arb(formats.unit_roundoff(dtype))) ** terms - 1
        if math.isinf(coded):
            assert stated.log() > 699
        else:
            # The argument of the exponential, below 700 < 2^10, is raised by one part in 2^46.
            assert stated <= arb(coded) <= stated * ball(1 + Fraction(1, 2**35))


@bounded
@every_format
@given(data=st.data())
def test_underflow_of_a_sum_is_that_of_the_page(dtype: torch.dtype, data: st.DataObject) -> None:
    # Equation (2): (1 + γ_n)/2 n η; up to γ_n = 1 that is at most n η.
    most = math.floor(math.log(2) / math.log1p(formats.unit_roundoff(dtype)))
    terms = data.draw(st.integers(1, 2 * most) | st.sampled_from([most, most + 1]), label="terms")
    with precision(400):
        growth = (1 + arb(formats.unit_roundoff(dtype))) ** terms
        stated = growth / 2 * terms * arb(formats.smallest_subnormal(dtype))
        assert stated <= arb(Products.plain(dtype).lost(terms, 2.0))


@control
def test_underflow_beyond_a_gamma_of_one_is_more_than_a_subnormal_for_each_term() -> None:
    # What (2) said: n η, which its own derivation gives for γ_n <= 1 alone. 177 terms of bfloat16.
    u = Fraction(formats.unit_roundoff(torch.bfloat16))
    assert (1 + u) ** 177 / 2 <= 1 < (1 + u) ** 178 / 2


# On matrix units: in software, with torch's flags set as on a GPU ---------------------------------

SINGLE = torch.float32
reduced = pytest.mark.parametrize("name", ["tf32", "bf16"])


def exact_sum(a: Tensor, b: Tensor) -> Fraction:
    """The sum of the products of two rows, as stored."""
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    return sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0))


def on_unit(unit: Unit, a: Tensor, b: Tensor) -> Fraction:
    """The sum of the products of two rows, as the unit has it."""
    return Fraction(unit.product(a.reshape(1, 1, -1), b.reshape(1, -1, 1)).item())


def ratio_of(unit: Unit, a: Tensor, b: Tensor, products: Products) -> float:
    """The unit's error over the bound of equation (20)."""
    size = exact_sum(a.abs(), b.abs())
    bound = Fraction(products.growth(len(a))) * size
    bound += Fraction(products.lost(len(a), float(a.abs().max() + b.abs().max())))
    return float(abs(on_unit(unit, a, b) - exact_sum(a, b)) / bound)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two rows of float32, of one length, of numbers far apart or not."""
    width = draw(st.sampled_from([0, 3, 30, 140]))
    number = st.builds(
        lambda m, e: math.ldexp(m, -23 - e), st.integers(-(2**24), 2**24), st.integers(0, width)
    )
    pairs = draw(st.lists(st.tuples(number, number), min_size=1, max_size=40))
    a, b = torch.tensor(pairs, dtype=SINGLE).T
    return a, b


@bounded
@reduced
@given(data=st.data())
def test_a_sum_on_a_matrix_unit_errs_within_its_bound(name: str, data: st.DataObject) -> None:
    a, b = data.draw(rows())
    unit = data.draw(units(PRECISION[name]))
    ratio = ratio_of(unit, a, b, Products.unit(SINGLE, PRECISION[name]))
    record(ratio=ratio, device="unit", dtype=SINGLE)
    assert ratio <= 1.0


@bounded
@reduced
def test_truncated_operands_attain_the_bound_of_a_matrix_unit(name: str) -> None:
    # Every bit that is cut is one.
    p = PRECISION[name]
    a = torch.full((4,), 1 + 2.0 ** (1 - p) - 2.0**-23)
    products = Products.unit(SINGLE, p)
    ratio = ratio_of(Unit(p), a, a, products)
    record(ratio=ratio, device="unit", dtype=SINGLE)
    # What is cut is v - 2^-23 of a number of at most 1 + v, in both operands; of the bound that is
    # all but the steps of the sum, 2 n t in growth(n), and underflow, which is far below one step.
    v = Fraction(1, 2 ** (p - 1))
    lost = 1 - (1 - (v - Fraction(1, 2**23)) / (1 + v)) ** 2
    steps = (1 + Fraction(1, 2**23)) ** (2 * len(a) + 1)
    assert ratio >= float(lost / ((1 + v) ** 2 * steps - 1))


@bounded
def test_truncated_sums_come_within_a_factor_of_three_of_the_bound() -> None:
    # Beside a 1, all of a product below 2^-23 is lost, in every block again: n - 1 losses of
    # almost one step, of the 2 n that the bound counts for blocks of any size.
    n = 64
    b = torch.full((n,), 2.0**-23 * (1 - 2.0**-10))
    b[0] = 1.0
    products = Products.unit(SINGLE, 24)
    ratio = ratio_of(Unit(blocks=(8,)), torch.ones(n), b, products)
    record(ratio=ratio, device="unit", dtype=SINGLE)
    # n - 1 losses of 1 - 2^-10 steps beside a sum below 1 + n steps, over 2 n steps of it: more
    # than a third of the bound for n = 64.
    step = Fraction(1, 2**23)
    least = (n - 1) * step * (1 - Fraction(1, 2**10))
    most = ((1 + step) ** (2 * n + 1) - 1) * (1 + n * step)
    assert ratio >= float(least / most) >= 1 / 3


@bounded
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, SINGLE], ids=str)
@a_share
@given(data=st.data())
def test_a_layer_on_a_matrix_unit_errs_within_the_bound(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(real_cases(dtype), label="case")
    name = data.draw(st.sampled_from(["tf32", "bf16"]), label="allowed")
    unit = data.draw(units(PRECISION[name]), label="unit")
    layer = attention_from_conv(
        case.conv,
        sharpness=data.draw(sharpnesses() | st.none(), label="sharpness"),
        boundary=data.draw(st.sampled_from(["auto", "padded"]), label="boundary"),
        evaluation=data.draw(st.sampled_from(["dense", "factored"]), label="evaluation"),
    )
    with allowed(name), OnUnit(unit) as mode:
        certificate = certified(case, layer)
        ratio = true_ratio(case, layer, certificate.bound)
    assert mode.calls >= 2
    assert not certificate.bound.isnan().any()
    record(ratio=ratio, device="unit", dtype=dtype)
    assert ratio <= 1.0
    assert certificate.holds


@exact
@reduced
@given(data=st.data())
def test_on_short_integers_a_saturated_layer_is_exact_on_a_matrix_unit(
    name: str, data: st.DataObject
) -> None:
    # Equation (23): operands of at most p bits, sums of at most 24.
    case = data.draw(integer_cases(SINGLE), label="case")
    most = 2 ** PRECISION[name]
    with torch.no_grad():
        case.conv.weight.clamp_(-most, most)
        case.x.clamp_(-most, most)
    evaluation = data.draw(st.sampled_from(["dense", "factored"]))
    layer = attention_from_conv(case.conv, evaluation=evaluation)
    with allowed(name), OnUnit(data.draw(units(PRECISION[name]))):
        certificate = certified(case, layer)
    record(device="unit", dtype=SINGLE)
    assert (certificate.error == 0).all()


def sum_of_moduli(case: Case) -> Tensor:
    """Σ |W||X| at every output."""
    moduli = copy.deepcopy(case.conv).double()
    moduli.bias = None
    with torch.no_grad():
        moduli.weight.abs_()
        result: Tensor = moduli(case.x.double().abs())
    return result


@bounded
@reduced
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_loses_little_more_where_a_unit_keeps_its_bits(
    name: str, dtype: torch.dtype
) -> None:
    # bfloat16 has the 8 bits that both keep; float16 has the 11 of TF32, and not those of bfloat16.
    case = plain_case(dtype)
    layer = attention_from_conv(case.conv)
    plain = certified(case, layer)
    with allowed(name):
        allowing = certified(case, layer)
    keeps = dtype == torch.bfloat16 or name == "tf32"
    added = allowing.rounding - plain.rounding
    assert (added >= 0).all()
    # An operand that is cut costs v of the sum of moduli, (20); steps and underflow cost less here.
    cut = 2.0 ** (1 - PRECISION[name]) * sum_of_moduli(case)
    assert bool((added < cut).all()) == bool((added < cut).any()) == keeps
    record(ratio=true_ratio(case, layer, allowing.bound), device="unit", dtype=dtype)


@bounded
@reduced
@pytest.mark.parametrize("factors", [1, 2], ids=["one product", "a product of partial sums"])
def test_a_module_of_ones_own_may_round_its_operands(name: str, factors: int) -> None:
    # A head that looks at one place applies its matrix to what it sees, or to all pixels before.
    # Nearly all is cut that can be: of the pixel, of the matrix, and of their product.
    p = PRECISION[name]
    root = math.isqrt(2 ** (p - 1) - 1)
    number = 1 + root * 2.0 ** (1 - p) + 2.0 ** (1 - p) - 2.0**-23
    conv = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, number)
    x = torch.full((1, 1, 6), number)

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weight = conv.weight.squeeze(-1).detach()
            return weight @ x if factors == 1 else (weight @ x) @ torch.eye(x.shape[-1])

    with OnUnit(Unit(PRECISION[name])):
        with allowed(name):
            assert_equivalent(Own(), conv, x)
        with pytest.raises(AssertionError, match=SLUG):
            assert_equivalent(Own(), conv, x)


@bounded
def test_three_products_of_tf32_numbers_are_within_the_bound_of_split_operands() -> None:
    generator = torch.Generator().manual_seed(0)
    unit, split = Unit(), Products.split()
    for n in (1, 7, 60):
        a, b = (torch.randn(n, generator=generator) for _ in range(2))
        high = [unit.operand(t).float() for t in (a, b)]
        low = [unit.operand(t - h).float() for t, h in zip((a, b), high, strict=True)]
        left = torch.cat([low[0], high[0], high[0]])
        right = torch.cat([high[1], low[1], high[1]])
        error = abs(on_unit(unit, left, right) - exact_sum(a, b))
        ratio = float(error / (Fraction(split.growth(n)) * exact_sum(a.abs(), b.abs())))
        record(ratio=ratio, device="unit", dtype=SINGLE)
        assert ratio <= 1.0


@bounded
@given(terms=st.integers(1, 10**6), precision_=st.sampled_from([8, 11, 24]))
def test_the_growth_on_a_unit_is_that_of_the_page_rounded_up(terms: int, precision_: int) -> None:
    coded = Products.unit(SINGLE, precision_).growth(terms)
    with precision(400):
        v = arb(2) ** (1 - precision_) if precision_ < 24 else arb(0)
        stated = (1 + v) ** 2 * (1 + arb(2) ** -23) ** (2 * terms) - 1
        # As for γ: the argument, below 2^10, is raised by one part in 2^46.
        assert stated <= arb(coded) <= stated * ball(1 + Fraction(1, 2**35))


@bounded
@reduced
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
def test_an_average_on_a_matrix_unit_errs_within_the_bound(name: str, evaluation: str) -> None:
    pool = nn.AvgPool2d(3, stride=2, padding=1)
    x = torch.rand(2, 3, 7, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    layer = attention_from_conv(pool, evaluation=evaluation)
    unit = Unit(PRECISION[name])
    with OnUnit(unit):
        assert not certify(layer, pool, x).holds
        with allowed(name):
            certificate = certify(layer, pool, x)
    record(ratio=certificate.ratio, device="unit", dtype=SINGLE)
    assert certificate.holds


@bounded
@reduced
@pytest.mark.parametrize("sharpness", [0.3, 9.0])
def test_a_lowered_layer_on_a_matrix_unit_errs_within_its_bound(
    name: str, sharpness: float
) -> None:
    case = plain_case(SINGLE)
    layer = attention_from_conv(case.conv, sharpness=sharpness)
    lowered = lower(layer)
    with torch.no_grad():
        exactly = copy.deepcopy(layer).double()(case.x.double())  # within 2^-40 of the truth
        with OnUnit(Unit(PRECISION[name])):
            error = (lowered(case.x).double() - exactly).abs()
            assert (error > 2 * lowered.error_bound(case.x)).any()
            with allowed(name):
                bound = lowered.error_bound(case.x)
    ratio = (error / bound).max().item()
    record(ratio=ratio, device="unit", dtype=SINGLE)
    assert ratio <= 1.0


@bounded
@reduced
def test_heads_that_mix_on_a_matrix_unit_err_within_their_bound(name: str) -> None:
    case = plain_case(SINGLE)
    layer = attention_from_conv(case.conv, encoding="scalar")
    with OnUnit(Unit(PRECISION[name])):
        assert not certified(case, layer).holds
        with allowed(name):
            certificate = certified(case, layer)
    record(ratio=certificate.ratio, device="unit", dtype=SINGLE)
    assert certificate.holds


@bounded
@given(terms=st.integers(1, 10**6))
def test_the_growth_of_split_operands_is_that_of_the_page_rounded_up(terms: int) -> None:
    coded = Products.split().growth(terms)
    with precision(400):
        stated = (1 + 2 * arb(2) ** -20) ** 2 * (1 + arb(2) ** -23) ** (7 * terms) - 1
        # As for γ: the argument, below 2^10, is raised by one part in 2^46.
        assert stated <= arb(coded) <= stated * ball(1 + Fraction(1, 2**35))


@bounded
@pytest.mark.parametrize("sizes", [(9,), (9, 40), (5, 5, 700)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, SINGLE], ids=str)
def test_what_a_unit_adds_to_a_head_is_that_of_the_page(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    unit = Products.unit(SINGLE, 11)
    seen, largest = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 2.0))

    def rounding(products: Products | None) -> float:
        heads = head_rounding(seen, largest, 0.3, sizes, dtype, products=products)
        return heads.item()

    nearest = rounding(None)
    with precision(400):
        v, t = arb(2) ** -10, arb(2) ** -23
        of_pixels = arb(0) if dtype == torch.float16 else v  # and of the weights
        growth = (1 + of_pixels) ** 2 * (1 + v) ** (len(sizes) - 1)
        growth *= (1 + of_pixels) ** (len(sizes) - 1) * (1 + t) ** (2 * sum(sizes) + 1)
        stated = nearest + (growth - 1) * (arb(0.5) + nearest)
        assert stated <= arb(rounding(unit)) <= stated * ball(1 + Fraction(1, 2**20))


@bounded
@given(sharpness=st.floats(1.0, 8.0))
def test_what_heads_hand_on_is_rounded_though_their_pixels_are_not(sharpness: float) -> None:
    # float16 has the bits of TF32; the float32 sums that its heads see have more.
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=torch.float16)
    nn.init.ones_(conv.weight)
    layer = attention_from_conv(conv, sharpness=sharpness, evaluation="factored")
    x = torch.ones(1, 1, 9, dtype=torch.float16)
    plain = certify(layer, conv, x)
    with allowed("tf32"):
        allowing = certify(layer, conv, x)
    assert (allowing.rounding - plain.rounding >= 2.0**-10).all()


@bounded
@reduced
@pytest.mark.parametrize("terms", [1, 50, 3000])
def test_what_a_unit_adds_to_a_sum_of_many_terms_is_that_of_the_page(name: str, terms: int) -> None:
    conv = nn.Conv1d(terms, 1, 1, bias=False)
    x = torch.ones(1, terms, 1)
    nn.init.ones_(conv.weight)
    with allowed(name):
        certificate = certify(attention_from_conv(conv), conv, x)
    unit, reference = Products.unit(SINGLE, PRECISION[name]), gamma(terms + 1, torch.float64)
    with precision(200):
        # (21) for pixels and matrices of 1, the reference's own (14) and both underflows, the whole
        # enlarged by (15) in which 32 roundings of float64 have room.
        stated = terms * (arb(unit.growth(terms + 1)) + arb(reference)) + arb(unit.lost(terms, 2.0))
        stated += 2 * terms * arb(formats.smallest_subnormal(torch.float64))
        # Sums of moduli run in float32 themselves: at most twice what n + 4 roundings take.
        sums = 1 + 2 * arb(gamma(terms + 4, SINGLE))
        own = 1 + 2 * arb(gamma(terms + 32, torch.float64))
        lost = terms * 2 * 4 * arb(formats.smallest_normal(SINGLE))
        found = arb(certificate.rounding.item())
        assert terms * arb(unit.growth(terms + 1)) <= found
        assert found <= (stated * sums + lost) * own * (1 + arb(2) ** -40)
    record(ratio=certificate.ratio, device="unit", dtype=SINGLE)


@bounded
@given(scale=st.integers(-140, 100), weight=st.integers(-140, 100), seed=st.integers(0, 2**16))
def test_sums_of_moduli_in_float32_are_never_too_small(scale: int, weight: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv1d(3, 2, 3, bias=False, dtype=torch.float64)
    drawn = torch.randn(conv.weight.shape, dtype=torch.float64, generator=generator)
    conv.weight.data.copy_(drawn.abs() * 2.0**weight)
    numbers = torch.randn(1, 3, 9, dtype=torch.float64, generator=generator).abs() * 2.0**scale
    stencil = stencil_of(conv)
    wide = stencil.convolve(numbers)
    single = summed_moduli(stencil, numbers, torch.float32)
    # γ of the float64 sum that it is compared with; and, from above, of its own sum in float32, by
    # whose bound it is raised twice, and of what may underflow, raised likewise: four times the
    # smallest normal number for each of 9 products, of operands scaled by less than 4 together.
    terms = 9
    reference = gamma(terms, torch.float64)
    growth = (1 + gamma(terms + 4, SINGLE)) ** 3 * (1 + reference)
    scaled = 4 * conv.weight.abs().max() * numbers.max()
    underflow = 2 * 4 * terms * formats.smallest_normal(SINGLE) * scaled
    assert (single >= wide * (1 - reference)).all()
    assert (single <= (wide + underflow) * growth).all()


@control
@reduced
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
@pytest.mark.parametrize("sharpness", [None, 16.0], ids=["saturated", "sharpness 16"])
def test_the_bound_of_plain_sums_is_no_bound_on_a_matrix_unit(
    name: str, evaluation: str, sharpness: float | None
) -> None:
    # What certify said before it read torch's flags: too little, on a GPU as torch leaves it.
    case = plain_case(SINGLE)
    layer = attention_from_conv(case.conv, sharpness=sharpness, evaluation=evaluation)
    with OnUnit(Unit(PRECISION[name])):
        assert not certified(case, layer).holds
        with allowed(name):
            assert certified(case, layer).holds


@control
@every_evaluation
def test_the_bound_for_tf32_is_no_bound_for_bfloat16(evaluation: str) -> None:
    case = plain_case(SINGLE)
    layer = attention_from_conv(case.conv, evaluation=evaluation)
    with allowed("tf32"), OnUnit(Unit(PRECISION["bf16"])):
        assert not certified(case, layer).holds


@control
def test_the_heads_of_a_unit_need_a_term_of_their_own() -> None:
    # Rounding of weights and pixels before the sum over taps: without it the rest is too little.
    conv = nn.Conv1d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.full((1, 1, 9), 1 + 2.0**-10 - 2.0**-23)
    layer = attention_from_conv(conv, sharpness=2.0, evaluation="dense")
    with allowed("tf32"), OnUnit(Unit()):
        certificate = certify(layer, conv, x)
    assert certificate.holds
    of_sum = Products.unit(SINGLE, 11).growth(2, SINGLE) * x.double()
    assert not replace(certificate, rounding=of_sum).holds


@control
def test_a_unit_roundoff_of_nearest_sums_is_no_bound_for_truncated_ones() -> None:
    n = 64
    b = torch.full((n,), 2.0**-23 * (1 - 2.0**-10))
    b[0] = 1.0
    error = abs(on_unit(Unit(blocks=(8,)), torch.ones(n), b) - exact_sum(torch.ones(n), b))
    assert error > Fraction(gamma(n, SINGLE)) * exact_sum(torch.ones(n), b)


@control
def test_a_bound_by_the_sum_instead_of_its_parts_is_no_bound_on_a_unit() -> None:
    # Aligned to the largest addend, what is left after cancellation is lost altogether.
    a = torch.ones(3)
    b = torch.tensor([1.0, 2.0**-24, -1.0])
    assert exact_sum(a, b) == Fraction(1, 2**24)
    assert on_unit(Unit(blocks=(3,)), a, b) == 0


@control
@pytest.mark.parametrize("operands", sorted(ROUNDINGS))
def test_one_more_than_an_operand_holds_is_lost(operands: str) -> None:
    one = torch.ones(1)
    for p in (8, 11):
        unit = Unit(p, operands=operands)
        assert on_unit(unit, one, one * 2**p) == 2**p
        assert on_unit(unit, one, one * (2**p + 1)) != 2**p + 1


# What the bound rejects ---------------------------------------------------------------------------


def reversed_kernel(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift = layer.positional_shift.flip(0)


def swapped_axes(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift = layer.positional_shift.flip(1)


def missing_head(layer: MultiHeadSelfAttention) -> None:
    edit_matrices(layer, lambda matrices: matrices[0].zero_())


def two_heads_swapped(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift[[0, 1]] = layer.positional_shift[[1, 0]]


def matrices_shared_between_heads(layer: MultiHeadSelfAttention) -> None:
    edit_matrices(layer, lambda matrices: matrices.copy_(matrices[:1].clone().expand_as(matrices)))


def weak_sharpness(layer: MultiHeadSelfAttention) -> None:
    layer.positional_key[:, 0] *= 1 / 32  # blurs, while the layer still states its sharpness
    layer.positional_key[:, 1:] *= 1 / 32


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
    relative = gamma(2, torch.float32) * 0.75 * eta
    assert not replace(certificate, rounding=torch.full_like(certificate.error, relative)).holds


@control
@pytest.mark.parametrize("terms", [9, 64, 500])
def test_underflow_counted_once_and_not_for_every_term_is_no_bound(terms: int) -> None:
    # 0.75 of η rounds up to η, and so does each of n products: together they err by n η/4.
    eta = formats.smallest_subnormal(torch.float32)
    conv = nn.Conv1d(terms, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 0.75)
    x = torch.full((1, terms, 1), eta)
    for evaluation in ("dense", "factored"):
        certificate = certify(attention_from_conv(conv, evaluation=evaluation), conv, x)
        assert certificate.error.item() == terms * eta / 4
        assert certificate.holds
        once = certificate.rounding - (terms - 1) * eta
        assert not replace(certificate, rounding=once).holds


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
    stencil = stencil_of(copy.deepcopy(conv).double())
    short = gamma(30, torch.float32) * stencil.convolve(x.double())
    error = (OneByOne()(x).double() - stencil.convolve(x.double())).abs()
    assert (error > short).all()


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
