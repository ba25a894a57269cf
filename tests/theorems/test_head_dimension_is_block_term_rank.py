"""Heads of dimension D_h that look at one tap each can express a kernel if and only if every tap has at least ⌈rank W_δ / D_h⌉ of them, and a layer of positional heads is a sum of block terms whose number is at least the rank of each unfolding over what one term has of it.

T11, `docs/theorems/head_dimension_is_block_term_rank.md`. Ranks are exact; layers are held against
the oracle bit for bit where no factor had to be rounded, and within their certificates elsewhere.
"""  # noqa: E501, the claim is one sentence

import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify, revert
from constructions.formats import FORMATS
from constructions.heads import count, identify, narrow_count
from tests.support import formal
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, integer_cases, real_cases, sharpnesses
from theory import head_dimension_is_block_term_rank as theory
from theory.depth_buys_heads import factored, multiplied, rank, reshaped
from theory.head_dimension_is_block_term_rank import dimension, one_hot_heads, unfoldings
from theory.heads_count_the_rank_of_the_kernel import least_masked

SLUG = "head_dimension_is_block_term_rank"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

entries = st.integers(-2, 2)
head_dims = st.integers(1, 4)


def fractions_of(kernel: Tensor) -> list[list[list[Fraction]]]:
    """The taps' matrices, (N, D_in, D_out), as they are."""
    return [[[Fraction(v) for v in row] for row in matrix] for matrix in kernel.tolist()]


def conv_of(kernel: Tensor, side: int = 1) -> Any:
    """A convolution of one or two axes with these taps, in float64."""
    taps, inputs, outputs = kernel.shape
    kind: Any = nn.Conv1d if side == 1 else nn.Conv2d
    size: Any = taps if side == 1 else (side, taps // side)
    conv = kind(inputs, outputs, size, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(kernel.permute(2, 1, 0).reshape(conv.weight.shape))
    return conv


@st.composite
def kernels(draw: st.DrawFn) -> Tensor:
    """Taps of integers, each of any rank up to the drawn one, zero taps included."""
    taps, inputs, outputs = (draw(st.integers(1, n)) for n in (3, 4, 4))
    found = []
    for _ in range(taps):
        width = draw(st.integers(0, min(inputs, outputs)))
        left = draw(st.lists(entries, min_size=inputs * width, max_size=inputs * width))
        right = draw(st.lists(entries, min_size=width * outputs, max_size=width * outputs))
        u = torch.tensor(left, dtype=torch.float64).reshape(inputs, width)
        found.append(u @ torch.tensor(right, dtype=torch.float64).reshape(width, outputs))
    return torch.stack(found)


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Heads of one tap ---------------------------------------------------------------------------------


@exact
@given(kernel=kernels(), head_dim=head_dims)
def test_layer_has_just_the_heads_that_its_taps_need(kernel: Tensor, head_dim: int) -> None:
    # Equation (2), for taps of any rank.
    wanted = one_hot_heads(fractions_of(kernel), head_dim)
    conv = conv_of(kernel)
    layer = attention_from_conv(conv, head_dim=head_dim)
    assert layer.num_heads == max(wanted, 1)  # a layer has a head, be it one of zeros
    assert narrow_count(conv, head_dim).one_hot == wanted
    value, output = layer.head_matrices()
    assert value.shape[-1] == output.shape[-2] <= max(head_dim, min(kernel.shape[1:]))
    if head_dim < min(kernel.shape[1:]):
        assert value.shape[-1] == head_dim
    x = integers(1, kernel.shape[1], len(kernel) + 2, dtype=torch.float64)
    assert certify(layer, conv, x).holds


@exact
@given(case=integer_cases(torch.float64), head_dim=head_dims)
def test_narrow_layer_is_the_convolution_bit_for_bit(case: Case, head_dim: int) -> None:
    # Every option of torch but groups, with taps whose rows or columns are independent.
    if case.conv.groups > 1:
        with pytest.raises(ValueError, match=f"a convolution of {case.conv.groups} groups"):
            attention_from_conv(case.conv, head_dim=head_dim)
        return
    layers = [
        attention_from_conv(case.conv, head_dim=head_dim, evaluation=evaluation)
        for evaluation in ("dense", "factored")
    ]
    # The kernel that the layer computes is the convolution's own: no factor was rounded.
    if all(torch.equal(layer.weight, case.conv.weight) for layer in layers):
        truth = convolve_module(case.conv, case.x, case.output_size)
        for layer in layers:
            assert not exact_error(numbers(case.run(layer)), truth).any()
            back: Any = revert(layer)
            assert torch.equal(back.weight, case.conv.weight)


@exact
def test_full_rank_is_dealt_out_without_rounding() -> None:
    for channels in ((6, 4), (4, 6), (5, 5)):
        conv = nn.Conv2d(*channels, 3, padding=1)
        for head_dim in (1, 2, 3, 4):
            layer = attention_from_conv(conv, head_dim=head_dim)
            assert layer.num_heads == 9 * math.ceil(min(channels) / head_dim)
            assert torch.equal(layer.weight, conv.weight)


@bounded
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@given(data=st.data())
def test_error_of_a_narrow_layer_is_within_its_certificate(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    # Equation (8), saturated or not, with any way of computing.
    case = data.draw(real_cases(dtype).filter(lambda case: case.conv.groups == 1)).to(device)
    head_dim = data.draw(head_dims, label="head_dim")
    sharpness = data.draw(st.none() | sharpnesses(), label="sharpness")
    evaluation = data.draw(st.sampled_from(["auto", "dense"]), label="evaluation")
    if data.draw(st.booleans(), label="taps of rank one"):
        with torch.no_grad():
            case.conv.weight.copy_(case.conv.weight[:1, :1].clone())
    layer = attention_from_conv(
        case.conv, head_dim=head_dim, sharpness=sharpness, evaluation=evaluation
    )
    certificate = certify(layer, case.conv, case.x, output_size=case.output_size)
    record(ratio=certificate.ratio, device=device, dtype=dtype)
    assert certificate.holds


@bounded
@pytest.mark.parametrize("encoding", ["circle", "rotary", "gaussian"])
def test_other_encodings_have_their_certificates_too(encoding: str) -> None:
    kernel = integers(5, 3, 4, dtype=torch.float64)
    kernel[1] = 0
    conv, x = conv_of(kernel), integers(1, 3, 8, dtype=torch.float64)
    for sharpness in (None, 6.0):
        layer = attention_from_conv(conv, head_dim=2, encoding=encoding, sharpness=sharpness)
        assert certify(layer, conv, x).holds


@bounded
@given(data=st.data(), epsilon=st.integers(0, 16))
def test_nearly_one_hot_heads_that_are_too_few_have_a_floor(
    data: st.DataObject, epsilon: int
) -> None:
    # Equation (3), with one head a tap: norms of Frobenius bound the spectral ones.
    drawn = data.draw(kernels())
    kernel = drawn.new_zeros(len(drawn), *(max(n, 2) for n in drawn.shape[1:]))
    kernel[:, : drawn.shape[1], : drawn.shape[2]] = drawn
    kernel[0, :2, :2] = torch.tensor([[3, 1], [0, 3]])  # a tap of rank two at the least
    kernel = kernel[kernel.flatten(1).any(dim=1)]
    taps, inputs, outputs = kernel.shape
    assert one_hot_heads(fractions_of(kernel), 1) > taps
    size = taps * (inputs + outputs)
    flat = torch.tensor(data.draw(st.lists(entries, min_size=size, max_size=size))).double()
    left, right = flat[: taps * inputs], flat[taps * inputs :]
    heads = left.reshape(taps, inputs, 1) @ right.reshape(taps, 1, outputs)
    beside = epsilon / 64
    weights = torch.full((taps, taps), beside, dtype=torch.float64).fill_diagonal_(1)
    missed = torch.einsum("ht,hio->tio", weights, heads) - kernel
    largest = float(torch.linalg.svdvals(missed).max())
    singular = torch.linalg.svdvals(kernel).flatten()
    counted = [
        float(torch.linalg.svdvals(matrix)[rank(of) - 1])
        for matrix, of in zip(kernel, fractions_of(kernel), strict=True)
        if rank(of)
    ]
    floor = min(counted) - beside * float(heads.flatten(1).norm(dim=1).sum())
    # Singular values of matrices of at most four rows, of numbers below 64: of 64 roundings each.
    rounding = 64 * 2.0**-53 * (float(singular.max()) + 4 * 64 * taps)
    assert largest >= floor - rounding
    if largest:
        record(ratio=max(floor, 0.0) / (largest + rounding), dtype=torch.float64)


# Heads that mix -----------------------------------------------------------------------------------


@st.composite
def narrow_layers(draw: st.DrawFn, most: int = 3) -> tuple[Tensor, Tensor, int]:
    """Weights (H, N) of small integers, matrices (H, D_in, D_out) of rank D_h at most, and D_h."""
    heads, head_dim = draw(st.integers(1, most)), draw(st.integers(1, 2))
    taps, inputs, outputs = (draw(st.integers(1, 4)) for _ in range(3))

    def tensor(*shape: int, low: int = -2) -> Tensor:
        count = math.prod(shape)
        flat = draw(st.lists(st.integers(low, 3), min_size=count, max_size=count))
        return torch.tensor(flat, dtype=torch.float64).reshape(shape)

    matrices = tensor(heads, inputs, head_dim) @ tensor(heads, head_dim, outputs)
    return tensor(heads, taps, low=0), matrices, head_dim


@bounded
@given(layer=narrow_layers())
def test_no_layer_has_fewer_heads_than_the_unfoldings_say(layer: Any) -> None:
    # Equation (1).
    weights, matrices, head_dim = layer
    kernel = torch.einsum("hn,hio->nio", weights, matrices)
    r, r_in, r_out = unfoldings(fractions_of(kernel))
    found = narrow_count(conv_of(kernel), head_dim)
    width = min(head_dim, *kernel.shape[1:])
    assert found.lower == max(r, math.ceil(r_in / width), math.ceil(r_out / width))
    assert found.lower <= len(weights)
    assert found.lower <= found.upper
    assert found.lower <= found.one_hot
    record(ratio=found.lower / len(weights), dtype="rational")


@exact
@given(kernel=kernels(), head_dim=head_dims, beyond=st.integers(1, 3))
def test_heads_of_finite_logits_are_as_many_as_the_upper_bound(
    kernel: Tensor, head_dim: int, beyond: int
) -> None:
    # Equation (5), in fractions: one-hot terms made positive, and one matrix more.
    taps, inputs, outputs = kernel.shape
    width = min(head_dim, inputs, outputs)
    tap_matrices = fractions_of(kernel)
    terms = []
    for tap, matrix in enumerate(tap_matrices):
        first, second = factored(matrix)
        for start in range(0, len(second), width):
            part = slice(start, start + width)
            terms.append((tap, multiplied([row[part] for row in first], second[part])))
    assert len(terms) == one_hot_heads(tap_matrices, width)
    shift = 2
    zero = [[Fraction(0)] * outputs] * inputs
    for key in range(taps + beyond):  # the last ones beyond the kernel
        weights = [int(tap == key) + shift for tap, _ in terms]
        assert all(weight > 0 for weight in weights)
        found = [
            [
                sum((w * m[i][j] for w, (_, m) in zip(weights, terms, strict=True)), Fraction(0))
                - shift * sum((m[i][j] for _, m in terms), Fraction(0))
                for j in range(outputs)
            ]
            for i in range(inputs)
        ]
        assert found == (tap_matrices[key] if key < taps else zero)
    whole = math.ceil(min(inputs, outputs) / width)
    mean = [
        [sum((m[i][j] for _, m in terms), Fraction(0)) for j in range(outputs)]
        for i in range(inputs)
    ]
    assert rank(mean) <= whole * width
    if terms:
        assert narrow_count(conv_of(kernel), head_dim).upper <= len(terms) + whole


@bounded
@given(layer=narrow_layers())
def test_count_of_narrow_heads_is_never_above_a_layer_that_makes_the_kernel(layer: Any) -> None:
    # Equation (1), and heads of nonnegative weights as T10 counts them.
    weights, matrices, head_dim = layer
    kernel = torch.einsum("hn,hio->nio", weights, matrices)
    found = count(conv_of(kernel), head_dim)
    rows = [[v for row in matrix for v in row] for matrix in fractions_of(kernel)]
    r, r_in, r_out = unfoldings(fractions_of(kernel))
    width = min(head_dim, *kernel.shape[1:])
    wide = least_masked([row for row in rows if any(row)]) if r else 0
    assert found.lower == max(wide, math.ceil(r_in / width), math.ceil(r_out / width))
    assert found.lower <= len(weights)
    assert found.lower <= found.upper
    record(ratio=found.lower / len(weights), dtype="rational")


@exact
@given(kernel=kernels(), head_dim=head_dims, beyond=st.integers(0, 2))
def test_upper_count_of_narrow_heads_is_reached(kernel: Tensor, head_dim: int, beyond: int) -> None:
    # Equation (5), both ways to write the kernel as terms; with no key beyond they are masked.
    taps, inputs, outputs = kernel.shape
    width = min(head_dim, inputs, outputs)
    wanted = fractions_of(kernel) + [[[Fraction(0)] * outputs] * inputs] * beyond
    along, spanning = factored([[v for row in m for v in row] for m in wanted[:taps]])
    by_rank = [
        ([row[h] for row in along], reshaped(list(flat), inputs))
        for h, flat in enumerate(spanning)
        if any(flat)
    ]
    by_tap = [([Fraction(t == tap) for t in range(taps)], m) for tap, m in enumerate(wanted[:taps])]
    sizes = []
    for terms in (by_rank, by_tap):
        shift = 1 + max((abs(v) for b, _ in terms for v in b), default=Fraction(0))
        heads = [
            ([v + shift for v in b] + [shift] * beyond, part)
            for b, matrix in terms
            for part in cut(matrix, width)
        ]
        last = [
            [-shift * sum((m[i][j] for _, m in heads), Fraction(0)) for j in range(outputs)]
            for i in range(inputs)
        ]
        heads += [([Fraction(1)] * (taps + beyond), part) for part in cut(last, width)]
        assert all(rank(part) <= width for _, part in heads)
        assert all(weight > 0 for weights, _ in heads for weight in weights)
        for key, matrix in enumerate(wanted):
            for i, j in product(range(inputs), range(outputs)):
                assert sum((w[key] * m[i][j] for w, m in heads), Fraction(0)) == matrix[i][j]
        sizes.append(len(heads))
    found = count(conv_of(kernel), head_dim)
    assert found.lower <= min(sizes) <= found.upper
    assert found.upper == max(found.finite, narrow_count(conv_of(kernel), head_dim).upper)


def cut(matrix: list[list[Fraction]], width: int) -> list[list[list[Fraction]]]:
    """Matrices of so small a rank that add up to one, as few as there are; none for 0."""
    first, second = factored(matrix)
    parts = [slice(start, start + width) for start in range(0, rank(matrix), width)]
    return [multiplied([row[part] for row in first], second[part]) for part in parts]


@exact
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_noise_of_a_format_neither_raises_the_lower_count_nor_hides_ranks_from_the_upper(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(32, 32, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    found = count(conv.to(dtype), 4)
    # max(n, m) u is above 1 in bfloat16, and no singular value above that times the largest.
    assert found.upper == narrow_count(conv, 4).upper == 9 * 8 + 8
    assert found.lower == found.masked == 9


@control
def test_wide_count_is_no_count_of_narrow_heads() -> None:
    # One tap of rank four: one wide head, four of dimension one; and Sobel's case (c) in a block.
    conv = conv_of(torch.eye(4, dtype=torch.float64).reshape(1, 4, 4))
    assert (count(conv).lower, count(conv).upper) == (count(conv).masked, count(conv).finite)
    assert (count(conv).masked, count(conv, 1).lower, count(conv, 1).upper) == (1, 4, 8)
    assert count(conv, 4) == count(conv, 9) == count(conv)
    signs = torch.tensor([-1.0, 1.0]).double().reshape(2, 1, 1) * torch.ones(2, 2).double()
    found = count(conv_of(signs), 1)
    assert narrow_count(conv_of(signs), 1).lower == 1 < found.lower == found.masked == 2
    with refused(ValueError, "conv", "2 groups", "one"):
        count(nn.Conv2d(4, 4, 3, groups=2), 1)
    with refused(TypeError, "head_dim", "float", "an integer"):
        count(conv, 1.5)  # type: ignore[arg-type]


@exact
@pytest.mark.parametrize(
    ("taps", "inputs", "outputs", "head_dim", "heads"),
    [(9, 64, 64, 8, 39), (9, 64, 64, 64, 9), (9, 1, 1, 1, 1), (1, 3, 5, 1, 3), (49, 3, 96, 3, 42)],
)
def test_almost_every_kernel_has_this_many_heads_at_least(
    taps: int, inputs: int, outputs: int, head_dim: int, heads: int
) -> None:
    # Equation (6).
    parameters = dimension(taps, inputs, outputs, head_dim)
    assert heads * parameters >= taps * inputs * outputs
    assert (heads - 1) * parameters < taps * inputs * outputs
    conv = nn.Conv1d(inputs, outputs, taps)
    assert narrow_count(conv, head_dim).almost_every == heads


# Heads read off a convolution ---------------------------------------------------------------------

WHOLE = 16
"""What the weights of a drawn head add up to: normalised ones are whole sixteenths."""


@st.composite
def independent_heads(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Heads on independent channels, no two alike: weights (H, N), matrices, and D_h."""
    heads, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    taps = draw(st.integers(2, 4)) if heads > 1 else draw(st.integers(1, 3))
    cuts = st.lists(st.integers(0, WHOLE), min_size=taps - 1, max_size=taps - 1).map(sorted)
    parts = draw(st.lists(cuts, min_size=heads, max_size=heads, unique_by=tuple))
    weights = [[b - a for a, b in pairwise([0, *cut, WHOLE])] for cut in parts]
    size = heads * head_dim

    def basis(more: int) -> Tensor:
        """Independent columns: ones on the diagonal, small numbers beside it, rows turned."""
        count = (size + more) * size
        flat = draw(st.lists(st.integers(-1, 1), min_size=count, max_size=count))
        full = torch.tensor(flat, dtype=torch.float64).reshape(size + more, size).tril(-1)
        full += torch.eye(size + more, size, dtype=torch.float64)
        return full.roll(draw(st.integers(0, size)), 0)

    left, right = (basis(draw(st.integers(0, 2))) for _ in range(2))
    u = left.reshape(-1, heads, head_dim).movedim(1, 0)
    z = right.reshape(-1, heads, head_dim).movedim(1, 0)
    return torch.tensor(weights, dtype=torch.float64), u @ z.mT, head_dim


@exact
@given(layer=independent_heads(), transposed=st.booleans())
def test_heads_on_independent_channels_are_read_off_their_convolution(
    layer: Any, transposed: bool
) -> None:
    # Equation (7): found to within rounding, and so, rounded to the lattice they are on, exactly.
    weights, matrices, head_dim = layer
    kernel = torch.einsum("hn,hio->nio", weights, matrices)
    conv: Any = conv_of(kernel)
    if transposed:
        taps, inputs, outputs = kernel.shape
        conv = nn.ConvTranspose1d(inputs, outputs, taps, bias=False, dtype=torch.float64)
        with torch.no_grad():
            conv.weight.copy_(kernel.flip(0).permute(1, 2, 0))
    found = identify(conv, head_dim)
    pairs = zip(
        (found.weights * WHOLE).round().tolist(),
        (found.matrices / WHOLE).round().flatten(1).tolist(),
        strict=True,
    )
    wanted = zip(weights.tolist(), matrices.flatten(1).tolist(), strict=True)
    assert sorted(pairs) == sorted(wanted)


@exact
def test_heads_of_an_attention_layer_are_read_off_its_convolution() -> None:
    # Soft heads on a circle of seven pixels: what they compute is a convolution of seven taps.
    kernel = torch.zeros(3, 6, 6, dtype=torch.float64)
    for tap in range(3):
        rows = slice(2 * tap, 2 * tap + 2)
        kernel[tap, rows] = integers(6, 6, dtype=torch.float64).tril(-1)[rows] + torch.eye(6)[rows]
    narrow = nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular", bias=False).double()
    with torch.no_grad():
        narrow.weight.copy_(kernel.permute(2, 1, 0))
    layer = attention_from_conv(narrow, head_dim=2, encoding="periodic", sharpness=3.0)
    assert layer.num_heads == 3
    weights = layer.attention_weights((7,))[:, 3]  # of the query in the middle
    value, output = layer.head_matrices()
    effective = torch.einsum("hn,hio->nio", weights, (value @ output).squeeze(1)).detach()
    found = identify(conv_of(effective), 2)
    # Told apart to a millionth: the heads' own weights, of which no two digits are alike.
    assert sorted((found.weights * 10**6).round().tolist()) == sorted(
        (weights * 10**6).round().tolist()
    )


# What the checks reject ---------------------------------------------------------------------------


@control
def test_ranks_summed_before_the_ceiling_claim_too_few() -> None:
    kernel = torch.zeros(2, 2, 2, dtype=torch.float64)
    kernel[0, 0, 0] = kernel[1, 1, 1] = 1
    total = sum(rank(matrix) for matrix in fractions_of(kernel))
    assert math.ceil(total / 2) == 1 < one_hot_heads(fractions_of(kernel), 2) == 2
    conv = conv_of(kernel)
    layer = attention_from_conv(conv, head_dim=2)
    assert layer.num_heads == 2
    # One head of dimension two, of whatever matrix, leaves the other tap: it looks at one alone.
    one = conv_of(torch.stack([kernel[0], torch.zeros(2, 2).double()]))
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(attention_from_conv(one), conv, integers(1, 2, 5, dtype=torch.float64))


@control
@pytest.mark.parametrize("power", [4, 8, 12])
def test_two_nearly_one_hot_heads_come_near_a_kernel_of_three(power: int) -> None:
    # Equation (4) in fractions: the count of (2) needs the bound on the matrices.
    t = Fraction(1, 2**power)
    x, y = (Fraction(1), Fraction(2)), (Fraction(-1), Fraction(1))

    def outer(a: Any, b: Any) -> list[list[Fraction]]:
        return [[p * q for q in b] for p in a]

    small = outer(x, x)
    large = [
        [p + q for p, q in zip(*rows, strict=True)]
        for rows in zip(outer(x, y), outer(y, x), strict=True)
    ]
    assert one_hot_heads([small, large], 1) == 3
    both = tuple(p + t * q for p, q in zip(x, y, strict=True))
    first = [[v / t for v in row] for row in outer(both, both)]
    second = [[-v / t for v in row] for row in outer(x, x)]
    assert rank(first) == rank(second) == 1
    for (a, b), tap in (((2 * t, t), small), ((Fraction(1), Fraction(1)), large)):
        missed = max(
            abs(a * p + b * q - w)
            for rows in zip(first, second, tap, strict=True)
            for p, q, w in zip(*rows, strict=True)
        )
        assert 0 < missed <= 20 * t
    assert max(abs(v) for row in second for v in row) == 4 / t


@control
def test_unfolding_of_the_taps_alone_claims_too_few() -> None:
    kernel = torch.eye(4, dtype=torch.float64).reshape(1, 4, 4)
    found = narrow_count(conv_of(kernel), 1)
    assert unfoldings(fractions_of(kernel))[0] == 1 < found.lower == found.one_hot == 4


@control
@pytest.mark.parametrize("alike", ["same weights", "proportional", "one tap of two heads"])
def test_heads_that_look_alike_cannot_be_told_apart(alike: str) -> None:
    matrices = torch.zeros(2, 2, 2, dtype=torch.float64)
    matrices[0, 0, 0] = matrices[1, 1, 1] = 1
    weights = torch.tensor([[1.0, 2, 1], [1, 2, 1]], dtype=torch.float64)
    if alike == "proportional":
        weights[1] *= 3
    elif alike == "one tap of two heads":
        weights = torch.tensor([[0.0, 1, 0], [0, 1, 0]], dtype=torch.float64)
    kernel = torch.einsum("hn,hio->nio", weights, matrices)
    with refused(ValueError, "head_dim", "look alike", "the convolution of such a layer"):
        identify(conv_of(kernel), 1)
    # Other heads do the same: any basis of the two channels.
    turn = torch.tensor([[1.0, 1], [0, 1]], dtype=torch.float64)
    if alike != "proportional":
        others = [turn[:, h : h + 1] @ torch.linalg.inv(turn)[h : h + 1] for h in range(2)]
        assert torch.equal(torch.einsum("hn,hio->nio", weights, torch.stack(others)), kernel)


@control
def test_kernel_without_such_heads_is_refused() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = nn.Conv2d(4, 4, 3)
    for head_dim in (1, 2, 3):
        with refused(ValueError, "head_dim", "no sum of heads", "the convolution of such a layer"):
            identify(conv, head_dim)
    with refused(ValueError, "conv", "2 groups", "one"):
        identify(nn.Conv2d(4, 4, 3, groups=2), 1)
    with refused(TypeError, "head_dim", "float", "an integer"):
        identify(conv, 1.5)  # type: ignore[arg-type]
    with refused(ValueError, "head_dim", "0", "at least 1"):
        narrow_count(conv, 0)


@control
@pytest.mark.parametrize("wrong", ["scaled", "a head dropped", "heads swapped"])
def test_wrong_narrow_layer_is_rejected(wrong: str) -> None:
    conv = filled(nn.Conv2d(4, 4, 3, padding=1).double())
    with torch.no_grad():
        conv.weight.add_(torch.eye(4).double().reshape(4, 4, 1, 1) * 7)
    x = integers(1, 4, 5, 6, dtype=torch.float64)
    layer = attention_from_conv(conv, head_dim=2)
    assert_equivalent(layer, conv, x)
    with torch.no_grad():
        if wrong == "scaled":
            layer.output.mul_(1 + 2.0**-20)
        elif wrong == "a head dropped":
            layer.output[..., 3] = 0
        else:
            layer.positional_shift.copy_(layer.positional_shift.roll(2, 0))
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(layer, conv, x)


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
