"""Gaps on grids of any size are those of each grid, or a bound of them, or refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constructions.encodings import (
    Absolute,
    BiasTable,
    Circle,
    Encoding,
    Flattened,
    Gaussian,
    Periodic,
    Quadratic,
    Rotary,
    RowColumn,
    Scalar,
)
from constructions.encodings.sizes import LONGEST, gap_of_any_size, largest_grid
from constructions.formats import DOUBLE, unit_roundoff
from constructions.geometry.lattice import Lattice
from tests.support.helpers import refused

SHIFTS = torch.tensor([[-1.0, 0.0], [0.0, 2.0]], dtype=DOUBLE)

grids = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(Lattice.box)


@pytest.mark.parametrize(
    "encoding",
    [Quadratic(), Gaussian(), Flattened(), Circle(), BiasTable(), RowColumn()],
    ids=repr,
)
@given(grid=grids)
def test_gap_that_depends_on_no_grid_is_that_of_each(encoding: Encoding, grid: Lattice) -> None:
    assert gap_of_any_size(encoding, SHIFTS, grid) == encoding.gap(SHIFTS, grid)


@pytest.mark.parametrize("encoding", [Periodic(), Absolute(Periodic())], ids=repr)
@given(grid=grids)
def test_periodic_gap_is_that_of_each_grid_up_to_a_few_roundings(
    encoding: Encoding, grid: Lattice
) -> None:
    found, gap = gap_of_any_size(encoding, SHIFTS, grid), encoding.gap(SHIFTS, grid)
    assert isinstance(found, torch.Tensor)
    # Two sines and their squares, each an ulp off, where the score error is subtracted from both.
    assert abs(found.item() - gap) <= 8 * unit_roundoff(DOUBLE) * (2 * gap + 2**-46)


def test_periodic_gap_is_positive_up_to_the_longest_axis() -> None:
    for dimension in (1, 2, 3):
        grid = Lattice.box((LONGEST,) * dimension)
        assert Periodic().gap(torch.zeros(1, dimension), grid) > 0


def test_periodic_gap_is_refused_beyond_the_longest_axis() -> None:
    with pytest.raises(RuntimeError):
        gap_of_any_size(Periodic(), SHIFTS, Lattice.box((1, LONGEST + 1)))


@pytest.mark.parametrize(
    "encoding",
    [Rotary(), Absolute(Rotary()), Gaussian(((2.0, 0.5), (0.5, 1.0))), Flattened((1, 1000))],
    ids=repr,
)
@given(data=st.data())
def test_gap_without_a_closed_form_falls_as_the_grid_grows(
    encoding: Encoding, data: st.DataObject
) -> None:
    assert gap_of_any_size(encoding, SHIFTS, Lattice.box((5, 5))) is None
    large = data.draw(grids)
    small = Lattice.box(tuple(data.draw(st.integers(1, n)) for n in large.shape))
    assert encoding.gap(SHIFTS, large) <= encoding.gap(SHIFTS, small)


def test_grid_of_numbers_is_its_own_largest() -> None:
    grid = Lattice.box((5, 7))
    assert largest_grid(Scalar(), grid, bound=False) == grid


def test_shifts_that_cannot_be_looked_at_are_refused() -> None:
    # Not in code that dynamo traces: an export that is not strict.
    with refused(ValueError, "encoding", "Rotary", "strict=True"):
        largest_grid(Rotary(), Lattice.box((5, 7)), bound=True)
