"""If the weights of every head are inner products of m features, N_h heads shift an image only if N_h m is at least the number of pixels that the shift moves, and with fewer no layer errs less than a constant does.

T15, `docs/theorems/low_rank_attention_cannot_express_convolution.md`. Everything is in exact
fractions, except linear attention in torch, whose rounding is bounded.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flint import fmpq_poly
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from constructions import attention_from_conv
from constructions.normalisers import IMPOSSIBLE_NORMALISERS
from tests.support import formal
from tests.support.helpers import filled, integers
from tests.support.layout import page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from theory import low_rank_attention_cannot_express_convolution as theory
from theory.low_rank_attention_cannot_express_convolution import (
    Matrix,
    convolution_matrix,
    invisible_image,
    normalised_heads,
    rank,
    shift_matrix,
    shift_rank,
)

SLUG = "low_rank_attention_cannot_express_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

HALF = Fraction(1, 2)
Row = list[Fraction]
small = st.integers(-3, 3).map(Fraction)
positive = st.integers(1, 9).map(Fraction)


def applied(matrix: Matrix, image: Row) -> Row:
    return [sum((w * x for w, x in zip(row, image, strict=True)), Fraction(0)) for row in matrix]


def multiplied(left: Matrix, right: Matrix) -> Matrix:
    columns = [list(column) for column in zip(*right, strict=True)]
    return [applied(columns, row) for row in left]


def mixed(heads: Sequence[Matrix], weights: Sequence[Fraction]) -> Matrix:
    """Σ c_h A^h."""
    return [
        [
            sum((c * v for c, v in zip(weights, entries, strict=True)), Fraction(0))
            for entries in cells
        ]
        for cells in (zip(*rows, strict=True) for rows in zip(*heads, strict=True))
    ]


def matrices(
    draw: st.DrawFn, rows: int, columns: int, entries: st.SearchStrategy[Fraction]
) -> Matrix:
    flat = draw(st.lists(entries, min_size=rows * columns, max_size=rows * columns))
    return [flat[i * columns : (i + 1) * columns] for i in range(rows)]


@st.composite
def low_rank_heads(
    draw: st.DrawFn, queries: int, keys: int, heads: int, features: int, normalised: bool
) -> list[Matrix]:
    """Heads of m features; normalised ones have positive features, so that rows sum to one."""
    found = []
    for _ in range(heads):
        entries = positive if normalised else small
        left = matrices(draw, queries, features, entries)
        right = matrices(draw, features, keys, entries)
        matrix = multiplied(left, right)
        found.append([[v / sum(row) for v in row] if normalised else row for row in matrix])
    return found


def two_images(unseen: Row) -> tuple[Row, Row]:
    """Grey plus and minus half of an image, the pair of equation (6)."""
    return [HALF + z / 2 for z in unseen], [HALF - z / 2 for z in unseen]


def error(layer: Callable[[Row], Row], target: Matrix, images: Sequence[Row]) -> Fraction:
    return max(
        abs(a - b)
        for image in images
        for a, b in zip(layer(image), applied(target, image), strict=True)
    )


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Shifts -------------------------------------------------------------------------------------------


@bounded
@given(
    shape=st.sampled_from([(5,), (6,), (2, 3), (2, 2, 2)]),
    heads=st.integers(1, 2),
    features=st.integers(1, 3),
    normalised=st.booleans(),
    torus=st.booleans(),
    data=st.data(),
)
def test_no_layer_of_smaller_rank_errs_less_than_a_constant(
    shape: tuple[int, ...],
    heads: int,
    features: int,
    normalised: bool,
    torus: bool,
    data: st.DataObject,
) -> None:
    keys = math.prod(shape)
    shift = [data.draw(st.integers(1 - n, n - 1)) for n in shape]
    found = data.draw(low_rank_heads(keys, keys, heads, features, normalised), label="heads")
    layer = mixed(found, data.draw(st.lists(small, min_size=heads, max_size=heads)))
    constant = data.draw(small) / 3

    most = heads * (features - 1) + 1 if normalised else heads * features
    assert rank(layer) <= most  # (2), (3)
    target = shift_matrix(shift, shape, torus=torus)
    moved = [k for k in range(keys) if any(row[k] for row in target)]
    assert len(moved) == rank(target) == (keys if torus else shift_rank(shift, shape))  # (4)
    unseen = invisible_image(layer, moved)
    if most < len(moved):
        assert unseen is not None
    if unseen is None:
        return
    assert not any(applied(layer, unseen))  # (5)
    assert max(map(abs, unseen)) == 1
    images = two_images(unseen)
    assert all(0 <= x <= 1 for image in images for x in image)
    measured = error(lambda image: [y + constant for y in applied(layer, image)], target, images)
    assert measured >= HALF  # (6)
    record(ratio=float(HALF / measured), dtype="rational")
    norms = [sum(v * v for v in image) for image in (applied(target, unseen), unseen)]
    assert norms[0] == norms[1]  # (7)


@bounded
@given(size=st.integers(2, 6), features=st.integers(1, 5), data=st.data())
def test_missing_ranks_cost_one_each_in_squared_frobenius_norm(
    size: int, features: int, data: st.DataObject
) -> None:
    # Equation (7), rows of the shift kept or anything else.
    features = min(features, size)
    if data.draw(st.booleans(), label="rows kept"):
        kept = data.draw(st.integers(0, features))
        layer = [
            row if q < kept else [Fraction(0)] * size
            for q, row in enumerate(shift_matrix((1,), (size,)))
        ]
    else:
        (layer,) = data.draw(low_rank_heads(size, size, 1, features, False))
        layer = [[v / 9 for v in row] for row in layer]
    target = shift_matrix((1,), (size,))
    squares = sum(
        (a - b) ** 2 for x, y in zip(layer, target, strict=True) for a, b in zip(x, y, strict=True)
    )
    missing = max(size - 1 - rank(layer), 0)
    assert squares >= missing
    record(ratio=float(missing / squares) if squares else 0.0, dtype="rational")


@exact
@pytest.mark.parametrize(("heads", "features"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_as_many_ranks_as_moved_pixels_shift_exactly(heads: int, features: int) -> None:
    target = shift_matrix((1, 0), (3, 3))
    moved = [q for q, row in enumerate(target) if any(row)]
    assert len(moved) == heads * features == shift_rank((1, 0), (3, 3))
    own = [moved[h * features : (h + 1) * features] for h in range(heads)]
    layers = [
        [row if q in mine else [Fraction(0)] * 9 for q, row in enumerate(target)] for mine in own
    ]
    assert [rank(layer) for layer in layers] == [features] * heads
    assert mixed(layers, [Fraction(1)] * heads) == target


@exact
@pytest.mark.parametrize(("heads", "features"), [(1, 7), (2, 4), (3, 3), (6, 2)])
@pytest.mark.parametrize("shift", [0, 1, -2])
def test_rows_that_sum_to_one_need_one_rank_for_all_heads_together(
    heads: int, features: int, shift: int
) -> None:
    # Equation (8), on a torus.
    target = shift_matrix((shift,), (7,), torus=True)
    layers = [multiplied(head, target) for head in normalised_heads(7, heads, features)]
    assert [rank(layer) for layer in layers] == [features] * heads
    assert all(sum(row) == 1 for layer in layers for row in layer)
    assert mixed(layers, [Fraction(1, heads)] * heads) == target


@exact
@given(
    shape=st.sampled_from([(2,), (5,), (2, 3), (2, 2, 2)]),
    heads=st.integers(1, 3),
    constant=small,
    data=st.data(),
)
def test_rows_that_sum_to_one_have_the_floor_on_a_box_whatever_their_rank(
    shape: tuple[int, ...], heads: int, constant: Fraction, data: st.DataObject
) -> None:
    # After equation (8): black and white are enough, for any matrices of any rank.
    keys = math.prod(shape)
    shift = [data.draw(st.integers(1 - n, n - 1)) for n in shape]
    assume(any(shift))
    layers = []
    for _ in range(heads):
        flat = data.draw(st.lists(small, min_size=keys**2, max_size=keys**2))
        rows = [flat[i * keys : (i + 1) * keys] for i in range(keys)]
        rows = [[*row[1:], 1 - sum(row[1:], Fraction(0))] for row in rows]
        assert all(sum(row) == 1 for row in rows)
        layers.append(rows)
    layer = mixed(layers, data.draw(st.lists(small, min_size=heads, max_size=heads)))
    black_and_white = [[Fraction(level)] * keys for level in (0, 1)]
    target = shift_matrix(shift, shape)
    measured = error(
        lambda image: [y + constant for y in applied(layer, image)], target, black_and_white
    )
    assert measured >= HALF


@exact
@given(size=st.integers(1, 7), heads=st.integers(1, 4), features=st.integers(1, 7))
def test_more_than_the_counts_suffices_too(size: int, heads: int, features: int) -> None:
    # N_h m >= N, and N_h (m - 1) + 1 >= T: heads with room are made of those without.
    target = shift_matrix((1,), (size,), torus=True)
    if heads * features >= size:
        own = [range(h * features, (h + 1) * features) for h in range(heads)]
        layers = [
            [row if q in mine else [Fraction(0)] * size for q, row in enumerate(target)]
            for mine in own
        ]
        assert max(rank(layer) for layer in layers) <= features
        assert mixed(layers, [Fraction(1)] * heads) == target
    full = heads * (features - 1) + 1
    if full >= size:  # the last pixels of the larger torus left out, their weights on pixel 0
        layers = []
        for head in normalised_heads(full, heads, features):
            kept = [row[:size] for row in head[:size]]
            for row, whole in zip(kept, head, strict=False):
                row[0] += sum(whole[size:], Fraction(0))
            layers.append(multiplied(kept, target))
        assert max(rank(layer) for layer in layers) <= features
        assert all(sum(row) == 1 for layer in layers for row in layer)
        assert mixed(layers, [Fraction(1, heads)] * heads) == target


# Other kernels ------------------------------------------------------------------------------------


@st.composite
def padded_kernels(draw: st.DrawFn) -> tuple[dict[tuple[int, ...], Fraction], list[int], list[Any]]:
    """A kernel, a box that holds all taps of all queries, and the queries, with any stride."""
    axes = draw(st.integers(1, 2))
    taps = [draw(st.integers(1, 3)) for _ in range(axes)]
    strides = [draw(st.integers(1, 2)) for _ in range(axes)]
    counts = [draw(st.integers(1, 3)) for _ in range(axes)]
    shape = [s * (c - 1) + k for s, c, k in zip(strides, counts, taps, strict=True)]
    kernel = {offset: draw(small) for offset in product(*map(range, taps))}
    queries = [
        tuple(s * i for s, i in zip(strides, at, strict=True))
        for at in product(*map(range, counts))
    ]
    return kernel, shape, queries


@exact
@given(case=padded_kernels())
def test_every_kernel_with_padded_keys_has_the_rank_of_its_queries(case: Any) -> None:
    # Equation (9).
    kernel, shape, queries = case
    assume(any(kernel.values()))
    assert rank(convolution_matrix(kernel, shape, queries=queries)) == len(queries)


@bounded
@given(case=padded_kernels(), data=st.data())
def test_dominant_tap_has_its_floor(case: Any, data: st.DataObject) -> None:
    # Equation (10).
    kernel, shape, queries = case
    assume(len(queries) > 1)
    dominant = data.draw(st.sampled_from(sorted(kernel)), label="tap")
    kernel = kernel | {dominant: kernel[dominant] + data.draw(st.integers(5, 30))}
    rest = sum(abs(w) for offset, w in kernel.items() if offset != dominant)
    keys = list(product(*map(range, shape)))
    features = data.draw(st.integers(1, len(queries) - 1))
    (layer,) = data.draw(low_rank_heads(len(queries), len(keys), 1, features, False))
    own = [
        keys.index(tuple(q + o for q, o in zip(query, dominant, strict=True))) for query in queries
    ]
    unseen = invisible_image(layer, own)
    assert unseen is not None
    target = convolution_matrix(kernel, shape, queries=queries)
    measured = error(lambda image: applied(layer, image), target, two_images(unseen))
    floor = (abs(kernel[dominant]) - rest) / 2
    assert measured >= floor
    record(ratio=max(float(floor / measured), 0.0), dtype="rational")


@exact
@given(kernel=st.lists(small, min_size=1, max_size=8))
def test_rank_on_a_circle_counts_the_frequencies_that_pass(kernel: Row) -> None:
    # Equation (11): a frequency is lost where W has a root of unity, a common root with t^n - 1.
    n = len(kernel)
    taps: dict[tuple[int, ...], Fraction] = {(j,): w for j, w in enumerate(kernel)}
    lost = fmpq_poly([int(w) for w in kernel]).gcd(fmpq_poly([-1, *[0] * (n - 1), 1]))
    assert rank(convolution_matrix(taps, (n,), torus=True)) == n - lost.degree()


@exact
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("shape", [(5,), (3, 4)], ids=str)
def test_matrix_of_a_kernel_is_that_of_torch(padding_mode: Any, shape: tuple[int, ...]) -> None:
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}
    conv = filled(
        kinds[len(shape)](1, 1, 3, padding=1, padding_mode=padding_mode, bias=False).double()
    )
    keys = math.prod(shape)
    with torch.no_grad():
        columns = conv(torch.eye(keys, dtype=torch.float64).reshape(keys, 1, *shape))
    taps = product((-1, 0, 1), repeat=len(shape))
    weights = numbers(conv.weight).ravel().tolist()
    kernel = {tap: Fraction(w) for tap, w in zip(taps, weights, strict=True)}
    found = convolution_matrix(kernel, shape, torus=padding_mode == "circular")
    assert found == [
        [Fraction(v) for v in row] for row in numbers(columns).reshape(keys, keys).T.tolist()
    ]


@bounded
@given(delay=st.integers(1, 4), length=st.integers(2, 8), data=st.data())
def test_causal_mask_does_not_save_a_long_delay(
    delay: int, length: int, data: st.DataObject
) -> None:
    # Equation (12).
    size = min(delay, length - delay)
    assume(size >= 2)
    features = data.draw(st.integers(1, size - 1))
    (full,) = data.draw(low_rank_heads(length, length, 1, features, False))
    masked = [
        [v if k <= q else Fraction(0) for k, v in enumerate(row)] for q, row in enumerate(full)
    ]
    block = range(delay, delay + size)
    unseen = invisible_image([masked[q] for q in block], range(size))
    assert unseen is not None
    target = shift_matrix((-delay,), (length,))
    measured = error(lambda image: applied(masked, image), target, two_images(unseen))
    assert measured >= HALF
    record(ratio=float(HALF / measured), dtype="rational")


# Content ------------------------------------------------------------------------------------------


@bounded
@given(
    size=st.integers(3, 5),
    features=st.integers(1, 2),
    inverse=st.sampled_from([1, 10, 1000, 10**9]),
    data=st.data(),
)
def test_content_does_not_lower_the_floor_of_dark_images(
    size: int, features: int, inverse: int, data: st.DataObject
) -> None:
    # Equation (13): features that are affine in the pixel, weights that are rational.
    draw = data.draw
    features = min(features, size - 1)
    offsets, slopes = (
        [[[draw(positive) for _ in range(features)] for _ in range(size)] for _ in range(2)]
        for _ in range(2)
    )

    def weights(image: Row) -> Matrix:
        left, right = (
            [
                [a + b * x for a, b in zip(p, s, strict=True)]
                for p, s, x in zip(offsets[side], slopes[side], image, strict=True)
            ]
            for side in range(2)
        )
        matrix = multiplied(left, [list(column) for column in zip(*right, strict=True)])
        return [[v / sum(row) for v in row] for row in matrix]

    dark = weights([Fraction(0)] * size)
    unseen = invisible_image(dark, range(size))
    assert unseen is not None
    images = [[x / inverse for x in image] for image in two_images(unseen)]
    omega = max(
        sum(abs(a - b) for a, b in zip(row, other, strict=True))
        for image in images
        for row, other in zip(weights(image), dark, strict=True)
    )
    measured = error(
        lambda image: applied(weights(image), image),
        shift_matrix((1,), (size,), torus=True),
        images,
    )
    floor = (HALF - omega) / inverse
    assert measured >= floor
    record(ratio=max(float(floor / measured), 0.0), dtype="rational")


@bounded
@given(
    size=st.integers(3, 6),
    features=st.integers(1, 2),
    mixing=st.lists(st.integers(-4, 4), min_size=2, max_size=2),
    data=st.data(),
)
def test_linear_attention_in_torch_does_not_shift(
    size: int, features: int, mixing: list[int], data: st.DataObject
) -> None:
    # Features elu + 1 of embedded positions; what torch computes is compared with the exact shift.
    assume(2 * (features - 1) + 1 < size)
    words = st.lists(
        st.integers(-16, 16), min_size=4 * size * features, max_size=4 * size * features
    )
    embedded = torch.tensor(data.draw(words), dtype=torch.float64).reshape(2, 2, size, features) / 8
    phi, psi = F.elu(embedded) + 1
    heads = []
    for h in range(2):
        left, right = (
            [[Fraction(v) for v in row] for row in numbers(f[h]).tolist()] for f in (phi, psi)
        )
        matrix = multiplied(left, [list(column) for column in zip(*right, strict=True)])
        heads.append([[v / sum(row) for v in row] for row in matrix])
    layer = mixed(heads, [Fraction(c) for c in mixing])
    unseen = invisible_image(layer, range(size))
    assert unseen is not None
    outputs, wanted = [], []
    for image in two_images(unseen):
        x = torch.tensor([float(v) for v in image], dtype=torch.float64)
        seen = (phi @ (psi.mT @ x)[..., None])[..., 0] / (phi @ psi.sum(1)[..., None])[..., 0]
        rows = numbers(seen).tolist()
        outputs.append(
            [
                sum(c * Fraction(v) for c, v in zip(mixing, cells, strict=True))
                for cells in zip(*rows, strict=True)
            ]
        )
        wanted.append(applied(shift_matrix((1,), (size,), torus=True), image))
    measured = max(
        abs(a - b) for x, y in zip(outputs, wanted, strict=True) for a, b in zip(x, y, strict=True)
    )
    # All terms are positive and a head's output is at most 1: relative errors of sums of products.
    unit = Fraction(1, 2**53)
    rounding = (
        sum(map(abs, mixing)) * (2 * size + 2 * features + 4) * unit * (1 + Fraction(1, 2**40))
    )
    floor = HALF - rounding
    assert measured >= floor
    record(ratio=float(floor / measured), dtype=torch.float64)


# Softmax ------------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("shift", [-1, 0, 2])
def test_softmax_of_two_features_has_full_rank(size: int, shift: int) -> None:
    # Equations (14) and (15), to base 2.
    rows = [[Fraction(1, 2 ** ((k - q - shift) ** 2)) for k in range(size)] for q in range(size)]
    assert rank([[v / sum(row) for v in row] for row in rows]) == size


@exact
def test_saturated_layer_of_the_paper_has_the_rank_of_its_shifts() -> None:
    layer = attention_from_conv(nn.Conv2d(1, 1, 2), evaluation="dense")
    for head in numbers(layer.attention_weights((3, 4))):
        assert rank([[Fraction(v) for v in row] for row in head.tolist()]) == 6  # outputs


# What the checks reject ---------------------------------------------------------------------------


@control
def test_enough_ranks_leave_no_image_unseen() -> None:
    target = shift_matrix((1,), (5,))
    assert invisible_image(target, [1, 2, 3, 4]) is None
    less = [row if q else [Fraction(0)] * 5 for q, row in enumerate(target)]
    assert invisible_image(less, [1, 2, 3, 4]) == [Fraction(int(k == 1)) for k in range(5)]


@control
def test_floor_beyond_one_half_is_refuted_by_a_constant() -> None:
    target = shift_matrix((1,), (4,), torus=True)
    corners = [[Fraction(x) for x in image] for image in product((0, 1), repeat=4)]
    assert error(lambda image: [HALF] * 4, target, corners) == HALF


@control
def test_count_that_forgets_the_shared_row_sum_is_rejected() -> None:
    # Two heads of three features would make six pixels; rows that sum to one make five.
    left, right = (
        [
            [
                [Fraction((3 * i + 5 * j + 7 * h) % 11 + 1) ** (j + 1) for j in range(3)]
                for i in range(6)
            ]
            for h in side
        ]
        for side in ((0, 1), (2, 3))
    )
    heads = [
        multiplied(p, [list(c) for c in zip(*r, strict=True)])
        for p, r in zip(left, right, strict=True)
    ]
    assert rank(mixed(heads, [Fraction(1), Fraction(2)])) == 6
    normalised = [[[v / sum(row) for v in row] for row in head] for head in heads]
    layer = mixed(normalised, [Fraction(1), Fraction(2)])
    assert rank(layer) == 5 < 2 * 3 == rank(shift_matrix((1,), (6,), torus=True))
    with pytest.raises(ValueError, match="do not fit"):
        normalised_heads(6, 2, 3)


@control
@pytest.mark.parametrize(
    "wrong",
    [
        lambda s, n: math.prod(n),
        lambda s, n: math.prod(n) - sum(map(abs, s)),
        lambda s, n: n[0] - abs(s[0]),
    ],
    ids=["all pixels", "pixels less steps", "first axis alone"],
)
def test_wrong_rank_of_a_shift_is_rejected(wrong: Callable[..., int]) -> None:
    shift, shape = (1, -2), (3, 4)
    assert rank(shift_matrix(shift, shape)) == shift_rank(shift, shape) == 4 != wrong(shift, shape)


@control
def test_kernel_that_meets_zeros_beyond_the_edge_may_have_less_rank() -> None:
    # (9) is about padded keys: on the box itself the shift loses a pixel, and so does this.
    assert rank(shift_matrix((1,), (5,))) == 4
    difference: dict[tuple[int, ...], Fraction] = {(-1,): Fraction(-1), (1,): Fraction(1)}
    assert rank(convolution_matrix(difference, (5,))) == 4
    assert rank(convolution_matrix(difference, (6,))) == 6


@control
def test_low_rank_of_the_scores_is_no_low_rank_of_the_weights() -> None:
    scores = [[Fraction(2 * q * k - k * k) for k in range(6)] for q in range(6)]
    weights = [[Fraction(2) ** int(v) for v in row] for row in scores]
    assert rank(scores) == 2
    assert rank(weights) == 6


@control
def test_every_attention_of_low_rank_that_has_a_name_is_known() -> None:
    assert {*IMPOSSIBLE_NORMALISERS} == {"linear", "kernel", "low_rank"}
    assert all(SLUG in reason for reason in IMPOSSIBLE_NORMALISERS.values())


@control
@pytest.mark.parametrize("name", ["linear", "kernel", "low_rank"])
def test_low_rank_normalisers_are_refused_with_the_reason(name: str) -> None:
    assert page_of(SLUG, ROOT).is_file()
    conv = nn.Conv1d(1, 1, 2)
    with pytest.raises(ValueError, match=SLUG):
        attention_from_conv(conv, normaliser=name)
    assert attention_from_conv(conv)(integers(1, 1, 4)).shape == (1, 1, 3)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
