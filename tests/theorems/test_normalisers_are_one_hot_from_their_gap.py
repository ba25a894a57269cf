"""Entmax of order a is one-hot exactly from the gap 1/(a − 1) in score on, ReLU from its height on and the hard maximum from every positive gap on, while softmax and sigmoid are so in the limit only.

T16, `docs/theorems/normalisers_are_one_hot_from_their_gap.md`. Weights are held against rationals,
against balls that enclose them, and against the package `entmax`; layers against the integers.
"""  # noqa: E501, the claim is one sentence

import importlib
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, formats
from constructions.normalisers import NORMALISERS, Entmax, Normaliser, Relu, Sigmoid, Softmax, Top1
from constructions.normalisers import base as normalisers
from constructions.normalisers.gates import peak_height
from tests.support import formal, heads
from tests.support.helpers import filled, integers, refused, sunk
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, integer_cases, sharpnesses
from theory import normalisers_are_one_hot_from_their_gap as theory
from theory.borders_are_limits_of_attention import row_sum_error
from theory.saturated_softmax_is_one_hot import EXP_ROUNDOFFS, rounded
from theory.saturated_softmax_is_one_hot import FORMATS as STATED
from theory.tools import exact_normalisers as by_hand
from theory.tools.theta import ball, precision

SLUG = "normalisers_are_one_hot_from_their_gap"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
accumulators = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}

OTHERS: tuple[Normaliser, ...] = (Entmax(1.01), Entmax(3.3), Entmax(64), Relu(0.3), Relu(1e30))
EVERY: tuple[Normaliser, ...] = (*NORMALISERS.values(), *OTHERS, Sigmoid(40))
QUOTIENTS = [n for n in EVERY if n.shift_invariant]
GATES = [n for n in EVERY if n.vanishes]
NEW = [n for n in EVERY if not isinstance(n, Softmax)]  # T8 is about softmax
ORDERS = [Fraction(2), Fraction(3, 2), Fraction(5, 4), Fraction(3), Fraction(5)]

everyone = pytest.mark.parametrize("normaliser", NEW, ids=repr)
by_name = pytest.mark.parametrize("name", list(NORMALISERS))


def stated(dtype: torch.dtype) -> Any:
    return STATED[str(dtype).removeprefix("torch.")]


def after(number: float, dtype: torch.dtype) -> float:
    """The float of a format next to a negative number, on the side of 0."""
    start = torch.tensor(number, dtype=dtype)
    assert start.item() == number
    return torch.nextafter(start, torch.zeros_like(start)).item()


def saturated_scores(normaliser: Normaliser, dtype: torch.dtype) -> Tensor:
    """Scores that a saturated layer can have off the target: the highest ones, and all sizes."""
    scored_in = formats.accumulator(dtype)
    gap, u = normaliser.one_hot_gap(dtype), formats.unit_roundoff(scored_in)
    highest = torch.tensor(-gap, dtype=torch.float64) * (1 - 2 * u)
    ends = torch.tensor([highest, -math.inf], dtype=scored_in)
    first, last = ends.view(INTEGER[scored_in]).tolist()
    first += int(ends[0].item() > highest.item())  # not above it
    steps = torch.arange(2**11, dtype=INTEGER[scored_in])
    bits = torch.cat([first + steps, first + steps * ((last - first) // 2**11)])
    return torch.cat([bits.view(scored_in), ends[1:]])


def in_rows(scores: Tensor, length: int, target: int) -> Tensor:
    """All scores, in rows of the given length whose target scores 0."""
    rows = scores[: len(scores) // (length - 1) * (length - 1)].reshape(-1, length - 1)
    zeros = rows.new_zeros(len(rows), 1)
    return torch.cat([rows[:, :target], zeros, rows[:, target:]], dim=1)


def rationals(values: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in values.tolist()]


@st.composite
def score_rows(draw: st.DrawFn, dtype: torch.dtype, most: int = 8) -> Tensor:
    """A row whose highest score is 0: ties, scores near it, and scores beyond every gap."""
    width: Any = 64 if dtype == torch.float64 else 32
    ties, wide = st.sampled_from([0.0, -0.5, -1.0, -2.0]), st.floats(-40, 0, width=width)
    near = st.floats(-2, 0, width=width)
    others = draw(st.lists(ties | near | wide, min_size=1, max_size=most - 1))
    row = draw(st.permutations([0.0, *others]))
    return torch.tensor(row, dtype=dtype)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@symbolic
def test_theory_and_code_speak_of_the_same_margins() -> None:
    assert theory.GAP_MARGIN == normalisers.GAP_MARGIN
    assert EXP_ROUNDOFFS == normalisers.EXP_ROUNDOFFS


@symbolic
@given(
    weight=st.fractions(Fraction(1, 1000), Fraction(1, 2), max_denominator=2000),
    order=st.sampled_from([*ORDERS, Fraction(21, 20), Fraction(9)]),
)
@example(weight=Fraction(1, 2), order=Fraction(2))
def test_two_keys_have_the_weights_that_their_gap_says(weight: Fraction, order: Fraction) -> None:
    # Equation (7), against the definition (5).
    with precision(by_hand.BITS):
        gap = Fraction(str(by_hand.gap_of(weight, order).mid().fmpq()))
        found = by_hand.entmax([Fraction(0), -max(gap, Fraction(0))], order)[1]
        assert found.overlaps(ball(weight))
        # The threshold is known within 2^-85, and with it the base, the power a - 1 of the weight.
        base, width = ball(weight) ** ball(order - 1), arb(2) ** -(by_hand.BITS // 3)
        power = 1 / ball(order - 1)
        assert width < base
        assert found.rad() <= (base + width) ** power - (base - width) ** power


@symbolic
@given(
    scores=st.lists(st.fractions(-3, 3, max_denominator=12), min_size=1, max_size=6),
)
def test_sparsemax_over_the_rationals_is_the_nearest_point_of_the_simplex(
    scores: list[Fraction],
) -> None:
    # <p' - p, z - p> <= 0 for every point p' of the simplex; its corners are enough.
    p = by_hand.sparsemax(scores)
    assert sum(p) == 1
    assert min(p) >= 0
    distances = [z - weight for z, weight in zip(scores, p, strict=True)]
    own = sum(weight * distance for weight, distance in zip(p, distances, strict=True))
    assert all(distance <= own for distance in distances)
    gap = sorted(scores)[-1] - sorted([min(scores) - 2, *scores])[-2]
    assert (max(p) == 1) == (gap >= 1)


# The hypotheses on torch --------------------------------------------------------------------------


@bounded
@accumulators
def test_sigmoid_is_as_accurate_as_the_hypothesis_says(dtype: torch.dtype, device: str) -> None:
    form, lowest = stated(dtype), -normalisers.underflow(dtype)
    arguments = torch.linspace(lowest, 0, 4000, dtype=torch.float64).to(dtype)
    computed = arguments.to(device).sigmoid().cpu()
    assert computed.min() >= 0
    with precision(128):
        worst = arb(0)
        for x, y in zip(arguments.tolist(), computed.tolist(), strict=True):
            excess = (ball(y) - ball(form.smallest_subnormal / 2)) / ball(x).exp() - 1
            worst = worst.max(excess / (EXP_ROUNDOFFS * ball(form.unit_roundoff)))
        assert worst < 1
        record(ratio=float(worst.upper()), device=device, dtype=dtype)


@exact
@accumulators
def test_sigmoid_is_one_from_the_height_on_and_not_much_before(
    dtype: torch.dtype, device: str
) -> None:
    # Equation (22); by way of a computed exponential it may be one from ln 2 earlier on.
    height = peak_height(dtype)
    beyond = torch.cat([torch.linspace(height, 2 * height, 999), torch.tensor([1e3, math.inf])])
    beyond = beyond.to(device, dtype).clamp(min=torch.tensor(height, dtype=dtype).item())
    assert (beyond.sigmoid() == 1).all()
    assert Sigmoid()(torch.zeros(1, dtype=dtype, device=device)) == 1
    assert torch.tensor(height - 2 * math.log(2), dtype=dtype, device=device).sigmoid() < 1


@bounded
@accumulators
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5, 0.25, 4.0, 100.0])
def test_power_is_as_accurate_as_the_hypothesis_says(
    dtype: torch.dtype, power: float, device: str
) -> None:
    bases = torch.linspace(0, 1, 2001, dtype=dtype)[1:].sqrt()
    computed = bases.to(device).pow(power).cpu()
    assert computed[-1] == bases[-1] == 1
    assert torch.zeros(1, dtype=dtype, device=device).pow(power) == 0
    form = stated(dtype)
    normal = torch.finfo(dtype).smallest_normal  # below it a power has fewer bits
    kept = [
        pair for pair in zip(bases.tolist(), computed.tolist(), strict=True) if pair[1] >= normal
    ]
    with precision(128):
        worst = arb(0)
        for base, found in kept:
            worst = worst.max(abs(ball(found) / ball(base) ** ball(power) - 1))
        allowed = (1 if power in (1.0, 2.0) else EXP_ROUNDOFFS) * ball(form.unit_roundoff)
        assert worst <= allowed
        record(ratio=float((worst / allowed).upper()), device=device, dtype=dtype)


# One-hot ------------------------------------------------------------------------------------------


@exact
@everyone
@every_format
@pytest.mark.parametrize("length", [2, 9, 1000])
def test_every_saturated_row_is_one_hot(
    normaliser: Normaliser, dtype: torch.dtype, length: int, device: str
) -> None:
    # Equations (18), (19) and (23).
    scores = saturated_scores(normaliser, dtype)
    for target in {0, length // 3, length - 1}:
        rows = in_rows(scores, length, target).to(device)
        weights = normaliser(rows).to(dtype)
        assert torch.count_nonzero(weights) == len(rows)
        assert (weights[:, target] == 1).all()
        record(device=device, dtype=dtype)


@exact
@everyone
@every_format
def test_many_keys_at_the_gap_leave_the_peak_at_one(
    normaliser: Normaliser, dtype: torch.dtype, device: str
) -> None:
    # Unlike softmax in half precision: 2^16 keys, where it has lost its peak.
    row = saturated_scores(normaliser, dtype)[:1].expand(2**16).clone()
    row[-1] = 0
    weights = normaliser(row.to(device)).to(dtype)
    assert weights[-1] == 1
    assert torch.count_nonzero(weights) == 1


@exact
@accumulators
@given(root=st.sampled_from([1, 2]), data=st.data())
def test_sparsemax_and_entmax15_are_one_hot_just_where_their_scaled_scores_say(
    dtype: torch.dtype, root: int, device: str, data: st.DataObject
) -> None:
    # Equation (21), to the last bit.
    row = data.draw(score_rows(dtype))
    edge = torch.full_like(row, -float(root))
    step = torch.nextafter(edge, torch.zeros_like(edge)) - edge
    row = torch.where(row < 0, edge + (row * 2).trunc().clamp(-3, 3) * step + 2 * step, row)
    if torch.count_nonzero(row) < len(row) - 1:
        return  # a tie
    weights = Entmax(1 + 1 / root)(row.to(device)).cpu()
    one_hot = bool((weights[row == 0] == 1).all()) and torch.count_nonzero(weights) == 1
    assert one_hot == bool((row[row < 0] <= -root).all())
    record(device=device, dtype=dtype)


@exact
@every_format
def test_last_score_before_the_gap_is_not_one_hot(dtype: torch.dtype, device: str) -> None:
    # In every format for ReLU and in those that store a weight of u/2, or its square, for the rest.
    scored_in = formats.accumulator(dtype)
    cases: list[tuple[Normaliser, float]] = [(Relu(), -1.0), (Relu(0.25), -0.25)]
    if dtype != torch.float16:
        cases += [(NORMALISERS["sparsemax"], -1.0), (NORMALISERS["entmax15"], -2.0)]
    for normaliser, gap in cases:
        for score, kept in ((gap, 1), (after(gap, scored_in), 2)):
            row = torch.tensor([0.0, score], dtype=scored_in, device=device)
            assert torch.count_nonzero(normaliser(row).to(dtype)) == kept


@bounded
@pytest.mark.parametrize("order", [1.1, 1.5, 2.0], ids=str)
def test_float16_weights_are_stored_as_zero_from_the_gap_of_half_its_smallest_number(
    order: float, device: str
) -> None:
    # Equation (9), where float32 resolves the threshold of the narrower format.
    half = STATED["float16"].smallest_subnormal / 2
    with precision(by_hand.BITS):
        gap = float(by_hand.gap_of(half, Fraction(order)))
    margin = max(float(half) ** (order - 1) / 20, 2.0**-24)
    assert gap + margin < 1 / (order - 1) or order == 2
    for score, stored in ((-gap + margin, 2), (-gap - margin, 1)):
        weights = Entmax(order)(torch.tensor([0.0, score], device=device)).half()
        assert torch.count_nonzero(weights) == stored


@exact
@accumulators
@pytest.mark.parametrize("normaliser", GATES, ids=repr)
def test_gates_vanish_off_the_keys(normaliser: Normaliser, dtype: torch.dtype, device: str) -> None:
    scores = saturated_scores(normaliser, dtype)
    assert not normaliser(scores.to(device)).any()


@exact
@every_format
@pytest.mark.parametrize("gate", [Relu(), Sigmoid()], ids=repr)
@given(sharpness=sharpnesses() | st.floats(1e-30, 1e30))
@example(sharpness=5e-324)
@example(sharpness=1.7e308)
def test_given_sharpness_is_a_gap_in_every_format(
    gate: Relu | Sigmoid, dtype: torch.dtype, sharpness: float
) -> None:
    # Equations (12) and (15): ReLU at any sharpness that scores of the format can have.
    chosen = gate.at(sharpness)
    scored_in = formats.accumulator(dtype)
    if isinstance(gate, Relu):
        normal = sharpness >= 2 * formats.smallest_normal(scored_in)
        assert (chosen.one_hot_gap(dtype) <= sharpness) == normal
    else:
        assert math.isfinite(chosen.one_hot_gap(dtype)) == (sharpness / 2 >= peak_height(scored_in))
        wanted = 2 * Sigmoid().one_hot_gap(dtype)
        assert chosen.one_hot_gap(dtype) <= sharpness or sharpness <= wanted
    if chosen.one_hot_gap(dtype) <= sharpness:
        row = torch.tensor([0.0, -sharpness, -3 * sharpness, -math.inf], dtype=torch.float64)
        assert chosen(row.to(scored_in)).to(dtype).tolist() == [1, 0, 0, 0]


# With a sink --------------------------------------------------------------------------------------


def with_sink(alpha: float, depth: float, dtype: torch.dtype) -> Tensor:
    """Two rows: the target is a key; it is not, and the nearest key is at distance one."""
    keys = [[0.0, -1, -1, -2, -depth], [-1.0, -1, -2, -4, -depth]]
    rows = torch.tensor(keys, dtype=torch.float64) * alpha
    return (rows - rows.amax(dim=-1, keepdim=True)).to(formats.accumulator(dtype))


SINK_WANTED = [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


@exact
@every_format
@pytest.mark.parametrize("normaliser", QUOTIENTS, ids=repr)
def test_twice_the_gap_is_one_hot_with_a_sink_half_way(
    normaliser: Normaliser, dtype: torch.dtype, device: str
) -> None:
    # Equation (16).
    rows = with_sink(2 * normaliser.one_hot_gap(dtype), 0.5, dtype)
    assert normaliser(rows.to(device)).to(dtype).tolist() == SINK_WANTED


@control
@pytest.mark.parametrize("depth", [0.25, 0.49, 0.51, 0.75])
@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_twice_the_gap_is_not_one_hot_with_a_sink_elsewhere(name: str, depth: float) -> None:
    normaliser = NORMALISERS[name]
    rows = with_sink(2 * normaliser.one_hot_gap(torch.float32), depth, torch.float32)
    assert normaliser(rows).tolist() != SINK_WANTED


@control
@pytest.mark.parametrize("alpha", [1.0, 10.0, 1e4, 1e8])
def test_sink_at_full_height_ties_at_every_sharpness(alpha: float) -> None:
    for normaliser in QUOTIENTS:
        weights = normaliser(with_sink(alpha, 1.0, torch.float32))
        assert weights[1, 4] <= 0.5


@control
@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_less_than_twice_the_gap_is_not_one_hot_with_a_sink(name: str) -> None:
    # Equation (21): the sink at the last float32 before the gap, and at the gap.
    gap = {"sparsemax": 1.0, "entmax15": 2.0}[name]
    for score, kept in ((after(-gap, torch.float32), 5), (-gap, 2)):
        rows = with_sink(-2 * score, 0.5, torch.float32)
        assert rows[0, 4] == rows[1, 0] - rows[1, 4] == score
        assert torch.count_nonzero(NORMALISERS[name](rows)) == kept


# Below the gap ------------------------------------------------------------------------------------


@bounded
@given(order=st.sampled_from(ORDERS), data=st.data())
def test_computed_entmax_is_within_the_derived_error(
    order: Fraction, device: str, data: st.DataObject
) -> None:
    # Equation (24).
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    row = data.draw(score_rows(dtype, most=5))
    found = rationals(Entmax(float(order))(row.to(device)).cpu())
    with precision(by_hand.BITS):
        allowed = by_hand.weight_error(len(row), order, stated(dtype))
        if order == 2:
            wanted = [ball(p) for p in by_hand.sparsemax(rationals(row))]
        else:
            wanted = by_hand.entmax(rationals(row), order)
        pairs = zip(found, wanted, strict=True)
        worst = max(float((abs(ball(p) - w) / allowed).upper()) for p, w in pairs)
    assert worst <= 1
    record(ratio=worst, device=device, dtype=dtype)


@bounded
@pytest.mark.parametrize("order", [1.3, 1.5, 2.0, 2.5], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_entmax_agrees_with_the_package(order: float, scale: float) -> None:
    package: Any = importlib.import_module("entmax")
    z = scale * integers(40, 25, dtype=torch.float64).sin()
    exact_there = {1.5: package.entmax15, 2.0: package.sparsemax}
    if order in exact_there:
        wanted = exact_there[order](z, dim=-1)
    else:
        wanted = package.entmax_bisect(z, alpha=order, dim=-1, n_iter=100)
    error = (Entmax(order)(z) - wanted).abs().max().item()
    with precision(64):
        bound = 2 * by_hand.weight_error(25, Fraction(order), STATED["float64"])
        assert ball(error) <= bound
        record(ratio=float((ball(error) / bound).upper()), dtype=torch.float64)


@bounded
@given(normaliser=st.sampled_from(QUOTIENTS), data=st.data())
def test_rows_of_quotients_sum_to_one_within_their_rounding(
    normaliser: Normaliser, device: str, data: st.DataObject
) -> None:
    # Equation (20).
    dtype = data.draw(st.sampled_from(formats.FORMATS))
    row = data.draw(score_rows(formats.accumulator(dtype), most=40))
    weights = numbers(normaliser(row.to(device)).to(dtype))
    error = abs(sum(map(Fraction, weights.tolist()), Fraction(-1)))
    bound = row_sum_error(len(row), stated(dtype))
    assert weights.min() >= 0
    assert error <= bound
    record(ratio=float(error / bound), device=device, dtype=dtype)


@bounded
@given(data=st.data())
def test_rows_of_gates_sum_to_what_their_keys_add_up_to(data: st.DataObject) -> None:
    # Equation (14); each weight has few roundings, and none of the sum is divided out.
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    row = data.draw(score_rows(dtype))
    others = rationals(row)
    others.remove(Fraction(0))
    u = Fraction(formats.unit_roundoff(dtype))
    relu = sum((max(Fraction(0), 1 + z / 2) for z in others), Fraction(1))
    found = sum(rationals(Relu(2.0)(row)), Fraction(0))
    assert abs(found - relu) <= 3 * u * len(row)
    with precision(128):
        sigmoid = 1 + sum(((ball(z) + 4).exp() for z in others), arb(0))
        assert ball(sum(rationals(Sigmoid(4.0)(row)), Fraction(0))) < sigmoid * (
            1 + 2 * EXP_ROUNDOFFS * ball(u)
        )


@exact
@given(normaliser=st.sampled_from([Top1(), Entmax(2.0), Entmax(1.5)]), data=st.data())
def test_constant_in_all_scores_changes_nothing(
    normaliser: Normaliser, data: st.DataObject
) -> None:
    steps = data.draw(st.lists(st.integers(-64, 0), min_size=1, max_size=9))
    row = torch.tensor(steps) / 16.0
    constant = data.draw(st.integers(-1000, 1000)) / 16.0
    assert torch.equal(normaliser(row + constant), normaliser(row))


# The hard maximum ---------------------------------------------------------------------------------


@exact
@given(data=st.data())
def test_hard_maximum_is_shared_by_those_that_tie_and_moves_with_the_keys(
    device: str, data: st.DataObject
) -> None:
    # Equation (11).
    row = data.draw(score_rows(torch.float64))
    weights = Top1()(row.to(device)).cpu()
    wanted = by_hand.hard_maximum(rationals(row))
    assert weights.tolist() == [float(w) for w in wanted]
    order = torch.tensor(data.draw(st.permutations(range(len(row)))))
    assert torch.equal(Top1()(row[order].to(device)).cpu(), weights[order])


@control
def test_first_of_those_that_tie_does_not_move_with_the_keys() -> None:
    def argmax(row: Tensor) -> Tensor:
        return nn.functional.one_hot(row.argmax(-1), row.shape[-1])

    row, swap = torch.tensor([0.0, 0.0, -1.0]), [1, 0, 2]
    assert not torch.equal(argmax(row[swap]), argmax(row)[swap])
    assert torch.equal(Top1()(row[swap]), Top1()(row)[swap])
    assert by_hand.first_maximum(rationals(row)) == argmax(row).tolist()


# Derivatives, and torch ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Powers:
    """Scores at which all that the derivatives of entmax are made of is a short binary fraction.

    With bases b_k = h_k - t, whose powers r sum to 1, dN_i/dz_k = q_i ([i = k] - p_k), where
    q_i = b_i^(r - 1) and p is q over its sum; and dq_i/dz_l = (2 - a) w_i ([i = l] - p_l), where
    w_i = b_i^(r - 2).

    Attributes:
        order: a.
        scores: z.
        first: q, 0 where there is no weight.
        second: w.
    """

    order: float
    scores: tuple[float, ...]
    first: tuple[Fraction, ...]
    second: tuple[Fraction, ...]

    @property
    def shares(self) -> list[Fraction]:
        return [q / sum(self.first) for q in self.first]

    def jacobian(self) -> list[list[Fraction]]:
        keys = range(len(self.first))
        return [[self.first[i] * (int(i == k) - self.shares[k]) for k in keys] for i in keys]

    def hessians(self) -> list[list[list[Fraction]]]:
        """The second derivatives of each weight."""
        keys, p = range(len(self.first)), self.shares
        order = Fraction(self.order)
        moved = [
            [(2 - order) * self.second[i] * (int(i == k) - p[k]) for k in keys] for i in keys
        ]  # dq_i/dz_k
        total = [sum(moved[i][k] for i in keys) for k in keys]
        shares = [  # dp_i/dz_k
            [(moved[i][k] - p[i] * total[k]) / sum(self.first) for k in keys] for i in keys
        ]
        return [
            [
                [moved[i][k] * (int(i == j) - p[j]) - self.first[i] * shares[j][k] for k in keys]
                for j in keys
            ]
            for i in keys
        ]


POWERS = {
    "sparsemax, a key of no weight": Powers(
        2.0, (0.0, -0.25, -4.0), (Fraction(1), Fraction(1), Fraction(0)), (Fraction(0),) * 3
    ),
    "sparsemax, four keys": Powers(
        2.0, (-0.25, 0.0, -0.125, -0.125), (Fraction(1),) * 4, (Fraction(0),) * 4
    ),
    "order 5/4, sixteen ties": Powers(
        1.25, (0.0,) * 16, (Fraction(1, 8),) * 16, (Fraction(1, 4),) * 16
    ),
    "order 3, two ties": Powers(3.0, (0.0, 0.0), (Fraction(2),) * 2, (Fraction(8),) * 2),
}


jacobian_of: Any = torch.autograd.functional.jacobian
hessian_of: Any = torch.autograd.functional.hessian


def as_fractions(values: Any) -> Any:
    return (
        [as_fractions(value) for value in values] if isinstance(values, list) else Fraction(values)
    )


@exact
@pytest.mark.parametrize("case", POWERS.values(), ids=POWERS)
def test_derivatives_of_entmax_are_those_of_the_weights_bit_for_bit(case: Powers) -> None:
    scores = torch.tensor(case.scores, dtype=torch.float64)
    jacobian: Any = jacobian_of(Entmax(case.order), scores)
    assert as_fractions(jacobian.tolist()) == case.jacobian()
    for key, wanted in enumerate(case.hessians()):
        hessian: Any = hessian_of(lambda z, key=key: Entmax(case.order)(z)[key], scores)
        assert as_fractions(hessian.tolist()) == wanted


def of_a_base(keys: int, order: arb) -> tuple[arb, arb]:
    """How far a computed base h - t is off, as in (24), and what derivatives of it are rounded by.

    A derivative goes through two steps of Newton's method, the parts and their quotient, forwards
    and back: a power, a sum and six products in each.
    """
    u = ball(stated(torch.float64).unit_roundoff)
    summed = (1 + u) ** (1 / (order - 1) + keys) * (1 + EXP_ROUNDOFFS * u) - 1 + keys * u
    base = 16 * u + 2 * summed * arb(1).max(order - 1)
    return base, (1 + u) ** (8 * (EXP_ROUNDOFFS + keys + 6)) - 1


@bounded
@pytest.mark.parametrize("order", [1.01, 1.3, 1.5, 2.0, 3.0, 3.3])
@pytest.mark.parametrize("keys", [2, 3, 5])
def test_derivatives_of_entmax_at_ties_are_within_their_rounding(order: float, keys: int) -> None:
    # All bases are n^-(a - 1): dN_i/dz_k = n^(a - 2) ([i = k] - 1/n).
    jacobian: Any = jacobian_of(Entmax(order), torch.zeros(keys, dtype=torch.float64))
    with precision(by_hand.BITS):
        a = ball(order)
        base, rounding = of_a_base(keys, a)
        relative = base * arb(keys) ** (a - 1)
        off = (1 / (1 - relative)) ** abs(1 / (a - 1) - 1) - 1
        # A power over a sum of such, times what another such quotient leaves of 1.
        allowed = ((1 + off) ** 4 - 1 + rounding) * arb(keys) ** (a - 2)
        for i, row in enumerate(jacobian.tolist()):
            for k, found in enumerate(row):
                size = arb(keys) ** (a - 2)
                error = abs(ball(found) - size * (int(i == k) - arb(1) / keys))
                assert error <= allowed
                record(ratio=float((error / allowed).upper()), dtype=torch.float64)


@bounded
def test_derivatives_of_entmax15_with_different_weights_are_within_their_rounding() -> None:
    # Bases of 3/4, 1/2 and three times 1/4, whose squares sum to 1, and they themselves to 2.
    scores = torch.tensor([0.0, -0.5, -1.0, -1.0, -1.0], dtype=torch.float64)
    jacobian: Any = jacobian_of(Entmax(1.5), scores)
    with precision(by_hand.BITS):
        base, rounding = of_a_base(5, arb(3) / 2)
        bases = [arb(arb(n) / 4, base.upper()) for n in (3, 2, 1, 1, 1)]
        for i, row in enumerate(jacobian.tolist()):
            for k, found in enumerate(row):
                wanted = bases[i] * (int(i == k) - bases[k] / sum(bases, arb(0)))
                error = abs(ball(found) - wanted)
                assert error.lower() <= rounding * bases[i]
                record(ratio=float(error.lower() / (rounding * bases[i])), dtype=torch.float64)


@exact
@accumulators
def test_derivatives_of_the_others_are_those_of_their_formulas(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.0, -0.25, -1.5, -80.0], dtype=dtype)
    for height in (1.0, 3.0, 1e30):
        found: Any = jacobian_of(Relu(height), scores)
        assert torch.equal(
            found, torch.diag((scores > -height) / torch.tensor(height, dtype=dtype))
        )
    for gate in (Sigmoid(), Sigmoid(2.0)):
        found = jacobian_of(gate, scores)
        weights = gate(scores)
        assert torch.equal(found, torch.diag((1 - weights) * weights))
    found = jacobian_of(Top1(), scores)
    assert not found.any()


@exact
@everyone
@accumulators
def test_derivatives_are_zero_above_the_gap(normaliser: Normaliser, dtype: torch.dtype) -> None:
    gap = min(normaliser.one_hot_gap(dtype), 1e30)
    row = torch.tensor([0.0, -1.5 * gap, -2 * gap, -math.inf], dtype=dtype, requires_grad=True)
    weights = normaliser(row)
    # The weight of the target itself is at a maximum for quotients alone.
    counted = weights[1:].sum() if normaliser in GATES else weights.square().sum()
    (gradient,) = torch.autograd.grad(counted, row)
    assert not gradient.any()


@exact
@everyone
@accumulators
def test_minus_infinity_has_weight_zero_and_no_derivative(
    normaliser: Normaliser, dtype: torch.dtype, device: str
) -> None:
    row = torch.tensor([-math.inf, 0.0, -0.1, -math.inf], dtype=dtype, device=device)
    row = row.requires_grad_()
    weights = normaliser(row)
    (gradient,) = torch.autograd.grad(weights.square().sum(), row)
    assert weights.isfinite().all()
    assert gradient.isfinite().all()
    assert not weights[[0, 3]].any()
    assert not gradient[[0, 3]].any()


@exact
@everyone
def test_leading_axes_are_looped_over(normaliser: Normaliser) -> None:
    rows = integers(3, 4, 5) * 0.3
    weights = normaliser(rows)
    assert weights.shape == rows.shape
    assert torch.equal(weights[2, 1], normaliser(rows[2, 1]))
    # No branch looks at a value: torch.compile and torch.export need the same.
    assert torch.equal(torch.vmap(normaliser)(rows), weights)


# Layers -------------------------------------------------------------------------------------------


@exact
@given(normaliser=st.sampled_from(EVERY), data=st.data())
def test_saturated_layer_equals_the_oracle_bit_for_bit_on_integers(
    normaliser: Normaliser, device: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    case = data.draw(integer_cases(dtype))
    boundary = data.draw(st.sampled_from(["auto", "padded"]))
    layer = attention_from_conv(
        case.conv, normaliser=normaliser, boundary=boundary, evaluation="dense"
    )
    y = Case(case.conv, case.x.to(device), case.output_size).run(layer.to(device))
    truth = convolve_module(case.conv, case.x, case.output_size)
    assert not exact_error(numbers(y), truth).any()
    record(device=device, dtype=dtype)


@exact
@every_format
@by_name
def test_saturated_heads_attend_their_targets_alone(
    name: str, dtype: torch.dtype, device: str
) -> None:
    case = heads.generic_case(2, dtype)
    layer = attention_from_conv(case.conv, normaliser=name, boundary="padded", evaluation="dense")
    weights = numbers(layer.to(device).attention_weights(case.x.shape[2:]))
    assert np.array_equal(weights, heads.Targets.of(case).one_hot())


@exact
@pytest.mark.parametrize("sharpness", [1e-3, 0.3, 1.0, 7.0, 1e6])
@accumulators
def test_relu_layer_is_exact_at_any_sharpness_and_pads_by_itself(
    sharpness: float, dtype: torch.dtype, device: str
) -> None:
    case = heads.generic_case(2, dtype).to(device)
    layer = attention_from_conv(
        case.conv, normaliser="relu", sharpness=sharpness, boundary="natural", evaluation="dense"
    )
    assert not layer.has_sink
    y = layer(case.x.to(device))
    assert not exact_error(numbers(y), convolve_module(case.conv, case.x)).any()


@exact
@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_rows_of_gates_sum_to_one_on_the_keys_and_to_zero_off_them(name: str) -> None:
    conv = filled(nn.Conv2d(1, 1, 3, padding=1))
    natural = attention_from_conv(conv, normaliser=name, boundary="natural", evaluation="dense")
    wanted = attention_from_conv(conv, boundary="natural", evaluation="dense")
    sums = natural.attention_weights((3, 4)).sum(-1)
    assert torch.equal(sums, wanted.attention_weights((3, 4))[..., :-1].sum(-1))
    assert set(sums.flatten().tolist()) == {0, 1}


# Controls -----------------------------------------------------------------------------------------


def is_exact(conv: Any, x: Tensor, **options: Any) -> bool:
    layer = attention_from_conv(conv, evaluation="dense", **options)
    return not exact_error(numbers(layer(x)), convolve_module(conv, x)).any()


@control
@pytest.mark.parametrize("boundary", ["natural", "padded"])
@pytest.mark.parametrize(
    ("normaliser", "gap", "weaker"),
    [
        ("sparsemax", 1.0, 1 - 2**-15),
        ("entmax15", 2.0, 1 - 2**-7),
        (Entmax(1.2), 5.0, 0.95),
        (Entmax(3.0), 0.5, 1 - 2**-15),
        ("softmax", 103.98, 0.1),
        ("sigmoid", 121.31, 0.1),
    ],
    ids=str,
)
def test_layer_is_exact_from_the_gap_on_and_not_a_little_below(
    normaliser: Any, gap: float, weaker: float, boundary: str
) -> None:
    conv, x = filled(nn.Conv2d(1, 1, 3, padding=1, bias=False)), torch.zeros(1, 1, 4, 4)
    x[..., 0, 0], x[..., 2, 2] = 2.0**20, 1
    # With a sink twice the gap; a given sharpness puts the sigmoid's height at its half.
    needed = gap * (2 if boundary == "natural" or normaliser == "sigmoid" else 1)
    options: dict[str, Any] = {"normaliser": normaliser, "boundary": boundary}
    assert is_exact(conv, x, sharpness=needed * (1 + 2**-16), **options)
    assert not is_exact(conv, x, sharpness=needed * weaker, **options)


@control
def test_softmax_at_the_gap_of_sparsemax_is_far_from_one_hot() -> None:
    row = torch.tensor([0.0, -1.0])
    assert NORMALISERS["sparsemax"](row).tolist() == [1, 0]
    assert Softmax()(row)[1] > math.exp(-1) / 2
    assert torch.count_nonzero(Softmax()(row.double() * 700)) == 2


@control
@pytest.mark.parametrize("normaliser", [Relu(), Relu(3.0), Sigmoid(8.0)], ids=repr)
@pytest.mark.parametrize("constant", [-0.5, 0.25, 1.0])
def test_gates_need_centred_scores(normaliser: Normaliser, constant: float) -> None:
    # Equation (13): the paper's own form has α‖Δ‖² in every score of a head.
    row = torch.tensor([0.0, -40.0, -80.0], dtype=torch.float64)
    centred, moved = normaliser(row)[0].item(), normaliser(row + constant)[0].item()
    assert centred != moved
    if isinstance(normaliser, Relu):
        # The quotient is rounded, and its sum with 1.
        quotient, u = Fraction(constant) / Fraction(normaliser.height), Fraction(1, 2**53)
        rounding = abs(quotient) * u + (1 + abs(quotient) * (1 + u)) * u
        assert abs(Fraction(moved) - Fraction(centred) - quotient) <= rounding


@control
def test_sigmoid_without_a_height_gives_the_target_a_half() -> None:
    row = torch.tensor([0.0, -1e4])
    assert row.sigmoid().tolist() == [0.5, 0]


@control
@pytest.mark.parametrize("share", [0.4, 0.49, 0.51, 0.6])
def test_sigmoid_of_another_height_than_half_the_sharpness_errs_more(share: float) -> None:
    # Equation (15).
    row = torch.tensor([0.0, -20.0], dtype=torch.float64)
    wanted = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert Sigmoid().at(20.0) == Sigmoid(10.0)
    best = (Sigmoid().at(20.0)(row) - wanted).abs().max()
    assert (Sigmoid(share * 20)(row) - wanted).abs().max() > best


@exact
@accumulators
def test_height_of_a_peak_is_the_least_that_rounds_to_one_but_for_its_margin(
    dtype: torch.dtype,
) -> None:
    # Equation (22): exactly, 1/(1 + e^-H) >= 1 - u/2, and 4 u of the height to spare.
    u = stated(dtype).unit_roundoff
    with precision(128):
        height, least = ball(peak_height(dtype)), (2 / ball(u)).log()
        assert 1 / (1 + (-height).exp()) > 1 - ball(u) / 2
        assert least * (1 + 3 * ball(u)) <= height <= least * (1 + 5 * ball(u))


@control
@accumulators
def test_height_at_which_the_exact_weight_lacks_a_roundoff_has_no_gap(dtype: torch.dtype) -> None:
    # ln(1/u): the exact sigmoid, 1/(1 + u), rounds to the number below 1.
    form = stated(dtype)
    u = form.unit_roundoff
    assert rounded(1 / (1 + u), form) == 1 - u
    assert rounded(1 / (1 + u / 2), form) == 1
    with precision(128):
        low = float((1 / ball(u)).log().lower())
    assert low < peak_height(dtype)
    assert Sigmoid(low).one_hot_gap(dtype) == math.inf


@control
def test_height_too_small_for_a_peak_of_one_has_no_gap() -> None:
    for dtype in formats.FORMATS:
        height = peak_height(formats.accumulator(dtype))
        assert math.isfinite(Sigmoid(height).one_hot_gap(dtype))
        assert Sigmoid(math.nextafter(height, 0)).one_hot_gap(dtype) == math.inf
    low = Sigmoid(10.0)(torch.tensor([0.0, -1e4]))
    assert low[0] < 1


@control
def test_sorted_scores_with_cumulative_sums_are_not_one_hot_at_the_gap() -> None:
    # Why the code searches: a little above the gap, in float32.
    package: Any = importlib.import_module("entmax")
    rows = -2 * (1 + torch.tensor([[1.0], [4], [16], [64]]) * 2**-23).repeat(1, 300)
    rows[:, 0] = 0
    wanted = torch.eye(300)[:1].expand(4, -1)
    assert not torch.equal(package.entmax15(rows, dim=-1), wanted)
    assert torch.equal(NORMALISERS["entmax15"](rows), wanted)


@control
def test_threshold_below_zero_is_not_one_hot_at_the_gap() -> None:
    # What goes wrong there: equation (19) needs t >= 0.
    heights = torch.tensor([1.0, 0.0, 0.0])
    assert torch.count_nonzero((heights - 0.5).relu()) == 1
    assert torch.count_nonzero((heights + 2.0**-30).relu()) == 3


@control
def test_sink_at_full_height_is_not_exact() -> None:
    conv, x = filled(nn.Conv1d(1, 1, 3, padding=1, bias=False)), integers(1, 1, 5) + 5
    options: dict[str, Any] = {"normaliser": "top1", "boundary": "natural"}
    assert is_exact(conv, x, **options)
    layer = attention_from_conv(conv, evaluation="dense", **options)
    assert torch.equal(layer(x), conv(x))
    assert not torch.equal(sunk(layer, 1.0)(x), conv(x))


@control
def test_relu_layer_whose_scores_are_not_centred_is_not_exact() -> None:
    class Uncentred(Relu):
        def __call__(self, scores: Tensor) -> Tensor:
            return super().__call__(scores + 0.5)

    conv, x = filled(nn.Conv1d(1, 1, 3, padding=1, bias=False)), integers(1, 1, 5) + 5
    assert is_exact(conv, x, normaliser=Relu(), boundary="padded")
    assert not is_exact(conv, x, normaliser=Uncentred(), boundary="padded")


@control
@pytest.mark.parametrize("given_order", [1, 1.0, 0.5, -2.0, math.nan, math.inf, 1025])
def test_order_without_a_gap_is_refused(given_order: float) -> None:
    with refused(ValueError, "alpha", f"{given_order}", "above 1 and at most 1024"):
        Entmax(given_order)


@control
@pytest.mark.parametrize("kind", [Relu, Sigmoid])
@pytest.mark.parametrize("height", [0, -1.0, math.nan, math.inf])
def test_height_that_is_no_positive_number_is_refused(kind: Any, height: float) -> None:
    with refused(ValueError, "height", f"{height}", "a positive, finite number"):
        kind(height)


@control
@pytest.mark.parametrize("kind", [Entmax, Relu, Sigmoid])
@pytest.mark.parametrize("value", [True, "2", torch.ones(())], ids=repr)
def test_parameter_that_is_no_number_is_refused(kind: Any, value: Any) -> None:
    argument = "alpha" if kind is Entmax else "height"
    with refused(TypeError, argument, type(value).__name__, "a number"):
        kind(value)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
