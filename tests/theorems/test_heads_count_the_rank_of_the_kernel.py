"""Positional heads express a convolution only if there are as many as the rank of its taps, and that many, or one more, suffice.

T10, `docs/theorems/heads_count_the_rank_of_the_kernel.md`. Exactly means in rationals: the softmax
of rational exponentials, and equality with the oracle's integers.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support import formal
from tests.support.ledger import record
from tests.support.oracle import convolve
from tests.support.proofs import claimed_equations, discharged_equations
from theory import heads_count_the_rank_of_the_kernel as theory
from theory.tools.alternatives import alternative, rank, solved, times

SLUG = "heads_count_the_rank_of_the_kernel"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

Point = tuple[int, ...]
Matrix = list[list[Fraction]]
Rationals = NDArray[Any]


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Attention in rationals ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A convolution of integers, on the grid of its keys.

    Attributes:
        keys: where the keys stand.
        values: what stands there, (T, D_in).
        queries: where the outputs stand.
        offsets: of all taps, those that are 0 too.
        kernel: their matrices, (K, D_in, D_out).
        truth: the oracle's output, (Q, D_out).
        torus: the grid's shape, if displacements are taken modulo it.
    """

    keys: list[Point]
    values: Rationals
    queries: list[Point]
    offsets: list[Point]
    kernel: Rationals
    truth: Rationals
    torus: Point | None

    @classmethod
    def of(
        cls,
        image: Rationals,
        weight: Rationals,
        *,
        stride: Point,
        dilation: Point,
        padding: Point,
        torus: bool = False,
        natural: bool = False,
    ) -> "Task":
        """Zero padding made of keys, or none that is (natural); or a torus."""
        border = [0 if torus or natural else p for p in padding]
        truth = convolve(
            image,
            weight,
            None,
            stride=stride,
            dilation=dilation,
            padding=padding,
            padding_mode="circular" if torus else "zeros",
        )
        padded = np.pad(image, [(0, 0), *((b, b) for b in border)])
        taps = list(np.ndindex(*weight.shape[2:]))
        return cls(
            keys=[_less(k, border) for k in np.ndindex(*padded.shape[1:])],
            values=padded.reshape(len(image), -1).T,
            queries=[
                tuple(i * s for i, s in zip(q, stride, strict=True))
                for q in np.ndindex(*truth.shape[1:])
            ],
            offsets=[
                _less(tuple(i * d for i, d in zip(t, dilation, strict=True)), padding) for t in taps
            ],
            kernel=np.array([weight[(..., *t)].T for t in taps], dtype=object),
            truth=truth.reshape(len(truth), -1).T,
            torus=tuple(image.shape[1:]) if torus else None,
        )

    @property
    def rows(self) -> Matrix:
        """M: the taps that are not 0, as rows."""
        flat = self.kernel.reshape(len(self.kernel), -1)
        return [[Fraction(v) for v in row] for row in flat if any(row)]

    def places(self) -> dict[Point, int]:
        """The number of a tap that is not 0, by its displacement as the heads see it."""
        seen = [o for o, w in zip(self.offsets, self.kernel, strict=True) if w.any()]
        return {self.displaced(o, (0,) * len(o)): n for n, o in enumerate(seen)}

    def displaced(self, key: Point, query: Point) -> Point:
        delta = _less(key, query)
        if self.torus is None:
            return delta
        return tuple(d % n for d, n in zip(delta, self.torus, strict=True))


def _less(point: Sequence[int], other: Sequence[int]) -> Point:
    return tuple(a - b for a, b in zip(point, other, strict=True))


def attend(
    task: Task,
    weights: Sequence[Sequence[Fraction]],
    matrices: Sequence[Sequence[Fraction]],
    sinks: Sequence[Fraction] | None = None,
) -> Rationals:
    """The layer by its definition: rows that are normalised, values, and the sum over heads.

    Args:
        task: what it computes.
        weights: of each head, the exponentials at the taps, and last those of every other key; a
            row that has none for these is 0 there.
        matrices: V of each head for rows that are not normalised: they are multiplied by Z, which
            is that of a query that sees its whole window.
        sinks: of each head, the exponential of one more key, of value zero.
    """
    places, taps = task.places(), len(task.rows)
    numbers = [[places.get(task.displaced(k, q), taps) for k in task.keys] for q in task.queries]
    output = np.zeros(task.truth.shape, dtype=object)
    for row, matrix, sink in zip(
        weights, matrices, sinks or [Fraction(0)] * len(weights), strict=True
    ):
        seen = [*row, Fraction(0)][: taps + 1]
        exponentials = np.array([[seen[n] for n in line] for line in numbers], dtype=object)
        own = exponentials.sum(axis=1) + sink
        inside = sum(seen[:taps]) + (len(task.keys) - taps) * seen[taps] + sink
        softmax = exponentials / np.where(own == 0, 1, own)[:, None]
        value = np.array(matrix, dtype=object).reshape(task.kernel.shape[1:]) * inside
        output = output + (softmax @ task.values) @ value
    return output


def computes(task: Task, layer: theory.Layer, sinks: Sequence[Fraction] | None = None) -> bool:
    return bool((attend(task, *layer, sinks) == task.truth).all())


# Draws --------------------------------------------------------------------------------------------

SIZES: list[Point] = [(1,), (2,), (3,), (1, 1), (2, 1), (2, 2), (2, 3), (1, 2, 2)]
small = st.integers(-2, 2)


@st.composite
def tasks(draw: st.DrawFn, torus: bool = False) -> Task:
    """Convolutions of small integers, of at most 6 taps, some of them 0, on small grids."""
    kernel = draw(st.sampled_from(SIZES))
    axes = []
    for size in kernel:
        dilation = draw(st.integers(1, 2))
        n = draw(st.integers(1, 4 if len(kernel) < 3 else 2))
        while torus and n // math.gcd(n, dilation) < size:
            n += 1  # taps meet distinct pixels
        short = max(0, -(-(dilation * (size - 1) + 1 - n) // 2))
        axes.append((n, draw(st.integers(1, 2)), dilation, draw(st.integers(short, short + 1))))
    pixels, stride, dilations, padding = (tuple(part) for part in zip(*axes, strict=True))
    if torus:
        padding = tuple(min(p, n) for p, n in zip(padding, pixels, strict=True))
    d_in, d_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    weight = integers(draw, (d_out, d_in, *kernel))
    assume(weight.any())
    return Task.of(
        integers(draw, (d_in, *pixels)),
        weight,
        stride=stride,
        dilation=dilations,
        padding=padding,
        torus=torus,
    )


def integers(draw: st.DrawFn, shape: Sequence[int]) -> Rationals:
    size = math.prod(shape)
    data = draw(st.lists(small, min_size=size, max_size=size))
    return np.array(data, dtype=object).reshape(shape)


@st.composite
def kernels(draw: st.DrawFn, most: int = 6) -> Matrix:
    """Taps other than 0, as rows, of small integers."""
    width = draw(st.integers(1, 3))
    row = st.lists(small, min_size=width, max_size=width).filter(any)
    rows = draw(st.lists(row, min_size=1, max_size=most))
    return [[Fraction(v) for v in row] for row in rows]


def rows_of(taps: int, count: int, least: int) -> st.SearchStrategy[Matrix]:
    """Weights of so many heads, integers from `least` on."""
    numbers = st.integers(least, 4).map(Fraction)
    row = st.lists(numbers, min_size=taps, max_size=taps)
    return st.lists(row, min_size=count, max_size=count)


# It is exact --------------------------------------------------------------------------------------

every_grid = pytest.mark.parametrize("torus", [False, True], ids=["padded grid", "torus"])
fractions = st.fractions(0, 5, max_denominator=6)


@exact
@every_grid
@given(data=st.data())
def test_masked_heads_compute_the_convolution_in_rationals_whatever_the_sinks(
    data: st.DataObject, torus: bool
) -> None:
    task = data.draw(tasks(torus), label="task")
    layer = theory.masked_heads(task.rows)
    assert len(layer.weights) == theory.least_masked(task.rows)
    sinks = [data.draw(fractions) for _ in layer.weights]
    assert computes(task, layer)
    assert computes(task, layer, sinks)
    record(dtype="rational")


@exact
@every_grid
@given(data=st.data())
def test_one_head_more_than_the_rank_computes_it_with_finite_logits(
    data: st.DataObject, torus: bool
) -> None:
    task = data.draw(tasks(torus), label="task")
    layer = theory.finite_heads(task.rows)
    assert len(layer.weights) == rank(task.rows) + 1
    assert min(w for row in layer.weights for w in row) > 0
    assert computes(task, layer, [data.draw(fractions) for _ in layer.weights])
    record(dtype="rational")


@exact
@every_grid
@given(data=st.data())
def test_signed_heads_are_as_many_as_the_rank_in_every_case(
    data: st.DataObject, torus: bool
) -> None:
    # Each is p / Σp - λ n / Σn: two softmaxes, applied one by one.
    task = data.draw(tasks(torus), label="task")
    layer, plus, minus = theory.signed_heads(task.rows)
    assert len(plus) == len(minus) == rank(task.rows)
    assert min(w for row in [*plus, *minus] for w in row) > 0
    others = len(task.keys) - len(task.rows)
    for p, n in zip(plus, minus, strict=True):
        sums = [sum(w[:-1]) + others * w[-1] for w in (p, n)]
        ratio = sums[1] / sums[0]
        signed = [a / sums[0] - ratio * b / sums[1] for a, b in zip(p, n, strict=True)]
        assert sum(signed[:-1]) + others * signed[-1] == 1 - ratio
        assert signed[-1] == 0
    negated = [[-v for v in matrix] for matrix in layer.matrices]
    both = attend(task, [*plus, *minus], [*layer.matrices, *negated])
    assert (both == task.truth).all()
    record(dtype="rational")


@exact
@given(kernel=kernels(7))
def test_alternatives_exclude_each_other_and_one_holds(kernel: Matrix) -> None:
    # Equation (4), and the negated kernel, whose case is the same.
    c, y = alternative(kernel)
    slack = times(kernel, c)
    assert all(s >= 0 and w >= 0 and s + w > 0 for s, w in zip(slack, y, strict=True))
    assert not any(times(list(zip(*kernel, strict=True)), y))
    assert theory.case(kernel) == theory.case([[-v for v in row] for row in kernel])
    assert theory.case(kernel) == theory.case([[3 * v for v in row] for row in kernel])
    record(dtype="rational")


@exact
@given(kernel=kernels())
def test_kernel_of_one_channel_needs_two_heads_at_most(kernel: Matrix) -> None:
    column = [[sum(row, Fraction(0))] for row in kernel if sum(row)]
    assume(column)
    signs = {row[0] > 0 for row in column}
    assert theory.least_masked(column) == len(signs) <= 2


# Fewer are not enough -----------------------------------------------------------------------------


@exact
@given(data=st.data(), kernel=kernels(5))
def test_no_heads_below_the_bounds_are_found(data: st.DataObject, kernel: Matrix) -> None:
    # Weights are drawn from the kernel's own span, from its parts, and at random: r heads of a
    # kernel in case (b) or (c), r - 1 of any, and r of finite logits are never exact.
    r, taps = rank(kernel), len(kernel)
    outside = [Fraction(0)] * len(kernel[0])
    if r > 1:
        fewer = data.draw(rows_of(taps, r - 1, 0))
        assert solved(list(zip(*fewer, strict=True)), kernel) is None
    many = data.draw(rows_of(taps, r, 0))
    parts = [
        [max(sign * v, Fraction(0)) for v in column]
        for column in zip(*kernel, strict=True)
        for sign in (1, -1)
    ]
    chosen = data.draw(st.lists(st.sampled_from([*many, *parts]), min_size=r, max_size=r))
    if theory.case(kernel) != "a":
        assert solved(list(zip(*chosen, strict=True)), kernel) is None
    seen = [[*row, w] for row, w in zip(chosen, data.draw(rows_of(r, 1, 1))[0], strict=True)]
    assert solved(list(zip(*seen, strict=True)), [*kernel, outside]) is None


def floats(matrix: Sequence[Sequence[Fraction]]) -> NDArray[np.float64]:
    return np.array([[float(v) for v in row] for row in matrix])


ROUNDED = 1 + 2.0**-40
"""Covers what float64 loses of norms, singular values and least squares of such small matrices."""


@bounded
@given(data=st.data(), kernel=kernels(5))
@example(data=None, kernel=[[Fraction(1)], [Fraction(-1)]])
def test_interior_kernel_keeps_r_heads_at_a_distance(
    data: st.DataObject | None, kernel: Matrix
) -> None:
    # Equation (9), for the best matrices of drawn weights; and equation (2).
    r, taps = rank(kernel), len(kernel)
    _, y = alternative(kernel)
    weights = [[Fraction(1)] * taps] * r if data is None else data.draw(rows_of(taps, r, 0))
    a, m, values = floats(weights).T, floats(kernel), np.array([float(v) for v in y])
    best = a @ np.linalg.lstsq(a, m, rcond=None)[0]
    sigma = np.linalg.svd(m, compute_uv=False)
    least = 0.0
    if theory.case(kernel) == "c":
        kappa = values.min() / np.linalg.norm(values)
        least = kappa / (1 + kappa) * sigma[r - 1]
    found = float(np.linalg.norm(m - best, 2))
    assert least <= found * ROUNDED
    fewer = a[:, : r - 1]
    left = m - fewer @ np.linalg.lstsq(fewer, m, rcond=None)[0] if r > 1 else m
    assert sigma[r - 1] <= np.linalg.norm(left) * ROUNDED  # the tail at r - 1 heads
    record(ratio=least / found if found else 0.0, dtype="float64")


@bounded
@given(kernel=kernels(5), bits=st.integers(4, 20))
@example(kernel=[list(map(Fraction, row)) for row in ((1, 0), (0, 1), (0, -1))], bits=10)
def test_border_case_is_approached_by_matrices_that_grow(kernel: Matrix, bits: int) -> None:
    # Equations (7) and (8): r heads of M + t e cᵀ, weights at most 1.
    if theory.case(kernel) != "b":
        assert theory.least_masked(kernel) in (rank(kernel), rank(kernel) + 1)
        return
    moved = theory.approaching(kernel, Fraction(1, 2**bits))
    layer = theory.masked_heads(moved)
    r, taps = rank(kernel), len(kernel)
    assert len(layer.weights) == r
    scale = [max(row) for row in layer.weights]
    sizes = [
        s * Fraction(math.hypot(*map(float, v))) for s, v in zip(scale, layer.matrices, strict=True)
    ]
    error = float(np.linalg.norm(floats(moved) - floats(kernel), 2))
    sigma = float(np.linalg.svd(floats(kernel), compute_uv=False)[r - 1])
    _, y = alternative(kernel)
    norm = math.hypot(*map(float, y))
    least = max(
        (math.hypot(*map(float, row)) - error) * float(w) * (sigma - error)
        for row, w in zip(kernel, y, strict=True)
    ) / (error * norm * r * math.sqrt(taps))
    assert least <= float(max(sizes)) * ROUNDED
    record(ratio=least / float(max(sizes)), dtype="float64")


# Borders ------------------------------------------------------------------------------------------


def line(kernel: Sequence[int], pixels: int = 6) -> Task:
    """One channel of a line, the keys its pixels alone."""
    image = np.arange(1, pixels + 1, dtype=object)[None] ** 2
    weight = np.array([[list(kernel)]], dtype=object)
    return Task.of(
        image,
        weight,
        stride=(1,),
        dilation=(1,),
        padding=(len(kernel) // 2,),
        natural=True,
    )


@control
@pytest.mark.parametrize("sink", [Fraction(0), Fraction(1, 3)], ids=["no sink", "a sink"])
@pytest.mark.parametrize(
    "build", [theory.masked_heads, theory.finite_heads], ids=["masked", "finite"]
)
def test_natural_border_fails_where_taps_are_missed_and_only_there(
    build: Callable[[Matrix], theory.Layer], sink: Fraction
) -> None:
    task = line((2, 3, 4))
    layer = build(task.rows)
    right = (attend(task, *layer, [sink] * len(layer.weights)) == task.truth).all(axis=1)
    assert right.tolist() == [False, True, True, True, True, False]


@exact
def test_heads_of_independent_taps_have_their_natural_border_with_a_sink() -> None:
    # Equation (13): a head for each of two independent taps sees what is there, or what is not.
    image = np.array([[1, 4, 9, 16], [1, 8, 27, 64]], dtype=object)
    weight = np.array([[[1, 0, 0], [0, 0, 1]]], dtype=object)
    task = Task.of(image, weight, stride=(1,), dilation=(1,), padding=(1,), natural=True)
    kernel = task.rows
    assert rank(kernel) == len(kernel) == 2
    one_hot = theory.Layer([[Fraction(i == j) for j in range(2)] for i in range(2)], kernel)
    sinks = [Fraction(1, 10**6)] * 2
    missed = attend(task, *one_hot, sinks) - task.truth
    # Exactly right but for the sink's own scale, which V takes back: equation (3).
    assert not missed.any()


@exact
def test_parts_of_sobel_are_right_where_a_whole_column_is_cut_off() -> None:
    image = (np.arange(25, dtype=object).reshape(1, 5, 5) ** 2) % 11
    weight = np.array([[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]]], dtype=object)
    task = Task.of(image, weight, stride=(1, 1), dilation=(1, 1), padding=(1, 1), natural=True)
    signs = [row[0] > 0 for row in task.rows]
    parts = [
        [abs(row[0]) * (s is sign) for row, s in zip(task.rows, signs, strict=True)]
        for sign in (True, False)
    ]
    layer = theory.Layer(parts, [[Fraction(1)], [Fraction(-1)]])
    right = (attend(task, *layer, [Fraction(1)] * 2) == task.truth).all(axis=1).reshape(5, 5)
    assert right[1:-1].all()
    assert not right[0].any()
    assert not right[-1].any()


# Content ------------------------------------------------------------------------------------------

TILT = 1.0
"""ρ of equations (16) and (17)."""


def with_value_bias(x: float, z: float) -> float:
    bias, e = 18 / TILT, math.exp(TILT * x)
    return ((-3 * x + bias) + e * (-3 * z + bias)) / (2 + e) - 12 / TILT


def with_positions(x: float, z: float) -> float:
    e = math.exp(TILT * x)
    return (-2 * x + e * (-2 * z + 8 / TILT)) / (1 + e) - 4 / TILT


@control
@pytest.mark.parametrize("layer", [with_value_bias, with_positions])
def test_one_head_beats_the_bound_where_a_hypothesis_on_the_values_is_missing(
    layer: Callable[[float, float], float],
) -> None:
    # The floor (9) of the kernel (1, -1) under one head, for images of norm 1: 1 / (1 + 1/√2).
    kernel = [[Fraction(1)], [Fraction(-1)]]
    assert theory.least_masked(kernel) == 2
    floor = 1 / (1 + 1 / math.sqrt(2))
    images = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 64)]
    errors = []
    for bits in (4, 8, 12):
        scale = 2.0**-bits
        errors.append(max(abs(layer(scale * x, scale * z) / scale - (x - z)) for x, z in images))
    assert floor > errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 2**7  # linear in the scale: 2^8 times smaller, nearly


@control
@given(pixels=st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_one_head_of_discontinuous_weights_has_two_independent_taps(pixels: list[int]) -> None:
    p, q, s, w = map(Fraction, pixels)
    weights = p / (2 * (p + q)), w / (2 * (s + w))
    assert sum(weights) < 1  # the rest is the sink's
    assert weights[0] * 2 * (p + q) + weights[1] * 2 * (s + w) == p + w


# Filters that people use --------------------------------------------------------------------------

SOBEL_X, SOBEL_Y = (-1, 0, 1, -2, 0, 2, -1, 0, 1), (-1, -2, -1, 0, 0, 0, 1, 2, 1)
ONE = (0, 0, 0, 0, 1, 0, 0, 0, 0)
FILTERS: dict[str, tuple[list[tuple[int, ...]], int, str, int]] = {
    "identity": ([ONE], 1, "a", 1),
    "box": ([(1,) * 9], 1, "a", 1),
    "binomial blur": ([(1, 2, 1, 2, 4, 2, 1, 2, 1)], 1, "a", 1),
    "Sobel": ([SOBEL_X], 1, "c", 2),
    "Sobel pair": ([SOBEL_X, SOBEL_Y], 2, "c", 3),
    "Laplacian": ([(0, 1, 0, 1, -4, 1, 0, 1, 0)], 1, "c", 2),
    "Roberts pair": ([(1, 0, 0, -1), (0, 1, -1, 0)], 2, "c", 3),
    "identity and Sobel pair": ([ONE, SOBEL_X, SOBEL_Y], 3, "b", 4),
}


def taps_of(filters: Sequence[Sequence[int]]) -> Matrix:
    """The taps of filters of one channel, those that are 0 left out."""
    return [[Fraction(v) for v in tap] for tap in zip(*filters, strict=True) if any(tap)]


@exact
@pytest.mark.parametrize(("filters", "r", "case", "masked"), FILTERS.values(), ids=FILTERS)
def test_filter_has_its_count(
    filters: list[tuple[int, ...]], r: int, case: str, masked: int
) -> None:
    kernel = taps_of(filters)
    assert (rank(kernel), theory.case(kernel)) == (r, case)
    layer = theory.masked_heads(kernel)
    assert layer.kernel() == kernel
    assert len(layer.weights) == masked == theory.least_masked(kernel)
    assert theory.least_finite(kernel) == r + 1


# What the checks reject ---------------------------------------------------------------------------


@control
def test_rank_alone_claims_one_head_for_sobel() -> None:
    kernel = taps_of([SOBEL_X])
    assert rank(kernel) == 1
    for weights in product(range(3), repeat=len(kernel)):
        assert solved([[Fraction(w)] for w in weights], kernel) is None


@control
@given(data=st.data())
def test_one_head_dropped_is_not_the_convolution(data: st.DataObject) -> None:
    kernel = data.draw(kernels())
    for layer in (theory.masked_heads(kernel), theory.finite_heads(kernel)):
        wanted = [*kernel, [Fraction(0)] * len(kernel[0])][: len(layer.weights[0])]
        for h in range(len(layer.weights)):
            rest = [row for i, row in enumerate(layer.weights) if i != h]
            assert not rest or solved(list(zip(*rest, strict=True)), wanted) is None


@control
def test_flipped_dual_certificate_is_none() -> None:
    kernel = taps_of([SOBEL_X])
    _, y = alternative(kernel)
    flipped = [w if n else -w for n, w in enumerate(y)]
    assert min(flipped) < 0
    assert any(times(list(zip(*kernel, strict=True)), flipped))


@control
def test_kernel_of_the_border_case_is_not_that_of_r_heads() -> None:
    kernel = taps_of([ONE, SOBEL_X, SOBEL_Y])
    near = theory.approaching(kernel, Fraction(1, 2**20))
    layer = theory.masked_heads(near)
    assert len(layer.weights) == rank(kernel) == 3
    assert layer.kernel() == near != kernel


@control
def test_matrices_for_another_number_of_keys_fail() -> None:
    image = np.array([[2, -3, 5, 1, 4]], dtype=object)
    weight = np.array([[[3, -2, 7]]], dtype=object)
    task = Task.of(image, weight, stride=(1,), dilation=(1,), padding=(1,))
    layer = theory.finite_heads(task.rows)
    assert computes(task, layer)
    for keys in (6, 8):
        ratio = [
            (sum(row[:-1]) + (keys - 3) * row[-1]) / (sum(row[:-1]) + (7 - 3) * row[-1])
            for row in layer.weights
        ]
        moved = [[r * v for v in m] for r, m in zip(ratio, layer.matrices, strict=True)]
        assert not computes(task, layer._replace(matrices=moved))


@control
def test_tap_on_padding_alone_does_not_count() -> None:
    # On one padded pixel the middle tap is all: one head, though the kernel needs two.
    weight = np.array([[[-1, 1, 2]]], dtype=object)
    task = Task.of(np.array([[5]], dtype=object), weight, stride=(1,), dilation=(1,), padding=(1,))
    assert theory.least_masked(task.rows) == 2
    layer = theory.Layer([[Fraction(0), Fraction(1), Fraction(0)]], [[Fraction(1)]])
    assert computes(task, layer)


@control
def test_zero_kernel_needs_no_head() -> None:
    assert rank([]) == 0
    assert theory.least_finite([]) == 0


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
