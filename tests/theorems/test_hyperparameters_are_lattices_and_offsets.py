"""Every option of a convolution is a choice of two lattices, of the offsets between them, of the blocks of its matrices or of what stands beyond the border, in every dimension.

T6, `docs/theorems/hyperparameters_are_lattices_and_offsets.md`. First the table of that page, read
from the page itself and held against torch and against the construction; then attention, bit for
bit on integers; then the duality, between two attention layers.
"""  # noqa: E501, the claim is one sentence

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from constructions import attention_from_conv, certify
from constructions.conversion.construction import expressed
from constructions.sources import stencil_of
from tests.pages.options import agrees, around, conv_of, cut, image_of, layers, truth_of
from tests.support import formal
from tests.support.dictionary import (
    POOLINGS,
    Pooling,
    Table,
    differences_from_pooling,
    differences_from_stencil,
    differences_from_torch,
    pixels_of,
    shown_by_torch,
    spatial_size,
)
from tests.support.helpers import edit_matrices, integers
from tests.support.layout import ANCHOR, page_of
from tests.support.ledger import ROOT, record
from tests.support.oracle import exactly, numbers
from tests.support.strategies import (
    CONVOLUTIONS,
    LAYERS,
    PADDING_MODES,
    TRANSPOSED,
    Case,
    Convolution,
    Geometry,
    geometries,
    integer_cases,
)
from theory import hyperparameters_are_lattices_and_offsets as theory
from theory.tools.proof import identical

SLUG = "hyperparameters_are_lattices_and_offsets"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

every_rank = pytest.mark.parametrize("rank", [1, 2, 3])
both_formats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

PAGE = page_of(SLUG, ROOT).read_text(encoding="utf-8")
TABLE, OF_POOLING = Table.read(PAGE)
"""What is tested here: the formulas as the reader of the page sees them."""


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    # (1) is quoted from T1.
    equations = {int(number) for number in ANCHOR.findall(PAGE)}
    assert {step.equation for step in theory.prove()} == equations - {1}


@control
def test_proof_tells_the_pairs_of_one_convolution_from_those_of_another() -> None:
    right = theory.Box((5,), (3,), (2,), (1,), (1,))
    assert right.gathered() == right.scattered() == right.attended()
    for wrong in (
        theory.Box((5,), (3,), (1,), (1,), (1,)),  # stride
        theory.Box((5,), (3,), (2,), (2,), (1,)),  # dilation
        theory.Box((5,), (3,), (2,), (1,), (0,)),  # padding
    ):
        assert right.gathered() != wrong.attended()


@control
def test_proof_tells_left_from_right_where_entries_do_not_commute() -> None:
    # What (17) says of rows, not of columns, needs them to commute.
    weight, value = theory.matrix("w", 2, 2), theory.matrix("y", 2, 1)
    assert not identical((weight * value).T, value.T * weight.T)


# The table of the page ----------------------------------------------------------------------------


def numbered_parameters(conv: Convolution) -> Convolution:
    """The convolution with parameters 1, 2, 3, ..., no two of one tensor alike."""
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.arange(1, 1 + parameter.numel()).view_as(parameter))
    return conv


def call_of(geometry: Geometry) -> Case:
    conv = numbered_parameters(geometry.build(torch.float64))
    return Case(conv, torch.zeros(geometry.shape, dtype=torch.float64), geometry.output_size)


@exact
@given(geometry=geometries())
def test_every_row_of_the_table_is_what_torch_does(geometry: Geometry) -> None:
    assert differences_from_torch(TABLE, call_of(geometry)) == []
    record()


@exact
@given(geometry=geometries())
def test_every_row_of_the_table_is_what_the_construction_reads(geometry: Geometry) -> None:
    assert differences_from_stencil(TABLE, call_of(geometry)) == []
    record()


@exact
def test_every_option_of_torch_stands_in_the_table() -> None:
    told = [name for row in TABLE.rows for name in row.options]
    modes = [row.options["padding_mode"] for row in TABLE.rows if "padding_mode" in row.options]
    of_torch = {
        name
        for layer in LAYERS
        for function in (layer.__init__, layer.forward)
        for name in inspect.signature(function).parameters
    }
    assert set(told) == of_torch - {"self", "input", "device", "dtype"}
    assert modes == [f'"{mode}"' for mode in PADDING_MODES]


@exact
def test_dash_in_the_table_means_that_torch_has_no_such_option() -> None:
    dashes = [
        (layer, name, value)
        for row in TABLE.rows
        for kinds, formulas in zip((CONVOLUTIONS, TRANSPOSED), row.columns, strict=True)
        for layer, (name, value) in itertools.product(kinds, row.options.items())
        if not formulas
    ]
    assert len(dashes) == 3 * 7
    for layer, name, value in dashes:
        with pytest.raises((TypeError, ValueError)):
            called_with(layer, name, value.strip('"') if value.startswith('"') else 1)


def called_with(layer: Any, name: str, value: Any) -> Tensor:
    """A small convolution with one option, called."""
    rank = LAYERS.index(layer) % 3 + 1
    options, call = ({}, {name: [2] * rank}) if name == "output_size" else ({name: value}, {})
    y: Tensor = layer(1, 1, 1, **options)(torch.ones(1, *[2] * rank), **call)
    return y


GENERIC: dict[str, tuple[Convolution, tuple[int, ...], list[int] | None]] = {
    "plain": (nn.Conv1d(2, 3, 3, padding=1), (5,), None),
    "strided": (nn.Conv1d(1, 1, 2, stride=2, padding=1), (5,), None),
    "dilated": (nn.Conv2d(1, 1, (2, 3), dilation=(3, 2), padding=(0, 2)), (5, 6), None),
    "grouped": (nn.Conv2d(4, 6, 1, groups=2), (2, 2), None),
    "same": (nn.Conv1d(1, 1, 4, padding="same"), (5,), None),
    "valid": (nn.Conv1d(1, 1, 4, padding="valid"), (5,), None),
    "replicate": (nn.Conv1d(1, 1, 3, padding=2, padding_mode="replicate"), (4,), None),
    "reflect": (nn.Conv1d(1, 1, 3, padding=2, padding_mode="reflect"), (4,), None),
    "circular": (nn.Conv1d(1, 1, 3, padding=2, padding_mode="circular"), (4,), None),
    "transposed": (nn.ConvTranspose1d(1, 1, 3, stride=2, padding=1, dilation=2), (3,), None),
    "transposed, output padded": (
        nn.ConvTranspose2d(1, 1, 2, stride=(3, 1), dilation=(1, 3), output_padding=(1, 2)),
        (2, 3),
        None,
    ),
    "transposed, sized": (nn.ConvTranspose1d(1, 1, 3, stride=3), (3,), [11]),
}
"""A call for every row of the table, in which what the row says makes a difference."""

OFFSET, MEET = "`offset = j * r - low`", "`meet = c // (C_in // g) == m // (C_out // g)`"
LOW, REFLECT = "`low = r * (k - 1) - p`", "n - 1 - abs(n - 1 - abs(t))"
WRONG_ROWS = {
    "one output too few": (" // s + 1`", " // s`"),
    "a number of outputs that is rounded up": ("- 1) // s + 1`", "+ s - 2) // s + 1`"),
    "queries that are not spaced": ("`query = o * s`", "`query = o`"),
    "spaced queries of a transpose": ("`query = o`", "`query = o * s`"),
    "pixels of a transpose that are not spaced": ("`pixel = i * s`", "`pixel = i`"),
    "dilation off by one": (OFFSET, "`offset = j * (r + 1) - low`"),
    "offsets moved the other way": (OFFSET, "`offset = j * r + low`"),
    "query minus key": (OFFSET, "`offset = low - j * r`"),
    "a transpose whose offsets keep their sign": ("`offset = p - j * r`", "`offset = j * r - p`"),
    "a transpose that is padded, not cropped": (LOW, "`low = r * (k - 1) + p`"),
    "output padding before the first output": (LOW, "`low = r * (k - 1) - p + e`"),
    "forgotten output padding": ("- p + e`", "- p`"),
    "the odd pixel before the first": ("`low = r * (k - 1) // 2`", "`low = -(-r * (k - 1) // 2)`"),
    "valid padding that pads": ("`low = 0`", "`low = k // 2`"),
    "zeros that replicate": ("t if 0 <= t < n else None", "min(max(t, 0), n - 1)"),
    "holes that are filled": ("t // s if t % s == 0 and", "t // s if"),
    "replicate that reflects": ("min(max(t, 0), n - 1)", REFLECT),
    "reflect that shows the edge twice": (REFLECT, "min(max(t, -1 - t), 2 * n - 1 - t)"),
    "circular by one less": ("`shown = t % n`", "`shown = t % (n - 1)`"),
    "groups that interleave": (MEET, "`meet = c % g == m % g`"),
    "no groups": (MEET, "`meet = True`"),
    "the bias of another channel": ("`at_zeros = b[m]`", "`at_zeros = b[m - 1]`"),
    "an output size that begins at 1": ("`e = L - (", "`e = L + 1 - ("),
}


def generic_call(name: str) -> Case:
    conv, sizes, output_size = GENERIC[name]
    conv = numbered_parameters(copy.deepcopy(conv).double())
    return Case(conv, torch.zeros(1, conv.in_channels, *sizes, dtype=torch.float64), output_size)


@exact
@pytest.mark.parametrize("name", GENERIC)
def test_table_holds_for_generic_calls(name: str) -> None:
    case = generic_call(name)
    assert differences_from_torch(TABLE, case) == differences_from_stencil(TABLE, case) == []


@control
@pytest.mark.parametrize(("right", "wrong"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_wrong_row_of_the_table_is_found(right: str, wrong: str) -> None:
    assert right in PAGE
    table, _ = Table.read(PAGE.replace(right, wrong))
    calls = [generic_call(name) for name in GENERIC]
    assert any(differences_from_torch(table, case) for case in calls)
    assert any(differences_from_stencil(table, case) for case in calls)


# Average pooling ----------------------------------------------------------------------------------


@st.composite
def poolings(draw: st.DrawFn) -> tuple[Pooling, list[int]]:
    """Every average pooling of torch's, and the spatial shape of an image that it accepts."""
    rank = draw(st.sampled_from([1, 2, 3]))
    axes = [draw(axes_of_pooling(rank)) for _ in range(rank)]
    sizes, window, strides, padding = zip(*axes, strict=True)
    options: dict[str, Any] = {"padding": padding}
    options |= {name: draw(st.booleans()) for name in ("ceil_mode", "count_include_pad")}
    options |= {"stride": strides} if draw(st.booleans()) else {}
    if rank > 1:
        options["divisor_override"] = draw(st.sampled_from([None, None, 1, 3, 7, -2]))
    kind: Any = POOLINGS[rank - 1]
    return kind(window, **options), list(sizes)


@st.composite
def axes_of_pooling(draw: st.DrawFn, rank: int) -> tuple[int, int, int, int]:
    """Pixels, window, stride and padding of one axis.

    Conditions, torch's own: the window fits into the padded image, on three axes into the image
    itself, and is at least twice the padding.
    """
    n = draw(st.integers(1, {1: 9, 2: 5, 3: 3}[rank]))
    padding = draw(st.integers(0, 2 if rank < 3 else n // 2))
    most = n if rank == 3 else n + 2 * padding
    window = draw(st.integers(max(1, 2 * padding), min(max(5, 2 * padding), most)))
    return n, window, draw(st.integers(1, 4)), padding


@exact
@given(call=poolings())
def test_every_row_on_pooling_is_what_torch_does_and_what_attention_does(
    call: tuple[Pooling, list[int]],
) -> None:
    assert differences_from_pooling(OF_POOLING, *call) == []
    record()


@exact
def test_every_option_of_pooling_stands_in_the_table() -> None:
    told = {name for row in OF_POOLING.rows for name in row.options}
    taken = {n for kind in POOLINGS for n in inspect.signature(kind.__init__).parameters}
    assert told == taken - {"self"}


@exact
@every_rank
def test_pooling_over_a_power_of_two_is_computed_bit_for_bit(rank: int) -> None:
    kind: Any = POOLINGS[rank - 1]
    x = image_of(rank)
    for pool in (kind(2), kind(2, 1), kind(2, stride=1, padding=1), kind(1, stride=2)):
        for evaluation in ("dense", "factored"):
            layer = attention_from_conv(pool, evaluation=evaluation).double()
            assert layer.num_heads == 1
            assert torch.equal(layer(x), pool(x))
            record(dtype=torch.float64)


@bounded
@both_formats
@given(call=poolings(), data=st.data())
def test_pooling_of_any_image_is_certified(
    call: tuple[Pooling, list[int]], data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    pool, sizes = call
    entries = st.floats(-1e3, 1e3, width=32)
    x = torch.from_numpy(data.draw(arrays("float64", (1, 2, *sizes), elements=entries)))
    x = x.to(device, dtype)
    for evaluation in ("dense", "factored"):
        layer = attention_from_conv(pool, evaluation=evaluation).to(device, dtype)
        certificate = certify(layer, pool, x)
        record(ratio=certificate.ratio, device=device, dtype=dtype)
        assert certificate.holds


WRONG_POOLINGS = {
    "a window off by one": ("`window = range(o * s - p, o * s - p + w)`", "`window = range(w)`"),
    "queries at the image's edge": ("`query = o * s - p`", "`query = o * s`"),
    "a first query at the image's edge": ("`first = -p`", "`first = 0`"),
    "ceil_mode that floors": ("min(-(-(n + 2 * p - w) // s)", "min((n + 2 * p - w) // s"),
    "windows that begin beyond the image": ("(n + p - 1) // s) + 1`", "n + p) + 1`"),
    "padding that is not counted": (
        "`keys = range(o * s - p, min(o * s - p + w, n + p))`",
        "`keys = range(max(o * s - p, 0), min(o * s - p + w, n))`",
    ),
    "padding that is counted": (
        "`keys = range(max(o * s - p, 0), min(o * s - p + w, n))`",
        "`keys = range(o * s - p, min(o * s - p + w, n + p))`",
    ),
    "what hangs over is counted": ("min(o * s - p + w, n + p))", "o * s - p + w)"),
    "a divisor of clipped windows": (
        "`keys = range(o * s - p, o * s - p + w)`, `scale = v / D`",
        "`scale = v / D`",
    ),
    "a divisor upside down": ("`scale = v / D`", "`scale = D / v`"),
}


@control
@pytest.mark.parametrize(("right", "wrong"), WRONG_POOLINGS.values(), ids=WRONG_POOLINGS)
def test_wrong_row_on_pooling_is_found(right: str, wrong: str) -> None:
    assert right in PAGE
    _, table = Table.read(PAGE.replace(right, wrong))
    calls: list[tuple[Pooling, list[int]]] = [
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True), [6]),
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), [6]),
        (nn.AvgPool1d(2, 3, 1, ceil_mode=True), [4]),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=7), [6, 4]),
    ]
    assert not any(differences_from_pooling(OF_POOLING, *call) for call in calls)
    assert any(differences_from_pooling(table, *call) for call in calls)


# Attention, bit for bit ---------------------------------------------------------------------------


@exact
@both_formats
@given(data=st.data())
def test_any_convolution_is_computed_bit_for_bit_in_every_way(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    case = data.draw(integer_cases(dtype), label="case").to(device)
    truth = truth_of(case)
    for layer in layers(case.conv):
        assert agrees(layer, case, truth), layer
        record(device=device, dtype=dtype)


@exact
@given(geometry=geometries(padding_modes=["zeros", "replicate", "circular"]))
def test_heads_attend_the_pixel_that_torch_shows_and_otherwise_the_sink(geometry: Geometry) -> None:
    # Equations (8), (10) and (11), on the natural border: the keys are the pixels.
    case = call_of(geometry)
    layer = attention_from_conv(case.conv, boundary="natural")
    weights = layer.attention_weights(pixels_of(case), output_size=spatial_size(case))
    shown = torch.from_numpy(shown_by_torch(case))
    if case.conv.transposed:
        shown = shown.flip(0)  # heads stand in the order of their offsets
    keys = math.prod(pixels_of(case))
    one_hot = F.one_hot(shown - 1 + (keys + 1) * (shown == 0), keys + 1)
    assert torch.equal(weights, one_hot[..., : weights.shape[-1]].double())
    assert layer.has_sink or not (shown == 0).any()
    with torch.no_grad():
        y = case.run(layer).reshape(-1, case.conv.out_channels, shown.shape[1])
    alone = (shown == 0).all(dim=0)
    bias = torch.zeros(case.conv.out_channels) if case.conv.bias is None else case.conv.bias
    assert (y[..., alone] == bias[:, None]).all()
    record()


@exact
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", [0, 1])
def test_gaps_of_a_stride_are_left_to_the_sink(stride: int, padding: int) -> None:
    # Equation (13): for dilation 1 and kernel <= stride.
    n = 4
    for kernel, extra in itertools.product(range(1, stride + 1), range(stride)):
        conv = nn.ConvTranspose1d(1, 1, kernel, stride, padding, extra)
        layer = attention_from_conv(conv, boundary="natural")
        weights, canvas = layer.attention_weights((n,)), (n - 1) * stride + kernel
        alone = [bool(row) and layer.has_sink for row in (weights[..., -1] == 1).all(0)]
        assert alone == [
            (o + padding) % stride >= kernel or o + padding >= canvas for o in range(len(alone))
        ]
        record(dtype=torch.float32)


# Transposing swaps the lattices and negates the offsets -------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A convolution and its transpose, with one weight.

    Attributes:
        forward: The convolution, and its input.
        back: The transposed convolution, and an input of it; its output_size is forward's image,
            and one more where "same" has an odd reach.
    """

    forward: Case
    back: Case

    @classmethod
    def of(cls, conv: Convolution, x: Tensor, y: Tensor) -> Pair:
        """The transpose of a convolution without bias, zeros beyond its border."""
        assert conv.bias is None
        assert conv.padding_mode == "zeros"
        sizes = x.shape[-len(conv.kernel_size) :]
        reach = [r * (k - 1) for r, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        named = {"same": [r // 2 for r in reach], "valid": [0 for _ in reach]}
        low = named[conv.padding] if isinstance(conv.padding, str) else conv.padding
        odd = [r % 2 if conv.padding == "same" else 0 for r in reach]
        kind: Any = TRANSPOSED[len(sizes) - 1]
        options = {name: getattr(conv, name) for name in ("stride", "dilation", "groups")}
        with torch.random.fork_rng(devices=[]):
            transposed: Convolution = kind(
                conv.out_channels, conv.in_channels, conv.kernel_size, padding=tuple(low),
                **options, bias=False, dtype=conv.weight.dtype,
            )  # fmt: skip
        transposed.weight.data = conv.weight.data
        return cls(
            Case(conv, x), Case(transposed, y, [n + o for n, o in zip(sizes, odd, strict=True)])
        )

    def cut(self, image: Tensor) -> Tensor:
        """What the transpose returned, to the size of the convolution's image."""
        return cut(image, pixels_of(self.forward))


@st.composite
def pairs(draw: st.DrawFn, dtype: torch.dtype) -> Pair:
    """Any convolution that pads with zeros, its transpose, and integers for both.

    Condition: entries so small that all sums are exact: no more than 81 products meet.
    """
    geometry = draw(geometries(CONVOLUTIONS, ["zeros"]))
    size = 2**8 if dtype == torch.float32 else 2**22
    entries = st.integers(-size, size)

    def tensor(shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(draw(arrays("int64", tuple(shape), elements=entries))).to(dtype)

    conv = replace(geometry, options={**geometry.options, "bias": False}).build(dtype)
    conv.weight.data = tensor(conv.weight.shape)
    x = tensor(geometry.shape)
    with torch.no_grad():
        return Pair.of(conv, x, tensor(conv(x).shape))


def inner(left: Tensor, right: Tensor) -> int:
    """The inner product of two tensors of integers."""
    return int((exactly(numbers(left)).at(0) * exactly(numbers(right)).at(0)).sum())


def products_of(pair: Pair, forward: nn.Module, back: nn.Module) -> tuple[int, int]:
    """<conv(x), y> and <x, conv_transpose(y)>."""
    with torch.no_grad():
        y, x = pair.forward.run(forward), pair.cut(pair.back.run(back))
    return inner(y, pair.back.x), inner(pair.forward.x, x)


@exact
@both_formats
@given(data=st.data())
def test_transposed_attention_is_the_adjoint_of_attention(
    data: st.DataObject, device: str, dtype: torch.dtype
) -> None:
    # Equation (17), through attention layers alone.
    drawn = data.draw(pairs(dtype), label="pair")
    pair = Pair(drawn.forward.to(device), drawn.back.to(device))
    for forward, back in zip(layers(pair.forward.conv), layers(pair.back.conv), strict=True):
        there, here = products_of(pair, forward, back)
        assert there == here
        record(device=device, dtype=dtype)


@exact
@given(pair=pairs(torch.float64))
def test_attention_of_the_transpose_is_the_transposed_attention(pair: Pair) -> None:
    # Equation (16), on the natural border, the sink's column left out.
    forward, back = (attention_from_conv(case.conv) for case in (pair.forward, pair.back))
    sizes, coarse = pixels_of(pair.forward), pixels_of(pair.back)
    there = forward.attention_weights(sizes)[..., : math.prod(sizes)]
    here = back.attention_weights(coarse, output_size=pair.back.output_size)
    queries = here[..., : math.prod(coarse)].movedim(1, -1)  # heads, keys, queries
    assert pair.back.output_size is not None
    on_fine = pair.cut(queries.reshape(*queries.shape[:2], *pair.back.output_size))
    assert torch.equal(there, on_fine.flatten(2).flip(0))
    record(dtype=torch.float64)


@exact
@given(pair=pairs(torch.float64))
def test_gradient_in_the_image_is_the_transposed_layer(pair: Pair) -> None:
    for forward, back in zip(layers(pair.forward.conv), layers(pair.back.conv), strict=True):
        x = pair.forward.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(forward(x), x, pair.back.x)
        with torch.no_grad():
            assert torch.equal(gradient, pair.cut(pair.back.run(back)))
        record(dtype=torch.float64)


# What the checks reject ---------------------------------------------------------------------------


class Changed(nn.Module):
    """A layer with something done to its input before, or to its output after."""

    def __init__(self, layer: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, x: Tensor) -> Tensor:
        """The layer between the two."""
        y: Tensor = self.layer(self.before(x) if self.before else x)
        return self.after(y) if self.after else y


def wrong_stride(rank: int) -> tuple[Convolution, nn.Module]:
    """Queries 3 apart instead of 2: as many, on images of 4 pixels."""
    conv = conv_of(rank, kernel=(1, 1, 1), stride=2)
    stencil = stencil_of(conv)
    geometry = replace(stencil.geometry, query_spacing=(3,) * rank)
    return conv, expressed(replace(stencil, geometry=geometry, native=None))


def dilation_off_by_one(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, kernel=(3, 3, 3), dilation=1, padding=1)
    return conv, attention_from_conv(conv_of(rank, kernel=(3, 3, 3), dilation=2, padding=2))


def interleaved_groups(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, sizes=(4, 6), groups=2)
    return conv, Changed(attention_from_conv(conv), before=lambda x: x[:, [0, 2, 1, 3]])


def groups_as_one_dense_block(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, sizes=(4, 6), groups=2)
    dense = conv_of(rank, sizes=(4, 6))
    with torch.no_grad():
        dense.weight.copy_(conv.weight.repeat(1, 2, *[1] * rank))
    return conv, attention_from_conv(dense)


def odd_pixel_of_same_before_the_first(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, kernel=(2, 2, 2), padding="same")
    unpadded = attention_from_conv(conv_of(rank, kernel=(2, 2, 2)))
    return conv, Changed(unpadded, before=lambda x: around(x, (1,) * rank, (0,) * rank))


def transposed_without_negation(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, transposed=True)
    layer = attention_from_conv(conv)
    layer.positional_shift = layer.positional_shift.flip(0)
    return conv, layer


def forgotten_output_padding(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, stride=2, output_padding=1, transposed=True)
    return conv, attention_from_conv(conv_of(rank, stride=2, transposed=True))


def output_padding_before_the_first(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, stride=2, output_padding=1, transposed=True)
    shorter = attention_from_conv(conv_of(rank, stride=2, transposed=True))
    return conv, Changed(shorter, after=lambda y: around(y, (1,) * rank, (0,) * rank))


def bias_at_reached_outputs_alone(rank: int) -> tuple[Convolution, nn.Module]:
    conv = conv_of(rank, kernel=(1, 1, 1), stride=2, transposed=True)
    assert conv.bias is not None
    bias = conv.bias.detach().reshape(-1, *[1] * rank)
    return conv, Changed(attention_from_conv(conv), after=lambda y: torch.where(y == bias, 0, y))


@control
@every_rank
@pytest.mark.parametrize(
    "make",
    [
        wrong_stride,
        dilation_off_by_one,
        interleaved_groups,
        groups_as_one_dense_block,
        odd_pixel_of_same_before_the_first,
        transposed_without_negation,
        forgotten_output_padding,
        output_padding_before_the_first,
        bias_at_reached_outputs_alone,
    ],
)
def test_wrong_lattice_or_offset_is_rejected(
    rank: int, make: Callable[[int], tuple[Convolution, nn.Module]]
) -> None:
    conv, wrong = make(rank)
    case = Case(conv, image_of(rank, conv.in_channels, (4, 4, 4)))
    truth = truth_of(case)
    assert all(agrees(layer, case, truth) for layer in layers(conv))
    assert not agrees(wrong, case, truth)


@control
@every_rank
def test_only_the_transpose_is_adjoint(rank: int) -> None:
    conv = conv_of(rank, stride=2, padding=1, bias=False)
    x = image_of(rank)
    with torch.no_grad():
        pair = Pair.of(conv, x, integers(*conv(x).shape, dtype=torch.float64))
    forward, back = attention_from_conv(conv), attention_from_conv(pair.back.conv)
    there, here = products_of(pair, forward, back)
    assert there == here
    not_negated = attention_from_conv(pair.back.conv)
    not_negated.positional_shift = not_negated.positional_shift.flip(0)
    not_transposed = attention_from_conv(pair.back.conv)
    edit_matrices(
        not_transposed, lambda matrices: matrices.copy_(matrices.mT.reshape(matrices.shape))
    )
    for wrong in (not_negated, not_transposed):
        there, here = products_of(pair, forward, wrong)
        assert there != here


# Coq ----------------------------------------------------------------------------------------------


@pytest.mark.evidence(SLUG, "formal")
def test_coq_proves_the_statement() -> None:
    formal.check(SLUG)
