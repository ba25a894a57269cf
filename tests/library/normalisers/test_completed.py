"""An object of the two methods is completed, and held to its contract, once: at the door."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.formats import FORMATS
from constructions.normalisers import (
    NORMALISERS,
    Normaliser,
    Relu,
    Softmax,
    check_normaliser,
    complete_normaliser,
)
from constructions.normalisers.completed import STATEMENTS
from tests.support.helpers import filled, integers, refused

every_format = pytest.mark.parametrize("dtype", FORMATS, ids=str)


@dataclass(frozen=True)
class Two:
    """A user's object of two methods: the softmax."""

    gap: float = 200.0

    def __call__(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def one_hot_gap(self, dtype: torch.dtype) -> float:
        return self.gap


class Stating(Two):
    """One that states everything, and is another at a sharpness."""

    shift_invariant = True

    @property
    def vanishes(self) -> bool:
        return self.gap > 200

    def at(self, sharpness: float) -> object:
        return {1.0: self, 2.0: Two(2.0)}.get(sharpness, Softmax())


class SubclassOfTwo(Two, Normaliser):
    """The same, of the base class."""


def having(**statements: Any) -> Any:
    """An object of the two methods that states this."""
    return type("Having", (Two,), statements)()


# Completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("normaliser", NORMALISERS.values(), ids=repr)
def test_a_normaliser_is_completed_by_itself(normaliser: Normaliser) -> None:
    assert complete_normaliser(normaliser) is normaliser


def test_an_object_is_completed_once_and_has_the_defaults() -> None:
    completed = complete_normaliser(Two())
    assert Normaliser in type(completed).__mro__
    assert complete_normaliser(completed) is completed
    assert (completed.shift_invariant, completed.vanishes) == (False, False)
    assert completed.at(3.0) is completed


@pytest.mark.parametrize("gap", [1.0, 201.0])
def test_a_completed_object_says_what_the_object_says(gap: float) -> None:
    completed, scores = complete_normaliser(Stating(gap)), integers(2, 3)
    assert torch.equal(completed(scores), scores.softmax(dim=-1))
    assert completed.one_hot_gap(torch.float32) == gap
    assert (completed.shift_invariant, completed.vanishes) == (True, gap > 200)
    assert completed.at(1.0) is completed
    assert completed.at(2.0) == complete_normaliser(Two(2.0))
    assert completed.at(3.0) == Softmax()


def test_a_function_with_a_gap_is_completed() -> None:
    def own(scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    own.one_hot_gap = lambda dtype: math.inf  # type: ignore[attr-defined]
    check_normaliser(complete_normaliser(own), torch.float32)


@pytest.mark.parametrize("own", [Two(), Two(2.0), Stating()], ids=repr)
@pytest.mark.parametrize(
    "copied",
    [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy],
    ids=["pickled", "copied"],
)
def test_a_completed_object_is_compared_printed_and_copied_as_the_object_is(
    own: Two, copied: Callable[[Any], Any]
) -> None:
    completed = complete_normaliser(own)
    assert repr(completed) == repr(own)
    assert copied(completed) == completed
    assert hash(copied(completed)) == hash(completed)
    assert completed != complete_normaliser(Two(9.0))
    with pytest.raises(AttributeError):
        completed.given = own  # type: ignore[attr-defined]


# Refusals at the door -----------------------------------------------------------------------------

NOT_NORMALISERS: dict[str, Any] = {
    "a name": "softmax",
    "nothing": None,
    "a class": Softmax,
    "no gap": torch.sigmoid,
    "not called": SimpleNamespace(one_hot_gap=Two().one_hot_gap),
}


@pytest.mark.parametrize("own", NOT_NORMALISERS.values(), ids=[*NOT_NORMALISERS])
def test_what_lacks_a_method_is_refused(own: object) -> None:
    wanted = "the methods of Normaliser, __call__ and one_hot_gap"
    with refused(TypeError, "normaliser", repr(own), wanted):
        complete_normaliser(own)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("shift_invariant", "no"),
        ("shift_invariant", None),
        ("vanishes", 1),
        ("at", 1.0),
        ("at", None),
    ],
)
@pytest.mark.parametrize("kind", [Two, Softmax], ids=["object", "subclass"])
def test_a_statement_of_another_type_is_refused(kind: type, name: str, value: Any) -> None:
    own = type("Wrong", (kind,), {name: value})()
    told, accepted = f"whose {name} is {value!r}", STATEMENTS[name].accepted
    with refused(TypeError, "normaliser", told, accepted):
        complete_normaliser(own)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("shift_invarient", "shift_invariant"),
        ("shiftInvariant", "shift_invariant"),
        ("vanish", "vanishes"),
        ("vanishs", "vanishes"),
    ],
)
@pytest.mark.parametrize("kind", [Two, Softmax], ids=["object", "subclass"])
def test_a_misspelt_statement_is_refused(kind: type, name: str, meant: str) -> None:
    own = type("Misspelt", (kind,), {name: True})()
    with refused(TypeError, "normaliser", repr(name), repr(meant)):
        complete_normaliser(own)


@pytest.mark.parametrize("name", ["temperature", "cat", "ate", "shift", "gap", "_vanish"])
def test_other_names_are_the_objects_own(name: str) -> None:
    assert not complete_normaliser(having(**{name: 3.0})).vanishes


# Held to the contract -----------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("normaliser", NORMALISERS.values(), ids=repr)
def test_every_normaliser_keeps_its_contract(normaliser: Normaliser, dtype: torch.dtype) -> None:
    for device in ("cpu", "meta"):
        check_normaliser(normaliser, dtype, device)


WRONG_WEIGHTS: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str, str]] = {
    "a sum": (lambda s: s.sum(dim=-1), ValueError, "shape (2, 2)", "the shape and dtype"),
    "over the queries": (lambda s: s[..., :1], ValueError, "shape (2, 2, 1)", "the shape"),
    "half": (lambda s: s.half(), ValueError, "torch.float16", "the shape and dtype"),
    "a mask": (lambda s: s == 0, ValueError, "torch.bool", "the shape and dtype"),
    "numbers": (lambda s: s.tolist(), TypeError, "a list", "a tensor"),
    "nothing": (lambda s: None, TypeError, "a NoneType", "a tensor"),
}


@pytest.mark.parametrize(
    ("weigh", "kind", "told", "accepted"), WRONG_WEIGHTS.values(), ids=[*WRONG_WEIGHTS]
)
@every_format
def test_weights_of_another_shape_or_dtype_are_refused(
    weigh: Callable[[Tensor], Any],
    kind: type[Exception],
    told: str,
    accepted: str,
    dtype: torch.dtype,
) -> None:
    own = having(__call__=lambda self, scores: weigh(scores))
    with refused(kind, "normaliser", told, accepted):
        check_normaliser(complete_normaliser(own), dtype)


@pytest.mark.parametrize("gap", [0.0, -1.0, -math.inf, math.nan, 0], ids=repr)
def test_a_gap_that_is_not_positive_is_refused(gap: float) -> None:
    with refused(ValueError, "normaliser", f"is {gap}", "a positive float, or inf"):
        check_normaliser(complete_normaliser(Two(gap)), torch.float32)


@pytest.mark.parametrize("gap", [None, "1", True, 1j, torch.tensor(1.0)], ids=repr)
def test_a_gap_that_is_no_number_is_refused(gap: Any) -> None:
    with refused(TypeError, "normaliser", type(gap).__name__, "a positive float, or inf"):
        check_normaliser(complete_normaliser(Two(gap)), torch.float32)


@given(gap=st.floats(min_value=0, exclude_min=True))
def test_every_positive_gap_is_accepted_the_infinite_too(gap: float) -> None:
    check_normaliser(complete_normaliser(Two(gap)), torch.float32)


# In a layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [None, 3.0])
def test_an_object_completed_or_of_the_base_class_makes_the_same_layer(
    sharpness: float | None,
) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1), 3)
    x, bare = integers(2, 2, 5, 4) / 7, Two()
    outputs = []
    normalisers: list[Any] = [bare, complete_normaliser(bare), SubclassOfTwo()]
    for normaliser in normalisers:
        layer = attention_from_conv(
            conv,
            normaliser=normaliser,
            sharpness=sharpness,
            evaluation="dense",
        )
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("own", [Two(), Two(201.0), Stating(), Stating(201.0)], ids=repr)
def test_traced_code_reads_the_same_statements(own: Two) -> None:
    completed = complete_normaliser(own)

    def told(x: Tensor) -> tuple[Tensor, bool, bool]:
        return x, completed.shift_invariant, completed.vanishes

    torch.compiler.reset()
    compiled = torch.compile(told, backend="eager", fullgraph=True)
    assert compiled(torch.ones(1))[1:] == (completed.shift_invariant, completed.vanishes)


def test_a_layer_takes_the_height_of_a_gate_for_its_sharpness() -> None:
    class Gate(Two):
        vanishes = True

        def at(self, sharpness: float) -> object:
            return Relu().at(sharpness)

    conv = filled(nn.Conv1d(2, 3, 3, padding=1))
    layer = attention_from_conv(conv, normaliser=complete_normaliser(Gate()), sharpness=2.0)
    assert layer.normaliser == Relu().at(2.0)
    assert not layer.has_sink
