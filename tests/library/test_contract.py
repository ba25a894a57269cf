"""The public contract: what each name accepts, and what it returns."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import constructions
from constructions import assert_equivalent, attention_from_conv, certify
from constructions.formats import FORMATS, accumulator, smallest_subnormal, unit_roundoff
from constructions.geometry.lattice import Lattice
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import ROOT
from tests.support.strategies import Case, Geometry, geometries, integer_cases

DTYPES = pytest.mark.parametrize("dtype", FORMATS, ids=str)


# Public names -------------------------------------------------------------------------------------


def test_door_holds_the_public_names_and_nothing_else() -> None:
    functions = {"assert_equivalent", "attention_from_conv", "certify", "convert", "lower"}
    functions |= {"certify_layers", "revert"}
    types = {"Certificate", "Cost", "Encoding", "Following", "Heads", "Lowered"}
    types |= {
        "MultiHeadSelfAttention",
        "NetworkCertificate",
        "Normaliser",
        "Report",
        "SoftPadding",
        "Stencil",
        "Stock",
        "View",
    }
    doors = {"certificate", "encodings", "heads", "normalisers"}
    assert set(constructions.__all__) == functions | types | doors
    modules = {name for name, value in vars(constructions).items() if type(value) is type(math)}
    public = {name for name in vars(constructions) if not name.startswith("_")} - modules
    assert public == functions | types


def test_import_brings_no_package_but_torch_and_the_standard_library() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import constructions\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})\n"
        "print('constructions.demo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    *packages, has_demo = found.stdout.split()
    assert set(packages) <= {"constructions", "torch", *sys.stdlib_module_names}
    assert "constructions" in packages
    assert has_demo == "False"


# The layer is called as the convolution is --------------------------------------------------------


@DTYPES
@given(data=st.data())
def test_layer_returns_shape_dtype_and_device_of_the_convolution(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype))
    y, expected = case.run(attention_from_conv(case.conv)), case.run(case.conv)
    assert (y.shape, y.dtype, y.device) == (expected.shape, expected.dtype, expected.device)


def test_layer_runs_where_the_convolution_runs(device: str) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1)).to(device)
    x = integers(2, 2, 4, 5).to(device)
    layer = attention_from_conv(conv)
    assert {parameter.device for parameter in layer.parameters()} == {x.device}
    assert torch.equal(layer(x), conv(x))
    assert layer.attention_weights((4, 5)).device == x.device


def test_layer_on_the_meta_device_infers_shapes_as_the_convolution_does() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, device="meta")
    layer, x = attention_from_conv(conv), torch.empty(4, 2, 7, 9, device="meta")
    assert layer(x).device == x.device
    assert layer(x).shape == conv(x).shape


@given(geometry=geometries())
def test_layer_has_a_head_for_each_tap_whatever_the_groups(geometry: Geometry) -> None:
    conv = geometry.build(torch.float32)
    assert attention_from_conv(conv).num_heads == math.prod(conv.kernel_size)


def test_layer_says_what_it_resolved() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3))
    assert (layer.boundary, layer.evaluation, layer.has_sink) == ("natural", "factored", False)
    sink = attention_from_conv(nn.Conv1d(1, 1, 3, padding=1), evaluation="dense")
    assert (sink.boundary, sink.evaluation, sink.has_sink) == ("natural", "dense", True)
    explicit = attention_from_conv(nn.Conv1d(1, 1, 3), boundary="padded", evaluation="dense")
    assert (explicit.boundary, explicit.evaluation) == ("padded", "dense")


def test_sharpness_is_the_one_given() -> None:
    for sharpness in (0.1, 3, 1e-300, 3e38):
        layer = attention_from_conv(nn.Conv1d(1, 1, 3), sharpness=sharpness)
        assert layer.sharpness == sharpness
        assert isinstance(layer.sharpness, float)


@DTYPES
def test_no_sharpness_is_the_gap_of_one_hot_weights_in_the_current_dtype(
    dtype: torch.dtype,
) -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3)).to(dtype)
    assert layer.sharpness == layer.normaliser.one_hot_gap(dtype)
    assert layer.sharpness > math.log(2) - math.log(smallest_subnormal(dtype))  # T8
    weights = layer.attention_weights((5,))
    assert weights.dtype == dtype
    assert set(weights.flatten().tolist()) == {0.0, 1.0}


def test_names_and_objects_are_the_same_choice() -> None:
    conv, x = filled(nn.Conv1d(2, 2, 3)), integers(2, 2, 6)
    named = attention_from_conv(conv, encoding="quadratic", normaliser="softmax", sharpness=1.0)
    plugged = attention_from_conv(
        conv, encoding=named.encoding, normaliser=named.normaliser, sharpness=1.0
    )
    assert torch.equal(named(x), plugged(x))


# Attention weights --------------------------------------------------------------------------------


def test_weights_are_heads_by_queries_by_keys_all_row_major() -> None:
    conv = nn.Conv2d(1, 1, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    weights = attention_from_conv(conv, boundary="padded").attention_weights((4, 6))
    heads = [*itertools.product(range(2), range(3))]
    queries = [*itertools.product(range(3), range(2))]
    keys = [*itertools.product(range(4 + 2), range(6))]  # the padded grid, from its first row
    assert weights.shape == (len(heads), len(queries), len(keys))
    for (h, (i, j)), (q, (row, column)) in itertools.product(enumerate(heads), enumerate(queries)):
        target = keys.index((2 * row + i, column + 2 * j))
        assert weights[h, q].tolist() == [float(k == target) for k in range(len(keys))]


def test_keys_of_a_transposed_convolution_are_zero_stuffed() -> None:
    conv = filled(nn.ConvTranspose1d(1, 1, 3, stride=2, bias=False))
    weights = attention_from_conv(conv, boundary="padded").attention_weights((2,))
    # Pixels at 2 and 4 of a padded fine grid of 2 + 3 + 2 keys; the tap of offset -2 comes first.
    assert weights.shape == (3, 5, 7)
    x = torch.tensor([5.0, 7.0])
    stuffed = torch.tensor([0.0, 0.0, 5.0, 0.0, 7.0, 0.0, 0.0])
    seen = weights @ stuffed
    assert torch.equal(seen.T @ conv.weight.detach().flatten().flip(0), conv(x[None])[0])


@given(data=st.data())
def test_weights_are_of_the_unpadded_unbatched_shape(data: st.DataObject) -> None:
    geometry = data.draw(geometries())
    conv = geometry.build(data.draw(st.sampled_from(FORMATS)))
    layer = attention_from_conv(conv)
    spatial = geometry.shape[-len(conv.kernel_size) :]
    weights = layer.attention_weights(spatial, output_size=geometry.output_size)
    case = Case(conv, torch.zeros(geometry.shape, dtype=conv.weight.dtype), geometry.output_size)
    outputs = case.run(conv).shape[-len(spatial) :]
    assert (weights.shape[0], weights.shape[1]) == (layer.num_heads, math.prod(outputs))
    assert weights.dtype == conv.weight.dtype


def row_sum_bound(keys: int, dtype: torch.dtype) -> Fraction:
    """How far the exact sum of a row of stored softmax weights can be from 1.

    Exponentials e_k are what they are: their errors cancel. The sum of all of them is theirs within
    a factor (1 ± u)^(T - 1), in any order; a division, or a reciprocal and a product, adds
    (1 ± u)^2, the cast (1 ± u_w). Each of these operations can lose η where its result underflows;
    a reciprocal cannot underflow, since 1 <= sum <= T.
    """
    exact = accumulator(dtype)
    u, eta = Fraction(unit_roundoff(exact)), Fraction(smallest_subnormal(exact))
    of_cast, lost = Fraction(0), Fraction(0)
    if dtype != exact:
        of_cast, lost = Fraction(unit_roundoff(dtype)), Fraction(smallest_subnormal(dtype))
    highest = (1 + u) ** 2 * (1 + of_cast) / (1 - u) ** (keys - 1)
    lowest = (1 - u) ** 2 * (1 - of_cast) / (1 + u) ** (keys - 1)
    return max(highest - 1, 1 - lowest) + keys * (lost + 2 * eta)


@DTYPES
@pytest.mark.parametrize("sharpness", [1e-3, 0.5, 3.0, 20.0, None], ids=str)
def test_rows_of_softmax_weights_sum_to_one_within_the_derived_bound(
    dtype: torch.dtype, sharpness: float | None, device: str
) -> None:
    conv = nn.Conv2d(1, 1, 3, padding=2, dtype=dtype, device=device)
    weights = attention_from_conv(conv, sharpness=sharpness).attention_weights((5, 6))
    bound = row_sum_bound(weights.shape[-1], dtype)
    for row in weights.double().flatten(0, 1).tolist():
        assert min(row) >= 0
        assert abs(sum(map(Fraction, row), Fraction(-1))) <= bound


# A paper's own encoding and normaliser ------------------------------------------------------------


@dataclass(frozen=True)
class Circle:
    """A user's own encoding in one dimension: a circle of more steps than there are positions."""

    steps: int

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        """cos and sin of the angle; their product with a shift's is cos of the difference."""

        def on_circle(positions: Tensor) -> Tensor:
            angle = positions * (2 * math.pi / self.steps)
            return torch.cat([angle.cos(), angle.sin()], dim=-1)

        return on_circle(displacements), on_circle(shifts)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        """1 - cos of one step, less one part in 2^20, far more than float64 features lose."""
        return 2 * math.sin(math.pi / self.steps) ** 2 * (1 - 2.0**-20)


@dataclass(frozen=True)
class Hardmax:
    """A user's own normaliser: all weight on the largest score, at any gap."""

    def __call__(self, scores: Tensor) -> Tensor:
        """One-hot at the first of the largest."""
        return F.one_hot(scores.argmax(-1), scores.shape[-1]).to(scores.dtype)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """Any positive gap will do."""
        return 1.0


@dataclass(frozen=True)
class NeverOneHot:
    """A user's own normaliser that saturates nowhere."""

    def __call__(self, scores: Tensor) -> Tensor:
        """Student's kernel."""
        weights = 1 / (1 - scores)
        return weights / weights.sum(-1, keepdim=True)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        """None is enough."""
        return math.inf


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": Circle(32)},
        {"normaliser": Hardmax()},
        {"encoding": Circle(32), "normaliser": Hardmax()},
    ],
    ids=["encoding", "normaliser", "both"],
)
@DTYPES
def test_own_objects_plug_in(dtype: torch.dtype, options: dict[str, Any]) -> None:
    conv = filled(nn.Conv1d(2, 3, 3, padding=2, dilation=2)).to(dtype)
    x = integers(2, 2, 7, dtype=dtype)
    layer = attention_from_conv(conv, **options)
    assert torch.equal(layer(x), conv(x))
    assert certify(layer, conv, x).holds
    assert_equivalent(layer, conv, x)


def test_own_encoding_that_names_the_wrong_shift_is_rejected() -> None:
    class Mirrored(Circle):
        def encode(
            self, displacements: Tensor, shifts: Tensor, grid: Lattice
        ) -> tuple[Tensor, Tensor]:
            return super().encode(displacements, -shifts, grid)

    conv, x = filled(nn.Conv1d(2, 3, 3, padding=1)), integers(2, 2, 7)
    layer = attention_from_conv(conv, encoding=Mirrored(32))
    assert not certify(layer, conv, x).holds
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(layer, conv, x)


def test_own_normaliser_that_is_never_one_hot_needs_a_sharpness() -> None:
    conv, x = filled(nn.Conv1d(2, 3, 3, padding=1)), integers(2, 2, 7)
    with refused(ValueError, "sharpness", "None", "NeverOneHot() is never one-hot"):
        attention_from_conv(conv, normaliser=NeverOneHot())
    layer = attention_from_conv(conv, normaliser=NeverOneHot(), sharpness=1e6)
    assert layer(x).shape == conv(x).shape
    with refused(ValueError, "layer", "NeverOneHot()", "softmax, or a saturated layer"):
        certify(layer, conv, x)
