"""Every option of torch's convolutions, by name: what it means to attention, and what is refused.

Evidence for T6. What an option means is an equality between two attention layers, or between one
layer on two images, bit for bit on integers.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import attention_from_conv
from tests.pages.options import (
    KERNEL,
    STRIDE,
    agrees,
    around,
    attended,
    conv_of,
    cut,
    image_of,
    layers,
    truth_of,
    ways,
)
from tests.support.dictionary import POOLINGS, Pooling, Table
from tests.support.helpers import filled, integers
from tests.support.layout import page_of
from tests.support.ledger import ROOT, record
from tests.support.strategies import CONVOLUTIONS, LAYERS, PADDING_MODES, TRANSPOSED, Case
from theory.hyperparameters_are_lattices_and_offsets import transposed_outputs

SLUG = "hyperparameters_are_lattices_and_offsets"
exact = pytest.mark.evidence(SLUG, "exact")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
every_mode = pytest.mark.parametrize("mode", PADDING_MODES)
FORMAT = torch.float64
TABLE, OF_POOLING = Table.read(page_of(SLUG, ROOT).read_text(encoding="utf-8"))


# By name ------------------------------------------------------------------------------------------

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "kernel_size": [
        {"kernel": (3, 3, 3), "padding": 1},
        {"kernel": (4, 2, 2), "padding": 1},
        {"kernel": (1, 4, 2)},
        {"kernel": (4, 1, 2), "transposed": True},
    ],
    "stride": [
        {"stride": STRIDE, "padding": 1},
        {"stride": 3},
        {"stride": STRIDE, "transposed": True},
    ],
    "dilation": [
        {"dilation": (3, 1, 2), "padding": (2, 1, 1)},
        {"dilation": (2, 3, 1), "transposed": True},
    ],
    "groups": [
        {"sizes": (2, 6), "groups": 2},
        {"sizes": (2, 6), "groups": 2, "transposed": True},
    ],
    "bias": [
        {"bias": True, "padding": 2},
        {"bias": False},
        {"bias": True, "kernel": (1, 2, 1), "stride": 3, "transposed": True},
    ],
    "padding": [
        {"padding": 2},
        {"padding": (2, 0, 1)},
        {"padding": "same", "kernel": (4, 3, 2)},
        {"padding": "same", "kernel": (2, 2, 2), "dilation": (3, 2, 1)},
        {"padding": "valid"},
        {"padding": (1, 2, 1), "stride": 2, "transposed": True},
    ],
    "padding_mode": [{"padding": (2, 3, 1), "padding_mode": mode} for mode in PADDING_MODES],
    "output_padding": [
        {"stride": 2, "output_padding": (1, 0, 1), "transposed": True},
        {"dilation": 3, "output_padding": (2, 1, 0), "padding": 1, "transposed": True},
    ],
}


@exact
@every_rank
@pytest.mark.parametrize("name", OPTIONS)
def test_option_is_computed_bit_for_bit_in_every_way(name: str, rank: int) -> None:
    for options in OPTIONS[name]:
        case = Case(conv_of(rank, **options), image_of(rank))
        truth = truth_of(case)
        for layer in layers(case.conv):
            assert agrees(layer, case, truth), (options, layer)
            record(dtype=FORMAT)


@exact
def test_every_option_that_the_constructors_take_is_tested_by_name() -> None:
    no_option = {"self", "in_channels", "out_channels", "device", "dtype"}
    taken = {name for kind in LAYERS for name in inspect.signature(kind.__init__).parameters}
    assert set(OPTIONS) == taken - no_option


# What an option means -----------------------------------------------------------------------------


@exact
@every_rank
def test_stride_leaves_out_queries(rank: int) -> None:
    # Equation (4).
    x = image_of(rank)
    strided = attended(conv_of(rank, stride=STRIDE, padding=1), x)
    assert torch.equal(strided, attended(conv_of(rank, padding=1), x)[every(STRIDE[:rank])])


def every(steps: Sequence[int]) -> tuple[Any, ...]:
    """The index of a coarser lattice."""
    return (..., *(slice(None, None, step) for step in steps))


@exact
@every_rank
def test_dilation_is_a_larger_kernel_with_zeros(rank: int) -> None:
    dilation, x = (3, 2, 2), image_of(rank)
    conv = conv_of(rank, dilation=dilation, padding=2)
    reach = [r * (k - 1) for r, k in zip(dilation, KERNEL, strict=True)]
    larger = conv_of(rank, kernel=[far + 1 for far in reach], padding=2)
    with torch.no_grad():
        larger.weight.zero_()[every(dilation[:rank])] = conv.weight
    assert torch.equal(attended(conv, x), attended(larger, x))


@exact
@every_rank
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_groups_are_layers_side_by_side(rank: int, transposed: bool) -> None:
    # Equation (9).
    conv = conv_of(rank, sizes=(4, 6), groups=2, transposed=transposed)
    alone = [conv_of(rank, transposed=transposed) for _ in range(2)]
    for group, part in enumerate(alone):
        for own, shared in zip(part.parameters(), conv.parameters(), strict=True):
            own.data = shared.detach().chunk(2)[group]
    x = image_of(rank, 4)
    parts = [attended(part, half) for part, half in zip(alone, x.chunk(2, 1), strict=True)]
    assert torch.equal(attended(conv, x), torch.cat(parts, 1))
    assert attention_from_conv(conv).num_heads == math.prod(KERNEL[:rank])


@exact
@every_rank
def test_bias_is_added_at_every_query_and_is_what_zeros_become(rank: int) -> None:
    with_bias, without = conv_of(rank, padding=1), conv_of(rank, padding=1, bias=False)
    assert with_bias.bias is not None
    bias = with_bias.bias.detach().reshape(-1, *[1] * rank)
    x = image_of(rank)
    assert torch.equal(attended(with_bias, x), attended(without, x) + bias)
    assert (attended(with_bias, torch.zeros_like(x)) == bias).all()


@exact
@every_rank
@every_mode
def test_padding_is_no_padding_of_the_padded_image(rank: int, mode: str) -> None:
    # Equation (2).
    x, sides = image_of(rank), (2, 0, 1)[:rank]
    conv = conv_of(rank, padding=sides, padding_mode=mode)
    assert torch.equal(attended(conv, x), attended(conv_of(rank), around(x, sides, sides, mode)))


@exact
@every_rank
@every_mode
def test_same_puts_the_odd_pixel_at_the_end(rank: int, mode: str) -> None:
    # Equation (7), for reaches 3, 3 and 2.
    options: dict[str, Any] = {"kernel": (4, 2, 3), "dilation": (1, 3, 1)}
    x, low, high = image_of(rank), (1, 1, 1)[:rank], (2, 2, 1)[:rank]
    y = attended(conv_of(rank, padding="same", padding_mode=mode, **options), x)
    unpadded = conv_of(rank, **options)
    assert y.shape[2:] == x.shape[2:]
    assert torch.equal(y, attended(unpadded, around(x, low, high, mode)))
    assert not torch.equal(y, attended(unpadded, around(x, high, low, mode)))


@exact
@every_rank
def test_valid_is_no_padding(rank: int) -> None:
    x = image_of(rank)
    assert torch.equal(attended(conv_of(rank, padding="valid"), x), attended(conv_of(rank), x))


@exact
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_axis_of_one_tap_is_a_stack_of_slices(rank: int, transposed: bool) -> None:
    # One axis at a time: a dimension more is the same convolution on every slice.
    options: dict[str, Any] = {"kernel": (2,) * (rank - 1), "stride": 2, "padding": 1}
    slices = conv_of(rank - 1, transposed=transposed, dilation=2, **options)
    last = {"kernel": 1, "stride": 1, "padding": 0, "dilation": 1}
    whole = conv_of(
        rank,
        transposed=transposed,
        kernel=(*slices.kernel_size, last["kernel"]),
        stride=(*slices.stride, last["stride"]),
        padding=(*map(int, slices.padding), last["padding"]),
        dilation=(*slices.dilation, last["dilation"]),
    )
    whole.weight.data = slices.weight.detach().unsqueeze(-1)
    x = image_of(rank)
    stack = torch.stack([attended(slices, part) for part in x.unbind(-1)], -1)
    assert torch.equal(attended(whole, x), stack)


@exact
@every_rank
def test_transposed_is_a_convolution_of_the_stuffed_image_with_the_kernel_reversed(
    rank: int,
) -> None:
    # Equations (10) to (12).
    x, crop, extra = image_of(rank), (1, 1, 0)[:rank], (1, 2, 1)[:rank]
    conv = conv_of(rank, stride=STRIDE, padding=crop, output_padding=extra, transposed=True)
    plain = conv_of(rank)
    with torch.no_grad():
        plain.weight.copy_(conv.weight.transpose(0, 1).flip(tuple(range(2, 2 + rank))))
    sizes = [s * (n - 1) + 1 for s, n in zip(conv.stride, x.shape[2:], strict=True)]
    stuffed = x.new_zeros(1, 2, *sizes)
    stuffed[every(conv.stride)] = x
    low = [k - 1 - p for k, p in zip(conv.kernel_size, crop, strict=True)]
    high = [far + e for far, e in zip(low, extra, strict=True)]
    assert torch.equal(attended(conv, x), attended(plain, around(stuffed, low, high)))


@exact
@every_rank
def test_output_padding_appends_outputs_and_changes_no_other(rank: int) -> None:
    # Equation (12).
    x, extra = image_of(rank), (1, 2, 1)[:rank]
    options: dict[str, Any] = {"stride": STRIDE, "padding": 1, "transposed": True}
    shorter, longer = (attended(conv_of(rank, output_padding=e, **options), x) for e in (0, extra))
    assert longer.shape[2:] == tuple(n + e for n, e in zip(shorter.shape[2:], extra, strict=True))
    assert torch.equal(cut(longer, shorter.shape[2:]), shorter)


@exact
@every_rank
def test_output_size_is_output_padding_chosen_at_the_call(rank: int) -> None:
    # Equation (14).
    x = image_of(rank)
    options: dict[str, Any] = {"stride": STRIDE, "padding": 1, "transposed": True}
    sized = conv_of(rank, **options)
    for extra in itertools.product(*map(range, STRIDE[:rank])):
        wanted = attended(conv_of(rank, output_padding=extra, **options), x)
        for size in (wanted.shape[2:], wanted.shape):
            assert torch.equal(attended(sized, x, output_size=list(size)), wanted)
            record(dtype=FORMAT)


@exact
@pytest.mark.parametrize(("stride", "refused", "size"), [(2, 7, 14), (2, -1, 14), (1, -1, 8)])
def test_output_size_takes_the_place_of_an_output_padding_that_torch_would_refuse(
    stride: int, refused: int, size: int
) -> None:
    conv = conv_of(1, stride=stride, output_padding=refused, transposed=True)
    case = Case(conv, image_of(1), [size])
    truth = truth_of(case)
    assert agrees(conv, case, truth)
    assert all(agrees(layer, case, truth) for layer in layers(conv))


@exact
@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_negative_padding_of_these_modes_crops_as_torch_crops(mode: str) -> None:
    case = Case(conv_of(1, padding=-1, padding_mode=mode), image_of(1))
    truth = truth_of(Case(conv_of(1), case.x[..., 1:-1]))
    assert agrees(case.conv, case, truth)
    assert all(agrees(layer, case, truth) for layer in layers(case.conv))


# What torch refuses -------------------------------------------------------------------------------

NAMES = re.compile("kernel_size|stride|dilation|padding|output_size|divisor_override")


@st.composite
def calls(draw: st.DrawFn) -> Case:
    """Calls of torch's convolutions, legal or not: all options at once, each in its own range."""
    rank = draw(st.sampled_from([1, 1, 2, 3]))
    transposed = draw(st.booleans())

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    sizes, kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 3), each(1, 3)
    padding: Any = tuple(max(p, -1) for p in each(-2, 4))
    options: dict[str, Any] = {"kernel_size": kernel, "dilation": dilation}
    output_size = None
    if transposed:
        options |= {"stride": stride, "padding": padding, "output_padding": each(-1, 3)}
        if draw(st.booleans()):
            axes = zip(sizes, kernel, stride, dilation, padding, each(-1, 3), strict=True)
            output_size = [max(0, transposed_outputs(*axis)) for axis in axes]
    else:
        mode = draw(st.sampled_from(PADDING_MODES))
        if mode != "zeros":
            padding = tuple(abs(p) for p in padding)  # or torch crops, which it does not document
        padding = draw(st.sampled_from([padding, padding, "same", "valid"]))
        stride = (1,) * rank if padding == "same" else stride
        options |= {"stride": stride, "padding": padding, "padding_mode": mode}
    kind: Any = (TRANSPOSED if transposed else CONVOLUTIONS)[rank - 1]
    with torch.random.fork_rng(devices=[]):
        conv = filled(kind(1, 2, **options, dtype=FORMAT))
    return Case(conv, integers(1, 1, *sizes, dtype=FORMAT), output_size)


@exact
@given(case=calls())
def test_layer_accepts_what_torch_accepts_and_refuses_the_rest(case: Case) -> None:
    is_accepted = all(axis.is_accepted for axis in TABLE.axes(case))
    try:
        with torch.no_grad():
            case.run(case.conv)
    except (RuntimeError, ValueError):
        assert not is_accepted
        for way in ways(case.conv):
            with pytest.raises(ValueError, match=NAMES):
                case.run(attention_from_conv(case.conv, **way))
    else:
        assert is_accepted
        truth = truth_of(case)
        for layer in layers(case.conv):
            assert agrees(layer, case, truth), layer
    record(dtype=FORMAT)


@st.composite
def calls_of_pooling(draw: st.DrawFn) -> tuple[Pooling, list[int]]:
    """Calls of torch's average pooling, legal or not."""
    rank = draw(st.sampled_from([1, 2, 3]))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    options: dict[str, Any] = {"kernel_size": each(1, 4), "stride": each(1, 3)}
    options |= {"padding": each(-1, 2), "ceil_mode": draw(st.booleans())}
    if rank > 1:
        options["divisor_override"] = draw(st.sampled_from([None, 3, 0]))
    kind: Any = POOLINGS[rank - 1]
    return kind(**options), list(each(1, 5))


@exact
@given(call=calls_of_pooling())
def test_pooling_is_accepted_where_torch_accepts_it_and_refused_elsewhere(
    call: tuple[Pooling, list[int]],
) -> None:
    pool, sizes = call
    x = torch.ones(1, 2, *sizes)
    is_accepted = all(axis.is_accepted for axis in OF_POOLING.axes_of_pooling(pool, sizes))
    try:
        wanted = pool(x)
    except RuntimeError:
        assert not is_accepted
        with pytest.raises(ValueError, match=NAMES):
            attention_from_conv(pool)(x)
    else:
        assert is_accepted
        assert attention_from_conv(pool)(x).shape == wanted.shape
    record()


Refusal = tuple[Callable[[], nn.Module], list[int] | None, tuple[str, ...]]


def of(kind: Any, *told: str, size: int | None = None, kernel: int = 3, **options: Any) -> Refusal:
    """A convolution on an axis of 5 pixels, what it is called with, and what must be told."""
    return lambda: kind(1, 1, kernel, **options), None if size is None else [size], told


REFUSED: dict[str, Refusal] = {
    "kernel larger than the image": of(nn.Conv1d, "kernel_size (8,)", "(7,)", kernel=8, padding=1),
    "dilated kernel larger than it": of(nn.Conv1d, "kernel_size (3,)", "dilation (3,)", dilation=3),
    "everything cropped": of(nn.ConvTranspose1d, "padding (4,)", "(5,)", padding=4),
    "reflect beyond the image": of(
        nn.Conv1d, "reflect padding of 5", "at most 4", padding=5, padding_mode="reflect"
    ),
    "circular beyond the image": of(
        nn.Conv1d, "circular padding of 6", "at most 5", padding=6, padding_mode="circular"
    ),
    "negative padding": of(nn.Conv1d, "padding (-1,)", padding=-1),
    "negative crop": of(nn.ConvTranspose1d, "padding (-1,)", padding=-1),
    "fraction of a pixel": of(nn.Conv1d, "padding (1.5,)", padding=1.5),
    "named crop": of(nn.ConvTranspose1d, "padding (", padding="same"),
    "no stride": of(nn.Conv1d, "stride (0,)", stride=0),
    "negative stride": of(nn.Conv1d, "stride (-1,)", stride=-1),
    "no stride, transposed": of(nn.ConvTranspose1d, "stride (0,)", stride=0),
    "no dilation": of(nn.Conv1d, "dilation (0,)", dilation=0),
    "no dilation, transposed": of(nn.ConvTranspose1d, "dilation (0,)", dilation=0),
    "output padding of a stride": of(
        nn.ConvTranspose1d, "output_padding (2,)", stride=2, output_padding=2
    ),
    "negative output padding": of(
        nn.ConvTranspose1d, "output_padding (-1,)", stride=2, output_padding=-1
    ),
    "output size too small": of(
        nn.ConvTranspose1d, "output_size (10,)", "(11,) to (12,)", stride=2, size=10
    ),
    "output size too large": of(
        nn.ConvTranspose1d, "output_size (13,)", "(11,) to (12,)", stride=2, size=13
    ),
}
POOLINGS_REFUSED: dict[str, tuple[Callable[[], Pooling], str]] = {
    "window larger than the image": (lambda: nn.AvgPool1d(8), "kernel_size (8,)"),
    "window larger than the volume, padded or not": (
        lambda: nn.AvgPool3d((4, 3, 3), padding=1),
        "kernel_size (4, 3, 3)",
    ),
    "no window": (lambda: nn.AvgPool1d(0, 1), "kernel_size (0,)"),
    "no stride": (lambda: nn.AvgPool2d(2, 0), "stride (0, 0)"),
    "negative stride": (lambda: nn.AvgPool2d(2, -1), "stride (-1, -1)"),
    "negative padding": (lambda: nn.AvgPool1d(2, padding=-1), "padding (-1,)"),
    "padding of more than half a window": (lambda: nn.AvgPool1d(3, padding=2), "padding (2,)"),
    "divisor 0": (lambda: nn.AvgPool2d(2, divisor_override=0), "divisor_override 0"),
}


@exact
@pytest.mark.parametrize(("make", "output_size", "told"), REFUSED.values(), ids=REFUSED)
def test_what_torch_refuses_is_refused_and_its_argument_named(
    make: Callable[[], Any], output_size: list[int] | None, told: tuple[str, ...]
) -> None:
    case = Case(make(), torch.ones(1, 1, 5), output_size)
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        case.run(case.conv)
    for boundary in ("auto", "padded"):
        with pytest.raises((TypeError, ValueError)) as caught:
            case.run(attention_from_conv(case.conv, boundary=boundary))
        for phrase in told:
            assert phrase in str(caught.value)


@exact
@pytest.mark.parametrize(("make", "told"), POOLINGS_REFUSED.values(), ids=POOLINGS_REFUSED)
def test_what_torch_refuses_to_pool_is_refused_and_its_argument_named(
    make: Callable[[], Pooling], told: str
) -> None:
    pool = make()
    rank = POOLINGS.index(type(pool)) + 1
    x = torch.ones(1, 1, *[3] * rank)
    with pytest.raises(RuntimeError):
        pool(x)
    with pytest.raises(ValueError, match=re.escape(told)):
        attention_from_conv(pool)(x)
