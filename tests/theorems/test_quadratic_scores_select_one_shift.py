"""A head with quadratic scores attends one shift: on every grid that holds the target, whatever the query, less than 1 − ϑ(e^−α)^−d of its attention falls on other keys.

T2, `docs/theorems/quadratic_scores_select_one_shift.md`. The truth is ball arithmetic: every
comparison with a ball is with all numbers in it.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st

from constructions.certificate import bounds
from constructions.encodings import Quadratic
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import formal, heads
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.strategies import Case, geometries, sharpnesses
from theory import quadratic_scores_select_one_shift as theory
from theory.tools.theta import ball, box_leak, precision, theta_by_flint, theta_minus_one

SLUG = "quadratic_scores_select_one_shift"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
bounded = pytest.mark.evidence(SLUG, "property")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
dimensions = st.integers(1, 3)

SMALLEST = Fraction(1, 2**1074)  # the smallest positive float64
BITS = 2500  # enough for 1 - ε at the smallest sharpness, and for ε minus the leak of a small box


def positive_floats() -> st.SearchStrategy[float]:
    """Sharpnesses over all of float64: ordinary, tiny, huge, and around underflow and π."""
    return st.one_of(
        sharpnesses(),
        st.floats(1e-12, 1e3),
        st.floats(3.0, 3.3),
        st.floats(700.0, 760.0),
        st.floats(min_value=5e-324, allow_infinity=False),
    )


@st.composite
def boxes(
    draw: st.DrawFn, largest: int = 6, ranks: Sequence[int] = (1, 2, 3)
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of a box, and a target in it."""
    rank = draw(st.sampled_from(ranks))
    shape = draw(st.lists(st.integers(1, largest), min_size=rank, max_size=rank))
    return tuple(shape), tuple(draw(st.integers(0, n - 1)) for n in shape)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert {step.equation for step in theory.prove()} == set(range(2, 23))


# Theta, enclosed ----------------------------------------------------------------------------------


@bounded
@given(alpha=st.floats(1e-9, 300.0))
@example(alpha=math.pi)
@example(alpha=math.nextafter(math.pi, 4))
def test_enclosure_agrees_with_the_theta_function_of_flint(alpha: float) -> None:
    # FLINT knows nothing of our series, of its tail or of Jacobi's identity (17).
    with precision(1000):
        ours, flints = theta_minus_one(alpha, bits=400), theta_by_flint(alpha, bits=1000) - 1
        assert ours.overlaps(flints)
        assert min(ours.rel_accuracy_bits(), flints.rel_accuracy_bits()) > 100


@bounded
@given(alpha=positive_floats().filter(lambda alpha: alpha < 2**40), dimension=dimensions)
def test_enclosure_is_narrow_at_every_sharpness(alpha: float, dimension: int) -> None:
    # Beyond 2^40 the exponential underflows whatever anyone computes, and is only enclosed.
    for enclosure in (theory.leak_enclosure, theory.off_target_mass_enclosure):
        assert enclosure(alpha, dimension).rel_accuracy_bits() > 100


@bounded
@given(alpha=st.floats(1e-3, 500.0), dimension=dimensions)
def test_leak_is_between_its_elementary_bounds(alpha: float, dimension: int) -> None:
    # Equation (14).
    with precision(BITS):
        x = (-ball(alpha)).exp()
        leak = theory.leak_enclosure(alpha, dimension, bits=BITS)
        first = 2 * dimension * x
        assert first / (1 + first) < leak < first / (1 - x**3)


# Grids --------------------------------------------------------------------------------------------


@bounded
@given(alpha=st.floats(1e-3, 8.0), box=boxes())
def test_every_box_and_target_leaks_less_than_epsilon(
    alpha: float, box: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    shape, target = box
    with precision(BITS):
        leak = box_leak(alpha, shape, target, bits=BITS)
        supremum = theory.leak_enclosure(alpha, len(shape), bits=BITS)
        assert leak < supremum
        assert leak >= 0
        record(ratio=float((leak / supremum).upper()), dtype="real")


@bounded
@given(alpha=st.floats(1e-3, 8.0), reach=st.integers(0, 5), dimension=dimensions)
def test_centred_boxes_approach_epsilon_as_fast_as_stated(
    alpha: float, reach: int, dimension: int
) -> None:
    # Equation (12).
    with precision(BITS):
        x = (-ball(alpha)).exp()
        leak = box_leak(alpha, (2 * reach + 1,) * dimension, (reach,) * dimension, bits=BITS)
        missing = theory.leak_enclosure(alpha, dimension, bits=BITS) - leak
        stated = 2 * dimension * x ** ((reach + 1) ** 2) / (1 - x ** (2 * reach + 3))
        assert 0 < missing < stated


@bounded
@given(
    alpha=st.floats(1e-3, 20.0),
    box=boxes(largest=4),
    shift=st.lists(st.integers(-9, 9), min_size=3, max_size=3),
)
def test_softmax_of_the_paper_s_scores_leaks_what_the_product_says(
    alpha: float, box: tuple[tuple[int, ...], tuple[int, ...]], shift: list[int]
) -> None:
    # The definition: r_δ = (‖δ‖², δ), v = -α (1, -2Δ), softmax over all keys, no square completed.
    shape, target = box
    shift = shift[: len(shape)]
    query = [t - s for t, s in zip(target, shift, strict=True)]
    with precision(400):
        vector = [-ball(alpha) * entry for entry in (1, *(-2 * s for s in shift))]
        exponentials = {}
        for key in np.ndindex(*shape):
            delta = [k - q for k, q in zip(key, query, strict=True)]
            encoding = (sum(c * c for c in delta), *delta)
            score = sum((v * r for v, r in zip(vector, encoding, strict=True)), arb(0))
            exponentials[key] = score.exp()
        total = sum(exponentials.values(), arb(0))
        weight = exponentials[target] / total
        assert (1 - weight).overlaps(box_leak(alpha, shape, target))
        assert weight.rel_accuracy_bits() > 100


@bounded
@given(alpha=st.lists(st.floats(0.1, 8.0), min_size=2, max_size=2), box=boxes(largest=5, ranks=[2]))
def test_a_sharpness_for_each_axis_leaks_less_than_the_product(
    alpha: list[float], box: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    # Equation (15) in two dimensions.
    (rows, columns), (row, column) = box
    with precision(BITS):
        first, second = (ball(a) for a in alpha)
        total = sum(
            (
                (-first * (i - row) ** 2 - second * (j - column) ** 2).exp()
                for i, j in product(range(rows), range(columns))
            ),
            arb(0),
        )
        thetas = [1 + theta_minus_one(a, bits=BITS) for a in alpha]
        assert 1 - 1 / total < 1 - 1 / (thetas[0] * thetas[1])


# The code's formulas ------------------------------------------------------------------------------


@bounded
@given(alpha=positive_floats(), dimension=dimensions)
@example(alpha=5e-324, dimension=3)
@example(alpha=math.pi, dimension=3)
@example(alpha=math.nextafter(math.pi, 0), dimension=3)
@example(alpha=38.0, dimension=1)
@example(alpha=709.0, dimension=3)
@example(alpha=745.2, dimension=3)
@example(alpha=746.0, dimension=3)
@example(alpha=1.7976931348623157e308, dimension=3)
def test_float64_leak_is_the_least_upper_bound_rounded_up(alpha: float, dimension: int) -> None:
    # Equation (21).
    with precision(BITS):
        exact = theory.leak_enclosure(alpha, dimension, bits=BITS)
        code = arb(bounds.leak(alpha, dimension))
        assert code >= exact
        assert code <= exact * (1 + arb(2) ** -45) + 64 * dimension * ball(SMALLEST)


@bounded
@given(alpha=positive_floats(), dimension=dimensions)
@example(alpha=1e-300, dimension=1)
@example(alpha=1e-29, dimension=3)
@example(alpha=745.2, dimension=3)
def test_float64_mass_is_the_least_upper_bound_rounded_up(alpha: float, dimension: int) -> None:
    # Equation (22).
    mass = bounds.off_target_mass(alpha, dimension)
    with precision(BITS):
        exact = theory.off_target_mass_enclosure(alpha, dimension, bits=BITS)
        exponent = (1 + exact).log()
        if math.isinf(mass):
            assert exponent > 699 or math.isinf(math.pi / alpha)
            return
        assert arb(mass) >= exact
        growth = 1 + arb(2) ** -45 * (1 + exponent)
        assert arb(mass) <= exact * growth + 64 * dimension * ball(SMALLEST)


@exact
@given(
    shift=st.lists(st.integers(-1000, 1000), min_size=1, max_size=3),
    displacement=st.lists(st.integers(-1000, 1000), min_size=3, max_size=3),
)
def test_encoding_completes_the_square_in_integers(
    shift: list[int], displacement: list[int]
) -> None:
    # Equation (3): <name, features> + ‖Δ‖² is minus the squared distance, exactly.
    delta, grid = displacement[: len(shift)], Lattice.box((1,) * len(shift))
    features, names = Quadratic().encode(
        torch.tensor([delta], dtype=torch.float64),
        torch.tensor([shift], dtype=torch.float64),
        grid,
    )
    squared = sum((d - s) ** 2 for d, s in zip(delta, shift, strict=True))
    constant = sum(s * s for s in shift)
    assert features.shape == names.shape == (1, len(shift) + 1)
    assert (names @ features.T).item() == constant - squared


@exact
def test_encoding_states_the_gap_of_one() -> None:
    # Equation (13).
    assert Quadratic().gap(torch.zeros(1, 2), Lattice.box((3, 3))) == 1.0


# The layer ----------------------------------------------------------------------------------------


def rounding(alpha: float, dimension: int, keys: int, dtype: torch.dtype) -> Fraction:
    """What floating point can do to a sum of off-target weights: (9) and (11) of T7 for R = 1."""
    off_target = bounds.off_target_mass(alpha, dimension)
    mass = min(off_target, bounds.gap_mass(alpha, keys, has_sink=False))
    seen = torch.tensor(mass / (1 + mass) * bounds.ROUND_UP, dtype=torch.float64)
    return Fraction(bounds.head_rounding(seen, torch.ones_like(seen), mass, (keys,), dtype).item())


def worst_row(weights: np.ndarray, targets: heads.Targets) -> tuple[int, int]:
    """The head and the query that give most attention to other keys."""
    off = weights.sum(-1) - np.take_along_axis(weights, targets.keys[..., None], -1)[..., 0]
    head, query = np.unravel_index(off.argmax(), off.shape)
    return int(head), int(query)


def selects_its_shifts(layer: MultiHeadSelfAttention, case: Case, alpha: float) -> bool:
    """Whether no row of the stored weights has more off its target than leak and rounding."""
    targets = heads.Targets.of(case)
    weights = numbers(layer.attention_weights(case.x.shape[-len(targets.grid) :]))
    head, query = worst_row(weights, targets)
    off = heads.off_target(weights[head, query], int(targets.keys[head, query]))
    dimension, keys = len(targets.grid), math.prod(targets.grid)
    allowed = rounding(alpha, dimension, keys, case.x.dtype)
    return off <= Fraction(bounds.leak(alpha, dimension)) + allowed


@bounded
@every_format
@given(data=st.data())
def test_rows_of_the_dense_layer_leak_what_their_grid_says(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    geometry = data.draw(geometries(), label="geometry")
    case = Case(
        geometry.build(dtype), torch.zeros(geometry.shape, dtype=dtype), geometry.output_size
    )
    alpha = data.draw(sharpnesses(), label="sharpness")
    targets = heads.Targets.of(case)
    layer = papers_layer(case.to(device).conv, sharpness=alpha)
    size = None if case.output_size is None else heads.output_shape(case)
    shape = case.x.shape[-len(targets.grid) :]
    weights = numbers(layer.attention_weights(shape, output_size=size))
    assert weights.shape == (*targets.keys.shape, math.prod(targets.grid))

    head = data.draw(st.integers(0, len(weights) - 1), label="head")
    query = data.draw(st.integers(0, weights.shape[1] - 1), label="query")
    dimension, keys = len(targets.grid), math.prod(targets.grid)
    allowed = rounding(alpha, dimension, keys, dtype)
    for row in {(head, query), worst_row(weights, targets)}:
        off = heads.off_target(weights[row], int(targets.keys[row]))
        with precision(BITS):
            error = abs(ball(off) - box_leak(alpha, targets.grid, targets.position(*row)))
            assert error <= ball(allowed)
        limit = Fraction(bounds.leak(alpha, dimension)) + allowed
        record(ratio=float(off / limit), device=device, dtype=dtype)
        assert off <= limit


# What the checks reject ---------------------------------------------------------------------------


@control
@every_rank
@every_format
@pytest.mark.parametrize(
    "wrong",
    [
        heads.half_the_sharpness,
        heads.query_minus_key,
        heads.reversed_kernel,
        heads.repeated_shift,
        heads.shift_between_pixels,
        heads.target_beyond_the_grid,
    ],
    ids=lambda wrong: wrong.__name__,
)
def test_wrong_head_leaks_more_than_the_bound(
    rank: int, dtype: torch.dtype, wrong: heads.Wrong
) -> None:
    case = heads.generic_case(rank, dtype)
    layer = papers_layer(case.conv, sharpness=6.0)
    assert selects_its_shifts(layer, case, 6.0)
    wrong(layer)
    assert not selects_its_shifts(layer, case, 6.0)


@control
@pytest.mark.parametrize("rank", [2, 3])
def test_swapped_axes_leak_more_than_the_bound(rank: int) -> None:
    case = heads.generic_case(rank)
    layer = papers_layer(case.conv, sharpness=6.0)
    heads.swapped_axes(layer)
    assert not selects_its_shifts(layer, case, 6.0)


@control
@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("alpha", [0.5, 4.0, 38.0, 104.0])
def test_bound_for_one_dimension_less_is_no_bound(dimension: int, alpha: float) -> None:
    leak = box_leak(alpha, (9,) * dimension, (4,) * dimension)
    assert leak > theory.leak_enclosure(alpha, dimension - 1)


@control
@every_rank
@pytest.mark.parametrize("alpha", [0.5, 4.0, 38.0, 104.0])
def test_bound_for_a_little_more_sharpness_is_no_bound(rank: int, alpha: float) -> None:
    # The supremum is approached: a box of a few keys is already within one part in a thousand.
    leak = box_leak(alpha, (13,) * rank, (6,) * rank)
    assert leak > theory.leak_enclosure(alpha * 1.001, rank)


@control
@pytest.mark.parametrize("alpha", [38.0, 46.0, 104.0])
def test_one_minus_a_power_of_theta_cancels(alpha: float) -> None:
    theta = 1 + 2 * math.exp(-alpha)
    assert 1 - theta**-2 == 0.0
    assert theory.leak_enclosure(alpha, 2) > 0


@control
@every_rank
def test_formula_that_is_not_rounded_up_is_no_bound(rank: int) -> None:
    def plain(alpha: float) -> float:
        return -math.expm1(-rank * math.log1p(2 * math.exp(-alpha)))

    grid = [4.0 + i / 7 for i in range(200)]
    below = [alpha for alpha in grid if arb(plain(alpha)) < theory.leak_enclosure(alpha, rank)]
    assert below
    assert all(
        arb(bounds.leak(alpha, rank)) >= theory.leak_enclosure(alpha, rank) for alpha in below
    )


@control
def test_box_without_its_target_has_no_leak_to_speak_of() -> None:
    shape: Sequence[int] = (3, 4)
    for target in ((3, 0), (0, 4), (-1, 0)):
        with pytest.raises(ValueError, match="not in the box"):
            box_leak(1.0, shape, target)


@control
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_theta_of_no_positive_sharpness_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive"):
        theta_minus_one(alpha)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
