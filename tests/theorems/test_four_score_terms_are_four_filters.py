"""Each of the four score terms of a head is a classical filter.

T24, `docs/theorems/four_score_terms_are_four_filters.md`. The oracles are the filters' definitions
in NumPy, pixel by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import attention_from_conv, formats
from constructions.encodings import Lattice, Quadratic
from constructions.filters import Deformable, NonlocalMeans, NormalisedMean, bilateral
from constructions.formats import unit_roundoff
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support import formal
from tests.support.helpers import edit_matrices, integers
from tests.support.ledger import record
from tests.support.oracle import convolve, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import a_share
from theory import four_score_terms_are_four_filters as theory

SLUG = "four_score_terms_are_four_filters"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
KINDS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

Array = NDArray[Any]
Point = tuple[int, ...]


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


def drawn_integers(data: st.DataObject, *shape: int, most: int = 4) -> Tensor:
    """Integers of at most this size, in float64."""
    entries = st.lists(
        st.integers(-most, most), min_size=math.prod(shape), max_size=math.prod(shape)
    )
    return torch.tensor(data.draw(entries), dtype=torch.float64).reshape(shape)


shapes = st.integers(1, 2).flatmap(lambda d: st.tuples(*[st.integers(1, 4)] * d))


# Deformable convolution: query and position -------------------------------------------------------


def deformed(x: Array, offsets: Array, weight: Array, bias: Array, dilation: int) -> Array:
    """Y_q = b + Σ_h X_nearest(q + Δ_h + p_h(q)) W_h by its definition; halves are not drawn."""
    shape, kernel = x.shape[1:], weight.shape[2:]
    y = np.zeros((len(weight), *shape))
    for q in np.ndindex(*shape):
        total = bias.copy()
        for head, tap in enumerate(np.ndindex(*kernel)):
            place = []
            for axis, (i, j, k, n) in enumerate(zip(q, tap, kernel, shape, strict=True)):
                target = i + dilation * (j - k // 2) + offsets[(head * len(q) + axis, *q)]
                place.append(min(max(round(target), 0), n - 1))
            total = total + weight[(..., *tap)] @ x[(slice(None), *place)]
        y[(slice(None), *q)] = total
    return y


@exact
@every_format
@a_share
@given(data=st.data(), kernel=st.sampled_from([1, 3]), dilation=st.integers(1, 2), shape=shapes)
def test_deformable_convolution_is_exact_on_integers_in_every_format(
    dtype: torch.dtype, data: st.DataObject, kernel: int, dilation: int, shape: Point
) -> None:
    d = len(shape)
    conv = KINDS[d](
        2, 2, kernel, padding=dilation * (kernel // 2), dilation=dilation, padding_mode="replicate"
    ).to(dtype)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(drawn_integers(data, *parameter.shape, most=2))
    x = drawn_integers(data, 1, 2, *shape).to(dtype)
    offsets = drawn_integers(data, 1, d * kernel**d, *shape, most=6).to(dtype)
    y = Deformable(conv)(x, offsets)
    pixels, moves, weight, bias = map(numbers, (x[0], offsets[0], conv.weight, conv.bias))
    assert np.array_equal(numbers(y[0]), deformed(pixels, moves, weight, bias, dilation))
    record(dtype=dtype)


@exact
@given(data=st.data(), shape=shapes)
def test_deformable_convolution_takes_the_nearest_pixel(data: st.DataObject, shape: Point) -> None:
    # Equation (3): offsets in eighths, three eighths off at most, at 4 times the sharpness.
    d = len(shape)
    conv = KINDS[d](1, 1, 1, bias=False).double()
    nn.init.ones_(conv.weight)
    x = drawn_integers(data, 1, 1, *shape)
    eighths = drawn_integers(data, 1, d, *shape, most=3)
    offsets = drawn_integers(data, 1, d, *shape, most=6) + eighths / 8
    y = Deformable(conv, sharpness=4 * 1024.0)(x, offsets)
    weight, bias = numbers(conv.weight), np.zeros(1)
    assert np.array_equal(
        numbers(y[0]), deformed(numbers(x[0]), numbers(offsets[0]), weight, bias, 1)
    )
    record(dtype=torch.float64)


@control
@pytest.mark.parametrize("alpha", [0.5, 2 * math.log(3), 4.0, 64.0])
def test_one_head_does_not_interpolate(alpha: float) -> None:
    # Equation (4): a target at 1/4 of three pixels; a bilinear head has (0, 3/4, 1/4).
    conv = nn.Conv1d(1, 1, 1, bias=False).double()
    layer = Deformable(conv, sharpness=alpha).layer
    x = torch.zeros(1, 2, 3, dtype=torch.float64)
    x[0, 1, 1] = 0.25
    weights = layer.attention_weights((3,), x)[0, 0, 1].tolist()
    wanted = (Fraction(0), Fraction(3, 4), Fraction(1, 4))
    error = max(abs(Fraction(w) - b) for w, b in zip(weights, wanted, strict=True))
    assert error > Fraction(1, 82)


@control
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, padding_mode="replicate"),
        nn.Conv2d(2, 2, 3, padding=1, stride=2, padding_mode="replicate"),
        nn.Conv2d(2, 2, 3, padding=1, groups=2, padding_mode="replicate"),
        nn.Conv2d(2, 2, 2, padding=1, padding_mode="replicate"),
    ],
    ids=["zeros", "valid", "strided", "groups", "even"],
)
def test_convolution_that_cannot_be_deformed_is_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match=r"conv is .*; accepted: one group"):
        Deformable(conv)


# Certainties: a bias of the keys ------------------------------------------------------------------


def averaged(values: Array, logs: Callable[[Point, Point], Any], shape: Point) -> Array:
    """Σ_k e^logs(q, k) X_k over its sum of factors, in extended precision where there is one."""
    y = np.zeros(values.shape, dtype=np.longdouble)
    points = list(np.ndindex(*shape))
    for q in points:
        scores = np.array([logs(q, k) for k in points], dtype=np.longdouble)
        weights = np.exp(scores - scores.max())
        flat = values.reshape(len(values), -1).astype(np.longdouble)
        y[(slice(None), *q)] = (flat * weights).sum(axis=1) / weights.sum()
    return y


def squared(q: Point, k: Point) -> int:
    return sum((i - j) ** 2 for i, j in zip(q, k, strict=True))


def allowed(terms: float, parts: int, keys: int, largest: float) -> float:
    """What float64 can do to a mean with weights of exponentials of sums of products.

    A score is a sum of `parts` products whose moduli add up to at most `terms`; with its own
    rounding, that of the subtracted maximum and those of constants (a reciprocal square: 4) it errs
    by (parts + 10) u terms. A weight has that as a relative error, in numerator and denominator,
    with 40 u for the exponential and the sums of `keys` terms; the mean of pixels of modulus
    `largest` then errs by twice all that. The oracle is allowed as much again.
    """
    u = unit_roundoff(torch.float64)
    per_weight = ((parts + 10) * terms + 40 + keys) * u
    return 2 * 2 * largest * (math.expm1(2 * per_weight) + keys * u)


@bounded
@given(
    data=st.data(),
    shape=shapes,
    spatial=st.one_of(st.none(), st.floats(0.3, 4.0)),
    c=st.integers(1, 2),
)
def test_bias_of_the_keys_is_normalised_convolution(
    data: st.DataObject, shape: Point, spatial: float | None, c: int
) -> None:
    # Equation (5).
    x = drawn_integers(data, 1, c, *shape) / 4
    certainty = drawn_integers(data, 1, 1, *shape) / 2
    layer = NormalisedMean(spatial, channels=c, dimension=len(shape), dtype=torch.float64)
    logs = numbers(certainty[0, 0])
    scale = 0.0 if spatial is None else 1 / (2 * spatial**2)
    found, wanted = (
        numbers(layer(x, certainty)[0]),
        averaged(numbers(x[0]), lambda q, k: logs[k] - scale * squared(q, k), shape),
    )
    bound = allowed(scale * 32 + 2, 3, math.prod(shape), 1.0)
    error = float(abs(found - wanted).max())
    record(ratio=error / bound, dtype=torch.float64)
    assert error <= bound


@exact
@every_format
@given(data=st.data(), shape=shapes)
def test_large_certainty_is_the_largest_pixel(
    dtype: torch.dtype, data: st.DataObject, shape: Point
) -> None:
    # Equation (6). The pixels are different numbers; where some are equal they share the weight.
    x = drawn_integers(data, 1, 1, *shape)
    x = (16 * x + torch.arange(x.numel()).reshape(x.shape) % 16).to(dtype)  # of one largest
    gain = {torch.float16: 128.0, torch.bfloat16: 128.0}.get(dtype, 1024.0)
    layer = NormalisedMean(None, dimension=len(shape), dtype=dtype)
    layer.layer.content_bias.mul_(gain)  # type: ignore[union-attr]
    y = layer(x, x)
    assert torch.equal(y, x.max().expand_as(x))


# Non-local means and the bilateral filter: query and key ------------------------------------------


def patches_of(x: Array, side: int) -> Array:
    """The patch about each pixel, the image replicated: (C, side^d, *shape)."""
    shape = x.shape[1:]
    patches = np.zeros((len(x), side ** len(shape), *shape))
    for q in np.ndindex(*shape):
        for entry, step in enumerate(np.ndindex(*[side] * len(shape))):
            axes = zip(q, step, shape, strict=True)
            place = tuple(min(max(i + s - side // 2, 0), n - 1) for i, s, n in axes)
            patches[(slice(None), entry, *q)] = x[(slice(None), *place)]
    return patches


def at(array: Array, point: Point) -> Array:
    """What an array has at a point of its last axes."""
    index: Any = (..., *point)
    found: Array = array[index]
    return found


@bounded
@a_share
@given(
    data=st.data(),
    shape=shapes,
    side=st.sampled_from([1, 3]),
    c=st.integers(1, 2),
    strength=st.floats(0.3, 4.0),
    spatial=st.one_of(st.none(), st.floats(0.3, 4.0)),
)
def test_content_is_non_local_means_and_with_positions_bilateral(
    data: st.DataObject, shape: Point, side: int, c: int, strength: float, spatial: float | None
) -> None:
    # Equations (7) and (8).
    x = drawn_integers(data, 1, c, *shape) / 4
    options: dict[str, Any] = {"channels": c, "dimension": len(shape), "dtype": torch.float64}
    layer = NonlocalMeans(side, strength, spatial=spatial, **options)
    patches = patches_of(numbers(x[0]), side)
    wide = [np.longdouble(number) for number in (strength, spatial or 1)]

    def logs(q: Point, k: Point) -> Any:
        apart = ((at(patches, q) - at(patches, k)) ** 2).sum() / wide[0] ** 2
        return -apart - (0 if spatial is None else squared(q, k) / (2 * wide[1] ** 2))

    found, wanted = numbers(layer(x)[0]), averaged(numbers(x[0]), logs, shape)
    entries = c * side ** len(shape)
    terms = 4 * entries / strength**2 + (0 if spatial is None else 32 / (2 * spatial**2))
    bound = allowed(terms, 2 * entries + 2, math.prod(shape), 1.0)
    error = float(abs(found - wanted).max())
    record(ratio=error / bound, dtype=torch.float64)
    assert error <= bound
    if side == 1 and spatial is not None:
        same = bilateral(spatial, strength / math.sqrt(2), **options)
        assert abs(numbers(same(x)[0]) - wanted).max() <= bound


@control
def test_distance_without_the_norm_of_the_key_is_another_filter() -> None:
    x = integers(1, 1, 4, 4, dtype=torch.float64)
    layer = bilateral(1.0, 1.0, dtype=torch.float64)
    right = layer(x)
    layer.layer.content_bias.zero_()  # type: ignore[union-attr]
    scores = 32 / 2 + 2 * 9 * 2
    assert (layer(x) - right).abs().max() > allowed(scores, 4, 16, 3.0)


@control
@pytest.mark.parametrize("patch", [0, 2, -1])
def test_patch_without_a_centre_is_refused(patch: int) -> None:
    with pytest.raises(ValueError, match="accepted: an odd, positive integer"):
        NonlocalMeans(patch, 1.0)


@control
@pytest.mark.parametrize("number", [0.0, -1.0, math.inf, math.nan])
def test_strength_that_is_no_positive_number_is_refused(number: float) -> None:
    for made in (
        lambda: NonlocalMeans(1, number),
        lambda: NonlocalMeans(1, 1.0, spatial=number),
        lambda: NormalisedMean(number),
        lambda: bilateral(1.0, number),
    ):
        with pytest.raises(ValueError, match="accepted: a positive, finite number"):
            made()


@control
def test_other_dimensions_and_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension is 4; accepted: 1, 2 or 3"):
        NonlocalMeans(1, 1.0, dimension=4)
    with pytest.raises(ValueError, match="dimension is 0; accepted: 1, 2 or 3"):
        NormalisedMean(1.0, dimension=0)
    other: Any = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="conv is a Linear; accepted"):
        Deformable(other)


# None of them is affine, and positions alone are --------------------------------------------------


@exact
@given(data=st.data(), shape=shapes, sharpness=st.sampled_from([None, 0.5]))
def test_layer_of_positions_alone_has_one_set_of_weights(
    data: st.DataObject, shape: Point, sharpness: float | None
) -> None:
    # Equation (9): static weights, whatever the image.
    layer = attention_from_conv(
        KINDS[len(shape)](1, 1, 3, padding=1).double(), sharpness=sharpness, evaluation="dense"
    )
    x = drawn_integers(data, 1, 1, *shape)
    assert torch.equal(layer.attention_weights(shape, x), layer.attention_weights(shape))


FILTERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "deformable": lambda x, p: Deformable(nn.Conv1d(1, 1, 1, bias=False).double())(x, p),
    "normalised": lambda x, p: NormalisedMean(1.0, dimension=1, dtype=torch.float64)(x, p),
    "non-local": lambda x, p: NonlocalMeans(3, 1.0, dimension=1, dtype=torch.float64)(x),
    "bilateral": lambda x, p: bilateral(1.0, 1.0, dimension=1, dtype=torch.float64)(x),
}


@control
@pytest.mark.parametrize("name", FILTERS)
def test_filter_with_content_is_not_affine(name: str) -> None:
    # Equations (10) and (11): f(x + y) + f(0) is far from f(x) + f(y); weights depend on the image.
    torch.manual_seed(0)
    x, p = (torch.tensor([[[0.0, 3.0]]]).double(), torch.zeros(1, 1, 2).double())
    y, r = (torch.tensor([[[0.0, 3.0]]]).double(), torch.tensor([[[1.0, 0.0]]]).double())
    with torch.no_grad():
        apply = FILTERS[name]
        defect = apply(x + y, p + r) + apply(0 * x, 0 * p) - apply(x, p) - apply(y, r)
    assert defect.abs().max() > allowed(4 * 36.0, 8, 2, 6.0)


# Shifts and permutations --------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """An encoding of integers, one for each displacement, round a torus."""

    period: int

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """Two features of a displacement modulo the period, and a name."""
        rest = displacements.remainder(self.period)
        code = (rest * torch.tensor([1.0, 3.0])[: rest.shape[1]].to(rest)).sum(-1)
        features = torch.stack([(code**2).remainder(7) - 3, code.remainder(5) - 2], dim=-1)
        return features, torch.ones_like(features[:1]).expand(len(shifts), 2)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """Any: nothing is selected."""
        return 1.0


@dataclass(frozen=True)
class Rectified:
    """A normaliser that does not divide: weights of integers are integers, in any order of sums."""

    def __call__(self, scores: Tensor) -> Tensor:
        """max(0, score)."""
        return scores.relu()

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """None."""
        return math.inf


def alive(
    data: st.DataObject, d: int, period: int, *, positions: bool = True
) -> MultiHeadSelfAttention:
    """A layer of one head about each pixel with all four score terms drawn, in integers."""
    conv = KINDS[d](2, 2, 1).double()
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(drawn_integers(data, *parameter.shape, most=2))
    layer = attention_from_conv(
        conv,
        encoding=Table(period),
        normaliser=Rectified(),
        sharpness=1.0,
        evaluation="dense",
    )
    layer.unfreeze("content")
    with torch.no_grad():
        for name in ("query", "key", "content_bias"):
            parameter = getattr(layer, name)
            parameter.copy_(drawn_integers(data, *parameter.shape, most=2))
        if not positions:
            layer.positional_key.zero_()
    return layer


@exact
@a_share
@given(data=st.data(), d=st.integers(1, 2), period=st.integers(1, 4))
def test_all_four_terms_commute_with_every_shift_of_a_torus(
    data: st.DataObject, d: int, period: int
) -> None:
    # Equation (12), bit for bit: sums of integers.
    layer = alive(data, d, period)
    x = drawn_integers(data, 1, 2, *[period] * d, most=2)
    with torch.no_grad():
        y = layer(x)
        for by in product(range(period), repeat=d):
            axes = list(range(2, 2 + d))
            assert torch.equal(layer(x.roll(by, axes)), y.roll(by, axes))
    record(dtype=torch.float64)


@exact
@a_share
@given(data=st.data(), shape=shapes)
def test_without_positions_every_permutation_commutes(data: st.DataObject, shape: Point) -> None:
    # Equation (16).
    layer = alive(data, len(shape), 5, positions=False)
    x = drawn_integers(data, 1, 2, *shape, most=2)
    order = data.draw(st.permutations(range(math.prod(shape))))
    with torch.no_grad():
        y = layer(x).flatten(2)[..., order]
        permuted = x.flatten(2)[..., order].reshape(x.shape)
        assert torch.equal(layer(permuted).flatten(2), y)


@control
def test_positions_do_not_commute_with_permutations() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3, padding=1, padding_mode="replicate"))
    x = integers(1, 1, 5)
    with torch.no_grad():
        assert not torch.equal(layer(x.flip(2)), layer(x).flip(2))


@control
def test_generic_absolute_scores_do_not_commute_with_shifts() -> None:
    # Equation (13): weights of absolute positions that are not circulant.
    positions = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [1.0, 1.0]]).double()
    weights = (positions @ positions.T).softmax(-1)
    shift = torch.eye(4).double().roll(1, 0)
    assert not torch.equal(shift @ weights, weights @ shift)


@exact
def test_absolute_quadratic_scores_commute_as_relative_ones_do() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate", bias=False)
    relative, absolute = (
        attention_from_conv(conv, encoding=name) for name in ("quadratic", "absolute_quadratic")
    )
    weights = absolute.attention_weights((4, 5))
    assert torch.equal(weights, relative.attention_weights((4, 5)))


def shifted(x: Tensor, by: Point, fill: Tensor) -> Tensor:
    """(T_s X)_k = X_{k - s} where that is a pixel, else what is shifted in."""
    y = fill.clone()
    for k in np.ndindex(*x.shape[2:]):
        source = tuple(i - b for i, b in zip(k, by, strict=True))
        if all(0 <= i < n for i, n in zip(source, x.shape[2:], strict=True)):
            y[(..., *k)] = x[(..., *source)]
    return y


def one_hot_head(d: int, shift: Point, mode: Any) -> MultiHeadSelfAttention:
    """A saturated layer that sees the pixel at one shift, of at most 2 on each axis."""
    conv = KINDS[d](1, 1, 5, padding=2, padding_mode=mode, bias=False).double()
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[(0, 0, *(2 + s for s in shift))] = 1
    return attention_from_conv(conv, evaluation="dense")


RULES = {"zeros": theory.commutes_zeros, "replicate": theory.commutes_replicated}


@exact
@pytest.mark.parametrize("mode", RULES)
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 3)], ids=str)
def test_border_s_exact_extent(mode: str, shape: Point) -> None:
    # Equations (14) and (15), every query, shift of the image and head: all pixels are different
    # numbers, and so are those that are shifted in.
    d = len(shape)
    x = 1.0 + torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, 1, *shape)
    fill = 100 + x
    reach = range(-2, 3)
    heads = list(product(reach, repeat=d))[:: 1 if d == 1 else 3]
    moves = list(product(reach, repeat=d))[:: 1 if d == 1 else 2]
    images = torch.cat([x, *(shifted(x, s, fill) for s in moves)])
    for shift in heads:
        with torch.no_grad():
            y, *moved = one_hot_head(d, shift, mode)(images).split(1)
        for s, of_moved in zip(moves, moved, strict=True):
            for q in np.ndindex(*shape):
                before = tuple(i - b for i, b in zip(q, s, strict=True))
                if all(0 <= i < n for i, n in zip(before, shape, strict=True)):
                    same = of_moved[(0, 0, *q)] == y[(0, 0, *before)]
                    assert bool(same) is RULES[mode](shape, q, s, shift)
    record(dtype=torch.float64)


@control
def test_both_targets_on_the_image_is_sufficient_and_not_necessary() -> None:
    # A shift along the edge: the head looks beyond it before and after.
    for rule in RULES.values():
        assert rule((3, 3), (0, 1), (0, 1), (-1, 0))
    # Zeros: beyond the image before and after, it is zero both times; replicated, it is not.
    assert theory.commutes_zeros((3,), (1,), (1,), (2,)) is False
    assert theory.commutes_zeros((3,), (2,), (1,), (2,)) is True
    assert theory.commutes_replicated((3,), (2,), (1,), (2,)) is False


@exact
@a_share
@given(data=st.data(), shape=shapes, kernel=st.integers(1, 3))
def test_receptive_field_is_the_window_if_saturated_and_everything_if_not(
    data: st.DataObject, shape: Point, kernel: int
) -> None:
    # Equation (17), by perturbing each pixel.
    d = len(shape)
    conv = KINDS[d](1, 1, kernel, padding=kernel // 2, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(drawn_integers(data, *conv.weight.shape, most=2))
    x = drawn_integers(data, 1, 1, *shape)
    units = torch.eye(x.numel(), dtype=torch.float64).reshape(-1, 1, *shape)
    layer = attention_from_conv(conv, evaluation="dense")
    with torch.no_grad():
        changed = numbers(layer(x + 1000 * units) != layer(x))
    window = convolve(
        numbers(units).astype(int), numbers(conv.weight).astype(int), padding=kernel // 2
    )
    assert np.array_equal(changed.astype(bool), window != 0)
    soft = attention_from_conv(
        nn.Conv1d(1, 1, 1, bias=False).double() if d == 1 else nn.Conv2d(1, 1, 1).double(),
        sharpness=0.5,
        evaluation="dense",
    )
    assert (soft.attention_weights(shape) > 0).all()


# Retrieval and the family -------------------------------------------------------------------------


@dataclass(frozen=True)
class TopK:
    """The k largest scores share the weight evenly: hard retrieval of k keys."""

    k: int

    def __call__(self, scores: Tensor) -> Tensor:
        """1 / k for the k largest of a row."""
        chosen = scores.topk(self.k, dim=-1).indices
        return torch.zeros_like(scores).scatter(-1, chosen, 1 / self.k)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """None."""
        return math.inf


@dataclass(frozen=True)
class Flat:
    """A score of 0 on a box of offsets, and less outside, the more the farther."""

    r: int

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """One feature, how far a displacement is outside the box; one name, -1."""
        outside = (displacements.abs().amax(-1, keepdim=True) - self.r).clamp(min=0)
        return outside, -torch.ones_like(outside[:1]).expand(len(shifts), 1)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """Of the box above its surroundings."""
        return 1.0


def is_box_filter(encoding: Any, r: int, d: int) -> bool:
    """Whether one top-k head is the mean over the box, at every query whose box is on the image.

    Weights are one share each or none, so that the layer's and the box's are compared as sets.
    """
    side = 4 * r + 3 if d < 3 else 2 * r + 3
    conv = KINDS[d](1, 1, 1, bias=False).double()
    count = (2 * r + 1) ** d
    layer = attention_from_conv(
        conv, encoding=encoding, normaliser=TopK(count), sharpness=1.0, evaluation="dense"
    )
    points = list(np.ndindex(*[side] * d))
    inside = [i for i, q in enumerate(points) if all(r <= c < side - r for c in q)]
    weights = layer.attention_weights([side] * d, queries=inside)[0]
    for row, i in zip(weights.tolist(), inside, strict=True):
        q = points[i]
        for w, k in zip(row, points, strict=True):
            near = max(abs(a - b) for a, b in zip(q, k, strict=True)) <= r
            if (w > 0) != near:
                return False
    return True


SIZES = [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (3, 2), (1, 3)]


@exact
@pytest.mark.parametrize(("r", "d"), SIZES, ids=lambda n: str(n))
def test_top_k_head_with_a_flat_score_is_a_box_filter(r: int, d: int) -> None:
    assert is_box_filter(Flat(r), r, d)


@exact
@pytest.mark.parametrize(("r", "d"), SIZES, ids=lambda n: str(n))
def test_top_k_head_with_quadratic_scores_is_one_just_where_the_rule_says(r: int, d: int) -> None:
    # Equation (18): on a plane up to 5 x 5.
    assert is_box_filter(Quadratic(), r, d) is theory.box_is_nearest(r, d)


@exact
@given(data=st.data(), n=st.integers(1, 4))
def test_every_matrix_of_pixels_to_pixels_is_two_heads_with_a_sink(
    data: st.DataObject, n: int
) -> None:
    # Equation (19), in fractions: a fully connected layer of one channel.
    entries = [[Fraction(data.draw(st.integers(-5, 5)), 3) for _ in range(n)] for _ in range(n)]
    scale = max(max(sum(map(abs, row)) for row in entries), Fraction(1))
    for sign in (1, -1):
        head = [[max(sign * entry, Fraction(0)) / scale for entry in row] for row in entries]
        assert all(weight >= 0 for row in head for weight in row)
        assert all(sum(row) <= 1 for row in head)  # what is left is the sink's
    rebuilt = [
        [scale * max(e, Fraction(0)) / scale - scale * max(-e, Fraction(0)) / scale for e in row]
        for row in entries
    ]
    assert rebuilt == entries


@control
def test_one_head_has_entries_of_one_sign() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3, padding=1).double(), evaluation="dense")
    edit_matrices(layer, lambda matrices: matrices[1:].zero_())
    columns = torch.eye(5, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        seen = layer(columns) - layer(0 * columns)
    assert len({float(v) > 0 for v in seen.flatten().tolist() if v}) == 1


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
