"""Where the score of a relative encoding is a function of δ − Δ up to a constant of the row, keys encoded by where they stand and queries that name their target have the same attention weights.

T14, `docs/theorems/absolute_scores_select_the_same_shift.md`. Stock attention is torch's
`scaled_dot_product_attention`, unmodified, on each of its kernels for the CPU.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from constructions import attention_from_conv
from constructions.encodings.absolute import Absolute
from constructions.encodings.gaussian import Gaussian
from constructions.encodings.periodic import Periodic
from constructions.encodings.quadratic import Quadratic
from constructions.formats import FORMATS
from constructions.geometry.lattice import Lattice
from constructions.layer.structure import products
from constructions.normalisers import Softmax
from tests.pages.options import agrees, truth_of
from tests.support import heads
from tests.support.helpers import papers_layer
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import PADDING_MODES, integer_cases, sharpnesses
from theory import absolute_scores_select_the_same_shift as theory
from theory import attention_is_soft_padding_then_convolution as floats
from theory.tools.theta import ball, precision

SLUG = "absolute_scores_select_the_same_shift"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

KERNELS = {"math": SDPBackend.MATH, "fused": SDPBackend.FLASH_ATTENTION}
every_kernel = pytest.mark.parametrize("kernel", KERNELS)
every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)
every_form = pytest.mark.parametrize("centred", [False, True], ids=["d + 1", "d + 2"])

POWERS = {
    torch.float16: 32.0,
    torch.bfloat16: 128.0,
    torch.float32: 128.0,
    torch.float64: 1024.0,
}
"""The least powers of two that saturate: equation (12)."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """2^-p, by the bits that the theorem counts with."""
    return float(Fraction(1, 2 ** theory.FORMATS[str(dtype).removeprefix("torch.")][0]))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The format in which a stock kernel adds."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def features(keys: Tensor, centred: bool) -> Tensor:
    """(k, ‖k‖²), and 1."""
    square = keys.square().sum(-1, keepdim=True)
    return torch.cat([keys, square, *([torch.ones_like(square)] if centred else [])], dim=-1)


def names(targets: Tensor, sharpness: float, centred: bool) -> Tensor:
    """(2αt, -α), and -α ‖t‖²."""
    square = targets.square().sum(-1, keepdim=True)
    parts = [2 * targets, -torch.ones_like(square), *([-square] if centred else [])]
    return sharpness * torch.cat(parts, dim=-1)


def stock(queries: Tensor, keys: Tensor, values: Tensor, dtype: torch.dtype, kernel: str) -> Tensor:
    """Stock attention in a format, by one of its kernels.

    Zeros are appended, which change no dot product, since fused kernels want all three as wide.
    """
    width = max(part.shape[-1] for part in (queries, keys, values))
    q, k, v = (
        F.pad(part, (0, width - part.shape[-1])).to(dtype).contiguous()[None, None]
        for part in (queries, keys, values)
    )
    with sdpa_kernel(KERNELS[kernel]):
        seen: Tensor = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0]
    return seen[:, : values.shape[-1]]


def grid_of(shape: Sequence[int], first: Sequence[int]) -> Tensor:
    """All points of a box, row-major, float64."""
    return Lattice(tuple(shape), (1,) * len(shape), tuple(first)).positions().double()


def selects(
    points: Tensor, sharpness: float, centred: bool, dtype: torch.dtype, kernel: str
) -> bool:
    """Whether stock attention with every key for a target is the identity, bit for bit."""
    one_hot = torch.eye(len(points), dtype=torch.float64)
    queries, keys = names(points, sharpness, centred), features(points, centred)
    return torch.equal(stock(queries, keys, one_hot, dtype, kernel), one_hot.to(dtype))


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# The principle ------------------------------------------------------------------------------------

RELATIVE: dict[str, Any] = {
    "quadratic": Quadratic(),
    "periodic": Periodic(),
    "gaussian": Gaussian(((5.0, 3.0), (3.0, 2.0))),
    "uneven gaussian": Gaussian(((0.3, 0.1), (0.1, 0.7))),
}


@bounded
@pytest.mark.parametrize("name", RELATIVE)
@given(data=st.data())
def test_absolute_scores_differ_from_relative_ones_by_a_constant_of_the_row(
    name: str, data: st.DataObject
) -> None:
    # Equation (2), within what each encoding says that its scores may err.
    encoding = RELATIVE[name]
    shape = (data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9)))
    grid = Lattice(shape, (1, 1), (data.draw(st.integers(-3, 0)), 0))
    shift = torch.tensor([[data.draw(st.integers(-4, 4)) for _ in range(2)]]).double()
    keys = grid.positions().double()
    query = keys[data.draw(st.integers(0, len(keys) - 1))]

    def row(points: Tensor, named: Tensor) -> list[Fraction]:
        found, queries = encoding.encode(points, named, grid)
        return [Fraction(score) for score in (queries @ found.T)[0].tolist()]

    pairs = zip(row(keys, query + shift), row(keys - query, shift), strict=True)
    constants = [absolute - relative for absolute, relative in pairs]
    error = encoding.score_error(shift, grid)
    off, allowed = max(constants) - min(constants), 4 * Fraction(error)
    assert off <= allowed
    record(ratio=float(off / allowed) if allowed else None, dtype=torch.float64)


@exact
@given(
    data=st.data(),
    dtype=st.sampled_from(FORMATS),
    name=st.sampled_from(["quadratic", "periodic"]),
    boundary=st.sampled_from(["auto", "padded"]),
    evaluation=st.sampled_from(["auto", "dense"]),
)
def test_absolute_layers_are_the_convolution_of_integers(
    data: st.DataObject,
    dtype: torch.dtype,
    name: str,
    boundary: str,
    evaluation: str,
    device: str,
) -> None:
    case = data.draw(integer_cases(dtype))
    truth = truth_of(case)
    case = case.to(device)
    layer = attention_from_conv(
        case.conv,
        encoding=Absolute(RELATIVE[name]),
        boundary=boundary,
        evaluation=evaluation,
    )
    assert agrees(layer, case, truth)
    record(device=device, dtype=dtype)


@exact
@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("alpha", [0.3, 7.0, None])
def test_absolute_layer_has_the_weights_of_the_relative_one(
    mode: str, alpha: float | None, device: str
) -> None:
    # The layer centres exact integers: no sharpness tells the two apart.
    for rank, dtype in product((1, 2, 3), FORMATS):
        case = heads.generic_case(rank, dtype, mode).to(device)
        relative, absolute = (
            attention_from_conv(case.conv, encoding=encoding, sharpness=alpha)
            for encoding in (Quadratic(), Absolute(Quadratic()))
        )
        if relative.boundary == absolute.boundary:
            shape = case.x.shape[2:]
            assert torch.equal(relative.attention_weights(shape), absolute.attention_weights(shape))


@exact
def test_absolute_layer_encodes_positions_of_keys_and_targets() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Observed(Quadratic):
        def encode(
            self, displacements: Tensor, shifts: Tensor, grid: Lattice
        ) -> tuple[Tensor, Tensor]:
            seen.append((displacements, shifts))
            return super().encode(displacements, shifts, grid)

    case = heads.generic_case(2)
    layer = papers_layer(case.conv, encoding=Absolute(Observed()))
    seen.clear()  # of what its construction asked
    layer.attention_weights(case.x.shape[2:])
    targets = heads.Targets.of(case)
    on_grid = np.stack(np.unravel_index(targets.keys, targets.grid), axis=-1)
    assert len(seen) == len(targets.keys)
    for (points, named), wanted in zip(seen, on_grid, strict=True):
        keys = points[: math.prod(targets.grid)].numpy()
        # Both from one and the same origin.
        assert np.array_equal(keys - keys[0], np.argwhere(np.ones(targets.grid)))
        assert np.array_equal(named.detach().numpy() - keys[0], wanted)


@exact
@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [0.25, 1.0, 3.0, 24.0, 128.0])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dyadic_sharpness_gives_the_weights_of_the_dense_layer_bit_for_bit(
    rank: int, alpha: float, dtype: torch.dtype, centred: bool
) -> None:
    # Equation (10): the exponentials of the same floats.
    case = heads.generic_case(rank, dtype)
    targets = heads.Targets.of(case)
    weights = papers_layer(case.conv, sharpness=alpha).attention_weights(case.x.shape[2:])
    keys = grid_of(targets.grid, [-2] * rank)
    for head, row in enumerate(targets.keys):
        queries = names(keys[torch.from_numpy(row)], alpha, centred).to(dtype)
        scores = queries @ features(keys, centred).to(dtype).T
        assert torch.equal(Softmax()(scores), weights[head])


@exact
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_linear_map_of_the_token_names_the_target_of_a_head(rank: int) -> None:
    # Equation (8), with the map read off the images of a basis.
    shift, alpha = torch.tensor([3.0, -2.0, 5.0][:rank]).double(), 4.0
    tokens = features(grid_of((4,) * rank, (-2,) * rank), centred=True)
    wanted = names(tokens[:, :rank] + shift, alpha, centred=True)
    solved = torch.zeros(rank + 2, rank + 2, dtype=torch.float64)
    solved[:rank, :rank] = 2 * alpha * torch.eye(rank)
    solved[rank + 1, :rank] = 2 * alpha * shift
    solved[rank + 1, rank] = -alpha
    solved[rank, rank + 1] = -alpha
    solved[:rank, rank + 1] = -2 * alpha * shift
    solved[rank + 1, rank + 1] = -alpha * shift.square().sum()
    assert torch.equal(tokens @ solved, wanted)


# Stock attention, saturated -----------------------------------------------------------------------


@exact
@every_kernel
@every_form
@every_format
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_stock_attention_is_one_hot_bit_for_bit(
    rank: int, dtype: torch.dtype, centred: bool, kernel: str
) -> None:
    side = {1: 31, 2: 9, 3: 5}[rank]  # ‖k‖² ≤ 225, which bfloat16 has
    points = grid_of((side,) * rank, (-(side // 2),) * rank)
    assert selects(points, POWERS[dtype], centred, dtype, kernel)
    record(dtype=dtype)


def reach(dtype: torch.dtype, sharpness: float, centred: bool) -> int:
    """The largest n of (10) and (11), one axis."""
    odd = Fraction(sharpness).numerator
    while odd % 2 == 0:
        odd //= 2
    of_sums = round(1 / unit_roundoff(accumulator(dtype)))
    of_format = round(1 / unit_roundoff(dtype))
    stored = [of_format // (2 * odd), math.isqrt(of_format // (odd if centred else 1))]
    return min(math.isqrt(of_sums // (odd * (4 if centred else 3))), *stored)


@exact
@every_kernel
@every_form
@every_format
@pytest.mark.parametrize("factor", [1.0, 1.625], ids=["power of two", "13 over 8"])
def test_stock_attention_is_one_hot_up_to_the_stated_distance(
    dtype: torch.dtype, centred: bool, kernel: str, factor: float
) -> None:
    # Equations (10) and (11): the last 9 keys before the limit, and the same on the other side.
    alpha = POWERS[dtype] * factor
    n = reach(dtype, alpha, centred)
    first = max(n - 8, -n)
    for start in (first, -n):
        count = min(9, n - first + 1)
        assert selects(grid_of((count,), (start,)), alpha, centred, dtype, kernel)


@control
@every_kernel
@every_form
@every_format
def test_stock_attention_is_not_one_hot_far_beyond_that_distance(
    dtype: torch.dtype, centred: bool, kernel: str
) -> None:
    # Squares of four times the size that fits: k² and (k + 1)² lose their last bits.
    n = 4 * reach(dtype, POWERS[dtype], centred) + 1
    assert not selects(grid_of((9,), (n,)), POWERS[dtype], centred, dtype, kernel)


@control
@every_kernel
def test_an_odd_part_of_many_bits_costs_distance(kernel: str) -> None:
    # At k = 1500 a power of two is exact; a sharpness of 24 bits errs by more than its gap.
    points = grid_of((9,), (1500,))
    full = float(torch.tensor(128 / 1.1, dtype=torch.float32))
    assert selects(points, 128.0, False, torch.float32, kernel)
    assert not selects(points, full, False, torch.float32, kernel)


@exact
@every_kernel
@every_format
def test_two_digits_of_the_square_reach_further_in_half_precision(
    dtype: torch.dtype, kernel: str
) -> None:
    # ‖k‖² = 256 h + l, as two features.
    n = {torch.float16: 120, torch.bfloat16: 128}.get(dtype, 128)
    points, alpha = grid_of((11,), (n - 10,)), POWERS[dtype]
    square = points.square()
    keys = torch.cat([points, (square / 256).floor(), square % 256], dim=-1)
    one = torch.ones_like(points)
    queries = alpha * torch.cat([2 * points, -256 * one, -one], dim=-1)
    one_hot = torch.eye(len(points), dtype=torch.float64)
    assert torch.equal(stock(queries, keys, one_hot, dtype, kernel), one_hot.to(dtype))
    if dtype in (torch.float16, torch.bfloat16):
        assert not selects(points, alpha, False, dtype, kernel)


@exact
@given(
    kernel=st.sampled_from(list(KERNELS)),
    centred=st.booleans(),
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_stock_attention_with_matrices_is_the_convolution_of_integers(
    kernel: str, centred: bool, data: st.DataObject, dtype: torch.dtype
) -> None:
    # Padded keys: heads copy bit for bit, and the sums that follow are of integers.
    rank = data.draw(st.integers(1, 2))
    mode = data.draw(st.sampled_from(PADDING_MODES))
    case = heads.generic_case(rank, dtype, mode)
    targets, layer = heads.Targets.of(case), papers_layer(case.conv)
    keys = grid_of(targets.grid, [-1] * rank)
    modes = {"zeros": "constant"}
    image = F.pad(case.x, (1, 1) * rank, mode=modes.get(mode, mode)).flatten(2)[0].T
    total = torch.zeros(targets.keys.shape[1], case.conv.out_channels, dtype=dtype)
    for head, row in enumerate(targets.keys):
        queries = names(keys[torch.from_numpy(row)], POWERS[dtype], centred)
        seen = stock(queries, features(keys, centred), image.double(), dtype, kernel)
        total += seen @ products(layer.heads, dtype)[head, 0]
    assert case.conv.bias is not None
    y = (total + case.conv.bias.detach()).T.reshape(1, -1, *heads.output_shape(case))
    assert torch.equal(y, layer(case.x).detach())
    assert agrees(layer, case, truth_of(case))


@exact
@every_kernel
@every_format
def test_a_key_of_zeros_is_a_sink_that_pads_with_zeros(dtype: torch.dtype, kernel: str) -> None:
    # Equation (17), with twice the sharpness since the sink halves the gap.
    pixels, targets = grid_of((5, 4), (-2, -2)), grid_of((7, 6), (-3, -3))
    alpha = 2 * POWERS[dtype]
    keys = F.pad(features(pixels, centred=True), (0, 0, 0, 1))
    queries = names(targets, alpha, centred=True)
    queries[:, -1] += alpha / 2
    values = F.pad(torch.eye(len(pixels), dtype=torch.float64), (0, 0, 0, 1))
    seen = stock(queries, keys, values, dtype, kernel)
    there = (targets[:, None] == pixels[None]).all(-1)
    assert torch.equal(seen, there.to(dtype))


# Stock attention at every sharpness ---------------------------------------------------------------


@bounded
@given(
    kernel=st.sampled_from(list(KERNELS)),
    alpha=sharpnesses(),
    centred=st.booleans(),
    dtype=st.sampled_from(FORMATS),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    target=st.integers(0, 10**6),
)
@example(  # scores that err by more than they differ
    kernel="math", alpha=1183.0, centred=True, dtype=torch.bfloat16, shape=[4, 4, 4], target=0
)
def test_stock_weights_are_within_their_rounding_of_the_exact_ones(
    kernel: str,
    alpha: float,
    centred: bool,
    dtype: torch.dtype,
    shape: list[int],
    target: int,
) -> None:
    # Equation (15) for the scores, T7 for the rest. The names are rounded to the format first.
    rank = len(shape)
    points = grid_of(shape, [-(n // 2) for n in shape])
    row = points[target % len(points)].unsqueeze(0)
    sizes = 2 * (points * row).abs().sum(-1) + points.square().sum(-1)
    largest = float(sizes.max() + row.square().sum() * centred)
    # Names, products and sums; a half format rounds the names more than all the rest.
    steps = (rank + 4) * unit_roundoff(accumulator(dtype)) + 2 * unit_roundoff(dtype)
    score_error = ball(alpha) * ball(largest) * arb(steps).expm1()
    if alpha * largest > torch.finfo(dtype).max / 4:
        return  # overflow
    one_hot = torch.eye(len(points), dtype=torch.float64)
    seen = stock(names(row, alpha, centred), features(points, centred), one_hot, dtype, kernel)
    found = [Fraction(weight) for weight in seen[0].tolist()]
    squared = [int(m) for m in (points - row).square().sum(-1).tolist()]
    name = str(dtype).removeprefix("torch.")
    with precision(1300):  # bounds are at least the smallest float64
        exponentials = [(-ball(alpha) * m).exp() for m in squared]
        step = floats.softmax_error(name, len(points), steps=1)
        for at, (weight, own) in enumerate(zip(found, exponentials, strict=True)):
            others = sum((e for k, e in enumerate(exponentials) if k != at), arb(0))
            # The softmax of scores that err: its own score lowest or highest, the others opposite.
            low, high = (
                1 / (1 + others / own * (2 * side * score_error).exp()) for side in (1, -1)
            )
            rounding = floats.rounding_of_the_seen(name, [step], high, arb(1))
            assert ball(weight) <= high + rounding
            assert ball(weight) >= low - rounding
            truth = own / (own + others)
            allowed = (high + rounding - truth).max(truth - low + rounding)
            record(ratio=float((abs(ball(weight) - truth) / allowed).upper()), dtype=dtype)


# Layers by stock kernels --------------------------------------------------------------------------


def largest_sum(keys: int, padding: int) -> int:
    """What the terms of a score add up to at most on a line, doubled where a sink has halves.

    The origin is the middle key, the lower one of two; targets reach beyond by the padding.
    """
    left, right = (keys - 1) // 2, keys - 1 - (keys - 1) // 2
    k = max(left, right)
    t = k + padding
    size = k * k + 2 * k * t + t * t
    return 2 * size + 1 if padding else size


@exact
@pytest.mark.parametrize(("padding", "most"), [(0, 4095), (1, 2896)], ids=["no sink", "a sink"])
def test_fused_layer_is_refused_just_beyond_its_limit(padding: int, most: int) -> None:
    # Equation (22): 2047 keys to each side of the origin; with a sink and targets one farther
    # out, 1447 to the left and 1448 to the right are too many, 1447 to each side are not.
    conv = torch.nn.Conv1d(1, 1, 1 + 2 * padding, padding=padding, dtype=torch.float32)
    layer = attention_from_conv(conv, evaluation="fused")
    assert layer.has_sink is (padding > 0)
    most -= padding
    assert largest_sum(most, padding) < 2**24 <= largest_sum(most + 1, padding)
    with torch.no_grad():
        assert layer(torch.ones(1, 1, most)).shape[-1] == most
        with pytest.raises(ValueError, match="sums of the scores reach"):
            layer(torch.ones(1, 1, most + 1))


@control
@every_kernel
def test_exponents_have_a_range_too(kernel: str) -> None:
    # Equation (10), with a = 1 and a small Z: float16 has no number 2^16, the name of t = 1.
    points = grid_of((3,), (-1,))
    assert selects(points, 2.0**14, False, torch.float16, kernel)
    assert not selects(points, 2.0**15, False, torch.float16, kernel)


# Two features -------------------------------------------------------------------------------------


def on_circle(count: int, sharpness: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys of (18) and (20)."""
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    points = torch.stack([angles.cos(), angles.sin()], dim=-1)
    gap = 2 * math.sin(math.pi / count) ** 2 - 16 * unit_roundoff(dtype)
    return sharpness / gap * points, points


@exact
@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5, 64, 600])
def test_two_features_select_every_one_of_many_keys(
    dtype: torch.dtype, count: int, kernel: str
) -> None:
    # Equations (18) and (20); 600 keys are more than one block of the fused kernel.
    queries, keys = on_circle(count, Softmax().one_hot_gap(dtype), dtype)
    one_hot = torch.eye(count, dtype=torch.float64)
    assert torch.equal(stock(queries, keys, one_hot, dtype, kernel), one_hot.to(dtype))


@bounded
@given(count=st.integers(2, 10**6))
def test_circle_has_its_gap_between_its_bounds(count: int) -> None:
    # Equation (19).
    with precision(200):
        gap = 1 - (2 * arb.pi() / count).cos()
        assert not gap < arb(8) / count**2
        assert gap < 2 * arb.pi() ** 2 / arb(count) ** 2


# What the checks reject ---------------------------------------------------------------------------


@control
@every_format
def test_weaker_powers_of_two_are_not_one_hot(dtype: torch.dtype) -> None:
    # Equation (12): the half of each is below the threshold. Fused kernels flush earlier.
    points = grid_of((9,), (-4,))
    assert selects(points, POWERS[dtype], True, dtype, "math")
    below = {torch.bfloat16: 80.0, torch.float32: 80.0}.get(dtype, POWERS[dtype] / 4)
    assert not selects(points, below, True, dtype, "math")


@control
@every_kernel
def test_sink_at_a_height_that_varies_pads_wrongly(kernel: str) -> None:
    # Rows with their constants left in: the key of zeros is too low away from the origin.
    pixels, targets, alpha = grid_of((5,), (-2,)), grid_of((7,), (-3,)), 256.0
    keys = F.pad(features(pixels, centred=False), (0, 0, 0, 1))
    values = F.pad(torch.eye(5, dtype=torch.float64), (0, 0, 0, 1))
    seen = stock(names(targets, alpha, False), keys, values, torch.float32, kernel)
    assert seen[0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]  # the target -3 has no pixel
    assert seen[3].tolist() == [0.0, 0.0, 0.5, 0.0, 0.0]  # and at the origin the two tie


@control
@every_kernel
def test_features_without_squares_select_the_edge(kernel: str) -> None:
    points = grid_of((9,), (-4,))
    one_hot = torch.eye(9, dtype=torch.float64)
    seen = stock(2 * 128 * points, points, one_hot, torch.float32, kernel)
    assert seen[6].tolist() == one_hot[8].tolist()


@control
def test_constants_of_rows_matter_to_a_normaliser_that_does_not_ignore_them() -> None:
    points = grid_of((5,), (-2,))
    keys, one = features(points, False), features(points, True)
    left_in = F.relu(1 + names(points, 1.0, False) @ keys.T)
    removed = F.relu(1 + names(points, 1.0, True) @ one.T)
    assert torch.equal(removed, torch.eye(5, dtype=torch.float64))
    assert not torch.equal(left_in, removed)


class Buckets:
    """Displacements in pairs: a score that is no function of δ - Δ."""

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return Quadratic().encode((displacements / 2).floor(), (shifts / 2).floor(), grid)


@control
def test_scores_of_buckets_are_not_the_same_when_absolute() -> None:
    grid = Lattice.box((6,))
    keys, shift, query = grid.positions().double(), torch.ones(1, 1).double(), 2.0
    rows = []
    for points, named in ((keys, query + 1 + shift * 0), (keys - query - 1 + 0 * shift, 0 * shift)):
        found, queries = Buckets().encode(points, named, grid)
        rows.append((queries @ found.T)[0].softmax(-1))
    assert not torch.equal(rows[0], rows[1])
    found, queries = Quadratic().encode(keys, query + shift, grid)
    other, again = Quadratic().encode(keys - query, shift, grid)
    assert torch.equal((queries @ found.T)[0].softmax(-1), (again @ other.T)[0].softmax(-1))


@control
def test_one_feature_does_not_select_more_than_the_two_ends() -> None:
    # (9) for selection: scores linear in one feature are largest at an end of its range.
    feature = np.array([0.0, 3.0, 1.0, 2.0])
    for slope in (-5.0, 0.0, 7.0):
        assert (slope * feature).max() == max(slope * feature.min(), slope * feature.max())


@control
def test_circle_without_its_margin_or_with_too_many_keys_is_not_one_hot() -> None:
    dtype, alpha = torch.float32, Softmax().one_hot_gap(torch.float32)
    count = 40_000
    angles = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    near = torch.stack([angles.cos(), angles.sin()], dim=-1)[:9]
    beta = alpha / (2 * math.sin(math.pi / count) ** 2)
    one_hot = torch.eye(9, dtype=torch.float64)
    seen = stock(beta * near, near, one_hot, dtype, "math")
    assert not torch.equal(seen, one_hot.to(dtype))
    assert 16 * unit_roundoff(dtype) > 8 / count**2


@control
@pytest.mark.parametrize("wrong", [heads.query_minus_key, heads.reversed_kernel])
def test_wrong_heads_of_absolute_layers_are_found(wrong: heads.Wrong) -> None:
    case = heads.generic_case(2)
    layer = papers_layer(case.conv, encoding=Absolute(Quadratic()))
    right = numbers(layer.attention_weights(case.x.shape[2:]))
    assert np.array_equal(right, heads.Targets.of(case).one_hot())
    wrong(layer)
    changed = numbers(layer.attention_weights(case.x.shape[2:]))
    assert not np.array_equal(changed, heads.Targets.of(case).one_hot())
