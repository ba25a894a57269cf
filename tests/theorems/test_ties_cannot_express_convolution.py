"""A layer whose heads score some keys alike, content apart, errs on a convolution by at least half of what rearranging the tied keys can change in its output, and some function that knows the ties errs by no more.

T15, `docs/theorems/ties_cannot_express_convolution.md`. Layers are computed in exact fractions, with
rational functions for exponentials, except where they are torch's own.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flint import arb, fmpq, fmpq_mat
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import attention_from_conv, certify
from constructions.encodings.impossible import IMPOSSIBLE, Alibi
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.normalisers import Softmax
from tests.support import formal
from tests.support.helpers import filled, integers, refused
from tests.support.layout import page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from theory import attention_is_soft_padding_then_convolution as floats
from theory import ties_cannot_express_convolution as theory
from theory.saturated_softmax_is_one_hot import EXP_ROUNDOFFS
from theory.ties_cannot_express_convolution import (
    delay_weights,
    heads_needed,
    median_floor,
    shells,
    wrapped,
)
from theory.tools.theta import ball, precision

SLUG = "ties_cannot_express_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

HALF = Fraction(1, 2)
Image = tuple[int, ...]
Row = list[Fraction]
small = st.integers(-3, 3).map(Fraction)
nodes_below_one = st.fractions(Fraction(1, 50), Fraction(49, 50), max_denominator=50)


def distinct_nodes(least: int, most: int) -> st.SearchStrategy[list[Fraction]]:
    return st.lists(nodes_below_one, min_size=least, max_size=most, unique=True)


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Ties ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TiedLayer:
    """Equation (1) at one query: what a head makes of contents and classes, in fractions.

    Attributes:
        classes: the class of each key; the query's is its own.
        query: the query.
        weights: for each head, by (X_q, X_k, class), before normalisation.
        values: for each head, by class.
        bias: the constant.
    """

    classes: Sequence[int]
    query: int
    weights: Sequence[Mapping[tuple[int, int, int], Fraction]]
    values: Sequence[Sequence[Fraction]]
    bias: Fraction

    def __call__(self, image: Image) -> Fraction:
        total = self.bias
        for weights, values in zip(self.weights, self.values, strict=True):
            row = [
                weights[image[self.query], x, kind]
                for x, kind in zip(image, self.classes, strict=True)
            ]
            seen = zip(row, image, self.classes, strict=True)
            total += sum((w * x * values[kind] for w, x, kind in seen), Fraction(0)) / sum(row)
        return total


def by_class(classes: Sequence[int], kernel: Row) -> list[Row]:
    return [
        [w for w, other in zip(kernel, classes, strict=True) if other == kind]
        for kind in sorted(set(classes))
    ]


def distances(keys: int, query: int) -> list[int]:
    return [abs(k - query) for k in range(keys)]


def all_others(keys: int, query: int) -> list[int]:
    return [int(k != query) for k in range(keys)]


@st.composite
def tied_layers(draw: st.DrawFn) -> tuple[TiedLayer, Row]:
    """A layer with ties, none, those of ALiBi or any, and a kernel; random in all else."""
    keys = draw(st.integers(1, 7))
    query = draw(st.integers(0, keys - 1))
    style = draw(st.sampled_from(["none", "alibi", "any"]))
    if style == "any":
        classes = draw(st.lists(st.integers(1, 3), min_size=keys, max_size=keys))
        classes[query] = 0
    else:
        classes = (all_others if style == "none" else distances)(keys, query)
    kinds = range(max(classes) + 1)
    heads = draw(st.integers(0, 3))
    weight = st.integers(1, 99).map(Fraction)
    entries = list(product((0, 1), (0, 1), kinds))
    weights = [{entry: draw(weight) for entry in entries} for _ in range(heads)]
    values = [[draw(small) for _ in kinds] for _ in range(heads)]
    kernel = [draw(small) for _ in range(keys)]
    return TiedLayer(classes, query, weights, values, draw(small)), kernel


def confusing_images(classes: Sequence[int], kernel: Row) -> tuple[Image, Image]:
    """The two images of equation (4): π reverses the order of each class by weight."""
    moved = list(range(len(kernel)))
    for kind in set(classes):
        members = sorted((k for k, c in enumerate(classes) if c == kind), key=lambda k: kernel[k])
        for k, other in zip(members, reversed(members), strict=True):
            moved[k] = other
    image = tuple(int(kernel[k] > kernel[moved[k]]) for k in range(len(kernel)))
    return image, tuple(image[moved[k]] for k in range(len(kernel)))


def convolved(kernel: Row, image: Image) -> Fraction:
    return sum((w * x for w, x in zip(kernel, image, strict=True)), Fraction(0))


def error(layer: Callable[[Image], Fraction], kernel: Row, images: Sequence[Image]) -> Fraction:
    return max(abs(layer(image) - convolved(kernel, image)) for image in images)


@bounded
@given(case=tied_layers())
def test_no_layer_with_ties_errs_less_than_the_floor(case: tuple[TiedLayer, Row]) -> None:
    layer, kernel = case
    floor = median_floor(by_class(layer.classes, kernel))
    one, other = confusing_images(layer.classes, kernel)
    assert layer(one) == layer(other)  # (2)
    assert convolved(kernel, one) - convolved(kernel, other) == 2 * floor  # (4), (6)
    found = error(layer, kernel, [one, other])
    assert found >= floor
    record(ratio=float(floor / found) if found else 0.0, dtype="rational")


def floor_by_permutations(classes: Sequence[Sequence[Sequence[Fraction]]]) -> Fraction:
    """Equation (5) by its definition: weights[class][key][channel], every permutation tried."""
    total = Fraction(0)
    for keys in classes:
        moves = [
            sum(abs(a - b) for x, y in zip(keys, moved, strict=True) for a, b in zip(x, y))  # noqa: B905
            for moved in permutations(keys)
        ]
        total += Fraction(max(moves))
    return total / 4


@exact
@given(classes=st.lists(st.lists(small, min_size=1, max_size=5), max_size=3))
def test_floor_of_one_channel_is_that_of_the_medians(classes: list[Row]) -> None:
    assert floor_by_permutations([[[w] for w in row] for row in classes]) == median_floor(classes)


@exact
@given(
    window=st.lists(st.lists(small, min_size=2, max_size=2), min_size=1, max_size=2),
    spare=st.integers(0, 1),
)
def test_floor_without_positions_is_half_the_kernel_off_its_centre(
    window: list[Row], spare: int
) -> None:
    # Equation (8), two channels: as many keys outside the window as in it.
    outside = [[Fraction(0)] * 2] * (len(window) + spare)
    total = sum(abs(w) for tap in window for w in tap)
    assert floor_by_permutations([window + outside]) == total / 2


@exact
@given(
    kernel=st.lists(st.lists(small, min_size=2, max_size=2), min_size=5, max_size=5),
)
def test_floor_of_alibi_is_half_the_odd_part(kernel: list[Row]) -> None:
    # Equation (11), two channels.
    pairs = [[kernel[2]], [kernel[1], kernel[3]], [kernel[0], kernel[4]]]
    odd = sum(
        abs(a - b) / 2
        for tap, mirror in zip(kernel, kernel[::-1], strict=True)
        for a, b in zip(tap, mirror, strict=True)
    )
    assert floor_by_permutations(pairs) == odd / 2


UNIT_SHIFT = [Fraction(0), Fraction(0), Fraction(0), Fraction(1), Fraction(0)]  # at query 2 of 5


@exact
@pytest.mark.parametrize("ties", [all_others, distances], ids=["no positions", "ALiBi"])
def test_unit_shift_has_the_floor_of_a_constant(ties: Callable[[int, int], list[int]]) -> None:
    assert median_floor(by_class(ties(5, 2), UNIT_SHIFT)) == HALF
    every_image = list(product((0, 1), repeat=5))
    assert error(lambda _: HALF, UNIT_SHIFT, every_image) == HALF


@exact
@given(weights=st.lists(small, min_size=3, max_size=3))
def test_mean_and_centre_are_what_needs_no_positions(weights: Row) -> None:
    # Equation (6) is 0 exactly if all weights off the centre are equal.
    free = median_floor([[Fraction(5)], weights]) == 0
    assert free == (len(set(weights)) == 1)


@bounded
@given(
    values=st.lists(st.fractions(0, 1, max_denominator=9), min_size=2, max_size=6),
    beta=st.floats(0.1, 1e6),
)
def test_content_finds_the_querys_own_value(values: Row, beta: float) -> None:
    # Equation (10), at the first key, in balls.
    with precision(256):
        own = values[0]
        weights = [(-ball(beta) * ball((v - own) ** 2)).exp() for v in values]
        missed = sum((w * ball(v - own) for w, v in zip(weights, values, strict=True)), arb(0))
        missed = abs(missed / sum(weights, arb(0)))
        bound = (len(values) - 1) / (2 * arb(1).exp() * ball(beta)).sqrt()
        assert missed <= bound
        record(ratio=float((missed / bound).upper()), dtype="real")


# ALiBi on a torus ---------------------------------------------------------------------------------


def solved(matrix: list[Row], side: Row) -> Row | None:
    """The least solution of the normal equations if it solves every row, else None."""

    def flinted(rows: list[Row]) -> fmpq_mat:
        return fmpq_mat([[fmpq(v.numerator, v.denominator) for v in row] for row in rows])

    a, b = flinted(matrix), flinted([[v] for v in side])
    found = (a.transpose() * a).solve(a.transpose() * b)
    if a * found != b:
        return None
    return [Fraction(int(found[i, 0].p), int(found[i, 0].q)) for i in range(len(matrix[0]))]


@exact
@given(kernel=st.lists(small, min_size=5, max_size=5), nodes=distinct_nodes(3, 3))
def test_heads_of_alibi_attain_the_floor_at_every_query_of_a_torus(
    kernel: Row, nodes: list[Fraction]
) -> None:
    # Equations (7) and (13): kernel[δ], δ modulo 5, and distances 0, 1, 2.
    apart = [min(delta, 5 - delta) for delta in range(5)]
    median = [max(w for w, s in zip(kernel, apart, strict=True) if s == k) for k in range(3)]
    rows = [[x**s / sum(x**t for t in apart) for x in nodes] for s in range(3)]
    weights = solved(rows, median)
    assert weights is not None
    seen = [convolved(weights, rows[s]) for s in apart]  # type: ignore[arg-type]
    missed = [w - m for w, m in zip(kernel, seen, strict=True)]
    constant = sum(missed, Fraction(0)) / 2  # the middle of [-n, p]
    floor = median_floor([[kernel[0]], [kernel[1], kernel[4]], [kernel[2], kernel[3]]])
    for query in range(5):
        turned = [[row[(k - query) % 5] for k in range(5)] for row in (seen, kernel)]
        attained = error(
            lambda image, row=turned[0]: convolved(row, image) + constant,  # type: ignore[misc]
            turned[1],
            list(product((0, 1), repeat=5)),
        )
        assert attained == floor
    record(ratio=1.0 if floor else 0.0, dtype="rational")


# Causal ALiBi -------------------------------------------------------------------------------------


def causal_rows(nodes: Sequence[Fraction], weights: Sequence[Fraction], length: int) -> list[Row]:
    """The layer by definition: the weight of each lag at each query."""
    return [
        [
            sum(
                (
                    a * x**j / sum(x**i for i in range(q + 1))
                    for a, x in zip(weights, nodes, strict=True)
                ),
                Fraction(0),
            )
            for j in range(q + 1)
        ]
        for q in range(length)
    ]


def row_error(row: Row, wanted: Row) -> Fraction:
    """Equation (7): the error on images in [0, 1], the constant free."""
    return sum((abs(a - b) for a, b in zip(row, wanted, strict=True)), Fraction(0)) / 2


@exact
@given(nodes=distinct_nodes(1, 4), weights=st.lists(small, min_size=4, max_size=4))
def test_row_of_a_query_is_that_of_a_multiple_wrapped(nodes: Row, weights: Row) -> None:
    rows = causal_rows(nodes, weights[: len(nodes)], 12)
    for q, later in ((0, 11), (1, 3), (1, 11), (2, 5), (3, 11), (5, 11)):
        assert rows[q] == wrapped(rows[later], q + 1)


@bounded
@given(nodes=distinct_nodes(1, 5))
def test_divided_difference_delays_up_to_tau_at_every_query(nodes: Row) -> None:
    # Equation (17).
    delay, tau = len(nodes) - 1, math.prod(1 / (1 - x) for x in nodes) - 1
    for row in causal_rows(nodes, delay_weights(nodes), 8):
        wanted = wrapped([Fraction(0)] * delay + [Fraction(1)], len(row))
        rest = [a - b for a, b in zip(row, wanted, strict=True)]
        assert min(rest) >= 0
        assert sum(rest) == tau
        assert row_error(row, wanted) == tau / 2


@exact
def test_two_steep_heads_delay_by_one_to_any_accuracy() -> None:
    nodes = [Fraction(1, 10**9), Fraction(2, 10**9)]
    for row in causal_rows(nodes, delay_weights(nodes), 6):
        assert row_error(row, wrapped([Fraction(0), Fraction(1)], len(row))) < Fraction(2, 10**9)


@st.composite
def delays_and_heads(draw: st.DrawFn) -> tuple[int, Row, Row]:
    """A delay of s, fewer than s + 1 heads, and their weights, tame or as wild as (17)'s."""
    delay = draw(st.integers(1, 9))
    nodes = draw(distinct_nodes(1, min(delay, 4)))
    if draw(st.booleans()):
        return delay, nodes, [w / draw(st.integers(1, 3)) for w in delay_weights(nodes)]
    return delay, nodes, [draw(small) for _ in nodes]


def annihilator(nodes: Sequence[Fraction], steps: Sequence[int]) -> Row:
    """The coefficients of the product of x^step - node^step, lowest first."""
    coefficients = [Fraction(1)]
    for node, step in zip(nodes, steps, strict=True):
        raised = [Fraction(0)] * step + coefficients
        for i, c in enumerate(coefficients):
            raised[i] -= node**step * c
        coefficients = raised
    return coefficients


@bounded
@given(case=delays_and_heads(), later=st.integers(0, 4))
def test_fewer_heads_than_the_delay_needs_stay_above_the_floor(
    case: tuple[int, Row, Row], later: int
) -> None:
    # Equations (18) and (19).
    delay, nodes, weights = case
    heads = len(nodes)
    floor = HALF if 2**heads <= delay + 1 else HALF / math.comb(heads, heads // 2)
    steps = [2**i for i in range(heads)] if floor == HALF else [1] * heads
    dual = annihilator(nodes, steps)
    assert all(sum((y * x**j for j, y in enumerate(dual)), Fraction(0)) == 0 for x in nodes)
    assert dual[-1] == 1
    assert max(map(abs, dual)) <= HALF / floor

    row = causal_rows(nodes, weights, delay + 1 + later)[-1]
    found = row_error(row, [Fraction(int(j == delay)) for j in range(len(row))])
    assert found >= floor
    record(ratio=float(floor / found), dtype="rational")


@bounded
@given(
    length=st.sampled_from(sorted(theory.PATTERNS)),
    weights=st.lists(st.integers(-(10**9), 10**9), min_size=8, max_size=8),
    tame=st.integers(1, 10**9),
)
def test_standard_slopes_do_not_delay_whatever_their_weights(
    length: int, weights: list[int], tame: int
) -> None:
    # Equation (20), in balls.
    floor, _ = theory.standard_slope_floor(theory.PATTERNS[length])
    with precision(400):
        nodes, missed = theory.standard_nodes(), arb(0)
        for j in range(length):
            seen = sum((w * x**j for w, x in zip(weights, nodes, strict=True)), arb(0)) / tame
            missed += abs(int(j == 1) - seen) / 2
        assert missed > floor or missed.overlaps(floor)
        record(ratio=float((floor / missed).upper()), dtype="real")


def all_rows(nodes: Sequence[Fraction], length: int) -> list[Row]:
    """What each head alone has at each lag of each query."""
    units = [[Fraction(int(h == i)) for i in range(len(nodes))] for h in range(len(nodes))]
    tables = [[v for row in causal_rows(nodes, unit, length) for v in row] for unit in units]
    return [list(row) for row in zip(*tables, strict=True)]


def targets(kernel: Row, length: int) -> Row:
    return [w for q in range(length) for w in wrapped(kernel, q + 1)]


@exact
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_sum_of_totients_is_enough_heads_for_every_query_at_once(length: int) -> None:
    # Equation (22), a kernel without symmetry, and any slopes; one node is 1, a slope of 0.
    count = heads_needed(length)
    nodes = [Fraction(k, count) for k in range(1, count + 1)]
    kernel = [Fraction(w) for w in (2, -3, 5, 1, 7)]
    weights = solved(all_rows(nodes, length), targets(kernel, length))
    assert weights is not None
    found = causal_rows(nodes, weights, length)
    assert found == [wrapped(kernel, q + 1) for q in range(length)]


@bounded
@given(length=st.integers(2, 4), data=st.data())
def test_one_head_less_cannot_delay_by_one_at_every_query(length: int, data: st.DataObject) -> None:
    # Equation (23).
    count = heads_needed(length) - 1
    nodes = data.draw(distinct_nodes(count, count), label="nodes")
    delay = targets([Fraction(0), Fraction(1)], length)
    assert solved(all_rows(nodes, length), delay) is None
    sevenths = data.draw(nodes_below_one.filter(lambda x: x not in nodes), label="one more")
    assert solved(all_rows([*nodes, sevenths], length), delay) is not None


@exact
def test_replicate_padding_contradicts_the_wrapped_rows() -> None:
    # Equation (24): more heads do not help.
    nodes = [Fraction(k, 9) for k in range(1, 7)]
    replicated = [[1], [0, 1], [0, 0, 1], [0, 0, 1, 0]]
    side = [Fraction(w) for row in replicated for w in row]
    assert solved(all_rows(nodes, 4), side) is None


# Stock attention ----------------------------------------------------------------------------------

SLOPES = [2.0**-h for h in range(1, 9)]


def stock_row_pair(mask: torch.Tensor, lit: int, mirror: int, query: int) -> tuple[Row, Row]:
    """What each head of torch's attention sees at a query, one pixel lit, then its mirror image."""
    keys = mask.shape[-1]
    zero = torch.zeros(1, len(mask), keys, 1, dtype=mask.dtype)
    outputs = []
    for pixel in (lit, mirror):
        image = zero.clone()
        image[:, :, pixel] = 1
        seen = F.scaled_dot_product_attention(zero, zero, image, attn_mask=mask[None])
        outputs.append([Fraction(v) for v in numbers(seen)[0, :, query, 0].tolist()])
    return outputs[0], outputs[1]


@bounded
@given(
    reach=st.integers(1, 9),
    shift=st.integers(1, 9),
    mixing=st.lists(st.integers(-20, 20), min_size=8, max_size=8),
    constant=st.fractions(-1, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_stock_attention_with_alibi_does_not_shift(
    reach: int, shift: int, mixing: list[int], constant: Fraction, dtype: torch.dtype
) -> None:
    shift = min(shift, reach)
    position = torch.arange(2 * reach + 1, dtype=dtype)
    distance = (position[:, None] - position).abs()
    mask = -torch.tensor(SLOPES, dtype=dtype)[:, None, None] * distance
    lit, mirror = stock_row_pair(mask, reach + shift, reach - shift, reach)
    # Both weights are one exponential over one sum, at most 1/2; exponential and quotient round.
    unit = Fraction(torch.finfo(dtype).eps) / 2
    apart = (EXP_ROUNDOFFS + 4) * 2 * unit
    assert all(abs(a - b) <= apart for a, b in zip(lit, mirror, strict=True))
    one, other = (
        constant + sum((c * w for c, w in zip(mixing, row, strict=True)), Fraction(0))
        for row in (lit, mirror)
    )
    found = max(abs(one - 1), abs(other))
    floor = HALF - sum(map(abs, mixing)) * apart / 2
    assert found >= floor
    record(ratio=float(floor / found), dtype=dtype)


@bounded
@given(data=st.data())
def test_stock_attention_without_positions_does_not_shift(data: st.DataObject) -> None:
    # A query at a time: two unlit queries are then one and the same call, bit for bit.
    keys = data.draw(st.integers(3, 6), label="keys")
    attention = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64).eval()
    words = st.integers(-8, 8).map(lambda n: n / 4)
    with torch.no_grad():
        for parameter in attention.parameters():
            count = parameter.numel()
            drawn = data.draw(st.lists(words, min_size=count, max_size=count))
            parameter.copy_(torch.tensor(drawn).view_as(parameter))
    lit, unlit = torch.tensor([[1.0, 1, 0, 2], [0.0, 1, 2, 0]], dtype=torch.float64)
    tokens = unlit.repeat(1, keys, 1)
    tokens[0, 2] = lit
    before, far = (
        attention(tokens[:, q : q + 1], tokens, tokens)[0][0, 0, 0].item() for q in (1, 0)
    )
    assert before == far
    found = max(abs(Fraction(before) - 1), abs(Fraction(far)))
    assert found >= HALF
    record(ratio=float(HALF / found), dtype=torch.float64)


# The construction: 1 x 1 kernels ------------------------------------------------------------------

CONVOLUTIONS: Sequence[Callable[..., nn.Module]] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Sequence[Callable[..., nn.Module]] = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def one_pixel(rank: int, transposed: bool = False, **options: Any) -> Any:
    kinds = TRANSPOSED if transposed else CONVOLUTIONS
    return filled(kinds[rank - 1](2, 3, 1, **options))


@exact
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_saturated_alibi_is_the_1x1_convolution(
    rank: int, dtype: torch.dtype, evaluation: str, transposed: bool
) -> None:
    for stride in (1, 2):
        conv = one_pixel(rank, transposed, stride=stride).to(dtype)
        x = integers(2, 2, *(5, 4, 3)[:rank], dtype=dtype)
        layer = attention_from_conv(conv, encoding=Alibi(), evaluation=evaluation)
        assert torch.equal(layer(x), conv(x))
        # Few keys are near the runner-up, by (14): the gap of the layer's own format will do.
        assert layer.sharpness == Softmax().one_hot_gap(dtype) * (2 if layer.has_sink else 1)
        record(dtype=dtype)


@exact
@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("boundary", ["auto", "padded"])
@pytest.mark.parametrize("causal", [False, True], ids=["symmetric", "causal"])
def test_saturated_alibi_has_every_border(mode: str, boundary: str, causal: bool) -> None:
    conv = one_pixel(1, padding_mode=mode)
    x = integers(2, 2, 5)
    options: dict[str, Any] = {"encoding": Alibi(causal), "boundary": boundary}
    layer = attention_from_conv(conv, evaluation="dense", **options)
    natural = mode == "zeros" or (mode == "replicate" and not causal)
    assert layer.boundary == ("natural" if natural and boundary == "auto" else "padded")
    assert torch.equal(layer(x), conv(x))
    assert torch.equal(attention_from_conv(conv, **options)(x), conv(x))


@bounded
@given(rank=st.integers(1, 3), slope=st.floats(0.5, 20.0))
def test_slope_is_the_sharpness_and_the_leak_is_as_stated(rank: int, slope: float) -> None:
    # Equation (14).
    layer = attention_from_conv(
        one_pixel(rank).double(), encoding=Alibi(), sharpness=slope, evaluation="dense"
    )
    weights = layer.attention_weights((5, 4, 3)[:rank])[0]
    ratio = weights[0, 1] / weights[0, 0]  # the next key
    leak = (1 - weights.diagonal()).max().item()
    with precision(128):
        unit, x = arb(2) ** -53, (-ball(slope)).exp()
        # The score twice, its exponential (that of 0 is 1), both weights, and their quotient.
        parts = [(2 * ball(slope) * unit).expm1(), EXP_ROUNDOFFS * unit, 2 * unit, unit, unit]
        assert abs(ball(ratio.item()) - x) <= x * floats.compounded(parts)
        bound = 1 - ((1 - x) / (1 + x)) ** rank
        step = floats.softmax_error("float64", len(weights), steps=1)
        allowed = bound + step.weight + step.lost + unit  # and of the difference from 1
        assert ball(leak) <= allowed
        record(ratio=float((ball(leak) / allowed).upper()), dtype=torch.float64)


@exact
def test_scores_are_minus_the_distance_in_integers() -> None:
    delta = torch.tensor([[0.0, 0], [3, 0], [-2, 5], [1, -1]], dtype=torch.float64)
    features, names = Alibi().encode(delta, delta[:1], Lattice.box((9, 9)))
    assert (names @ features.T).tolist() == [[0, -3, -7, -2]]
    features, names = Alibi(causal=True).encode(delta[:, :1], delta[:1, :1], Lattice.box((9,)))
    assert (names @ features.T).tolist() == [[0, -math.inf, -2, -math.inf]]


@exact
def test_causal_alibi_sees_no_later_key() -> None:
    encoding = Alibi(causal=True)
    layer = attention_from_conv(one_pixel(1).double(), encoding=encoding, sharpness=math.log(2))
    assert layer.evaluation == "dense"  # a row beyond the edge may have no key
    weights = layer.attention_weights((5,))[0]
    assert torch.equal(weights, weights.tril())
    for row, wanted in zip(numbers(weights), causal_rows([HALF], [Fraction(1)], 5), strict=True):
        lags = [Fraction(v) for v in row[: len(wanted)][::-1]]
        errors = [abs(a / b - 1) for a, b in zip(lags, wanted, strict=True)]
        assert max(errors) <= Fraction(3 * EXP_ROUNDOFFS + 10, 2**53)  # exponentials, scores, ln 2


@bounded
@pytest.mark.parametrize("evaluation", ["dense", "factored"])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_alibi_of_finite_slope_errs_within_leak_and_rounding(
    evaluation: str, transposed: bool
) -> None:
    conv, x = one_pixel(2, transposed, stride=2), integers(1, 2, 4, 5)
    layer = attention_from_conv(conv, encoding=Alibi(), sharpness=9.0, evaluation=evaluation)
    certificate = certify(layer, conv, x)
    assert certificate.holds
    record(ratio=certificate.ratio, dtype=x.dtype)


@exact
@given(
    rank=st.integers(1, 3),
    shape=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    target=st.lists(st.integers(-3, 7), min_size=3, max_size=3),
)
def test_nearest_key_of_alibi_is_a_clamp_and_wins_by_one(
    rank: int, shape: list[int], target: list[int]
) -> None:
    grid = Lattice.box(tuple(shape[:rank]))
    there = torch.tensor(target[:rank])
    here = torch.zeros(1, rank, dtype=torch.float64)
    features, names = Alibi().encode((grid.positions() - there).double(), here, grid)
    scores = (names @ features.T)[0]
    clamp = [min(max(t, 0), n - 1) for t, n in zip(target, grid.shape, strict=False)]
    best = int(scores.argmax())
    assert grid.positions()[best].tolist() == clamp
    others = torch.cat([scores[:best], scores[best + 1 :]])
    gap = Alibi().gap(here, grid)
    assert all(scores[best] - other >= gap for other in others)


# What the checks reject ---------------------------------------------------------------------------


@control
def test_positions_that_break_the_ties_go_below_the_floor() -> None:
    # Weight 98/102 on the next key: its class is its own.
    weights = {
        (a, b, k): Fraction(98 if k == 3 else 1) for a, b, k in product((0, 1), (0, 1), range(5))
    }
    layer = TiedLayer([0, 1, 2, 3, 4], 2, [weights], [[Fraction(1)] * 5], Fraction(0))
    every_image = list(product((0, 1), repeat=5))
    assert error(layer, UNIT_SHIFT, every_image) == Fraction(4, 102) < HALF


@control
@pytest.mark.parametrize(
    ("ties", "kernel"),
    [(all_others, [1, 2, 4, -1, 2]), (distances, [1, 2, 4, -1, 2])],
    ids=["no positions", "ALiBi"],
)
def test_larger_floor_is_no_floor(ties: Callable[[int, int], list[int]], kernel: list[int]) -> None:
    # The kernel of medians and a constant err by the floor, so any larger constant is refuted.
    weights = [Fraction(w) for w in kernel]
    classes = ties(5, 2)
    middle = {
        kind: sorted(w for w, c in zip(weights, classes, strict=True) if c == kind)
        for kind in classes
    }
    seen = [middle[c][len(middle[c]) // 2] for c in classes]
    constant = sum((w - s for w, s in zip(weights, seen, strict=True)), Fraction(0)) / 2
    found = error(
        lambda image: convolved(seen, image) + constant, weights, list(product((0, 1), repeat=5))
    )
    floor = median_floor(by_class(classes, weights))
    assert 0 < floor == found


@control
def test_mean_of_a_class_errs_more_than_its_median() -> None:
    weights = [Fraction(4), Fraction(0), Fraction(0)]
    mean = [Fraction(4, 3)] * 3
    assert row_error(weights, mean) > median_floor([weights]) == 2


@control
def test_pairs_of_alibi_are_not_enough_ties_in_two_dimensions() -> None:
    # With the odd part alone the blur would come out.
    blur = {
        (i - 1, j - 1): Fraction((1, 2, 1)[i] * (1, 2, 1)[j], 16)
        for i in range(3)
        for j in range(3)
    }
    spheres: list[Row] = shells((5, 5), (2, 2), blur)  # type: ignore[arg-type]
    assert sorted(map(len, spheres)) == [1, 4, 4, 8, 8]  # distances 0, 1, 4, 2, 3
    assert median_floor(spheres) == Fraction(1, 8)
    assert all(blur[i, j] == blur[-i, -j] for i, j in blur)


@control
def test_off_centre_depth_breaks_the_ties_of_alibi() -> None:
    # At query 1 of 4 the keys 0 and 2 tie in one layer; their own neighbours differ.
    def layer(image: Row) -> Row:
        rows = [[HALF ** abs(k - q) for k in range(4)] for q in range(4)]
        return [convolved(row, image) / sum(row) for row in rows]  # type: ignore[arg-type]

    first, mirrored = ([Fraction(int(k == lit)) for k in range(4)] for lit in (0, 2))
    assert layer(first)[1] == layer(mirrored)[1]
    assert layer(layer(first))[1] != layer(layer(mirrored))[1]


@control
@pytest.mark.parametrize("wrong", ["00-0+0--0++0-0+-", "+00+0--0++0-0+00"], ids=["sign", "moved"])
def test_wrong_certificate_for_the_standard_slopes_is_rejected(wrong: str) -> None:
    assert all(
        ball(Fraction(383, 1000)) < v < ball(Fraction(384, 1000))
        for v in theory.standard_slope_floor(theory.PATTERNS[16])
    )
    try:
        dual, primal = theory.standard_slope_floor(wrong)
    except (ValueError, ZeroDivisionError):
        return
    assert not dual.overlaps(primal)


@control
def test_standard_slopes_with_a_head_of_another_slope_delay_better() -> None:
    # (20) is about those slopes alone: two steep heads have any accuracy, by (17).
    nodes = [Fraction(1, 1000), Fraction(2, 1000)]
    row = causal_rows(nodes, delay_weights(nodes), 19)[-1]
    lost = 1 / ((1 - nodes[0]) * (1 - nodes[1])) - 1  # τ
    assert row_error(row, wrapped([Fraction(0), Fraction(1)], 19)) <= lost / 2
    assert lost / 2 < Fraction(495, 1000)  # which eight standard slopes do not reach at 18 tokens


@control
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_alibi_refuses_every_other_shift(rank: int) -> None:
    kernel: Any = (1,) * (rank - 1) + (2,)
    conv = filled(CONVOLUTIONS[rank - 1](1, 1, kernel))
    with refused(ValueError, "encoding", "Alibi", SLUG):
        attention_from_conv(conv, encoding=Alibi())  # type: ignore[call-overload]
    with refused(ValueError, "encoding", "causal=True", SLUG if rank == 1 else "one dimension"):
        attention_from_conv(conv, encoding=Alibi(causal=True))  # type: ignore[call-overload]


@control
def test_alibi_refuses_padding_which_is_a_shift() -> None:
    with refused(ValueError, "encoding", "mirror image", "without padding"):
        attention_from_conv(one_pixel(2, padding=1), encoding=Alibi())


@control
def test_alibi_refuses_a_mask_in_two_dimensions() -> None:
    with refused(ValueError, "encoding", "2 dimensions", "one dimension"):
        attention_from_conv(one_pixel(2), encoding=Alibi(causal=True))


@control
def test_alibi_refuses_a_mask_that_is_no_bool() -> None:
    with refused(TypeError, "causal", "'yes'", "True or False"):
        Alibi(causal="yes")  # type: ignore[arg-type]


@control
def test_attention_without_positions_is_refused_with_the_reason() -> None:
    assert page_of(SLUG, ROOT).is_file()
    with pytest.raises(ValueError, match=SLUG):
        attention_from_conv(one_pixel(1), encoding="none")
    assert all(f"`{SLUG}`" in reason for reason in IMPOSSIBLE.values())


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
