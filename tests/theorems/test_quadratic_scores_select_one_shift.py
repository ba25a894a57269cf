"""A head with quadratic scores attends one shift: on every grid that holds the target, whatever the query, less than 1 − ϑ(e^−α)^−d of its attention falls on other keys.

T2, `docs/theorems/quadratic_scores_select_one_shift.md`. The truth is ball arithmetic: every
comparison with a ball is with all numbers in it.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st

from constructions.certificate import ROUND_UP, gap_mass, head_rounding, masses
from constructions.encodings import Quadratic
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import formal, heads
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
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
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


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
@given(
    alpha=st.floats(1e-3, 20.0),
    keys=st.integers(1, 3).flatmap(
        lambda d: st.sets(st.tuples(*d * [st.integers(-5, 5)]), min_size=1, max_size=30)
    ),
    data=st.data(),
)
def test_every_finite_set_of_keys_leaks_less_than_epsilon(
    alpha: float, keys: set[tuple[int, ...]], data: st.DataObject
) -> None:
    # Equations (9) and (10): the keys need not fill a box.
    target = data.draw(st.sampled_from(sorted(keys)), label="target")
    with precision(BITS):
        total = sum(
            ((-ball(alpha) * sum((k - t) ** 2 for k, t in zip(key, target, strict=True))).exp())
            for key in keys
        )
        assert 1 - 1 / total < theory.leak_enclosure(alpha, len(target), bits=BITS)


@bounded
@given(alpha=st.lists(st.floats(0.1, 8.0), min_size=3, max_size=3), box=boxes(largest=4))
def test_a_sharpness_for_each_axis_leaks_less_than_the_product(
    alpha: list[float], box: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    # Equation (15).
    shape, target = box
    with precision(BITS):
        total, bound = arb(0), arb(1)
        for key in np.ndindex(*shape):
            steps = zip(alpha, key, target, strict=False)
            total += sum((-ball(a) * (int(k) - t) ** 2 for a, k, t in steps), arb(0)).exp()
        for a in alpha[: len(shape)]:
            bound *= 1 + theta_minus_one(a, bits=BITS)
        assert 1 - 1 / total < 1 - 1 / bound


# The code's formulas ------------------------------------------------------------------------------


def is_leak_rounded_up(value: float, alpha: float, dimension: int) -> bool:
    """Whether a float is a bound of ε(α), and as tight a one as (21) says."""
    with precision(BITS):
        exact = theory.leak_enclosure(alpha, dimension, bits=BITS)
        highest = exact * (1 + arb(2) ** -45) + 64 * dimension * ball(SMALLEST)
        return bool(exact <= arb(value) <= highest)


def is_mass_rounded_up(value: float, alpha: float, dimension: int) -> bool:
    """Whether a float is a bound of ϑ^d - 1, and as tight a one as (22) says."""
    with precision(BITS):
        exact = theory.off_target_mass_enclosure(alpha, dimension, bits=BITS)
        exponent = (1 + exact).log()
        if math.isinf(value):
            return bool(exponent > 699) or math.isinf(math.pi / alpha)
        growth = 1 + arb(2) ** -45 * (1 + exponent)
        return bool(exact <= arb(value) <= exact * growth + 64 * dimension * ball(SMALLEST))


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
    assert is_leak_rounded_up(masses.leak(alpha, dimension), alpha, dimension)


@bounded
@given(alpha=positive_floats(), dimension=dimensions)
@example(alpha=1e-300, dimension=1)
@example(alpha=1e-29, dimension=3)
@example(alpha=745.2, dimension=3)
def test_float64_mass_is_the_least_upper_bound_rounded_up(alpha: float, dimension: int) -> None:
    # Equation (22).
    assert is_mass_rounded_up(masses.off_target_mass(alpha, dimension), alpha, dimension)


EIGHTHS = [i / 8 for i in range(1, 49)]  # on both sides of π, where the code takes (17)


@bounded
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_both_bounds_hold_on_either_side_of_the_switch_to_jacobi_s_identity(dimension: int) -> None:
    for alpha in EIGHTHS:
        assert is_leak_rounded_up(masses.leak(alpha, dimension), alpha, dimension)
        assert is_mass_rounded_up(masses.off_target_mass(alpha, dimension), alpha, dimension)


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
    off_target = masses.off_target_mass(alpha, dimension)
    mass = min(off_target, gap_mass(alpha, keys))
    seen = torch.tensor(mass / (1 + mass) * ROUND_UP, dtype=torch.float64)
    return Fraction(head_rounding(seen, torch.ones_like(seen), mass, (keys,), dtype).item())


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
    return off <= Fraction(masses.leak(alpha, dimension)) + allowed


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
        limit = Fraction(masses.leak(alpha, dimension)) + allowed
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
    assert arb(masses.leak(alpha, dimension)) >= leak
    assert arb(masses.leak(alpha, dimension - 1)) < leak


@control
@every_rank
@pytest.mark.parametrize("alpha", [0.5, 4.0, 38.0, 104.0])
def test_bound_for_a_little_more_sharpness_is_no_bound(rank: int, alpha: float) -> None:
    # The supremum is approached: a box of a few keys is already within one part in a thousand.
    leak = box_leak(alpha, (13,) * rank, (6,) * rank)
    assert arb(masses.leak(alpha, rank)) >= leak
    assert arb(masses.leak(alpha * 1.001, rank)) < leak


@control
@pytest.mark.parametrize("switch", [0.3, 1.0, 1.2])
def test_series_without_jacobi_s_identity_is_no_bound(
    switch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four terms of ϑ(e^-α) are too few from 1.2 or so downwards: the code switched too late.
    def log_theta(sharpness: float, dimension: int) -> float:
        if sharpness >= switch:
            return math.log1p(masses._theta_tail(sharpness))
        return right(sharpness, dimension)

    right = masses._log_theta
    monkeypatch.setattr(masses, "_log_theta", log_theta)
    wrong = {a for a in EIGHTHS if not is_leak_rounded_up(masses.leak(a, 1), a, 1)}
    assert wrong
    assert max(wrong) < math.pi
    assert not all(is_mass_rounded_up(masses.off_target_mass(a, 1), a, 1) for a in EIGHTHS)


def cancelled(alpha: float, dimension: int) -> float:
    """ε(α) as it stands: one minus a power of ϑ."""
    return 1 - (1 + masses._theta_tail(alpha)) ** -dimension


def not_rounded_up(alpha: float, dimension: int) -> float:
    """ε(α) without cancellation, rounded as it comes."""
    return -math.expm1(-dimension * math.log1p(masses._theta_tail(alpha)))


@control
@every_rank
@pytest.mark.parametrize("formula", [cancelled, not_rounded_up], ids=lambda f: f.__name__)
def test_wrong_formula_is_no_bound_where_that_of_the_code_is(
    rank: int, formula: Callable[[float, int], float]
) -> None:
    grid = [4.0 + i / 7 for i in range(300)]
    wrong = [alpha for alpha in grid if not is_leak_rounded_up(formula(alpha, rank), alpha, rank)]
    assert wrong
    assert all(is_leak_rounded_up(masses.leak(alpha, rank), alpha, rank) for alpha in grid)
    if formula is cancelled:  # equation (16): from α = 38 on it returns 0
        assert all(alpha in wrong and formula(alpha, rank) == 0 for alpha in grid if alpha >= 38)


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
