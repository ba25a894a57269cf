"""An encoding states what is true of it, and what it does not state has the default."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from constructions.encodings import ENCODINGS, Encoding, Mixing, Quadratic, Scalar, Window
from constructions.encodings.completed import STATEMENTS
from constructions.geometry.lattice import Lattice

DEFAULTS: dict[str, Any] = {
    "theorem": None,
    "crowded": True,
    "absolute": False,
    "bounded_reach": False,
    "everywhere": False,
    "integer_differences": False,
    "natural_borders": {},
}
GRID = Lattice.box((3, 4))
SHIFTS = torch.tensor([[-1.0, 0], [0, 1]], dtype=torch.float64)


@dataclass(frozen=True)
class Bare(Encoding):
    """An encoding of the two methods alone."""

    size: float = 1.0

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return Quadratic().encode(displacements, shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return self.size


class Telling(Bare):
    """One that states all, some of it by properties."""

    theorem: ClassVar[str] = "some_slug"
    crowded: ClassVar[bool] = False
    everywhere: ClassVar[bool] = True

    @property
    def natural_borders(self) -> Mapping[str, Encoding | None]:
        return {"replicate": self, "zeros": None}

    def on_axis(self, axis: int) -> Encoding | None:
        return Bare(float(axis)) if axis < 2 else None

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        return 0.25


# Defaults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_not_stated_has_the_default(name: str) -> None:
    assert getattr(Bare(), name) == DEFAULTS[name]
    assert type(getattr(Bare(), name)) is type(DEFAULTS[name])


def test_an_encoding_is_no_sum_over_axes_and_exact_unless_it_says_otherwise() -> None:
    assert [Bare().on_axis(axis) for axis in range(3)] == [None] * 3
    assert [Bare().axes(dimension) for dimension in (1, 2, 3)] == [None] * 3
    assert Bare().score_error(SHIFTS, GRID) == Bare().relative_score_error(SHIFTS, GRID) == 0


def test_every_attribute_of_an_encoding_is_listed_as_a_statement() -> None:
    public = {name for name in vars(Encoding) if not name.startswith("_")}
    made_of_them = {"axes", "natural", "relative_score_error"}
    assert public - made_of_them - Encoding.__abstractmethods__ == STATEMENTS.keys()
    assert DEFAULTS.keys() | {"on_axis", "score_error"} == STATEMENTS.keys()


@pytest.mark.parametrize("name", ["encode", "gap"])
def test_an_encoding_without_one_of_its_methods_is_not_made(name: str) -> None:
    incomplete: Any = type("Incomplete", (Bare,), {name: getattr(Encoding, name)})
    assert incomplete.__abstractmethods__ == {name}
    with pytest.raises(TypeError, match=name):
        incomplete()


@pytest.mark.parametrize("name", ["heads", "coefficients", "gains"])
def test_a_mixing_encoding_without_one_of_its_methods_is_not_made(name: str) -> None:
    incomplete = type("Incomplete", (Scalar,), {name: getattr(Mixing, name)})
    with pytest.raises(TypeError, match=name):
        incomplete()


# What the statements make -------------------------------------------------------------------------


def test_axes_are_all_or_none() -> None:
    assert Telling().axes(2) == (Bare(0.0), Bare(1.0))
    assert Telling().axes(3) is None


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
def test_zeros_alone_are_natural_unless_an_encoding_says_otherwise(mode: str) -> None:
    encoding = Bare()
    assert encoding.natural(mode) is (encoding if mode == "zeros" else None)
    telling = Telling()
    assert telling.natural(mode) is (telling if mode == "replicate" else None)


@given(error=st.floats(0, 2**100), gap=st.floats(2.0**-100, 2**100))
def test_relative_score_error_is_twice_the_error_over_the_gap(error: float, gap: float) -> None:
    class Erring(Bare):
        def score_error(self, shifts: Tensor, grid: Lattice) -> float:
            assert shifts.dtype == torch.float64
            return error

    found = Fraction(Erring(gap).relative_score_error(SHIFTS.float(), GRID))
    exact = 2 * Fraction(error) / Fraction(gap)
    # One rounding of a quotient: half a unit in the last place, 2^-1075 below the normal numbers.
    assert abs(found - exact) <= max(exact / 2**53, Fraction(1, 2**1075))


def test_no_gap_is_asked_for_where_scores_are_exact() -> None:
    class Gapless(Bare):
        def gap(self, shifts: Tensor, grid: Lattice) -> float:
            raise AssertionError

    assert Gapless().relative_score_error(SHIFTS, GRID) == 0


# The encodings of the folder ----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [*ENCODINGS.values(), Window((2, 2))], ids=repr)
def test_every_encoding_is_of_the_base_class_and_repeats_no_default(encoding: Encoding) -> None:
    assert Encoding in type(encoding).__mro__
    assert isinstance(encoding, Mixing) is (type(encoding) is Scalar)
    for name, default in DEFAULTS.items():
        own = inspect.getattr_static(type(encoding), name)
        assert isinstance(own, property) or own != default
