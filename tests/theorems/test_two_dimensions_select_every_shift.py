"""A relative encoding of two dimensions lets one head select each shift of any kernel, on any grid and in any number of spatial dimensions, while one of a single dimension selects no three shifts of which every two have their keys before one query.

T12, `docs/theorems/two_dimensions_select_every_shift.md`. Encodings are read as exact rationals;
the truth about leaks is ball arithmetic, and every comparison with a ball is with all numbers in
it.
"""  # noqa: E501, the claim is one sentence

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.encodings import Encoding, EncodingLike
from constructions.encodings.circle import Circle
from constructions.encodings.flattened import Flattened
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice, displacements
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import Softmax
from constructions.sources.convolutions import geometry_of
from tests.support import heads
from tests.support.helpers import refused, sunk
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, exactly, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import (
    Case,
    Geometry,
    geometries,
    integer_cases,
    real_cases,
    sharpnesses,
)
from theory import two_dimensions_select_every_shift as theory
from theory.tools.theta import ball, precision, theta_minus_one

SLUG = "two_dimensions_select_every_shift"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
from_two_axes = pytest.mark.parametrize("rank", [2, 3])
ENCODINGS = (Flattened(), Circle())
both = pytest.mark.parametrize("encoding", ENCODINGS, ids=["flattened", "circle"])

Point = tuple[int, ...]
BITS = 192
ALPHAS = st.fractions(Fraction(1, 10), 4, max_denominator=50)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# One dimension ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What queries see: for each of them the displacements of all the keys before it."""

    rows: tuple[frozenset[Point], ...]

    @classmethod
    def of(cls, keys: Sequence[Point], queries: Sequence[Point]) -> "View":
        return cls(tuple(frozenset(minus(k, q) for k in keys) for q in queries))

    @property
    def displacements(self) -> list[Point]:
        return sorted(frozenset().union(*self.rows))

    def edges(self, shifts: Sequence[Point]) -> list[tuple[int, int]]:
        """Which shifts meet before a query, as pairs of indices."""
        pairs = combinations(range(len(shifts)), 2)
        return [(i, j) for i, j in pairs if any({shifts[i], shifts[j]} <= row for row in self.rows)]

    def selected(self, encoding: dict[Point, int]) -> frozenset[Point]:
        """The shifts that a head of one sign or the other selects, by the definition (1)."""
        return frozenset(
            shift
            for shift in encoding
            for sign in (1, -1)
            if all(
                sign * encoding[shift] > sign * encoding[other]
                for row in self.rows
                if shift in row
                for other in row - {shift}
            )
        )


def minus(one: Point, other: Point) -> Point:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def line(*numbers_: int) -> list[Point]:
    return [(n,) for n in numbers_]


VIEWS = {
    "one pixel": View.of(line(0), line(0)),
    "two pixels": View.of(line(0, 1), line(0, 1)),
    "three pixels": View.of(line(0, 1, 2), line(0, 1, 2)),
    "padded keys": View.of(line(-1, 0, 1, 2), line(0, 1)),
    "a query at each end": View.of(line(0, 1, 2), line(0, 2)),
    "one query in the middle": View.of(line(0, 1, 2, 3, 4), line(2)),
    "a pixel between coarse keys": View.of(line(0, 2), line(0, 1, 2)),
    "a square of one query": View.of([(0, 0), (0, 1), (1, 0), (1, 1)], [(0, 0)]),
}


@exact
@pytest.mark.parametrize("name", VIEWS)
def test_one_dimension_selects_just_the_shifts_whose_graph_has_two_colours(name: str) -> None:
    # Equation (3), by all encodings, up to the order of their values.
    view = VIEWS[name]
    points = view.displacements
    levels = range(len(points))
    reached: set[frozenset[Point]] = set()
    for values in product(levels, repeat=len(points)):
        if set(values) == set(range(max(values) + 1)):
            reached.add(view.selected(dict(zip(points, values, strict=True))))
    for size in range(len(points) + 1):
        for shifts in combinations(points, size):
            possible = any(family.issuperset(shifts) for family in reached)
            assert possible is theory.two_colourable(range(size), view.edges(shifts))


@exact
def test_three_shifts_are_reached_only_where_no_query_sees_them_all() -> None:
    shifts = line(-1, 0, 1)
    assert VIEWS["two pixels"].selected({(-1,): 1, (0,): -1, (1,): 1}) == set(shifts)
    for name in ("two pixels", "three pixels", "padded keys"):
        colours = theory.two_colourable(range(3), VIEWS[name].edges(shifts))
        assert colours is (name == "two pixels")


@bounded
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    values=st.lists(st.integers(-3, 3), min_size=25, max_size=25),
)
def test_one_dimension_selects_only_two_colours_on_any_box(
    shape: list[int], values: list[int]
) -> None:
    keys: list[Point] = list(np.ndindex(*shape))
    view = View.of(keys, keys)
    encoding = dict(zip(view.displacements, values, strict=False))
    shifts = sorted(view.selected(encoding))
    assert theory.two_colourable(range(len(shifts)), view.edges(shifts))


@bounded
@given(
    rho=st.lists(st.floats(-30, 30), min_size=3, max_size=6),
    factors=st.lists(st.floats(-30, 30), min_size=3, max_size=3),
)
def test_of_three_heads_of_one_dimension_one_misses_with_half_its_attention(
    rho: list[float], factors: list[float]
) -> None:
    # Equation (4); p / (p + p' + ...) is at most 1/2 as rounded, too, if p <= p'.
    scores = torch.tensor(factors, dtype=torch.float64)[:, None] * torch.tensor(rho).double()
    assert scores.softmax(dim=-1).diagonal().min() <= 0.5


# What an encoding says, exactly -------------------------------------------------------------------


UNIT = 2**50
"""Scores of both encodings are integers over this."""


def products(queries: Tensor, features: Tensor) -> NDArray[np.object_]:
    """All <query, feature> in units of 2^-50, as Python integers."""
    left, right = exactly(numbers(queries)), exactly(numbers(features))
    shift = left.exponent + right.exponent + 50
    assert shift >= 0
    return np.asarray(left.numerators @ right.numerators.T * 2**shift, dtype=object)


def margins(
    encoding: EncodingLike, deltas: Tensor, shifts: Tensor, grid: Lattice
) -> NDArray[np.object_]:
    """How far each displacement scores below each head's shift: (heads, displacements), exactly.

    In units of 2^-50. One call of the encoding, as the layer makes it.
    """
    features, queries = encoding.encode(torch.cat([deltas, shifts]), shifts, grid)
    assert features.shape[1] == queries.shape[1] == 2
    scores = products(queries, features)
    own = scores[:, len(deltas) :].diagonal()
    return np.asarray(own[:, None] - scores[:, : len(deltas)], dtype=object)


@dataclass(frozen=True)
class Seen:
    """The lattices of a convolution, with explicit keys or without."""

    keys: Lattice
    queries: Lattice
    shifts: Tensor

    @classmethod
    def of(cls, geometry: Geometry, *, padded: bool) -> "Seen":
        conv = geometry.build(torch.float64)
        spatial_shape = geometry.shape[-len(conv.kernel_size) :]
        lattices = geometry_of(conv)
        if geometry.output_size is not None:
            lattices = lattices.with_output_size(spatial_shape, geometry.output_size)
        keys = (lattices.explicit_keys if padded else lattices.pixels)(spatial_shape)
        return cls(keys, lattices.queries(spatial_shape), lattices.offsets().double())

    @property
    def deltas(self) -> Tensor:
        """All displacements, and the others of their box."""
        return displacements(self.keys, self.queries).positions().double()

    def rows(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.bool_]]]:
        """For some heads and queries: the head, where its keys stand among `deltas`, its target."""
        box = displacements(self.keys, self.queries)
        keys, queries = self.keys.positions().numpy(), self.queries.positions().numpy()
        shifts = self.shifts.long().numpy()
        for head in range(0, len(shifts), max(1, len(shifts) // 2)):
            for query in queries[:: max(1, len(queries) // 3)]:
                delta = keys - query
                index = np.ravel_multi_index((delta - np.array(box.origin)).T, box.shape)
                yield head, index, (delta == shifts[head]).all(-1)


def views() -> st.SearchStrategy[Seen]:
    """The lattices of any convolution that torch has."""
    return st.builds(
        lambda geometry, padded: Seen.of(geometry, padded=padded), geometries(), st.booleans()
    )


# The gaps -----------------------------------------------------------------------------------------


@exact
@both
@given(case=views())
def test_no_displacement_comes_nearer_to_a_shift_than_the_gap(
    encoding: Encoding, case: Seen
) -> None:
    # Equations (9) and (17), for every head and every displacement of every geometry.
    below = margins(encoding, case.deltas, case.shifts, case.keys)
    other = (case.deltas != case.shifts[:, None]).any(-1).numpy()
    gap = UNIT * Fraction(encoding.gap(case.shifts, case.keys))
    record()
    assert encoding == Circle() or gap == UNIT
    assert gap > 0
    assert not below[~other].any()
    assert (below[other] >= gap).all()


ONE_COLUMN = Seen.of(
    Geometry(
        nn.Conv2d,
        {"in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1},
        (1, 1, 5, 1),
        None,
    ),
    padded=False,
)


@exact
@given(case=views())
@example(case=ONE_COLUMN)
def test_flattened_gap_is_attained_on_a_last_axis_of_two_keys_side_by_side(case: Seen) -> None:
    # Equation (9): with another spacing, or one key on that axis, it need not be.
    below = margins(Flattened(), case.deltas, case.shifts, case.keys)
    spacing = set(case.keys.spacing)
    for head, keys, is_target in case.rows():
        row = below[head, keys[~is_target]]
        if not (is_target.any() and len(row)):
            continue
        if case.keys.spacing[-1] == 1 and case.keys.shape[-1] > 1:
            assert min(row) == UNIT
        if len(spacing) == 1:
            assert min(row) >= UNIT * max(spacing) ** 2


@exact
@given(case=views())
def test_flattened_scores_are_minus_the_squares_of_distinct_integers(case: Seen) -> None:
    # Equations (5), (6) and (9): and before one target no integer comes twice.
    features, queries = Flattened().encode(
        torch.cat([case.deltas, case.shifts]), case.shifts, case.keys
    )
    every = torch.cat([case.deltas, case.shifts])
    reach = (every[:, None] - case.shifts).abs().flatten(0, 1).amax(0).long().tolist()
    sizes = zip(reach, case.keys.shape, case.keys.spacing, strict=True)
    radix = [max(m, (n - 1) * s) + 1 for m, n, s in sizes]
    assert (
        features[:, 1].tolist() == (every @ torch.tensor(theory.weights(radix)).double()).tolist()
    )
    z, target = features[: len(case.deltas), 1], queries[:, 1] / 2
    below = margins(Flattened(), case.deltas, case.shifts, case.keys)
    distance = (z - target[:, None]).long().numpy()
    assert (below == distance.astype(object) ** 2 * UNIT).all()
    for head, keys, _ in case.rows():
        assert len(set(distance[head, keys])) == len(keys)


@exact
@given(
    reach=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    radix=st.lists(st.integers(1, 5), min_size=4, max_size=4),
)
@example(reach=[1, 0, 2], radix=[1, 3, 2, 1])
@example(reach=[1, 2], radix=[1, 2, 1, 1])
@example(reach=[0, 2], radix=[1, 1, 1, 1])
def test_a_radix_is_refused_just_where_two_displacements_collide(
    reach: list[int], radix: list[int]
) -> None:
    # Equations (6) to (8), by going through the whole box.
    dimension = len(reach)
    given_radix = tuple(radix[:dimension])
    box = list(product(*(range(-m, m + 1) for m in reach)))
    collide = any(theory.flattened(e, given_radix) == 0 for e in box if any(e))
    moving = [m for m in reach if m]
    if len(moving) == dimension:
        assert collide is any(b <= m for b, m in zip(given_radix[1:], reach[1:], strict=True))
    points, zero = torch.tensor(box).double(), torch.zeros(1, dimension).double()
    grid = Lattice.box((1,) * dimension)
    encoding = Flattened(given_radix)
    if collide:
        with refused(ValueError, "radix", str(given_radix), "None"):
            encoding.encode(points, zero, grid)
    else:
        z = encoding.encode(points, zero, grid)[0][:, 1]
        assert z.tolist() == [theory.flattened(e, given_radix) for e in box]
    least = tuple(m + 1 for m in reach)
    z = Flattened().encode(points, zero, grid)[0][:, 1]
    assert z.tolist() == [theory.flattened(e, least) for e in box]


@bounded
@given(
    digits=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    ),
    data=st.data(),
)
def test_a_mixed_radix_tells_every_displacement_from_zero(
    digits: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    # Equation (7), far beyond what can be gone through.
    reach = [m for m, _, _ in digits]
    radix = [m + 1 + more for m, _, more in digits]
    e = [data.draw(st.integers(-m, m)) for m in reach]
    assert (theory.flattened(e, radix) == 0) is not any(e)


@exact
@pytest.mark.parametrize("count", [*range(1, 13), 25, 27, 49, 121, 343, 1000])
def test_stated_gap_of_a_circle_is_that_of_its_stored_vertices(count: int) -> None:
    # Equations (17) and (21): all pairs of vertices, in integers.
    shifts = torch.arange(count).double()[:, None]
    features, queries = Circle().encode(torch.cat([shifts, shifts + count]), shifts, LINE)
    assert not features[count:].any()
    assert torch.equal(features[:count], queries)
    vertices = (queries * 2**25).long()
    assert torch.equal(vertices.double() / 2**25, queries)
    products = vertices @ vertices.T
    own = products.diagonal().clone()
    runner_up = products.fill_diagonal_(0).clamp(min=0).amax(dim=-1)
    gap = Circle().gap(shifts, LINE)
    assert Fraction(gap) == Fraction(int((own - runner_up).min()), 2**50)
    with precision(BITS):
        assert abs(ball(Fraction(gap)) - theory.circle_gap(count)) <= ball(ROUNDED)
        for j, (cosine, sine) in enumerate(vertices.tolist()):
            angle = 2 * arb.pi() * j / count
            for stored, true in ((cosine, angle.cos()), (sine, angle.sin())):
                assert abs(ball(Fraction(stored, 2**25)) - true) <= ball(theory.ENTRY)
    assert Fraction(gap) <= 1


LINE = Lattice.box((1,))
ROUNDED = Fraction(1, 2**23) + Fraction(1, 2**49)


@exact
@given(
    shifts=st.lists(st.lists(st.integers(-9, 9), min_size=2, max_size=2), min_size=1, max_size=12)
)
def test_order_and_repetition_of_shifts_do_not_move_the_vertices(shifts: list[list[int]]) -> None:
    given_ = torch.tensor(shifts).double()
    distinct = torch.tensor(sorted({tuple(s) for s in shifts})).double()
    vertices, _ = Circle().encode(distinct, distinct, LINE)
    features, queries = Circle().encode(distinct, given_, LINE)
    assert torch.equal(features, vertices)
    position = [sorted({tuple(s) for s in shifts}).index(tuple(s)) for s in shifts]
    assert torch.equal(queries, vertices[position])
    assert Circle().gap(given_, LINE) == Circle().gap(distinct, LINE)


# The leaks ----------------------------------------------------------------------------------------


def mass(below: NDArray[np.object_], gap: Fraction, alpha: Fraction) -> arb:
    """The sum of the weights relative to a target's, scores being -α (margin / gap)."""
    counts = Counter(below.tolist())
    terms = (n * (-ball(alpha * Fraction(m, UNIT) / gap)).exp() for m, n in counts.items())
    return sum(terms, arb(0))


@bounded
@given(case=views(), alpha=ALPHAS)
def test_flattened_head_leaks_less_than_in_one_dimension(case: Seen, alpha: Fraction) -> None:
    # Equations (10) and (11), c = 1/2.
    below = margins(Flattened(), case.deltas, case.shifts, case.keys)
    for head, keys, is_target in case.rows():
        row = below[head, keys[~is_target]]
        # The sum lacks a term of the theta series at least; enough bits to see the first of them.
        first = next(n for n in range(1, len(row) + 2) if (row == n**2 * UNIT).sum() < 2)
        bits = BITS + math.ceil(3 * alpha * first**2 / 2)
        with precision(bits):
            tail, sink = theta_minus_one(alpha, bits=bits), (-ball(alpha) / 2).exp()
            off = mass(row, Fraction(1), alpha)
            assert off < tail
            if is_target.any():
                leak, limit = 1 - 1 / (1 + off + sink), 1 - 1 / (1 + tail + sink)
            else:
                leak, limit = off / (off + sink), tail / (tail + sink)
            assert leak < limit
            record(ratio=float((leak / limit).upper()), dtype="real")


@bounded
@given(alpha=ALPHAS, rank=st.integers(1, 3))
def test_a_long_row_comes_near_the_bound_of_the_flattened_leak(alpha: Fraction, rank: int) -> None:
    # Equation (10) is a supremum; what is missing is the tail (12) of T2 in one dimension.
    keys = Lattice.box((*[2] * (rank - 1), 9))
    target = torch.tensor([[*[0] * (rank - 1), 4]]).double()
    below = margins(Flattened(), keys.positions().double() - target, 0 * target, keys)[0]
    bits = 1000  # the row is nearer to the theta series than the series to its first terms
    with precision(bits):
        x = (-ball(alpha)).exp()
        missing = theta_minus_one(alpha, bits=bits) - mass(below[below != 0], Fraction(1), alpha)
        assert 0 < missing < 2 * x**25 / (1 - x**11)


@bounded
@given(case=views(), alpha=ALPHAS)
def test_circle_leaks_its_finite_sum_and_less_than_its_bounds(case: Seen, alpha: Fraction) -> None:
    # Equations (18) and (19), c = 1/2; the sum up to what (21) allows the vertices.
    below = margins(Circle(), case.deltas, case.shifts, case.keys)
    gap, count, total = Fraction(Circle().gap(case.shifts, LINE)), len(case.shifts), case.keys.size
    with precision(BITS):
        g = theory.circle_gap(count, bits=BITS)
        x, sink = (-ball(alpha)).exp(), (-ball(alpha) / 2).exp()
        # |m'/g' - m/g| <= (|m' - m| + (m/g) |g' - g|) / g' with m <= 2
        drift = (ball(alpha * ROUNDED) * (1 + 2 / g) / ball(gap)).exp()
        for head, keys, is_target in case.rows():
            on_grid = bool(is_target.any())
            off = mass(below[head, keys[~is_target]], gap, alpha)
            others = [j - head for j in taps_before(case, keys) if j != head]
            # Off the grid there is one key more that is not the target.
            stated = theory.circle_mass(alpha, count, others, total + (not on_grid), bits=BITS)
            most = x * (total - on_grid)
            assert stated / drift <= off <= stated * drift
            # Where runners-up are all that is seen the two are equal, which no ball can show.
            assert not off > most
            if count >= 5:
                assert stated <= 2 * x / (1 - x) + total * (-ball(alpha) / g).exp()
            if on_grid:
                leak, limit = (off + sink) / (1 + off + sink), (most + sink) / (1 + most + sink)
            else:
                leak, limit = off / (off + sink), most / (most + sink)
            assert not leak > limit
            record(ratio=float((leak / limit).mid()), dtype="real")


def taps_before(case: Seen, keys: NDArray[np.int64]) -> list[int]:
    """Which shifts are among the displacements of these keys."""
    present = {tuple(row) for row in case.deltas[keys].tolist()}
    return [j for j, shift in enumerate(case.shifts.tolist()) if tuple(shift) in present]


# The layers ---------------------------------------------------------------------------------------


def error_of(layer: nn.Module, case: Case) -> NDArray[np.float64]:
    """The distance from the exact convolution of the stored numbers, rounded up."""
    with torch.no_grad():
        y = numbers(case.run(layer))
    return exact_error(y, convolve_module(case.conv, case.x, case.output_size))


boundaries = st.sampled_from(["auto", "padded"])


@exact
@both
@given(data=st.data())
def test_saturated_layer_is_the_convolution_bit_for_bit(
    encoding: Encoding, data: st.DataObject, device: str
) -> None:
    dtype = data.draw(st.sampled_from(FORMATS), label="dtype")
    case = data.draw(integer_cases(dtype), label="case").to(device)
    boundary = data.draw(boundaries, label="boundary")
    layer = attention_from_conv(case.conv, encoding=encoding, boundary=boundary, evaluation="dense")
    natural = boundary == "auto" and case.conv.padding_mode == "zeros"
    assert layer.boundary == ("natural" if natural else "padded")
    assert layer.positional_key.shape[1:] == (2, 2)
    record(device=device, dtype=dtype)
    assert not error_of(layer, case).any()


@bounded
@given(data=st.data(), encoding=st.sampled_from(ENCODINGS))
def test_certificate_of_a_layer_of_any_sharpness_holds(
    data: st.DataObject, encoding: Encoding, device: str
) -> None:
    dtype = data.draw(st.sampled_from(FORMATS), label="dtype")
    case = data.draw(real_cases(dtype), label="case").to(device)
    layer = attention_from_conv(
        case.conv,
        encoding=encoding,
        boundary=data.draw(boundaries, label="boundary"),
        evaluation="dense",
        sharpness=data.draw(sharpnesses(), label="sharpness"),
    )
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    record(ratio=certificate.ratio, device=device, dtype=dtype)
    assert certificate.holds


@bounded
@both
def test_certificate_counts_a_sink_that_no_target_of_the_image_needs(encoding: Encoding) -> None:
    # One pixel and one tap: every target is a pixel, and the sink takes its share all the same.
    conv = nn.ConvTranspose1d(1, 1, 1, stride=2, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    layer = attention_from_conv(conv, encoding=encoding, evaluation="dense", sharpness=1.0)
    assert layer.has_sink
    certificate = certify(layer, conv, torch.ones(1, 1, 1, dtype=torch.float64))
    record(ratio=certificate.ratio, dtype=torch.float64)
    assert certificate.error.max() > certificate.rounding.max()  # so that the sink is seen
    assert certificate.holds


@exact
@both
@every_rank
def test_dense_and_factored_saturated_layers_agree(encoding: Encoding, rank: int) -> None:
    case = heads.generic_case(rank)
    dense, factored = (
        attention_from_conv(case.conv, encoding=encoding, evaluation=evaluation)
        for evaluation in ("dense", "auto")
    )
    assert factored.evaluation == "factored"
    assert torch.equal(case.run(dense), case.run(factored))


@exact
@every_rank
def test_only_the_circle_asks_more_of_half_precision(rank: int) -> None:
    # Flattened tails fall as fast as (10) of T8 wants; the circle's may all be at the gap.
    conv = heads.generic_case(rank, torch.float16).conv
    for encoding, dtype in ((Flattened(), torch.float16), (Circle(), torch.float32)):
        for boundary, factor in (("natural", 2), ("padded", 1)):
            layer = attention_from_conv(conv, encoding=encoding, boundary=boundary)
            assert layer.sharpness == factor * Softmax().one_hot_gap(dtype)


@exact
def test_only_flattened_scores_depend_on_key_and_target_alone() -> None:
    # Equation (20): one pixel to the right of the target, three taps on a line.
    deltas, shifts = torch.arange(-3.0, 4.0).double()[:, None], torch.tensor([[-1.0], [0], [1]])
    grid = Lattice.box((3,))
    flat = margins(Flattened(), deltas, shifts.double(), grid)
    assert [flat[h, 2 + h + 1] for h in range(3)] == [UNIT] * 3
    circle = margins(Circle(), deltas, shifts.double(), grid)
    first, last = Fraction(circle[0, 3], UNIT), Fraction(circle[2, 5], UNIT)
    assert abs(first - Fraction(3, 2)) <= ROUNDED
    assert abs(last - 1) <= ROUNDED
    for encoding in ENCODINGS:
        assert encoding.axes(2) is None


# Range --------------------------------------------------------------------------------------------


def as_integers(scores: Tensor) -> NDArray[np.object_]:
    """The scores in units of 2^-50."""
    return products(scores, torch.eye(scores.shape[1]))


def corners(side: int, rank: int) -> tuple[Tensor, Tensor]:
    """The extreme displacements of a cube of pixels, and shifts one beyond."""
    signs = torch.tensor([[1.0] * rank, [-1.0] * rank], dtype=torch.float64)
    return signs * (side - 1), signs


@exact
@every_rank
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_largest_grids_of_the_table_are_accepted_and_exact(rank: int, dtype: torch.dtype) -> None:
    # Equation (15).
    name = str(dtype).removeprefix("torch.")
    side = theory.largest_side(theory.PRECISIONS[name], rank, overhang=1)
    assert side == theory.SIDES[name][rank - 1]
    if side:
        deltas, shifts = (points.to(dtype) for points in corners(side, rank))
        grid = Lattice.box((side,) * rank)
        features, queries = Flattened().encode(torch.cat([deltas, shifts]), shifts, grid)
        wanted = products(queries, features)
        assert (as_integers(queries @ features.T) == wanted).all()
        centred = queries @ features.T - (queries * features[2:]).sum(-1, keepdim=True)
        assert (as_integers(centred) == wanted - wanted[:, 2:].diagonal()[:, None]).all()
    deltas, shifts = (points.to(dtype) for points in corners(max(side + 1, 2), rank))
    larger = Lattice.box((max(side + 1, 2),) * rank)
    with refused(ValueError, "grid", str(larger.shape), "at most"):
        Flattened().encode(torch.cat([deltas, shifts]), shifts, larger)


@control
def test_one_pixel_more_than_the_table_is_not_exact_in_float32() -> None:
    deltas, shifts = torch.tensor([[63.0, 62.0]]), torch.tensor([[-1.0, -1.0]])
    features, queries = Unchecked((65, 65)).encode(deltas, shifts, Lattice.box((64, 64)))
    z, target = 63 * 65 + 62, -66
    assert [features[0, 1].item(), queries[0, 1].item()] == [z, 2 * target]
    assert int((queries @ features.T).item()) != -(z**2) + 2 * target * z


@control
@pytest.mark.parametrize(
    ("deltas", "shifts"),
    [([4097, -1], [0]), ([-4097, 1], [0]), ([4000, 0], [0, -97]), ([-4000, 0], [97, 0])],
    ids=["far ahead", "far behind", "one far name of two", "the other sign"],
)
def test_range_is_that_of_the_larger_side(deltas: list[int], shifts: list[int]) -> None:
    # Equation (14): float32 has room for |z(δ)| + |z(Δ)| = 4096, on a line z(δ) = δ.
    for less, accepted in ((1, True), (0, False)):
        moved = [d - int(math.copysign(less, d)) if abs(d) > 1000 else d for d in deltas]
        points, names = (torch.tensor(line(*p)).float() for p in (moved, shifts))
        if accepted:
            Flattened().encode(points, names, LINE)
        else:
            with refused(ValueError, "grid", "4097", "at most 4096"):
                Flattened().encode(points, names, LINE)


@exact
def test_torch_s_formats_have_the_precisions_of_the_table() -> None:
    for dtype in FORMATS:
        bits = theory.PRECISIONS[str(dtype).removeprefix("torch.")]
        assert torch.finfo(dtype).eps == 2.0 ** (1 - bits)


# Refusals -----------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("radix", [[1, 7], 7, (1, 7.0), (1, True), ("7",)])
def test_radix_that_is_no_tuple_of_integers_is_refused(radix: object) -> None:
    with refused(TypeError, "radix", repr(radix), "a tuple"):
        Flattened(radix)  # type: ignore[arg-type]


@exact
@pytest.mark.parametrize("radix", [(), (0, 7), (1, -7), (1, 2**27, 2**27)])
def test_radix_that_numbers_nothing_is_refused(radix: tuple[int, ...]) -> None:
    with refused(ValueError, "radix", str(radix), "at least 1"):
        Flattened(radix)


@exact
def test_radix_of_another_dimension_is_refused() -> None:
    with refused(ValueError, "radix", "(1, 7)", "3 integers"):
        attention_from_conv(nn.Conv3d(1, 1, 3), encoding=Flattened((1, 7)))


@exact
def test_layer_refuses_an_image_whose_rows_would_wrap() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    layer = attention_from_conv(conv, encoding=Flattened((1, 12)), evaluation="dense")
    assert layer(torch.zeros(1, 1, 50, 9)).shape == (1, 1, 50, 9)
    with refused(ValueError, "radix", "(1, 12)", "(1, 13)"):
        # 9 between keys, 1 beyond, and 2 that `gap` cannot rule out.
        layer(torch.zeros(1, 1, 50, 10))


@exact
def test_radix_of_ones_own_has_no_natural_border_where_nothing_bounds_the_targets() -> None:
    # A single tap has a dilation all the same, which lets torch append outputs far from any pixel.
    conv = nn.ConvTranspose2d(1, 1, 1, dilation=5, output_padding=4)
    for encoding, boundary in ((Flattened(), "natural"), (Flattened((1, 99)), "padded")):
        assert attention_from_conv(conv, encoding=encoding).boundary == boundary


@exact
def test_more_shifts_than_a_circle_tells_apart_are_refused() -> None:
    shifts = torch.arange(8193.0).double()[:, None]
    assert Circle().gap(shifts[:-1], LINE) > 0
    for call in (Circle().gap, lambda s, grid: Circle().encode(s, s, grid)):
        with refused(ValueError, "shifts", "8193", "at most 8192"):
            call(shifts, LINE)


@exact
@both
@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_no_border_but_zeros_is_natural(encoding: Encoding, mode: str) -> None:
    conv = heads.generic_case(2, padding_mode=mode).conv
    assert attention_from_conv(conv, encoding=encoding).boundary == "padded"
    with refused(ValueError, "boundary", "'natural'", "'padded'"):
        attention_from_conv(conv, encoding=encoding, boundary="natural")


# What the checks reject ---------------------------------------------------------------------------


def is_right(layer: nn.Module, case: Case) -> bool:
    """Whether a layer is the convolution of integers, bit for bit."""
    return not error_of(layer, case).any()


@dataclass(frozen=True)
class Unchecked:
    """Flattened by a radix that nobody looks at."""

    radix: tuple[int, ...]
    crowded = False

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        weights = displacements.new_tensor(theory.weights(self.radix))
        z, target = displacements @ weights, shifts @ weights
        return torch.stack([z**2, z], -1), torch.stack([0 * target - 1, 2 * target], -1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


@control
@from_two_axes
@pytest.mark.parametrize("sharpness", [2.0, 60.0, None])
@pytest.mark.parametrize("depth", [0.5, -0.5, 0.0, 1.0, 3.0])
def test_radix_of_the_pixels_alone_wraps_rows_and_no_sink_repairs_it(
    rank: int, sharpness: float | None, depth: float
) -> None:
    # Equation (12), at the natural border.
    pixels = (5, 4, 3)[:rank]
    case = heads.generic_case(rank, kernel=(3, 3, 3))
    enough, small = (
        attention_from_conv(
            case.conv, encoding=Unchecked(radix), sharpness=sharpness, evaluation="dense"
        )
        for radix in (tuple(n + 1 for n in pixels), pixels)
    )
    assert enough.has_sink
    assert small.has_sink
    enough, small = sunk(enough, depth), sunk(small, depth)
    assert worst_miss(small, case) >= 0.5
    if depth == 0.5 and sharpness is None:
        assert worst_miss(enough, case) == 0


@torch.no_grad()
def worst_miss(layer: MultiHeadSelfAttention, case: Case) -> float:
    """The most attention that a head gives to anything but its target, or its sink beyond."""
    rank = len(case.conv.kernel_size)
    pixels = case.x.shape[-rank:]
    weights = layer.attention_weights(pixels)
    lattices = geometry_of(case.conv)
    targets = lattices.queries(pixels).positions() + lattices.offsets()[:, None]
    inside = ((targets >= 0) & (targets < torch.tensor(pixels))).all(-1)
    strides = torch.tensor([math.prod(pixels[i + 1 :]) for i in range(rank)])
    wanted = torch.where(inside, (targets * strides).sum(-1), math.prod(pixels))
    kept = weights.gather(-1, wanted[..., None])[..., 0]
    return float(1 - kept.min())


@control
@every_rank
def test_replicate_padding_does_not_come_of_flattened_scores(rank: int) -> None:
    # Equation (13): above the first row the first column wins, and not the clamp.
    keys = Lattice.box((3, 4, 2)[:rank])
    target = torch.tensor([[-1, 2, 1][:rank]]).double()
    below = margins(Flattened(), keys.positions().double() - target, 0 * target, keys)[0]
    winner = keys.positions()[int(np.argmin(below))].tolist()
    clamp = [0, 2, 1][:rank]
    assert (winner == clamp) is (rank == 1)
    assert winner == [0] * rank


@control
def test_radix_below_the_distance_between_keys_leaks_more() -> None:
    # Selecting takes less than (10): the target in the middle is at most 4 from any key of its row.
    keys, alpha = Lattice.box((2, 9)), Fraction(2)
    target = torch.tensor([[0.0, 4.0]]).double()
    deltas = keys.positions().double() - target
    for radix, holds in (((1, 5), False), ((1, 9), True)):
        below = margins(Unchecked(radix), deltas, 0 * target, keys)[0]
        assert (below[below != 0] >= UNIT).all()
        with precision(BITS):
            off = mass(below[below != 0], Fraction(1), alpha)
            assert bool(off < theta_minus_one(alpha, bits=BITS)) is holds
    with refused(ValueError, "radix", "(1, 5)", "(1, 9)"):
        Flattened((1, 5)).encode(deltas, 0 * target, keys)


@dataclass(frozen=True)
class TooFewVertices:
    """A circle with a vertex less than it has shifts: the last stands where the first does."""

    crowded = True

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features, queries = Circle().encode(displacements, shifts[:-1], grid)
        last = (displacements == shifts[-1]).all(-1, keepdim=True)
        return torch.where(last, queries[0], features), torch.cat([queries, queries[:1]])

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return Circle().gap(shifts[:-1], grid)


@dataclass(frozen=True)
class NoCentre:
    """A circle whose other offsets stand at the first vertex."""

    crowded = True

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features, queries = Circle().encode(displacements, shifts, grid)
        known = features.any(-1, keepdim=True)
        return torch.where(known, features, queries[0]), queries

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return Circle().gap(shifts, grid)


@dataclass(frozen=True)
class SwappedAxes:
    """An encoding that reads displacements back to front, and shifts as they are."""

    right: Encoding
    crowded = True

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        both_, heads_ = displacements[: -len(shifts)], displacements[-len(shifts) :]
        return self.right.encode(torch.cat([both_.flip(-1), heads_]), shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return self.right.gap(shifts, grid)


@dataclass(frozen=True)
class OneDimension:
    """A scalar encoding of three taps and the rest, the factor of a head given."""

    values: tuple[int, ...]
    signs: tuple[int, ...]
    crowded = True

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        features = torch.full_like(displacements[:, :1], self.values[3])
        for tap, value in zip((-1, 0, 1), self.values, strict=False):
            features[displacements[:, 0] == tap] = value
        return features, displacements.new_tensor(self.signs)[:, None]

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


@control
@pytest.mark.parametrize("wrong", [TooFewVertices(), NoCentre()], ids=["too_few", "no_centre"])
@every_rank
def test_circle_without_room_for_all_is_rejected(rank: int, wrong: Encoding) -> None:
    case = heads.generic_case(rank)
    for encoding, right in ((Circle(), True), (wrong, False)):
        layer = attention_from_conv(case.conv, encoding=encoding, evaluation="dense")
        assert is_right(layer, case) is right


@control
@both
@from_two_axes
def test_swapped_axes_are_rejected(encoding: Encoding, rank: int) -> None:
    case = heads.generic_case(rank)
    layer = attention_from_conv(case.conv, encoding=SwappedAxes(encoding), evaluation="dense")
    assert not is_right(layer, case)


@control
@both
@heads.every_wrong_layer
def test_wrong_layer_is_rejected(encoding: Encoding, rank: int, wrong: heads.Wrong) -> None:
    case = heads.generic_case(rank)
    layer = attention_from_conv(case.conv, encoding=encoding, evaluation="dense")
    assert is_right(layer, case)
    wrong(layer)
    assert not is_right(layer, case)


@control
def test_no_layer_of_one_dimension_is_a_convolution_of_three_taps() -> None:
    # All orders of the taps and the rest, each head with the sign that selects it, if there is one.
    case = heads.generic_case(1, kernel=(3,))
    for values in permutations(range(4)):
        signs = tuple(1 if value == max(values) else -1 for value in values[:3])
        layer = attention_from_conv(
            case.conv, encoding=OneDimension(values, signs), boundary="padded"
        )
        assert layer.evaluation == "dense"
        assert not is_right(layer, case)
    two = heads.generic_case(1, kernel=(2,))
    layer = attention_from_conv(
        two.conv, encoding=OneDimension((1, -1, 0, 0), (1, -1)), boundary="padded"
    )
    assert is_right(layer, two)
