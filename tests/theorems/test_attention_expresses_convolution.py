"""A multi-head self-attention layer with quadratic scores and one head for every tap of the kernel expresses any convolution to any accuracy, in every dimension.

T3, `docs/theorems/attention_expresses_convolution.md`. First the paper's layer in ball arithmetic,
where nothing is rounded and every comparison is proven; then the layer of torch.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from constructions import certify
from constructions.certificate import leak
from constructions.formats import FORMATS
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import formal, heads
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import (
    Case,
    Geometry,
    geometries,
    integer_cases,
    real_cases,
    sharpnesses,
)
from theory import attention_expresses_convolution as theory
from theory.tools.theta import ball, box_leak, leak_enclosure, precision, theta_minus_one

SLUG = "attention_expresses_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
bounded = pytest.mark.evidence(SLUG, "property")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
both_formats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

Point = tuple[int, ...]
Row = list[int]
BITS = 400


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# The paper's layer, in balls ----------------------------------------------------------------------


@dataclass(frozen=True)
class Integers:
    """A convolution of integers at one query, the origin: every tap's target is a key.

    Attributes:
        image: The pixels on a box of keys, the query somewhere in Z^d.
        taps: The matrix W_δ, D_in x D_out, of each offset.
    """

    image: Mapping[Point, Row]
    taps: Mapping[Point, list[Row]]

    @property
    def dimension(self) -> int:
        return len(next(iter(self.taps)))

    def convolution(self) -> list[int]:
        """The sum over offsets of X_δ W_δ."""
        outputs = range(len(next(iter(self.taps.values()))[0]))
        return [
            sum(
                pixel * weights[o]
                for at, matrix in self.taps.items()
                for pixel, weights in zip(self.image[at], matrix, strict=True)
            )
            for o in outputs
        ]

    def variation(self) -> list[int]:
        """For every output channel the sum over δ and c of |W_δ[c, o]| (max X_c - min X_c)."""
        channels = list(zip(*self.image.values(), strict=True))
        ranges = [max(channel) - min(channel) for channel in channels]
        outputs = range(len(next(iter(self.taps.values()))[0]))
        return [
            sum(
                abs(weights[o]) * spread
                for matrix in self.taps.values()
                for spread, weights in zip(ranges, matrix, strict=True)
            )
            for o in outputs
        ]


@st.composite
def integers(draw: st.DrawFn) -> Integers:
    """Images of up to four keys a side, taps at any of them, in one to three dimensions."""
    dimension = draw(st.integers(1, 3))
    sides = [draw(st.integers(1, {1: 6, 2: 4, 3: 3}[dimension])) for _ in range(dimension)]
    origin = [draw(st.integers(-3, 3)) for _ in range(dimension)]
    keys = [tuple(i + o for i, o in zip(k, origin, strict=True)) for k in np.ndindex(*sides)]
    d_in, d_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    offsets = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=5, unique=True))
    rows = st.lists(st.integers(-9, 9), min_size=d_in, max_size=d_in)
    matrices = st.lists(
        st.lists(st.integers(-9, 9), min_size=d_out, max_size=d_out), min_size=d_in, max_size=d_in
    )
    return Integers({k: draw(rows) for k in keys}, {o: draw(matrices) for o in offsets})


def row_in_balls(shift: Point, keys: Sequence[Point], alpha: arb) -> dict[Point, arb]:
    """The weights of one head at the query 0, from the score v^T r_δ on."""
    vector = [-alpha, *(2 * alpha * s for s in shift)]
    exponentials = {}
    for delta in keys:  # the query is 0
        encoding = (sum(c * c for c in delta), *delta)
        score = sum((v * r for v, r in zip(vector, encoding, strict=True)), arb(0))
        exponentials[delta] = score.exp()
    normaliser = sum(exponentials.values(), arb(0))
    return {delta: exponential / normaliser for delta, exponential in exponentials.items()}


def layer_in_balls(case: Integers, alpha: arb) -> list[arb]:
    """The paper's layer at the query 0 with the weights of the theorem, as it is defined.

    W_qry = W_key = 0 leaves the score v^T r_δ, with v_h = -α (1, -2 Δ_h); softmax over all keys;
    W_val^h W_out^h is the matrix of the offset Δ_h. No square is completed and no score centred.
    """
    totals: list[arb] = []
    for shift, matrix in case.taps.items():
        row = row_in_balls(shift, list(case.image), alpha)
        seen = [
            sum((weight * case.image[k][c] for k, weight in row.items()), arb(0))
            for c in range(len(matrix))
        ]
        products = [
            sum((x * row[o] for x, row in zip(seen, matrix, strict=True)), arb(0))
            for o in range(len(matrix[0]))
        ]
        totals = [a + b for a, b in zip(totals, products, strict=True)] if totals else products
    return totals


@bounded
@given(case=integers(), alpha=st.floats(0.01, 60.0))
def test_real_layer_errs_at_most_by_the_leak_times_the_variation(
    case: Integers, alpha: float
) -> None:
    # Equation (7).
    with precision(BITS):
        leak = leak_enclosure(alpha, case.dimension, bits=BITS)
        found = layer_in_balls(case, ball(alpha))
        wanted = zip(case.convolution(), case.variation(), strict=True)
        for y, (truth, variation) in zip(found, wanted, strict=True):
            if variation == 0:  # constant images: no error, of which a ball is all one can see
                assert y.contains(truth)
                continue
            assert abs(y - truth) < leak * variation
            record(ratio=float((abs(y - truth) / (leak * variation)).upper()), dtype="real")


@bounded
@given(case=integers(), exponent=st.integers(-30, 4))
def test_stated_sharpness_reaches_the_accuracy(case: Integers, exponent: int) -> None:
    # Equation (9).
    accuracy = Fraction(10) ** exponent
    variation = Fraction(max(case.variation()) or 1)
    with precision(BITS):
        alpha = theory.sufficient_sharpness(accuracy, case.dimension, variation, bits=BITS)
        found = layer_in_balls(case, alpha)
        for y, truth in zip(found, case.convolution(), strict=True):
            assert abs(y - truth) < ball(accuracy)


@bounded
@given(
    alpha=st.floats(0.01, 20.0),
    side=st.integers(2, 4),
    dimension=st.integers(1, 3),
    pixel=st.integers(-9, 9),
    others=st.integers(-9, 9),
    weight=st.integers(-9, 9),
    data=st.data(),
)
def test_one_bright_pixel_attains_the_bound_of_its_grid(
    alpha: float,
    side: int,
    dimension: int,
    pixel: int,
    others: int,
    weight: int,
    data: st.DataObject,
) -> None:
    # Equation (8).
    keys = list(np.ndindex(*[side] * dimension))
    target = data.draw(st.sampled_from(keys))
    image = {key: [pixel if key == target else others] for key in keys}
    case = Integers(image, {target: [[weight]]})
    with precision(BITS):
        (y,) = layer_in_balls(case, ball(alpha))
        leak = box_leak(alpha, (side,) * dimension, target, bits=BITS)
        assert (y - pixel * weight).overlaps(leak * (others - pixel) * weight)


@bounded
@given(case=integers(), alpha=st.floats(0.01, 20.0))
def test_no_image_errs_by_more_than_the_largest_error_of_its_kernel_and_one_attains_it(
    case: Integers, alpha: float
) -> None:
    # Equation (11), every output channel and several input channels.
    keys, targets = list(case.image), list(case.taps)
    with precision(BITS):
        rows = [row_in_balls(shift, keys, ball(alpha)) for shift in targets]
        found = layer_in_balls(case, ball(alpha))
        ranges = [max(c) - min(c) for c in zip(*case.image.values(), strict=True)]
        for o, truth in enumerate(case.convolution()):
            channels = [[matrix[c][o] for matrix in case.taps.values()] for c in range(len(ranges))]
            most = sum(
                (
                    spread * theory.largest_error(rows, targets, weights)
                    for spread, weights in zip(ranges, channels, strict=True)
                ),
                arb(0),
            )
            error = found[o] - truth
            assert abs(error).lower() <= most.upper()
            # The image of the proof: every pixel at the end of the range that its sign asks for.
            signs = [theory.coefficients(rows, targets, weights) for weights in channels]
            worst = {
                k: [spread * int(c[k] > 0) for spread, c in zip(ranges, signs, strict=True)]
                for k in keys
            }
            extreme = Integers(worst, {t: [[row[o]] for row in m] for t, m in case.taps.items()})
            (y,) = layer_in_balls(extreme, ball(alpha))
            assert (y - extreme.convolution()[0]).overlaps(most)


def at_the_middle(
    taps: Mapping[Point, int], side: int, dimension: int, alpha: arb
) -> tuple[list[dict[Point, arb]], list[Point], list[int]]:
    """Rows, targets and matrices of a kernel at the query 0, in the middle of a cube of keys."""
    keys = list(product(range(-(side // 2), side // 2 + 1), repeat=dimension))
    return [row_in_balls(t, keys, alpha) for t in taps], list(taps), list(taps.values())


@bounded
@given(
    alpha=st.floats(0.01, 20.0),
    before=st.integers(0, 4),
    after=st.integers(1, 5),
    dimension=st.integers(1, 2),
)
def test_two_equal_taps_side_by_side_err_by_less_than_their_closed_form(
    alpha: float, before: int, after: int, dimension: int
) -> None:
    # Equation (12), at drawn distances from the border; the terms left out are above 2^-1100.
    keys = list(product(range(-before, after + 1), repeat=dimension))
    targets = [(0,) * dimension, (1, *(0,) * (dimension - 1))]
    with precision(3 * BITS):
        x = (-ball(alpha)).exp()
        rows = [row_in_balls(t, keys, ball(alpha)) for t in targets]
        theta = 1 + theta_minus_one(alpha, bits=3 * BITS)
        assert theory.largest_error(rows, targets, [1, 1]) < 2 * (1 - (1 + x) / theta**dimension)


@bounded
@given(alpha=st.floats(0.01, 20.0), weight=st.integers(-9, 9))
def test_two_equal_taps_on_two_keys_do_not_err_at_all(alpha: float, weight: int) -> None:
    # Softmax is not one-hot there, and the layer is the convolution of every image.
    keys: list[Point] = [(0,), (1,)]
    with precision(BITS):
        rows = [row_in_balls(t, keys, ball(alpha)) for t in keys]
        assert rows[0][keys[1]] > 0
        assert theory.largest_error(rows, keys, [weight, weight]).contains(0)


@bounded
def test_kernels_of_several_taps_err_by_about_half_and_a_third_of_the_accuracy() -> None:
    # At the sharpness that (10) calls too little for one tap and η = 1/10.
    accuracy = Fraction(1, 10)
    with precision(BITS):
        pair = ball(2 * 1 * (2 - accuracy) / accuracy).log()
        error = theory.largest_error(*at_the_middle({(0,): 1, (1,): 1}, 21, 1, pair))
        assert ball(Fraction(499, 10**4)) < error < ball(Fraction(501, 10**4))
        blur = ball(2 * 2 * (1 - accuracy) / accuracy).log()
        nine = dict.fromkeys(product((-1, 0, 1), repeat=2), 1)
        error = theory.largest_error(*at_the_middle(nine, 9, 2, blur)) / 9
        assert ball(Fraction(345, 10**4)) < error < ball(Fraction(350, 10**4))


# The layer of torch -------------------------------------------------------------------------------


@exact
@both_formats
@given(data=st.data())
def test_saturated_layer_is_the_convolution_bit_for_bit(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype), label="case").to(device)
    layer = papers_layer(case.conv)
    record(device=device, dtype=dtype)
    assert not error_of(layer, case).any()


@exact
@given(geometry=geometries())
def test_layer_has_the_stated_sizes_and_weights(geometry: Geometry) -> None:
    conv = geometry.build(torch.float64)
    layer = papers_layer(conv, sharpness=1.5)
    taps, rank = math.prod(conv.kernel_size), len(conv.kernel_size)
    d_in, d_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    assert layer.num_heads == taps
    assert layer.positional_key.shape == (taps, rank + 1, rank + 1)
    assert [tuple(factor.shape) for factor in layer.head_matrices()] == [
        (taps, conv.groups, d_in, min(d_in, d_out)),
        (taps, conv.groups, min(d_in, d_out), d_out),
    ]
    assert layer.query is layer.key is layer.content_bias is None  # zero
    assert (layer.positional_key == torch.eye(rank + 1)).all()
    assert len(set(map(tuple, layer.positional_shift.tolist()))) == taps
    blocks = conv.weight.reshape(conv.groups, -1, *conv.weight.shape[1:]).flatten(3)
    # in x out, one for each tap; transposed, the last tap stands at the first offset
    matrices = blocks.permute(3, 0, 1, 2).flip(0) if conv.transposed else blocks.permute(3, 0, 2, 1)
    value, output = layer.head_matrices()
    assert torch.equal(value @ output, matrices)
    # Equation (3): which of the two is the identity.
    identity = torch.eye(min(d_in, d_out), dtype=torch.float64)
    factor = value if d_in < d_out else output
    assert torch.equal(factor, identity.expand_as(factor))


def error_of(layer: nn.Module, case: Case) -> np.ndarray:
    """The distance from the exact convolution of the stored numbers, rounded up."""
    with torch.no_grad():
        y = numbers(case.run(layer))
    return exact_error(y, convolve_module(case.conv, case.x, case.output_size))


def variation(case: Case) -> np.ndarray:
    """Σ |W_δ[c, o]| (max X_c - min X_c), a Fraction for each image and output channel.

    Beyond the border, and in the holes of a transposed convolution, there may be zeros.
    """
    conv, rank = case.conv, len(case.conv.kernel_size)
    image = numbers(case.x).reshape(-1, conv.in_channels, math.prod(case.x.shape[-rank:]))
    highest, lowest = image.max(-1), image.min(-1)
    if conv.padding_mode == "zeros" or conv.transposed:
        highest, lowest = np.maximum(highest, 0), np.minimum(lowest, 0)
    fraction = np.frompyfunc(Fraction, 1, 1)
    ranges = np.asarray(fraction(highest)) - np.asarray(fraction(lowest))
    weight = np.asarray(fraction(abs(numbers(conv.weight))))
    blocks = weight.reshape(conv.groups, -1, *weight.shape[1:])
    if conv.transposed:
        blocks = blocks.swapaxes(1, 2)  # groups, out, in, *kernel
    sizes = blocks.reshape(*blocks.shape[:3], -1).sum(-1)
    products = sizes * ranges.reshape(len(image), conv.groups, 1, -1)
    return np.asarray(products.sum(-1)).reshape(len(image), -1)


def ratio_to_bound(layer: MultiHeadSelfAttention, case: Case, alpha: float) -> float:
    """The largest error over (7) plus certified rounding: no more than 1 for a right layer."""
    error = error_of(layer, case)
    if error.size == 0:
        return 0.0
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    rank = len(case.conv.kernel_size)
    granted = variation(case) * Fraction(leak(alpha, rank))
    channels = (granted.size, -1)
    rows = zip(
        granted.ravel().tolist(),
        error.reshape(channels).tolist(),
        certificate.rounding.reshape(channels).tolist(),
        strict=True,
    )
    return max(
        quotient(found, part, rounding)
        for part, errors, roundings in rows
        for found, rounding in zip(errors, roundings, strict=True)
    )


def quotient(error: float, leak: Fraction, rounding: float) -> float:
    """Error over leak + rounding; 0 where nothing is claimed, inf for an error over nothing."""
    if error == 0 or math.isinf(rounding):
        return 0.0
    limit = leak + Fraction(rounding)
    return float(Fraction(error) / limit) if limit and math.isfinite(error) else math.inf


@bounded
@every_format
@given(data=st.data())
def test_layer_of_any_sharpness_errs_by_the_leak_and_by_rounding(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(real_cases(dtype), label="case").to(device)
    alpha = data.draw(sharpnesses(), label="sharpness")
    ratio = ratio_to_bound(papers_layer(case.conv, sharpness=alpha), case, alpha)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1


# What the checks reject ---------------------------------------------------------------------------


@control
@heads.every_wrong_layer
@pytest.mark.parametrize("sharpness", [None, 20.0], ids=["saturated", "sharpness 20"])
def test_wrong_layer_errs_by_more_than_the_bound(
    rank: int, wrong: heads.Wrong, sharpness: float | None
) -> None:
    case = heads.generic_case(rank)
    layer = papers_layer(case.conv, sharpness=sharpness)
    alpha = layer.sharpness
    assert ratio_to_bound(layer, case, alpha) <= 1
    wrong(layer)
    assert ratio_to_bound(layer, case, alpha) > 1


@control
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_weak_sharpness_errs_by_more_than_the_bound(rank: int) -> None:
    case = heads.generic_case(rank)
    layer = papers_layer(case.conv, sharpness=20.0)
    heads.half_the_sharpness(layer)
    assert ratio_to_bound(layer, case, 20.0) > 1


@control
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("border", ["replicate", "reflect", "circular"])
def test_wrong_border_errs_by_more_than_the_bound(rank: int, border: str) -> None:
    case = heads.generic_case(rank)
    other = heads.generic_case(rank, padding_mode=border)
    layer = papers_layer(other.conv, sharpness=20.0)
    assert ratio_to_bound(layer, case, 20.0) > 1


@control
@given(
    dimension=st.integers(1, 3),
    exponent=st.integers(-40, -1),
    less=st.fractions(0, 1, max_denominator=100),
)
@example(dimension=1, exponent=-7, less=Fraction(0))
@example(dimension=3, exponent=-40, less=Fraction(0))
def test_less_sharpness_than_needed_misses_the_accuracy_of_one_tap(
    dimension: int, exponent: int, less: Fraction
) -> None:
    # Equation (10), with V = 1 and η a power of two: the target is black, all around it is white.
    accuracy = Fraction(2) ** exponent
    keys = list(product(range(-1, 3 if dimension == 1 else 2), repeat=dimension))
    centre = (0,) * dimension
    case = Integers({key: [int(key != centre)] for key in keys}, {centre: [[1]]})
    with precision(BITS):
        needed = ball(2 * dimension * (1 - accuracy) / accuracy).log()
        (y,) = layer_in_balls(case, needed - ball(less))
        assert y > ball(accuracy)
        enough = theory.sufficient_sharpness(accuracy, dimension, Fraction(1), bits=BITS)
        (y,) = layer_in_balls(case, enough)
        assert y < ball(accuracy)


@control
def test_sharpness_that_one_tap_needs_is_not_needed_by_two() -> None:
    # (10) is false of W = (1, 1), V = 2: at its sharpness for η = 1/10 no image errs by η.
    accuracy = Fraction(1, 10)
    with precision(BITS):
        alpha = ball(2 * (2 - accuracy) / accuracy).log()
        both = theory.largest_error(*at_the_middle({(0,): 1, (1,): 1}, 21, 1, alpha))
        assert both < ball(accuracy)
        alone = theory.largest_error(*at_the_middle({(0,): 2}, 21, 1, alpha))
        assert alone > ball(accuracy)


@control
def test_largest_error_without_its_half_or_with_heads_judged_apart_is_not_attained() -> None:
    with precision(BITS):
        rows, targets, weights = at_the_middle({(0,): 1, (1,): 1}, 9, 1, arb(2))
        signs = theory.coefficients(rows, targets, weights)
        extreme = Integers({k: [int(c > 0)] for k, c in signs.items()}, {t: [[1]] for t in targets})
        (y,) = layer_in_balls(extreme, arb(2))
        attained = y - extreme.convolution()[0]
        most = theory.largest_error(rows, targets, weights)
        assert attained.overlaps(most)
        assert attained < 2 * most
        heads_apart = zip(rows, targets, strict=True)
        assert attained < sum((theory.largest_error([r], [t], [1]) for r, t in heads_apart), arb(0))


@control
def test_range_without_the_padding_is_no_bound() -> None:
    # A constant image, padded with zeros, is not constant.
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    case = Case(conv, torch.ones(1, 1, 4, dtype=torch.float64))
    layer = papers_layer(conv, sharpness=2.0)
    certificate = certify(layer, conv, case.x)
    assert ratio_to_bound(layer, case, 2.0) <= 1
    assert (error_of(layer, case) > certificate.rounding.numpy()).any()


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
