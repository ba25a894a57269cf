"""An image that is not padded at all is continued by attention itself: a quadratic head replicates the edge, one more key with value zero pads with zeros, and a periodic encoding goes round.

T5, `docs/theorems/borders_are_limits_of_attention.md`. Where a target has left the image is found
from torch's own options, in NumPy; the leak of a box is ball arithmetic, and every comparison with
a ball is with all numbers in it.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.certificate import (
    ROUND_UP,
    UNDERFLOW,
    exponential_error,
    head_rounding,
    off_target_mass,
)
from constructions.encodings import Encoding, EncodingLike, Periodic
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.geometry.padding_modes import Zeros
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.normalisers import Softmax
from tests.support import formal, heads
from tests.support.helpers import refused, sunk
from tests.support.layout import ANCHOR, page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import convolve_module, exact_error, exactly, numbers
from tests.support.strategies import (
    CONVOLUTIONS,
    PADDING_MODES,
    TRANSPOSED,
    Case,
    geometries,
    integer_cases,
    sharpnesses,
)
from theory import borders_are_limits_of_attention as theory
from theory.saturated_softmax_is_one_hot import FORMATS as STATED
from theory.tools.theta import ball, leak_enclosure, precision, theta_minus_one

SLUG = "borders_are_limits_of_attention"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

EQUATIONS = {int(number) for number in ANCHOR.findall(page_of(SLUG, ROOT).read_text("utf-8"))}

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)

NATURAL = ("zeros", "replicate", "circular")
natural_modes = pytest.mark.parametrize("mode", NATURAL)

BITS = 4000  # a box's leak differs from its supremum by a term e^(-α m²), with α m² below 2700
ALPHAS = st.floats(1e-2, 8.0)
DEPTHS = st.fractions(Fraction(1, 100), Fraction(99, 100), max_denominator=100)


# Where heads look in the limit, by the definition of the convolution ------------------------------


@dataclass(frozen=True)
class Targets:
    """What the heads of a layer ask for, among the pixels of an image that is not padded.

    Attributes:
        shape: The pixels on each axis.
        spacing: How far apart they stand.
        positions: The target of each head at each query, (taps, outputs, axes).
    """

    shape: tuple[int, ...]
    spacing: tuple[int, ...]
    positions: NDArray[np.int64]

    @classmethod
    def of(cls, case: Case) -> "Targets":
        """The targets on the padded grid, counted from the first pixel instead."""
        conv, on_grid = case.conv, heads.Targets.of(case)
        reach = [r * (k - 1) for r, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        sides: Any = conv.padding
        if conv.transposed:
            before = [far - side for far, side in zip(reach, sides, strict=True)]
        elif isinstance(sides, str):
            before = [far // 2 if sides == "same" else 0 for far in reach]
        else:
            before = list(sides)
        positions = np.stack(np.unravel_index(on_grid.keys, on_grid.grid), axis=-1) - before
        spacing = conv.stride if conv.transposed else (1,) * len(reach)
        return cls(tuple(case.x.shape[-len(reach) :]), tuple(spacing), positions)

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return math.prod(self.shape)

    @property
    def on_grid(self) -> NDArray[np.bool_]:
        """Whether a pixel stands there, (taps, outputs)."""
        index = self.positions // self.spacing
        there = (self.positions % self.spacing == 0) & (index >= 0) & (index < self.shape)
        found: NDArray[np.bool_] = there.all(-1)
        return found

    def limit(self, mode: str) -> NDArray[np.int64]:
        """The pixel that torch's border shows there, or the number of pixels for none."""
        n, index = np.array(self.shape), self.positions // self.spacing
        continued = {
            "zeros": np.clip(index, 0, n - 1),
            "replicate": np.clip(index, 0, n - 1),
            "circular": index % n,
            "reflect": (n - 1) - abs((n - 1) - abs(index)),
        }[mode]
        pixel = np.ravel_multi_index(tuple(np.moveaxis(continued, -1, 0)), self.shape, mode="clip")
        return np.where(self.on_grid | (mode != "zeros"), pixel, self.pixels)

    def nearest(self, sink: Fraction | None) -> NDArray[np.float64]:
        """Attention in the limit, by search: shared by those keys that score most, the sink last.

        The score of a pixel is minus its squared distance, that of the sink -c; (taps, outputs,
        pixels, and one more with a sink).
        """
        pixels = np.stack(np.unravel_index(np.arange(self.pixels), self.shape), axis=-1)
        steps = self.positions[:, :, None] - pixels * self.spacing
        squared = (steps**2).sum(-1).astype(object)
        if sink is not None:
            squared = np.concatenate([squared, np.full((*squared.shape[:2], 1), sink)], axis=-1)
        best = squared == squared.min(-1, keepdims=True)
        return np.asarray(best / best.sum(-1, keepdims=True), dtype=np.float64)


def weights_of(layer: MultiHeadSelfAttention, case: Case) -> NDArray[np.float64]:
    """The attention weights for a case, (taps, outputs, keys)."""
    size = None if case.output_size is None else heads.output_shape(case)
    shape = case.x.shape[-layer.geometry.dimension :]
    return numbers(layer.attention_weights(shape, output_size=size))


def continues_as(layer: MultiHeadSelfAttention, case: Case, mode: str) -> bool:
    """Whether attention is exactly one-hot, at the pixel of the border or at the sink."""
    weights, targets = weights_of(layer, case), Targets.of(case)
    # Where no pixel is wanted and there is no sink, the row is zeros, which no softmax gives.
    expected = np.eye(targets.pixels + 1)[targets.limit(mode)]
    return bool(np.array_equal(weights, expected[..., : weights.shape[-1]]))


def case_of(geometry: Any, dtype: torch.dtype) -> Case:
    """A drawn geometry whose numbers do not matter."""
    x = torch.zeros(geometry.shape, dtype=dtype)
    return Case(geometry.build(dtype), x, geometry.output_size)


def uneven(rank: int, mode: str, dtype: torch.dtype = torch.float64, **options: Any) -> Case:
    """A convolution of integers on 5, 5 x 4 or 5 x 4 x 3 pixels that asks for all its borders."""
    pixels = (5, 4, 3)[:rank]
    chosen: Any = {"kernel_size": 3, "padding": 1, "padding_mode": mode, **options}
    with torch.random.fork_rng(devices=[]):
        conv = CONVOLUTIONS[rank - 1](1, 1, dtype=dtype, **chosen)
    for first, parameter in enumerate(conv.parameters()):
        count = torch.arange(parameter.numel(), dtype=dtype)
        parameter.data.copy_((1 + first + count).view_as(parameter))
    x = torch.arange(math.prod(pixels), dtype=dtype).square() % 47
    return Case(conv, x.reshape(1, 1, *pixels))


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    # (1) is a definition.
    assert {step.equation for step in theory.prove()} == EQUATIONS - {1}


# Saturated: the border itself, bit for bit --------------------------------------------------------


@exact
@every_format
@given(data=st.data())
def test_saturated_heads_see_the_clamped_pixel_the_sink_or_the_residue(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = case_of(data.draw(geometries(padding_modes=NATURAL)), dtype).to(device)
    mode, targets = case.conv.padding_mode, Targets.of(case)
    factor = data.draw(st.sampled_from([None, 1.0, 1.5, 1e6]), label="sharpness over the least")
    gap = Softmax().one_hot_gap(dtype)
    layer = attention_from_conv(case.conv)
    if factor is not None:
        # A sink halves the gap, so that twice the sharpness is the least.
        layer = attention_from_conv(
            case.conv, sharpness=gap * factor * (2 if layer.has_sink else 1)
        )
    assert layer.boundary == "natural"
    assert layer.has_sink or targets.on_grid.all() or mode != "zeros"
    assert weights_of(layer, case).shape[-1] == targets.pixels + layer.has_sink
    assert continues_as(layer, case, mode)
    record(device=device, dtype=dtype)


@exact
@every_format
@given(data=st.data())
def test_natural_and_padded_borders_give_the_same_integers(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype=dtype, padding_modes=NATURAL))
    truth = convolve_module(case.conv, case.x, case.output_size)
    there = case.to(device)  # the oracle has read the numbers
    ways = [("natural", "dense"), ("padded", "dense"), ("natural", "auto")]
    outputs = [
        there.run(attention_from_conv(there.conv, boundary=boundary, evaluation=evaluation))
        for boundary, evaluation in ways
    ]
    for output in outputs:
        assert torch.equal(output, outputs[0])
    if dtype in (torch.float32, torch.float64):
        assert not exact_error(numbers(outputs[0]), truth).any()
    record(device=device, dtype=dtype)


EXTREMES: Mapping[str, Mapping[str, Any]] = {
    "kernel larger than the image": {"kernel_size": 6, "padding": 3},
    "kernel larger than the image, dilated": {"kernel_size": 3, "dilation": 4, "padding": 3},
    "one pixel": {"kernel_size": 3, "padding": 1},
    "one pixel, kernel of one": {"kernel_size": 1},
    "same": {"kernel_size": 4, "padding": "same"},
    "padding larger than the image": {"kernel_size": 2, "padding": 5},
}


@exact
@every_rank
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("name", EXTREMES)
def test_small_images_have_every_border_that_torch_gives_them(
    rank: int, mode: str, name: str, device: str
) -> None:
    pixels = ((1, 1, 1) if "one pixel" in name else (3, 4, 3))[:rank]
    conv, x = uneven(rank, mode, **EXTREMES[name]).conv, torch.arange(1.0, 1 + math.prod(pixels))
    case = Case(conv, x.double().reshape(1, 1, *pixels)).to(device)
    try:
        truth = convolve_module(case.conv, case.x)
    except ValueError:
        # Torch reflects less than the image, and goes round once; so do we.
        assert mode in ("reflect", "circular")
        with pytest.raises(ValueError, match=f"{mode} padding"):
            case.run(attention_from_conv(case.conv))
        return
    layer = attention_from_conv(case.conv, evaluation="dense")
    assert not exact_error(numbers(case.run(layer)), truth).any()
    assert layer.boundary == ("padded" if mode == "reflect" else "natural")
    if mode != "reflect":
        assert continues_as(layer, case, mode)


@exact
@every_rank
@pytest.mark.parametrize("mode", ["replicate", "circular"])
@pytest.mark.parametrize("sharpness", [1e-6, 0.7, 60.0])
def test_a_single_pixel_is_seen_by_every_head_at_every_sharpness(
    rank: int, mode: str, sharpness: float
) -> None:
    case = uneven(rank, mode)
    case = Case(case.conv, case.x.flatten()[2:3].reshape(1, 1, *(1,) * rank))
    layer = attention_from_conv(case.conv, sharpness=sharpness, evaluation="dense")
    assert (weights_of(layer, case) == 1).all()
    assert torch.equal(case.run(layer), case.run(case.conv))


# Leaks: every box, enclosed -----------------------------------------------------------------------


@st.composite
def boxes(
    draw: st.DrawFn, spacings: Sequence[int] = (1,)
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shape and the spacing of a box, and an integer target in it or up to 4 beyond it."""
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    spacing = tuple(draw(st.sampled_from(spacings)) for _ in range(rank))
    target = tuple(
        draw(st.integers(-4, s * (n - 1) + 4)) for n, s in zip(shape, spacing, strict=True)
    )
    return shape, spacing, target


@bounded
@given(alpha=ALPHAS, box=boxes())
@example(alpha=1.0, box=((1,), (1,), (-3,)))
def test_replication_leaks_less_than_epsilon_beyond_the_edge_too(
    alpha: float, box: tuple[tuple[int, ...], ...]
) -> None:
    # Equations (5) and (6).
    shape, _, target = box
    with precision(BITS):
        leak = theory.border_leak(alpha, shape, target, bits=BITS)
        assert leak < leak_enclosure(alpha, len(shape), bits=BITS)
        record(ratio=float((leak / leak_enclosure(alpha, len(shape))).upper()), dtype="real")
        theta, logs = 1 + theta_minus_one(alpha, bits=BITS), arb(0)
        for n, t in zip(shape, target, strict=True):
            beyond = max(-t, t - (n - 1), -1)
            x = (-2 * beyond * ball(alpha)).exp()
            logs += (theta if beyond < 0 else 1 + x * (theta - 1) / 2).log()
        assert leak < 1 - (-logs).exp()


@bounded
@given(alpha=ALPHAS, box=boxes(spacings=(1, 1, 2, 3)), depth=DEPTHS | st.just(Fraction(1, 2)))
@example(alpha=4.0, box=((1,), (2,), (1,)), depth=Fraction(1, 2))
def test_a_sink_loses_less_than_its_bounds_on_the_grid_and_off_it(
    alpha: float, box: tuple[tuple[int, ...], ...], depth: Fraction
) -> None:
    # Equations (13) to (15), with the depth of the sink anywhere between its ends.
    shape, spacing, target = box
    on_grid = all(
        t % s == 0 and 0 <= t // s < n for n, s, t in zip(shape, spacing, target, strict=True)
    )
    supremum = theory.sink_leak_on_grid if on_grid else theory.sink_leak_off_grid
    with precision(BITS):
        leak = theory.border_leak(alpha, shape, target, spacing=spacing, sink=depth, bits=BITS)
        bound = supremum(alpha, spacing, depth, bits=BITS)
        assert leak < bound
        record(ratio=float((leak / bound).upper()), dtype="real")
        # What needs no knowledge of the spacings but whether one exceeds 1.
        theta = 1 + theta_minus_one(alpha, bits=BITS)
        raised = (ball(alpha) * ball(depth)).exp()
        if on_grid:
            assert leak < 1 - 1 / (theta ** len(shape) + 1 / raised)
            return
        even = 1 + theta_minus_one(4 * ball(alpha), bits=BITS)
        off = (theta - 1) / 2 if max(spacing) == 1 else theta - even
        mass = raised * theta ** (len(shape) - 1) * off
        assert leak < mass / (1 + mass)


@bounded
@given(alpha=st.floats(1e-2, 60.0), rank=st.integers(1, 3))
def test_at_half_depth_and_spacing_one_the_grid_itself_loses_most(alpha: float, rank: int) -> None:
    # Equation (16).
    on = theory.sink_leak_on_grid(alpha, (1,) * rank)
    assert on > theory.sink_leak_off_grid(alpha, (1,) * rank)


def computed_sink_leak(alpha: float, rank: int) -> float:
    """Equation (19) in float64."""
    root = math.exp(-alpha / 2) * ROUND_UP + UNDERFLOW
    mass = off_target_mass(alpha, rank) + root
    share = mass / (1 + mass) if math.isfinite(mass) else 1.0
    return min(1.0, share * ROUND_UP + rank * UNDERFLOW)


@bounded
@given(alpha=sharpnesses() | st.floats(1e-12, 1e3), rank=st.integers(1, 3))
@example(alpha=1e-300, rank=3)
@example(alpha=1490.0, rank=1)
@example(alpha=1.7976931348623157e308, rank=3)
def test_computed_bound_of_a_sink_is_rounded_up_and_tight(alpha: float, rank: int) -> None:
    # Equation (19); errors from above double those of (22) of T2, with z = d log ϑ.
    with precision(BITS):
        truth = theory.sink_leak_on_grid(alpha, (1,) * rank, bits=BITS)
        computed = arb(computed_sink_leak(alpha, rank))
        growth = 1 + rank * theta_minus_one(alpha, bits=BITS).log1p()
        assert computed >= truth
        assert computed <= truth * (1 + arb(2) ** -44 * growth) + 160 * rank * arb(2) ** -1074


@bounded
@given(alpha=st.floats(0.1, 60.0), rank=st.integers(1, 3), depth=DEPTHS)
def test_no_depth_is_much_better_than_one_half(alpha: float, rank: int, depth: Fraction) -> None:
    # Equation (17): the odds leak/(1 - leak) are off-limit masses.
    def worst(spacing: int, sink: Fraction) -> arb:
        leaks = (
            law(alpha, (spacing,) * rank, sink)
            for law in (theory.sink_leak_on_grid, theory.sink_leak_off_grid)
        )
        first, second = (leak / (1 - leak) for leak in leaks)
        return first.max(second)

    root = (-ball(alpha) / 2).exp()
    excess = (rank * theta_minus_one(alpha).log1p()).expm1()
    assert worst(1, Fraction(1, 2)) / worst(1, depth) < 1 + excess / root
    # Between two pixels that are two apart, both are nearest: up to a factor of √2 is lost.
    tail = theory.off_axis_sum(alpha, 2) / (root * root) * (1 + excess)
    assert worst(2, Fraction(1, 2)) / worst(2, depth) < (1 + excess / root).max(tail.sqrt())


@control
@given(alpha=st.floats(0.1, 60.0), rank=st.integers(1, 3))
def test_at_no_finite_sharpness_is_half_the_depth_that_leaks_least(alpha: float, rank: int) -> None:
    # Equation (16): deeper by half of what makes both odds equal.
    ones, half = (1,) * rank, Fraction(1, 2)

    def odds(sink: Fraction) -> tuple[arb, arb]:
        laws = (theory.sink_leak_on_grid, theory.sink_leak_off_grid)
        leaks = [law(alpha, ones, sink, bits=BITS) for law in laws]
        return leaks[0] / (1 - leaks[0]), leaks[1] / (1 - leaks[1])

    with precision(BITS):
        on_grid, off_grid = odds(half)
        step = Fraction(float(((on_grid / off_grid).log() / (2 * ball(alpha))).mid()))
        assert step > 0
        assert all(each < on_grid for each in odds(half + step))


@bounded
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=3))
@example(sizes=[2])
@example(sizes=[3, 2])
@example(sizes=[1000])
def test_gap_of_a_torus_is_that_of_its_longest_axis(sizes: list[int]) -> None:
    # Equations (26) and (27), by trying every displacement of every axis.
    with precision(128):
        longest = max(sizes)
        gap = theory.circle_gap(longest)
        for n in sizes:
            for m in range(1, n):
                assert not 1 - (2 * m * arb.pi() / n).cos() < gap
        assert not gap < arb(8) / longest**2
        assert gap < 2 * arb.pi() ** 2 / longest**2
        # The stated gap leaves room for the rounding of two scores, and besides at most 32 u of it:
        # 2^-50 is 8 u, the sine has 4 u and its argument 2 u, which the square doubles, and three
        # more operations.
        box = Lattice.box(tuple(sizes))
        stated = Periodic().gap(torch.zeros(1, len(sizes)), box)
        room = gap - 2 * ball(Periodic().score_error(torch.zeros(1, len(sizes)), box))
        assert room - gap * arb(2) ** -48 < arb(stated) < room


@bounded
@given(alpha=st.floats(1e-2, 60.0), shape=st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_a_torus_leaks_less_than_its_bound_whatever_its_size(
    alpha: float, shape: list[int]
) -> None:
    # Equations (28) and (29).
    with precision(BITS):
        if alpha >= 1:  # x < 1/2: more than any box of a quadratic head
            four = theory.circle_leak(ball(alpha) / theory.circle_gap(4, bits=BITS), [4], bits=BITS)
            assert four > leak_enclosure(alpha, 1, bits=BITS)
        scale = ball(alpha) / theory.circle_gap(max(*shape, 2), bits=BITS)
        leak = theory.circle_leak(scale, shape, bits=BITS)
        bound = theory.circle_leak_bound(alpha, len(shape), bits=BITS)
        assert leak < bound
        record(ratio=float((leak / bound).upper()), dtype="real")


# Leaks of layers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row of a layer's weights, and what the theorem says of it.

    Attributes:
        off: What is stored off the limit, summed exactly.
        leak: What is off it over the reals, enclosed.
        bound: The theorem's, for every box.
        rounding: What floating point can have done to it, (9) or (11) of T7.
    """

    off: Fraction
    leak: arb
    bound: arb
    rounding: Fraction

    @classmethod
    def of(cls, layer: MultiHeadSelfAttention, case: Case, head: int, query: int) -> "Row":
        targets, alpha, mode = Targets.of(case), layer.sharpness, case.conv.padding_mode
        at, rank = [int(p) for p in targets.positions[head, query]], len(targets.shape)
        box = Lattice.box(targets.shape)
        keys, error = targets.pixels + layer.has_sink, 0.0
        if mode == "circular":
            gap = layer.encoding.gap(torch.zeros(1, rank), box)
            leak = theory.circle_leak(Fraction(alpha) / Fraction(gap), targets.shape, bits=BITS)
            bound = theory.circle_leak_bound(alpha, rank, bits=BITS)
            error = alpha * layer.encoding.relative_score_error(torch.zeros(1, rank), box)
        else:
            sink = Fraction(1, 2) if layer.has_sink else None
            leak = theory.border_leak(
                alpha, targets.shape, at, spacing=targets.spacing, sink=sink, bits=BITS
            )
            law = theory.sink_leak_on_grid
            if not targets.on_grid[head, query]:
                law = theory.sink_leak_off_grid
            bound = leak_enclosure(alpha, rank, bits=BITS)
            if layer.has_sink:
                bound = law(alpha, targets.spacing, bits=BITS)
        mass = math.nextafter(float((leak / (1 - leak)).upper()), math.inf)
        rounding = head_rounding(
            torch.tensor(min(mass, 1.0), dtype=torch.float64),
            torch.tensor(1.0, dtype=torch.float64),
            mass,
            [keys],
            case.x.dtype,
            score_error=error,
        )
        row = weights_of(layer, case)[head, query]
        off = heads.off_target(row, int(targets.limit(mode)[head, query]))
        return cls(off, leak, bound, Fraction(rounding.item()))


@bounded
@every_format
@given(data=st.data())
def test_rows_of_natural_layers_leak_what_their_box_says(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = case_of(data.draw(geometries(padding_modes=NATURAL)), dtype).to(device)
    alpha = data.draw(sharpnesses(), label="sharpness")
    layer = attention_from_conv(case.conv, sharpness=alpha, boundary="natural")
    targets = Targets.of(case)
    head = data.draw(st.integers(0, len(targets.positions) - 1), label="head")
    # Half the time a query whose target has left the grid, if there is one.
    astray = np.flatnonzero(~targets.on_grid[head])
    queries = st.integers(0, targets.positions.shape[1] - 1)
    query = data.draw(st.sampled_from(astray.tolist()) | queries if len(astray) else queries)
    with precision(BITS):
        row = Row.of(layer, case, head, query)
        assert abs(ball(row.off) - row.leak) <= ball(row.rounding)
        limit = row.bound + ball(row.rounding)
        assert ball(row.off) <= limit
        if row.off:
            record(ratio=float((ball(row.off) / limit).upper()), device=device, dtype=dtype)


# Necessity: rows sum to one -----------------------------------------------------------------------


def without_sink(conv: Any, **options: Any) -> MultiHeadSelfAttention:
    """The natural layer, its sink forgotten."""
    layer: MultiHeadSelfAttention
    layer = attention_from_conv(conv, boundary="natural", evaluation="dense", **options)
    layer.boundary_rule = replace(layer.boundary_rule, sink_height=None)
    return layer


@bounded
@every_format
@given(data=st.data())
def test_stored_rows_sum_to_one_within_their_rounding(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    # Equation (24), whatever the border, with the sink's weight where there is one.
    case = case_of(data.draw(geometries()), dtype).to(device)
    layer = attention_from_conv(case.conv, sharpness=data.draw(sharpnesses()))
    weights = exactly(weights_of(layer, case))
    allowed = theory.row_sum_error(weights.shape[-1], STATED[str(dtype).removeprefix("torch.")])
    sums = {Fraction(int(total)) for total in weights.numerators.sum(-1).ravel()}
    error = max(abs(total * Fraction(2) ** weights.exponent - 1) for total in sums)
    assert error <= allowed
    record(ratio=float(error / allowed), device=device, dtype=dtype)


@exact
@given(
    case=integer_cases(layers=CONVOLUTIONS, padding_modes=NATURAL),
    value=st.integers(-3, 3),
)
def test_without_a_sink_a_constant_image_has_a_constant_output(case: Case, value: int) -> None:
    # Equation (22). Sums stay below 2^53, where float64 adds integers exactly.
    fits = 3 * case.conv.weight.detach().abs().sum() < 2**50
    y = without_sink(case.conv)(torch.full_like(case.x, value if fits else 0)).flatten(
        -len(case.conv.kernel_size)
    )
    assert torch.equal(y, y[..., :1].expand_as(y))


@dataclass(frozen=True)
class TopAndBottom:
    """A normaliser that no one would want: half for the best key, half for the worst."""

    def __call__(self, scores: Tensor) -> Tensor:
        best, worst = scores.argmax(-1, keepdim=True), scores.argmin(-1, keepdim=True)
        halves = torch.full_like(best, 1, dtype=scores.dtype) / 2
        return torch.zeros_like(scores).scatter_add(-1, best, halves).scatter_add(-1, worst, halves)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        return math.inf


@dataclass(frozen=True)
class Uniform:
    """All keys alike."""

    def __call__(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores) / scores.shape[-1]

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        return math.inf


def deviation(
    layer: MultiHeadSelfAttention, case: Case, value: int
) -> tuple[list[Fraction], list[Fraction]]:
    """How far the outputs for a constant image are from X Σ W + b, and by how much rounding may.

    For each output channel. Rows sum to one within equation (24). Every output is a nested sum of
    products, over keys, channels, heads and the bias, of at most n roundings one after another.
    """
    conv, u = case.conv, Fraction(1, 2**53)
    rank, keys = len(conv.kernel_size), Targets.of(case).pixels
    y = layer(torch.full_like(case.x, value)).detach().flatten(-rank).movedim(-2, 0).flatten(1)
    off_one = theory.row_sum_error(keys, STATED["float64"])
    n = keys + 2 * (conv.in_channels + conv.out_channels) + layer.num_heads + 4
    products = keys * layer.num_heads * conv.in_channels
    found, allowed = [], []
    for channel, outputs in enumerate(y.tolist()):
        taps = [int(w) for w in conv.weight[channel].flatten().tolist()]
        bias = 0 if conv.bias is None else int(conv.bias[channel])
        wanted, size = value * sum(taps) + bias, abs(value) * sum(map(abs, taps))
        found.append(max(abs(Fraction(output) - wanted) for output in outputs))
        rounding = ((1 + u) ** n - 1) * ((1 + off_one) * size + abs(bias))
        lost = Fraction(products * (1 + size), 2**1074)
        allowed.append(size * off_one + rounding + lost)
    return found, allowed


@bounded
@given(
    case=integer_cases(torch.float64, layers=CONVOLUTIONS, padding_modes=NATURAL).filter(
        lambda case: case.x.numel() > 0
    ),
    value=st.integers(-3, 3).filter(bool),
    sharpness=sharpnesses() | st.floats(0.05, 8),
    normaliser=st.sampled_from(["softmax", TopAndBottom(), Uniform()]),
)
def test_a_constant_image_has_a_constant_output_at_every_sharpness_and_any_weights(
    case: Case, value: int, sharpness: float, normaliser: Any
) -> None:
    # Equation (22), soft heads included.
    layer = without_sink(case.conv, sharpness=sharpness, normaliser=normaliser)
    for found, allowed in zip(*deviation(layer, case, value), strict=True):
        assert found <= allowed
        record(ratio=float(found / allowed) if allowed else 0.0, dtype=torch.float64)


@control
@every_rank
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0, 2000.0])
def test_with_a_sink_a_constant_image_has_no_constant_output(rank: int, sharpness: float) -> None:
    case = uneven(rank, "zeros")
    layer = attention_from_conv(case.conv, sharpness=sharpness, evaluation="dense")
    (found,), (allowed,) = deviation(layer, case, 3)
    assert found > allowed


@exact
@pytest.mark.parametrize("normaliser", [TopAndBottom(), Uniform()], ids=repr)
@natural_modes
def test_no_normaliser_whose_rows_sum_to_one_pads_with_zeros(normaliser: Any, mode: str) -> None:
    conv = uneven(2, mode).conv
    layer = without_sink(conv, normaliser=normaliser, sharpness=1.0)
    y = layer(torch.full((1, 1, 4, 8), 3.0, dtype=torch.float64))  # 32 keys, a power of two
    assert conv.bias is not None
    assert (y == 3 * conv.weight.sum() + conv.bias).all()


@bounded
@every_rank
@natural_modes
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0, 2000.0])
def test_without_a_sink_corner_and_interior_share_an_error(
    rank: int, mode: str, sharpness: float
) -> None:
    # Equation (25): a blur of 3^d ones sees 3^d ones inside and 2^d in a corner.
    case = uneven(rank, mode)
    weights = exactly(weights_of(without_sink(case.conv, sharpness=sharpness), case))
    output = [Fraction(int(total)) for total in weights.numerators.sum(-1).sum(0)]
    output = [total * Fraction(2) ** weights.exponent for total in output]
    corner, inside = 0, np.ravel_multi_index((2, 2, 1)[:rank], case.x.shape[2:])
    errors = abs(output[corner] - 2**rank) + abs(output[int(inside)] - 3**rank)
    slack = 2 * 3**rank * theory.row_sum_error(weights.shape[-1], STATED["float64"])
    assert errors >= 3**rank - 2**rank - slack


@exact
@every_rank
def test_with_its_sink_the_same_layer_has_no_error(rank: int) -> None:
    case = uneven(rank, "zeros")
    case.conv.weight.data.fill_(1)
    ones = Case(case.conv, torch.ones_like(case.x))
    y = ones.run(attention_from_conv(case.conv, boundary="natural", evaluation="dense"))
    assert torch.equal(y, ones.run(case.conv))
    assert y.min() < y.max()


# How deep a sink may be ---------------------------------------------------------------------------

APART: Mapping[str, Any] = {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2}
"""Every target that leaves the image is two pixels away from it: μ = 4."""


def sweep(rank: int, name: str) -> tuple[Case, int]:
    """A convolution, and the least squared distance of a target that is no pixel."""
    if name == "transposed":
        options: Any = {"kernel_size": 3, "stride": 2, "dtype": torch.float64}
        with torch.random.fork_rng(devices=[]):
            conv = TRANSPOSED[rank - 1](1, 1, **options)
        return Case(conv, torch.zeros(1, 1, *(3, 2, 2)[:rank], dtype=torch.float64)), 1
    if name == "padding":
        return uneven(rank, "zeros"), 1
    odd = torch.zeros(1, 1, *(5, 3, 3)[:rank], dtype=torch.float64)  # ends on a query
    return Case(uneven(rank, "zeros", **APART).conv, odd), 4


@exact
@every_rank
@pytest.mark.parametrize("name", ["padding", "transposed", "apart"])
@pytest.mark.parametrize("depth", ["-1/4", "0", "1/100", "1/4", "1/2", "3/4", "1", "5/4", "2", "4"])
def test_sink_pads_with_zeros_exactly_between_its_ends(rank: int, name: str, depth: str) -> None:
    # Equations (9) and (10): beyond the ends another key wins, at them there is a tie.
    case, mu = sweep(rank, name)
    c, targets = Fraction(depth), Targets.of(case)
    gaps = [g for g in (c, mu - c, Fraction(1, 4)) if g > 0]
    sharpness = Softmax().one_hot_gap(torch.float64) / float(min(gaps))
    layer = sunk(attention_from_conv(case.conv, sharpness=sharpness), float(c))
    weights = weights_of(layer, case)
    assert np.array_equal(weights, targets.nearest(c))
    assert continues_as(layer, case, "zeros") is (0 < c < mu)
    if c == 0:
        assert (weights[targets.on_grid].max(-1) == 1 / 2).all()
    if c == mu:
        # Between two pixels of a transposed convolution three keys tie, beyond an edge two.
        assert weights[~targets.on_grid][:, -1].min() == 1 / (3 if name == "transposed" else 2)


@exact
@given(
    geometry=geometries(padding_modes=["zeros"]),
    depth=st.fractions(-1, 10, max_denominator=4) | st.sampled_from(list(map(Fraction, range(6)))),
)
def test_limit_is_zero_padding_just_where_both_conditions_hold(
    geometry: Any, depth: Fraction
) -> None:
    # Equation (9): the upper end matters to targets on the grid alone, the lower one to the others.
    targets = Targets.of(case_of(geometry, torch.float64))
    on_grid, steps = targets.on_grid, targets.nearest(depth)
    pixels = np.stack(np.unravel_index(np.arange(targets.pixels), targets.shape), axis=-1)
    away = ((targets.positions[:, :, None] - pixels * targets.spacing) ** 2).sum(-1).min(-1)
    mu = min((int(m) for m in away[~on_grid]), default=None)
    right = np.eye(targets.pixels + 1)[targets.limit("zeros")]
    needed = (not on_grid.any() or depth > 0) and (mu is None or depth < mu)
    assert np.array_equal(steps, right) is needed
    record()


@exact
@pytest.mark.parametrize("depth", [-1.0, 0.0, 1 / 2])
def test_where_no_target_is_a_pixel_a_sink_may_stand_above_them(
    depth: float,
) -> None:
    # Equation (9): two queries, one pixel before and one after the image of one pixel.
    case = uneven(1, "zeros", kernel_size=1, stride=2)
    case = Case(case.conv, case.x[..., :1])
    targets = Targets.of(case)
    assert not targets.on_grid.any()
    assert targets.positions.flatten().tolist() == [-1, 1]
    sharpness = 2 * Softmax().one_hot_gap(torch.float64)
    layer = sunk(attention_from_conv(case.conv, sharpness=sharpness), depth)
    assert continues_as(layer, case, "zeros")


@control
@every_rank
def test_the_sharpness_that_saturates_a_head_is_not_enough_with_a_sink(rank: int) -> None:
    # Equation (18): the gap is half of the sharpness.
    case = uneven(rank, "zeros")
    gap = Softmax().one_hot_gap(torch.float64)
    astray = ~Targets.of(case).on_grid
    for factor, one_hot in ((1.0, False), (1.9, False), (2.0, True)):
        layer = attention_from_conv(case.conv, sharpness=gap * factor)
        assert continues_as(layer, case, "zeros") is one_hot
        assert bool((weights_of(layer, case)[astray][..., :-1] == 0).all()) is one_hot
    assert attention_from_conv(case.conv).sharpness == 2 * gap


@control
@pytest.mark.parametrize("depth", range(-5, 30))
def test_without_centring_no_sink_serves_all_heads(depth: int) -> None:
    # Equation (21): the paper's scores are -α|δ - Δ|² + α|Δ|², here for Δ = -1, 0, 1 on 5 pixels.
    def pads_with_zeros(query: int, shift: int) -> bool:
        best = max(-((key - query - shift) ** 2) + shift**2 for key in range(5))
        return best > sink if 0 <= query + shift < 5 else best < sink

    sink = Fraction(depth, 4)
    assert not all(pads_with_zeros(q, shift) for q in range(5) for shift in (-1, 0, 1))
    # Centred, each is right with a sink of its own, half-way down.
    for shift in (-1, 0, 1):
        sink = Fraction(2 * shift**2 - 1, 2)
        assert all(pads_with_zeros(q, shift) for q in range(5))


@bounded
@pytest.mark.parametrize("sharpness", [0.3, 3.0, 30.0])
def test_a_sink_is_a_softmax_with_one_added_to_its_denominator(sharpness: float) -> None:
    # Equation (20): all scores raised by α/2, so that the sink's is 0 and the target's α/2.
    case = uneven(1, "zeros")
    weights = weights_of(attention_from_conv(case.conv, sharpness=sharpness), case)
    one = torch.tensor(1.0, dtype=torch.float64)
    for (head, query), position in np.ndenumerate(Targets.of(case).positions[..., 0]):
        depths = [Fraction(1, 2) - int((key - position) ** 2) for key in range(5)]
        raised = [(ball(sharpness) * ball(depth)).exp() for depth in depths]
        for key, power in enumerate(raised):
            expected = power / (1 + sum(raised, arb(0)))
            seen = torch.tensor(float(expected.upper()), dtype=torch.float64)
            allowed = head_rounding(seen, one, math.inf, [6], torch.float64)
            assert abs(ball(float(weights[head, query, key])) - expected) <= ball(allowed.item())


# What a border needs of its encoding --------------------------------------------------------------


class Skewed:
    """Quadratic scores with the precision [[1, 1/2], [1/2, 1]]: -(a² + ab + b²), a, b = δ - Δ."""

    natural_borders: Mapping[str, Any] = {}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        (a, b), (s, t) = displacements.T, shifts.T
        features = torch.stack([a * a + a * b + b * b, a, b], dim=-1)
        return features, torch.stack([-torch.ones_like(s), 2 * s + t, s + 2 * t], dim=-1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


class SkewedAtTheBorder(Skewed):
    """The same, taken at its word that it replicates."""

    @property
    def natural_borders(self) -> Mapping[str, EncodingLike]:  # type: ignore[override]
        return {"replicate": self}


@control
@pytest.mark.parametrize("sharpness", [1.0, 60.0, None])
def test_a_precision_that_is_not_diagonal_ties_at_the_border(sharpness: float | None) -> None:
    # Equation (7): the head that looks up, at the row of pixels 0 and the column 2.
    conv = nn.Conv2d(1, 1, (2, 1), padding=(1, 0), padding_mode="replicate", dtype=torch.float64)
    layer = attention_from_conv(conv, encoding=SkewedAtTheBorder(), sharpness=sharpness)
    row = numbers(layer.attention_weights((5, 5)))[0, 2].reshape(5, 5)
    assert row[0, 1] == row[0, 2] <= 1 / 2
    if sharpness is None:
        assert np.count_nonzero(row) == 2
    # With explicit keys, it does select its shift.
    padded = attention_from_conv(conv, encoding=Skewed(), sharpness=sharpness)
    assert padded.boundary == "padded"
    row = numbers(padded.attention_weights((5, 5)))[0, 2].reshape(7, 5)
    assert row[0, 2] == row.max() > row[0, 1]


class Reflecting:
    """Scores for reflecting one pixel on every axis, and two where an axis has three; (34)."""

    @property
    def natural_borders(self) -> Mapping[str, EncodingLike]:
        return {"reflect": self}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        steps = torch.arange(-2, 3).to(displacements)
        features = (displacements[:, :, None] == steps).to(displacements).flatten(1)
        shift = shifts[:, :, None]
        names = 2.0 * (shift == steps) + 1.0 * ((shift == -steps) & (shift != 0))
        both_ends = 2.0 * (steps.abs() == 2) + 1.0 * (steps == 0)
        names = torch.where(shift.abs() == 2, both_ends.to(names), names)
        return features, names.to(displacements).flatten(1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


@exact
@every_rank
@pytest.mark.parametrize("reach", [1, 2])
def test_reflection_by_one_pixel_or_on_three_has_an_encoding_of_its_own(
    rank: int, reach: int
) -> None:
    # Equation (34): neither quadratic nor periodic.
    case = uneven(rank, "reflect", kernel_size=1 + 2 * reach, padding=reach)
    if reach == 2:
        case = Case(case.conv, case.x.flatten()[: 3**rank].reshape(1, 1, *[3] * rank))
    layer = attention_from_conv(case.conv, encoding=Reflecting(), evaluation="dense")
    assert layer.boundary == "natural"
    assert not layer.has_sink
    assert continues_as(layer, case, "reflect")
    assert torch.equal(case.run(layer), case.run(case.conv))


@control
@pytest.mark.parametrize("size", [2, 4, 5])
def test_the_score_for_three_pixels_does_not_reflect_by_two_on_other_sizes(size: int) -> None:
    case = uneven(1, "reflect", kernel_size=5, padding=2)
    x = torch.arange(float(size), dtype=torch.float64).reshape(1, 1, size)
    layer = attention_from_conv(case.conv, encoding=Reflecting(), evaluation="dense")
    if size == 2:
        with pytest.raises(ValueError, match="reflect padding"):
            layer(x)
        return
    assert not continues_as(layer, Case(case.conv, x), "reflect")


def relative_score_reflects(size: int, shift: int, queries: Sequence[int]) -> bool:
    """Whether some score of the displacement prefers the mirrored pixel at every query, strictly.

    Just if no chain of preferences comes round: then number the displacements in their order.
    """
    below: dict[int, set[int]] = {}
    for q in queries:
        t = q + shift
        mirrored = -t if t < 0 else 2 * (size - 1) - t if t >= size else t
        worse = {k - q for k in range(size) if k != mirrored}
        below.setdefault(mirrored - q, set()).update(worse)
    try:
        TopologicalSorter(below).prepare()
    except CycleError:
        return False
    return True


@exact
@pytest.mark.parametrize("size", range(1, 13))
def test_reflection_has_a_relative_score_just_for_one_pixel_or_three(size: int) -> None:
    # Equations (33) and (34), by trying every shift that is shorter than the axis.
    for shift in range(1 - size, size):
        there_is = relative_score_reflects(size, shift, range(size))
        assert there_is is (abs(shift) <= 1 or size <= 3)
        assert there_is is (theory.reflecting_score(size, shift) is not None)
        record()


@control
def test_reflection_by_two_pixels_asks_for_a_contradiction() -> None:
    # Equation (33).
    assert theory.reflections_contradict(4, -2)
    assert not theory.reflections_contradict(3, -2)
    assert not theory.reflections_contradict(9, -1)
    # Every pixel has to be a query: two queries of four pixels ask for no contradiction.
    assert not relative_score_reflects(4, -3, range(4))
    assert relative_score_reflects(4, -3, range(2))


@control
@every_rank
def test_a_quadratic_head_beyond_the_edge_does_not_see_the_mirrored_pixel(rank: int) -> None:
    # Equation (32): e^(-3α) of the edge's weight for one pixel beyond.
    case = uneven(rank, "replicate")
    weights = weights_of(attention_from_conv(case.conv, sharpness=2.0), case)
    targets = Targets.of(case)
    beyond = (targets.positions[..., 0] == -1) & (targets.positions[..., 1:] == 1).all(-1)
    edge, mirror = targets.limit("replicate")[beyond], targets.limit("reflect")[beyond]
    with precision(128):
        # One exponential, and for each weight a quotient, or a reciprocal and a product.
        u = ball(STATED["float64"].unit_roundoff)
        error = (1 + ball(exponential_error(torch.float64, 0.0))) / (1 - u) ** 4 - 1
        for row, near, far in zip(weights[beyond], edge, mirror, strict=True):
            ratio = ball(float(row[far])) / ball(float(row[near]))
            assert abs(ratio / (-ball(3 * 2)).exp() - 1) <= error


# Wrong borders ------------------------------------------------------------------------------------


@control
@every_rank
@pytest.mark.parametrize("wrong", PADDING_MODES)
@natural_modes
def test_every_wrong_border_is_told_from_the_right_one(rank: int, mode: str, wrong: str) -> None:
    case = uneven(rank, mode)
    assert continues_as(attention_from_conv(case.conv), case, wrong) is (wrong == mode)


@control
@every_rank
def test_a_forgotten_sink_replicates(rank: int) -> None:
    case = uneven(rank, "zeros")
    layer = without_sink(case.conv)
    assert not continues_as(layer, case, "zeros")
    assert continues_as(layer, case, "replicate")
    assert not torch.equal(case.run(layer), case.run(case.conv))


@control
@every_rank
@pytest.mark.parametrize("depth", [-0.5, 0.0, 1.0, 1.5])
def test_a_sink_at_the_wrong_height_does_not_pad_with_zeros(rank: int, depth: float) -> None:
    case = uneven(rank, "zeros")
    layer = attention_from_conv(case.conv, evaluation="dense")
    assert torch.equal(case.run(layer), case.run(case.conv))
    sunk(layer, depth)
    assert not continues_as(layer, case, "zeros")
    assert not torch.equal(case.run(layer), case.run(case.conv))


@dataclass(frozen=True)
class WrongPeriod(Periodic):
    """Circles of a circumference other than the image's."""

    longer: int = 1

    @property
    def natural_borders(self) -> Mapping[str, Encoding]:
        return {"circular": self}

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return super().encode(displacements, shifts, self._wrong(grid))

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return super().gap(shifts, self._wrong(grid))

    def _wrong(self, grid: Lattice) -> Lattice:
        return Lattice.box(tuple(n + self.longer for n in grid.shape))


@control
@every_rank
@pytest.mark.parametrize("longer", [-1, 1, 2])
def test_a_periodic_encoding_of_the_wrong_period_does_not_go_round(rank: int, longer: int) -> None:
    case = uneven(rank, "circular")
    assert continues_as(attention_from_conv(case.conv, encoding=Periodic()), case, "circular")
    wrong = attention_from_conv(case.conv, encoding=WrongPeriod(longer))
    assert wrong.boundary == "natural"
    assert not continues_as(wrong, case, "circular")


@control
@every_rank
def test_no_sink_tells_a_periodic_head_that_it_has_left_the_image(rank: int) -> None:
    # A target beyond the edge has the scores of its residue, so either the sink takes both or none.
    case = uneven(rank, "circular")
    layer = attention_from_conv(case.conv)
    layer.border = Zeros()
    assert layer.has_sink
    assert layer.encoding == Periodic()
    for depth in (0.5, 1.5, -0.5):
        sunk(layer, depth)
        assert not continues_as(layer, case, "zeros")
        assert (weights_of(layer, case)[..., -1] == (depth < 0)).all()


@exact
@every_rank
def test_zeros_and_a_periodic_encoding_make_explicit_keys(rank: int) -> None:
    case = uneven(rank, "zeros")
    layer = attention_from_conv(case.conv, encoding="periodic", evaluation="dense")
    assert layer.boundary == "padded"
    weights, targets = weights_of(layer, case), heads.Targets.of(case)
    assert np.array_equal(weights, targets.one_hot())


@dataclass(frozen=True)
class GapOfOne(Periodic):
    """A circle that claims the gap of the quadratic encoding."""

    @property
    def natural_borders(self) -> Mapping[str, Encoding]:
        return {"circular": self}

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


@control
def test_the_gap_of_a_circle_is_not_uniform_in_its_size() -> None:
    # Equations (27) and (30): 4 pixels have the gap 1, and 5 pixels less.
    for size, one_hot in ((3, True), (5, False), (24, False)):
        case = uneven(1, "circular")
        case = Case(case.conv, torch.zeros(1, 1, size, dtype=torch.float64))
        right = attention_from_conv(case.conv)
        wrong = attention_from_conv(case.conv, encoding=GapOfOne())
        assert continues_as(right, case, "circular")
        assert continues_as(wrong, case, "circular") is one_hot


# Bounds that are none -----------------------------------------------------------------------------


@control
@every_rank
@pytest.mark.parametrize("alpha", [0.5, 4.0, 38.0])
def test_bounds_for_a_little_more_sharpness_are_no_bounds(rank: int, alpha: float) -> None:
    # The suprema are approached: boxes of a few keys are within one part in a thousand.
    shape, inside, beyond = (13,) * rank, (6,) * rank, (-1, 6, 6)[:rank]
    more, ones = alpha * 1.001, (1,) * rank
    half = Fraction(1, 2)
    assert theory.border_leak(alpha, shape, inside) > leak_enclosure(more, rank)
    on = theory.border_leak(alpha, shape, inside, sink=half)
    assert on > theory.sink_leak_on_grid(more, ones)
    off = theory.border_leak(alpha, shape, beyond, sink=half)
    assert off > theory.sink_leak_off_grid(more, ones)
    for spacing in (2, 3, 4):
        stuffed = (spacing, *ones[1:])
        between = (6 * spacing + 1, 6, 6)[:rank]
        off = theory.border_leak(alpha, shape, between, spacing=stuffed, sink=half)
        assert off > theory.sink_leak_off_grid(more, stuffed)


@control
@pytest.mark.parametrize("alpha", [1.0, 4.0, 38.0])
def test_a_hole_between_two_pixels_loses_more_than_a_border(alpha: float) -> None:
    # The half sum is no bound at spacing 2, where two pixels are nearest.
    hole = theory.border_leak(alpha, (4,), (3,), spacing=(2,), sink=Fraction(1, 2))
    assert hole > theory.sink_leak_off_grid(alpha, (1,))


@control
@every_rank
def test_the_leak_of_the_quadratic_head_bounds_neither_circle_nor_sink(rank: int) -> None:
    epsilon = leak_enclosure(4.0, rank)
    scale = ball(4.0) / theory.circle_gap(4)
    assert theory.circle_leak(scale, (4,) * rank) > epsilon
    assert theory.border_leak(4.0, (5,) * rank, (2,) * rank, sink=Fraction(1, 2)) > epsilon


# The contract -------------------------------------------------------------------------------------


@control
@every_rank
def test_an_explicit_natural_border_that_there_is_not_is_refused(rank: int) -> None:
    with refused(ValueError, "boundary", "natural", "padded"):
        attention_from_conv(uneven(rank, "reflect").conv, boundary="natural")
    for mode in ("replicate", "circular"):
        with refused(ValueError, "boundary", "natural", "padded"):
            attention_from_conv(uneven(rank, mode).conv, encoding=Skewed(), boundary="natural")
    with refused(ValueError, "boundary", "natural", "padded"):
        attention_from_conv(uneven(rank, "replicate").conv, encoding="periodic", boundary="natural")


@exact
@every_rank
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_layer_says_which_border_it_has(rank: int, mode: str) -> None:
    case = uneven(rank, mode)
    layer = attention_from_conv(case.conv)
    assert layer.boundary == ("padded" if mode == "reflect" else "natural")
    assert layer.has_sink is (mode == "zeros")
    padded = attention_from_conv(case.conv, boundary="padded")
    assert (padded.boundary, padded.has_sink) == ("padded", False)
    unpadded = attention_from_conv(uneven(rank, mode, padding=0).conv)
    assert not unpadded.has_sink  # no target can leave the image


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
