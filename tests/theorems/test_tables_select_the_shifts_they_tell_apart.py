"""Heads that look their scores up in a table, by the bucket of the displacement, select every shift that is alone in its bucket: one entry 0 and all others −g give the gap g; where a query sees another key in the bucket of its target, no layer of such heads has a smaller worst error than a constant.

T14, `docs/theorems/tables_select_the_shifts_they_tell_apart.md`. Leaks are compared in balls, row by
row of the dense layer; floors in exact fractions.
"""  # noqa: E501, the claim is one sentence

import math
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.encodings import Encoding
from constructions.encodings.tables import BiasTable, RowColumn, T5Buckets
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.attention import MultiHeadSelfAttention
from tests.pages.options import agrees, truth_of
from tests.support import heads
from tests.support.helpers import filled, refused
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, geometries, integer_cases, real_cases
from theory import attention_is_soft_padding_then_convolution as floats
from theory import tables_select_the_shifts_they_tell_apart as theory
from theory.tools.theta import ball, leak_enclosure, precision

SLUG = "tables_select_the_shifts_they_tell_apart"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
bounded = pytest.mark.evidence(SLUG, "property")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

both_formats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
both_tables = pytest.mark.parametrize("encoding", [BiasTable(), RowColumn()], ids=["one", "axes"])

HALF = Fraction(1, 2)
BITS = 400
Points = list[tuple[int, ...]]


def gaps() -> st.SearchStrategy[float]:
    """From hardly any preference to hardly any leak."""
    return st.one_of(st.floats(1e-2, 1.0), st.floats(1.0, 12.0), st.floats(12.0, 90.0))


@st.composite
def shift_lists(draw: st.DrawFn, most: int = 6) -> Points:
    """Different shifts in one to three dimensions, on no grid of their own."""
    rank = draw(st.integers(1, 3))
    shifts = st.tuples(*[st.integers(-9, 9)] * rank)
    return draw(st.lists(shifts, min_size=1, max_size=most, unique=True))


@st.composite
def bucketings(draw: st.DrawFn) -> tuple[int, int]:
    """Numbers that T5 allows: `num_buckets` and `max_distance`."""
    num_buckets = draw(st.integers(4, 70))
    exact_distances = num_buckets // 2 // 2
    return num_buckets, exact_distances + draw(st.integers(1, 120))


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Scores, in integers ------------------------------------------------------------------------------


def scores(encoding: Encoding, shifts: Points, points: Points, dtype: torch.dtype) -> Tensor:
    """<v, r_δ> for every shift and displacement."""
    features, queries = encoding.encode(
        torch.tensor(points, dtype=dtype),
        torch.tensor(shifts, dtype=dtype),
        Lattice.box((1,) * len(shifts[0])),
    )
    assert features.dtype == queries.dtype == dtype
    assert features.shape[1] == queries.shape[1]
    return queries @ features.T


@exact
@both_formats
@given(shifts=shift_lists(), others=st.lists(st.tuples(*[st.integers(-9, 9)] * 3), max_size=8))
def test_scores_count_the_axes_on_which_a_displacement_is_the_shift(
    dtype: torch.dtype, shifts: Points, others: Points
) -> None:
    # Equations (1), (3) and (9). Some displacements are shifts, or agree with them on some axes.
    rank = len(shifts[0])
    mixed = [
        tuple(shifts[i % len(shifts)][i % rank :] + p[: i % rank]) for i, p in enumerate(others)
    ]
    points = [*shifts, *[p[:rank] for p in others], *mixed]
    one, axes = (scores(e, shifts, points, dtype).tolist() for e in (BiasTable(), RowColumn()))
    for shift, of_one, of_axes in zip(shifts, one, axes, strict=True):
        for point, a, b in zip(points, of_one, of_axes, strict=True):
            assert a == (point == shift)
            assert b == sum(p == s for p, s in zip(point, shift, strict=True))


@exact
@given(geometry=geometries())
def test_dimension_is_the_number_of_shifts_or_the_sum_over_axes(geometry: Any) -> None:
    conv = geometry.build(torch.float32)
    for encoding, wanted in (
        (BiasTable(), math.prod(conv.kernel_size)),
        (RowColumn(), sum(conv.kernel_size)),
    ):
        layer = attention_from_conv(conv, encoding=encoding)
        assert layer.positional_key.shape[-1] == wanted


@exact
@both_tables
@given(
    shifts=shift_lists(),
    grid=st.tuples(*[st.tuples(st.integers(1, 4), st.integers(1, 3))] * 3),
    query=st.tuples(*[st.integers(-9, 9)] * 3),
)
def test_gap_is_one_on_every_grid_and_beyond_it(
    encoding: BiasTable | RowColumn, shifts: Points, grid: Any, query: tuple[int, ...]
) -> None:
    # Equations (3) and (9), the target a key or none.
    rank = len(shifts[0])
    shape, spacing = (tuple(axis[i] for axis in grid[:rank]) for i in (0, 1))
    lattice = Lattice(shape, spacing, (0,) * rank)
    points = [
        tuple(k - q for k, q in zip(key, query[:rank], strict=True))
        for key in lattice.positions().tolist()
    ]
    gap = encoding.gap(torch.tensor(shifts, dtype=torch.float64), lattice)
    found = scores(encoding, shifts, [*points, *shifts], torch.float64)
    assert gap == 1.0
    for head, shift in enumerate(shifts):
        own = found[head, len(points) + head]
        below = [own - s for s, p in zip(found[head], points, strict=False) if p != shift]
        assert not below or min(below) >= gap
        if isinstance(encoding, BiasTable) and below:
            assert min(below) == max(below) == gap


@exact
def test_tables_are_equal_and_hashed_by_their_numbers_and_pickled() -> None:
    every = [BiasTable(), RowColumn(), T5Buckets(), T5Buckets(64, 200)]
    assert len(set(every)) == 4
    assert pickle.loads(pickle.dumps(every)) == every


# The layer, bit for bit ---------------------------------------------------------------------------

LINES = (nn.Conv1d, nn.ConvTranspose1d)
WIDE = T5Buckets(num_buckets=128)  # 32 exact distances: more than any kernel drawn has


@exact
@pytest.mark.parametrize("encoding", [BiasTable(), RowColumn(), WIDE], ids=["one", "axes", "t5"])
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    boundary=st.sampled_from(["auto", "padded"]),
)
def test_saturated_layer_is_the_convolution_bit_for_bit(
    data: st.DataObject, device: str, encoding: Encoding, boundary: str, dtype: torch.dtype
) -> None:
    drawn = integer_cases(dtype, LINES) if encoding == WIDE else integer_cases(dtype)
    case = data.draw(drawn, label="case").to(device)
    options: Any = {"encoding": encoding, "boundary": boundary}
    assert attention_from_conv(case.conv, **options).evaluation == "factored"
    layer = attention_from_conv(case.conv, evaluation="dense", **options)
    record(device=device, dtype=dtype)
    assert agrees(layer, case, truth_of(case))


@exact
@pytest.mark.parametrize("transposed", [False, True])
@given(kernel=st.integers(1, 17), dilation=st.integers(1, 3))
@example(kernel=15, dilation=1)
@example(kernel=16, dilation=1)
@example(kernel=17, dilation=1)
def test_t5_takes_the_kernels_within_seven_pixels_and_refuses_the_others(
    transposed: bool, kernel: int, dilation: int
) -> None:
    padding = (kernel - 1) * dilation // 2
    conv: Any = (nn.ConvTranspose1d if transposed else nn.Conv1d)(
        1, 1, kernel, padding=padding, dilation=dilation, dtype=torch.float64
    )
    reach = (kernel - 1) * dilation - padding  # the longer side
    if reach <= 7:
        x = torch.arange(20.0, dtype=torch.float64).reshape(1, 1, 20)
        case = Case(filled(conv), x)
        layer = attention_from_conv(conv, encoding=T5Buckets(), evaluation="dense")
        assert agrees(layer, case, truth_of(case))
    else:
        enough = 4 * (reach + 1)
        accepted = f"num_buckets of at least {enough} (theorem {SLUG})"
        with refused(ValueError, "encoding", str(reach), accepted):
            attention_from_conv(conv, encoding=T5Buckets())
        attention_from_conv(conv, encoding=T5Buckets(num_buckets=enough))


# Leaks, in balls ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of a layer by where their targets stand.

    Attributes:
        shape: The keys.
        on_axis: For each head and query, whether a key has the target's coordinate, by axis.
        limits: The column that should have all the attention: the target's, or the sink's.
    """

    shape: tuple[int, ...]
    on_axis: np.ndarray
    limits: np.ndarray

    @classmethod
    def of(cls, layer: MultiHeadSelfAttention, case: Case) -> "Rows":
        """On the pixels, target by target: query plus shift."""
        conv, rank = case.conv, len(case.conv.kernel_size)
        pixels, ones = tuple(case.x.shape[-rank:]), (1,) * rank
        keys, queries = (conv.stride, ones) if conv.transposed else (ones, conv.stride)
        at = np.array(list(np.ndindex(*heads.output_shape(case)))) * np.array(queries)
        targets = at + numbers(layer.positional_shift)[:, None].astype(int)
        index, rest = np.divmod(targets, np.array(keys))
        on_axis = (rest == 0) & (index >= 0) & (index < np.array(pixels))
        inside = np.where(on_axis, index, 0)
        found = np.ravel_multi_index(tuple(np.moveaxis(inside, -1, 0)), pixels)
        return cls(pixels, on_axis, np.where(on_axis.all(-1), found, math.prod(pixels)))

    def mass(self, encoding: Encoding, gap: float, on: Sequence[bool], sink: bool) -> arb:
        """L of a row, by equations (4), (8), (10)."""
        c = HALF if sink else None
        if isinstance(encoding, BiasTable):
            return theory.axes_mass(gap, (math.prod(self.shape),), (all(on),), sink=c)
        return theory.axes_mass(gap, self.shape, on, sink=c)


def worst_ratio(layer: MultiHeadSelfAttention, case: Case, gap: float) -> float:
    """The largest |off-limit attention - L/(1 + L)| over what floating point can do to it.

    For each kind of row its first and the one with most attention off the limit.
    """
    rows, worst = Rows.of(layer, case), 0.0
    size = None if case.output_size is None else heads.output_shape(case)
    weights = numbers(layer.attention_weights(rows.shape, output_size=size))
    columns = math.prod(rows.shape) + layer.has_sink
    off = weights.sum(-1) - np.take_along_axis(weights, rows.limits[..., None], -1)[..., 0]
    for on in np.unique(rows.on_axis.reshape(-1, len(rows.shape)), axis=0):
        same = (rows.on_axis == on).all(-1)
        of_kind = np.where(same, off, -1.0)
        for where in (same.argmax(), of_kind.argmax()):
            row = tuple(int(i) for i in np.unravel_index(where, same.shape))
            found = heads.off_target(weights[row], int(rows.limits[row]))
            with precision(BITS):
                mass = rows.mass(layer.encoding, gap, on.tolist(), layer.has_sink)
                worst = max(worst, float(distance(found, mass, columns, case.x.dtype).upper()))
    return worst


def distance(found: Fraction, mass: arb, columns: int, dtype: torch.dtype) -> arb:
    """|found - L/(1 + L)| over what floating point can do to that many weights: (21) of T4.

    Each of them errs by a factor, and by what underflow takes; their sum here is exact.
    """
    leak = mass / (1 + mass)
    name = str(dtype).removeprefix("torch.")
    errors = floats.softmax_error(name, columns, steps=1)
    return abs(ball(found) - leak) / (errors.weight * leak + columns * errors.lost)


@bounded
@both_tables
@given(data=st.data(), gap=gaps(), dtype=st.sampled_from(FORMATS))
def test_rows_of_the_dense_layer_leak_just_what_is_stated(
    data: st.DataObject, device: str, encoding: Encoding, dtype: torch.dtype, gap: float
) -> None:
    # Natural zeros: targets on the grid, between its points and beyond it, with and without a sink.
    geometry = data.draw(geometries(padding_modes=["zeros"]), label="geometry")
    case = Case(
        geometry.build(dtype), torch.zeros(geometry.shape, dtype=dtype), geometry.output_size
    ).to(device)
    layer = attention_from_conv(case.conv, encoding=encoding, sharpness=gap, evaluation="dense")
    assert layer.boundary == "natural"
    ratio = worst_ratio(layer, case, gap)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1


@bounded
@given(gap=gaps(), entries=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30))
def test_no_table_of_that_range_leaks_less(gap: float, entries: list[float]) -> None:
    # Equation (6): the first entry is the target's.
    with precision(BITS):
        weights = [(ball(gap) * ball(entry)).exp() for entry in entries]
        leak = 1 - weights[0] / sum(weights, arb(0))
        mass = theory.axes_mass(gap, (len(entries),), (True,))
        least = mass / (1 + mass)
        assert not leak < least
        record(ratio=float((least / leak).lower()), dtype="real")


@bounded
@given(keys=st.integers(2, 10**9), accuracy=st.floats(1e-12, 0.5), more=st.sampled_from([-1, 0, 1]))
def test_stated_gap_reaches_the_leak_and_no_less_does(
    keys: int, accuracy: float, more: int
) -> None:
    # Equation (5).
    with precision(BITS):
        wanted = ball(accuracy)
        needed = arb(keys - 1).log() + ((1 - wanted) / wanted).log()
        gap = needed + arb(more) / 2**80
        assume(gap > 0)
        mass = theory.axes_mass(gap, (keys,), (True,))
        leak = mass / (1 + mass)
        assert (leak < wanted, leak > wanted) == (more == 1, more == -1)


@bounded
@given(gap=gaps(), shape=st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_tables_by_axis_leak_no_more_than_one_table(gap: float, shape: list[int]) -> None:
    # Equation (11), with equality where one axis alone has more than one key.
    one = theory.axes_mass(gap, (math.prod(shape),), (True,))
    axes = theory.axes_mass(gap, shape, (True,) * len(shape))
    if sum(n > 1 for n in shape) > 1:
        assert axes < one
        record(ratio=float((axes / one).upper()), dtype="real")
    else:
        assert axes.overlaps(one)


@bounded
@both_tables
@given(data=st.data(), gap=gaps(), dtype=st.sampled_from(FORMATS))
def test_layer_of_any_sharpness_is_certified(
    data: st.DataObject, device: str, encoding: Encoding, dtype: torch.dtype, gap: float
) -> None:
    case = data.draw(real_cases(dtype), label="case").to(device)
    boundary = data.draw(st.sampled_from(["auto", "padded"]), label="boundary")
    layer = attention_from_conv(case.conv, encoding=encoding, sharpness=gap, boundary=boundary)
    # Tables by axis have factors, in every dimension.
    assert layer.evaluation == ("factored" if isinstance(encoding, RowColumn) else "dense")
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    record(ratio=certificate.ratio, device=device, dtype=dtype)
    assert certificate.holds


@exact
@both_tables
@pytest.mark.parametrize("sharpness", [None, 0.5, 30.0])
def test_target_beyond_the_edge_sees_a_mean(
    encoding: BiasTable | RowColumn, sharpness: float | None
) -> None:
    # Equation (7), where replicate padding is forced on it: 1/T is exact for powers of two.
    kind: Any = type(encoding)
    forced = type("Forced", (kind,), {"natural_borders": {"replicate": encoding}})()
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate")
    layer = attention_from_conv(
        conv, encoding=forced, sharpness=sharpness, boundary="natural", evaluation="dense"
    )
    weights = layer.attention_weights((4, 8))
    corner = weights[0, 0].reshape(4, 8)  # the first head looks beyond both axes
    assert (corner == 1 / 32).all()
    if sharpness is None:
        edge = weights[1, 1].reshape(4, 8)  # the second beyond the first axis alone
        column = torch.zeros(4, 8)
        column[:, 1] = 1 / 4
        assert torch.equal(edge, column if isinstance(encoding, RowColumn) else corner)


# Buckets that are shared --------------------------------------------------------------------------


@exact
@given(numbers_of=bucketings())
@example(numbers_of=(32, 128))
@example(numbers_of=(32, 16))
@example(numbers_of=(4, 2))
@example(numbers_of=(70, 137))
def test_buckets_are_those_of_the_definition(numbers_of: tuple[int, int]) -> None:
    # Equations (16) to (18), which the code does not evaluate but invert.
    encoding, reach = T5Buckets(*numbers_of), range(-150, 151)
    wanted = [theory.t5_bucket(delta, *numbers_of) for delta in reach]
    points = torch.tensor(list(reach), dtype=torch.float64)
    assert encoding.buckets(points).tolist() == wanted
    sizes = Counter(wanted)
    for delta, bucket in zip(reach, wanted, strict=True):
        if abs(delta) < 150:  # beyond it a bucket may go on
            assert encoding.is_alone(delta) == (sizes[bucket] == 1)
    exact_distances = numbers_of[0] // 4
    assert all(encoding.is_alone(delta) for delta in range(exact_distances))


@exact
@given(
    weights=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=5),
    values=st.lists(st.integers(-9, 9), min_size=5, max_size=5),
    bias=st.fractions(),
    buckets=st.lists(st.integers(0, 3), min_size=2, max_size=8),
)
def test_no_layer_of_tables_errs_less_than_a_constant(
    weights: list[list[int]], values: list[int], bias: Fraction, buckets: list[int]
) -> None:
    # Equation (13): any heads, normalised to sum to one, or not.
    target = next((i for i, b in enumerate(buckets) if buckets.count(b) > 1), None)
    assume(target is not None)
    assert target is not None
    other = buckets.index(buckets[target], target + 1)
    errors = []
    for bright in (target, other):
        image = [Fraction(int(k == bright)) for k in range(len(buckets))]
        y = bias
        for row, value in zip(weights, values, strict=False):
            total = sum(row[b] for b in buckets) or 1
            y += value * sum(
                (Fraction(row[b], total) * p for b, p in zip(buckets, image, strict=True)),
                Fraction(0),
            )
        errors.append(abs(y - image[target]))
    assert max(errors) >= HALF
    assert (
        theory.least_error({target: Fraction(1)}, range(len(buckets)), buckets.__getitem__) == HALF
    )


@exact
@given(
    kernel=st.lists(st.fractions(-9, 9), min_size=1, max_size=8),
    buckets=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    seen=st.lists(st.fractions(-9, 9), min_size=3, max_size=3),
)
def test_least_error_is_that_of_the_medians(
    kernel: list[Fraction], buckets: list[int], seen: list[Fraction]
) -> None:
    # Equation (14): other numbers than the medians are no better, the medians themselves are best.
    def error(values: Mapping[int, Fraction]) -> Fraction:
        return (
            sum((abs(values[b] - w) for b, w in zip(buckets, kernel, strict=False)), Fraction(0))
            / 2
        )

    least = theory.least_error(dict(enumerate(kernel)), range(len(kernel)), buckets.__getitem__)
    assert error(dict(enumerate(seen))) >= least
    shared = [
        [w for b, w in zip(buckets, kernel, strict=False) if b == bucket] for bucket in range(3)
    ]
    choices = product(*(sorted(entries) or [Fraction(0)] for entries in shared))
    assert min(error(dict(enumerate(choice))) for choice in choices) == least


@exact
def test_wrong_numbers_of_buckets_are_refused() -> None:
    with refused(TypeError, "num_buckets", "32.0", "integer"):
        T5Buckets(num_buckets=32.0)  # type: ignore[arg-type]
    with refused(TypeError, "max_distance", "True", "integer"):
        T5Buckets(max_distance=True)
    with refused(ValueError, "num_buckets", "3", "4"):
        T5Buckets(num_buckets=3)
    with refused(ValueError, "max_distance", "8", "8"):
        T5Buckets(max_distance=8)
    with refused(ValueError, "encoding", "2", "one dimension"):
        attention_from_conv(nn.Conv2d(1, 1, 3), encoding=T5Buckets())


@exact
@both_tables
@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_other_borders_are_made_of_keys(encoding: BiasTable | RowColumn, mode: Any) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode)
    assert attention_from_conv(conv, encoding=encoding).boundary == "padded"
    with pytest.raises(ValueError, match="boundary is 'natural'"):
        attention_from_conv(conv, encoding=encoding, boundary="natural")


# What the checks reject ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A table that is wrong in one way."""

    table: Encoding
    theorem = SLUG
    crowded = True

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


class Merged(Wrong):
    """Neighbouring displacements on the last axis share a bucket."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        step = torch.ones_like(shifts)
        step[:, -1] = 2
        merged = displacements.div(step[:1], rounding_mode="floor")
        return self.table.encode(merged, shifts.div(step, rounding_mode="floor"), grid)


class Transposed(Wrong):
    """The table is read by query minus key."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return self.table.encode(-displacements, shifts, grid)


class Swapped(Wrong):
    """Rows for columns."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return self.table.encode(displacements.flip(-1), shifts, grid)


class OffByOne(Wrong):
    """The next entry of the table."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return self.table.encode(displacements - 1, shifts, grid)


class OneAxis(Wrong):
    """The table of the last axis has no say."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        mask = torch.ones_like(shifts[:1])
        mask[:, -1] = 0
        return self.table.encode(displacements * mask, shifts * mask, grid)


@control
@both_tables
@pytest.mark.parametrize("boundary", ["natural", "padded"])
@pytest.mark.parametrize(
    ("rank", "wrong"),
    [
        pytest.param(rank, wrong, id=f"{wrong.__name__} in {rank}d")
        for rank in (1, 2, 3)
        for wrong in (Merged, Transposed, Swapped, OffByOne, OneAxis)
        if not (wrong is Swapped and rank == 1)  # one axis has nothing to swap with
    ],
)
def test_wrong_table_is_not_the_convolution(
    rank: int, encoding: Encoding, boundary: str, wrong: type[Wrong]
) -> None:
    case = heads.generic_case(rank)
    options: Any = {"boundary": boundary, "evaluation": "dense"}
    right = attention_from_conv(case.conv, encoding=encoding, **options)
    assert agrees(right, case, truth_of(case))
    layer = attention_from_conv(case.conv, encoding=wrong(encoding), **options)
    assert not agrees(layer, case, truth_of(case))


@control
@pytest.mark.parametrize(
    ("rank", "encoding", "wrong"),
    [
        pytest.param(rank, encoding, wrong, id=f"{encoding} with {wrong.__name__} in {rank}d")
        for rank in (1, 2, 3)
        for encoding in (BiasTable(), RowColumn())
        for wrong in (
            heads.reversed_kernel,
            heads.query_minus_key,
            heads.swapped_axes,
            heads.repeated_shift,
            heads.missing_head,
            heads.shared_matrices,
        )
        if not (wrong is heads.swapped_axes and rank == 1)
        # a table by axis would lose an entry, and the layer one dimension
        if not (wrong is heads.repeated_shift and rank == 1 and encoding == RowColumn())
    ],
)
def test_wrong_layer_is_not_the_convolution(
    rank: int, encoding: Encoding, wrong: heads.Wrong
) -> None:
    # Three taps on every axis: shifts that are reversed or swapped have the same values on each.
    case = heads.generic_case(rank, kernel=(3, 3, 3))
    layer = attention_from_conv(case.conv, encoding=encoding, evaluation="dense")
    assert agrees(layer, case, truth_of(case))
    wrong(layer)
    assert not agrees(layer, case, truth_of(case))


class Trusted(T5Buckets):
    """T5's buckets, not asked whether a shift is alone."""

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


@control
@pytest.mark.parametrize("shift", [8, 9, 11, 12, -8, -9, 100])
@pytest.mark.parametrize("sharpness", [None, 3.0])
def test_t5_beyond_its_buckets_errs_by_half_the_range(shift: int, sharpness: float | None) -> None:
    # Two images that differ at the target: the layer tells them apart at no sharpness.
    side = abs(shift)
    conv = nn.Conv1d(1, 1, 2, dilation=side, padding=side, bias=False, dtype=torch.float64)
    with torch.no_grad():  # two taps, one of which is zero: offsets -side and 0, or 0 and side
        conv.weight.copy_(torch.tensor([1.0, 0.0] if shift < 0 else [0.0, 1.0]).view(1, 1, 2))
    if shift > 0:
        conv.padding = (0,)
    layer = attention_from_conv(
        conv, encoding=Trusted(), sharpness=sharpness, evaluation="dense", boundary="padded"
    )
    keys = 3 * side + 20
    query = side + 5
    buckets = T5Buckets().buckets(torch.arange(keys) - query)
    target = query + shift
    mates = [k for k in range(keys) if k != target and buckets[k] == buckets[target]]
    images = torch.zeros(2, 1, keys, dtype=torch.float64)
    images[0, 0, target] = images[1, 0, mates[0]] = 1
    with torch.no_grad():
        y, wanted = layer(images)[:, 0, query], conv(images)[:, 0, query]
    assert wanted.tolist() == [1.0, 0.0]
    assert y[0] == y[1]
    assert (y - wanted).abs().max() >= 0.5


@control
@pytest.mark.parametrize(
    "encoding", [BiasTable(), RowColumn(), T5Buckets()], ids=["one", "axes", "t5"]
)
def test_half_precision_s_own_gap_is_not_enough_for_many_keys(encoding: Encoding) -> None:
    # Equation (20), with one query. The sum in float32 may lose some of the keys itself.
    patient = type("Patient", (type(encoding),), {"crowded": False})()
    conv = nn.Conv1d(1, 1, 1, stride=12000, dtype=torch.float16)
    for keys, peak in ((12000, 1 - 2**-11), (8000, 1.0)):
        layer = attention_from_conv(conv, encoding=patient, evaluation="dense")
        assert layer.attention_weights((keys,)).max() == peak
    layer = attention_from_conv(conv, encoding=encoding, evaluation="dense")
    assert layer.attention_weights((12000,)).max() == 1


@control
@pytest.mark.parametrize("gap", [4.0, 16.0])
def test_leak_of_squares_is_no_bound_for_tables(gap: float) -> None:
    # T2's supremum holds for every size of image; the leak of a table grows with it.
    with precision(BITS):
        small, large = (theory.axes_mass(gap, (n, n), (True, True)) for n in (2, 64))
        squares = leak_enclosure(gap, 2, bits=BITS)
        assert small / (1 + small) < squares < large / (1 + large)


@control
@both_tables
@pytest.mark.parametrize(
    "wrong", ["one key too many", "the other table", "no sink", "a sink at the gap"]
)
def test_wrong_leak_is_not_that_of_the_rows(encoding: Any, wrong: str) -> None:
    layer = attention_from_conv(
        heads.generic_case(2).conv, encoding=encoding, sharpness=5.0, evaluation="dense"
    )
    case = heads.generic_case(2)
    assert worst_ratio(layer, case, 5.0) <= 1
    rows, weights = Rows.of(layer, case), numbers(layer.attention_weights((5, 4)))
    inside = [tuple(int(i) for i in row) for row in np.argwhere(rows.on_axis.all(-1))]
    off = heads.off_target(weights[inside[0]], int(rows.limits[inside[0]]))
    with precision(BITS):
        x, sink = arb(-5).exp(), (arb(-5) / 2).exp()
        one, axes = 19 * x, (1 + 4 * x) * (1 + 3 * x) - 1
        own, other = (one, axes) if isinstance(encoding, BiasTable) else (axes, one)
        mass = {
            "one key too many": own + x + sink,
            "the other table": other + sink,
            "no sink": own,
            "a sink at the gap": own + x,
        }[wrong]
        assert distance(off, mass, 21, case.x.dtype) > 1
        assert distance(off, own + sink, 21, case.x.dtype) <= 1


@control
def test_shared_bucket_that_no_query_sees_twice_has_no_floor() -> None:
    # Hypothesis 4 is needed: three pixels and a sink, β(-2) = β(2), and two heads that reach the
    # shift by 2, since query 0 sees the one and query 2 the other. With padded keys none can.
    far = Fraction(1, 2**20)  # e^(-g/2)
    outputs = [[Fraction(0)] * 3 for _ in range(3)]
    one = Fraction(1)
    tables = ({-2: one, 2: one, -1: 1 / far**2}, {-1: one})
    for table, value in zip(tables, (1, -1), strict=True):
        for q in range(3):
            row = [table.get(k - q, far**2) for k in range(3)]
            for k in range(3):
                outputs[q][k] += value * row[k] / (sum(row) + far)
    wanted = [[int(k == q + 2) for k in range(3)] for q in range(3)]
    worst = max(
        sum((abs(a - b) for a, b in zip(row, of_shift, strict=True)), Fraction(0))
        for row, of_shift in zip(outputs, wanted, strict=True)
    )
    assert worst < 4 * far  # of pixels of modulus 1
    bucket = {-2: 2}
    for query, floor in ((0, 0), (1, 0), (2, 0)):
        shift = {2: Fraction(1)} if query == 0 else {}
        view = [k - query for k in range(3)]
        assert theory.least_error(shift, view, lambda d: bucket.get(d, d)) == floor
    padded = [k - 2 for k in range(5)]
    assert theory.least_error({2: Fraction(1)}, padded, lambda d: bucket.get(d, d)) == HALF
    with refused(ValueError, "encoding", "2", "num_buckets"):
        T5Buckets(4, 2).gap(torch.tensor([[2.0]]), Lattice.box((3,)))


@control
def test_least_error_of_a_shift_that_is_alone_is_nothing() -> None:
    buckets = T5Buckets()
    for shift, floor in ((7, 0), (8, HALF), (-7, 0), (-8, HALF), (91, HALF)):
        wanted = theory.least_error(
            {shift: Fraction(1)}, range(-120, 121), lambda delta: theory.t5_bucket(delta)
        )
        assert wanted == floor
        assert buckets.is_alone(shift) == (floor == 0)
    assert replace(buckets, num_buckets=64).is_alone(8)
