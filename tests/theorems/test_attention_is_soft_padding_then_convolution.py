"""Attention whose heads score keys by displacement from query plus shift, and otherwise alike, is one operator P, the same for all heads, followed by the ordinary convolution.

T4, `docs/theorems/attention_is_soft_padding_then_convolution.md`. The truth of the layer is exact
rational arithmetic, that of P the softmax over all keys at once in ball arithmetic.
"""  # noqa: E501, the claim is one sentence

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from flint import arb, fmpq, fmpq_mat
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from constructions import attention_from_conv, certify, formats
from constructions.certificate import head_rounding
from constructions.encodings import Quadratic
from constructions.geometry.lattice import Lattice
from constructions.geometry.view import View
from constructions.layer import soft_padding
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.parameters import PARTS
from constructions.layer.soft_padding import Full, SoftPadding, Span
from constructions.layer.structure import kernel, products
from constructions.normalisers import Softmax
from constructions.normalisers.quotients import Top1
from tests.support import formal
from tests.support.helpers import edit_matrices, filled, integers
from tests.support.layout import ANCHOR, page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.strategies import Case, geometries, integer_cases, real_cases, sharpnesses
from theory import attention_is_soft_padding_then_convolution as theory
from theory.tools.proof import identical
from theory.tools.theta import ball, off_target_mass_enclosure, precision

SLUG = "attention_is_soft_padding_then_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
accumulators = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
exact_format = st.sampled_from([torch.float32, torch.float64])
any_format = st.sampled_from(formats.FORMATS)
WAYS = ("dense", "factored")

BITS = 256
EQUATIONS = {int(number) for number in ANCHOR.findall(page_of(SLUG, ROOT).read_text("utf-8"))}

UNDERFLOW = math.ldexp(1.0, 30 + 40 - 1075)
"""At most 2^30 products underflow, each by 2^-1075, and meet factors of at most 2^40 after that."""


def boundaries(mode: str) -> st.SearchStrategy[str]:
    """Whether the border is made of keys; reflect padding always is."""
    return st.just("padded") if mode == "reflect" else st.sampled_from(["natural", "padded"])


def both_ways(case: Case, **options: Any) -> dict[str, MultiHeadSelfAttention]:
    return {way: attention_from_conv(case.conv, evaluation=way, **options) for way in WAYS}


def view_of(
    layer: MultiHeadSelfAttention, image: Tensor, output_size: Sequence[int] | None = None
) -> View:
    """The view of an image, batched or not, on a layer's lattices."""
    geometry = layer.geometry
    batched = image if image.dim() == geometry.dimension + 2 else image[None]
    if output_size is not None:
        geometry = geometry.with_output_size(tuple(batched.shape[2:]), output_size)
    return View.of(batched, geometry, layer.border, layer.boundary_rule)


def targets_of(layer: MultiHeadSelfAttention, view: View) -> Tensor:
    """Where each head looks at each query: (heads, queries, axes)."""
    return layer.geometry.offsets()[:, None] + view.queries.positions()


def shared_rows(weights: Tensor, targets: Tensor) -> Tensor:
    """The weights, each row replaced by that of one and the same head that looks at its target."""
    _, which = torch.unique(targets, dim=0, return_inverse=True)
    rows = weights.new_empty(int(which.max()) + 1, weights.shape[1])
    rows[which] = weights
    return rows[which]


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    # (1) is a definition.
    assert {step.equation for step in theory.prove()} == EQUATIONS - {1}


@control
@pytest.mark.parametrize("layer", theory.LAYERS, ids=lambda layer: layer.name)
def test_symbolic_factorisation_rejects_wrong_operators(layer: theory.Heads) -> None:
    wrong = (
        replace(layer, sink=not layer.sink),
        replace(layer, biased=True),
        replace(layer, shifts=layer.shifts[1:] + layer.shifts[:1]),
        replace(layer, shifts=tuple(tuple(-i for i in shift) for shift in layer.shifts)),
    )
    defined = layer.dense()
    for other in wrong:
        found = other.factored()
        assert any(not identical(found[q], defined[q]) for q in defined)


# P is what the heads do ---------------------------------------------------------------------------


@exact
@given(data=st.data(), dtype=any_format)
def test_heads_that_meet_at_a_target_have_the_same_weights_bit_for_bit(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    geometry = data.draw(geometries())
    conv = geometry.build(dtype)
    # A circle's scores are not integers, and differ in rounding between heads.
    mode = "reflect" if conv.padding_mode == "circular" else conv.padding_mode
    layer = attention_from_conv(
        conv,
        sharpness=data.draw(sharpnesses() | st.none()),
        boundary=data.draw(boundaries(mode)),
        evaluation="dense",
    ).to(device)
    view = view_of(layer, torch.zeros(geometry.shape, dtype=dtype), geometry.output_size)
    weights = layer.attention_weights(view.image.shape[2:], output_size=geometry.output_size)
    rows = weights.detach().flatten(0, 1).cpu()
    assert torch.equal(shared_rows(rows, targets_of(layer, view).flatten(0, 1)), rows)
    record(device=device, dtype=dtype)


@dataclass(frozen=True)
class Softmaxes:
    """The scores of a layer's soft padding, enclosed in balls, and what rounding may do to it.

    Attributes:
        layer: the layer.
        view: an input, of which the lattices count.
    """

    layer: MultiHeadSelfAttention
    view: View

    @property
    def keys(self) -> Lattice:
        return self.view.keys

    def row(self, target: Sequence[int]) -> list[arb]:
        """The softmax over all keys at once: neither axes nor logarithms."""
        alpha = ball(self.layer.sharpness)
        axes = [
            [self.score(alpha, k - t, axis) for k in positions.tolist()]
            for axis, (positions, t) in enumerate(zip(self.keys.axes(), target, strict=True))
        ]
        return theory.soft_padding_row(axes, -alpha / 2 if self.layer.has_sink else None)

    def score(self, alpha: arb, displacement: int, axis: int) -> arb:
        if isinstance(self.layer.encoding, Quadratic):
            return -alpha * displacement**2
        gap = self.layer.encoding.gap(torch.zeros(1, self.keys.dimension), self.keys)
        return alpha / gap * arb.cos_pi(arb(fmpq(2 * displacement, self.keys.shape[axis])))

    def errors(self, way: str) -> list[theory.StepError]:
        name = str(self.view.image.dtype).removeprefix("torch.")
        sink, shape = self.layer.has_sink, self.keys.shape
        score_error = ball(
            self.layer.sharpness
            * self.layer.encoding.relative_score_error(
                torch.zeros(1, self.keys.dimension), self.keys
            )
        )
        if way == "dense":
            together = math.prod(shape) + sink
            return [theory.softmax_error(name, together, steps=1, score_error=score_error)]
        steps = len(shape) + sink
        softmaxes = [
            theory.softmax_error(name, n, steps=steps, score_error=score_error) for n in shape
        ]
        return softmaxes + [theory.rescaling_error(name, shape)] * sink

    def ratio(self, way: str, found: Sequence[arb], target: Sequence[int]) -> float:
        """The largest distance from the row, over equation (21) compounded over the steps."""
        errors = self.errors(way)
        relative = theory.compounded(step.weight for step in errors)
        lost = sum((step.lost for step in errors), arb(0)) * 2 ** len(errors)
        quotients = (
            abs(weight - p) / (relative * p + lost)
            for weight, p in zip(found, self.row(target), strict=True)
        )
        return max(float(quotient.upper()) for quotient in quotients)


def product_row(padding: SoftPadding, at: Sequence[int]) -> list[arb]:
    """A row of P: the exact product of the stored factors."""
    rows = [factor.matrix[i].tolist() for factor, i in zip(padding.factors, at, strict=True)]
    kept = arb(1) if padding.kept is None else arb(padding.kept[tuple(at)].item())
    return [kept * math.prod(map(arb, weights), start=arb(1)) for weights in product(*rows)]


@bounded
@given(data=st.data(), dtype=any_format)
def test_weights_and_their_product_over_axes_are_the_softmax_over_all_keys(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    geometry = data.draw(geometries())
    conv = geometry.build(dtype)
    layer = attention_from_conv(
        conv,
        sharpness=data.draw(sharpnesses()),
        boundary=data.draw(boundaries(conv.padding_mode)),
    ).to(device)
    view = view_of(layer, torch.zeros(geometry.shape, dtype=dtype), geometry.output_size)
    softmaxes = Softmaxes(layer, view)
    weights = layer.attention_weights(view.image.shape[2:], output_size=geometry.output_size)
    weights = weights[..., : softmaxes.keys.size]
    padding = layer.soft_padding(view)
    head = data.draw(st.integers(0, weights.shape[0] - 1))
    query = data.draw(st.integers(0, weights.shape[1] - 1))
    target = targets_of(layer, view)[head, query].tolist()
    at = [t - o for t, o in zip(target, view.targets.origin, strict=True)]
    with precision(BITS):
        rows = {
            "dense": [arb(weight) for weight in weights[head, query].tolist()],
            "factored": product_row(padding, at),
        }
        for way, row in rows.items():
            ratio = softmaxes.ratio(way, row, target)
            record(ratio=ratio, device=device, dtype=dtype)
            assert ratio <= 1


Operator = Callable[[SoftPadding, Tensor], Tensor]


def right(padding: SoftPadding, values: Tensor) -> Tensor:
    return padding(values)


def not_normalised(padding: SoftPadding, values: Tensor) -> Tensor:
    factors = tuple(
        Full(factor.matrix / factor.matrix.amax(-1, keepdim=True)) for factor in padding.factors
    )
    return replace(padding, factors=factors)(values)


def normalised_over_targets(padding: SoftPadding, values: Tensor) -> Tensor:
    factors = tuple(Full(factor.matrix / factor.matrix.sum(0)) for factor in padding.factors)
    return replace(padding, factors=factors)(values)


def swapped_axes(padding: SoftPadding, values: Tensor) -> Tensor:
    return padding(values.transpose(-1, -2))


def moved_by_one(padding: SoftPadding, values: Tensor) -> Tensor:
    factors = tuple(Full(factor.matrix.roll(1, 0)) for factor in padding.factors)
    return replace(padding, factors=factors)(values)


def one_axis_alone(padding: SoftPadding, values: Tensor) -> Tensor:
    first, second = padding.factors
    matrix = second.matrix
    one_hot = (matrix == matrix.amax(-1, keepdim=True)).to(matrix)
    return replace(padding, factors=(first, Full(one_hot)))(values)


def sink_forgotten(padding: SoftPadding, values: Tensor) -> Tensor:
    return replace(padding, kept=None)(values)


def sink_twice(padding: SoftPadding, values: Tensor) -> Tensor:
    assert padding.kept is not None
    return padding(values) * padding.kept


WRONG_OPERATORS: list[Operator] = [
    not_normalised,
    normalised_over_targets,
    swapped_axes,
    moved_by_one,
    one_axis_alone,
    sink_forgotten,
    sink_twice,
]


@control
@accumulators
@pytest.mark.parametrize("operator", [right, *WRONG_OPERATORS], ids=lambda f: f.__name__)
def test_wrong_operator_is_rejected_by_the_softmax_and_by_the_certificate(
    dtype: torch.dtype, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = filled(nn.Conv2d(1, 2, 3, padding=1, dtype=dtype))
    x = integers(1, 1, 4, 4, dtype=dtype)
    layer = attention_from_conv(conv, sharpness=2.5)
    padding = layer.soft_padding(view_of(layer, x))
    basis = torch.eye(16, dtype=dtype).reshape(16, 1, 4, 4)
    matrix = operator(padding, basis).flatten(1).T  # targets x keys
    softmaxes = Softmaxes(layer, view_of(layer, x))
    with precision(BITS), torch.no_grad():
        ratio = max(
            softmaxes.ratio("factored", list(map(arb, row)), target)
            for row, target in zip(
                matrix.tolist(), view_of(layer, x).targets.positions().tolist(), strict=True
            )
        )
    monkeypatch.setattr(
        layer, "soft_padding", lambda view: lambda values: operator(padding, values)
    )
    certificate = certify(layer, conv, x)
    assert (ratio <= 1) == certificate.holds == (operator is right)


# The layer is P, then the convolution -------------------------------------------------------------


@bounded
@every_format
@given(st.data())
def test_both_evaluations_are_certified_and_differ_by_their_rounding_alone(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(real_cases(dtype), label="case").to(device)
    options = {
        "sharpness": data.draw(sharpnesses() | st.none(), label="sharpness"),
        "boundary": data.draw(boundaries(case.conv.padding_mode), label="boundary"),
    }
    truth = convolve_module(case.conv, case.x, case.output_size)
    outputs, roundings = [], []
    for way, layer in both_ways(case, **options).items():
        certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
        y = numbers(case.run(layer))
        outputs.append(y)
        roundings.append(certificate.rounding.numpy())
        ratio = quotient(exact_error(y, truth), certificate.bound.numpy())
        assert layer.evaluation == way
        assert ratio <= 1
        assert certificate.holds
    # The leak, however large, is in both.
    ratio = quotient(abs(outputs[0] - outputs[1]), roundings[0] + roundings[1])
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1


def quotient(error: np.ndarray, bound: np.ndarray) -> float:
    """The largest error over bound; nothing is claimed where the bound is infinite."""
    claimed = np.isfinite(bound) & (error != 0)
    ratios = np.divide(error, bound, out=np.full_like(error, math.inf), where=bound > 0)
    return float(np.where(claimed, ratios, 0.0).max(initial=0.0))


@exact
@given(data=st.data(), dtype=exact_format)
def test_on_integers_both_saturated_evaluations_are_the_convolution_bit_for_bit(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype), label="case")
    truth = convolve_module(case.conv, case.x, case.output_size)
    boundary = data.draw(boundaries(case.conv.padding_mode), label="boundary")
    for layer in both_ways(case.to(device), boundary=boundary).values():
        assert not exact_error(numbers(case.to(device).run(layer)), truth).any()
        record(device=device, dtype=dtype)


@exact
@given(st.data())
def test_at_finite_sharpness_the_layer_is_p_and_then_torchs_convolution(
    data: st.DataObject,
) -> None:
    # In code as on paper: the same two calls, so the same bits.
    case = data.draw(real_cases(torch.float64, layers=(nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    conv, rank = case.conv, len(case.conv.kernel_size)
    layer = attention_from_conv(
        conv,
        sharpness=data.draw(st.floats(0.1, 20)),
        boundary=data.draw(boundaries(conv.padding_mode)),
    )
    view = view_of(layer, case.x)
    blurred = layer.soft_padding(view)(view.values)
    plain = copy.deepcopy(conv)
    plain.padding, plain.padding_mode = (0,) * rank, "zeros"
    plain._reversed_padding_repeated_twice = [0, 0] * rank
    y = case.run(layer)
    assert torch.equal(y, plain(blurred).reshape(y.shape))
    record(dtype=torch.float64)


@bounded
@accumulators
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("boundary", ["natural", "padded"])
def test_axes_longer_than_a_block_are_certified_too(
    dtype: torch.dtype, sharpness: float, boundary: str, device: str
) -> None:
    conv = filled(nn.Conv1d(2, 1, 3, padding=2, stride=3, dtype=dtype), denominator=7)
    case = Case(conv, integers(1, 2, 300, dtype=dtype) / 3).to(device)
    layers = both_ways(case, sharpness=sharpness, boundary=boundary)
    certificates = [certify(layer, case.conv, case.x) for layer in layers.values()]
    assert all(certificate.holds for certificate in certificates)
    dense, factored = (numbers(case.run(layer)) for layer in layers.values())
    first, second = (certificate.rounding.numpy() for certificate in certificates)
    ratio = quotient(abs(dense - factored), first + second)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1


# Which layers factor ------------------------------------------------------------------------------


def plain_case(dtype: torch.dtype = torch.float64) -> Case:
    conv = filled(nn.Conv2d(2, 3, (3, 2), padding=1, dtype=dtype), denominator=5)
    return Case(conv, integers(2, 2, 5, 4, dtype=dtype) / 3)


def train(part: str, *names: str) -> Callable[[MultiHeadSelfAttention], None]:
    """Unfreeze a part, and of its parameters train those that are named."""

    def train_it(layer: MultiHeadSelfAttention) -> None:
        layer.unfreeze(part)
        for name in PARTS[part]:
            getattr(layer, name).requires_grad_(name in names)

    train_it.__name__ = f"train_{'_and_'.join(names)}"
    return train_it


def sharpen_one_head(layer: MultiHeadSelfAttention) -> None:
    layer.positional_key[0] *= 2


def move_one_head_between_pixels(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift[0, 0] += 0.5


def move_one_head_off_the_kernel(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift[0, 0] -= 1


def content_of(layer: MultiHeadSelfAttention) -> tuple[Tensor, Tensor, Tensor]:
    """W_qry, W_key and u, to be edited, none of them trained."""
    layer.unfreeze("content")
    terms = layer.query, layer.key, layer.content_bias
    query, key, bias = (term.requires_grad_(False) for term in terms if term is not None)
    return query, key, bias


def let_one_head_see_content(layer: MultiHeadSelfAttention) -> None:
    with torch.no_grad():
        for term in content_of(layer)[:2]:
            term[0, 0, 0] = 1


def bias_the_keys(layer: MultiHeadSelfAttention) -> None:
    with torch.no_grad():
        for term in content_of(layer)[1:]:
            term.fill_(1)


OFF_THE_STRUCTURE = [
    *(train("content", name) for name in PARTS["content"]),
    *(train("shifts", name) for name in PARTS["shifts"]),
    sharpen_one_head,
    move_one_head_between_pixels,
    move_one_head_off_the_kernel,
    let_one_head_see_content,
    bias_the_keys,
]


@exact
@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "sharpness 2"])
@pytest.mark.parametrize("edit", OFF_THE_STRUCTURE, ids=lambda edit: edit.__name__)
def test_layer_off_the_shared_structure_is_refused_factored_and_run_otherwise(
    sharpness: float | None, edit: Callable[[MultiHeadSelfAttention], None]
) -> None:
    case = plain_case()
    auto, dense, factored = (
        attention_from_conv(case.conv, sharpness=sharpness, evaluation=evaluation)
        for evaluation in ("auto", *WAYS)
    )
    assert auto.evaluation == "factored"
    unedited = auto.positional_key.clone(), auto.positional_shift.clone()
    for layer in (auto, dense, factored):
        edit(layer)
    fuses = edit in (sharpen_one_head, move_one_head_off_the_kernel)  # by integers
    assert auto.evaluation == ("fused" if fuses else "dense")
    if not fuses or sharpness is None:
        assert torch.equal(case.run(auto), case.run(dense))
    for use in (lambda: factored.evaluation, lambda: case.run(factored)):
        with pytest.raises(ValueError, match=r"^evaluation 'factored' does not apply"):
            use()
    # What is no longer trained, and has its numbers back, is factored again.
    with torch.no_grad():
        auto.positional_key.requires_grad_(False).copy_(unedited[0])
        auto.positional_shift.requires_grad_(False).copy_(unedited[1])
        for term in content_of(auto):
            term.zero_()
    assert auto.evaluation == "factored"


@control
def test_edits_off_the_structure_change_what_the_heads_do() -> None:
    # So that no factored evaluation could have served: two heads meet and see different things.
    for edit in (sharpen_one_head, move_one_head_between_pixels, let_one_head_see_content):
        case = plain_case()
        layer = attention_from_conv(case.conv, sharpness=1.0, evaluation="dense")
        edit(layer)
        weights = layer.attention_weights((5, 4), x=case.x[:1]).detach()
        rows = weights.reshape(-1, weights.shape[-1])
        targets = targets_of(layer, view_of(layer, case.x)).flatten(0, 1)
        assert not torch.equal(shared_rows(rows, targets), rows)


@exact
@given(st.data())
def test_layer_of_fixed_weights_factors_just_if_heads_agree_where_they_meet(
    data: st.DataObject,
) -> None:
    # Equation (4), for any weights: P solves a linear system, an equation for each coefficient of
    # X_k W_h in Y_q, or there is none.
    heads, queries, keys = (data.draw(st.integers(1, 3)) for _ in range(3))
    stride = data.draw(st.integers(1, 3))
    shifts = data.draw(st.lists(st.integers(-1, 2), min_size=heads, max_size=heads))
    rows = st.lists(st.integers(-1, 2), min_size=keys, max_size=keys)
    targets = {(h, q): stride * q + shifts[h] for h, q in product(range(heads), range(queries))}
    shared = {t: data.draw(rows) for t in set(targets.values())}
    weights = {at: shared[t] for at, t in targets.items()}
    if data.draw(st.booleans(), label="change a row"):
        weights[data.draw(st.sampled_from(sorted(weights)))] = data.draw(rows)
    unknowns = {at: i for i, at in enumerate(product(shared, range(keys)))}
    left = [
        [int(unknowns[t, k] == i) for i in range(len(unknowns))]
        for t, k in product(targets.values(), range(keys))
    ]
    right = [[row[k]] for row, k in product(weights.values(), range(keys))]
    both = [[*a, *b] for a, b in zip(left, right, strict=True)]
    solvable = rank_of(left) == rank_of(both)
    assert solvable is all(
        weights[a] == weights[b] for a, b in product(weights, repeat=2) if targets[a] == targets[b]
    )
    record(dtype="integer")


def rank_of(rows: list[list[int]]) -> int:
    """The rank of a matrix over the rationals."""
    found: int = fmpq_mat(len(rows), len(rows[0]), [fmpq(e) for row in rows for e in row]).rank()
    return found


def one_head_between_pixels() -> MultiHeadSelfAttention:
    layer = attention_from_conv(nn.Conv1d(1, 1, 1), sharpness=1.0, evaluation="dense")
    layer.positional_shift += 0.3
    return layer


def all_heads_between_pixels_alike() -> MultiHeadSelfAttention:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3, padding=1), sharpness=1.0, evaluation="dense")
    layer.positional_shift += 0.5
    return layer


def heads_that_never_meet() -> MultiHeadSelfAttention:
    conv = nn.Conv1d(1, 1, 3, padding=1, stride=3)
    layer = attention_from_conv(conv, sharpness=1.0, evaluation="dense")
    layer.positional_key *= torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    return layer


@exact
@pytest.mark.parametrize(
    "make",
    [one_head_between_pixels, all_heads_between_pixels_alike, heads_that_never_meet],
    ids=lambda make: make.__name__,
)
def test_some_layers_beyond_the_family_factor_too(
    make: Callable[[], MultiHeadSelfAttention],
) -> None:
    layer = make()
    weights = layer.attention_weights((7,)).detach().flatten(0, 1)
    targets = targets_of(layer, view_of(layer, torch.zeros(1, 1, 7))).flatten(0, 1)
    assert torch.equal(shared_rows(weights, targets), weights)


# Which normalisers are products over axes ---------------------------------------------------------


@exact
@given(st.lists(st.lists(st.integers(-3, 0), min_size=1, max_size=4), min_size=1, max_size=3))
def test_top_one_of_a_sum_over_axes_is_a_product(axes: list[list[int]]) -> None:
    # Equation (10), for the project's own top-1, whose quotients are rounded once.
    def alone(axis: list[int]) -> list[Fraction]:
        highest = [k for k, score in enumerate(axis) if score == max(axis)]
        return [Fraction(k in highest, len(highest)) for k in range(len(axis))]

    scores = [float(sum(each)) for each in product(*axes)]
    found = Top1()(torch.tensor(scores, dtype=torch.float64)).tolist()
    assert found == [float(math.prod(each)) for each in product(*map(alone, axes))]
    record(dtype=torch.float64)


@control
def test_sparsemax_of_a_sum_over_axes_is_no_product() -> None:
    conv = nn.Conv2d(1, 1, 1, dtype=torch.float64)
    layer = attention_from_conv(conv, sharpness=0.5, normaliser="sparsemax", evaluation="dense")
    # The query 0 of 2 x 2 pixels has the scores 0, -1/2, -1/2, -1; on 2 pixels 0, -1/2.
    both, one = layer.attention_weights((2, 2))[0, 0], layer.attention_weights((2, 1))[0, 0]
    assert both[3] == 0 < one[1]  # and so is not the square of it


# Wrong layers change both evaluations alike -------------------------------------------------------


def edit_taps(conv: nn.Module, edit: Callable[[Tensor], None]) -> nn.Module:
    """A copy whose taps, in the order of the heads, are edited in place."""
    edited: Any = copy.deepcopy(conv)
    taps = edited.weight.data.flatten(2).movedim(2, 0)
    if edited.transposed:
        taps = taps.flip(0)  # offsets fall as the index grows
    edit(taps)
    if edited.transposed:
        taps = taps.flip(0)
    edited.weight.data = taps.movedim(0, 2).reshape(edited.weight.shape).clone()
    return edited  # type: ignore[no-any-return]


def swapped(i: int, j: int) -> Callable[[Tensor], None]:
    def swap(rows: Tensor) -> None:
        rows[[i, j]] = rows[[j, i]].clone()

    return swap


def zeroed(i: int) -> Callable[[Tensor], None]:
    def zero(rows: Tensor) -> None:
        rows[i] = 0

    return zero


@control
@given(data=st.data(), dtype=exact_format)
def test_two_heads_swapped_or_one_zeroed_change_dense_and_factored_alike(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype).filter(lambda case: math.prod(case.conv.kernel_size) > 1))
    taps = math.prod(case.conv.kernel_size)
    i, j = data.draw(st.lists(st.integers(0, taps - 1), min_size=2, max_size=2, unique=True))
    swap = data.draw(st.booleans(), label="swap")
    edited = edit_taps(case.conv, swapped(i, j) if swap else zeroed(i))
    truth = convolve_module(edited, case.x, case.output_size)
    other = convolve_module(case.conv, case.x, case.output_size)
    unit = min(truth.exponent, other.exponent)
    boundary = data.draw(boundaries(case.conv.padding_mode))
    for layer in both_ways(case, boundary=boundary).values():
        swapped(i, j)(layer.positional_shift) if swap else edit_matrices(layer, zeroed(i))
        y = numbers(case.run(layer))
        # Always the edited convolution, and the original one where the two agree alone.
        assert not exact_error(y, truth).any()
        assert np.array_equal(exact_error(y, other) == 0, truth.at(unit) == other.at(unit))
        record(dtype=dtype)


@control
@accumulators
@pytest.mark.parametrize("edit", [swapped(0, 4), zeroed(2)], ids=["swapped", "zeroed"])
def test_edited_heads_are_the_edited_convolution_at_finite_sharpness_too(
    dtype: torch.dtype, edit: Callable[[Tensor], None]
) -> None:
    case = plain_case(dtype)
    edited: Any = edit_taps(case.conv, edit)
    outputs, roundings = [], []
    for layer in both_ways(case, sharpness=9.0).values():
        assert certify(layer, case.conv, case.x).holds
        edit(layer.positional_shift) if edit.__name__ == "swap" else edit_matrices(layer, edit)
        assert not certify(layer, case.conv, case.x).holds
        certificate = certify(layer, edited, case.x)
        assert certificate.holds
        outputs.append(numbers(case.run(layer)))
        roundings.append(certificate.rounding.numpy())
    assert quotient(abs(outputs[0] - outputs[1]), roundings[0] + roundings[1]) <= 1


# Gradients ----------------------------------------------------------------------------------------


def gradients(layer: MultiHeadSelfAttention, case: Case, upstream: Tensor) -> dict[str, Tensor]:
    """The gradients of the sum of upstream times output, by what they are gradients in."""
    if layer.positional_sharpness is not None:
        layer.unfreeze("sharpness")
    x = case.x.detach().clone().requires_grad_(True)
    named = {"x": x} | {n: p for n, p in layer.named_parameters() if p.requires_grad}
    y = Case(case.conv, x, case.output_size).run(layer)
    return dict(zip(named, torch.autograd.grad(y, list(named.values()), upstream), strict=True))


def small_integers(case: Case) -> Case:
    """The case with integers of at most 7, so that sums over all queries are exact too."""
    with torch.no_grad():
        for parameter in case.conv.parameters():
            parameter.copy_(parameter.remainder(15) - 7)
    return Case(case.conv, case.x.remainder(15) - 7, case.output_size)


@exact
@given(data=st.data(), dtype=exact_format)
def test_saturated_gradients_of_both_evaluations_agree_bit_for_bit_on_integers(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    # At most 2 * 8^3 outputs, 81 terms of 7 * 7 each, in 3 channels: all sums are below 2^24.
    case = small_integers(data.draw(integer_cases(dtype)))
    upstream = integers(*case.run(case.conv).shape, dtype=dtype)
    boundary = data.draw(boundaries(case.conv.padding_mode))
    dense, factored = (
        gradients(layer, case, upstream) for layer in both_ways(case, boundary=boundary).values()
    )
    assert dense.keys() == factored.keys() >= {"x", "weight"}
    for name in dense:
        assert torch.equal(dense[name], factored[name])
    record(dtype=dtype)


def moduli(layer: MultiHeadSelfAttention) -> MultiHeadSelfAttention:
    """The layer with the moduli of its matrices and its bias."""
    positive = copy.deepcopy(layer)
    with torch.no_grad():
        positive.weight.abs_()
        if positive.bias is not None:
            positive.bias.abs_()
    return positive


def sizes_of_gradients(
    dense: MultiHeadSelfAttention, case: Case, upstream: Tensor
) -> dict[str, Tensor]:
    """M of equation (28): the gradients at the moduli of the data; weights are positive anyway.

    In the sharpness the derivative has terms of both signs. Its terms are p_k X_k times the squared
    distance m_k, times the mean of it, and times the sink's 1/2, each at most as often as here.
    """
    layer, positive = moduli(dense), Case(case.conv, case.x.abs(), case.output_size)
    sizes = gradients(layer, positive, upstream.abs())
    view = view_of(layer, positive.x, case.output_size)
    keys = view.keys
    between = keys.positions() - targets_of(layer, view)[:, :, None]
    squared = between.square().sum(-1).double()
    weights = layer.attention_weights(view.image.shape[2:], output_size=case.output_size)
    weights = weights[..., : keys.size].detach()
    mean = (weights * squared).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    values = view.values
    pixels = values.reshape(len(values), layer.groups, -1, keys.size)
    seen = torch.einsum("hqk,ngck->nhgcq", weights * (squared + 3 * mean + 1), pixels)
    outputs = torch.einsum("nhgcq,hgco->ngoq", seen, products(layer.heads, seen.dtype))
    total = (outputs.flatten() * upstream.abs().reshape(outputs.shape).flatten()).sum()
    return sizes | {"positional_sharpness": total.detach()}


def roundings_of_gradients(
    dense: MultiHeadSelfAttention, factored: MultiHeadSelfAttention, view: View
) -> float:
    """(1 + g)^f (1 + u)^n - 1 of equation (28), for all gradients and both evaluations at once.

    n is the length of all sums one after another: over heads, queries and keys, over what stands on
    the axes of every intermediate image, over channels. f counts d weights, two more of a softmax,
    r and 1 - r and the exponential of a log-sum-exp: at most 8.
    """
    keys, targets = Softmaxes(dense, view).keys.shape, view.targets.shape
    largest = math.prod(map(max, keys, targets))
    batch, channels = view.image.shape[:2]
    heads, queries = dense.num_heads, view.queries.size
    outputs = dense.out_channels or 0
    n = heads * (queries * (math.prod(keys) + 1) + channels + outputs)
    n += batch * (queries + channels * (largest + math.prod(keys) + 1))
    n += sum(k * t + k + t for k, t in zip(keys, targets, strict=True)) + view.targets.size + 64
    with precision(BITS):
        leaves = [
            *Softmaxes(dense, view).errors("dense"),
            *Softmaxes(factored, view).errors("factored"),
        ]
        leaf = max((step.weight for step in leaves), key=lambda weight: float(weight.upper()))
        u = ball(formats.unit_roundoff(torch.float64))
        return float(theory.compounded([leaf] * 8 + [theory.growth(n, u)]).upper())


def gradient_ratio(
    dense: MultiHeadSelfAttention,
    factored: MultiHeadSelfAttention,
    case: Case,
) -> float:
    """The largest difference of two gradients over the sum of their bounds."""
    upstream = integers(*case.run(case.conv).shape, dtype=torch.float64)
    left, right = (gradients(layer, case, upstream) for layer in (dense, factored))
    sizes = sizes_of_gradients(dense, case, upstream)
    grown = roundings_of_gradients(dense, factored, view_of(dense, case.x, case.output_size))
    assert left.keys() == right.keys() == sizes.keys()
    assert grown < 1 / 4
    # M itself, a sum of terms of one sign, may have lost as much.
    bounds_ = {name: 2 * grown * (1 + 2 * grown) * m + UNDERFLOW for name, m in sizes.items()}
    ratios = [((left[n] - right[n]).abs() / bound).max() for n, bound in bounds_.items()]
    return max(float(ratio) for ratio in ratios)


@st.composite
def smooth_cases(draw: st.DrawFn) -> tuple[Case, float, str]:
    """A case, a sharpness and a boundary at which no weight underflows: squared distance * α < 600.

    Then leaves have relative errors alone. Circles are left out: their scores are no integers.
    """
    modes = ("zeros", "replicate", "reflect")
    case = small_integers(draw(integer_cases(torch.float64, padding_modes=modes)))
    assume(case.x.numel())
    boundary = draw(boundaries(case.conv.padding_mode))
    layer = attention_from_conv(case.conv, sharpness=1.0, boundary=boundary)
    view = view_of(layer, case.x, case.output_size)
    keys, targets = Softmaxes(layer, view).keys, view.targets
    reach = [
        max(abs(a - d), abs(b - c))
        for a, b, c, d in zip(keys.origin, keys.last, targets.origin, targets.last, strict=True)
    ]
    most = 600 / max(1, sum(r * r for r in reach))
    return case, draw(st.floats(most / 1000, most)), boundary


@bounded
@given(smooth_cases())
def test_gradients_of_both_evaluations_differ_by_their_rounding_alone(
    drawn: tuple[Case, float, str],
) -> None:
    case, sharpness, boundary = drawn
    layers = both_ways(case, sharpness=sharpness, boundary=boundary)
    ratio = gradient_ratio(layers["dense"], layers["factored"], case)
    record(ratio=ratio, dtype=torch.float64)
    assert ratio <= 1


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of three rows or little more; and how many each factor was multiplied in."""
    found: list[int] = []
    blocks_of = soft_padding._blocks

    def noted(matrix: Tensor) -> list[Span]:
        blocks = blocks_of(matrix)
        found.append(len(blocks))
        return blocks

    monkeypatch.setattr(soft_padding, "BLOCK", 3)
    monkeypatch.setattr(soft_padding, "_blocks", noted)
    return found


@bounded
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_gradients_in_blocks_differ_by_their_rounding_alone(
    dimension: int, mode: str, small_blocks: list[int]
) -> None:
    size = (40, 14, 9)[dimension - 1]
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1]
    conv = filled(kind(2, 1, 2, padding=1, padding_mode=mode)).double()
    case = Case(conv, integers(1, 2, *[size] * dimension, dtype=torch.float64))
    # Two pixels off the peak a weight is exactly zero, and one pixel off it is e^-200.
    layers = both_ways(case, sharpness=200.0)
    ratio = gradient_ratio(layers["dense"], layers["factored"], case)
    assert max(small_blocks) > 1
    record(ratio=ratio, dtype=torch.float64)
    assert ratio <= 1


@exact
@pytest.mark.parametrize("dimension", [1, 2])
def test_what_is_trained_has_the_bits_of_what_is_not(
    dimension: int, small_blocks: list[int]
) -> None:
    conv: Any = (nn.Conv1d, nn.Conv2d)[dimension - 1](3, 2, 3, padding=1)
    layer = attention_from_conv(conv, sharpness=20.0, evaluation="factored")
    x = torch.randn(2, 3, *[20] * dimension, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(layer(x), y)
    assert max(small_blocks) > 1


@exact
@pytest.mark.parametrize(
    ("shape", "dim"), [((1, 6), 2), ((1, 6, 2), 2), ((1, 2, 6), 3), ((1, 2, 6, 2), 3)], ids=str
)
def test_products_in_blocks_have_all_derivatives(
    shape: tuple[int, ...], dim: int, small_blocks: list[int]
) -> None:
    weights, tangent = integers(2, 7, 6, dtype=torch.float64) + 4  # from 1 to 7
    band = torch.ones_like(weights).triu(-1).tril(1)
    values, moved = integers(2, 1, *shape, dtype=torch.float64)
    given = (weights.requires_grad_(), values.requires_grad_())

    def in_blocks(weights: Tensor, values: Tensor) -> Tensor:
        return Full(weights * band)(values, dim)

    def whole(weights: Tensor, values: Tensor) -> Tensor:
        return (values.movedim(dim, -1) @ (weights * band).T).movedim(-1, dim)

    def derivatives(product: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Of integers: itself, first and second derivatives, forwards, and two images at once."""
        y = product(*given)
        upstream = integers(*y.shape, dtype=torch.float64).requires_grad_()
        first = torch.autograd.grad(y, given, upstream, create_graph=True)
        sums = [(g * integers(*g.shape, dtype=torch.float64)).sum() for g in first]
        second = torch.autograd.grad(sums, (*given, upstream))
        forward: Any = forward_ad
        with forward.dual_level():
            pairs = zip(given, (tangent, moved), strict=True)
            duals = [forward.make_dual(*pair) for pair in pairs]
            ways = [product(*duals), product(duals[0], values), product(weights, duals[1])]
            forwards = [forward.unpack_dual(way).tangent for way in ways]
        images = torch.stack([values.detach(), moved])
        return [y, *first, *second, *forwards, torch.vmap(product, (None, 0))(weights, images)]

    for ours, right in zip(derivatives(in_blocks), derivatives(whole), strict=True):
        assert torch.equal(ours, right)
    assert min(small_blocks) > 1


@control
def test_gradients_of_another_sharpness_or_border_are_rejected() -> None:
    case = small_integers(plain_case())
    right_ways = both_ways(case, sharpness=2.0)
    assert gradient_ratio(right_ways["dense"], right_ways["factored"], case) <= 1
    for options in ({"sharpness": 2.0 * (1 + 1e-6)}, {"sharpness": 2.0, "boundary": "padded"}):
        wrong = both_ways(case, **options)
        assert gradient_ratio(right_ways["dense"], wrong["factored"], case) > 1


def gradient_in_sharpness(case: Case, sharpness: float, way: str) -> tuple[float, float]:
    """That of the sum of the outputs, and what rounding may do to it by equation (28)."""
    layers, upstream = both_ways(case, sharpness=sharpness), torch.ones_like(case.run(case.conv))
    view = view_of(layers["dense"], case.x)
    grown = roundings_of_gradients(layers["dense"], layers["factored"], view)
    size = sizes_of_gradients(layers["dense"], case, upstream)["positional_sharpness"]
    found = gradients(layers[way], case, upstream)["positional_sharpness"]
    # M itself, a sum of terms of one sign, may have lost as much.
    return found.item(), grown * (1 + 2 * grown) * size.item() + UNDERFLOW


def flat(value: float, mode: str) -> Case:
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode=mode, dtype=torch.float64)  # type: ignore[arg-type]
    return Case(filled(conv), torch.full((1, 1, 4, 4), value, dtype=torch.float64))


@bounded
@pytest.mark.parametrize("way", WAYS)
@given(value=st.floats(-7, 7).filter(bool), sharpness=st.floats(1 / 4, 8))
def test_a_flat_image_does_not_feel_the_sharpness_without_a_sink(
    way: str, value: float, sharpness: float
) -> None:
    # Equation (19), the exact gradient being 0.
    found, allowed = gradient_in_sharpness(flat(value, "replicate"), sharpness, way)
    record(ratio=abs(found) / allowed, dtype=torch.float64)
    assert abs(found) <= allowed


@control
@pytest.mark.parametrize("way", WAYS)
def test_a_flat_image_feels_the_sharpness_beside_a_sink(way: str) -> None:
    # Equation (20): r' = (Z' S - Z S')/(Z + S)², S = e^(-α/2) of the sink.
    case, alpha = flat(1.0, "zeros"), Fraction(1)
    found, allowed = gradient_in_sharpness(case, float(alpha), way)
    with precision(BITS):
        sink, slopes = ball(-alpha / 2).exp(), {}
        for target in product(range(-1, 5), repeat=2):
            steps = [squared(k, target) for k in product(range(4), repeat=2)]
            total = sum((ball(-alpha * m).exp() for m in steps), arb(0))
            slope = sum((-m * ball(-alpha * m).exp() for m in steps), arb(0))
            slopes[target] = (slope * sink + total * sink / 2) / (total + sink) ** 2
        taps = case.conv.weight[0, 0].tolist()
        truth = sum(
            (
                taps[i][j] * slopes[q[0] + i - 1, q[1] + j - 1]
                for q in product(range(4), repeat=2)
                for i, j in product(range(3), repeat=2)
            ),
            arb(0),
        )
        assert abs(arb(found) - truth) <= allowed
        assert abs(found) > allowed


# The error, to first order ------------------------------------------------------------------------


Pixels = dict[tuple[int, ...], Fraction]


def blurred(target: Sequence[int], alpha: Fraction, pixels: Pixels, *, sink: bool) -> arb:
    """(PX)_t on a box of pixels, by definition."""
    shape = [last + 1 for last in max(pixels)]
    axes = [
        [ball(-alpha * (k - t) ** 2) for k in range(n)] for n, t in zip(shape, target, strict=True)
    ]
    row = theory.soft_padding_row(axes, ball(-alpha / 2) if sink else None)
    return sum((p * ball(pixel) for p, pixel in zip(row, pixels.values(), strict=True)), arb(0))


@st.composite
def images(draw: st.DrawFn) -> Pixels:
    """A small box of pixels, not all equal, in one to three dimensions."""
    shape = draw(st.sampled_from([(2,), (5,), (2, 3), (4, 3), (2, 2, 2)]))
    values = st.sampled_from([Fraction(i, 3) for i in range(-3, 4)])
    pixels = {k: draw(values) for k in product(*map(range, shape))}
    assume(len(set(pixels.values())) > 1)
    return pixels


def squared(a: Sequence[int], b: Sequence[int]) -> int:
    return sum((i - j) ** 2 for i, j in zip(a, b, strict=True))


alphas = st.fractions(Fraction(1, 4), 40, max_denominator=64)


@bounded
@given(images(), alphas)
def test_error_without_a_sink_is_a_laplacian_up_to_the_remainder(
    pixels: Pixels, alpha: Fraction
) -> None:
    rank = len(max(pixels))
    with precision(BITS):
        x = ball(-alpha).exp()
        first = 2 * rank * x
        relative = off_target_mass_enclosure(alpha, rank) - first + first**2
        for target, here in pixels.items():
            laplacian = sum(p - here for k, p in pixels.items() if squared(k, target) == 1)
            seen = blurred(target, alpha, pixels, sink=False)
            left = seen - ball(here) - x * ball(laplacian + Fraction(0))
            bound = relative * ball(max(abs(p - here) for p in pixels.values()))
            record(ratio=float((abs(left) / bound).upper()), dtype="ball")
            assert abs(left) <= bound


@bounded
@given(images(), alphas)
def test_error_with_a_sink_dims_the_image_and_lights_the_padding(
    pixels: Pixels, alpha: Fraction
) -> None:
    last = max(pixels)
    with precision(BITS):
        y = ball(-alpha / 2).exp()
        on_grid = off_target_mass_enclosure(alpha, len(last)) + y**2
        for target in product(*(range(-1, end + 2) for end in last)):
            seen = blurred(target, alpha, pixels, sink=True)
            if target in pixels:
                here = pixels[target]
                left, relative = seen - ball(here) + y * ball(here), on_grid
                farthest = max(abs(p - here) for p in (*pixels.values(), Fraction(0)))
            else:
                near = [p for k, p in pixels.items() if squared(k, target) == 1]
                left = seen - y * ball(sum(near, Fraction(0)))
                total = sum((y ** (2 * squared(k, target) - 1) for k in pixels), arb(0))
                relative = total - len(near) * y + (len(near) * y) ** 2
                farthest = max(map(abs, pixels.values()))
            bound = relative * ball(farthest)
            record(ratio=float((abs(left) / bound).upper()), dtype="ball")
            assert abs(left) <= bound


@control
def test_first_order_of_the_wrong_border_leaves_more_than_the_remainder() -> None:
    with precision(BITS):
        pixels: Pixels = {(0,): Fraction(0), (1,): Fraction(1)}
        alpha = Fraction(9)
        x = ball(-alpha).exp()
        seen = blurred((0,), alpha, pixels, sink=False)
        remainder = off_target_mass_enclosure(alpha, 1) - 2 * x + (2 * x) ** 2
        assert abs(seen - x * 1) <= remainder
        assert abs(seen - x * 2) > remainder  # a mirror: two neighbours at the edge
        dimmed = blurred((1,), alpha, pixels, sink=True)
        assert abs(dimmed - 1 + x * 1) > remainder  # a Laplacian, where there is a sink


@exact
@given(st.integers(1, 6), st.integers(0, 5), st.data())
def test_soft_padding_forgets_nothing_wherever_it_has_as_many_rows_as_keys(
    n: int, more: int, data: st.DataObject
) -> None:
    x = data.draw(st.sampled_from([Fraction(1, 3), Fraction(4, 5), Fraction(99, 100)]))
    places = st.integers(-4, n + 4)
    rows = data.draw(st.lists(places, min_size=n + more, max_size=n + more, unique=True))[: n + 9]
    entries = [[Fraction(x) ** ((k - t) ** 2) for k in range(n)] for t in rows]
    matrix = fmpq_mat(len(rows), n, [fmpq(e.numerator, e.denominator) for r in entries for e in r])
    assert matrix.rank() == n


# The cost -----------------------------------------------------------------------------------------


@exact
@given(st.data())
def test_multiplications_are_as_many_as_stated(data: st.DataObject) -> None:
    case = data.draw(integer_cases(torch.float32).filter(lambda case: case.x.numel() > 0))
    boundary = data.draw(boundaries(case.conv.padding_mode))
    dense, factored = both_ways(case, sharpness=1.0, boundary=boundary).values()
    view = view_of(factored, case.x, case.output_size)
    values = view.values
    keys, targets, outputs = values.shape[2:], view.targets.shape, case.run(case.conv).numel()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:

        def multiplications(call: Callable[..., object], *arguments: object) -> int:
            """As many as torch counts; an operation is a multiplication and an addition."""
            before = counter.get_total_flops()
            call(*arguments)
            return int(counter.get_total_flops() - before) // 2

        padding = factored.soft_padding(view)
        assert counter.get_total_flops() == 0
        soft = multiplications(padding, values)
        matrices = multiplications(kernel, factored.heads, factored.geometry, torch.float32)
        convolution = multiplications(case.run, factored) - soft - matrices
        defined = multiplications(case.run, dense)
    images = math.prod(values.shape[:2])
    assert soft == images * theory.multiplications(keys, targets)
    # One product for each tap, pair of channels of a group, output and image.
    inputs = case.conv.in_channels // case.conv.groups
    assert convolution == outputs * inputs * math.prod(case.conv.kernel_size)
    assert defined >= images * dense.num_heads * view.queries.size * math.prod(keys)
    record(dtype=torch.float32)


@exact
@given(data=st.data(), dtype=any_format)
def test_factors_are_banded_with_the_stated_width_and_hardly_less(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    n, before = data.draw(st.integers(1, 24)), data.draw(st.integers(0, 6))
    spacing = data.draw(st.sampled_from([1, 1, 2, 3]))
    alpha = data.draw(sharpnesses() | st.floats(0.05, 5))
    keys = Lattice((n,), (spacing,), (0,))
    targets = Lattice((spacing * (n - 1) + 1 + 2 * before,), (1,), (-before,))
    padding = SoftPadding.of(
        (Quadratic(),) * keys.dimension,
        alpha,
        keys,
        targets,
        gap=1.0,
        sink_height=None,
        dtype=dtype,
    )
    (factor,) = (factor.matrix for factor in padding.factors)
    width = theory.band(alpha, Softmax().one_hot_gap(dtype), spacing)
    t = targets.positions()[:, 0]
    nearest = (spacing * torch.arange(n) - t[:, None]).abs().argmin(dim=1)
    distance = (torch.arange(n) - nearest[:, None]).abs()  # in keys
    assert not factor[distance > width].any()
    assert (factor[distance == 0] > 0).all()
    with precision(BITS):
        error = theory.softmax_error(str(dtype).removeprefix("torch."), n, steps=1)
        target = data.draw(st.sampled_from(t.tolist()))
        exactly = theory.soft_padding_row(
            [[-ball(alpha) * (spacing * k - target) ** 2 for k in range(n)]]
        )
        stored = factor[target + before].tolist()
        # A weight above what can be lost is not lost.
        assert all(
            found > 0
            for p, found in zip(exactly, stored, strict=True)
            if p * (1 - error.weight) > error.lost
        )
    record(dtype=dtype)


@control
def test_narrower_band_is_rejected() -> None:
    keys = Lattice((40,), (1,), (0,))
    padding = SoftPadding.of(
        (Quadratic(),) * keys.dimension,
        1.0,
        keys,
        keys,
        gap=1.0,
        sink_height=None,
        dtype=torch.float32,
    )
    distance = (torch.arange(40) - torch.arange(40)[:, None]).abs()
    assert theory.band(1.0, Softmax().one_hot_gap(torch.float32)) == 10
    (factor,) = (factor.matrix for factor in padding.factors)
    assert not factor[distance > 10].any()
    assert factor[distance > 8].any()


@control
@every_format
def test_band_of_keys_one_apart_is_none_for_keys_two_apart(dtype: torch.dtype) -> None:
    # Equation (17): half-way between two keys both are nearest, at every sharpness.
    gap = Softmax().one_hot_gap(dtype)
    keys, targets = Lattice((4,), (2,), (0,)), Lattice((7,), (1,), (0,))
    padding = SoftPadding.of(
        (Quadratic(),), 2 * gap, keys, targets, gap=1.0, sink_height=0.5, dtype=dtype
    )
    assert theory.band(2 * gap, gap) == 0
    assert theory.band(2 * gap, gap, 2) == 1
    assert padding.factors[0].matrix[1].tolist() == [1 / 2, 1 / 2, 0, 0]


@exact
@every_format
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_saturated_sink_leaves_all_or_nothing(rank: int, dtype: torch.dtype) -> None:
    # After equation (17): between two keys both are nearest, and r is twice e^(-α/2).
    gap = Softmax().one_hot_gap(dtype)

    def kept(spacing: int, alpha: float) -> tuple[Tensor, Tensor]:
        """What the sink leaves of the rows on the grid of the keys, and of the others."""
        keys = Lattice((3,) * rank, (spacing,) * rank, (0,) * rank)
        targets = Lattice((2 * spacing + 5,) * rank, (1,) * rank, (-2,) * rank)
        padding = SoftPadding.of(
            (Quadratic(),) * rank, alpha, keys, targets, gap=1.0, sink_height=0.5, dtype=dtype
        )
        assert padding.kept is not None
        t = targets.positions()
        on_grid = ((t % spacing == 0) & (t >= 0) & (t <= 2 * spacing)).all(dim=1)
        return padding.kept.flatten()[on_grid], padding.kept.flatten()[~on_grid]

    for spacing, alpha in ((1, 2 * gap), (2, 2 * (gap + math.log(2)))):
        on_grid, off_grid = kept(spacing, alpha)
        assert (on_grid == 1).all()
        assert (off_grid == 0).all()
    if dtype != torch.float64:  # whose factor of 2 is within the threshold's own allowance
        assert kept(2, 2 * gap)[1].any()


# Outside of the reals -----------------------------------------------------------------------------


@exact
@given(st.data())
def test_saturated_factored_layer_spreads_an_infinite_pixel_no_further_than_the_convolution(
    data: st.DataObject,
) -> None:
    # torch computes a float64 convolution on the CPU as a plain sum.
    case = data.draw(integer_cases(torch.float64).filter(lambda case: case.x.numel() > 0))
    pixel = data.draw(st.integers(0, case.x.numel() - 1))
    case.x.view(-1)[pixel] = data.draw(st.sampled_from([math.inf, -math.inf, math.nan]))
    ones: Any = copy.deepcopy(case.conv)
    nn.init.ones_(ones.weight)
    ones.bias = None
    window = convolve_module(ones, ~case.x.isfinite(), case.output_size).nearest() > 0
    boundary = data.draw(boundaries(case.conv.padding_mode))
    dense, factored = (
        ~np.isfinite(numbers(case.run(layer)))
        for layer in both_ways(case, boundary=boundary).values()
    )
    assert np.array_equal(factored, window)
    assert (dense >= window).all()
    record(dtype=torch.float64)


@control
def test_dense_attention_and_soft_factors_spread_it_further() -> None:
    conv = filled(nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64))
    x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    x[0, 0, 3, 3] = math.inf
    outputs = {
        (way, sharpness): int((~layer(x).isfinite()).sum())
        for sharpness in (None, 2.0)
        for way, layer in both_ways(Case(conv, x), sharpness=sharpness).items()
    }
    assert outputs["factored", None] == 9
    assert outputs["dense", None] == outputs["dense", 2.0] == outputs["factored", 2.0] == 49


# Rounding: the code is the page, and torch is as assumed ------------------------------------------


@exact
@given(dtype=any_format, numbers_=st.tuples(*[st.floats(-99, 99, width=16)] * 3))
def test_rounding_at_most_doubles_a_distance_and_moves_a_sum_by_either_term(
    dtype: torch.dtype, numbers_: tuple[float, float, float]
) -> None:
    # Equation (25), of a sum and of a product, against any other number of the format.
    given_ = torch.tensor(numbers_, dtype=torch.float64).to(dtype)
    a, b, other = map(Fraction, given_.tolist())
    sum_, product_ = (
        Fraction(each.item()) for each in (given_[0] + given_[1], given_[0] * given_[1])
    )
    assert abs(sum_ - (a + b)) <= min(abs(a), abs(b))
    assert abs(sum_ - other) <= 2 * abs(a + b - other)
    assert abs(product_ - other) <= 2 * abs(a * b - other)
    record(dtype=dtype)


@bounded
@given(
    dtype=any_format,
    keys=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    rescaled=st.booleans(),
    exponent=st.integers(-300, -1),
)
def test_rounding_of_the_heads_in_code_covers_that_of_the_page(
    dtype: torch.dtype, keys: list[int], rescaled: bool, exponent: int
) -> None:
    name, steps, mass = str(dtype).removeprefix("torch."), len(keys) + rescaled, 2.0**exponent
    one, vast = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1e300, dtype=torch.float64)

    def coded(seen: Tensor, mass: Tensor) -> arb:
        found = head_rounding(seen, one, mass, keys, dtype, rescaled=rescaled)
        return arb(found.item())

    with precision(BITS):
        errors = [theory.softmax_error(name, n, steps=steps) for n in keys]
        errors += [theory.rescaling_error(name, keys)] * rescaled
        assert coded(one, vast) >= theory.rounding_of_the_seen(name, errors, arb(1), arb(1))
        stated = theory.rounding_of_the_mass(name, keys, ball(mass), arb(1), rescaled=rescaled)
        assert coded(vast, one * mass) >= stated


@bounded
@given(st.floats(-745.0, 800.0))
def test_sigmoid_is_as_accurate_as_assumed(z: float) -> None:
    found = torch.full((9,), z, dtype=torch.float64).sigmoid()
    with precision(BITS):
        value = 1 / (1 + (-ball(z)).exp())
        u, tiny = ball(Fraction(1, 2**53)), ball(formats.smallest_normal(torch.float64))
        for each in found.tolist():
            assert abs(each - value) <= (40 + 2) * u * (1 + 2 * u) ** 2 * value + 2 * tiny


@bounded
@given(st.lists(st.floats(-700.0, 0.0), min_size=0, max_size=40))
def test_logarithm_of_a_sum_of_exponentials_is_as_accurate_as_assumed(scores: list[float]) -> None:
    row = torch.tensor([*scores, 0.0], dtype=torch.float64)
    found = row.logsumexp(0).item()
    with precision(BITS):
        u, tiny = ball(Fraction(1, 2**53)), ball(formats.smallest_normal(torch.float64))
        total = sum((ball(s).exp() for s in row.tolist()), arb(0))
        summed = 40 * u + theory.growth(len(row), u) + 2 * len(row) * tiny
        # ln((1 + e) y) is within e of ln y for e > 0, and within e/(1 - e) for e < 0.
        assert abs(found - total.log()) <= summed / (1 - summed) * (1 + 4 * u) + 4 * u * total.log()


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
