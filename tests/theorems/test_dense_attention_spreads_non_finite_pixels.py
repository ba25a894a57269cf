"""Dense attention spreads a non-finite pixel to every query, even with exactly one-hot weights.

T9, `docs/theorems/dense_attention_spreads_non_finite_pixels.md`.
"""

import copy
import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify, formats
from tests.support import formal, heads
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import convolve_module, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import CONVOLUTIONS, Case, Convolution, integer_cases
from theory import dense_attention_spreads_non_finite_pixels as theory
from theory.dense_attention_spreads_non_finite_pixels import Kind
from theory.tools.proof import ProofError

SLUG = "dense_attention_spreads_non_finite_pixels"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

every_format = pytest.mark.parametrize("dtype", formats.FORMATS, ids=str)
saturated_or_not = pytest.mark.parametrize("sharpness", [None, 1.0], ids=["one_hot", "soft"])

NON_FINITE = (math.nan, math.inf, -math.inf)
PRODUCT, SUM = theory.multiplied, theory.added  # before any control replaces them

Mask = NDArray[np.bool_]
Table = Callable[[Kind, Kind], frozenset[Kind]]


@st.composite
def spoilt_cases(draw: st.DrawFn, dtype: torch.dtype, most: int = 3) -> Case:
    """Integer cases with one to `most` pixels replaced by infinities or NaNs; never empty."""
    case = draw(integer_cases(dtype).filter(lambda case: case.x.numel() > 0))
    pixels = st.integers(0, case.x.numel() - 1)
    for pixel in draw(st.lists(pixels, min_size=1, max_size=most, unique=True)):
        case.x.view(-1)[pixel] = draw(st.sampled_from(NON_FINITE))
    return case


def affected_by_the_convolution(case: Case) -> Mask:
    """The outputs whose window, in their group, holds a non-finite pixel.

    The oracle counts them: the kernel of ones, applied to the indicator of the spoilt pixels.
    """
    ones = copy.deepcopy(case.conv)
    nn.init.ones_(ones.weight)
    ones.bias = None
    return convolve_module(ones, ~case.x.isfinite(), case.output_size).nearest() > 0


def keys_of(case: Case) -> Tensor:
    """The spoilt pixels that are keys, as zeros and ones: (N, groups, channels in group, *spatial).

    A convolution pads its image and keeps every pixel. A transposed one has keys on all positions
    that its windows span, which is less than the image where `padding` crops: pixel i stands at
    i * stride, the windows span positions padding - dilation * (kernel - 1) up to the last output
    plus padding.
    """
    conv, rank = case.conv, len(case.conv.kernel_size)
    bad = ~case.x.isfinite()
    if conv.transposed:
        outputs = case.run(conv).shape[-rank:]
        for axis in range(rank):
            crop = conv.padding[axis]
            assert isinstance(crop, int)
            low = crop - conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            positions = torch.arange(bad.shape[axis - rank]) * conv.stride[axis]
            inside = (positions >= low) & (positions <= outputs[axis] - 1 + crop)
            bad = bad & inside.reshape(-1, *[1] * (rank - 1 - axis))
    return bad.reshape(-1, conv.groups, conv.in_channels // conv.groups, *bad.shape[-rank:])


def affected_by_dense_attention(case: Case) -> Mask:
    """All outputs of every group, of every image, one of whose keys is not finite."""
    rank = len(case.conv.kernel_size)
    hit = keys_of(case).flatten(2).any(dim=2)  # (N, groups)
    outputs = case.run(case.conv).shape
    per_channel = hit.repeat_interleave(case.conv.out_channels // case.conv.groups, dim=1)
    mask = per_channel.reshape(*per_channel.shape, *[1] * rank).expand(-1, -1, *outputs[-rank:])
    return mask.reshape(outputs).numpy()


def run_on(device: str, case: Case, module: nn.Module) -> NDArray[np.float64]:
    moved = Case(case.conv, case.x.to(device), case.output_size)
    return numbers(moved.run(module.to(device)))


# The proof and its tables -------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


def kind_of(value: float) -> Kind:
    if math.isnan(value):
        return Kind.NAN
    if math.isinf(value):
        return Kind.PLUS_INFINITY if value > 0 else Kind.MINUS_INFINITY
    return Kind.ZERO if value == 0 else Kind.POSITIVE if value > 0 else Kind.NEGATIVE


def samples(dtype: torch.dtype) -> Tensor:
    """Numbers of every class: zeros, and from the smallest to the largest finite ones."""
    tiny, info = formats.smallest_subnormal(dtype), torch.finfo(dtype)
    sizes = [0.0, tiny, info.smallest_normal, 0.5, 1.0, 1.5, info.max / 2, info.max, math.inf]
    return torch.tensor([*sizes, *(-size for size in sizes), math.nan], dtype=dtype)


def wrong_entries(
    table: Table, operation: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, device: str
) -> set[tuple[Kind, Kind]]:
    """The pairs of classes of which a table says other than what occurs on this machine.

    All that is possible has to occur, and nothing else.
    """
    values = samples(dtype)
    results = operation(values.to(device)[:, None], values.to(device)[None, :]).cpu()
    found: dict[tuple[Kind, Kind], set[Kind]] = {}
    for (i, a), (j, b) in product(enumerate(values.tolist()), repeat=2):
        found.setdefault((kind_of(a), kind_of(b)), set()).add(kind_of(results[i, j].item()))
    assert found.keys() == set(product(Kind, Kind))
    return {pair for pair, kinds in found.items() if kinds != table(*pair)}


@exact
@every_format
@pytest.mark.parametrize(
    ("table", "operation"),
    [(theory.multiplied, torch.mul), (theory.added, torch.add)],
    ids=["product", "sum"],
)
def test_tables_of_the_standard_are_those_of_this_machine(
    dtype: torch.dtype,
    table: Table,
    operation: Callable[[Tensor, Tensor], Tensor],
    device: str,
) -> None:
    assert wrong_entries(table, operation, dtype, device) == set()


@symbolic
@pytest.mark.parametrize("flush", [False, True])
def test_sum_in_any_order_is_non_finite_with_one_non_finite_term(flush: bool) -> None:
    def trees(terms: tuple[Kind, ...]) -> frozenset[Kind]:
        """Every class that some order of summation, by halves of any size, can give."""
        if len(terms) == 1:
            return frozenset(terms)
        return frozenset().union(
            *(
                theory.added(a, b, flush=flush)
                for cut in range(1, len(terms))
                for a, b in product(trees(terms[:cut]), trees(terms[cut:]))
            )
        )

    for terms in product(Kind, repeat=4):
        if theory.NON_FINITE & set(terms):
            assert trees(terms) <= theory.NON_FINITE
        if Kind.NAN in terms:
            assert trees(terms) == {Kind.NAN}


# Layers and convolutions --------------------------------------------------------------------------


@exact
@every_format
@saturated_or_not
@given(st.data())
def test_dense_attention_is_non_finite_exactly_where_predicted(
    dtype: torch.dtype, sharpness: float | None, device: str, data: st.DataObject
) -> None:
    case = data.draw(spoilt_cases(dtype))
    y = run_on(device, case, papers_layer(case.conv, sharpness=sharpness))
    assert np.array_equal(~np.isfinite(y), affected_by_dense_attention(case))
    record(device=device, dtype=dtype)


@exact
@every_format
@given(st.data())
def test_two_one_hot_heads_on_padded_keys_turn_every_affected_output_into_nan(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    case = data.draw(spoilt_cases(dtype).filter(lambda case: math.prod(case.conv.kernel_size) > 1))
    y = run_on(device, case, papers_layer(case.conv))
    assert np.array_equal(np.isnan(y), affected_by_dense_attention(case))
    assert not np.isinf(y).any()
    record(device=device, dtype=dtype)


def looked_at(case: Case) -> NDArray[np.int64]:
    """The pixel that each head looks at where the heads make the border: (taps, outputs).

    Row-major; -1 for none, where a sink takes all. By the definition of the padding modes.
    """
    conv = case.conv
    assert not conv.transposed
    targets = heads.Targets.of(case)
    rank = len(conv.kernel_size)
    size = np.array(case.x.shape[-rank:]).reshape(-1, 1, 1)
    low = [before for before, _ in sides(conv)]
    place = np.stack(np.unravel_index(targets.keys, targets.grid)) - np.reshape(low, (-1, 1, 1))
    inside = ((place >= 0) & (place < size)).all(axis=0)
    if conv.padding_mode == "circular":
        place, inside = place % size, np.ones_like(inside)
    elif conv.padding_mode == "replicate":
        place, inside = place.clip(0, size - 1), np.ones_like(inside)
    flat = np.ravel_multi_index(tuple(place.clip(0, size - 1)), case.x.shape[-rank:])
    return np.where(inside, flat, -1)


def sides(conv: Convolution) -> list[tuple[int, int]]:
    """How many pixels torch adds before and after each axis; "same" adds the odd one after."""
    reach = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if conv.padding == "same":
        return [(far // 2, far - far // 2) for far in reach]
    if conv.padding == "valid":
        return [(0, 0)] * len(reach)
    return [(side, side) for side in conv.padding if isinstance(side, int)]


def predicted(case: Case, image: int, channel: int, pixel: int) -> NDArray[np.float64]:
    """Equations (5) and (6) for one spoilt pixel: NaN, ±inf, or 0 for any finite output."""
    conv, rank = case.conv, len(case.conv.kernel_size)
    width_in, width_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    group, here = channel // width_in, (looked_at(case) == pixel).all(axis=0)
    value = case.x.reshape(-1, conv.in_channels, math.prod(case.x.shape[-rank:]))[
        image, channel, pixel
    ].item()
    y = np.zeros((*case.run(conv).reshape(-1, conv.out_channels, len(here)).shape,))
    matrices = numbers(conv.weight).reshape(conv.groups, width_out, width_in, -1)
    for output, row in enumerate(matrices[group, :, channel % width_in]):
        signs = set(np.sign(row))
        shown = signs.pop() * value if len(signs) == 1 and 0 not in signs else math.nan
        y[image, group * width_out + output] = np.where(here, shown, math.nan)
    return y.reshape(case.run(conv).shape)


@exact
@every_format
@given(st.data())
def test_border_made_by_the_heads_shows_an_infinity_where_all_of_them_look_at_it(
    dtype: torch.dtype, device: str, data: st.DataObject
) -> None:
    modes = ("zeros", "replicate", "circular")
    cases = integer_cases(dtype, CONVOLUTIONS, modes).filter(lambda case: case.x.numel() > 0)
    case = data.draw(cases)
    rank = len(case.conv.kernel_size)
    shape = case.x.reshape(-1, case.conv.in_channels, math.prod(case.x.shape[-rank:])).shape
    image, channel, pixel = (data.draw(st.integers(0, size - 1)) for size in shape)
    case.x.view(shape)[image, channel, pixel] = data.draw(st.sampled_from(NON_FINITE))
    layer = attention_from_conv(case.conv, boundary="natural", evaluation="dense")
    y = run_on(device, case, layer)
    found = np.where(np.isfinite(y), 0.0, y)
    np.testing.assert_array_equal(found, predicted(case, image, channel, pixel))
    record(device=device, dtype=dtype)


@exact
@given(spoilt_cases(torch.float64))
def test_convolution_is_non_finite_exactly_where_its_window_holds_the_pixel(case: Case) -> None:
    # torch computes a float64 convolution on the CPU as a plain sum.
    y = numbers(case.run(case.conv))
    assert np.array_equal(~np.isfinite(y), affected_by_the_convolution(case))
    record(dtype=torch.float64)


@exact
@every_format
@pytest.mark.parametrize("value", NON_FINITE, ids=str)
def test_single_head_shows_an_infinity_where_it_looks_and_nan_elsewhere(
    dtype: torch.dtype, value: float, device: str
) -> None:
    conv = nn.Conv1d(1, 1, 1, bias=False, dtype=dtype)
    nn.init.ones_(conv.weight)
    x = torch.tensor([[[1.0, value, 3.0]]], dtype=dtype)
    y = run_on(device, Case(conv, x), papers_layer(conv))[0, 0]
    assert np.isnan(y[[0, 2]]).all()
    assert np.array_equal(y[1], value, equal_nan=True)


@exact
@every_format
@saturated_or_not
def test_other_groups_and_other_images_do_not_meet_the_pixel(
    dtype: torch.dtype, sharpness: float | None, device: str
) -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1, groups=2, dtype=dtype)
    x = torch.zeros(2, 2, 3, 3, dtype=dtype)
    x[0, 0, 1, 1] = math.inf
    y = run_on(device, Case(conv, x), papers_layer(conv, sharpness=sharpness))
    assert not np.isfinite(y[0, :2]).any()
    assert np.isfinite(y[0, 2:]).all()
    assert np.isfinite(y[1]).all()


@exact
def test_cropped_pixel_is_no_key_and_spreads_nowhere(device: str) -> None:
    conv = nn.ConvTranspose1d(1, 1, 1, padding=1, dtype=torch.float64)
    x = torch.tensor([[[math.nan, 1.0, 2.0]]], dtype=torch.float64)
    assert np.isfinite(run_on(device, Case(conv, x), papers_layer(conv))).all()


@exact
@pytest.mark.parametrize("value", NON_FINITE, ids=str)
def test_live_content_terms_spread_the_pixel_to_every_group(value: float, device: str) -> None:
    conv = nn.Conv1d(2, 2, 3, padding=1, groups=2)
    layer = papers_layer(conv).unfreeze("content")
    x = torch.zeros(2, 2, 5)
    x[0, 0, 2] = value
    y = run_on(device, Case(conv, x), layer)
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


@exact
@pytest.mark.parametrize("check", [certify, assert_equivalent])
@pytest.mark.parametrize("value", NON_FINITE, ids=str)
@every_format
def test_certificate_of_a_non_finite_image_is_refused_by_the_name_of_this_theorem(
    dtype: torch.dtype, value: float, check: Callable[..., object]
) -> None:
    conv = nn.Conv1d(1, 1, 3, padding=1, dtype=dtype)
    x = torch.zeros(1, 1, 4, dtype=dtype)
    x[0, 0, 3] = value
    with pytest.raises(ValueError, match=rf"^x has infinite or NaN entries.*T9.*{SLUG}"):
        check(papers_layer(conv), conv, x)


# Controls -----------------------------------------------------------------------------------------


@control
@saturated_or_not
def test_prediction_by_window_is_rejected_for_dense_attention(sharpness: float | None) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1, dtype=torch.float64)
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 0, 0] = math.inf
    case = Case(conv, x)
    dense = ~np.isfinite(numbers(case.run(papers_layer(conv, sharpness=sharpness))))
    window = affected_by_the_convolution(case)
    assert window.sum() == 4
    assert dense.all()
    assert not np.array_equal(dense, window)
    assert np.array_equal(dense, affected_by_dense_attention(case))


@control
def test_prediction_for_the_wrong_group_or_image_is_rejected() -> None:
    conv = nn.Conv1d(2, 2, 2, groups=2, dtype=torch.float64)
    x = torch.zeros(2, 2, 4, dtype=torch.float64)
    x[0, 0, 2] = math.nan
    dense = ~np.isfinite(numbers(papers_layer(conv)(x)))
    predicted = affected_by_dense_attention(Case(conv, x))
    assert np.array_equal(dense, predicted)
    assert not np.array_equal(dense, predicted[:, ::-1])
    assert not np.array_equal(dense, predicted[::-1])


@control
def test_finite_image_with_sums_that_overflow_is_certified_without_a_bound() -> None:
    conv = nn.Conv1d(2, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    largest = torch.finfo(torch.float32).max
    certificate = certify(papers_layer(conv), conv, torch.full((1, 2, 1), largest))
    assert certificate.rounding.isinf().all()


def removes_infinity(left: Kind, right: Kind, *, flush: bool = False) -> frozenset[Kind]:
    """The table of a product in which zero times anything is zero."""
    if Kind.ZERO in (left, right) and Kind.NAN not in (left, right):
        return frozenset({Kind.ZERO})
    return PRODUCT(left, right, flush=flush)


def cancels_infinity(left: Kind, right: Kind, *, flush: bool = False) -> frozenset[Kind]:
    """The table of a sum in which opposite infinities leave zero."""
    if {left, right} == {Kind.PLUS_INFINITY, Kind.MINUS_INFINITY}:
        return frozenset({Kind.ZERO})
    return SUM(left, right, flush=flush)


@control
@every_format
def test_wrong_tables_are_not_those_of_this_machine(dtype: torch.dtype, device: str) -> None:
    infinities = (Kind.MINUS_INFINITY, Kind.PLUS_INFINITY)
    zero_and_infinity = {(Kind.ZERO, x) for x in infinities} | {(x, Kind.ZERO) for x in infinities}
    assert wrong_entries(removes_infinity, torch.mul, dtype, device) == zero_and_infinity
    opposite = {infinities, infinities[::-1]}
    assert wrong_entries(cancels_infinity, torch.add, dtype, device) == opposite


@control
@pytest.mark.parametrize(
    ("name", "table", "step"),
    [
        ("multiplied", removes_infinity, "finite times non-finite is non-finite"),
        ("added", cancels_infinity, "anything plus non-finite is non-finite"),
    ],
    ids=["zero_removes_infinity", "opposite_infinities_cancel"],
)
def test_proof_rejects_a_wrong_table(
    name: str, table: Table, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theory, name, table)
    with pytest.raises(ProofError, match=step):
        theory.prove()


@control
def test_prediction_of_nan_everywhere_is_rejected_where_heads_share_a_key() -> None:
    conv = nn.Conv1d(1, 1, 2, padding=1, padding_mode="replicate", bias=False)
    nn.init.ones_(conv.weight)
    case = Case(conv, torch.tensor([[[math.inf, 0.0, 0.0]]]))
    natural = attention_from_conv(conv, boundary="natural", evaluation="dense")
    shown = np.array([[[math.inf, math.nan, math.nan, math.nan]]])
    np.testing.assert_array_equal(numbers(case.run(natural)), shown)
    np.testing.assert_array_equal(predicted(case, 0, 0, 0), shown)
    assert np.isnan(numbers(case.run(papers_layer(conv)))).all()


@control
def test_matrices_of_opposite_signs_turn_the_shared_infinity_into_nan() -> None:
    conv = nn.Conv1d(1, 1, 2, padding=1, padding_mode="replicate", bias=False)
    x = torch.tensor([[[math.inf, 0.0, 0.0]]])
    kernels = {
        (1.0, 2.0): math.inf,
        (-1.0, -2.0): -math.inf,
        (1.0, -1.0): math.nan,
        (1.0, 0.0): math.nan,
    }
    for taps, shown in kernels.items():
        conv.weight.data.copy_(torch.tensor([[taps]]))
        y = attention_from_conv(conv, boundary="natural", evaluation="dense")(x)
        assert np.array_equal(numbers(y)[0, 0, 0], shown, equal_nan=True)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
