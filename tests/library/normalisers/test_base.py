"""A normaliser states what is true of it, and what it does not state has the default."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from constructions.normalisers import NORMALISERS, Normaliser
from constructions.normalisers.completed import STATEMENTS


@dataclass(frozen=True)
class Bare(Normaliser):
    """A normaliser of the two methods alone."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        return 1.0


@pytest.mark.parametrize("name", ["shift_invariant", "vanishes"])
def test_what_is_not_stated_is_false(name: str) -> None:
    assert getattr(Bare(), name) is False


@pytest.mark.parametrize("sharpness", [1e-300, 1.0, 1e300])
def test_a_normaliser_is_itself_at_every_sharpness(sharpness: float) -> None:
    normaliser = Bare()
    assert normaliser.at(sharpness) is normaliser


def test_every_attribute_of_a_normaliser_is_listed_as_a_statement() -> None:
    public = {name for name in vars(Normaliser) if not name.startswith("_")}
    assert public - Normaliser.__abstractmethods__ == STATEMENTS.keys()


@pytest.mark.parametrize("name", ["__call__", "one_hot_gap"])
def test_a_normaliser_without_one_of_its_methods_is_not_made(name: str) -> None:
    incomplete: Any = type("Incomplete", (Bare,), {name: getattr(Normaliser, name)})
    assert incomplete.__abstractmethods__ == {name}
    with pytest.raises(TypeError, match=name):
        incomplete()


@pytest.mark.parametrize("normaliser", NORMALISERS.values(), ids=repr)
def test_every_normaliser_is_of_the_base_class_and_repeats_no_default(
    normaliser: Normaliser,
) -> None:
    assert Normaliser in type(normaliser).__mro__
    for name in ("shift_invariant", "vanishes"):
        own = inspect.getattr_static(type(normaliser), name)
        assert isinstance(own, property) or own is True
