"""Computed softmax weights are exactly one-hot once the gap in score exceeds a finite threshold.

T8, `docs/theorems/saturated_softmax_is_one_hot.md`. The first half holds torch on this machine to
the theorem's hypotheses; the second holds layers to its conclusions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify, formats
from constructions.encodings import Quadratic
from constructions.formats import accumulator
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.scores import rows_below_targets
from constructions.normalisers import Softmax
from tests.support import formal
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, Convolution, geometries, integer_cases, real_cases
from theory import saturated_softmax_is_one_hot as theory
from theory.quadratic_scores_select_one_shift import ball, precision

SLUG = "saturated_softmax_is_one_hot"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
half_formats = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
accumulators = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_rank = pytest.mark.parametrize("rank", [1, 2, 3])

CONVOLUTIONS: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def stated(dtype: torch.dtype) -> theory.Format:
    return theory.FORMATS[str(dtype).removeprefix("torch.")]


def downwards(start: float, dtype: torch.dtype, count: int, stride: int = 1) -> Tensor:
    """The `count` floats below a negative number, in steps of `stride` floats towards -inf."""
    nearest = torch.tensor(start, dtype=dtype)
    first = nearest.view(INTEGER[dtype]) + int(nearest.item() > start)
    steps = torch.arange(0, count * stride, stride, dtype=INTEGER[dtype])
    return (first + steps).view(dtype)


def saturated_scores(dtype: torch.dtype) -> Tensor:
    """Off-target scores that a saturated layer can have: from the highest one to minus infinity."""
    exact = formats.accumulator(dtype)
    u = formats.unit_roundoff(exact)
    highest = -Softmax().one_hot_gap(dtype) * (1 - 2 * u)
    near = downwards(highest, exact, 2**18)
    bits = torch.tensor([highest, -math.inf], dtype=exact).view(INTEGER[exact]).tolist()
    far = downwards(highest, exact, 2**16, stride=(bits[1] - bits[0]) // 2**16)
    return torch.cat([near, far, torch.tensor([-math.inf], dtype=exact)])


def rows_with_target(scores: Tensor, length: int, target: int) -> Tensor:
    """All scores, in rows of the given length whose target scores 0; the last row is filled up."""
    missing = -len(scores) % (length - 1)
    table = torch.cat([scores, scores[-1:].expand(missing)]).reshape(-1, length - 1)
    zeros = table.new_zeros(len(table), 1)
    return torch.cat([table[:, :target], zeros, table[:, target:]], dim=1)


def expected_weights(conv: Convolution, spatial: Sequence[int], output: Sequence[int]) -> Tensor:
    """One-hot weights by the definition: (taps, outputs, keys), all row-major.

    On the padded grid, numbered from 0, output o meets tap j at o * stride + j * dilation; a
    transposed convolution meets its taps in reverse, with stride 1 on the zero-stuffed grid.
    """
    reach = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.transposed:
        stride: Sequence[int] = [1] * len(reach)
        grid = [size + far for size, far in zip(output, reach, strict=True)]
    else:
        stride = conv.stride
        added = {"same": reach, "valid": [0] * len(reach)}
        sides = conv.padding
        total = added[sides] if isinstance(sides, str) else [2 * side for side in sides]
        grid = [size + more for size, more in zip(spatial, total, strict=True)]
    taps, outputs = list(np.ndindex(*conv.kernel_size)), list(np.ndindex(*output))
    weights = torch.zeros(len(taps), len(outputs), math.prod(grid), dtype=conv.weight.dtype)
    for (h, tap), (q, out) in product(enumerate(taps), enumerate(outputs)):
        met = [o * s + j * r for o, s, j, r in zip(out, stride, tap, conv.dilation, strict=True)]
        weights[h, q, np.ravel_multi_index(met, grid)] = 1
    return weights


def identity(rank: int, dtype: torch.dtype = torch.float32) -> Convolution:
    """The convolution that does nothing: one tap, one channel."""
    conv: Convolution = CONVOLUTIONS[rank](1, 1, 1, bias=False, dtype=dtype)
    nn.init.ones_(conv.weight)
    return conv


def row_in_the_middle(layer: MultiHeadSelfAttention, rank: int) -> Tensor:
    """The weights of the central query of a grid of side 5, head 0: (5, ...)."""
    weights = layer.attention_weights((5,) * rank)[0, 5**rank // 2]
    return weights.reshape((5,) * rank)


def squared_distances(rank: int) -> Tensor:
    """From the centre of a grid of side 5."""
    steps = torch.meshgrid(*[torch.arange(-2, 3)] * rank, indexing="ij")
    return torch.stack(steps).square().sum(0)


@contextmanager
def flushing_subnormals() -> Iterator[None]:
    """Make this thread's arithmetic return and read zero for subnormal numbers."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers on demand")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# The proof and its numbers ------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@symbolic
@every_format
def test_theory_and_code_speak_of_the_same_format(dtype: torch.dtype) -> None:
    form = stated(dtype)
    assert form.unit_roundoff == Fraction(formats.unit_roundoff(dtype))
    assert form.smallest_normal == Fraction(formats.smallest_normal(dtype))
    assert form.smallest_subnormal == Fraction(formats.smallest_subnormal(dtype))
    assert form.largest == Fraction(torch.finfo(dtype).max)
    assert theory.ACCUMULATOR[form.name] == stated(formats.accumulator(dtype))


@symbolic
@every_format
def test_gap_of_the_code_is_certified_and_hardly_larger_than_the_threshold(
    dtype: torch.dtype,
) -> None:
    gap = Fraction(Softmax().one_hot_gap(dtype))
    with precision(256):
        assert ball(gap) >= theory.certified_gap(stated(dtype))
        assert ball(gap) / theory.threshold(stated(dtype)) - 1 < ball(Fraction(1, 3_000_000))


@control
@every_format
def test_threshold_itself_is_not_certified(dtype: torch.dtype) -> None:
    with precision(256):
        threshold = theory.threshold(stated(dtype))
        u = ball(theory.ACCUMULATOR[stated(dtype).name].unit_roundoff)
        tail = (1 + theory.EXP_ROUNDOFFS * u) * (-(1 - 2 * u) * threshold).exp()
        assert tail > ball(stated(dtype).smallest_subnormal / 2)


@bounded
@given(st.data())
@every_format
def test_rounding_of_the_theory_is_the_rounding_of_torch(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    if dtype == torch.float64:
        value = data.draw(st.fractions(max_denominator=10**400))
        found = float(value)  # Python rounds a quotient of integers correctly
    else:
        # torch takes float64 to half precision by way of float32, in two roundings.
        wide = torch.float64 if dtype == torch.float32 else torch.float32
        width: Literal[32, 64] = 64 if wide == torch.float64 else 32
        drawn = data.draw(st.floats(width=width, allow_nan=False, allow_infinity=False))
        value, found = Fraction(drawn), torch.tensor(drawn, dtype=wide).to(dtype).item()
    if math.isinf(found):
        with pytest.raises(OverflowError):
            theory.rounded(value, stated(dtype))
    else:
        assert theory.rounded(value, stated(dtype)) == Fraction(found)


# The hypotheses on torch --------------------------------------------------------------------------


@bounded
@accumulators
def test_exponential_is_as_accurate_as_the_hypothesis_says(dtype: torch.dtype, device: str) -> None:
    form = stated(dtype)
    threshold = float(theory.threshold(form))
    arguments = torch.cat(
        [
            -torch.linspace(0, threshold, 8191, dtype=torch.float64).to(dtype),
            downwards(-threshold + 0.1, dtype, 2048, stride=101),
            downwards(-float(theory.flush_threshold(form)) + 0.1, dtype, 2048, stride=101),
        ]
    )
    computed = {"exp": (arguments, arguments.to(device).exp().cpu())}
    tails = arguments[arguments < -60]  # so small that the sum of a row is 1
    rows = rows_with_target(tails, length=37, target=11)
    weights = rows.to(device).softmax(-1).cpu()
    assert (weights[:, 11] == 1).all()
    computed["softmax"] = rows.flatten(), weights.flatten()
    with precision(128):
        kappa_u = theory.EXP_ROUNDOFFS * ball(form.unit_roundoff)
        for xs, zs in computed.values():
            worst = arb(0)
            for x, z in zip(xs.tolist(), zs.tolist(), strict=True):
                excess = (ball(z) - ball(form.smallest_subnormal / 2)) / ball(x).exp() - 1
                worst = worst.max(excess / kappa_u)
            assert worst < 1
            record(ratio=float(worst.upper()), device=device, dtype=dtype)


@bounded
@accumulators
def test_exponential_of_zero_is_one_and_of_minus_infinity_zero(
    dtype: torch.dtype, device: str
) -> None:
    for target in range(40):
        row = torch.full((40,), -math.inf, dtype=dtype, device=device)
        row[target] = -0.0 if target % 2 else 0.0
        assert row.softmax(0).tolist() == [float(k == target) for k in range(40)]
        assert row.exp()[target] == 1


@exact
@every_format
@pytest.mark.parametrize("length", [2, 9, 64, 1000])
def test_every_saturated_score_is_given_weight_zero(
    dtype: torch.dtype, length: int, device: str
) -> None:
    scores = saturated_scores(dtype)
    for target in {0, length // 3, length - 1}:
        rows = rows_with_target(scores, length, target).to(device)
        weights = Softmax()(rows).to(dtype)
        assert torch.count_nonzero(weights) == len(rows)
        assert (weights[:, target] == 1).all()
        record(device=device, dtype=dtype)


@exact
@half_formats
@pytest.mark.parametrize("target", [0, 1000, 2**11])
def test_many_tails_at_the_gap_leave_the_half_precision_peak_at_one(
    dtype: torch.dtype, target: int, device: str
) -> None:
    row = torch.full((2**11 + 1,), -Softmax().one_hot_gap(dtype), device=device)
    row[target] = 0
    weights = Softmax()(row).to(dtype)
    assert weights[target] == 1
    assert torch.count_nonzero(weights) == 1


@control
def test_too_many_tails_at_the_gap_pull_the_float16_peak_below_one(device: str) -> None:
    row = torch.full((2**16,), -Softmax().one_hot_gap(torch.float16), device=device)
    row[-1] = 0  # the tails are summed before the peak swallows them one by one
    assert Softmax()(row).to(torch.float16)[-1] < 1


# When the peak alone is one -----------------------------------------------------------------------


@bounded
@accumulators
@pytest.mark.parametrize("neighbours", range(1, 9))
def test_peak_becomes_one_between_the_thresholds_of_one_tail_and_of_all(
    dtype: torch.dtype, neighbours: int, device: str
) -> None:
    one_tail = stated(dtype).precision * math.log(2)
    # κu for the exponential, 2u of each threshold for its own rounding and that of the score,
    # 2u for the logarithm: what the computed tails differ from the real ones by, relatively.
    u = formats.unit_roundoff(dtype)
    margin = (theory.EXP_ROUNDOFFS + 2 * (one_tail + math.log(neighbours) + 1)) * u

    def peak(sharpness: float) -> Tensor:
        row = torch.full((neighbours + 1,), -sharpness, dtype=dtype, device=device)
        row[neighbours // 2] = 0
        return row.softmax(0)[neighbours // 2]

    assert peak(one_tail - margin) < 1
    assert peak(one_tail + math.log(neighbours) + margin) == 1


@symbolic
@every_format
@pytest.mark.parametrize("neighbours", [1, 4, 6])
def test_correctly_rounded_peak_becomes_one_at_its_threshold(
    dtype: torch.dtype, neighbours: int
) -> None:
    form = stated(dtype)

    def peak(sharpness: arb) -> Fraction:
        value = 1 / (1 + neighbours * (-sharpness).exp())
        return theory.rounded(Fraction(str(value.mid().fmpq())), form)

    with precision(256):
        at = theory.peak_threshold(form, neighbours)
        step = ball(Fraction(1, 2**100))  # far above the radius of the balls, 2^-240
        assert peak(at + step) == 1
        assert peak(at - step) == 1 - form.unit_roundoff
        # (p + 1) ln 2 + ln m, less ln(1 + u/(2 - u)), which is below u.
        closed_form = (form.precision + 1) * arb.const_log2() + ball(neighbours).log()
        assert abs(at - closed_form) < ball(form.unit_roundoff)


# Layers -------------------------------------------------------------------------------------------


@exact
@every_format
@given(st.data())
def test_saturated_head_attends_exactly_one_key_the_right_one(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    geometry = data.draw(geometries())
    conv = geometry.build(dtype)
    gap = Softmax().one_hot_gap(dtype)
    factor = st.just(1.0) | st.floats(1, 8) | st.sampled_from([1e10, 1e38])
    largest = torch.finfo(accumulator(dtype)).max
    sharpness = data.draw(st.none() | factor.map(lambda f: min(gap * f, largest)))
    layer = papers_layer(conv, sharpness=sharpness).to(device)
    rank = len(conv.kernel_size)
    spatial = geometry.shape[-rank:]
    empty = torch.zeros(geometry.shape, dtype=dtype)
    output = Case(conv, empty, geometry.output_size).run(conv).shape[-rank:]
    size = None if geometry.output_size is None else geometry.output_size[-rank:]
    weights = layer.attention_weights(spatial, output_size=size).cpu()
    assert torch.equal(weights, expected_weights(conv, spatial, output))
    record(device=device, dtype=dtype)


@exact
@every_format
@given(st.data())
def test_saturated_layer_equals_the_oracle_bit_for_bit_on_integers(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype))
    layer = papers_layer(case.conv).to(device)
    y = Case(case.conv, case.x.to(device), case.output_size).run(layer)
    assert y.dtype == dtype
    truth = convolve_module(case.conv, case.x, case.output_size)
    assert not exact_error(numbers(y), truth).any()
    record(device=device, dtype=dtype)


@exact
@every_format
@given(st.data())
def test_conversion_to_another_format_keeps_the_layer_exact(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(torch.bfloat16))  # integers that every format contains
    made = data.draw(st.sampled_from(formats.FORMATS))
    layer = papers_layer(case.conv.to(made)).to(device).to(dtype)
    assert layer.sharpness == Softmax().one_hot_gap(dtype)
    y = Case(case.conv, case.x.to(device, dtype), case.output_size).run(layer)
    truth = convolve_module(case.conv, case.x, case.output_size)
    assert not exact_error(numbers(y), truth).any()
    record(device=device, dtype=dtype)


@exact
@half_formats
@given(st.data())
def test_half_precision_layer_rounds_the_exact_integer_once(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(torch.float64))
    with torch.no_grad():  # at most 81 products of 7 * 63, below 2^16 and the largest float16
        for parameter in case.conv.parameters():
            parameter.copy_(parameter.remainder(15) - 7)
    x = (case.x.remainder(127) - 63).to(dtype)
    conv = case.conv.to(dtype)
    y = Case(conv, x.to(device), case.output_size).run(papers_layer(conv).to(device))
    truth = torch.from_numpy(convolve_module(conv, x, case.output_size).nearest())
    assert torch.equal(y.cpu(), truth.to(dtype))
    record(device=device, dtype=dtype)


@exact
@every_format
@given(st.data())
def test_saturated_head_copies_any_finite_pixel(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(real_cases(dtype))
    tap = tuple(data.draw(st.integers(0, size - 1)) for size in case.conv.kernel_size)
    with torch.no_grad():
        for parameter in case.conv.parameters():
            parameter.zero_()
        case.conv.weight[(0, 0, *tap)] = 1
    layer = papers_layer(case.conv).to(device)
    y = Case(case.conv, case.x.to(device), case.output_size).run(layer)
    truth = convolve_module(case.conv, case.x, case.output_size)
    assert not exact_error(numbers(y), truth).any()
    record(device=device, dtype=dtype)


@exact
def test_long_axes_keep_scores_exact(device: str) -> None:
    conv = nn.Conv1d(1, 1, 3, padding=2**20, dilation=2**20, bias=False)
    nn.init.ones_(conv.weight)
    layer = papers_layer(conv)
    # Shifts of a million pixels, on a grid too long for dense weights: the scores' own sum.
    shift = layer.positional_shift[:, 0].double()
    steps = torch.arange(-(2**20) - 2, 2**20 + 3, dtype=torch.float64)
    features, queries = layer.encoding.encode(
        steps[:, None], shift[:, None], layer.geometry.targets((3,))
    )
    wanted = -(steps - shift[:, None]).square()
    assert torch.equal(queries @ features.T - shift[:, None].square(), wanted)


@exact
@every_format
def test_saturated_layer_is_one_hot_where_subnormals_are_flushed(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, dtype=dtype)
    with flushing_subnormals():
        weights = papers_layer(conv).attention_weights((4, 3))
    assert torch.equal(weights, expected_weights(conv, (4, 3), (4, 3)))


@bounded
@accumulators
def test_flushing_lowers_the_threshold_to_the_smallest_normal_number(dtype: torch.dtype) -> None:
    edge = float(theory.flush_threshold(stated(dtype)))
    # An exponential is within κu of the value: κu is how far from the edge it may decide wrongly.
    # The score itself, below 2^10, and the edge are rounded by less than 2^10 u each.
    margin = (theory.EXP_ROUNDOFFS + 2 * 2**10) * formats.unit_roundoff(dtype)
    with flushing_subnormals():
        below, above = (
            torch.count_nonzero(torch.tensor([0.0, -score], dtype=dtype).softmax(0)).item()
            for score in (edge - margin, edge + margin)
        )
    assert (below, above) == (2, 1)


# Controls -----------------------------------------------------------------------------------------


@control
@every_rank
def test_sharpness_46_in_float32_has_peak_one_and_tails(rank: int, device: str) -> None:
    row = row_in_the_middle(papers_layer(identity(rank), sharpness=46.0).to(device), rank)
    near, tails = squared_distances(rank), row.cpu()
    assert tails[near == 0] == 1
    # e^-46, the exponential within κu; 46 and 92 are exact, and the sum of the row is 1.
    form = stated(torch.float32)
    with precision(128):
        for weight in tails[near == 1].tolist():
            error = abs(ball(weight) / (-ball(46)).exp() - 1)
            assert error <= ball(theory.EXP_ROUNDOFFS * form.unit_roundoff)
    assert (tails[near == 2] < float(form.smallest_normal)).all()  # subnormal, or flushed
    assert (tails[near >= 3] == 0).all()


@control
def test_sharpness_46_in_float32_lets_a_bright_pixel_into_a_black_one(device: str) -> None:
    image = torch.zeros(1, 1, 3, 3, device=device)
    image[..., 1, 2] = 2.0**80
    dim = papers_layer(identity(2), sharpness=46.0).to(device)(image)
    truth = convolve_module(identity(2), image)
    worst = exact_error(numbers(dim), truth).max()
    assert 12_730 < worst < 12_732
    sharp = papers_layer(identity(2), sharpness=104.0).to(device)(image)
    assert not exact_error(numbers(sharp), truth).any()


@control
@pytest.mark.parametrize("sharpness", [1.0, 10.0, 17.3, 46.0, 87.3])
@accumulators
def test_weak_sharpness_fails_the_bitwise_comparison(
    dtype: torch.dtype, sharpness: float, device: str
) -> None:
    conv = identity(2, dtype)
    image = torch.zeros(1, 1, 3, 3, dtype=dtype, device=device)
    image[..., 1, 1] = 1
    y = papers_layer(conv, sharpness=sharpness).to(device)(image)
    assert exact_error(numbers(y), convolve_module(conv, image)).any()


@control
@pytest.mark.parametrize(
    ("dtype", "sharpness", "keys"),
    [
        pytest.param(torch.float16, 46.0, 1, id="46_is_enough_in_float16"),
        pytest.param(torch.bfloat16, 46.0, 5, id="46_is_not_enough_in_bfloat16"),
        pytest.param(torch.float64, 46.0, 5, id="46_is_not_enough_in_float64"),
        pytest.param(torch.float16, 17.328, 5, id="below_the_threshold_of_float16"),
        pytest.param(torch.bfloat16, 87.33, 5, id="below_the_normal_numbers_of_bfloat16"),
        pytest.param(torch.float32, 87.33, 5, id="below_the_normal_numbers_of_float32"),
        pytest.param(torch.float64, 708.39, 5, id="below_the_normal_numbers_of_float64"),
    ],
)
def test_number_of_keys_seen_below_the_threshold(
    dtype: torch.dtype, sharpness: float, keys: int, device: str
) -> None:
    layer = papers_layer(identity(2, dtype), sharpness=sharpness).to(device)
    row = row_in_the_middle(layer, 2).cpu()
    assert torch.count_nonzero(row[squared_distances(2) <= 1]) == keys


@control
def test_gap_of_a_narrow_format_does_not_saturate_a_wide_one(device: str) -> None:
    narrow = Softmax().one_hot_gap(torch.float16)
    layer = papers_layer(identity(1, torch.float16), sharpness=narrow).to(device)
    assert torch.count_nonzero(row_in_the_middle(layer, 1)) == 1
    assert torch.count_nonzero(row_in_the_middle(layer.float(), 1)) > 1


@control
def test_weights_that_share_a_head_are_not_the_expected_ones() -> None:
    conv = nn.Conv2d(1, 1, 2)
    weights = papers_layer(conv).attention_weights((3, 4))
    expected = expected_weights(conv, (3, 4), (2, 3))
    assert torch.equal(weights, expected)
    assert not torch.equal(weights[[0, 0, 2, 3]], expected)  # one head twice
    assert not torch.equal(weights.flip(0), expected)  # a reversed kernel
    assert not torch.equal(weights[[0, 2, 1, 3]], expected)  # swapped axes


@control
@accumulators
def test_first_integer_beyond_the_precision_is_not_summed_exactly(
    dtype: torch.dtype, device: str
) -> None:
    conv = nn.Conv1d(2, 1, 1, bias=False, dtype=dtype)
    nn.init.ones_(conv.weight)
    last = 2 ** stated(dtype).precision
    for excess in (0, 1):
        x = torch.tensor([[[last - 1.0], [1.0 + excess]]], dtype=dtype, device=device)
        y = papers_layer(conv).to(device)(x)
        assert exact_error(numbers(y), convolve_module(conv, x)).item() == excess


@control
def test_scale_multiplied_first_lets_other_keys_in_far_away() -> None:
    # The layer's own scores by its own function. With the scale last they are exact integers times
    # it, (|δ| + |Δ|)² < 2^53; with the scale in the positional key, that is in v, two numbers of
    # 2^57 are rounded to multiples of 32 before they cancel.
    far, steps = 45_000_000, 21
    sharpness = Softmax().one_hot_gap(torch.float32)
    keys = Lattice(shape=(steps,), spacing=(1,), origin=(far - steps // 2,))
    shift = torch.tensor([[far]], dtype=torch.float64)

    def weights(first: float, last: float) -> Tensor:
        key = first * torch.eye(2, dtype=torch.float64).unsqueeze(0)
        (rows,) = rows_below_targets(Quadratic(), keys, Lattice.box((1,)), shift, key)
        return Softmax()((rows[0] * last).float())

    assert weights(1.0, sharpness).tolist() == [float(k == steps // 2) for k in range(steps)]
    assert torch.count_nonzero(weights(sharpness, 1.0)) > 1


# Wrong code, each with the example that catches it ------------------------------------------------


@control
@every_format
def test_saturation_is_claimed_from_the_gap_on_and_from_no_part_of_it(dtype: torch.dtype) -> None:
    conv, gap = identity(2, dtype), Softmax().one_hot_gap(dtype)
    x = torch.zeros(1, 1, 3, 3, dtype=dtype)
    x[..., 1, 1] = 1
    assert not attention_from_conv(conv, sharpness=math.nextafter(gap, 0)).is_saturated(dtype)
    layer = attention_from_conv(conv, sharpness=0.95 * gap)
    assert not layer.is_saturated(dtype)
    assert (certify(layer, conv, x).leak > 0).any()
    layer = attention_from_conv(conv, sharpness=gap)
    assert layer.is_saturated(dtype)
    assert (certify(layer, conv, x).leak == 0).all()


@control
@pytest.mark.parametrize("evaluation", ["dense", "auto"])
@pytest.mark.parametrize("made_in", [torch.bfloat16, torch.float32], ids=str)
def test_shift_beyond_the_integers_of_bfloat16_is_kept(
    made_in: torch.dtype, evaluation: str, device: str
) -> None:
    # 257 is no number of bfloat16: a shift that is stored in the layer's own format becomes 256.
    conv = nn.Conv1d(1, 1, 2, dilation=257, bias=False, dtype=made_in)
    nn.init.ones_(conv.weight)
    layer = papers_layer(conv, evaluation=evaluation).to(device).to(torch.bfloat16)
    assert layer.positional_shift.tolist() == [[0.0], [257.0]]
    x = torch.zeros(1, 1, 258, dtype=torch.bfloat16, device=device)
    x[..., 257] = 1
    truth = convolve_module(conv, x)
    with torch.no_grad():
        assert not exact_error(numbers(layer(x)), truth).any()
        layer.positional_shift = layer.positional_shift.bfloat16().double()
        assert layer.positional_shift.tolist() == [[0.0], [256.0]]
        assert exact_error(numbers(layer(x)), truth).any()


@control
def test_oracle_comparison_tells_one_unit_in_the_last_place() -> None:
    case = Case.of(
        nn.Conv1d(1, 1, 1, dtype=torch.float64), weight=[1], bias=[0], x=[3], shape=(1, 1, 1)
    )
    y = case.run(papers_layer(case.conv))
    truth = convolve_module(case.conv, case.x)
    assert not exact_error(numbers(y), truth).any()
    assert exact_error(np.nextafter(numbers(y), 4), truth).any()


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
