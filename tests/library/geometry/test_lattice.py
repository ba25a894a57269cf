"""Lattices are box grids in Z^d, and every pair of a query and a key meets its own displacement."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from constructions.geometry.lattice import Lattice, displacements, spread


@st.composite
def lattice_pairs(draw: st.DrawFn) -> tuple[Lattice, Lattice]:
    """Two lattices of one dimension, any spacing and origin; single points included."""
    dimension = draw(st.integers(1, 3))

    def lattice() -> Lattice:
        def integers(low: int, high: int) -> tuple[int, ...]:
            return tuple(draw(st.integers(low, high)) for _ in range(dimension))

        return Lattice(integers(1, 4), integers(1, 3), integers(-5, 5))

    return lattice(), lattice()


def points(lattice: Lattice) -> list[tuple[int, ...]]:
    """The points by definition: {origin + spacing * i : 0 <= i < shape}, last axis fastest."""
    return [
        tuple(o + s * i for o, s, i in zip(lattice.origin, lattice.spacing, index, strict=True))
        for index in itertools.product(*map(range, lattice.shape))
    ]


def rows(positions: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in positions.tolist()]


@given(pair=lattice_pairs())
def test_positions_are_all_points_in_row_major_order(pair: tuple[Lattice, Lattice]) -> None:
    lattice, _ = pair
    positions = lattice.positions()
    assert positions.dtype == torch.int64
    assert positions.shape == (lattice.size, lattice.dimension)
    assert rows(positions) == points(lattice)
    assert lattice.last == points(lattice)[-1]


@given(pair=lattice_pairs())
def test_axes_are_the_coordinates_of_the_points(pair: tuple[Lattice, Lattice]) -> None:
    lattice, _ = pair
    axes = [axis.tolist() for axis in lattice.axes()]
    assert list(itertools.product(*axes)) == points(lattice)


@given(pair=lattice_pairs())
def test_displacements_are_the_least_box_of_all_key_minus_query(
    pair: tuple[Lattice, Lattice],
) -> None:
    keys, queries = pair
    differences = [
        tuple(a - b for a, b in zip(key, query, strict=True))
        for key in points(keys)
        for query in points(queries)
    ]
    box = displacements(keys, queries)
    assert box.spacing == (1,) * keys.dimension
    assert box.origin == tuple(map(min, zip(*differences, strict=True)))
    assert box.last == tuple(map(max, zip(*differences, strict=True)))


@given(pair=lattice_pairs())
def test_spread_gives_each_pair_the_entry_at_key_minus_query(
    pair: tuple[Lattice, Lattice],
) -> None:
    keys, queries = pair
    box = displacements(keys, queries)
    number = {point: i for i, point in enumerate(points(box))}
    table = torch.stack([torch.arange(box.size), -torch.arange(box.size)])
    expected = [
        [number[tuple(k - q for k, q in zip(key, query, strict=True))] for key in points(keys)]
        for query in points(queries)
    ]
    pairs = spread(table, keys, queries)
    assert pairs.shape == (2, queries.size, keys.size)
    assert pairs[0].tolist() == expected
    assert torch.equal(pairs[1], -pairs[0])


def test_box_starts_at_zero_with_spacing_one() -> None:
    assert Lattice.box((2, 3)) == Lattice((2, 3), (1, 1), (0, 0))


@pytest.mark.parametrize(
    ("shape", "spacing", "origin", "phrases"),
    [
        ((2, 3), (1,), (0, 0), ("shape, spacing and origin", "(2, 3), (1,) and (0, 0)", "one")),
        ((), (), (), ("shape", "()", "one entry per dimension")),
        ((2, 0), (1, 1), (0, 0), ("shape", "(2, 0)", "at least 1")),
        ((2, -1), (1, 1), (0, 0), ("shape", "(2, -1)", "at least 1")),
        ((2, 3), (1, 0), (0, 0), ("spacing", "(1, 0)", "at least 1")),
    ],
    ids=["unequal ranks", "no axis", "empty axis", "negative size", "spacing zero"],
)
def test_lattice_refuses_what_is_no_grid(
    shape: tuple[int, ...], spacing: tuple[int, ...], origin: tuple[int, ...], phrases: list[str]
) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        Lattice(shape, spacing, origin)
    assert all(phrase in str(caught.value) for phrase in phrases)
