"""Tables of real layers, set by hand: timm's Swin and BEiT attention and transformers' T5Attention.

T14, `docs/theorems/tables_select_the_shifts_they_tell_apart.md`. The modules are unmodified; their
parameters are those of the construction. Each head's values are all channels of the image, so that
the width of a head is D_in. Swin and T5 have no sink: zeros beyond the edge are tokens of their
own. BEiT has one, its class token.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import assert_equivalent, attention_from_conv, certify
from constructions.encodings.tables import BiasTable, T5Buckets
from tests.pages.options import agrees, truth_of
from tests.support.helpers import integers
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.support.oracle import exact_error, numbers
from tests.support.strategies import Case
from theory.tables_select_the_shifts_they_tell_apart import t5_bucket

SLUG = "tables_select_the_shifts_they_tell_apart"
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

SATURATED = 256.0  # also half of it, where the sink stands, is beyond the 103.98 of float32 (T8)


# The construction, on the parameters of each module -----------------------------------------------


def taps(conv: Any) -> list[tuple[tuple[int, ...], Tensor]]:
    """Offset, key minus query, and matrix (out, in) of every tap."""
    found = []
    for tap in np.ndindex(*conv.kernel_size):
        offset = tuple(
            int(j) * r - p for j, r, p in zip(tap, conv.dilation, conv.padding, strict=True)
        )
        found.append((offset, conv.weight.detach()[(..., *tap)]))
    return found


def number_of(offset: Sequence[int], window: Sequence[int]) -> int | None:
    """Equation (19): the row of a displacement in the table of a window; None for none."""
    (i, j), (rows, columns) = offset, window
    if abs(i) >= rows or abs(j) >= columns:
        return None
    return (rows - 1 - i) * (2 * columns - 1) + (columns - 1 - j)


def set_values(into: Tensor, heads: int, channels: int) -> None:
    """The values of every head are the first channels: (heads * channels, dim)."""
    into.zero_()
    for head in range(heads):
        for channel in range(channels):
            into[head * channels + channel, channel] = 1


def set_output(into: nn.Linear, conv: Any) -> None:
    """The matrices of the taps, side by side: (dim, heads * channels)."""
    into.weight.zero_()
    into.weight[: conv.out_channels] = torch.cat([matrix for _, matrix in taps(conv)], dim=1)
    if into.bias is not None:
        into.bias.zero_()
        into.bias[: conv.out_channels] = conv.bias


class OnImages(nn.Module):
    """A module of tokens, called as the convolution is."""

    def __init__(self, conv: Any, attention: nn.Module, dim: int, *, padded: bool) -> None:
        super().__init__()
        self.attention = attention.eval()
        self.dim = dim
        self.class_token = not padded
        self.class_pixel = 0.0
        self.padding = conv.padding if padded else (0,) * len(conv.padding)
        self.stride, self.out_channels = conv.stride, conv.out_channels
        self.reach = [
            (k - 1) * r - 2 * p
            for k, r, p in zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Pad, attend, and keep the outputs whose queries are the convolution's."""
        sides = [s for p in reversed(self.padding) for s in (p, p)]
        window = F.pad(x, sides)
        tokens = F.pad(window.flatten(2).transpose(1, 2), (0, self.dim - x.shape[1]))
        if self.class_token:
            tokens = F.pad(tokens, (0, 0, 1, 0), value=self.class_pixel)
        y: Any = self.attention(tokens)
        if isinstance(y, tuple):  # T5 returns more
            y = y[0]
        y = y[:, int(self.class_token) :, : self.out_channels].transpose(1, 2)
        y = y.unflatten(2, window.shape[2:])
        for axis, (p, s, r) in enumerate(zip(self.padding, self.stride, self.reach, strict=True)):
            queries = range(p, p + x.shape[2 + axis] - r, s)
            y = y.index_select(2 + axis, torch.tensor(queries))
        found: Tensor = y
        return found


def swin(conv: Any, shape: Sequence[int], gap: float) -> OnImages:
    """Swin's WindowAttention; the window is the padded image."""
    window = tuple(n + 2 * p for n, p in zip(shape, conv.padding, strict=True))
    kind = imported("timm.models.swin_transformer").WindowAttention
    found, dim = taps(conv), max(conv.in_channels, conv.out_channels)
    width = len(found) * conv.in_channels
    attention = kind(dim, len(found), head_dim=conv.in_channels, window_size=window)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        set_values(attention.qkv.weight[2 * width :], len(found), conv.in_channels)
        set_output(attention.proj, conv)
        attention.relative_position_bias_table.fill_(-gap)
        for head, (offset, _) in enumerate(found):
            attention.relative_position_bias_table[number_of(offset, window), head] = 0
    return OnImages(conv, attention, dim, padded=True)


def beit(conv: Any, shape: Sequence[int], gap: float) -> OnImages:
    """BEiT's attention; the window is the image, and the class token the sink.

    Its code takes the width of the tokens for that of all heads together: D_in for each tap.
    """
    kind = imported("timm.models.beit").Attention
    found = taps(conv)
    width = len(found) * conv.in_channels
    attention = kind(width, len(found), window_size=tuple(shape))
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        set_values(attention.qkv.weight[2 * width :], len(found), conv.in_channels)
        set_output(attention.proj, conv)
        table = attention.relative_position_bias_table
        table.fill_(-gap)
        table[-2] = -gap / 2  # from a token to the class token
        for head, (offset, _) in enumerate(found):
            row = number_of(offset, shape)
            if row is not None:  # beyond the window there is nothing but the sink
                table[row, head] = 0
    return OnImages(conv, attention, width, padded=False)


def t5(conv: Any, shape: Sequence[int], gap: float, **buckets: int) -> OnImages:
    """T5Attention of transformers; the sequence is the padded image."""
    config_kind = imported("transformers.models.t5.configuration_t5").T5Config
    kind = imported("transformers.models.t5.modeling_t5").T5Attention
    found, dim = taps(conv), max(conv.in_channels, conv.out_channels)
    config = config_kind(
        d_model=dim,
        d_kv=conv.in_channels,
        num_heads=len(found),
        relative_attention_num_buckets=buckets.get("num_buckets", 32),
        relative_attention_max_distance=buckets.get("max_distance", 128),
    )
    attention = kind(config, has_relative_attention_bias=True)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        set_values(attention.v.weight, len(found), conv.in_channels)
        set_output(attention.o, conv)
        table = attention.relative_attention_bias.weight
        table.fill_(-gap)
        rows = T5Buckets(**buckets).buckets(torch.tensor([offset[0] for offset, _ in found]))
        table[rows, range(len(found))] = 0
    return OnImages(conv, attention, dim, padded=True)


BUILDERS = {"swin": swin, "beit": beit, "t5": t5}
every_layer = pytest.mark.parametrize("name", BUILDERS)


@st.composite
def cases(draw: st.DrawFn, name: str) -> Case:
    """Small convolutions with an image: what the module has of kernels, padding and channels.

    Conditions: every query is a token, so that the padding is at most the reach, and half of it
    where nothing is padded (BEiT); T5 reaches 7 pixels, and has no bias.
    """
    rank = 1 if name == "t5" else 2
    kernel = [draw(st.integers(1, 15 if rank == 1 else 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) if rank == 2 else 1 for _ in range(rank)]
    reach = [(k - 1) * r for k, r in zip(kernel, dilation, strict=True)]
    if rank == 1:
        padding = [draw(st.integers(max(0, reach[0] - 7), min(7, reach[0])))]
    else:
        padding = [draw(st.integers(0, r // 2 if name == "beit" else r)) for r in reach]
    shape = [
        draw(st.integers(max(1, r + 1 - 2 * p), 5 + max(0, r - 2 * p)))
        for r, p in zip(reach, padding, strict=True)
    ]
    channels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    if name == "beit":
        channels = channels[0], min(channels[1], channels[0] * math.prod(kernel))
    kind: Any = (nn.Conv1d, nn.Conv2d)[rank - 1]
    with torch.random.fork_rng(devices=[]):
        conv = kind(
            *channels,
            tuple(kernel),
            padding=tuple(padding),
            dilation=tuple(dilation),
            stride=tuple(draw(st.integers(1, 2)) for _ in range(rank)),
            bias=name != "t5",
        )
    seeds = draw(st.tuples(st.integers(0, 12), st.integers(0, 12)))
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(integers(parameter.numel() + seeds[0])[seeds[0] :].view_as(parameter))
    count = 2 * channels[0] * math.prod(shape)
    x = integers(count + seeds[1])[seeds[1] :].view(2, channels[0], *shape)
    return Case(conv, x)


def built(name: str, case: Case, gap: float) -> OnImages:
    """The module with the parameters for a case."""
    rank = len(case.conv.kernel_size)
    return BUILDERS[name](case.conv, case.x.shape[-rank:], gap)


# Saturated: bit for bit ---------------------------------------------------------------------------


@exact
@every_layer
@given(data=st.data(), fused=st.booleans())
def test_real_layer_is_the_convolution_bit_for_bit(
    data: st.DataObject, name: str, fused: bool
) -> None:
    case = data.draw(cases(name), label="case")
    layer = built(name, case, SATURATED)
    attention: Any = layer.attention
    attention.fused_attn = fused  # timm's own switch: torch's fused kernel, or each step
    record(dtype=torch.float32)
    assert agrees(layer, case, truth_of(case))


@bounded
@every_layer
def test_real_layer_is_equivalent_on_real_numbers(name: str) -> None:
    # One-hot weights round nothing; the rest is a sum, in whatever order the module has.
    case = line(-7) if name == "t5" else plane()
    with torch.no_grad():
        case.conv.weight.div_(7).sin_()
    x = (case.x / 7).cos()
    assert_equivalent(built(name, Case(case.conv, x), SATURATED), case.conv, x)


# At any gap: certified ----------------------------------------------------------------------------


@bounded
@every_layer
@given(data=st.data(), gap=st.one_of(st.floats(0.1, 20.0), st.floats(20.0, 120.0)))
def test_real_layer_of_any_gap_keeps_the_certificate(
    data: st.DataObject, name: str, gap: float
) -> None:
    # The bound is that of our layer on the same keys: it speaks of all orders of summation.
    case = data.draw(cases(name), label="case")
    encoding = T5Buckets() if name == "t5" else BiasTable()
    ours = attention_from_conv(
        case.conv,
        encoding=encoding,
        sharpness=float(np.float32(gap)),
        boundary="natural" if name == "beit" else "padded",
    )
    # BEiT has its class token even where no target leaves the image, and ours no sink.
    assume(ours.has_sink == (name == "beit"))
    bound = certify(ours, case.conv, case.x).bound.numpy()
    with torch.no_grad():
        y = numbers(built(name, case, float(np.float32(gap)))(case.x))
    error = exact_error(y, truth_of(case))
    assert (error <= bound).all()
    ratio = np.divide(error, bound, out=np.zeros_like(error), where=error > 0).max(initial=0.0)
    record(ratio=float(ratio), dtype=torch.float32)


# The modules' own numbers -------------------------------------------------------------------------


@exact
@given(window=st.tuples(st.integers(1, 6), st.integers(1, 6)))
@example(window=(7, 7))
def test_tables_are_numbered_as_stated(window: tuple[int, int]) -> None:
    # Equation (19), for all pairs of a query and a key.
    swins = imported("timm.models.swin_transformer").get_relative_position_index(*window)
    beits = imported("timm.models.beit").gen_relative_position_index(window)
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)
    tokens = list(np.ndindex(*window))
    wanted = [[number_of((k[0] - q[0], k[1] - q[1]), window) for k in tokens] for q in tokens]
    assert swins.tolist() == wanted
    assert beits[1:, 1:].tolist() == wanted
    assert beits[1:, 0].tolist() == [rows + 1] * len(tokens)
    assert beits[0, 1:].tolist() == [rows] * len(tokens)
    assert beits[0, 0] == rows + 2


@exact
@given(num_buckets=st.integers(4, 70), more=st.integers(1, 200))
@example(num_buckets=32, more=120)
@example(num_buckets=32, more=8)
def test_buckets_are_those_of_transformers(num_buckets: int, more: int) -> None:
    # Theirs are logarithms in float32: they may take another side where the quotient is an integer,
    # which is where (17) is an equality.
    max_distance = num_buckets // 4 + more
    reach = torch.arange(-300, 301)
    kind = imported("transformers.models.t5.modeling_t5").T5Attention
    theirs = kind._relative_position_bucket(reach, True, num_buckets, max_distance)
    ours = T5Buckets(num_buckets, max_distance).buckets(reach.double())
    exact_distances = num_buckets // 4
    wide = num_buckets // 2 - exact_distances
    for delta in reach[theirs != ours].tolist():
        assert any(
            abs(delta) ** wide == max_distance**j * exact_distances ** (wide - j)
            for j in range(1, wide)
        )
    assert ours.tolist() == [
        t5_bucket(delta, num_buckets, max_distance) for delta in reach.tolist()
    ]


@exact
def test_default_buckets_are_those_of_transformers_ties_included() -> None:
    reach = torch.arange(-2000, 2001)
    kind = imported("transformers.models.t5.modeling_t5").T5Attention
    assert torch.equal(kind._relative_position_bucket(reach), T5Buckets().buckets(reach.double()))


# What the checks reject ---------------------------------------------------------------------------


def plane(padding: tuple[int, int] = (0, 1)) -> Case:
    """A 2 x 3 kernel in which nothing is symmetric."""
    conv = nn.Conv2d(2, 3, (2, 3), padding=padding)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.arange(1.0, parameter.numel() + 1).view_as(parameter))
    return Case(conv, (torch.arange(2 * 5 * 4) ** 2 % 47).float().reshape(1, 2, 5, 4))


def line(offset: int) -> Case:
    """A kernel of 15 taps with a large one and small ones."""
    conv = nn.Conv1d(1, 1, 15, padding=7, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, 16.0).view(1, 1, 15))
        conv.weight[0, 0, 7 + offset] = 100
    return Case(conv, torch.arange(1.0, 21.0).view(1, 1, 20))


@control
@pytest.mark.parametrize("name", ["swin", "beit"])
@pytest.mark.parametrize("wrong", ["query minus key", "rows for columns", "one entry", "merged"])
def test_wrong_table_is_not_the_convolution(name: str, wrong: str) -> None:
    case = plane()
    layer = built(name, case, SATURATED)
    assert agrees(layer, case, truth_of(case))
    attention: Any = layer.attention
    table = attention.relative_position_bias_table.detach()
    rows, columns = attention.window_size
    body = table[: (2 * rows - 1) * (2 * columns - 1)]
    square = body.view(2 * rows - 1, 2 * columns - 1, -1)
    changed = {
        "query minus key": square.flip(0, 1),
        "rows for columns": square.transpose(0, 1),
        "one entry": square.roll(1, 1),
        "merged": torch.maximum(square, square.roll(1, 1)),
    }[wrong]
    body.copy_(changed.reshape(body.shape).clone())
    assert not agrees(layer, case, truth_of(case))


@control
@pytest.mark.parametrize("wrong", ["exchanged", "no sink", "sink at the gap", "class token not 0"])
def test_wrong_class_token_does_not_pad_with_zeros(wrong: str) -> None:
    case = plane()
    layer = built("beit", case, SATURATED)
    attention: Any = layer.attention
    table = attention.relative_position_bias_table.detach()
    if wrong == "exchanged":
        table[[-2, -3]] = table[[-3, -2]]
    elif wrong == "no sink":
        table[-2] = -10 * SATURATED
    elif wrong == "sink at the gap":
        table[-2] = -SATURATED
    else:
        layer.class_pixel = 1.0
    assert not agrees(layer, case, truth_of(case))


@control
def test_window_without_padding_is_wrong_at_its_edge_alone() -> None:
    # Without the tokens beyond it a target there is the mean of the window (7).
    case = plane(padding=(1, 1))
    inside = plane(padding=(0, 0))
    layer = built("swin", inside, SATURATED)
    tokens = case.x.flatten(2).transpose(1, 2)
    with torch.no_grad():
        y = layer.attention(F.pad(tokens, (0, 1))).transpose(1, 2).unflatten(2, (5, 4))
        wanted = inside.conv(inside.x)
    assert torch.equal(y[:, :, :4, :2], wanted)
    assert not torch.equal(y[:, :, 4, :2], case.conv(case.x)[:, :, 5, 1:3])


@control
@pytest.mark.parametrize("shift", [8, 11, 100])
def test_trained_t5_errs_by_half_the_range_beyond_its_buckets(shift: int) -> None:
    # Equation (13), for any parameters: two images that no head of the module tells apart.
    config = imported("transformers.models.t5.configuration_t5").T5Config(
        d_model=1, d_kv=3, num_heads=5
    )
    kind = imported("transformers.models.t5.modeling_t5").T5Attention
    attention = kind(config, has_relative_attention_bias=True).eval()
    with torch.no_grad():
        for index, parameter in enumerate(attention.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) + index).view_as(parameter))
        attention.q.weight.zero_()
        buckets = T5Buckets().buckets(torch.arange(200))
        mate = next(k for k in range(199, 0, -1) if k != shift and buckets[k] == buckets[shift])
        images = torch.zeros(2, 200, 1)
        images[0, shift] = images[1, mate] = 1
        y = attention(images)[0][:, 0, 0]
    assert y[0] == y[1]
    assert max(abs(y[0] - 1), abs(y[1])) >= 0.5


@control
@pytest.mark.parametrize("offset", [-7, 0, 7])
def test_t5_table_of_the_wrong_sign_is_not_the_convolution(offset: int) -> None:
    case = line(offset)
    layer = built("t5", case, SATURATED)
    assert agrees(layer, case, truth_of(case))
    attention: Any = layer.attention
    table = attention.relative_attention_bias.weight.detach()
    table.copy_(torch.cat([table[16:], table[:16]]))
    assert not agrees(layer, case, truth_of(case))
