"""A soft padding is one operator, whether its factors are full or banded.

Products and derivatives are compared on integers, bit for bit: with NumPy's integers, and with what
torch makes of the whole matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from constructions import attention_from_conv, certify
from constructions.encodings import Encoding, Gaussian, Quadratic
from constructions.formats import (
    accumulator,
    smallest_normal,
    smallest_subnormal,
    unit_roundoff,
)
from constructions.geometry.lattice import Lattice
from constructions.layer import soft_padding
from constructions.layer.soft_padding import Banded, Factor, Full, Remade, SoftPadding, Span
from constructions.normalisers import Softmax
from tests.support.helpers import integers, traced

Spans = tuple[Span, ...]

OVERLAPPING: Spans = (Span((0, 2), (0, 4)), Span((2, 5), (1, 6)), Span((5, 6), (3, 7)))
WITH_A_GAP: Spans = (Span((0, 1), (4, 6)), Span((1, 4), (0, 2)))
"""No row sees columns 2 and 3, and rows look back."""

ALIKE: Spans = (Span((0, 2), (0, 3)), Span((2, 4), (2, 5)), Span((4, 6), (4, 7)))
"""Spans that can share their entries."""

EVERY_AXIS = pytest.mark.parametrize("dim", [2, 3, 4])
SHAPE = (2, 1, 3, 2, 4)


@st.composite
def bands(draw: st.DrawFn) -> tuple[Spans, int]:
    """Spans of any rows and columns, in order of rows, and the number of columns."""
    keys, row = draw(st.integers(1, 9)), 0
    spans = []
    for _ in range(draw(st.integers(1, 5))):
        first = draw(st.integers(0, keys - 1))
        end = draw(st.integers(first + 1, keys))
        rows = draw(st.integers(1, 3))
        spans.append(Span((row, row + rows), (first, end)))
        row += rows
    return tuple(spans), keys


def banded(spans: Spans, keys: int) -> Banded:
    """Integers in the spans, from 1 to 7: none is zero."""
    return Banded(
        spans,
        keys,
        tuple(
            integers(span.rows[1] - span.rows[0], span.width, dtype=torch.float64) + 4
            for span in spans
        ),
    )


def by_hand(factor: Banded) -> np.ndarray[Any, Any]:
    """The matrix, entry by entry."""
    matrix = np.zeros((factor.bands[-1].rows[1], factor.keys), dtype=np.int64)
    for span, entries in zip(factor.bands, factor.entries, strict=True):
        for i, row in enumerate(entries.tolist()):
            for j, entry in enumerate(row):
                matrix[span.rows[0] + i, span.columns[0] + j] = int(entry)
    return matrix


def image(keys: int, dim: int) -> Tensor:
    """Integers, with so many keys on one axis."""
    shape = [*SHAPE]
    shape[dim] = keys
    return integers(*shape, dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full factors are multiplied in blocks of two rows or little more."""
    monkeypatch.setattr(soft_padding, "BLOCK", 2)


# Products -----------------------------------------------------------------------------------------


@EVERY_AXIS
@given(bands())
@example((WITH_A_GAP, 6))
@example((OVERLAPPING, 8))
def test_full_and_banded_factors_are_the_product_with_their_matrix(
    dim: int, drawn: tuple[Spans, int]
) -> None:
    factor = banded(*drawn)
    matrix = by_hand(factor)
    values = image(factor.keys, dim)
    product = np.moveaxis(np.tensordot(matrix, values.long().numpy(), (1, dim)), 0, dim)
    assert factor.matrix.tolist() == matrix.tolist()
    for either in (factor, Full(factor.matrix)):
        assert either(values, dim).tolist() == product.tolist()


@EVERY_AXIS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_full_and_banded_factors_of_the_same_entries_have_equal_bits(
    dim: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(dim)
    matrix = torch.rand(9, 9, generator=generator, dtype=dtype).triu(-1).tril(1)
    full = Full(matrix)
    spans = tuple(full.spans())
    assert len(spans) > 1
    same = Banded(spans, 9, tuple(full.entries_of(spans)))
    shape = [*SHAPE]
    shape[dim] = 9
    values = torch.randn(shape, generator=generator, dtype=dtype)
    assert torch.equal(same.matrix, matrix)
    assert torch.equal(same(values, dim), full(values, dim))
    upstream = torch.randn(same(values, dim).shape, generator=generator, dtype=dtype)
    by_entries = []
    for factor in (same, full):
        learned = factor.remade(tuple(t.clone().requires_grad_() for t in factor.tensors))
        y = learned(values, dim)
        assert torch.equal(y, factor(values, dim))  # what is trained has the bits of what is not
        gradients = torch.autograd.grad(y, learned.tensors, upstream)
        by_entries.append(learned.remade(gradients).matrix)
    assert torch.equal(*by_entries)


# Derivatives --------------------------------------------------------------------------------------

Product = Callable[[Tensor, tuple[Tensor, ...]], Tensor]


def derivatives(product: Product, values: Tensor, entries: Sequence[Tensor]) -> list[Tensor]:
    """Of integers: itself, all first and second derivatives, forwards, and two images at once."""
    given = tuple(t.clone().requires_grad_() for t in (values, *entries))
    y = product(given[0], given[1:])
    upstream = integers(*y.shape, dtype=torch.float64).requires_grad_()
    first = torch.autograd.grad(y, given, upstream, create_graph=True)
    sums: list[Any] = [(g * integers(*g.shape, dtype=torch.float64)).sum() for g in first]
    second = torch.autograd.grad(sums, (*given, upstream))
    tangents = tuple(integers(*t.shape, dtype=torch.float64) - 1 for t in given)
    forwards = []
    forward: Any = forward_ad
    for moved in ({0}, {1}, set(range(len(given)))):
        with forward.dual_level():
            duals = tuple(
                forward.make_dual(t, tangent) if number in moved else t
                for number, (t, tangent) in enumerate(zip(given, tangents, strict=True))
            )
            forwards.append(forward.unpack_dual(product(duals[0], duals[1:])).tangent)
    images = torch.stack([given[0].detach(), tangents[0]])
    together = torch.vmap(product, (0, None))(images, given[1:])
    return [y, *first, *second, *forwards, together]


def torchs_own(spans: Spans, keys: int, dim: int) -> Product:
    """The product with the whole matrix."""

    def product(values: Tensor, entries: tuple[Tensor, ...]) -> Tensor:
        rows = [
            F.pad(part, (span.columns[0], keys - span.columns[1]))
            for part, span in zip(entries, spans, strict=True)
        ]
        return (values.movedim(dim, -1) @ torch.cat(rows).T).movedim(-1, dim)

    return product


def agree(remade: Remade, spans: Spans, keys: int, dim: int) -> bool:
    """Whether a factor made of the entries of spans has torch's own derivatives."""
    entries = banded(spans, keys).entries
    ours = derivatives(lambda values, given: remade(given)(values, dim), image(keys, dim), entries)
    right = derivatives(torchs_own(spans, keys, dim), image(keys, dim), entries)
    return all(torch.equal(*pair) for pair in zip(ours, right, strict=True))


@EVERY_AXIS
@given(bands())
@example((WITH_A_GAP, 6))
@example((OVERLAPPING, 8))
def test_banded_factors_have_all_derivatives(dim: int, drawn: tuple[Spans, int]) -> None:
    spans, keys = drawn
    assert agree(partial(Banded, spans, keys), spans, keys, dim)


@EVERY_AXIS
@pytest.mark.usefixtures("small_blocks")
def test_full_factors_have_all_derivatives(dim: int) -> None:
    spans = tuple(Span((row, row + 1), (max(0, row - 1), min(8, row + 2))) for row in range(8))

    def full(entries: tuple[Tensor, ...]) -> Factor:
        rows = [
            F.pad(part, (span.columns[0], 8 - span.columns[1]))
            for part, span in zip(entries, spans, strict=True)
        ]
        return Full(torch.cat(rows))

    assert len(full(banded(spans, 8).entries).spans()) > 1
    assert agree(full, spans, 8, dim)


@EVERY_AXIS
def test_entries_that_spans_share_have_the_sum_of_their_gradients(dim: int) -> None:
    (shared,) = banded(ALIKE[:1], 7).entries
    values, given = image(7, dim), shared.clone().requires_grad_()
    y = Banded(ALIKE, 7, (given,) * 3)(values, dim)
    upstream = integers(*y.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, given, upstream)
    apart = [shared.clone().requires_grad_() for _ in ALIKE]
    right = torch.autograd.grad(torchs_own(ALIKE, 7, dim)(values, tuple(apart)), apart, upstream)
    assert torch.equal(gradient, sum(right[1:], start=right[0]))


def last_alone(
    places: Sequence[tuple[int, int]], parts: Sequence[Tensor], total: int, dim: int
) -> Tensor:
    """Where places meet, one part alone."""
    shape = [*parts[0].shape]
    shape[dim] = total
    whole = parts[0].new_zeros(shape)
    for (first, end), part in zip(places, parts, strict=True):
        before, after = whole.narrow(dim, 0, first), whole.narrow(dim, end, total - end)
        whole = torch.cat([before, part, after], dim)
    return whole


def test_gradients_that_are_not_added_where_columns_meet_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart = (Span((0, 2), (0, 3)), Span((2, 4), (3, 6)))
    for spans, meet in ((apart, False), (OVERLAPPING, True)):
        keys = spans[-1].columns[1]
        with monkeypatch.context() as patch:
            patch.setattr(soft_padding, "_added", last_alone)
            right = agree(partial(Banded, spans, keys), spans, keys, 2)
        assert right is not meet


# Tracing ------------------------------------------------------------------------------------------


class Applied(nn.Module):
    """A soft padding of given entries, as a module."""

    def __init__(self, factors: tuple[Factor, ...], kept: Tensor) -> None:
        super().__init__()
        self.factors, self.kept = factors, kept

    def forward(self, values: Tensor) -> Tensor:
        """The soft padding of the values."""
        return SoftPadding(self.factors, self.kept)(values)


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "banded"])
@pytest.mark.usefixtures("small_blocks")
def test_soft_paddings_are_traced_into_one_graph(is_full: bool) -> None:
    factors: tuple[Factor, ...] = (banded(OVERLAPPING, 8), banded(ALIKE, 7))
    if is_full:
        factors = tuple(Full(factor.matrix) for factor in factors)
    module = Applied(factors, integers(6, 6, dtype=torch.float64))
    values = integers(2, 3, 8, 7, dtype=torch.float64).requires_grad_()
    outcomes = []
    for way in (module, traced(module)):
        y = way(values)
        (gradient,) = torch.autograd.grad(y, values, torch.ones_like(y))
        outcomes.append((y, gradient))
    (y, gradient), (traced_y, traced_gradient) = outcomes
    assert torch.equal(traced_y, y)
    assert torch.equal(traced_gradient, gradient)


def test_traced_code_looks_at_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(matrix: Tensor) -> list[Span]:
        raise AssertionError("an entry was looked at")

    monkeypatch.setattr(soft_padding, "_blocks", looked_at)
    full = Full(torch.ones(8, 8))
    with pytest.raises(AssertionError, match="looked at"):
        full(torch.ones(1, 1, 8), 2)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(full(torch.ones(1, 1, 8), 2), torch.full((1, 1, 8), 8.0))


# The operator -------------------------------------------------------------------------------------


def test_entries_that_are_one_are_one_elsewhere() -> None:
    (shared,) = banded(ALIKE[:1], 7).entries
    factor = Banded(ALIKE, 7, (shared,) * 3)
    padding = SoftPadding((factor, factor), torch.full((6, 6), 0.5, dtype=torch.float64))
    moved = padding.to(torch.device("cpu"), torch.float32)
    tensors = [entries for factor in moved.factors for entries in factor.tensors]
    assert {entries.dtype for entries in tensors} == {torch.float32}
    assert len({id(entries) for entries in tensors}) == 1
    assert moved.kept is not None
    assert moved.kept.dtype == torch.float32
    values = integers(1, 2, 7, 7)
    assert torch.equal(moved(values), padding(values.double()).float())
    assert padding.factors[0].tensors[0].dtype == torch.float64  # and the first is as it was


@given(
    height=st.floats(0, 1),
    sharpness=st.floats(0.01, 100),
)
def test_sink_stands_at_its_height_below_the_target(height: float, sharpness: float) -> None:
    # One key, the target itself: it is seen as much as the sink lies below it.
    one = Lattice.box((1,))
    padding = SoftPadding.of(
        (Quadratic(),), sharpness, one, one, gap=1.0, sink_height=height, dtype=torch.float64
    )
    below = torch.tensor([height * sharpness], dtype=torch.float64)
    assert padding.kept is not None
    assert torch.equal(padding.kept, torch.sigmoid(below))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_are_zero_where_they_would_be_subnormal(dtype: torch.dtype) -> None:
    line = Lattice((64,), (1,), (0,))
    exact = accumulator(dtype)
    tiny = torch.finfo(exact).smallest_normal
    places = torch.arange(64, dtype=torch.float64)
    squares = (places - places.unsqueeze(1)) ** 2
    met = 0
    for sharpness in (1.0, 2.0, 4.0, 5.5, 6.0, 10.0):
        padding = SoftPadding.of(
            (Quadratic(),), sharpness, line, line, gap=1.0, sink_height=None, dtype=dtype
        )
        (found,) = (factor.matrix for factor in padding.factors)
        weights = (-sharpness * squares).to(exact).softmax(dim=-1)
        met += int(((weights > 0) & (weights < tiny)).sum())
        assert torch.equal(found, weights.masked_fill(weights < tiny, 0.0).to(dtype))
    assert met > 0


# Long axes ----------------------------------------------------------------------------------------


@st.composite
def lines(draw: st.DrawFn) -> tuple[Lattice, Lattice]:
    """Keys and targets on one axis, of any spacings, which overlap, touch or are far apart."""

    def line() -> Lattice:
        spacing, origin = draw(st.integers(1, 4)), draw(st.integers(-200, 200))
        return Lattice((draw(st.integers(1, 300)),), (spacing,), (origin,))

    return line(), line()


def on_line(
    keys: Lattice,
    targets: Lattice,
    sharpness: Tensor | float,
    encoding: Encoding | None = None,
    dtype: torch.dtype = torch.float32,
) -> SoftPadding:
    """The soft padding of a line, with a sink."""
    return SoftPadding.of(
        (encoding or Quadratic(),),
        sharpness,
        keys,
        targets,
        gap=1.0,
        sink_height=0.5,
        dtype=dtype,
    )


def in_bands(way: Callable[[], Any]) -> tuple[Any, Any]:
    """What is made where every axis is long, and where none is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soft_padding, "LONG", 0)
        banded = way()
        patch.setattr(soft_padding, "LONG", 2**60)
        return banded, way()


@given(
    line=lines(),
    sharpness=st.floats(1e-4, 1e3),
    encoding=st.sampled_from([Quadratic(), Gaussian(), Gaussian(((0.3125,),))]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
@example((Lattice.box((300,)), Lattice.box((300,))), 4.0, Quadratic(), torch.float32)
def test_bands_have_the_entries_of_whole_rows_to_the_bit(
    line: tuple[Lattice, Lattice], sharpness: float, encoding: Encoding, dtype: torch.dtype
) -> None:
    banded, full = in_bands(lambda: on_line(*line, sharpness, encoding, dtype))
    assert torch.equal(banded.factors[0].matrix, full.factors[0].matrix)
    # The logarithms of sums have an order of their own.
    eps = torch.finfo(dtype).eps
    assert ((banded.kept - full.kept).abs().double() <= 4 * eps * full.kept.double()).all()


def test_band_of_half_the_gap_loses_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Lattice.box((300,))
    monkeypatch.setattr(soft_padding, "LANES", 1)
    banded, full = in_bands(lambda: on_line(line, line, 0.1))
    assert isinstance(banded.factors[0], Banded)
    assert torch.equal(banded.factors[0].matrix != 0, full.factors[0].matrix != 0)
    gap = Softmax().one_hot_gap(torch.float32)
    monkeypatch.setattr(Softmax, "one_hot_gap", lambda self, dtype: gap / 2)
    banded, full = in_bands(lambda: on_line(line, line, 0.1))
    assert not torch.equal(banded.factors[0].matrix != 0, full.factors[0].matrix != 0)


@pytest.mark.parametrize("sharpness", [-1.0, 0.0, 1e-12, float("nan")])
def test_scores_that_do_not_fall_off_are_not_banded(sharpness: float) -> None:
    line = Lattice.box((300,))
    banded, _ = in_bands(lambda: on_line(line, line, sharpness))
    assert isinstance(banded.factors[0], Full)


def test_a_long_line_has_as_many_entries_as_its_ends_and_one_block() -> None:
    counted = []
    for size in (2**12, 2**16):
        line = Lattice.box((size,))
        (factor,) = on_line(line, line, 4.0).factors
        assert isinstance(factor, Banded)
        counted.append(len({id(entries) for entries in factor.cast(torch.float64).tensors}))
    assert counted == [3, 3]


def test_a_line_whose_matrix_would_not_fit_is_computed_and_differentiated() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 2, 10, stride=5), sharpness=4.0)
    x = torch.zeros(1, 1, 2**18, requires_grad=True)  # 2^36 entries
    layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_long_line_is_within_its_certificate(dtype: torch.dtype) -> None:
    conv = nn.Conv1d(1, 2, 10, stride=5, padding=3, dtype=dtype)
    layer = attention_from_conv(conv, sharpness=4.0)
    x = integers(2, 1, 600, dtype=dtype) / 7
    assert isinstance(layer.soft_padding(layer.view(x)).factors[0], Banded)
    assert certify(layer, conv, x).holds


def test_gradients_in_bands_are_those_of_whole_rows() -> None:
    line = Lattice.box((96,))
    values = integers(1, 2, 96, dtype=torch.float64)
    weights = integers(1, 2, 96, dtype=torch.float64).flip(-1)

    def gradients() -> tuple[Tensor, ...]:
        x, sharpness = values.clone().requires_grad_(), torch.tensor(0.25).double().requires_grad_()
        y = on_line(line, line, sharpness, dtype=torch.float64)(x)
        return torch.autograd.grad((y * weights).sum(), (x, sharpness))

    (x, sharpness), (of_full, full_sharpness) = in_bands(gradients)
    # Sums of moduli at most 3 * 3, over 96 keys and as many rows, in another order.
    u = torch.finfo(torch.float64).eps / 2
    assert ((x - of_full).abs() <= 2 * 96 * u * 9).all()
    # Its terms have scores of up to Θ beside, since those beyond have no weight.
    size = 2 * 96 * 9 * Softmax().one_hot_gap(torch.float64) / 0.25
    assert abs(sharpness - full_sharpness) <= 2 * (96**2) * u * size


# Far weights --------------------------------------------------------------------------------------


def lifted_and_not(
    values: Tensor, sharpness: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, bool]:
    """P of values, as it is and with nothing lifted, and whether it was."""
    shape = tuple(values.shape[2:])
    lattice = Lattice(shape, (1,) * len(shape), (0,) * len(shape))
    parts = (Quadratic(),) * lattice.dimension
    padding = SoftPadding.of(
        parts, sharpness, lattice, lattice, gap=1.0, sink_height=None, dtype=values.dtype
    )
    lifted, is_lifted = padding(values), padding._lift(values) > 1
    monkeypatch.setattr(SoftPadding, "_lift", lambda *_: 1.0)
    return lifted, padding(values), is_lifted


@pytest.mark.parametrize("size", [(40,), (24, 30), (600,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_far_weights_are_lifted_and_normal_numbers_keep_their_bits(
    dtype: torch.dtype, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, *size, generator=generator, dtype=dtype)
    # e^(-sharpness d²) falls below the smallest normal number beyond some ten keys.
    sharpness = -math.log(2 * smallest_normal(dtype)) / 11**2
    lifted, plain, is_lifted = lifted_and_not(values, sharpness, monkeypatch)
    assert is_lifted
    assert torch.equal(lifted, plain)


@pytest.mark.parametrize("pixel", [1e37, math.inf, math.nan], ids=str)
def test_pixels_that_a_lift_would_overflow_are_multiplied_as_they_are(
    pixel: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.full((1, 1, 40), pixel)
    lifted, plain, is_lifted = lifted_and_not(values, 0.7, monkeypatch)
    assert not is_lifted
    assert torch.equal(lifted.nan_to_num(), plain.nan_to_num())


@pytest.mark.parametrize("pixel", [1e-40, 1e-30])
def test_tiny_pixels_lose_less_where_they_are_lifted(
    pixel: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.full((1, 1, 40), pixel)
    lifted, plain, is_lifted = lifted_and_not(values, 0.7, monkeypatch)
    assert is_lifted
    exact = values.double()  # every row of P sums to 1, and the pixels are alike
    u, least = unit_roundoff(torch.float32), smallest_subnormal(torch.float32)
    bound = 40 * 2 * u * pixel + least
    assert (lifted.double() - exact).abs().max() <= bound
    assert (lifted.double() - exact).abs().max() <= (plain.double() - exact).abs().max() + bound


def test_values_with_a_history_are_not_lifted() -> None:
    lattice = Lattice((40,), (1,), (0,))
    padding = SoftPadding.of(
        (Quadratic(),), 0.7, lattice, lattice, gap=1.0, sink_height=None, dtype=torch.float32
    )
    values = torch.ones(1, 1, 40)
    assert padding._lift(values) > 1
    assert padding._lift(values.requires_grad_()) == 1
    with torch.no_grad():
        assert padding._lift(values) > 1


def test_weights_that_are_all_near_are_not_lifted() -> None:
    lattice = Lattice((40,), (1,), (0,))
    padding = SoftPadding.of(
        (Quadratic(),), 0.01, lattice, lattice, gap=1.0, sink_height=None, dtype=torch.float32
    )
    assert padding._lift(torch.ones(1, 1, 40)) == 1
