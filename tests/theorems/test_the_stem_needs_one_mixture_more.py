"""Without a constant channel stand-alone self-attention expresses just the convolutions without bias whose taps over the window are all alike, and its stem of M mixtures just ones with r + [1 not in V] ≤ M.

T18, `docs/theorems/the_stem_needs_one_mixture_more.md`. The module is our own, since no library has
one: `constructions.stock.stand_alone`.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
from flint import fmpq, fmpq_mat
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent
from constructions.stock import stand_alone
from constructions.stock.stand_alone_attention import StandAloneAttention
from tests.pages.options import agrees, truth_of
from tests.stock.domains import usual, with_zeros, within_pixels
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import (
    Case,
    Convolution,
    integer_cases,
    real_cases,
)
from theory import the_stem_needs_one_mixture_more as theory
from theory.tools.proof import ProofError

SLUG = "the_stem_needs_one_mixture_more"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

PLANE: list[type[Convolution]] = [nn.Conv2d, nn.ConvTranspose2d]


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# The layer, with a constant -----------------------------------------------------------------------


def carried(case: Case) -> bool:
    """Zeros, replicated pixels or no padding, and a pixel for each output."""
    return within_pixels(case) and (with_zeros(case) or case.conv.padding_mode == "replicate")


@exact
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_layer_with_a_constant_is_the_convolution_bit_for_bit_or_refuses(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(usual(integer_cases(dtype, PLANE)), label="case")
    shape = case.x.shape[-2:]
    if carried(case):
        assert agrees(stand_alone(case.conv, shape), case, truth_of(case))
        record(dtype=dtype)
    else:
        with pytest.raises(ValueError, match=r"accepted: .*theorem [a-z]+_"):
            stand_alone(case.conv, shape)


@exact
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_stem_is_the_convolution_without_bias_bit_for_bit(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(usual(integer_cases(dtype, PLANE, ["zeros"])), label="case")
    shape = case.x.shape[-2:]
    if not carried(case):
        return
    if case.conv.bias is not None:
        with refused(ValueError, "conv", "bias", "bias=False"):
            stand_alone(case.conv, shape, stem=True)
        return
    assert agrees(stand_alone(case.conv, shape, stem=True), case, truth_of(case))
    record(dtype=dtype)


@bounded
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_layer_is_equivalent_on_real_numbers(data: st.DataObject, dtype: torch.dtype) -> None:
    case = data.draw(usual(real_cases(dtype, PLANE)), label="case")
    if carried(case):
        assert_equivalent(stand_alone(case.conv, case.x.shape[-2:]), case.conv, case.x)


@bounded
@pytest.mark.parametrize("sharpness", [2.0, 8.0])
def test_layer_of_finite_sharpness_leaks_within_its_window(sharpness: float) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64))
    x = integers(2, 2, 5, 4, dtype=torch.float64)
    module = stand_alone(conv, (5, 4), sharpness=sharpness)
    # One key more than the window has, at the gap or farther: rounding takes less than that.
    assert_equivalent(module, conv, x, leak=min(1.0, 9 * math.exp(-sharpness)))
    with pytest.raises(AssertionError):
        assert_equivalent(module, conv, x)


def sample(stem: bool) -> tuple[Any, Tensor]:
    conv = filled(nn.Conv2d(2, 3, (2, 3), padding=(0, 1), bias=not stem))
    return conv, integers(2, 2, 5, 4)


@control
@pytest.mark.parametrize("stem", [False, True], ids=["layer", "stem"])
def test_half_of_a_parameter_is_not_the_convolution(stem: bool) -> None:
    conv, x = sample(stem)
    case = Case(conv, x)
    names = {"0.weight", "1.value.weight", "2.weight", "2.bias"}
    for name in {"value.weight"} if stem else names:
        module = stand_alone(conv, (5, 4), stem=stem)
        assert agrees(module, case, truth_of(case))
        with torch.no_grad():
            module.module.get_parameter(name).mul_(0.5)
        assert not agrees(module, case, truth_of(case)), name


@control
@pytest.mark.parametrize(
    ("stem", "name"),
    [
        (False, "0.bias"),
        (False, "1.query.weight"),
        (False, "1.rows"),
        (False, "1.columns"),
        (True, "mixture"),
        (True, "mixture_rows"),
    ],
)
def test_module_without_constant_positions_or_mixtures_is_not_the_convolution(
    stem: bool, name: str
) -> None:
    conv, x = sample(stem)
    case = Case(conv, x)
    module = stand_alone(conv, (5, 4), stem=stem)
    with torch.no_grad():
        module.module.get_parameter(name).zero_()
    assert not agrees(module, case, truth_of(case))


@control
def test_stem_has_no_sharpness() -> None:
    with refused(ValueError, "sharpness", "3.0", "uniform"):
        stand_alone(nn.Conv2d(1, 1, 2, bias=False), (4, 4), stem=True, sharpness=3.0)


# Without a constant -------------------------------------------------------------------------------


def trained(seed: int, window: tuple[int, int], heads: int, mixtures: int) -> StandAloneAttention:
    """The layer with the parameters that it starts with, two channels for each head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = StandAloneAttention(
            2 * heads,
            2 * heads,
            window,
            (window[0] // 2, window[1] // 2),
            heads=heads,
            mixtures=mixtures,
            dtype=torch.float64,
        )
    return module.eval()


@bounded
@given(
    seed=st.integers(0, 2**16),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    heads=st.integers(1, 2),
)
def test_taps_of_the_derivative_at_zero_are_all_alike(
    seed: int, window: tuple[int, int], heads: int
) -> None:
    module = trained(seed, window, heads, 1)
    zero = torch.zeros(1, 2 * heads, 4, 4, dtype=torch.float64)
    assert not module(zero).any()
    with torch.no_grad():
        # Where every score is 0 the weights are those of any image, and the layer is linear.
        module.query.weight.zero_()
    seen = [module(impulse)[0, :, 2, 2] for impulse in impulses(2 * heads, window)]
    taps = torch.stack(seen).view(2 * heads, -1, 2 * heads)
    assert all(torch.equal(taps[:, 0], taps[:, place]) for place in range(taps.shape[1]))


def impulses(channels: int, window: tuple[int, int]) -> list[Tensor]:
    """A 1 in each channel, at each place of the window around pixel (2, 2)."""
    found = []
    for channel, a, b in product(range(channels), range(window[0]), range(window[1])):
        image = torch.zeros(1, channels, 4, 4, dtype=torch.float64)
        image[0, channel, 2 + a - window[0] // 2, 2 + b - window[1] // 2] = 1
        found.append(image)
    return found


@exact
@given(seed=st.integers(0, 2**16), window=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_derivative_of_autograd_at_zero_is_that_of_uniform_attention(
    seed: int, window: tuple[int, int]
) -> None:
    # Queries of any weight: at the zero image the derivative does not see them, to the last bit.
    module = trained(seed, window, 1, 2)
    zero = torch.zeros(1, 2, 4, 4, dtype=torch.float64)

    def at_query(x: Tensor) -> Tensor:
        found: Tensor = module(x)[0, :, 2, 2]
        return found

    jacobian: Any = torch.autograd.functional.jacobian
    derivative = jacobian(at_query, zero)
    with torch.no_grad():
        module.query.weight.zero_()
    uniform = jacobian(at_query, zero)
    assert torch.equal(derivative, uniform)
    record(dtype=torch.float64)


# Mixtures -----------------------------------------------------------------------------------------

entries = st.integers(-3, 3)


def matrices(rows: st.SearchStrategy[int], columns: int) -> st.SearchStrategy[list[list[int]]]:
    return rows.flatmap(
        lambda n: st.lists(
            st.lists(entries, min_size=columns, max_size=columns), min_size=n, max_size=n
        )
    )


@exact
@given(shares=matrices(st.integers(1, 5), 3), values=matrices(st.just(3), 2))
def test_no_shares_of_fewer_mixtures_make_a_kernel(
    shares: list[list[int]], values: list[list[int]]
) -> None:
    # Any three mixtures, positive shares in fractions: the kernel has r + [1 not in V] <= 3.
    table = fmpq_mat([[fmpq(4 + v, sum(4 + w for w in row)) for v in row] for row in shares])
    kernel = table * fmpq_mat(values)
    assert theory.least_mixtures(kernel) <= 3
    record()


@exact
@given(kernel=matrices(st.integers(1, 6), 2))
def test_so_many_mixtures_suffice_exactly(kernel: list[list[int]]) -> None:
    given_ = fmpq_mat(kernel)
    shares, values = theory.mixtures_of(given_)
    count = theory.least_mixtures(given_)
    ones = fmpq_mat([[1]] * len(kernel))
    without = fmpq_mat([[*row, 1] for row in kernel]).rank() > given_.rank()
    assert shares.ncols() == count == given_.rank() + without
    assert all(shares[i, j] > 0 for i in range(len(kernel)) for j in range(count))
    assert shares * fmpq_mat([[1]] * count) == ones
    assert shares * values == len(kernel) * given_
    record()


@exact
@given(
    rows=st.lists(st.fractions(Fraction(11, 10), 50), min_size=1, max_size=3),
    columns=st.lists(st.fractions(Fraction(11, 10), 50), min_size=1, max_size=3),
)
def test_mixture_for_each_place_makes_every_kernel(
    rows: list[Fraction], columns: list[Fraction]
) -> None:
    shares = theory.additive(rows, columns)
    assert shares.rank() == len(rows) * len(columns)
    assert shares * fmpq_mat([[1]] * shares.ncols()) == fmpq_mat([[1]] * shares.nrows())


# The kernel that needs one more ------------------------------------------------------------------


def shares_of_sums(logits: Sequence[Fraction]) -> list[Fraction]:
    """x/(1 + x) for x = e^f_a e^g_b, in fractions: f and g given by their exponentials."""
    f0, f1, g0, g1 = logits
    return [v / (1 + v) for v in (f0 * g0, f0 * g1, f1 * g0, f1 * g1)]


exponentials = st.fractions(Fraction(1, 1000), 1000)


@bounded
@given(
    logits=st.tuples(exponentials, exponentials, exponentials, exponentials),
    low=st.fractions(-3, 3),
    step=st.fractions(-6, 6),
)
def test_two_mixtures_of_sums_miss_the_identity_by_two_thirds(
    logits: tuple[Fraction, ...], low: Fraction, step: Fraction
) -> None:
    shares = shares_of_sums(logits)
    best = least_squares(shares)
    assert Fraction(2, 3) < best
    assert best <= theory.squared_error([low + step * share for share in shares])
    record(ratio=float(Fraction(2, 3) / best))


def least_squares(shares: list[Fraction]) -> Fraction:
    """The least squared error of w + w' share against the identity, over both."""
    count = Fraction(4)
    total, squares = sum(shares, Fraction(0)), sum((s * s for s in shares), Fraction(0))
    target, both = Fraction(2), shares[0] + shares[3]
    determinant = count * squares - total * total
    if determinant == 0:
        return theory.squared_error([Fraction(1, 2)] * 4)
    low = (target * squares - total * both) / determinant
    step = (count * both - total * target) / determinant
    return theory.squared_error([low + step * s for s in shares])


@bounded
def test_two_mixtures_of_sums_come_as_near_to_two_thirds_as_one_likes() -> None:
    errors = []
    for power in (2, 8, 32):
        x = Fraction(2) ** power
        errors.append(least_squares(shares_of_sums((x, 1 / x**3, x, 1 / x**3))) - Fraction(2, 3))
    assert errors[0] > errors[1] > errors[2] > 0
    assert errors[2] < Fraction(1, 2**30)


@exact
def test_three_mixtures_of_sums_make_the_identity() -> None:
    x = Fraction(4)  # e^2L
    rows = [[x, 1 / x, Fraction(1)], [Fraction(1)] * 3, [Fraction(1)] * 3, [1 / x, x, Fraction(1)]]
    shares = fmpq_mat(
        [[fmpq(v.numerator, v.denominator) / _total(row) for v in row] for row in rows]
    )
    identity = fmpq_mat([[1], [0], [0], [1]])
    beside: Any = [[*row, k] for row, k in zip(shares.tolist(), (1, 0, 0, 1), strict=True)]
    assert fmpq_mat(beside).rank() == shares.rank()
    assert theory.least_mixtures(identity) == 2


def _total(row: list[Fraction]) -> fmpq:
    total = sum(row, Fraction(0))
    return fmpq(total.numerator, total.denominator)


# What the checks reject ---------------------------------------------------------------------------


@control
def test_identity_is_within_two_mixtures_of_any_logits() -> None:
    # So the floor of 2/3 is one of sums alone.
    shares, values = theory.mixtures_of(fmpq_mat([[1], [0], [0], [1]]))
    assert shares.ncols() == 2
    assert shares * values == 4 * fmpq_mat([[1], [0], [0], [1]])


@control
def test_rank_alone_undercounts_the_mixtures() -> None:
    # One mixture has constant shares: of rank-one kernels just the constant ones.
    kernel = fmpq_mat([[1], [0], [0], [1]])
    assert kernel.rank() == 1
    assert theory.least_mixtures(kernel) == 2


@control
def test_published_layer_without_its_constant_misses_the_kernel_near_zero() -> None:
    conv = filled(nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=torch.float64))
    layer: Any = stand_alone(conv, (4, 4)).module
    with torch.no_grad():
        layer[0].bias.zero_()
    x = integers(1, 2, 4, 4, dtype=torch.float64)
    error = exact_error(numbers(layer(x)), convolve_module(conv, x))
    assert error.max() > 1


@control
def test_proof_rejects_a_count_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory, "least_mixtures", lambda kernel: kernel.rank())
    with pytest.raises(ProofError, match=r"equation \(5\)"):
        theory.prove()
