"""`farthest` covers every distance from a target to a key that torch's options allow."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.encodings import farthest
from constructions.geometry.lattice import Lattice
from tests.support import heads, reach
from tests.support.strategies import Case, Geometry, geometries

LARGEST_DILATION = nn.ConvTranspose1d(1, 1, 2, dilation=9, output_padding=8)
"""Its last output is 17 beyond the last pixel, its largest shift 9."""

SPREAD = nn.ConvTranspose1d(1, 1, 1, stride=5, output_padding=4)
"""Its last output is 4 beyond the last pixel, its only shift 0."""


def case_of(conv: nn.ConvTranspose1d, *spatial: int) -> Case:
    return Case(conv, torch.zeros(1, conv.in_channels, *spatial))


def place(case: Case) -> tuple[Tensor, Lattice]:
    """The shifts of a convolution, and the lattice of its pixels, by the independent count."""
    conv, rank = case.conv, len(case.conv.kernel_size)
    axes = [torch.from_numpy(of_axis) for of_axis in reach.offsets(conv)]
    shifts = torch.cartesian_prod(*axes).reshape(-1, rank).double()
    spacing = tuple(conv.stride) if conv.transposed else (1,) * rank
    return shifts, Lattice(tuple(case.x.shape[-rank:]), spacing, (0,) * rank)


def reaches(case: Case) -> bool:
    """Whether one tap's dilation appends no outputs, which `farthest` leaves out by definition."""
    conv = case.conv
    if not conv.transposed or case.output_size is not None:
        return True
    axes = zip(conv.kernel_size, conv.output_padding, conv.stride, strict=True)
    return all(size > 1 or extra < step for size, extra, step in axes)


@given(geometry=geometries())
def test_no_target_of_a_convolution_is_farther_from_a_key(geometry: Geometry) -> None:
    conv = geometry.build(torch.float32)
    case = Case(conv, torch.zeros(geometry.shape), geometry.output_size)
    assume(reaches(case))
    rank = len(conv.kernel_size)
    exact = reach.counted(conv, case.x.shape[-rank:], heads.output_shape(case))
    assert all(far >= n for far, n in zip(farthest(*place(case)), exact, strict=True))


@given(geometry=geometries(padding_modes=["zeros"]))
def test_shifts_counted_from_the_options_are_those_of_the_heads(geometry: Geometry) -> None:
    conv = geometry.build(torch.float32)
    case = Case(conv, torch.zeros(geometry.shape), geometry.output_size)
    shifts = attention_from_conv(conv).positional_shift.tolist()
    assert sorted(shifts) == sorted(place(case)[0].tolist())


@given(data=st.data(), rank=st.integers(1, 3))
def test_it_is_the_distance_that_a_gap_promises(data: st.DataObject, rank: int) -> None:
    axis = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(-9, 9))
    shape, spacing, origin = zip(*[data.draw(axis) for _ in range(rank)], strict=True)
    shifts = data.draw(st.lists(st.tuples(*[st.integers(-9, 9)] * rank), min_size=1, max_size=4))
    grid = Lattice(shape, spacing, origin)
    assert farthest(torch.tensor(shifts), grid) == reach.promised(shifts, shape, spacing)


def without_width(shifts: Tensor, grid: Lattice) -> tuple[int, ...]:
    """The largest shift is all that a target may leave the keys by."""
    extents = zip(grid.shape, grid.spacing, shifts.abs().amax(dim=0).tolist(), strict=True)
    return tuple((n - 1) * s + s - 1 + int(b) for n, s, b in extents)


def without_spacing(shifts: Tensor, grid: Lattice) -> tuple[int, ...]:
    """Targets between two keys, and after the last, are forgotten."""
    return tuple(f - s + 1 for f, s in zip(farthest(shifts, grid), grid.spacing, strict=True))


@pytest.mark.parametrize(
    ("wrong", "conv", "exact"),
    [(without_width, LARGEST_DILATION, 21), (without_spacing, SPREAD, 24)],
    ids=["without width", "without spacing"],
)
def test_reach_without_width_or_spacing_misses_a_target(
    wrong: object, conv: nn.ConvTranspose1d, exact: int
) -> None:
    case = case_of(conv, 5)
    assert callable(wrong)
    assert reach.counted(conv, (5,), heads.output_shape(case)) == (exact,)
    assert wrong(*place(case))[0] < exact <= farthest(*place(case))[0]
