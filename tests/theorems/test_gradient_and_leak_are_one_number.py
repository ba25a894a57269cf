"""What a head leaks is what its sharpness and its shift can learn.

T26, `docs/theorems/gradient_and_leak_are_one_number.md`. The first half is ball arithmetic, the
second holds layers and torch's autograd to it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, arb_series
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv, convert, formats
from constructions.certificate import leak
from constructions.formats import accumulator, unit_roundoff
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import integers
from tests.support.ledger import record
from tests.support.oracle import convolve, convolve_transposed, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, a_share, integer_cases, real_cases
from theory import gradient_and_leak_are_one_number as theory
from theory import saturated_softmax_is_one_hot as saturation
from theory.tools.theta import BITS, ball, leak_enclosure, precision

SLUG = "gradient_and_leak_are_one_number"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
few = settings(max_examples=10)

Point = tuple[int, ...]


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# One row of weights, in balls ---------------------------------------------------------------------


class Row:
    """The weights of a head at a target, from their definition, and means with them."""

    def __init__(self, keys: Sequence[Point], target: Sequence[float], alpha: float) -> None:
        self.keys, self.target = list(keys), [ball(t) for t in target]
        self.squares = [
            sum(((k - t) ** 2 for k, t in zip(key, self.target, strict=True)), arb(0))
            for key in self.keys
        ]
        terms = [(-ball(alpha) * d).exp() for d in self.squares]
        total = sum(terms, arb(0))
        self.alpha, self.weights = ball(alpha), [term / total for term in terms]

    def mean(self, values: Sequence[arb | int]) -> arb:
        return sum((a * v for a, v in zip(self.weights, values, strict=True)), arb(0))

    def spread(self, values: Sequence[arb | int]) -> arb:
        """E|v - E v|."""
        mean = self.mean(values)
        return self.mean([abs(v - mean) for v in values])

    def on_axis(self, axis: int) -> list[int]:
        return [key[axis] for key in self.keys]

    def leak(self, at: int) -> arb:
        return sum((a for k, a in enumerate(self.weights) if k != at), arb(0))


def derivative_of_weights(
    keys: Sequence[Point], target: Sequence[float], alpha: float, axis: int | None
) -> list[arb]:
    """What the weights change by, to first order: power series, no rule of differentiation.

    In the target's coordinate on an axis; None for the sharpness.
    """
    step = arb_series([0, 1], 2)
    terms = []
    for key in keys:
        square = arb_series([0], 2)
        for i, (k, t) in enumerate(zip(key, target, strict=True)):
            away = arb_series([ball(k) - ball(t)], 2) - (step if i == axis else 0)
            square = square + away * away
        sharpness = arb_series([ball(alpha)], 2) + (step if axis is None else 0)
        terms.append((-sharpness * square).exp())
    total = sum(terms[1:], terms[0])
    return [(term / total)[1] for term in terms]


def largest_over_corners(coefficients: Sequence[arb]) -> arb:
    """The largest modulus of a linear form on the unit cube: at one of its corners."""
    best = arb(0)
    for corner in product((0, 1), repeat=len(coefficients)):
        best = best.max(
            abs(sum((c * b for c, b in zip(coefficients, corner, strict=True)), arb(0)))
        )
    return best


@st.composite
def key_sets(draw: st.DrawFn, most: int = 7) -> list[Point]:
    """Finitely many integer points of one, two or three axes; one point among them."""
    d = draw(st.integers(1, 3))
    points = st.tuples(*[st.integers(-3, 3)] * d)
    return draw(st.lists(points, min_size=1, max_size=most, unique=True))


alphas = st.floats(0.05, 12.0)


@bounded
@a_share
@given(keys=key_sets(), alpha=alphas, data=st.data())
def test_most_that_position_and_sharpness_learn_is_half_a_mean_modulus(
    keys: list[Point], alpha: float, data: st.DataObject
) -> None:
    # Equations (1) to (5): the definition, on every corner of the cube, against the closed form.
    d = len(keys[0])
    target = data.draw(st.lists(st.floats(-4, 4), min_size=d, max_size=d), label="target")
    with precision(400):
        row = Row(keys, target, alpha)
        for axis in range(d):
            found = largest_over_corners(derivative_of_weights(keys, target, alpha, axis))
            assert found.overlaps(row.alpha * row.spread(row.on_axis(axis)))
        found = largest_over_corners(derivative_of_weights(keys, target, alpha, None))
        assert found.overlaps(row.spread(row.squares) / 2)


@bounded
@given(keys=key_sets(most=20), alpha=alphas, data=st.data())
def test_sharpness_learns_the_rate_at_which_the_leak_falls(
    keys: list[Point], alpha: float, data: st.DataObject
) -> None:
    # Equations (6) to (8), and (10).
    at = data.draw(st.integers(0, len(keys) - 1), label="target")
    with precision(BITS):
        row = Row(keys, keys[at], alpha)
        lost = row.leak(at)
        rate = derivative_of_weights(keys, keys[at], alpha, None)[at]  # -dl/dα
        mean = row.mean(row.squares)
        assert rate.overlaps((1 - lost) * mean)
        most = row.spread(row.squares) / 2
        assert most.upper() >= rate.lower()
        nearer = [d for k, d in enumerate(row.squares) if k != at and d < mean]
        if nearer:
            assert most > rate
        else:
            assert most.overlaps(rate)
        assert rate.upper() >= (lost * (1 - lost)).lower()
        for axis in range(len(keys[0])):
            away = sum(
                (
                    a
                    for a, key in zip(row.weights, keys, strict=True)
                    if key[axis] != keys[at][axis]
                ),
                arb(0),
            )
            learnt = row.alpha * row.spread(row.on_axis(axis))
            assert learnt.upper() >= (row.alpha * away * (1 - away)).lower()
            if away > 0:
                record(ratio=float(row.alpha * away * (1 - away) / learnt), dtype="real")


@bounded
@given(
    alpha=st.floats(0.1, 12.0),
    sides=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=2),
)
def test_no_shift_on_a_box_learns_more_than_twice_the_first_moment(
    alpha: float, sides: list[tuple[int, int]]
) -> None:
    # Equation (11).
    shape = [n for n, _ in sides]
    target = [t % n for n, t in sides]
    with precision(BITS):
        row = Row(list(np.ndindex(*shape)), target, alpha)
        most = 2 * row.alpha * theory.moment(row.alpha, 1)
        for axis in range(len(shape)):
            learnt = row.alpha * row.spread(row.on_axis(axis))
            record(ratio=float(learnt / most), dtype="real")
            assert learnt < most


@bounded
@given(alpha=st.floats(0.25, 40.0))
@example(alpha=1.3543)
def test_large_grids_learn_alpha_times_leak_and_little_more(alpha: float) -> None:
    # Equations (13) and (14), and the limit itself on a box of 81 keys. What they differ by is x³,
    # to be told from 1.
    with precision(400):
        a = ball(alpha)
        x, lost = (-a).exp(), leak_enclosure(alpha, 1, bits=400)
        learnt = theory.shift_gradient(alpha)
        assert a * lost < learnt < a * lost * (1 + x**3 / (1 - x**5) ** 2)
        assert (2 / lost).log() + (1 - lost).log() < a < (2 / lost).log() - (1 - x**3).log()
        row = Row([(k,) for k in range(-40, 41)], (0,), alpha)
        rest = 2 * a * 41 * x ** (41 * 41) / (1 - 2 * x**41)  # of the series, as in `moment`
        assert abs(row.alpha * row.spread(row.on_axis(0)) - learnt).lower() <= rest.upper()


@bounded
@pytest.mark.parametrize("thousandths", range(200, 4000, 50))
def test_no_sharpness_learns_more_than_the_fastest(thousandths: int) -> None:
    # Equation (15).
    low, high = theory.LARGEST
    with precision(BITS):
        assert theory.shift_gradient(thousandths / 1000) < ball(high)
        assert theory.shift_gradient(theory.FASTEST[0]) > ball(low)


@bounded
@given(alpha=st.floats(8.0, 30.0), d=st.integers(1, 3))
def test_rate_is_the_leak_up_to_the_stated_order(alpha: float, d: int) -> None:
    # Equation (9), on the box of 5 keys an axis: what lies beyond weighs x^9 and less.
    with precision(BITS):
        keys = list(np.ndindex(*[5] * d))
        row = Row(keys, [2] * d, alpha)
        at = keys.index((2,) * d)
        x = (-ball(alpha)).exp()
        excess = row.mean(row.squares) / row.leak(at) - 1
        first = 3 * x**3 if d == 1 else (d - 1) * x
        # The next terms of the two series have factors of at most 4 d² on these powers.
        assert abs(excess - first) <= 4 * d * d * x * first.max(x**3)


# Layers -------------------------------------------------------------------------------------------


def one_head(
    rank: int, dtype: torch.dtype = torch.float64, shift: Any = 0.0, **options: Any
) -> MultiHeadSelfAttention:
    """A layer of one head that passes on what it sees: Y = P X, its positions parameters."""
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    conv = kinds[rank](1, 1, 1, bias=False, dtype=dtype)
    nn.init.ones_(conv.weight)
    layer: MultiHeadSelfAttention = attention_from_conv(conv, evaluation="dense", **options)
    parts = ("shifts",) if options.get("sharpness") is None else ("shifts", "sharpness")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer.unfreeze(*parts)
    with torch.no_grad():
        layer.positional_shift.copy_(torch.as_tensor(shift, dtype=torch.float64))
    return layer


def learnt(layer: MultiHeadSelfAttention, image: Tensor, query: Point) -> tuple[Tensor, Tensor]:
    """The derivatives of what the head sees at a query: in its shift, and in the sharpness."""
    y = layer(image[None, None])[0, 0]
    assert layer.positional_sharpness is not None
    shift, sharpness = torch.autograd.grad(
        y[query], [layer.positional_shift, layer.positional_sharpness]
    )
    return shift[0], sharpness


def rounding(row: Row, reach: float) -> float:
    """What float64 can do to the derivatives of one row.

    A score is an integer times α (an offset of eighths is exact too), so it errs by u times itself
    and a weight by that, by 40 u for its exponential and by n + 2 roundings for the quotient: C of
    them in all with C = max α D + n + 50, before the products and sums of the derivative, again n +
    10. Each derivative is a sum of a_k (g_k - G) times coordinates of at most 2 (reach + 1)²: no
    more than 4 α (reach + 1)² times C u, each factor twice for G.
    """
    n = len(row.keys)
    steepest = max(float(row.alpha * d) for d in row.squares)
    count = steepest + 2 * n + 60
    return 2 * count * unit_roundoff(torch.float64) * 4 * float(row.alpha + 1) * (reach + 1) ** 2


@bounded
@a_share
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    alpha=st.floats(0.1, 20.0),
    eighths=st.lists(st.integers(-4, 4), min_size=2, max_size=2),
    data=st.data(),
)
def test_autograd_of_the_layer_finds_what_the_theorem_says(
    shape: list[int], alpha: float, eighths: list[int], data: st.DataObject
) -> None:
    rank = len(shape)
    query = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    shift = [e / 8 for e in eighths[:rank]]
    layer = one_head(rank, shift=[shift], sharpness=alpha)
    keys = list(np.ndindex(*shape))
    target = [q + f for q, f in zip(query, shift, strict=True)]
    with precision(BITS):
        row = Row(keys, target, alpha)
        allowed = rounding(row, max(shape))
        for axis in range(rank):
            values = row.on_axis(axis)
            mean = row.mean(values)
            image = torch.tensor([float(k > mean) for k in values]).double().reshape(shape)
            found = learnt(layer, image, query)[0][axis].item()
            error = abs(ball(found) - row.alpha * row.spread(values))
            record(ratio=float(error) / allowed, dtype=torch.float64)
            assert error.upper() <= allowed
        mean = row.mean(row.squares)
        # Where a square is the mean itself its pixel does not matter.
        image = torch.tensor([float(bool(d < mean)) for d in row.squares]).double().reshape(shape)
        found = learnt(layer, image, query)[1].item()
        error = abs(ball(found) - row.spread(row.squares) / 2)
        assert error.upper() <= allowed


@bounded
@pytest.mark.parametrize("alpha", [0.7, 1.3543, 3.0, 8.0])
@pytest.mark.parametrize("rank", [1, 2])
def test_sharpness_learns_what_certify_calls_the_leak(rank: int, alpha: float) -> None:
    # Equations (8) and (9), through the library's own leak: the bound of all grids.
    side = 9
    layer = one_head(rank, sharpness=alpha)
    image = torch.zeros([side] * rank, dtype=torch.float64)
    centre = (side // 2,) * rank
    image[centre] = 1
    found = learnt(layer, image, centre)[1].item()
    lost = leak(alpha, rank)
    keys = list(np.ndindex(*[side] * rank))
    allowed = rounding(Row(keys, centre, alpha), side)
    own = 1 - layer.attention_weights([side] * rank)[0].diagonal()[len(keys) // 2].item()
    assert own <= lost + allowed
    assert found >= own * (1 - own) - allowed


# The dead zone ------------------------------------------------------------------------------------


def threshold(dtype: torch.dtype) -> float:
    """Θ of the format in which scores run, ln(2/η), rounded to float64."""
    name = str(accumulator(dtype)).removeprefix("torch.")
    return float(saturation.threshold(saturation.FORMATS[name]))


def gradients(layer: MultiHeadSelfAttention, x: Tensor) -> dict[str, Tensor]:
    """All gradients of a layer for an upstream of integers."""
    copied = copy.deepcopy(layer)
    y = copied(x)
    y.backward(integers(*y.shape, dtype=y.dtype))
    return {n: p.grad for n, p in copied.named_parameters() if p.grad is not None}


POSITIONAL = ("positional_shift", "positional_sharpness", "positional_key")


@exact
@every_format
@pytest.mark.parametrize("rank", [1, 2])
def test_shift_learns_nothing_in_the_dead_zone_and_something_beyond_it(
    rank: int, dtype: torch.dtype
) -> None:
    # Equations (16) and (17): one part in 64 of the pixel on either side of 1/2 - Θ/(2 α).
    alpha = 2.0 ** math.ceil(math.log2(2 * threshold(dtype)))
    edge = 0.5 - threshold(dtype) / (2 * alpha)
    image = integers(1, 1, *[4] * rank, dtype=dtype)
    for step in (-1, 1):
        f = math.floor(64 * edge + (step > 0)) / 64  # an exact offset
        layer = one_head(rank, dtype, shift=[[f] + [0.0] * (rank - 1)], sharpness=alpha)
        found = gradients(layer, image)
        dead = all(not found[name].count_nonzero() for name in POSITIONAL)
        assert dead == (step < 0)
        assert f < edge if dead else f > edge


@control
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_hot_weights_of_a_half_format_are_not_dead(dtype: torch.dtype) -> None:
    # Stored weights are one-hot; scores and their gradients run in float32, where they are not.
    layer = one_head(1, dtype)
    weights = layer.attention_weights((5,))
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    found = gradients(layer, integers(1, 1, 5, dtype=dtype))
    assert found["positional_shift"].count_nonzero()


@exact
@a_share
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(data=st.data())
def test_saturated_layer_learns_no_position_and_no_content(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype))
    with pytest.warns(UserWarning, match=f"{SLUG}.md"):
        layer = attention_from_conv(case.conv).unfreeze("shifts", "content")
    y: Any = case.run(layer)
    y.backward(integers(*y.shape, dtype=dtype))
    for name, parameter in layer.named_parameters():
        if name not in ("weight", "value", "output", "bias"):
            assert parameter.grad is None or not parameter.grad.count_nonzero()
    record(dtype=dtype)


# The warning --------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("part", ["shifts", "content"])
@pytest.mark.parametrize("normaliser", ["softmax", "sparsemax", "entmax15", "top1", "sigmoid"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_warning_is_given_once_and_is_right(part: str, normaliser: str, mode: Any) -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    layer = attention_from_conv(conv, normaliser=normaliser)
    with pytest.warns(UserWarning, match=f"'{part}' of a saturated layer.*{SLUG}.md") as given_:
        layer.unfreeze(part)
    assert len(given_) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.unfreeze(part)
        copy.deepcopy(layer).unfreeze(part)
    found = gradients(layer, integers(1, 2, 4, 5))
    trained = set(found) - {"weight", "bias"}
    assert trained
    assert all(not found[name].count_nonzero() for name in trained)


@control
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"sharpness": 3.0}, torch.float32),
        ({"normaliser": "relu"}, torch.float32),
        ({}, torch.float16),
        ({}, torch.bfloat16),
    ],
    ids=["soft", "relu", "float16", "bfloat16"],
)
def test_layer_that_learns_does_not_warn(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = attention_from_conv(nn.Conv1d(2, 2, 3, dtype=dtype), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.unfreeze("content", "shifts")
    found = gradients(layer, integers(1, 2, 6, dtype=dtype))
    assert found["query"].count_nonzero()


@control
def test_kernel_of_a_saturated_layer_learns_and_unfreezing_it_does_not_warn() -> None:
    layer = attention_from_conv(nn.Conv1d(2, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.unfreeze("value", "output")
    found = gradients(layer, integers(1, 2, 6))
    assert all(found[name].count_nonzero() for name in ("value", "output", "bias"))


# Pixels and values --------------------------------------------------------------------------------


def adjoint_by_the_oracle(case: Case, upstream: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Σ G Y differentiated in pixels, kernel and bias: Y at each unit image and unit kernel."""
    conv, rank = case.conv, len(case.conv.kernel_size)
    options: dict[str, Any] = {
        name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
    }
    apply: Any = convolve
    if conv.transposed:
        apply = convolve_transposed
        size = None if case.output_size is None else case.output_size[-rank:]
        options |= {"output_padding": conv.output_padding, "output_size": size}
    else:
        options["padding_mode"] = conv.padding_mode
    x, weight = numbers(case.x).astype(int), numbers(conv.weight).astype(int)
    batched = x.reshape(-1, *x.shape[-rank - 1 :])
    g = upstream.astype(int).reshape(len(batched), -1, *upstream.shape[-rank:])
    units = np.eye(batched[0].size, dtype=int).reshape(-1, *batched.shape[1:])
    seen = apply(units, weight, **options)
    of_x = np.tensordot(g, seen, (range(1, g.ndim), range(1, g.ndim))).reshape(x.shape)
    of_weight = np.zeros(weight.shape, dtype=object)
    for entry in np.ndindex(*weight.shape):
        unit = np.zeros_like(weight)
        unit[entry] = 1
        of_weight[entry] = (apply(batched, unit, **options) * g).sum()
    found = [of_x, of_weight]
    if conv.bias is not None:
        found.append(g.sum(axis=(0, *range(2, g.ndim))))
    return found


def largest(case: Case) -> float:
    """The largest modulus of a pixel, an entry of the kernel, or a bias."""
    tensors = [case.x, *case.conv.parameters()]
    return max((abs(numbers(t)).max(initial=0) for t in tensors), default=0)


def small(case: Case) -> bool:
    """Whether unit images and unit kernels are few, and sums of the derivatives exact."""
    return 0 < case.x.numel() <= 60 and case.conv.weight.numel() <= 60 and largest(case) < 2**20


@exact
@few
@pytest.mark.parametrize("evaluation", ["dense", "auto"])
@given(data=st.data())
def test_gradient_in_pixels_and_values_is_the_convolution_s_by_the_oracle(
    evaluation: str, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(torch.float64).filter(small))
    layer = attention_from_conv(case.conv, evaluation=evaluation)
    x = case.x.clone().requires_grad_()
    y = Case(case.conv, x, case.output_size).run(layer)
    upstream = integers(*y.shape, dtype=torch.float64)
    wanted = [x, layer.weight, *([] if layer.bias is None else [layer.bias])]
    found = torch.autograd.grad(y, wanted, upstream)
    for one, other in zip(found, adjoint_by_the_oracle(case, upstream.numpy()), strict=True):
        assert np.array_equal(numbers(one), other.astype(float))
    record(dtype=torch.float64)


def of_order(case: Case, module: nn.Module, order: int) -> list[Tensor]:
    """The gradient of half of ‖Y‖², or of the sum of squares of that gradient."""
    trained: Any = module
    x = case.x.detach().clone().requires_grad_()
    wanted = [x, trained.weight, *([] if trained.bias is None else [trained.bias])]
    y = Case(case.conv, x, case.output_size).run(module)
    first = torch.autograd.grad((y * y).sum() / 2, wanted, create_graph=order == 2)
    if order == 1:
        return list(first)
    squares = sum(((g * g).sum() for g in first), y.new_zeros(()))
    return list(torch.autograd.grad(squares, wanted))


def tiny(case: Case) -> bool:
    """Whether second derivatives of a fourth power stay below 2^53."""
    return case.x.numel() > 0 and largest(case) <= 9


@exact
@a_share
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("evaluation", ["dense", "auto"])
@given(data=st.data())
def test_derivatives_of_both_orders_are_the_convolution_s_on_integers(
    evaluation: str, order: int, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(torch.float64).filter(tiny))
    layer = attention_from_conv(case.conv, evaluation=evaluation)
    pairs = zip(of_order(case, layer, order), of_order(case, case.conv, order), strict=True)
    for one, other in pairs:
        assert torch.equal(one, other)
    record(dtype=torch.float64)


@exact
@a_share
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", [1, 2])
@given(data=st.data())
def test_on_any_numbers_they_are_equal_bits_where_zeros_are_the_border(
    dtype: torch.dtype, order: int, data: st.DataObject
) -> None:
    cases = real_cases(dtype, padding_modes=("zeros",))
    case = data.draw(cases.filter(lambda case: case.x.numel() > 0))
    layer = attention_from_conv(case.conv)
    pairs = zip(of_order(case, layer, order), of_order(case, case.conv, order), strict=True)
    for one, other in pairs:
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    record(dtype=dtype)


# What the checks reject ---------------------------------------------------------------------------


@control
def test_moment_about_the_target_is_not_what_the_shift_learns() -> None:
    # At an edge the mean is off the target: E|k - t| is too little, or too much.
    with precision(BITS):
        for keys in ([(0,), (1,)], [(0,), (1,), (2,)]):
            row = Row(keys, (0,), 0.7)
            wrong = row.alpha * row.mean([abs(k) for (k,) in keys])
            found = largest_over_corners(derivative_of_weights(keys, (0,), 0.7, 0))
            assert not found.overlaps(wrong)


@control
def test_rate_is_not_the_leak_up_to_a_cube_in_two_dimensions() -> None:
    # What holds on one axis, and is sometimes said of all: l (1 - l) up to x³.
    with precision(BITS):
        keys = list(np.ndindex(5, 5))
        for alpha in (6.0, 9.0, 12.0):
            row = Row(keys, (2, 2), alpha)
            x = (-row.alpha).exp()
            excess = row.mean(row.squares) / row.leak(keys.index((2, 2))) - 1
            assert excess > x / 2
            assert not excess < 12 * x**3


@control
def test_sharpness_beside_the_fastest_has_a_slope() -> None:
    with precision(BITS):
        assert theory.shift_gradient_slope(ball(1.351)) > 0
        assert theory.shift_gradient_slope(ball(1.357)) < 0


@control
def test_too_small_a_sharpness_for_the_series_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        theory.moment(arb(0.01), 1)


@control
def test_converted_network_learns_by_its_kernels_alone() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3))
    converted: Any = convert(network)
    named = [name for name, p in converted.named_parameters() if p.requires_grad]
    assert named == [name for name, _ in network.named_parameters()]
