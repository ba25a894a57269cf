"""Layers of few heads are the convolution, within their certificates, and wrong ones are not."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from constructions import assert_equivalent, attention_from_conv, certify, convert, revert
from constructions.certificate import Certificate
from constructions.encodings import Lattice, Mixtures
from constructions.formats import FORMATS, unit_roundoff
from constructions.heads import count
from constructions.heads.polytope import ENOUGH
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import heads
from tests.support.helpers import refused
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.strategies import Case, a_share, geometries, real_cases
from theory import heads_count_the_rank_of_the_kernel as theory

SLUG = "heads_count_the_rank_of_the_kernel"
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

WAYS: dict[str, dict[str, Any]] = {
    "minimal": {"heads": "minimal"},
    "finite": {"heads": "minimal", "finite": True},
    "signed": {"heads": "signed"},
}
every_way = pytest.mark.parametrize("way", WAYS)
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)

SOBEL_X, SOBEL_Y = (-1, 0, 1, -2, 0, 2, -1, 0, 1), (-1, -2, -1, 0, 0, 0, 1, 2, 1)
ONE = (0, 0, 0, 0, 1, 0, 0, 0, 0)
CELLS = (ONE, SOBEL_X, SOBEL_Y)
"""The filters of neural cellular automata: rank 3, on the border of case (b)."""


def filters(*of: Sequence[float], dtype: torch.dtype = torch.float64, **options: Any) -> nn.Conv2d:
    """One channel to one for each filter of three rows."""
    conv = nn.Conv2d(1, len(of), 3, dtype=dtype, **{"padding": 1, "bias": False, **options})
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(of, dtype=torch.float64).reshape(conv.weight.shape))
    return conv


def image(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def certified(case: Case, layer: MultiHeadSelfAttention) -> Certificate:
    return certify(layer, case.conv, case.x, output_size=case.output_size)


def true_ratio(case: Case, layer: MultiHeadSelfAttention, certificate: Certificate) -> float:
    """The layer's largest error from the exact convolution, over the certificate's bound."""
    truth = convolve_module(case.conv, case.x, case.output_size)
    error = exact_error(numbers(case.run(layer)), truth)
    limit = certificate.bound.numpy()
    within = (error == 0) | np.isinf(limit)
    quotient = np.divide(error, limit, out=np.full_like(error, math.inf), where=limit > 0)
    return float(np.where(within, 0.0, quotient).max(initial=0.0))


def collides(layer: MultiHeadSelfAttention, case: Case) -> bool:
    """Whether two taps that heads see are one pixel of a torus; one that is 0 may be any."""
    assert isinstance(layer.encoding, Mixtures)
    pixels = case.x.shape[-len(case.conv.kernel_size) :]
    offsets = layer.encoding.offsets
    met = {tuple(o % n for o, n in zip(point, pixels, strict=True)) for point in offsets}
    return len(met) < len(offsets)


@st.composite
def low_rank_cases(draw: st.DrawFn, dtype: torch.dtype) -> Case:
    """Every torch convolution, its taps small integers of a low rank; some taps are 0."""
    geometry = draw(geometries())
    conv: Any = geometry.build(dtype)
    shape = conv.weight.shape
    taps, size = math.prod(shape[2:]), math.prod(shape[:2])
    rank = draw(st.integers(1, 3))
    small = st.integers(-2, 2)
    left = draw(st.lists(small, min_size=taps * rank, max_size=taps * rank))
    right = draw(st.lists(small, min_size=rank * size, max_size=rank * size))
    kernel = torch.tensor(right).view(size, rank) @ torch.tensor(left).view(rank, taps)
    with torch.no_grad():
        conv.weight.copy_(kernel.view(shape))
        if conv.bias is not None:
            conv.bias.copy_(torch.arange(1.0, len(conv.bias) + 1))
    seed = draw(st.integers(0, 2**16))
    x = torch.randn(geometry.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Case(conv, x, geometry.output_size)


# The layer is the convolution ---------------------------------------------------------------------


def check_layer(case: Case, options: dict[str, Any], device: str) -> None:
    """Every evaluation that applies, within the certificate; a torus that is too small refuses."""
    layer = attention_from_conv(case.conv, **options)
    if layer.boundary == "natural" and collides(layer, case):
        with pytest.raises(ValueError, match=r"boundary='padded'"):
            case.run(layer)
        options = {**options, "boundary": "padded"}
        layer = attention_from_conv(case.conv, **options)
    found = count(case.conv)
    if options.get("finite"):
        assert layer.num_heads == max(1, found.finite)
        assert (
            layer.attention_weights(
                case.x.shape[-len(case.conv.kernel_size) :], output_size=case.output_size
            )
            >= 0
        ).all()
    elif options["heads"] == "signed":
        assert layer.num_heads == max(1, found.rank)
    else:
        assert found.masked <= max(layer.num_heads, 1) <= max(1, found.masked + 1)
    evaluations = ["dense"] + (["factored"] if layer.evaluation == "factored" else [])
    for evaluation in evaluations:
        layer = attention_from_conv(case.conv, evaluation=evaluation, **options)
        certificate = certified(case, layer)
        assert not certificate.bound.isnan().any()
        ratio = true_ratio(case, layer, certificate)
        record(ratio=ratio, device=device, dtype=case.x.dtype)
        assert ratio <= 1.0
        assert certificate.holds


@bounded
@every_way
@given(data=st.data())
def test_layer_of_a_kernel_of_low_rank_errs_within_its_certificate(
    way: str, data: st.DataObject, device: str
) -> None:
    dtype = data.draw(st.sampled_from(FORMATS), label="dtype")
    case = data.draw(low_rank_cases(dtype), label="case").to(device)
    boundary = data.draw(st.sampled_from(["auto", "padded"]), label="boundary")
    check_layer(case, {**WAYS[way], "boundary": boundary}, device)


@bounded
@every_way
@a_share
@given(data=st.data())
def test_layer_of_any_floats_errs_within_its_certificate(
    way: str, data: st.DataObject, device: str
) -> None:
    dtype = data.draw(st.sampled_from(FORMATS), label="dtype")
    case = data.draw(real_cases(dtype), label="case").to(device)
    check_layer(case, WAYS[way], device)


@bounded
@a_share
@given(data=st.data(), number=st.integers(1, 4))
def test_layer_of_any_number_of_heads_errs_within_its_certificate(
    data: st.DataObject, number: int, device: str
) -> None:
    dtype = data.draw(st.sampled_from(FORMATS), label="dtype")
    case = data.draw(low_rank_cases(dtype), label="case").to(device)
    layer = attention_from_conv(case.conv, heads=number, boundary="padded")
    assert layer.num_heads <= max(number, count(case.conv).masked)
    certificate = certified(case, layer)
    ratio = true_ratio(case, layer, certificate)
    record(ratio=ratio, device=device, dtype=dtype)
    assert ratio <= 1.0


@bounded
@every_way
@pytest.mark.parametrize("seed", range(3))
def test_content_leaves_the_derivative_at_the_zero_image_what_it_was(way: str, seed: int) -> None:
    # Equation (15): scores that depend on the content, whatever they are, cannot need fewer heads.
    conv = filters(SOBEL_X, SOBEL_Y)
    layer = attention_from_conv(conv, evaluation="dense", **WAYS[way]).unfreeze("content")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for term in (layer.query, layer.key, layer.content_bias):
            assert term is not None
            term.copy_(torch.randn(term.shape, generator=generator, dtype=torch.float64))
    x = image(1, 1, 5, 6)
    away = layer(x).detach()
    slope = torch.func.jvp(layer, (torch.zeros_like(x),), (x,))[1]
    bound = certify(attention_from_conv(conv, evaluation="dense", **WAYS[way]), conv, x).bound
    error = exact_error(numbers(slope), convolve_module(conv, x))
    assert (error <= bound.numpy()).all()
    assert (exact_error(numbers(away), convolve_module(conv, x)) > bound.numpy()).any()


@bounded
@every_way
def test_tap_that_is_zero_may_be_the_pixel_of_another_on_a_small_torus(
    way: str, device: str
) -> None:
    conv = nn.Conv1d(1, 1, 2, padding="same", padding_mode="circular", bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[0.5, 0.0]]]))
    case = Case(conv, torch.full((1, 1, 1), 0.5))
    assert attention_from_conv(conv, **WAYS[way]).boundary == "natural"
    check_layer(case.to(device), WAYS[way], device)


# Its weights --------------------------------------------------------------------------------------


@bounded
@every_way
@pytest.mark.parametrize(
    "of",
    [(SOBEL_X,), (SOBEL_X, SOBEL_Y), CELLS, (ONE,)],
    ids=["Sobel", "Sobel pair", "cells", "identity"],
)
def test_attention_weights_span_the_kernel(way: str, of: tuple[tuple[int, ...], ...]) -> None:
    conv = filters(*of)
    layer = attention_from_conv(conv, **WAYS[way])
    weights = layer.attention_weights((5, 6)).double().numpy()  # keys are 7 x 8
    query = 2 * 6 + 2
    at_taps = weights[:, query].reshape(-1, 7, 8)[:, 2:5, 2:5].reshape(-1, 9)
    elsewhere = weights[:, query].sum(axis=1) - at_taps.sum(axis=1)
    kernel = np.array(of, dtype=float)
    span = at_taps if way != "finite" else np.concatenate([at_taps, elsewhere[:, None]], axis=1)
    wanted = kernel if way != "finite" else np.pad(kernel, ((0, 0), (0, 1)))
    found = np.linalg.lstsq(span.T, wanted.T, rcond=None)[0]
    # Logits are rounded, and least squares of so few numbers too: 2^10 roundings in all.
    limit = 2.0**10 * unit_roundoff(torch.float64) * np.abs(found).sum() * np.abs(span).max()
    assert np.abs(span.T @ found - wanted.T).max() <= limit
    if way == "minimal":
        outside = np.ones((7, 8), dtype=bool)
        outside[2:5, 2:5] = False
        assert not weights[:, query].reshape(-1, 7, 8)[:, outside].any()
        assert (weights >= 0).all()
    elif way == "finite":
        assert (weights > 0).all()


@exact
@every_way
def test_finite_logits_are_finite_and_masked_ones_see_the_window_alone(way: str) -> None:
    encoding = attention_from_conv(filters(*CELLS), **WAYS[way]).encoding
    assert isinstance(encoding, Mixtures)
    tables = [encoding] if encoding.minus is None else [encoding, encoding.minus]
    logits = [v for table in tables for row in table.logits for v in row]
    assert all(math.isfinite(v) for v in logits)
    # Below -745.14 an exponential is 0 in float64: over the reals, such a logit is a limit.
    assert (min(logits) > -60) == (way != "minimal")
    assert encoding.sees_taps_alone == (way != "finite")


@bounded
def test_rows_of_signed_heads_sum_to_one_less_their_share() -> None:
    conv = filters(SOBEL_X, SOBEL_Y, (1, 2, 1, 2, 4, 2, 1, 2, 1))
    layer = attention_from_conv(conv, heads="signed")
    weights = layer.attention_weights((4, 5))
    keys = weights.shape[-1]
    encoding = layer.encoding
    assert isinstance(encoding, Mixtures)
    shares = encoding.shares(layer.positional_shift.double(), Lattice.box((6, 7)))
    limit = 4 * keys * unit_roundoff(torch.float64) * (1 + shares)
    assert ((weights.sum(dim=-1) - (1 - shares).unsqueeze(1)).abs() <= limit.unsqueeze(1)).all()
    assert bool((weights < 0).any())


# Conditioning -------------------------------------------------------------------------------------


def vertices(basis: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Of the nonnegative vectors of a subspace that sum to 1, by all choices of zeros."""
    taps, dimension = basis.shape
    found = []
    for zeros in itertools.combinations(range(taps), dimension - 1):
        kernel = np.linalg.svd(basis[list(zeros)])[2][-1] if zeros else np.ones(1)
        for sign in (1, -1):
            point = basis @ (sign * kernel)
            point[list(zeros)] = 0
            if point.min() >= 0 and point.sum() > 0:
                found.append(point / point.sum())
    return found


@bounded
@given(data=st.data())
@example(data=None)
def test_no_exchange_of_a_head_makes_the_simplex_larger(data: st.DataObject | None) -> None:
    # Equation (23): coordinates of every vertex are at most 1, up to the exchanges not worth it.
    taps, rank = 7, 3
    if data is None:
        left = np.array([[1, t, t * t] for t in range(-3, 4)])
    else:
        small = st.integers(-3, 3)
        entries = data.draw(st.lists(small, min_size=taps * rank, max_size=taps * rank))
        left = np.array(entries).reshape(taps, rank)
    assume(np.linalg.matrix_rank(left) == rank and left.any(axis=1).all())
    conv = nn.Conv1d(1, rank, taps, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(left.T[:, None]))
    layer = attention_from_conv(conv, heads="minimal")
    encoding = layer.encoding
    assert isinstance(encoding, Mixtures)
    weights = encoding.exponentials().numpy()[:, :-1]
    weights = weights / weights.sum(axis=1, keepdims=True)
    basis = np.linalg.svd(weights.T, full_matrices=False)[0]
    largest = 0.0
    for point in vertices(basis):
        coordinates = np.linalg.lstsq(weights.T, point, rcond=None)[0]
        largest = max(largest, float(np.abs(coordinates).max()))
    record(ratio=largest / ENOUGH, dtype="float64")
    assert largest <= ENOUGH * (1 + 2.0**-20)  # vertices are solved for in float64


def near_the_border(bits: int) -> nn.Conv2d:
    """The filters of neural cellular automata, moved into case (a) by 2^-bits."""
    kernel = [[Fraction(v) for v in tap] for tap in zip(*CELLS, strict=True)]
    moved = theory.approaching(kernel, Fraction(1, 2**bits))
    return filters(*[[float(v) for v in column] for column in zip(*moved, strict=True)])


@bounded
def test_near_the_border_one_head_more_is_taken_and_the_layer_says_so() -> None:
    x = image(1, 1, 6, 7)
    conv = near_the_border(24)
    found = count(conv)
    assert (found.rank, found.case, found.masked) == (3, "a", 3)
    layer = attention_from_conv(conv, heads="minimal")
    assert layer.num_heads == 4
    assert "one more than needed: fewer would cancel, as near the border of case b" in repr(layer)
    assert certify(layer, conv, x).holds
    # As many as the rank would have matrices like 2^24, for weights of at most 1: equation (8).
    taps = [[Fraction(v) for v in tap] for tap in zip(*numbers_of(conv), strict=True)]
    few = theory.masked_heads([tap for tap in taps if any(tap)])
    sizes = [max(a) * max(map(abs, v)) for a, v in zip(few.weights, few.matrices, strict=True)]
    assert max(sizes) > 2**16
    assert max(float(m.detach().abs().max()) for m in layer.head_matrices()) < 2**6
    assert attention_from_conv(near_the_border(1), heads="minimal").num_heads == 3


def numbers_of(conv: nn.Conv2d) -> list[list[float]]:
    return [row.flatten().tolist() for row in conv.weight.detach()]


@bounded
def test_single_precision_errs_as_a_sum_of_as_many_terms_as_torch_adds() -> None:
    # 7 x 7, 3 to 8, rank 8: the heads' own bound without what softmax may do, which is a worst
    # case over all scores; and torch's own error beside it.
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(49, 8, generator=generator)
    conv = nn.Conv2d(3, 8, 7, padding=3, bias=False)
    with torch.no_grad():
        conv.weight.copy_((torch.randn(24, 8, generator=generator) @ left.T).view(8, 3, 7, 7))
    layer = attention_from_conv(conv, heads="minimal")
    assert layer.num_heads == count(conv).masked
    x = image(1, 3, 16, 16, dtype=torch.float32)
    certificate = certify(layer, conv, x)
    assert certificate.holds
    terms = 49 + layer.num_heads * 3 + 8
    size = certify_sizes(layer, x)
    limit = terms * unit_roundoff(torch.float32) * size + certificate.leak
    assert (certificate.error <= limit).all()


def certify_sizes(layer: MultiHeadSelfAttention, x: torch.Tensor) -> torch.Tensor:
    """Σ a|X||V|: the moduli of what the layer adds."""
    wide = copy.deepcopy(layer).double()
    with torch.no_grad():
        for factor in (wide.value, wide.output):
            if factor is not None:
                factor.abs_()
        sizes: torch.Tensor = wide(x.double().abs())
        return sizes.detach()


@bounded
def test_many_taps_of_high_rank_are_served_without_vertices() -> None:
    conv = nn.Conv2d(4, 8, 9, padding=4)
    with torch.no_grad():
        conv.weight.copy_(image(8, 4, 9, 9, dtype=torch.float32))
    found = count(conv)
    assert (found.rank, found.case) == (32, "c")
    assert found.certificate.check()
    layer = attention_from_conv(conv, heads="minimal")
    assert layer.num_heads == 33
    certificate = certify(layer, conv, image(1, 4, 6, 6, dtype=torch.float32))
    assert certificate.holds
    assert float(certificate.leak.max()) < float(certificate.rounding.max())


# Below the minimum --------------------------------------------------------------------------------


def left_by(layer: MultiHeadSelfAttention, conv: nn.Module) -> float:
    """The squared distance of the layer's kernel from the convolution's."""
    kernel = conv.get_parameter("weight").detach().double()
    return float((layer.weight.detach().double() - kernel).square().sum())


@bounded
@a_share
@given(data=st.data(), number=st.integers(1, 5))
def test_floor_is_between_the_tails_of_the_singular_values(
    data: st.DataObject, number: int
) -> None:
    # Equation (20): the upper one, since the heads of a rank less are one of the starts.
    entries = data.draw(st.lists(st.integers(-3, 3), min_size=54, max_size=54))
    conv = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(entries).view(conv.weight.shape))
    assume(number < count(conv).masked)
    values = torch.linalg.svdvals(conv.weight.detach().flatten(2).flatten(0, 1))
    layer = attention_from_conv(conv, heads=number)
    assert layer.num_heads <= number
    found, room = left_by(layer, conv), 2.0**-40 * float(values.square().sum())
    assert float(values[number:].square().sum()) - room <= found
    assert found <= float(values[number - 1 :].square().sum()) + room


@bounded
@given(entries=st.lists(st.integers(-9, 9), min_size=9, max_size=9).filter(any))
def test_floor_of_one_channel_and_one_head_is_that_of_its_smaller_part(entries: list[int]) -> None:
    # Equation (21).
    parts = [sum(v * v for v in entries if sign * v > 0) for sign in (1, -1)]
    conv = filters(entries)
    found = left_by(attention_from_conv(conv, heads=1), conv)
    assert abs(found - min(parts)) <= 2.0**-40 * sum(parts)


@bounded
def test_training_with_one_head_meets_the_floor() -> None:
    # Sobel: 6 of 12. Softmax over nine taps times a number, by descent from several starts.
    kernel = torch.tensor(SOBEL_X, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    reached = []
    for sign in (1.0, -1.0):
        logits = torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_()
        value = torch.tensor(sign * 4.0, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([logits, value], lr=0.3)
        for _ in range(120):
            optimiser.zero_grad()
            loss = (logits.softmax(dim=0) * value - kernel).square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        reached.append(float(loss.detach()))
    predicted = left_by(attention_from_conv(filters(SOBEL_X), heads=1), filters(SOBEL_X))
    assert abs(predicted - 6) <= 2.0**-40 * 12
    # Never below, and all but there: a logit that is to be -inf falls like log of the steps.
    assert min(reached) >= predicted - 2.0**-40 * 12
    assert min(reached) <= predicted + 2.0**-4


@control
def test_floor_is_the_leak_and_is_not_hidden() -> None:
    x = image(1, 1, 6, 7)
    for number, conv in ((1, filters(SOBEL_X)), (3, filters(*CELLS))):
        assert number < count(conv).masked
        layer = attention_from_conv(conv, heads=number)
        certificate = certify(layer, conv, x)
        assert certificate.holds
        assert float(certificate.leak.max()) > float(certificate.rounding.max())
        enough = certify(attention_from_conv(conv, heads=number + 1), conv, x)
        assert float(enough.leak.max()) < float(certificate.rounding.max())


# Wrong layers -------------------------------------------------------------------------------------


def scaled(layer: MultiHeadSelfAttention) -> None:
    """A thousandth too large."""
    for factor in (layer.value, layer.output):
        if factor is not None:
            factor.detach().mul_(1.001)


WRONG: list[heads.Wrong] = [
    heads.reversed_kernel,
    heads.missing_head,
    heads.shared_matrices,
    heads.half_the_sharpness,
    scaled,  # type: ignore[list-item]
]


@control
@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_wrong_layer_breaks_its_certificate(
    way: str, dtype: torch.dtype, wrong: heads.Wrong
) -> None:
    conv = filters(SOBEL_X, SOBEL_Y, (1, 2, 4, 0, 0, 1, 3, 1, 1), dtype=dtype)
    x = image(1, 1, 6, 7, dtype=dtype)
    for evaluation in ("dense", "auto"):
        layer = attention_from_conv(conv, evaluation=evaluation, **WAYS[way])
        assert certify(layer, conv, x).holds
        wrong(layer)
        assert not certify(layer, conv, x).holds
        with pytest.raises(AssertionError, match="the layer is not the convolution"):
            assert_equivalent(layer, conv, x)


class OtherGains(Mixtures):
    """Gains for one key more than there is."""

    def gains(self, shifts: torch.Tensor, keys: Lattice) -> torch.Tensor:
        return super().gains(shifts, Lattice.box((keys.size + 1,)))


@control
def test_gains_of_another_grid_break_the_certificate_of_finite_heads() -> None:
    conv, x = filters(SOBEL_X), image(1, 1, 6, 7)
    layer = attention_from_conv(conv, heads="minimal", finite=True)
    certificate = certify(layer, conv, x)
    assert certificate.holds
    layer.encoding = OtherGains(**vars(layer.encoding))
    error = exact_error(numbers(layer(x)), convolve_module(conv, x))
    assert (error > certificate.bound.numpy()).any()


@control
def test_layer_of_another_kernel_is_not_the_convolution() -> None:
    conv, x = filters(SOBEL_X, SOBEL_Y), image(1, 1, 6, 7)
    other = attention_from_conv(filters(SOBEL_Y, SOBEL_X), heads="minimal")
    assert not certify(other, conv, x).holds


# The contract -------------------------------------------------------------------------------------


@every_way
def test_layer_is_a_module_like_any_other(way: str) -> None:
    conv, x = filters(SOBEL_X, SOBEL_Y, dtype=torch.float32), image(2, 1, 6, 7, dtype=torch.float32)
    layer = attention_from_conv(conv, **WAYS[way])
    y = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), y)
    fresh = attention_from_conv(filters(SOBEL_X, SOBEL_Y, dtype=torch.float32), **WAYS[way])
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), y)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)
    wide = copy.deepcopy(layer).double()
    assert certify(wide, copy.deepcopy(conv).double(), x.double()).holds
    back: Any = revert(layer)
    assert isinstance(back, nn.Conv2d)
    size = conv.weight.detach().abs().max()
    limit = 2.0**6 * unit_roundoff(torch.float32) * size
    assert ((back.weight - conv.weight).abs() <= limit).all()


def test_evaluation_is_factored_where_no_head_sees_other_keys() -> None:
    conv = filters(SOBEL_X, SOBEL_Y)
    assert attention_from_conv(conv, heads="minimal").evaluation == "factored"
    assert attention_from_conv(conv, heads="signed").evaluation == "factored"
    finite = attention_from_conv(conv, heads="minimal", finite=True)
    assert finite.evaluation == "dense"
    with refused(ValueError, "evaluation", "factored", "dense"):
        attention_from_conv(conv, heads="minimal", finite=True, evaluation="factored")


def test_border_is_made_of_keys_or_there_is_none() -> None:
    made = attention_from_conv(filters(SOBEL_X), heads="minimal")
    torus = attention_from_conv(filters(SOBEL_X, padding_mode="circular"), heads="minimal")
    assert (made.boundary, torus.boundary) == ("padded", "natural")
    with refused(ValueError, "boundary", "natural", "padded"):
        attention_from_conv(filters(SOBEL_X), heads="minimal", boundary="natural")


def test_convert_passes_heads_on_and_leaves_poolings_alone() -> None:
    conv = filters(SOBEL_X, SOBEL_Y)
    converted: Any = convert(nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2)), heads="minimal")
    assert [converted[0].num_heads, converted[2].num_heads] == [3, 1]
    x = image(2, 1, 6, 8)
    assert certify(converted[0], conv, x).holds
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3)))
    with pytest.raises(ValueError, match="heads is 'minimal' for a weight that is made anew"):
        convert(normed, heads="minimal")


REFUSALS: dict[str, tuple[type[Exception], dict[str, Any], tuple[str, str, str]]] = {
    "an encoding": (
        ValueError,
        {"heads": "minimal", "encoding": "gaussian"},
        ("encoding", "gaussian", "quadratic"),
    ),
    "a normaliser": (
        ValueError,
        {"heads": "signed", "normaliser": "relu"},
        ("normaliser", "relu", "softmax"),
    ),
    "a sharpness": (ValueError, {"heads": 2, "sharpness": 3.0}, ("sharpness", "3.0", "None")),
    "another name": (ValueError, {"heads": "few"}, ("heads", "few", "minimal")),
    "no head": (ValueError, {"heads": 0}, ("heads", "0", "at least 1")),
    "half a head": (TypeError, {"heads": 1.5}, ("heads", "1.5", "number")),
    "a flag": (TypeError, {"heads": True}, ("heads", "True", "number")),
    "finite heads for each tap": (ValueError, {"finite": True}, ("finite", "True", "minimal")),
    "a finite number": (
        ValueError,
        {"heads": 2, "finite": True},
        ("finite", "True", "heads='minimal'"),
    ),
    "finite as a number": (TypeError, {"heads": "minimal", "finite": 1}, ("finite", "int", "True")),
}


@pytest.mark.parametrize(("kind", "options", "told"), REFUSALS.values(), ids=REFUSALS)
def test_options_that_do_not_go_together_are_refused(
    kind: type[Exception], options: dict[str, Any], told: tuple[str, str, str]
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: attention_from_conv(filters(SOBEL_X), **options),
        lambda: convert(nn.Sequential(), on_refusal="keep", **options),
    ]
    for call in calls:
        with refused(kind, *told):
            call()


def test_pooling_has_its_own_head() -> None:
    with refused(TypeError, "conv", "average pooling", "a convolution"):
        attention_from_conv(nn.AvgPool2d(2), heads="minimal")
