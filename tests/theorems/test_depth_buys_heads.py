"""Layers of N_1, N_2, up to N_L positional heads compute no kernel whose rank is above N_1 N_2 ⋯ N_L, and two layers of K_1 and K_2 heads compute every kernel of K_1 x K_2 taps.

T13, `docs/theorems/depth_buys_heads.md`. Stacks are held against the oracle bit for bit where no
factor had to be rounded, and within their certificates elsewhere; ranks are exact.
"""  # noqa: E501, the claim is one sentence

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify
from constructions.certificate.stacks import multiplied
from constructions.formats import FORMATS
from constructions.heads.stacked import digits, plan, steps_of
from constructions.sources import stencil_of
from tests.support import formal
from tests.support.helpers import filled, integers
from tests.support.ledger import record
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import (
    CONVOLUTIONS,
    TRANSPOSED,
    Case,
    integer_cases,
    real_cases,
    sharpnesses,
)
from theory import depth_buys_heads as theory
from theory.depth_buys_heads import least_heads, rank, signed_binary, unfolding_ranks

SLUG = "depth_buys_heads"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

OF_AXES: dict[type[nn.Module], int] = {
    kind: d for kinds in (CONVOLUTIONS, TRANSPOSED) for d, kind in enumerate(kinds, start=1)
}
"""The number of axes of each layer of torch."""

GRIDS = ("auto", "padded")


def layers_of(conv: Any, depth: int, **options: Any) -> Any:
    """The layers of a convolution, to be looked at one by one."""
    return attention_from_conv(conv, depth=depth, **options)


def stack_of(case: Case, depth: int, boundary: str = "auto", **options: Any) -> Any:
    """The layers, or None where they are refused with the reason and the way out."""
    try:
        return layers_of(case.conv, depth=depth, boundary=boundary, **options)
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"depth is {depth}; accepted: ")
    assert ", since " in message
    return None


def selects(stack: Any, conv: Any) -> bool:
    """Whether every way through the layers has just its tap's matrix: no factor was rounded."""
    parts = [
        layer.native.taps_of(layer.weight.detach(), layer.groups).double()
        if layer.native is not None
        else torch.matmul(*layer.head_matrices()).detach().double()
        for layer in stack
    ]
    ways = multiplied([part.abs() for part in parts]).abs().sum(dim=0)
    return torch.equal(ways, stencil_of(conv).matrices.abs().double().sum(dim=0))


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Two layers ---------------------------------------------------------------------------------------


@exact
@given(
    case=integer_cases(torch.float64, [*CONVOLUTIONS[1:], *TRANSPOSED[1:]]),
    boundary=st.sampled_from(GRIDS),
)
def test_layers_of_as_many_axes_are_the_convolution_bit_for_bit(case: Case, boundary: str) -> None:
    # Equations (5) and (7): every option of torch, transposed convolutions too.
    axes = OF_AXES[type(case.conv)]
    assume(case.output_size is None)  # a stack is called with an image alone
    stack = layers_of(case.conv, depth=axes, boundary=boundary)
    assert [layer.num_heads for layer in stack] == list(case.conv.kernel_size)
    truth = convolve_module(case.conv, case.x)
    if selects(stack, case.conv):
        assert not exact_error(numbers(case.run(stack)), truth).any()
    if case.x.numel():
        assert certify(stack, case.conv, case.x).holds


@exact
@given(case=integer_cases(torch.float64, [nn.Conv3d, nn.ConvTranspose3d]))
def test_two_layers_of_a_volume_are_the_first_axis_and_the_rest(case: Case) -> None:
    assume(case.output_size is None)
    stack = layers_of(case.conv, depth=2)
    first, *rest = case.conv.kernel_size
    assert [layer.num_heads for layer in stack] == [first, math.prod(rest)]
    if selects(stack, case.conv):
        truth = convolve_module(case.conv, case.x)
        assert not exact_error(numbers(case.run(stack)), truth).any()


entries = st.integers(-2, 2)


@exact
@given(
    shape=st.tuples(*(st.integers(1, 3) for _ in range(4))),
    width=st.integers(1, 3),
    data=st.data(),
)
def test_least_width_is_the_rank_of_the_matricisation(
    shape: tuple[int, int, int, int], width: int, data: st.DataObject
) -> None:
    # Equation (6), both ways: kernels of any rank; no width gives more than its rank.
    inputs, outputs, rows, columns = shape
    count = rows * inputs * width
    u = data.draw(st.lists(entries, min_size=count, max_size=count), label="U")
    count = width * columns * outputs
    z = data.draw(st.lists(entries, min_size=count, max_size=count), label="Z")
    left = torch.tensor(u, dtype=torch.float64).reshape(rows * inputs, width)
    right = torch.tensor(z, dtype=torch.float64).reshape(width, columns * outputs)
    kernel = (left @ right).reshape(rows, inputs, columns, outputs)
    conv = nn.Conv2d(inputs, outputs, (rows, columns), bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(kernel.permute(3, 1, 0, 2))
    flat = kernel.permute(1, 0, 2, 3).flatten().tolist()
    (wanted,) = unfolding_ranks(list(map(Fraction, flat)), (rows, columns), inputs)
    assert wanted <= width
    stack = layers_of(conv, depth=2)
    assert stack[0].out_channels == max(wanted, 1)
    assert certify(stack, conv, integers(1, inputs, rows + 1, columns, dtype=torch.float64)).holds


# More layers --------------------------------------------------------------------------------------


@exact
@given(low=st.integers(0, 20), high=st.integers(0, 20), layers=st.integers(1, 4))
def test_every_tap_is_a_sum_of_steps_that_agree_in_sign(low: int, high: int, layers: int) -> None:
    # Equation (8), for any ends of the kernel.
    found = digits(low, high, layers)
    assert len(found) == layers
    assert found[0].unit == 1
    for tap in range(-low, high + 1):
        steps = steps_of(tap, found)
        assert sum(s * digit.unit for s, digit in zip(steps, found, strict=True)) == tap
        assert all(s * tap >= 0 for s in steps)
        assert all(-d.low <= s <= d.high for s, d in zip(steps, found, strict=True))
    if not low:  # no layer looks beyond the kernel, so none needs more padding
        assert sum(digit.high * digit.unit for digit in found) == high
    assert sum(digit.taps for digit in found) <= low + high + layers


@exact
@given(
    case=integer_cases(torch.float64, [nn.Conv1d, nn.Conv2d]),
    more=st.integers(1, 2),
    boundary=st.sampled_from(GRIDS),
)
def test_layers_of_digits_are_the_convolution_bit_for_bit(
    case: Case, more: int, boundary: str
) -> None:
    # Equation (9), and the padded grid: refused with a reason, or exact.
    depth = OF_AXES[type(case.conv)] + more
    stack = stack_of(case, depth, boundary)
    if stack is None:
        assert boundary != "padded"
        return
    assert len(stack) == depth
    if selects(stack, case.conv):
        truth = convolve_module(case.conv, case.x)
        assert not exact_error(numbers(case.run(stack)), truth).any()
    if case.x.numel():
        assert certify(stack, case.conv, case.x).holds


@exact
@pytest.mark.parametrize("mode", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("sides", [(7, 15), (15, 7)], ids=str)
def test_image_smaller_than_the_kernel_has_its_own_grid(mode: Any, sides: tuple[int, int]) -> None:
    conv = filled(
        nn.Conv2d(1, 2, sides, padding=(sides[0] // 2, sides[1] // 2), padding_mode=mode).double()
    )
    shape = (1, 1, 7, 8) if mode == "circular" else (1, 1, 2, 3)
    x = integers(*shape, dtype=torch.float64)
    stack = layers_of(conv, depth=5)
    assert sum(layer.num_heads for layer in stack) == 6 + 9
    assert certify(stack, conv, x).holds
    assert [layer(x.expand(1, layer.in_channels, *shape[2:])).shape[2:] for layer in stack] == [
        shape[2:] for _ in stack
    ]


@exact
@pytest.mark.parametrize(
    ("side", "depth", "boundary", "heads"),
    [
        (3, 2, "auto", 6),
        (7, 4, "auto", 12),
        (15, 6, "auto", 18),
        (9, 4, "padded", 12),
        (27, 6, "padded", 18),
    ],
)
def test_heads_grow_like_the_logarithm_of_the_kernel(
    side: int, depth: int, boundary: str, heads: int
) -> None:
    # After (11): on the padded grid no number of layers does with fewer.
    conv = nn.Conv2d(1, 1, side, padding=side // 2)
    found = plan(stencil_of(conv), depth, boundary).heads
    assert found == (3,) * depth
    assert sum(found) == heads
    assert least_heads(side**2) <= heads
    if boundary == "padded":
        assert least_heads(side**2) == heads


# The bound from below -----------------------------------------------------------------------------


@st.composite
def positional_layers(draw: st.DrawFn, keys: int) -> list[list[tuple[Any, Any, Any]]]:
    """Layers of heads of nonnegative weights over all keys, any widths: (A, V, residual P)."""
    sizes = [draw(st.integers(1, 2)) for _ in range(draw(st.integers(2, 4)))]
    layers = []
    for inputs, outputs in pairwise(sizes):
        heads = []
        for _ in range(draw(st.integers(1, 2))):
            count = keys * keys
            weights = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
            matrix = draw(st.lists(entries, min_size=inputs * outputs, max_size=inputs * outputs))
            heads.append(
                (
                    torch.tensor(weights, dtype=torch.float64).reshape(keys, keys),
                    torch.tensor(matrix, dtype=torch.float64).reshape(inputs, outputs),
                    inputs,
                )
            )
        layers.append(heads)
    return layers


def computed(layers: Sequence[Any], keys: int, residual: bool) -> Tensor:
    """The taps' matrix of the first query: keys by D_in D_out, of integers."""
    inputs = layers[0][0][1].shape[0]
    x = torch.eye(keys * inputs, dtype=torch.float64).reshape(-1, keys, inputs)
    for heads in layers:
        y = sum(weights @ x @ matrix for weights, matrix, _ in heads)
        if residual:
            width = heads[0][1].shape
            y = y + x @ torch.eye(*width, dtype=torch.float64)
        x = y
    return x[:, 0].reshape(keys, -1)


@bounded
@given(layers=positional_layers(4), residual=st.booleans())
def test_rank_is_at_most_the_product_of_the_heads(layers: Any, residual: bool) -> None:
    # Equations (3) and (4), weights of any kind at every query.
    taps = computed(layers, 4, residual).tolist()
    found = rank([list(map(Fraction, row)) for row in taps])
    bound = math.prod(len(heads) + residual for heads in layers)
    assert found <= bound
    record(ratio=found / bound, dtype="rational")


@exact
def test_bound_with_residuals_is_attained() -> None:
    # Two layers of one head: X + A X V twice is four heads, of four independent matrices.
    keys, unit = 4, torch.eye(2, dtype=torch.float64)
    shift = torch.diag(torch.ones(keys - 1, dtype=torch.float64), 1)
    first = [(shift, unit.roll(1, 1) * torch.tensor([[1.0], [0]]).double(), 2)]
    second = [(shift @ shift, unit.roll(1, 1) * torch.tensor([[0.0], [1]]).double(), 2)]
    taps = computed([first, second], keys, residual=True).tolist()
    assert rank([list(map(Fraction, row)) for row in taps]) == 4 == (1 + 1) * (1 + 1)


@exact
@given(rank_of_kernel=st.integers(1, 3000), heads=st.lists(st.integers(1, 9), max_size=8))
def test_no_layers_have_fewer_heads_than_the_least(rank_of_kernel: int, heads: list[int]) -> None:
    # Equation (11).
    if math.prod(heads) >= rank_of_kernel:
        assert sum(heads) >= least_heads(rank_of_kernel) or rank_of_kernel == 1
        assert 3 ** sum(heads) >= rank_of_kernel**3
        if len(heads) == 2:
            assert sum(heads) ** 2 >= 4 * rank_of_kernel


# Certificates -------------------------------------------------------------------------------------


@bounded
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@given(data=st.data())
def test_error_of_a_stack_is_within_its_certificate(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    # Equations (12) to (14), saturated or not.
    case = data.draw(real_cases(dtype, [nn.Conv1d, nn.Conv2d])).to(device)
    axes = OF_AXES[type(case.conv)]
    depth = data.draw(st.integers(max(axes, 2), axes + 1), label="depth")
    sharpness = data.draw(st.none() | sharpnesses(), label="sharpness")
    boundary = data.draw(st.sampled_from(GRIDS), label="boundary")
    stack = stack_of(case, depth, boundary, sharpness=sharpness)
    if stack is None:
        return
    certificate = certify(stack, case.conv, case.x)
    record(ratio=certificate.ratio, device=device, dtype=dtype)
    assert certificate.holds
    assert bool((certificate.leak == 0).all()) or sharpness is not None


@bounded
def test_empty_batch_and_single_image_have_their_certificates() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    stack = layers_of(conv, depth=2)
    for x in (torch.zeros(0, 2, 4, 5), integers(2, 4, 5)):
        certificate = certify(stack, conv, x)
        assert certificate.holds
        assert certificate.error.shape == conv(x).shape


@bounded
def test_low_rank_that_is_cut_off_is_charged_for() -> None:
    # A separable kernel and a little more than float32 holds of it: one channel between the layers.
    conv = nn.Conv2d(1, 1, 3, bias=False)
    third = torch.tensor([1.0, 1 / 3, 1 / 7])
    with torch.no_grad():
        conv.weight.copy_((third[:, None] * third).reshape(1, 1, 3, 3))
    stack = layers_of(conv, depth=2)
    assert stack[0].out_channels == 1
    certificate = certify(stack, conv, integers(1, 1, 6, 6))
    assert certificate.holds
    assert float(certificate.error.max()) > 0


# What the checks reject ---------------------------------------------------------------------------


def line_of(mode: Any = "zeros") -> tuple[Any, Tensor]:
    """The tap 2 alone of a kernel of nine, and a line of pixels."""
    conv = nn.Conv1d(1, 1, 9, padding=4, padding_mode=mode, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 6] = 1
    return conv, torch.arange(1.0, 7.0, dtype=torch.float64).reshape(1, 1, 6)


def two_steps(first: int, second: int, mode: Any) -> nn.Sequential:
    """A step of the layer next to the image, and then one of the last, on the image's own grid."""
    layers = []
    for step in (first, second):
        reach = abs(step)
        conv = nn.Conv1d(1, 1, 2 * reach + 1, padding=reach, padding_mode=mode, bias=False)
        with torch.no_grad():
            conv.weight.zero_()[0, 0, reach + step] = 1
        layers.append(attention_from_conv(conv.double()))
    return nn.Sequential(*layers)


@control
@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_balanced_digits_of_mixed_sign_leave_the_image(mode: Any) -> None:
    conv, x = line_of(mode)
    assert theory.balanced_ternary(2, 2) == [-1, 3]
    mixed, agreed = two_steps(-1, 3, mode), two_steps(0, 2, mode)
    assert signed_binary(2, 2) == [0, 2]
    inside = slice(0, 3)
    assert torch.equal(agreed(x), conv(x))
    assert torch.equal(mixed(x)[..., inside], conv(x)[..., inside])
    assert not torch.equal(mixed(x), conv(x))
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(mixed, conv, x)


@control
def test_reflect_padding_of_two_steps_is_not_that_of_their_sum() -> None:
    conv, x = line_of("reflect")
    assert not torch.equal(two_steps(1, 1, "reflect")(x), conv(x))
    with pytest.raises(ValueError, match="reflect padding of two steps"):
        layers_of(conv, depth=2)
    assert torch.equal(layers_of(conv, depth=2, boundary="padded")(x), conv(x))


@control
def test_bias_in_the_first_layer_misses_the_zero_border() -> None:
    conv: Any = filled(nn.Conv2d(1, 1, 3, padding=1).double())
    with torch.no_grad():
        conv.weight.fill_(1)
        conv.bias.fill_(6)
    x = integers(1, 1, 4, 5, dtype=torch.float64)
    wrong = layers_of(conv, depth=2)
    with torch.no_grad():
        wrong[1].bias.zero_()
        # What the second layer makes of it inside the image is the bias.
        wrong[0].bias = nn.Parameter(torch.tensor([6 / 3], dtype=torch.float64))
    inside = (..., slice(None), slice(1, -1))
    assert torch.equal(wrong(x)[inside], conv(x)[inside])
    assert not torch.equal(wrong(x), conv(x))
    assert not certify(wrong, conv, x).holds


@control
def test_one_channel_too_few_between_the_layers_is_not_enough() -> None:
    conv = filled(nn.Conv2d(1, 1, 3, bias=False).double())
    kernel = [Fraction(v) for v in numbers(conv.weight).ravel().tolist()]
    (wanted,) = unfolding_ranks(kernel, (3, 3))
    assert wanted > 1
    wrong = layers_of(conv, depth=2)
    with torch.no_grad():
        wrong[1].weight[:, -1] = 0
    assert not certify(wrong, conv, integers(1, 1, 5, 6, dtype=torch.float64)).holds


@control
def test_bound_without_residuals_is_wrong_for_layers_that_have_them() -> None:
    shift = torch.diag(torch.ones(3, dtype=torch.float64), 1)
    layers = [[(shift, torch.eye(1, dtype=torch.float64), 1)] for _ in range(2)]
    taps = computed(layers, 4, residual=True)
    assert taps.flatten().tolist() == [1, 2, 1, 0]  # of rank 1, as one channel has it
    wide = torch.eye(2, dtype=torch.float64)
    one = [(shift, wide * torch.tensor([[1.0], [0]]).double(), 2)]
    found = computed([one, one], 4, residual=True).tolist()
    assert rank([list(map(Fraction, row)) for row in found]) > 1 * 1


@control
@pytest.mark.parametrize("wrong", ["scaled", "swapped", "other heads"])
def test_wrong_stack_is_rejected(wrong: str) -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        nn.init.normal_(conv.weight)
        x = torch.randn(1, 2, 6, 5)
    stack = layers_of(conv, depth=2)
    assert_equivalent(stack, conv, x)
    if wrong == "scaled":
        with torch.no_grad():
            stack[0].weight.mul_(1.001)
        assert not certify(stack, conv, x).holds
    elif wrong == "swapped":
        other = nn.Sequential(*layers_of(nn.Conv2d(2, 2, 3, padding=1), depth=2))
        stack = nn.Sequential(stack[0], other[1])
    else:
        with torch.no_grad():
            stack[1].positional_shift.copy_(stack[1].positional_shift.flip(0))
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(stack, conv, x)


@control
def test_stack_of_another_convolution_has_no_certificate() -> None:
    conv, other = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3)
    with pytest.raises(ValueError, match=r"accepted: what attention_from_conv\(conv, depth=2\)"):
        certify(layers_of(other, depth=2), conv, integers(1, 1, 4, 4))


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
