"""A constant query that is turned by a shift scores that shift above all others, unless some distance in reach resonates with every frequency, that is, turns each of them by whole turns.

T14, `docs/theorems/rotations_select_shifts_without_resonance.md`. Stored frequencies are read
exactly; a comparison with a ball is with all numbers in it.
"""  # noqa: E501, the claim is one sentence

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flint import arb
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.encodings import Absolute, Encoding
from constructions.encodings.rotary import STANDARD, Rotary, least_drop
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import Softmax
from tests.support import heads
from tests.support.helpers import papers_layer, refused
from tests.support.layout import page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.reach import promised
from tests.support.strategies import Case, geometries, integer_cases, real_cases
from theory import attention_is_soft_padding_then_convolution as floats
from theory import rotations_select_shifts_without_resonance as theory
from theory.tools import resonances
from theory.tools.theta import ball, precision

SLUG = "rotations_select_shifts_without_resonance"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
bounded = pytest.mark.evidence(SLUG, "property")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
BOTH: Sequence[Encoding] = (Rotary(), Absolute(Rotary()))
relative_and_absolute = pytest.mark.parametrize("encoding", BOTH, ids=["rotary", "sinusoidal"])

BITS = 128
U = Fraction(1, 2**53)


# Encodings and places to use them -----------------------------------------------------------------


@st.composite
def rotaries(draw: st.DrawFn) -> Rotary:
    """Up to six frequencies, standard ones among them, of amplitudes that differ a hundredfold."""
    slow = st.floats(-9.0, 0.0).map(lambda power: math.exp(power))
    count = draw(st.integers(1, 6))
    frequency = slow | st.floats(1e-3, 6.0) | st.sampled_from(STANDARD)
    frequencies = tuple(draw(frequency) for _ in range(count))
    if draw(st.booleans()):
        return Rotary(frequencies)
    return Rotary(frequencies, tuple(draw(st.floats(0.1, 10.0)) for _ in range(count)))


@st.composite
def places(draw: st.DrawFn, largest: int = 5) -> tuple[Tensor, Lattice]:
    """Shifts of some heads, and the lattice of their keys, anywhere."""
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, largest)) for _ in range(rank))
    spacing = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(rank))
    origin = tuple(draw(st.integers(-20, 20)) for _ in range(rank))
    count = draw(st.integers(1, 4))
    shifts = [[draw(st.integers(-6, 6)) for _ in range(rank)] for _ in range(count)]
    return torch.tensor(shifts, dtype=torch.float64), Lattice(shape, spacing, origin)


def reaches(shifts: Tensor, grid: Lattice) -> tuple[int, ...]:
    """The distances that a gap has to speak of, axis by axis, counted without the code."""
    return promised(shifts.long().tolist(), grid.shape, grid.spacing)


def reach_of(shifts: Tensor, grid: Lattice) -> int:
    """The largest of them."""
    return max(1, *reaches(shifts, grid))


def room(rotary: Rotary, reach: int, truth: arb) -> arb:
    """What a computed least drop may be below the true one: equation (21), twice and rounded up."""
    turned = sum(
        Fraction(a) * Fraction(t) for a, t in zip(rotary.weights, rotary.angles, strict=True)
    )
    return ball(2 * U * (len(rotary.angles) + 25)) * truth + ball(
        turned * 2 * reach * U * Fraction(9, 8)
    )


def error_of(rotary: Rotary, arguments: Sequence[int]) -> Fraction:
    """ε of equation (20), for the largest |x_i| + |y_i|."""
    terms = 2 * len(rotary.angles) * len(arguments)
    total = sum(
        Fraction(a) * (Fraction(t) * argument + 10 + terms)
        for argument in arguments
        for a, t in zip(rotary.weights, rotary.angles, strict=True)
    )
    return (1 + Fraction(1, 2**8)) * U * total


def least(rotary: Rotary, reach: int) -> arb:
    """A ball around the true gap of stored frequencies."""
    return resonances.least_drop(rotary.angles, reach, rotary.weights)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Gaps ---------------------------------------------------------------------------------------------


@bounded
@given(rotary=rotaries(), reach=st.integers(1, 300), bound=st.floats(0.01, 8.0))
def test_search_keeps_every_distance_of_a_small_drop(
    rotary: Rotary, reach: int, bound: float
) -> None:
    # Equation (14), by trying every distance.
    with precision(BITS):
        drops = [resonances.drop(n, rotary.angles, rotary.weights) for n in range(1, reach + 1)]
        kept = resonances.candidates(rotary.angles, reach, bound, rotary.weights)
        assert kept == sorted(set(kept))
        assert {n for n, found in enumerate(drops, 1) if not found > bound} <= set(kept)
        smallest = drops[0]
        for found in drops:
            smallest = smallest.min(found)
        assert least(rotary, reach).overlaps(smallest)


@bounded
@given(rotary=rotaries(), reach=st.integers(1, 2000))
@example(rotary=Rotary(), reach=5000)
@example(rotary=Rotary((1e-9,)), reach=10)
@example(rotary=Rotary((3.0,)), reach=1)
@example(rotary=Rotary((3.0,) * 40), reach=700)
def test_computed_least_drop_is_rounded_down_and_tight(rotary: Rotary, reach: int) -> None:
    # Equation (21): half of what is subtracted is room, so that the error is below twice that.
    computed, distance = least_drop(rotary.angles, rotary.weights, reach)
    with precision(BITS):
        truth = least(rotary, reach)
        allowed = room(rotary, reach, truth)
        assert 1 <= distance <= reach
        assert arb(computed) <= truth * (1 - 8 * ball(U))
        assert truth - arb(computed) <= allowed
        assert resonances.drop(distance, rotary.angles, rotary.weights) <= truth + allowed
        record(ratio=float(((truth - arb(computed)) / allowed).upper()), dtype=torch.float64)


@bounded
@given(rotary=rotaries(), place=places())
@example(rotary=Rotary(), place=(torch.zeros(1, 1), Lattice.box((1,))))
@example(rotary=Rotary(), place=(torch.ones(2, 3), Lattice.box((9, 1, 4))))
def test_stated_gap_is_below_every_drop_in_reach_on_every_axis(
    rotary: Rotary, place: tuple[Tensor, Lattice]
) -> None:
    # Equation (5): the gap leaves room for the rounding of two scores, and is tight.
    error = ball(rotary.score_error(*place))
    with precision(BITS):
        truth = least(rotary, reach_of(*place))
        if truth < 8 * error:
            return
        gap = arb(rotary.gap(*place))
        assert gap <= truth - 2 * error
        allowed = room(rotary, reach_of(*place), truth)
        assert gap >= (truth - allowed - 2 * error) * (1 - ball(U))  # one difference, rounded
        record(ratio=float(((gap + 2 * error) / truth).upper()), dtype=torch.float64)


def rows_of_the_page() -> list[tuple[int, int, Fraction]]:
    """Reach, distance and drop in the table of gaps."""
    text = page_of(SLUG, ROOT).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \$10\^(\d)\$ \| ([\d,]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    return [(10 ** int(k), int(n.replace(",", "")), Fraction(g)) for k, n, g in rows]


@exact
def test_table_of_the_page_is_the_one_that_is_proven() -> None:
    rows = {reach: (n, cut) for reach, n, cut in rows_of_the_page()}
    assert rows == dict(theory.NEAREST_RETURNS)
    with precision(BITS):
        least_of_a_million = resonances.drop(rows[10**6][0], resonances.standard())
        kept = resonances.candidates(resonances.standard(), 10**6, least_of_a_million.upper())
    assert len(kept) < 200


@exact
@pytest.mark.parametrize("reach", [10, 10**2, 10**3, 10**4, 10**5, theory.LAST_OF_ONE, 10**6])
def test_stored_standard_frequencies_have_the_gap_of_the_table(reach: int) -> None:
    # Equation (15) of the powers of ten, which float64 rounds: their angles at 10^6 by 10^-10.
    distance, cut = theory.NEAREST_RETURNS.get(reach, (1, Fraction("0.5148")))
    computed, found = least_drop(STANDARD, (1.0,) * 8, reach)
    assert found == distance
    assert cut < computed < cut + Fraction(1, 10**4)
    with precision(BITS):
        assert computed <= least(Rotary(), reach)
        assert Rotary().gap(torch.zeros(1, 1), Lattice.box((reach + 1,))) > ball(cut)


@exact
@pytest.mark.thorough
def test_stored_standard_frequencies_are_scanned_up_to_the_end_of_the_table() -> None:
    with precision(BITS):
        for reach, (distance, cut) in theory.NEAREST_RETURNS.items():
            truth = least(Rotary(), reach)
            assert ball(cut) < truth < ball(cut + Fraction(1, 10**4))
            if reach <= 10**8:
                computed, found = least_drop(STANDARD, (1.0,) * 8, reach)
                assert found == distance
                assert computed <= truth


# How gaps fall ------------------------------------------------------------------------------------


@bounded
@given(rotary=rotaries(), reach=st.integers(1, 2000))
@example(rotary=Rotary(), reach=20_000)
def test_no_gap_exceeds_the_bound_of_the_pigeonholes(rotary: Rotary, reach: int) -> None:
    # Equation (9), and the sharper form before its last step.
    total, count = sum(map(Fraction, rotary.weights)), len(rotary.angles)
    with precision(BITS):
        gap = least(rotary, reach)
        bound = resonances.dirichlet_bound(total, count, reach)
        assert gap < bound
        boxes = round(reach ** (1 / count))
        boxes -= boxes**count > reach
        if boxes > 1:
            assert gap < ball(total) * (1 - (2 * arb.pi() / boxes).cos())
        record(ratio=float((gap / bound).upper()), dtype="real")


@bounded
@given(
    first=st.floats(0.01, 3.14),
    ratio=st.floats(0.05, 0.95),
    count=st.integers(1, 12),
)
def test_geometric_frequencies_keep_their_gap_up_to_half_a_turn_of_the_slowest(
    first: float, ratio: float, count: int
) -> None:
    # Equation (12).
    with precision(BITS):
        frequencies = [ball(first) * ball(ratio) ** f for f in range(count)]
        reach = min(5000, int(float((arb.pi() / frequencies[-1]).lower())))
        assume(reach >= 1)
        gap, bound = (
            resonances.least_drop(frequencies, reach),
            resonances.geometric_bound(first, ratio),
        )
        assert gap >= bound or gap.overlaps(bound)
        record(ratio=float((bound / gap).upper()), dtype="real")


@exact
@pytest.mark.parametrize("count", range(1, 13))
def test_octaves_have_a_gap_of_two_and_resonate_at_once_beyond_it(count: int) -> None:
    # Equation (13), for π itself and for its float64.
    with precision(BITS):
        octaves = [arb.pi() / 2**f for f in range(count)]
        gap = resonances.least_drop(octaves, 2**count - 1)
        assert gap.is_finite()
        assert gap.contains(2)
        assert resonances.drop(2**count, octaves).is_finite()
        assert resonances.drop(2**count, octaves).contains(0)
    stored = Rotary(tuple(math.pi / 2**f for f in range(count)))
    shifts, grid = torch.zeros(1, 1), Lattice.box((2**count,))
    with precision(BITS):
        truth, error = least(stored, 2**count - 1), ball(stored.score_error(shifts, grid))
        below = room(stored, 2**count - 1, truth) + 2 * error
        assert (truth - below) * (1 - ball(U)) <= arb(stored.gap(shifts, grid)) < 2
    with refused(ValueError, "frequencies", f" {2**count} pixels", f"up to {2**count}"):
        stored.gap(shifts, Lattice.box((2**count + 1,)))


@exact
def test_random_frequencies_of_the_stated_number_keep_half_of_their_amplitude() -> None:
    # Equation (11): F > 4 (ln R + 10) fails with probability less than e^-10; this one does not.
    reach = 100_000
    count = math.ceil(4 * (math.log(reach) + 10))
    draw = random.Random(14)
    turned = tuple(draw.uniform(1e-3, 2 * math.pi) for _ in range(count))
    computed, _ = least_drop(turned, (1.0,) * count, reach)
    assert computed > count / 2


# Resonance ----------------------------------------------------------------------------------------


@exact
@given(turns=st.lists(st.tuples(st.integers(1, 9), st.integers(2, 10)), min_size=1, max_size=3))
@example(turns=[(1, 4), (1, 6)])
def test_rational_turns_resonate_first_at_the_lcm_of_their_denominators(
    turns: list[tuple[int, int]],
) -> None:
    # Equation (8), in fractions and as the encoding finds it.
    fractions = [Fraction(p, q) for p, q in turns]
    resonance = resonances.first_resonance(fractions)
    assert resonance == math.lcm(*(fraction.denominator for fraction in fractions))
    rotary = Rotary(tuple(2 * math.pi * p / q for p, q in turns))
    shifts = torch.zeros(1, 1)
    if resonance > 1:
        with precision(BITS):
            grid = Lattice.box((resonance,))
            gap, truth = arb(rotary.gap(shifts, grid)), least(rotary, resonance - 1)
            lowest = 1 - (2 * arb.pi() / resonance).cos()
            # Three roundings of each frequency, which up to there turns by so many radians more.
            turned = sum((ball(t) for t in rotary.angles), arb(0)) * resonance * ball(4 * U)
            assert truth >= lowest - turned
            below = room(rotary, resonance - 1, truth) + 2 * ball(rotary.score_error(shifts, grid))
            assert gap >= (truth - below) * (1 - ball(U))
    with refused(ValueError, "frequencies", f" {resonance} pixels", "resonate at no distance"):
        rotary.gap(shifts, Lattice.box((resonance + 5,)))


@exact
@pytest.mark.parametrize("size", [2, 3, 8, 30])
def test_resonance_at_the_size_of_the_image_is_what_makes_a_border_circular(size: int) -> None:
    # Equation (17): a whole number of turns, and then every drop has that period.
    with precision(BITS):
        whole = [2 * arb.pi() * p / size for p in (1, 3)]
        for n in range(3 * size):
            one, other = (resonances.drop(m, whole) for m in (n, n + size))
            assert one.is_finite()
            assert one.overlaps(other)
        assert resonances.drop(size, resonances.standard()) > ball(Fraction("0.5148"))


# Scores -------------------------------------------------------------------------------------------


@bounded
@given(rotary=rotaries(), place=places(), data=st.data())
def test_computed_scores_are_within_their_error_of_the_cosines(
    rotary: Rotary, place: tuple[Tensor, Lattice], data: st.DataObject
) -> None:
    # Equations (2) and (20), of displacements, and of positions, far from the origin too.
    shifts, grid = place
    reach, keys = reaches(*place), grid.positions().double()
    away = data.draw(st.lists(st.floats(-1, 1), min_size=len(reach), max_size=len(reach)))
    offset = torch.tensor([round(f * r) for f, r in zip(away, reach, strict=True)])
    key = data.draw(st.integers(0, len(keys) - 1), label="key")
    allowed = ball(rotary.score_error(*place))
    for points, named in (
        (shifts[:1] + offset, shifts),  # key minus query, and the shift
        (keys[key : key + 1], keys[key : key + 1] - offset),  # a key, and a target
    ):
        features, queries = rotary.encode(points.double(), named.double(), grid)
        scores = (queries @ features.T).squeeze(-1)
        with precision(BITS):
            for name, score in zip(named.tolist(), scores.tolist(), strict=True):
                exactly = sum(
                    (
                        ball(a) * (ball(t) * int(p - n)).cos()
                        for p, n in zip(points[0].tolist(), name, strict=True)
                        for a, t in zip(rotary.weights, rotary.angles, strict=True)
                    ),
                    arb(0),
                )
                error = abs(arb(score) - exactly)
                assert error <= allowed
                record(ratio=float((error / allowed).upper()), dtype=torch.float64)


@exact
def test_four_fifths_of_the_error_are_attained_where_both_angles_are_large() -> None:
    # Just above 2^20 and 2^21, where rounding is coarsest, and in opposite directions.
    rotary, shift, displacement = Rotary((0.9,)), 1_165_663, 2_330_302
    points, grid = torch.tensor([[displacement, shift]]).double().T, Lattice.box((1,))
    features, queries = rotary.encode(points, points, grid)
    allowed = ball(rotary.score_error(points[1:], grid))
    with precision(BITS):
        exactly = (ball(0.9) * (displacement - shift)).cos()
        error = abs(arb((queries[1] @ features[0]).item()) - exactly)
        assert 4 * allowed < 5 * error
        assert error <= allowed


@exact
@given(rotary=rotaries(), place=places())
def test_every_other_key_scores_less_than_the_target_by_the_gap_as_computed(
    rotary: Rotary, place: tuple[Tensor, Lattice]
) -> None:
    # On the grid, between its points and beyond it; the target's own score as a head computes it.
    shifts, grid = place
    with precision(BITS):
        if least(rotary, reach_of(*place)) < 8 * ball(rotary.score_error(*place)):
            return
    gap = rotary.gap(shifts, grid)
    keys, reach = grid.positions().double(), reaches(shifts, grid)
    corners = torch.tensor([grid.origin, grid.last]).double()
    targets = torch.cat([keys, corners - torch.tensor([1.0]), corners + 1])
    assert min(reach) >= 0
    for head in range(len(shifts)):
        queries = targets - shifts[head]
        for query in queries[:: max(1, len(queries) // 6)]:
            displaced = keys - query
            off = (displaced != shifts[head]).any(-1)
            # What no query of a layer can ask for is not promised.
            off &= ((displaced - shifts[head]).abs() <= torch.tensor(reach)).all(-1)
            features, names = rotary.encode(torch.cat([displaced, shifts]), shifts, grid)
            score = features @ names[head]
            assert (score[len(keys) + head] - score[: len(keys)][off] >= gap).all()


@exact
@given(
    query=st.lists(st.integers(-500, 500), min_size=1, max_size=3),
    shift=st.lists(st.integers(-9, 9), min_size=3, max_size=3),
)
def test_sinusoidal_feature_of_a_target_is_that_of_the_query_turned(
    query: list[int], shift: list[int]
) -> None:
    # Equation (3): R_Δ p(q) = p(q + Δ), pair by pair.
    place = torch.tensor([query], dtype=torch.float64)
    by = torch.tensor([shift[: len(query)]], dtype=torch.float64)
    grid = Lattice.box((1000,) * len(query))
    features, _ = Rotary().encode(torch.cat([place, place + by, by]), by, grid)
    here, there, turn = (torch.complex(*row.chunk(2)) for row in features)
    turned = torch.view_as_real(here * turn - there).abs().max().item()
    # An entry of the first turned by the second, and one of the third: each of modulus 1.
    arguments = [abs(q) + 2 * abs(s) for q, s in zip(query, shift, strict=False)]
    assert Fraction(turned) <= error_of(Rotary(), arguments)


# Layers -------------------------------------------------------------------------------------------


def selects(layer: MultiHeadSelfAttention, case: Case) -> bool:
    """Whether attention over explicit keys is exactly one-hot, at the target of each head."""
    targets = heads.Targets.of(case)
    size = None if case.output_size is None else heads.output_shape(case)
    weights = numbers(layer.attention_weights(case.x.shape[-len(targets.grid) :], output_size=size))
    return np.array_equal(weights, targets.one_hot())


WAYS = [("auto", "dense"), ("auto", "auto"), ("padded", "dense")]


@exact
@every_format
@given(data=st.data())
def test_saturated_layer_is_the_convolution_of_integers_bit_for_bit(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype=dtype))
    truth = convolve_module(case.conv, case.x, case.output_size)
    encoding = data.draw(st.sampled_from(BOTH), label="encoding")
    boundary, evaluation = data.draw(st.sampled_from(WAYS), label="boundary and evaluation")
    there = case.to(device)
    layer = attention_from_conv(
        there.conv, encoding=encoding, boundary=boundary, evaluation=evaluation
    )
    y = there.run(layer)
    if dtype in (torch.float32, torch.float64):
        assert not exact_error(numbers(y), truth).any()
    else:
        assert torch.equal(y, there.run(attention_from_conv(there.conv)))
    record(device=device, dtype=dtype)


@exact
@given(dtype=st.sampled_from(FORMATS), data=st.data())
def test_saturated_heads_attend_their_targets_alone(
    dtype: torch.dtype, data: st.DataObject, device: str
) -> None:
    geometry = data.draw(geometries(), label="geometry")
    x = torch.zeros(geometry.shape, dtype=dtype)
    case = Case(geometry.build(dtype), x, geometry.output_size).to(device)
    encoding = data.draw(st.sampled_from(BOTH), label="encoding")
    assert selects(papers_layer(case.conv, encoding=encoding), case)
    record(device=device, dtype=dtype)


@bounded
@given(dtype=st.sampled_from(FORMATS), data=st.data())
def test_layer_of_finite_sharpness_is_within_its_certificate(
    dtype: torch.dtype, data: st.DataObject, device: str
) -> None:
    case = data.draw(real_cases(dtype=dtype)).to(device)
    encoding = data.draw(st.sampled_from(BOTH), label="encoding")
    sharpness = data.draw(st.floats(0.5, 60.0) | st.floats(60.0, 2000.0), label="sharpness")
    way = data.draw(st.sampled_from(["dense", "factored"]), label="evaluation")
    layer = attention_from_conv(case.conv, encoding=encoding, sharpness=sharpness, evaluation=way)
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    record(ratio=certificate.ratio, device=device, dtype=dtype)
    assert certificate.holds


@bounded
@given(alpha=st.floats(0.5, 20.0), rank=st.integers(1, 3), data=st.data())
def test_rows_leak_what_the_product_over_the_axes_says(
    alpha: float, rank: int, data: st.DataObject
) -> None:
    # Equation (6), the sums in balls; what floating point adds is (20), and (21) of T4.
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    case = heads.generic_case(rank)
    image = torch.zeros(1, 2, *(n + 1 for n in shape), dtype=torch.float64)
    case = Case(case.conv, image)
    layer = papers_layer(case.conv, encoding=Rotary(), sharpness=alpha)
    targets = heads.Targets.of(case)
    weights = numbers(layer.attention_weights(image.shape[2:]))
    head = data.draw(st.integers(0, len(weights) - 1), label="head")
    query = data.draw(st.integers(0, weights.shape[1] - 1), label="query")
    off = 1 - weights[head, query, targets.keys[head, query]]
    keys = case_keys(layer, case)
    scale = ball(alpha) / ball(Rotary().gap(layer.positional_shift, keys))
    with precision(BITS):
        arguments = [far + 2 for far in reaches(layer.positional_shift, keys)]  # shifts to ±1
        step = floats.softmax_error(
            "float64",
            math.prod(targets.grid),
            steps=1,
            score_error=2 * scale * ball(error_of(Rotary(), arguments)),
        )
        total = arb(1)
        for size, t in zip(targets.grid, targets.position(head, query), strict=True):
            total *= sum(
                ((-scale * resonances.drop(abs(k - t), STANDARD)).exp() for k in range(size)),
                arb(0),
            )
        rounding = step.weight / total + step.lost + ball(U)  # and of the difference from 1
        assert abs(arb(off) - (1 - 1 / total)) <= rounding
        bound = 1 - (1 + (max(targets.grid) - 1) * (-ball(alpha)).exp()) ** -rank
        assert 1 - 1 / total < bound
        record(ratio=float(((1 - 1 / total) / bound).upper()), dtype=torch.float64)


def case_keys(layer: MultiHeadSelfAttention, case: Case) -> Lattice:
    """The lattice of explicit keys."""
    return layer.geometry.explicit_keys(tuple(case.x.shape[2:]))


@exact
@every_rank
@relative_and_absolute
def test_zeros_are_natural_and_other_borders_are_made_of_keys(
    rank: int, encoding: Encoding
) -> None:
    # Equations (16) and (17).
    for mode, boundary in (
        ("zeros", "natural"),
        ("replicate", "padded"),
        ("reflect", "padded"),
        ("circular", "padded"),
    ):
        case = heads.generic_case(rank, padding_mode=mode)
        layer = attention_from_conv(case.conv, encoding=encoding, evaluation="dense")
        assert layer.boundary == boundary
        assert layer.has_sink == (mode == "zeros")
        assert torch.equal(case.run(layer), case.run(case.conv))
        if mode != "zeros":
            with refused(ValueError, "boundary", "'natural'", "no natural border"):
                attention_from_conv(case.conv, encoding=encoding, boundary="natural")


@exact
@every_format
def test_saturated_sharpness_makes_float32_one_hot_at_least(dtype: torch.dtype) -> None:
    # Many keys may be near the runner-up, so that half precision alone is not enough.
    layer = papers_layer(heads.generic_case(1, dtype).conv, encoding=Rotary())
    least_of = torch.float64 if dtype == torch.float64 else torch.float32
    assert layer.sharpness == Softmax().one_hot_gap(least_of)


@exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stock_attention_on_sinusoidal_features_is_a_convolution(
    device: str, dtype: torch.dtype
) -> None:
    # torch's own scaled_dot_product_attention, unmodified: one head for each tap, whose query is
    # the feature of its place, turned by its shift.
    case = heads.generic_case(2, dtype).to(device)
    keys, shifts = Lattice((7, 6), (1, 1), (-1, -1)), torch.tensor([[0.0, 0.0]]).double()
    rotary, conv = Rotary(), case.conv
    offsets = torch.cartesian_prod(torch.arange(2), torch.arange(3)).double() - 1
    queries = torch.cartesian_prod(torch.arange(6), torch.arange(4)).double()
    features, _ = rotary.encode(keys.positions().double(), shifts, keys)
    targets = (queries + offsets.unsqueeze(1)).flatten(0, 1)
    _, names = rotary.encode(shifts, targets, keys)
    # A score is a sum of 32 products of modulus 16 in all; with the casts of both factors, the
    # square root of the scale in each and the cast of the score it errs by less than 48 units.
    rounding = 2 * 48 * 16 * torch.finfo(dtype).eps / 2
    scale = Softmax().one_hot_gap(dtype) / (rotary.gap(offsets, keys) - rounding)
    padded = F.pad(case.x, (1, 1, 1, 1)).flatten(2).transpose(1, 2)
    seen = F.scaled_dot_product_attention(
        names.reshape(1, 6, 24, 32).to(device, dtype),
        features.reshape(1, 1, 42, 32).expand(1, 6, 42, 32).to(device, dtype),
        padded.unsqueeze(1).expand(1, 6, 42, 2),
        scale=scale,
    )
    matrices = conv.weight.flatten(2).permute(2, 1, 0)  # (taps, in, out)
    assert conv.bias is not None
    y = (seen @ matrices).sum(dim=1) + conv.bias
    truth = convolve_module(conv, case.x)
    assert not exact_error(numbers(y.transpose(1, 2).reshape(1, 3, 6, 4)), truth).any()
    record(device=device, dtype=dtype)


# What the checks reject ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Backwards(Rotary):
    """Queries turned by minus their shifts."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return super().encode(displacements, -shifts, grid)


@dataclass(frozen=True)
class MissingAxis(Rotary):
    """The last axis is not encoded."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        seen = displacements.new_ones(grid.dimension)
        seen[-1] = 0
        return super().encode(displacements * seen, shifts * seen, grid)


@dataclass(frozen=True)
class CosinesOnly(Rotary):
    """Half of every pair: a score that is even in the displacement."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features, queries = super().encode(displacements, shifts, grid)
        features[:, features.shape[1] // 2 :] = 0
        return features, queries


@dataclass(frozen=True)
class ClaimedGap(Rotary):
    """Twice the gap that there is."""

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 2 * super().gap(shifts, grid)


@dataclass(frozen=True)
class GapOfInnerNeighbours(Rotary):
    """The drop of one pixel, whatever the frequencies: right for the standard ones alone."""

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return sum(a * (1 - math.cos(t)) for a, t in zip(self.weights, self.angles, strict=True))


@control
@every_rank
@pytest.mark.parametrize(
    "wrong",
    [
        Backwards(),
        CosinesOnly(),
        MissingAxis(),
        ClaimedGap(),
        GapOfInnerNeighbours((2.0, 2.2)),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_wrong_encoding_does_not_attend_its_targets(rank: int, wrong: Rotary) -> None:
    case = heads.generic_case(rank)
    right = Rotary(wrong.frequencies)
    assert selects(papers_layer(case.conv, encoding=right), case)
    assert not selects(papers_layer(case.conv, encoding=wrong), case)


@control
@every_rank
@relative_and_absolute
@pytest.mark.parametrize(
    "wrong",
    [heads.query_minus_key, heads.reversed_kernel, heads.repeated_shift, heads.half_the_sharpness],
    ids=lambda wrong: wrong.__name__,
)
def test_wrong_head_does_not_attend_its_targets(
    rank: int, encoding: Encoding, wrong: heads.Wrong
) -> None:
    case = heads.generic_case(rank)
    layer = papers_layer(case.conv, encoding=encoding)
    wrong(layer)
    assert not selects(layer, case)


@control
def test_nearest_pixel_of_a_target_beyond_the_edge_need_not_be_attended() -> None:
    # Equation (16): three pixels beyond the edge the second pixel scores more than the first.
    replicating = ReplicatingRotary()
    for beyond, follows in ((1, True), (3, False)):
        with torch.random.fork_rng(devices=[]):
            conv = nn.Conv1d(
                1, 1, 1, padding=beyond, padding_mode="replicate", bias=False, dtype=torch.float64
            )
        nn.init.ones_(conv.weight)
        x = torch.arange(2.0, 5.0).double().reshape(1, 1, 3)
        layer = attention_from_conv(
            conv, encoding=replicating, boundary="natural", evaluation="dense", sharpness=1e6
        )
        assert torch.equal(layer(x), conv(x)) == follows


@dataclass(frozen=True)
class ReplicatingRotary(Rotary):
    """A claim that the nearest pixel of a target wins."""

    @property
    def natural_borders(self) -> dict[str, Encoding]:
        return {"replicate": self}


@control
def test_layer_of_a_resonant_encoding_is_refused_as_soon_as_the_image_is_large_enough() -> None:
    layer = papers_layer(heads.generic_case(1).conv, encoding=Rotary((math.pi / 4, math.pi / 8)))
    layer(torch.zeros(1, 2, 6, dtype=torch.float64))
    with refused(ValueError, "frequencies", " 16 pixels", "resonate at no distance"):
        layer(torch.zeros(1, 2, 30, dtype=torch.float64))


@control
def test_positions_that_float64_cannot_turn_exactly_are_refused() -> None:
    far = Lattice((3,), (1,), (2**45,))
    assert Rotary().score_error(torch.zeros(1, 1), far) == math.inf
    with refused(ValueError, "frequencies", "pixels", "resonate at no distance"):
        Rotary().gap(torch.zeros(1, 1), far)


@control
def test_bound_of_the_pigeonholes_for_one_frequency_less_is_no_bound() -> None:
    # Octaves attain the order: their gap stays where that of fewer frequencies has to fall.
    count, reach = 12, 2**12 - 1
    with precision(BITS):
        gap = resonances.least_drop([arb.pi() / 2**f for f in range(count)], reach)
        assert gap < resonances.dirichlet_bound(count, count, reach)
        assert gap > resonances.dirichlet_bound(1, 1, reach)


@control
def test_gap_of_the_first_pixel_is_no_gap_at_a_million() -> None:
    with precision(BITS):
        drops = [resonances.drop(n, resonances.standard()) for n in (1, theory.LAST_OF_ONE + 1)]
        assert drops[1] < drops[0]
    wide = Lattice.box((10**6,))
    assert Rotary().gap(torch.zeros(1, 1), wide) < theory.PIXEL[1]


def nearest_return(frequency: float, chunks: Sequence[range]) -> int:
    """The distance of the least drop of one frequency, among those of the chunks."""
    every = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
    return int(every[np.argmin(np.sin(every * frequency / 2) ** 2)])


@control
@pytest.mark.parametrize("period", [2**17 - 1, 2**17, 2**17 + 1, 2**18, 2**18 + 1])
def test_resonance_at_the_end_of_a_chunk_is_seen(period: int) -> None:
    # Distances are gone through 2^17 at a time; chunks that are one short miss 2^17 and 2^18.
    turn, reach = 2 * math.pi / period, period + 5
    starts = range(1, reach + 1, 2**17)
    whole, short = ([range(n, min(n + 2**17 - less, reach + 1)) for n in starts] for less in (0, 1))
    assert nearest_return(turn, whole) == period
    assert (nearest_return(turn, short) == period) is (period % 2**17 != 0)
    _, distance = least_drop((turn,), (1.0,), reach)
    assert distance == period
    with refused(ValueError, "frequencies", f" {period} pixels", "resonate at no distance"):
        Rotary((turn,)).gap(torch.zeros(1, 1), Lattice.box((reach + 1,)))


WRONG: Sequence[tuple[type[Exception], dict[str, Any], str, str]] = [
    (TypeError, {"frequencies": [1.0]}, "list", "a tuple of numbers"),
    (TypeError, {"frequencies": ("1",)}, "'1'", "numbers from"),
    (TypeError, {"amplitudes": (True,)}, "True", "numbers from"),
    (ValueError, {"frequencies": ()}, "()", "at least one"),
    (ValueError, {"frequencies": (0.0,)}, "0.0", "from 1e-100"),
    (ValueError, {"frequencies": (math.nan,)}, "nan", "from 1e-100"),
    (ValueError, {"frequencies": (math.inf,)}, "inf", "to 1e+100"),
    (ValueError, {"amplitudes": (-1.0,)}, "-1.0", "from 1e-100"),
    (ValueError, {"amplitudes": (1.0,)}, "1 entries", "8, one for each frequency"),
]


@control
@pytest.mark.parametrize(
    ("kind", "arguments", "given_", "accepted"),
    WRONG,
    ids=[f"{next(iter(w[1]))} {next(iter(w[1].values()))}" for w in WRONG],
)
def test_wrong_argument_is_refused(
    kind: type[Exception], arguments: dict[str, Any], given_: str, accepted: str
) -> None:
    with refused(kind, next(iter(arguments)), given_, accepted):
        Rotary(**arguments)
