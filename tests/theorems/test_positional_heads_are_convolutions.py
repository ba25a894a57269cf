"""A softmax head that scores keys by displacement alone is a quotient of two convolutions: conv_g(X)/conv_g(1), the kernel e^g.

T25, `docs/theorems/positional_heads_are_convolutions.md`. The truth is the definition, over the
rationals or in ball arithmetic; of the layer it reads the parameters and the lattices alone.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, arb_mat
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from constructions import attention_from_conv
from constructions.encodings import BiasTable, Encoding
from constructions.encodings.gaussian import Gaussian
from constructions.encodings.periodic import Periodic
from constructions.encodings.quadratic import Quadratic
from constructions.formats import FORMATS, OWN, smallest_normal, unit_roundoff
from constructions.geometry.lattice import Lattice
from constructions.geometry.view import View
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.soft_padding import SoftPadding
from constructions.lowering import Lowered, lower
from constructions.lowering.bands import Squares
from constructions.lowering.bound import Summands
from constructions.lowering.groups import Group
from constructions.matrix_units import Products
from constructions.normalisers.quotients import Entmax
from tests.support import formal
from tests.support.helpers import filled, integers, refused
from tests.support.layout import ANCHOR, page_of
from tests.support.ledger import ROOT, record
from tests.support.strategies import PADDING_MODES, Case, integer_cases, sharpnesses
from theory import positional_heads_are_convolutions as theory
from theory.tools.theta import ball, precision

SLUG = "positional_heads_are_convolutions"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

BITS = 256
LEAST_PRECISION = 1e-3  # of an edited head: a head must fall off, and one that hardly does is rare
LARGEST = 5_000  # heads x queries x keys that a truth in balls takes

Point = tuple[int, ...]
Score = Callable[[Point], arb]


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    # (1) is a definition, and (14) is counted by torch in a test below.
    equations = {int(number) for number in ANCHOR.findall(page_of(SLUG, ROOT).read_text("utf-8"))}
    assert {step.equation for step in theory.prove()} == equations - {1, 14}


# The identity, over the rationals -----------------------------------------------------------------

fractions = st.fractions(-3, 3, max_denominator=7)
shapes = st.sampled_from([(1,), (4,), (7,), (2, 3), (3, 3), (2, 2, 2)])


def points(shape: Sequence[int], spacing: int = 1) -> list[Point]:
    return list(product(*(range(0, n * spacing, spacing) for n in shape)))


def minus(a: Point, b: Point) -> Point:
    return tuple(i - j for i, j in zip(a, b, strict=True))


@st.composite
def rational_heads(
    draw: st.DrawFn, shape: Point
) -> tuple[Callable[[Point], Fraction], dict[Point, Fraction], Fraction]:
    """A kernel e^g of positive rationals, pixels on a box, and e^σ of a sink or 0."""
    pixels = {k: draw(fractions) for k in points(shape, draw(st.sampled_from([1, 2])))}
    base = draw(st.lists(st.integers(1, 50), min_size=5, max_size=5))
    kernel = {}

    def weight(offset: Point) -> Fraction:
        if offset not in kernel:
            mixed = sum(i * (31**axis) for axis, i in enumerate(offset))
            kernel[offset] = Fraction(base[mixed % 5], 1 + abs(mixed) % 7)
        return kernel[offset]

    return weight, pixels, draw(st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(20)]))


@exact
@given(shapes.flatmap(lambda shape: rational_heads(shape)), st.data())
def test_head_on_a_box_is_a_quotient_of_two_convolutions(
    drawn: tuple[Any, dict[Point, Fraction], Fraction], data: st.DataObject
) -> None:
    kernel, pixels, sink = drawn
    rank = len(max(pixels))
    q = data.draw(st.tuples(*[st.integers(-3, 12)] * rank))
    reach = 1 + max(abs(i - j) for k in pixels for i, j in zip(k, q, strict=True))
    offsets = set(product(range(-reach, reach + 1), repeat=rank)) if rank < 3 else {(99, 0, 0)}
    offsets |= {minus(k, q) for k in pixels}
    quotient = theory.by_convolutions(kernel, offsets, pixels, q, sink)
    assert theory.by_definition(kernel, pixels, q, sink) == quotient
    record(dtype="rational")


@exact
@given(shapes, st.data())
def test_head_on_a_torus_is_a_circular_convolution_with_the_normalised_kernel(
    shape: Point, data: st.DataObject
) -> None:
    grid = points(shape)
    kernel = {d: data.draw(st.fractions(Fraction(1, 9), 9)) for d in grid}
    pixels = {k: data.draw(fractions) for k in grid}

    def around(point: Sequence[int]) -> Point:
        return tuple(i % n for i, n in zip(point, shape, strict=True))

    normalised = {d: e / sum(kernel.values()) for d, e in kernel.items()}
    for q in grid:
        head = theory.by_definition(lambda d: kernel[around(d)], pixels, q, Fraction(0))
        circular = sum(
            e * pixels[around([i + j for i, j in zip(q, d, strict=True)])]
            for d, e in normalised.items()
        )
        assert head == circular
    record(dtype="rational")


@control
def test_without_the_renormaliser_the_border_is_wrong() -> None:
    pixels: dict[Point, Fraction] = {(k,): Fraction(1) for k in range(3)}

    def kernel(offset: Point) -> Fraction:
        return Fraction(1, 1 + offset[0] ** 2)

    heads = [theory.by_definition(kernel, pixels, (q,), Fraction(0)) for q in range(3)]
    assert heads == [1, 1, 1]
    whole = sum(kernel((d,)) for d in range(-2, 3))
    assert all(sum(kernel((k - q,)) for k in range(3)) / whole < 1 for q in range(3))


# The definition, in balls -------------------------------------------------------------------------


def seen(
    score: Score, sink: arb | None, keys: list[Point], queries: list[Point], columns: arb_mat
) -> arb_mat:
    """What a head sees: softmax over the keys (and the sink), times the columns."""
    known: dict[Point, arb] = {}
    rows = []
    for q in queries:
        row = []
        for k in keys:
            offset = minus(k, q)
            if offset not in known:
                known[offset] = score(offset).exp()
            row.append(known[offset])
        total = sum(row, arb(0) if sink is None else sink.exp())
        rows.append([e / total for e in row])
    return arb_mat(rows) * columns


def matrix(tensor: Tensor) -> arb_mat:
    """The exact numbers of a matrix."""
    return arb_mat(tensor.detach().double().tolist())


def definition(
    scores: Sequence[Score],
    sinks: Sequence[arb | None],
    value: Tensor,
    output: Tensor,
    bias: Tensor | None,
    keys: Lattice,
    queries: Lattice,
    values: Tensor,
) -> list[list[list[arb]]]:
    """The layer by definition: (N, D_out, queries). Matrices are (H, G, ...)."""
    at_keys = [tuple(k) for k in keys.positions().tolist()]
    at_queries = [tuple(q) for q in queries.positions().tolist()]
    _, groups, width, _ = value.shape
    outputs = []
    heads = []
    columns = matrix(values.flatten(2).flatten(0, 1).T)
    for score, sink in zip(scores, sinks, strict=True):
        heads.append(seen(score, sink, at_keys, at_queries, columns))
    for image in range(len(values)):
        channels: list[list[arb]] = []
        for group in range(groups):
            first = (image * groups + group) * width
            total = None
            for h, head in enumerate(heads):
                part = arb_mat(
                    [[head[q, first + i] for i in range(width)] for q in range(len(at_queries))]
                )
                part = part * (matrix(value[h, group]) * matrix(output[h, group]))
                total = part if total is None else total + part
            assert total is not None
            channels += [[total[q, o] for q in range(total.nrows())] for o in range(total.ncols())]
        if bias is not None:
            exactly = bias.detach().double().tolist()
            channels = [[y + arb(b) for y in ys] for ys, b in zip(channels, exactly, strict=True)]
        outputs.append(channels)
    return outputs


def quadratic_score(layer: MultiHeadSelfAttention, head: int) -> Score:
    """sharpness <Ŵ_key v, r_δ - r_Δ>, with v = (-1, 2Δ) and r_δ = (‖δ‖², δ)."""
    shift = [Fraction(s) for s in layer.positional_shift[head].tolist()]
    key = [[Fraction(w) for w in row] for row in layer.positional_key[head].tolist()]
    name = [Fraction(-1), *(2 * s for s in shift)]
    named = [sum(w * v for w, v in zip(row, name, strict=True)) for row in key]
    sharpness = Fraction(layer.sharpness)

    def at(point: Sequence[Fraction | int]) -> Fraction:
        features = [sum(i * i for i in point), *point]
        return sum((n * Fraction(r) for n, r in zip(named, features, strict=True)), Fraction(0))

    here = at(shift)
    return lambda offset: ball(sharpness * (at(offset) - here))


def view_of(layer: MultiHeadSelfAttention, case: Case) -> View:
    """The lattices of a case."""
    geometry = layer.geometry
    shape = tuple(case.x.shape[-geometry.dimension :])
    if case.output_size is not None:
        geometry = geometry.with_output_size(shape, case.output_size)
    image = case.x if case.x.dim() == geometry.dimension + 2 else case.x.unsqueeze(0)
    return View.of(image, geometry, layer.border, layer.boundary_rule)


def weights_of(layer: MultiHeadSelfAttention, case: Case) -> int:
    """How many weights the definition has."""
    view = view_of(layer, case)
    return layer.num_heads * view.keys.size * view.queries.size


def truth_of(layer: MultiHeadSelfAttention, case: Case) -> list[list[list[arb]]]:
    """The layer's own function over the reals."""
    view = view_of(layer, case)
    keys = view.keys
    sink = ball(-Fraction(layer.sharpness) / 2) if layer.has_sink else None
    return definition(
        [quadratic_score(layer, head) for head in range(layer.num_heads)],
        [sink] * layer.num_heads,
        *layer.head_matrices(),
        layer.bias,
        keys,
        view.queries,
        view.values,
    )


def worst(found: Tensor, bound: Tensor, truth: list[list[list[arb]]], rank: int) -> float:
    """The largest error over its bound; inf where an error has a bound of 0."""
    flat = found.detach().double().reshape(len(truth), len(truth[0]), -1).tolist()
    limits = bound.reshape(len(truth), len(truth[0]), -1).tolist()
    ratio = 0.0
    for ys, bs, ts in zip(flat, limits, truth, strict=True):
        for y, b, t in zip(*(chain(*each) for each in (ys, bs, ts)), strict=True):
            if b == math.inf:
                continue
            error = arb(y) - t
            if b:
                ratio = max(ratio, float((abs(error) / b).upper()))
            elif not error.contains(0):
                ratio = math.inf
    return ratio


# Lowered layers -----------------------------------------------------------------------------------


def edited(layer: MultiHeadSelfAttention, data: st.DataObject) -> MultiHeadSelfAttention:
    """The layer as training may leave it: other shifts, other keys, for each head its own."""
    moves = st.sampled_from([0.0, 0.0, 0.5, -0.5, 1.0, 0.25]) | st.floats(-1.5, 1.5)
    how = data.draw(st.sampled_from(["as it is", "shifts", "keys", "both"]))
    with torch.no_grad():
        for head in range(layer.num_heads):
            if how in ("shifts", "both"):
                move = [data.draw(moves) for _ in range(layer.geometry.dimension)]
                layer.positional_shift[head] += torch.tensor(move)
            if how in ("keys", "both"):
                scale = data.draw(st.sampled_from([0.25, 1.0, 2.0]))
                noise = integers(*layer.positional_key.shape[1:]).roll(head) / 64
                layer.positional_key[head].mul_(scale).add_(noise)
                v = torch.cat([torch.tensor([-1.0]), 2 * layer.positional_shift[head].cpu()])
                precision_ = -float(layer.positional_key[head, 0].double() @ v.double())
                assume(precision_ > LEAST_PRECISION)
    return layer


@bounded
@given(
    dtype=st.sampled_from(FORMATS),
    data=st.data(),
    sharpness=sharpnesses() | st.floats(0.05, 4.0),
    tolerance=st.sampled_from([None, None, 0.0, 1e-3, 0.2]),
)
def test_lowered_layers_are_within_their_bound_of_the_definition(
    dtype: torch.dtype, data: st.DataObject, sharpness: float, tolerance: float | None
) -> None:
    case = data.draw(integer_cases(dtype).filter(lambda case: case.x.numel() > 0))
    mode = case.conv.padding_mode
    natural = mode in ("zeros", "replicate") and data.draw(st.booleans())
    boundary = "natural" if natural else "padded"
    layer = attention_from_conv(
        case.conv, sharpness=sharpness, boundary=boundary, evaluation="dense"
    )
    assume(weights_of(layer, case) <= LARGEST)
    edited(layer, data)
    lowered = lower(layer, tolerance=tolerance)
    with precision(BITS):
        truth = truth_of(layer, case)
        bound = Case(case.conv, case.x, case.output_size).run(_Bound(lowered))
        ratio = worst(case.run(lowered), bound, truth, layer.geometry.dimension)
    record(ratio=ratio, dtype=dtype)
    assert ratio <= 1


class _Bound(nn.Module):
    """Calls `error_bound`, as a convolution is called."""

    def __init__(self, lowered: Lowered) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self.lowered.error_bound(x, output_size)


@st.composite
def gated_heads(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Weights of scores, matrices, an image and a bias, in one to three dimensions."""
    shape = draw(st.sampled_from([(1,), (9,), (30,), (4, 5), (1, 6), (2, 3, 3)]))
    heads, d = draw(st.integers(1, 4)), len(shape)
    dtype = draw(st.sampled_from(FORMATS))
    slopes = st.floats(-8, 8) | st.integers(-4, 4).map(float)
    falls = st.floats(1e-3, 4.0) | st.sampled_from([0.5, 1.0, 50.0])
    weight = [[*(draw(slopes) for _ in range(d)), -draw(falls)] for _ in range(heads)]
    if draw(st.booleans()):
        weight = [[*weight[0][:-1], w[-1]] for w in weight]
    inner = draw(st.sampled_from([1, 2, 3]))
    value = integers(heads, 3, inner, dtype=dtype) / 4
    output = integers(heads, inner, 2, dtype=dtype).flip(0) / 8
    scale = draw(st.sampled_from([1.0, 1 / 3, 1024.0]))
    x = (integers(1, 3, *shape).double() * scale).to(dtype)
    bias = draw(st.sampled_from([None, integers(2, dtype=dtype)]))
    return torch.tensor(weight, dtype=torch.float64), value, output, x, bias


def linear_score(weight: Sequence[float]) -> Score:
    """w · (δ, ‖δ‖²), the last axis of δ first."""
    exactly = [Fraction(w) for w in weight]

    def score(offset: Point) -> arb:
        features = [*reversed(offset), sum(i * i for i in offset)]
        return ball(sum((w * r for w, r in zip(exactly, features, strict=True)), Fraction(0)))

    return score


def gated_truth(
    weight: Tensor, value: Tensor, output: Tensor, x: Tensor, bias: Tensor | None
) -> list[list[list[arb]]]:
    grid = Lattice.box(tuple(x.shape[2:]))
    scores = [linear_score(w) for w in weight.tolist()]
    matrices = value.unsqueeze(1), output.unsqueeze(1)
    return definition(scores, [None] * len(scores), *matrices, bias, grid, grid, x)


SHEARED = Gaussian(((2.0, 1.0), (1.0, 2.0)))


def sheared_score(shift: Sequence[float], sharpness: float) -> Score:
    """-sharpness (2 i² + 2 i j + 2 j²) / gap of δ - Δ, whose least value, the gap, is 2."""

    def score(offset: Sequence[int]) -> arb:
        i, j = (Fraction(o) - Fraction(s) for o, s in zip(offset, shift, strict=True))
        return ball(-Fraction(sharpness) * (2 * i * i + 2 * i * j + 2 * j * j) / 2)

    return score


def listed_score(shift: Sequence[float], sharpness: float) -> Score:
    """One entry of the table of all displacements is the sharpness higher than the others."""
    at = tuple(int(s) for s in shift)
    return lambda offset: ball(Fraction(0) if tuple(offset) == at else -Fraction(sharpness))


@bounded
@pytest.mark.parametrize("boundary", ["natural", "padded"])
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("encoding", "score"),
    [(SHEARED, sheared_score), (BiasTable(), listed_score)],
    ids=["sheared", "listed"],
)
def test_layers_lowered_through_a_table_are_within_their_bound_of_the_definition(
    encoding: Encoding, score: Callable[..., Score], dtype: torch.dtype, boundary: str
) -> None:
    conv = filled(nn.Conv2d(2, 2, (2, 3), padding=1, stride=(1, 2)).to(dtype), 8)
    case = Case(conv, integers(1, 2, 3, 4, dtype=dtype))
    layer = attention_from_conv(
        conv, encoding=encoding, sharpness=1.5, boundary=boundary, evaluation="dense"
    )
    lowered, view = lower(layer), view_of(layer, case)
    with precision(BITS):
        truth = definition(
            [score(shift, 1.5) for shift in layer.positional_shift.tolist()],
            [ball(-Fraction(3, 4)) if layer.has_sink else None] * layer.num_heads,
            *layer.head_matrices(),
            layer.bias,
            view.keys,
            view.queries,
            view.values,
        )
        ratio = worst(lowered(case.x), lowered.error_bound(case.x), truth, 2)
    record(ratio=ratio, device="cpu", dtype=dtype)
    assert ratio <= 1


@bounded
@given(gated_heads(), st.sampled_from([None, None, 1e-2]))
def test_learned_scores_of_gated_heads_are_within_their_bound_of_the_definition(
    drawn: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None], tolerance: float | None
) -> None:
    weight, value, output, x, bias = drawn
    lowered = Lowered.from_scores(weight, value, output, bias, tolerance=tolerance)
    with precision(BITS):
        truth = gated_truth(weight, value, output, x, bias)
        ratio = worst(lowered(x), lowered.error_bound(x), truth, x.dim() - 2)
    record(ratio=ratio, dtype=x.dtype)
    assert ratio <= 1


@bounded
@given(st.sampled_from([(3,), (8,), (4, 5), (2, 3, 2)]), st.floats(0.05, 60.0), st.data())
def test_on_a_torus_the_lowered_layer_is_a_circular_convolution_with_one_kernel(
    shape: Point, sharpness: float, data: st.DataObject
) -> None:
    kinds: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    sizes = [data.draw(st.sampled_from([1, 3])) for _ in shape]
    conv: Any = kinds[len(shape) - 1](
        2, 3, sizes, padding=[k // 2 for k in sizes], padding_mode="circular", dtype=torch.float64
    )
    layer = attention_from_conv(filled(conv, 4), sharpness=sharpness, evaluation="dense")
    assert isinstance(layer.encoding, Periodic)
    x = integers(1, 2, *shape, dtype=torch.float64)
    lowered = lower(layer)
    gap = Fraction(layer.encoding.gap(layer.positional_shift.double(), Lattice.box(shape)))
    grid = points(shape)
    with precision(BITS):
        # The kernel Σ_h e^{g_h}/Z_h W_h, equation (4).
        whole = {d: arb_mat(2, 3) for d in grid}
        for head, shift in enumerate(layer.positional_shift.tolist()):
            value, output = layer.head_matrices()
            mixing = matrix(value[head, 0]) * matrix(output[head, 0])
            circles = [
                [(2 * arb.pi() * (i - int(s)) / n).cos() for i in range(n)]
                for s, n in zip(shift, shape, strict=True)
            ]
            scale = ball(Fraction(sharpness) / gap)
            kernel = {
                d: (scale * sum((c[i] for c, i in zip(circles, d, strict=True)), arb(0))).exp()
                for d in grid
            }
            total = sum(kernel.values(), arb(0))
            whole = {d: w + mixing * (kernel[d] / total) for d, w in whole.items()}
        assert layer.bias is not None
        truth = [[arb(b)] * len(grid) for b in layer.bias.tolist()]
        pixels = {k: arb_mat([[int(x[(0, i, *k)]) for i in range(2)]]) for k in grid}
        for number, q in enumerate(grid):
            seen_here = arb_mat(1, 3)
            for d, w in whole.items():
                met = tuple((i + j) % n for i, j, n in zip(q, d, shape, strict=True))
                seen_here += pixels[met] * w
            for o in range(3):
                truth[o][number] += seen_here[0, o]
        ratio = worst(lowered(x), lowered.error_bound(x), [truth], len(shape))
    record(ratio=ratio, dtype=torch.float64)
    assert ratio <= 1


@bounded
@pytest.mark.parametrize("boundary", ["auto", "padded"])
@pytest.mark.parametrize("name", ["rotary", "row_column", "gaussian"])
def test_other_sums_over_axes_are_within_their_bound_of_the_definition(
    name: str, boundary: str
) -> None:
    # float32, so that the rounding of the scores, which the bound counts, is small beside it.
    case = Case(filled(nn.Conv2d(2, 3, 3, padding=1, stride=(2, 1)), 4), integers(2, 2, 5, 4))
    options: Any = {"encoding": name, "boundary": boundary, "evaluation": "dense"}
    layer: MultiHeadSelfAttention = attention_from_conv(case.conv, sharpness=1.5, **options)
    view = view_of(layer, case)
    keys, shifts = view.keys, layer.positional_shift.double()
    scale = layer.sharpness / layer.encoding.gap(shifts, keys)

    def score(head: int, offset: Sequence[float]) -> float:
        here = torch.tensor([offset], dtype=torch.float64)
        features, names = layer.encoding.encode(here, shifts, keys)
        return scale * float(names[head] @ features[0])

    with precision(BITS):
        truth = definition(
            [
                lambda offset, h=h: arb(score(h, offset) - score(h, shifts[h].tolist()))  # type: ignore[misc]
                for h in range(layer.num_heads)
            ],
            [ball(Fraction(-1.5) / 2) if layer.has_sink else None] * layer.num_heads,
            *layer.head_matrices(),
            layer.bias,
            keys,
            view.queries,
            view.values,
        )
        lowered = lower(layer)
        ratio = worst(lowered(case.x), lowered.error_bound(case.x), truth, 2)
    assert layer.has_sink is (boundary == "auto")
    record(ratio=ratio, dtype=torch.float32)
    assert ratio <= 1


# Windows ------------------------------------------------------------------------------------------


def dense_axis(scores: Squares, axis: int, keys: Lattice, targets: Lattice) -> list[list[arb]]:
    """The exponentials of one axis, by definition: targets x keys."""
    fraction = Fraction(scores.fraction[axis])
    return [
        [
            ball(-Fraction(scores.precision) * (k - t - fraction) ** 2).exp()
            for k in keys.axes()[axis].tolist()
        ]
        for t in targets.axes()[axis].tolist()
    ]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Squares, Lattice, Lattice, float]:
    """A group's scores, keys, targets on and off the box, and a tolerance."""
    d = draw(st.integers(1, 2))
    n = [draw(st.integers(1, 24 if d == 1 else 8)) for _ in range(d)]
    spacing = [draw(st.sampled_from([1, 1, 2, 3])) for _ in range(d)]
    keys = Lattice(tuple(n), tuple(spacing), (0,) * d)
    before = [draw(st.integers(0, 4)) for _ in range(d)]
    shape = [last + 1 + 2 * b for last, b in zip(keys.last, before, strict=True)]
    targets = Lattice(tuple(shape), (1,) * d, tuple(-b for b in before))
    fraction = tuple(
        draw(st.sampled_from([0.0, -0.5, 0.25]) | st.floats(-0.5, 0.5)) for _ in range(d)
    )
    a = draw(st.floats(0.01, 3.0) | st.sampled_from([1e-3, 40.0]))
    sink = draw(st.sampled_from([None, None, -a / 2, -3.0]))
    tolerance = draw(st.sampled_from([1e-1, 1e-3, 1e-7, 2.0**-24, 2.0**-53]))
    return Squares(a, fraction, sink), keys, targets, tolerance


def masses_outside(drawn: tuple[Squares, Lattice, Lattice, float]) -> Iterator[tuple[arb, float]]:
    """For each target, the mass outside of its window, and the bound on it."""
    scores, keys, targets, tolerance = drawn
    padding = scores.padding(keys, targets, tolerance)
    outside = scores.mass_outside(keys, targets, tolerance)
    inside: list[list[list[bool]]] = []
    for axis, factor in enumerate(padding.factors):
        kept = [[False] * keys.shape[axis] for _ in range(targets.shape[axis])]
        # What a weight that underflowed would have been is in its window all the same.
        for span in factor.spans():
            nearest = scores._nearest(axis, keys, targets)
            width = scores.width(axis, keys, tolerance)
            for row in range(*span.rows):
                for column in range(*span.columns):
                    kept[row][column] = abs(column - int(nearest[row])) <= width
        inside.append(kept)
    rows = [dense_axis(scores, axis, keys, targets) for axis in range(keys.dimension)]
    wholes = [[sum(row, arb(0)) for row in axis] for axis in rows]
    parts = [
        [
            sum((e for e, k in zip(row, kept, strict=True) if k), arb(0))
            for row, kept in zip(axis, keeps, strict=True)
        ]
        for axis, keeps in zip(rows, inside, strict=True)
    ]
    sink = arb(0) if scores.sink is None else ball(Fraction(scores.sink)).exp()
    for t in product(*(range(n) for n in targets.shape)):
        whole = math.prod((wholes[axis][i] for axis, i in enumerate(t)), start=arb(1))
        part = math.prod((parts[axis][i] for axis, i in enumerate(t)), start=arb(1))
        yield (whole - part) / (whole + sink), float(outside[t])


@bounded
@given(windows())
@example((Squares(1.0, (0.5,), None), Lattice.box((9,)), Lattice.box((9,)), 1e-3))
def test_mass_outside_of_windows_is_below_its_bound_which_is_as_near_as_its_series_allows(
    drawn: tuple[Squares, Lattice, Lattice, float],
) -> None:
    # After equation (11): τ̄_i <= N (1 + τ̄_i) τ_i, with at most N keys left on a side of an axis.
    # The sum over the axes is at most d times the mass outside, which is at least each; a sink
    # divides by 1 - τ̄ (10); and OWN is added for rounding, of which there may be as much.
    keys, tolerance = drawn[1], Fraction(drawn[3])
    left = max(1, *keys.shape)
    slack = keys.dimension * left * (1 + tolerance) / (1 - tolerance) * Fraction(OWN) ** 2
    # An exponential that underflows is off by the least normal number, two for each axis and term.
    lost = 2 * keys.dimension * left * Fraction(smallest_normal(torch.float64))
    with precision(1200):
        for mass, bound in masses_outside(drawn):
            assert mass <= bound + ball(lost)
            assert bound <= ball(slack) * (mass + ball(2 * lost))
            if bound > 0:
                record(ratio=float((mass / (bound + ball(lost))).upper()), dtype=torch.float64)


@exact
@given(windows())
# Two axes, each of which would do alone.
@example((Squares(3.0, (0.0, 0.0), None), Lattice.box((9, 9)), Lattice.box((9, 9)), 1.5e-5))
def test_windows_are_as_wide_as_the_tolerance_asks_and_no_wider(
    drawn: tuple[Squares, Lattice, Lattice, float],
) -> None:
    scores, keys, targets, tolerance = drawn
    # The bound is multiplied by OWN, which is what it may itself have lost.
    assert scores.mass_outside(keys, targets, tolerance).max() <= tolerance * OWN**2
    for axis, spacing in enumerate(keys.spacing):
        width = scores.width(axis, keys, tolerance)
        if not width:
            continue
        # One less leaves out, by the bound for some target, more than is asked of each axis.
        near = abs(scores.fraction[axis]) if spacing == 1 else 0.5
        decay = Fraction(scores.precision) * spacing**2
        with precision(128):
            sides: Any = [
                theory.tail_bound(decay, width, Fraction(side), 10**9, lambda z: ball(z).exp())
                for side in (near, -near)
            ]
            assert (sides[0] + sides[1]) * OWN > tolerance / keys.dimension


@bounded
def test_error_of_a_window_is_attained() -> None:
    # 0 inside the window of the middle query, 1 outside: equation (9).
    n, a = 41, 0.3
    weight = torch.tensor([[0.0, -a]], dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    lowered = Lowered.from_scores(weight, one, one, tolerance=1e-3)
    (group,) = lowered.head_groups
    width = group.scores.width(0, Lattice.box((n,)), 1e-3)
    assert 1 < width < 12
    distance = (torch.arange(n) - n // 2).abs()
    x = (distance > width).double().reshape(1, 1, n)
    assert isinstance(group.scores, Squares)
    drawn = group.scores, Lattice.box((n,)), Lattice.box((n,)), 1e-3
    with precision(BITS):
        truth = gated_truth(weight, one, one, x, None)[0][0][n // 2]
        mass, outside = list(masses_outside(drawn))[n // 2]
        # The windowed head sees zeros, so that all of τ is missing: not more, and not less.
        assert lowered(x)[0, 0, n // 2] == 0
        assert truth.overlaps(mass)
        assert mass <= outside
    assert outside <= lowered.error_bound(x)[0, 0, n // 2]
    record(ratio=float((mass / outside).upper()), dtype=torch.float64)


@bounded
def test_window_beside_a_sink_dims_even_a_flat_image() -> None:
    conv = filled(nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64))
    layer = attention_from_conv(conv, sharpness=0.3, evaluation="dense")
    assert layer.has_sink
    case = Case(conv, torch.ones(1, 1, 15, dtype=torch.float64))
    narrow, whole = lower(layer, tolerance=0.2), lower(layer, tolerance=0.0)
    ratio = ratio_of(narrow, layer, case)
    record(ratio=ratio, dtype=torch.float64)
    assert ratio <= 1
    # And not by rounding, which is all that a layer without windows is off by.
    with precision(BITS):
        assert worst(narrow(case.x), whole.error_bound(case.x), truth_of(layer, case), 1) > 1


@exact
def test_bound_counts_every_rounding_of_the_page() -> None:
    # Equations (15) to (17) for ones: what is read, what P sees, and the last product.
    channels, n = 300, 64
    weight, ones = torch.tensor([[0.0, -1e-4]]), torch.ones(1, channels, n)
    value, output = torch.ones(1, channels, 1), torch.ones(1, 1, 1)
    lowered = Lowered.from_scores(weight, value, output, tolerance=0.0)
    u = unit_roundoff(torch.float32)
    assert (lowered.error_bound(ones) >= channels * u * (channels + n + 1)).all()
    plain = Lowered.from_scores(weight, value[:, :1], output, tolerance=0.0)
    assert (plain.error_bound(ones[:, :1]) >= u * (n + 1 + 2)).all()


@dataclass(frozen=True)
class ChannelsForgotten:
    """What the sums of a layer may err, if a sum over taps and channels were one over taps.

    Args:
        right: how the sums are formed.
        channels: that each tap reads.
    """

    right: Products
    channels: int

    def growth(self, terms: int) -> float:
        """γ of equation (17), of a term for each group and tap."""
        return self.right.growth(terms if terms < self.channels else terms - self.channels + 1)

    def lost(self, terms: int, largest: float) -> float:
        """As it is."""
        return self.right.lost(terms, largest)


@control
def test_bound_whose_sums_forget_the_channels_is_beaten_by_an_order_of_summation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Equation (17), one head, one pixel, one tap: 1 and then as many halves of its last place, each
    # of which is lost if they come one by one.
    channels, half = 512, 2.0**-24
    x = torch.full((1, channels, 1), half)
    x[0, 0] = 1
    value, output = torch.eye(channels)[None], torch.ones(1, channels, 1)
    lowered = Lowered.from_scores(torch.tensor([[0.0, -1.0]]), value, output)
    total = np.float32(0)
    for pixel in x.flatten().tolist():
        total += np.float32(pixel)
    error = sum(map(Fraction, x.flatten().tolist())) - Fraction(float(total))
    assert error == (channels - 1) * Fraction(half)
    assert error <= Fraction(lowered.error_bound(x).item())
    right = Summands.products
    monkeypatch.setattr(Summands, "products", lambda self: ChannelsForgotten(right(self), channels))
    assert error > Fraction(lowered.error_bound(x).item())


# Groups and cost ----------------------------------------------------------------------------------


@exact
def test_heads_share_a_soft_padding_where_precision_and_fraction_are_equal() -> None:
    shifts = [(0.0, 1.0), (2.0, -3.0), (0.5, 0.0), (-0.5, 1.0), (1.5, 7.0), (0.25, 0.0)]
    weight = torch.tensor([[2 * j, 2 * i, -1.0] for i, j in shifts], dtype=torch.float64)
    weight = torch.cat([weight, 2 * weight[:1]])  # as the first, twice as sharp
    matrices = torch.ones(7, 2, 2)
    groups = Lowered.from_scores(weight, matrices, matrices).head_groups
    assert [group.heads for group in groups] == [(0, 1), (2, 3, 4), (5,), (6,)]
    assert groups[1].shifts == ((1, 0), (0, 1), (2, 7))


quarters = st.integers(-4, 3).map(lambda i: Fraction(i, 8))
precisions = st.sampled_from([Fraction(1, 2), Fraction(1), Fraction(3)])


def rows_are_equal(
    first: tuple[Fraction, Sequence[Fraction]],
    second: tuple[Fraction, Sequence[Fraction]],
    keys: list[Point],
    targets: list[Point],
) -> bool:
    """Whether two heads weigh all keys alike at all targets: their scores differ by a constant.

    Args:
        first: precision, and what the shift has beyond whole pixels.
        second: that of the other head.
        keys: where the keys stand.
        targets: the query and the shift's whole pixels.
    """

    def score(head: tuple[Fraction, Sequence[Fraction]], key: Point, target: Point) -> Fraction:
        a, f = head
        return -a * sum((k - t - g) ** 2 for k, t, g in zip(key, target, f, strict=True))

    return all(len({score(first, k, t) - score(second, k, t) for k in keys}) == 1 for t in targets)


@exact
@given(st.data())
def test_heads_share_their_rows_just_if_precision_and_fraction_are_equal(
    data: st.DataObject,
) -> None:
    # Equation (13): two keys on every axis, and two targets on one of them.
    d, spacing = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2]))
    shape = [data.draw(st.integers(2, 4)) for _ in range(d)]
    targets = points([data.draw(st.integers(1, 3)) for _ in range(d)])
    assume(len(targets) > 1)
    heads = [(data.draw(precisions), [data.draw(quarters) for _ in range(d)]) for _ in range(2)]
    if data.draw(st.booleans(), label="the same fraction"):
        heads[1] = (heads[1][0], heads[0][1])
    equal = rows_are_equal(heads[0], heads[1], points(shape, spacing), targets)
    assert equal is (heads[0] == heads[1])
    record(dtype="rational")


@control
def test_heads_share_their_rows_where_too_few_keys_or_targets_tell_them_apart() -> None:
    one, two, half = Fraction(1), Fraction(2), Fraction(1, 2)
    # One key, whatever a and f are; one key on the second axis, whatever f_2 is.
    assert rows_are_equal((one, [0 * one]), (two, [half / 2]), [(0,)], [(0,), (1,)])
    across = (one, [half, 0 * one]), (one, [half, half / 2])
    assert rows_are_equal(*across, [(0, 0), (1, 0)], [(0, 0), (1, 1)])
    assert not rows_are_equal(*across, [(0, 0), (0, 1)], [(0, 0), (1, 1)])
    # Two keys and one target: -a (1 - 2f) is -1 for both; a second target, or a third key, differs.
    pair = (one, [0 * one]), (two, [half / 2])
    assert rows_are_equal(*pair, [(0,), (1,)], [(0,)])
    assert not rows_are_equal(*pair, [(0,), (1,)], [(0,), (1,)])
    assert not rows_are_equal(*pair, [(0,), (1,), (2,)], [(0,)])


@exact
def test_rows_that_no_head_asks_for_are_not_computed() -> None:
    one = torch.ones(2, 1, 1)
    queries = Lattice((5,), (6,), (0,))
    near = Lowered.from_scores(torch.tensor([[2.0, -1.0], [8.0, -1.0]]), one, one)
    taps = near.head_groups[0].taps(queries)
    assert taps.targets == Lattice((10,), (3,), (1,))
    assert (taps.stride, taps.dilation, taps.kernel_size) == ((2,), (1,), (2,))
    (alone,) = Lowered.from_scores(torch.tensor([[2.0, -1.0]]), one[:1], one[:1]).head_groups
    assert alone.taps(queries).targets == Lattice((5,), (6,), (1,))


@exact
def test_half_integer_centres_of_even_sides_are_one_group() -> None:
    # ConViT with 16 heads: centres at -1.5, ..., 1.5.
    centres = [i - 1.5 for i in range(4)]
    weight = torch.tensor([[2 * j, 2 * i, -1.0] for i in centres for j in centres])
    lowered = Lowered.from_scores(weight, torch.ones(16, 2, 2), torch.ones(16, 2, 2))
    (group,) = lowered.head_groups
    assert group.taps(Lattice.box((5, 5))).kernel_size == (4, 4)


@exact
@given(
    heads=st.integers(2, 6),
    inputs=st.integers(1, 12),
    width=st.integers(1, 6),
    outputs=st.integers(1, 12),
)
def test_heads_are_taken_apart_only_where_that_multiplies_less(
    heads: int, inputs: int, width: int, outputs: int
) -> None:
    weight = torch.tensor([[2.0 * head, -1.0] for head in range(heads)])
    value, output = torch.ones(heads, inputs, width), torch.ones(heads, width, outputs)
    lowered = Lowered.from_scores(weight, value, output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "parts", lambda group, *_: (group,))
        together = Lowered.from_scores(weight, value, output)
    assert len(together.head_groups) == 1
    assert lowered.cost((40,)).total <= together.cost((40,)).total
    apart = len(lowered.head_groups) == heads
    assert apart == (heads * width <= inputs and width * (inputs + outputs) < inputs * outputs)


@exact
def test_taking_heads_apart_changes_no_integer() -> None:
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    # So sharp that a head is one-hot at the nearest pixel, and so on integers exact.
    weight = torch.tensor([[2e4 * j, 2e4 * i, -1e4] for i, j in shifts])
    value, output = integers(9, 20, 2), integers(9, 2, 7)
    x = integers(2, 20, 6, 5)
    narrow = Lowered.from_scores(weight, value, output)
    assert len(narrow.head_groups) == 9
    wide = Lowered.from_scores(weight, value @ output, torch.eye(7).expand(9, 7, 7))
    assert len(wide.head_groups) == 1
    assert torch.equal(narrow(x), wide(x))


CONVOLUTIONS: dict[str, Any] = {
    "plain": nn.Conv2d(3, 2, 3, padding=1),
    "strided": nn.Conv2d(2, 4, 3, padding=2, stride=2, dilation=2, groups=2),
    "replicate": nn.Conv1d(2, 3, 4, padding="same", padding_mode="replicate"),
    "transposed": nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1),
    "volume": nn.Conv3d(1, 1, (1, 2, 3)),
}


@exact
@pytest.mark.parametrize("moved", [0.0, 0.3, 5.0], ids="moved by {}".format)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_predicted_cost_is_what_torch_counts(name: str, moved: float) -> None:
    layer = attention_from_conv(CONVOLUTIONS[name], sharpness=1.0, evaluation="dense")
    with torch.no_grad():
        layer.positional_shift[::2].add_(moved * torch.arange(1.0, 1 + layer.num_heads)[::2, None])
    image = integers(1, layer.in_channels or 1, *(9, 7, 8)[: layer.geometry.dimension])
    lowered = lower(layer)
    lowered(image)  # so that factors are ready
    with FlopCounterMode(display=False) as counter:
        lowered(image)
    assert counter.get_total_flops() // 2 == lowered.cost(image.shape[2:]).total
    narrow = Lowered.from_scores(torch.tensor([[1.0, -1.0], [0.5, -1.0]]), *_matrices())
    with FlopCounterMode(display=False) as counter:
        narrow(integers(1, 5, 90))
    assert counter.get_total_flops() // 2 == narrow.cost((90,)).total
    record(dtype=torch.float32)


def _matrices() -> tuple[Tensor, Tensor]:
    """Two heads that read two of five channels."""
    return integers(2, 5, 2), integers(2, 2, 4)


@exact
def test_windows_make_the_cost_linear_in_the_tokens() -> None:
    weight, one = torch.tensor([[0.3, -1.0]]), torch.ones(1, 1, 1)
    lowered = Lowered.from_scores(weight, one, one)
    sizes = (1024, 2048, 4096)
    costs = [lowered.cost((n,)) for n in sizes]
    (group,) = lowered.head_groups
    width = group.scores.width(0, Lattice.box((1024,)), lowered.tolerance)
    assert 2 * width <= 32
    # Equation (14): blocks of 32 rows and 32 + 2w columns, w less at either end of the image.
    assert [cost.padding for cost in costs] == [
        n * (32 + 2 * width) - 2 * 32 * width for n in sizes
    ]
    # Every weight times a value, and two products of 1 x 1 matrices, one of which is enough.
    assert [cost.dense for cost in costs] == [n * (n + 1) for n in sizes]
    x = integers(1, 1, 50_000)
    assert lowered(x).shape == x.shape
    assert "window=" in repr(lowered)
    assert "multiply-adds" in repr(lowered)


@bounded
def test_gradient_of_the_image_is_the_transpose() -> None:
    # Both ways an entry of the matrix is a sum over at most 9 taps, or 3 targets on either axis, of
    # products of two factors, what the sink leaves and a tap's matrix: 12 roundings at most, and
    # two for the comparison below.
    conv = filled(nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=torch.float64), 4)
    positive = filled(nn.Conv2d(2, 2, 3, padding=1, bias=False, dtype=torch.float64), 4)
    positive.weight.data.abs_()
    lowered, size = (lower(attention_from_conv(c, sharpness=1.0)) for c in (conv, positive))
    basis = torch.eye(40, dtype=torch.float64).reshape(40, 2, 4, 5)
    forwards, moduli = lowered(basis).flatten(1).T, size(basis).flatten(1).T  # outputs x pixels
    x = torch.zeros(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    y = lowered(x).flatten()
    rows = [torch.autograd.grad(each, x, retain_graph=True)[0].flatten() for each in y]
    u = Fraction(1, 2**53)
    growth = (1 + u) ** 14 - 1
    # Each is off by γ of the moduli, and so is what is computed of these.
    allowed = moduli * float(2 * growth * (1 + 2 * growth))
    error = (forwards - torch.stack(rows)).abs()
    assert (error <= allowed).all()
    assert (allowed > 0).all()
    record(ratio=float((error / allowed).max()), dtype=torch.float64)


# Controls -----------------------------------------------------------------------------------------


def trained() -> tuple[MultiHeadSelfAttention, Case]:
    """A layer with a head of its own precision, and an image on which every head counts."""
    conv = filled(nn.Conv1d(1, 1, 3, padding=1, dtype=torch.float64))
    layer = attention_from_conv(conv, sharpness=0.4, evaluation="dense")
    with torch.no_grad():
        layer.positional_shift.add_(torch.tensor([[0.3], [0.0], [0.0]]))
        layer.positional_key[1] *= 1.5
        layer.weight.copy_(torch.tensor([1.0, 2.0, 4.0]).reshape(layer.weight.shape))
    return layer, Case(conv, integers(1, 1, 12, dtype=torch.float64))


def ratio_of(lowered: Lowered, layer: MultiHeadSelfAttention, case: Case) -> float:
    with precision(BITS):
        truth = truth_of(layer, case)
        return worst(lowered(case.x), lowered.error_bound(case.x), truth, 1)


Change = Callable[[SoftPadding], SoftPadding]


@contextmanager
def patched(monkeypatch: pytest.MonkeyPatch, change: Change) -> Iterator[None]:
    """Paddings that are wrong."""
    right = Squares.padding
    with monkeypatch.context() as patch:
        patch.setattr(Squares, "padding", lambda *args: change(right(*args)))
        yield


def changed(padding: SoftPadding, change: Callable[[Tensor], Tensor]) -> SoftPadding:
    """Every factor with other entries."""
    factors = tuple(
        factor.remade(tuple(change(entries) for entries in factor.tensors))
        for factor in padding.factors
    )
    return replace(padding, factors=factors)


def reversed_rows(padding: SoftPadding) -> SoftPadding:
    """The kernel with δ as -δ."""
    return changed(padding, lambda entries: entries.flip(-1).flip(0).roll(1, 0))


def not_renormalised(padding: SoftPadding) -> SoftPadding:
    """Each row divided by the sum in the middle."""

    def in_the_middle(entries: Tensor) -> Tensor:
        middle = entries[len(entries) // 2].max()
        return entries * (middle / entries.amax(dim=-1, keepdim=True))

    return changed(padding, in_the_middle)


def cut_short(padding: SoftPadding) -> SoftPadding:
    """A window that the bound does not know of."""

    def cut(entries: Tensor) -> Tensor:
        left = torch.where(entries > entries.amax() / 32, entries, 0.0)
        return left / left.sum(dim=-1, keepdim=True)

    return changed(padding, cut)


def without_sink(padding: SoftPadding) -> SoftPadding:
    return replace(padding, kept=None)


@control
@pytest.mark.parametrize(
    "wrong", [reversed_rows, not_renormalised, cut_short, without_sink], ids=lambda f: f.__name__
)
def test_wrong_soft_padding_is_rejected(wrong: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, case = trained()
    assert ratio_of(lower(layer), layer, case) <= 1
    with patched(monkeypatch, wrong):
        assert ratio_of(lower(layer), layer, case) > 1


@control
def test_window_one_too_small_for_its_bound_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Squares(0.5, (0.2,), None), Lattice.box((30,)), Lattice.box((30,)), 1e-6
    with precision(BITS):
        assert all(mass <= bound for mass, bound in masses_outside(drawn))
        right = Squares._tails
        with monkeypatch.context() as patch:
            patch.setattr(Squares, "_tails", lambda s, a, k, t, w: right(s, a, k, t, w + 1))
            assert any(mass > bound for mass, bound in masses_outside(drawn))


@control
def test_precision_of_another_head_is_rejected() -> None:
    layer, case = trained()
    shared, _ = trained()
    with torch.no_grad():
        shared.positional_key[1] /= 1.5
    assert ratio_of(lower(shared), layer, case) > 1


@control
def test_axes_in_the_wrong_order_are_rejected() -> None:
    weight = torch.tensor([[1.0, 0.0, -0.5]], dtype=torch.float64)
    one, x = torch.ones(1, 1, 1, dtype=torch.float64), integers(1, 1, 4, 5, dtype=torch.float64)
    right, wrong = (Lowered.from_scores(w, one, one) for w in (weight, weight[:, [1, 0, 2]]))
    with precision(BITS):
        truth = gated_truth(weight, one, one, x, None)
        assert worst(right(x), right.error_bound(x), truth, 2) <= 1
        assert worst(wrong(x), wrong.error_bound(x), truth, 2) > 1


# Refusals -----------------------------------------------------------------------------------------


def plain(**options: Any) -> MultiHeadSelfAttention:
    layer: MultiHeadSelfAttention
    layer = attention_from_conv(filled(nn.Conv2d(1, 1, 3, padding=1)), **options)
    return layer


@control
def test_what_is_no_such_layer_is_refused() -> None:
    with refused(TypeError, "layer", "Conv2d", "attention layer"):
        lower(nn.Conv2d(1, 1, 3))
    with refused(ValueError, "grid", "(3, 3)", "takes images"):
        lower(plain(), grid=(3, 3))
    live = plain().unfreeze("content")
    assert live.content_bias is not None
    with torch.no_grad():
        live.content_bias.add_(1)
    with refused(ValueError, "layer", "content_bias", "positional terms alone"):
        lower(live)
    with refused(ValueError, "layer", "Entmax", "softmax"):
        lower(plain(normaliser=Entmax(2.0)))
    absolute = attention_from_conv(nn.Conv1d(1, 1, 3), encoding="sinusoidal", sharpness=1.0)
    with torch.no_grad():
        absolute.positional_shift += 0.5
    with refused(ValueError, "layer", "Rotary", "displacements"):
        lower(absolute)
    rising = plain(sharpness=1.0)
    assert isinstance(rising.encoding, Quadratic)
    with torch.no_grad():
        rising.positional_key[3] *= -1
    with refused(ValueError, "positional_key", "head 3", "negative"):
        lower(rising)
    with refused(ValueError, "tolerance", "1.5", "from 0"):
        lower(plain(), tolerance=1.5)
    with refused(ValueError, "layer", "meta", "can be read"):
        lower(plain().to("meta"))


@control
def test_scores_that_are_no_gated_heads_are_refused() -> None:
    one = torch.ones(1, 2, 2)
    with refused(ValueError, "weight", "(1, 5)", "d from 1 to 3"):
        Lowered.from_scores(torch.ones(1, 5), one, one)
    with refused(ValueError, "weight", "head 0", "negative"):
        Lowered.from_scores(torch.ones(1, 3), one, one)
    with refused(ValueError, "value", "(2, 2)", "three sizes"):
        Lowered.from_scores(-torch.ones(1, 3), one[0], one)
    with refused(ValueError, "value", "(1, 2, 2)", "(H, D_h, D_out)"):
        Lowered.from_scores(-torch.ones(1, 3), one, torch.ones(1, 3, 2))


@control
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_call_is_checked_as_the_layer_checks_it(mode: Any) -> None:
    layer = attention_from_conv(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), sharpness=1.0)
    lowered = lower(layer)
    assert lowered(torch.ones(2, 5, 4)).shape == (3, 5, 4)
    with refused(ValueError, "x has", "3 channels", "2"):
        lowered(torch.ones(1, 3, 5, 4))
    with refused(ValueError, "x has", "float64", "float32"):
        lowered(torch.ones(1, 2, 5, 4, dtype=torch.float64))
    assert lowered.tolerance == unit_roundoff(torch.float32)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
