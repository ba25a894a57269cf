"""An object of the two methods is completed, and held to its contract, once: at the door."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import attention_from_conv
from constructions.encodings import (
    ENCODINGS,
    Absolute,
    Encoding,
    EncodingLike,
    Flattened,
    Mixing,
    Quadratic,
    Scalar,
    Window,
    check_encoding,
    complete_encoding,
)
from constructions.encodings.completed import STATEMENTS
from constructions.geometry.lattice import Lattice
from tests.library.encodings.test_base import DEFAULTS, GRID, SHIFTS
from tests.support.helpers import filled, integers, refused


@dataclass(frozen=True)
class Two:
    """A user's object of two methods, in quadratic scores."""

    size: float = 1.0

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        squares = displacements.square().sum(dim=-1, keepdim=True)
        names = torch.cat([-torch.ones_like(shifts[:, :1]), 2 * shifts], dim=-1)
        return torch.cat([squares, displacements], dim=-1), names

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return self.size


class Stating(Two):
    """One that states everything, by attributes and properties, and by objects like itself."""

    theorem = "some_slug"
    crowded = False
    everywhere = True
    integer_differences = True

    @property
    def bounded_reach(self) -> bool:
        return self.size > 1

    @property
    def absolute(self) -> bool:
        return self.size > 2

    @property
    def natural_borders(self) -> Mapping[str, EncodingLike | None]:
        return {"replicate": self, "circular": Two(7.0), "reflect": Quadratic(), "zeros": None}

    def on_axis(self, axis: int) -> EncodingLike | None:
        return (self, Two(7.0), Quadratic(), None)[axis]

    def score_error(self, shifts: Tensor, grid: Lattice) -> float:
        return self.size / 4


class Mixed:
    """A user's object whose heads mix: those of the scalar encoding."""

    def __init__(self) -> None:
        scalar = Scalar()
        self.encode, self.gap = scalar.encode, scalar.gap
        self.heads, self.coefficients = scalar.heads, scalar.coefficients
        self.gains = scalar.gains


FLAGS = [name for name, default in DEFAULTS.items() if isinstance(default, bool)]


def having(**statements: Any) -> Any:
    """An object of the two methods that states this."""
    return type("Having", (Two,), statements)()


# Completion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [*ENCODINGS.values(), Window((2,))], ids=repr)
def test_an_encoding_is_completed_by_itself(encoding: Encoding) -> None:
    assert complete_encoding(encoding) is encoding


def test_an_object_is_completed_once() -> None:
    completed = complete_encoding(Two())
    assert Encoding in type(completed).__mro__
    assert complete_encoding(completed) is completed


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_an_object_does_not_state_has_the_default(name: str) -> None:
    assert getattr(complete_encoding(Two()), name) == DEFAULTS[name]


def test_methods_that_an_object_does_not_have_are_those_of_every_encoding() -> None:
    completed = complete_encoding(Two())
    assert completed.on_axis(0) is None
    assert completed.axes(1) is None
    assert completed.score_error(SHIFTS, GRID) == completed.relative_score_error(SHIFTS, GRID) == 0
    assert completed.natural("zeros") is completed
    assert completed.natural("replicate") is None
    assert not isinstance(completed, Mixing)


@pytest.mark.parametrize("size", [1.0, 2.0, 3.0])
def test_a_completed_object_says_what_the_object_says(size: float) -> None:
    own = Stating(size)
    completed = complete_encoding(own)
    for name in DEFAULTS.keys() - {"natural_borders"}:
        assert getattr(completed, name) == getattr(own, name)
    assert completed.score_error(SHIFTS, GRID) == own.size / 4
    assert completed.relative_score_error(SHIFTS, GRID) == 1 / 2
    assert completed.gap(SHIFTS, GRID) == size
    found, wanted = completed.encode(SHIFTS, SHIFTS, GRID), own.encode(SHIFTS, SHIFTS, GRID)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_encodings_that_an_object_speaks_of_are_completed_too() -> None:
    completed = complete_encoding(Stating())
    other = complete_encoding(Two(7.0))
    assert completed.on_axis(0) is completed
    assert [completed.on_axis(axis) for axis in (1, 2, 3)] == [other, Quadratic(), None]
    assert completed.axes(3) == (completed, other, Quadratic())
    assert completed.axes(4) is None
    borders = {"replicate": completed, "circular": other, "reflect": Quadratic(), "zeros": None}
    assert completed.natural_borders == borders
    assert completed.natural("replicate") is completed
    assert completed.natural("zeros") is None


def test_an_object_whose_heads_mix_is_completed_as_mixing() -> None:
    completed, scalar = complete_encoding(Mixed()), Scalar()
    assert isinstance(completed, Mixing)
    assert Mixing in type(completed).__mro__
    offsets, keys = SHIFTS[:, :1], Lattice.box((5,))
    heads = completed.heads(offsets)
    assert torch.equal(heads, scalar.heads(offsets))
    assert torch.equal(completed.coefficients(offsets), scalar.coefficients(offsets))
    assert torch.equal(completed.gains(heads, keys), scalar.gains(heads, keys))
    assert check_encoding(completed, heads, keys) == 1


def test_absolute_completes_the_encoding_that_it_is_made_of() -> None:
    absolute = Absolute(Two())  # type: ignore[arg-type]
    assert absolute.relative == complete_encoding(Two())
    assert repr(absolute) == "Absolute(relative=Two(size=1.0))"
    assert (absolute.absolute, absolute.crowded, absolute.axes(1)) == (True, True, None)
    borders = Absolute(Stating()).natural_borders  # type: ignore[arg-type]
    assert borders["replicate"] == Absolute(Stating())  # type: ignore[arg-type]
    with refused(TypeError, "relative", "'quadratic'", "the methods of Encoding"):
        Absolute("quadratic")  # type: ignore[arg-type]


# As a value ---------------------------------------------------------------------------------------

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickled": lambda value: pickle.loads(pickle.dumps(value)),
    "copied": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=[*COPIES])
@pytest.mark.parametrize("own", [Two(), Two(2.0), Stating()], ids=repr)
def test_a_completed_object_is_compared_printed_and_copied_as_the_object_is(
    own: Two, copied: Callable[[Any], Any]
) -> None:
    completed = complete_encoding(own)
    assert repr(completed) == repr(own)
    assert copied(completed) == completed
    assert hash(copied(completed)) == hash(completed)
    assert completed == complete_encoding(copy.copy(own))
    assert completed != complete_encoding(Two(9.0))
    with pytest.raises(AttributeError):
        completed.given = own  # type: ignore[attr-defined]


def test_objects_that_are_not_compared_are_equal_to_themselves_alone() -> None:
    one, other = Mixed(), Mixed()
    assert complete_encoding(one) == complete_encoding(one)
    assert complete_encoding(one) != complete_encoding(other)


# Refusals at the door -----------------------------------------------------------------------------

NOT_ENCODINGS: dict[str, Any] = {
    "a name": "quadratic",
    "nothing": None,
    "a class": Quadratic,
    "a class of the user's": Two,
    "no gap": SimpleNamespace(encode=Two().encode),
    "no encode": SimpleNamespace(gap=Two().gap),
    "a gap that is no method": SimpleNamespace(encode=Two().encode, gap=1.0),
}


@pytest.mark.parametrize("own", NOT_ENCODINGS.values(), ids=[*NOT_ENCODINGS])
def test_what_lacks_a_method_is_refused(own: object) -> None:
    with refused(TypeError, "encoding", repr(own), "the methods of Encoding, encode and gap"):
        complete_encoding(own)


WRONG: dict[str, list[Any]] = {
    "theorem": [3, b"slug"],
    "natural_borders": ["zeros", ["zeros"], {1: None}, {"zeros": "quadratic"}, {"zeros": Two}],
    "on_axis": [None, True],
    "score_error": [0.0, None],
    **{name: ["no", 1, None] for name in FLAGS},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(n, v, id=f"{n} {v!r}") for n, values in WRONG.items() for v in values],
)
@pytest.mark.parametrize("kind", [Two, Quadratic], ids=["object", "subclass"])
def test_a_statement_of_another_type_is_refused(kind: type, name: str, value: Any) -> None:
    own = type("Wrong", (kind,), {name: value})()
    accepted = STATEMENTS[name].accepted
    with refused(TypeError, "encoding", f"whose {name} is {value!r}", accepted):
        complete_encoding(own)


def test_every_statement_has_a_wrong_one_above() -> None:
    assert WRONG.keys() == STATEMENTS.keys()


MISSPELT = {
    "crowdad": "crowded",
    "Crowded": "crowded",
    "is_crowded": "crowded",
    "bounded_reech": "bounded_reach",
    "theorems": "theorem",
    "absolut": "absolute",
    "everywere": "everywhere",
    "integer_difference": "integer_differences",
    "naturalBorders": "natural_borders",
    "on_axes": "on_axis",
    "score_err": "score_error",
}


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
@pytest.mark.parametrize("kind", [Two, Quadratic], ids=["object", "subclass"])
def test_a_misspelt_statement_is_refused(kind: type, name: str, meant: str) -> None:
    own = type("Misspelt", (kind,), {name: True})()
    with refused(TypeError, "encoding", repr(name), repr(meant)):
        complete_encoding(own)


@given(data=st.data())
def test_a_statement_with_one_letter_left_out_or_doubled_is_refused(data: st.DataObject) -> None:
    meant = data.draw(st.sampled_from(sorted(STATEMENTS)))
    place = data.draw(st.integers(1, len(meant) - 1))
    cut = data.draw(st.booleans())
    name = meant[:place] + meant[place + 1 :] if cut else meant[:place] + meant[place - 1 :]
    with refused(TypeError, "encoding", repr(name), "accepted"):
        complete_encoding(having(**{name: False}))


@pytest.mark.parametrize(
    "name",
    ["steps", "axis", "axes", "relative", "theory", "_crowdad", "gaps", "weights", "natural"],
)
def test_other_names_are_the_objects_own(name: str) -> None:
    completed = complete_encoding(having(**{name: 3}))
    assert completed.crowded


def test_a_module_is_taken_for_an_encoding_if_it_has_the_methods() -> None:
    class Learned(nn.Module):
        def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> Any:
            return displacements, shifts

        def gap(self, shifts: Tensor, grid: Lattice) -> float:
            return 1.0

    assert complete_encoding(Learned()).gap(SHIFTS, GRID) == 1


def test_a_property_that_fails_is_not_taken_for_one_that_is_not_there() -> None:
    def fail(self: object) -> bool:
        raise AttributeError("nothing of the kind")

    with pytest.raises(AttributeError, match="nothing of the kind"):
        complete_encoding(having(crowded=property(fail)))


# Held to the contract -----------------------------------------------------------------------------


def answering(features: Any, names: Any, gap: Any = 1.0) -> Encoding:
    """An encoding that answers so, whatever it is asked."""

    class Answering:
        def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> Any:
            return features, names

        def gap(self, shifts: Tensor, grid: Lattice) -> Any:
            return gap

        def __repr__(self) -> str:
            return "Answering()"

    return complete_encoding(Answering())


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_keeps_its_contract(name: str) -> None:
    encoding = ENCODINGS[name]
    # One dimension and the shift 0 suit all of them; to mix, heads are one more than the taps.
    shifts = torch.zeros(1, 1, dtype=torch.float64)
    if isinstance(encoding, Mixing):
        shifts = encoding.heads(shifts)
    width = check_encoding(encoding, shifts, Lattice.box((3,)))
    assert width == encoding.encode(shifts, shifts, Lattice.box((3,)))[0].shape[-1]


def test_objects_keep_their_contract_and_tell_their_width() -> None:
    assert check_encoding(complete_encoding(Two()), SHIFTS, GRID) == 3


M, H = len(SHIFTS) + 1, len(SHIFTS)
ANSWERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]] = {
    "features of one axis": ((M,), (H, 2), "features"),
    "features of three axes": ((M, 2, 1), (H, 2), "features"),
    "a feature too few": ((M - 1, 2), (H, 2), "features"),
    "a feature too many": ((M + 1, 2), (H, 2), "features"),
    "names of one axis": ((M, 2), (H,), "names"),
    "a name for each displacement": ((M, 2), (M, 2), "names"),
    "another width": ((M, 2), (H, 3), "names"),
    "swapped": ((H, 2), (M, 2), "features"),
    "transposed": ((2, M), (2, H), "features"),
}


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize(("features", "names", "what"), ANSWERS.values(), ids=[*ANSWERS])
def test_features_and_names_of_another_shape_are_refused(
    features: tuple[int, ...], names: tuple[int, ...], what: str, where: str
) -> None:
    shifts = SHIFTS.to(where)
    encoding = answering(shifts.new_zeros(features), shifts.new_zeros(names))
    given_shape = features if what == "features" else names
    rows = M if what == "features" else H
    with refused(
        ValueError, "encoding is Answering()", f"{what} of shape {given_shape}", f"({rows}, D_p)"
    ):
        check_encoding(encoding, shifts, GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128], ids=str)
@pytest.mark.parametrize("what", ["features", "names"])
def test_features_and_names_of_another_dtype_are_refused(what: str, dtype: torch.dtype) -> None:
    features, names = torch.zeros(M, 2).double(), torch.zeros(H, 2).double()
    if what == "features":
        features = features.to(dtype)
    else:
        names = names.to(dtype)
    with refused(ValueError, "encoding", f"{what} of dtype {dtype}", "torch.float64"):
        check_encoding(answering(features, names), SHIFTS, GRID)


def test_features_on_another_device_are_refused() -> None:
    features = torch.zeros(M, 2, dtype=torch.float64, device="meta")
    with refused(ValueError, "encoding", "on meta", "on cpu"):
        check_encoding(answering(features, torch.zeros(H, 2).double()), SHIFTS, GRID)


NO_TENSORS: dict[str, tuple[Any, str]] = {
    "a tensor": (torch.zeros(2, 2), "a Tensor"),
    "one": ((torch.zeros(M, 2),), "a tuple of 1"),
    "three": ((torch.zeros(M, 2),) * 3, "a tuple of 3"),
    "numbers": ((1.0, 2.0), "1.0, 2.0"),
    "nothing": (None, "None"),
}


@pytest.mark.parametrize(("answer", "told"), NO_TENSORS.values(), ids=[*NO_TENSORS])
def test_what_is_no_pair_of_tensors_is_refused(answer: Any, told: str) -> None:
    own = having(encode=lambda *_: answer)
    with refused(TypeError, "encoding", told, "a tuple of two tensors"):
        check_encoding(complete_encoding(own), SHIFTS, GRID)


@pytest.mark.parametrize("gap", [0.0, -1.0, float("inf"), float("nan"), 0, -0.0], ids=repr)
def test_a_gap_that_is_not_positive_and_finite_is_refused(gap: float) -> None:
    with refused(ValueError, "encoding is Two", f"gap is {gap}", "positive, finite"):
        check_encoding(complete_encoding(Two(gap)), SHIFTS, GRID)


@pytest.mark.parametrize("gap", [None, "1", True, 1j, torch.tensor(1.0)], ids=repr)
def test_a_gap_that_is_no_number_is_refused(gap: Any) -> None:
    with refused(TypeError, "encoding", "whose gap is", "positive, finite"):
        check_encoding(complete_encoding(Two(gap)), SHIFTS, GRID)


@given(gap=st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_positive_finite_gap_is_accepted(gap: float) -> None:
    assert check_encoding(complete_encoding(Two(gap)), SHIFTS, GRID) == 3


def test_what_an_encoding_refuses_is_refused_by_itself() -> None:
    with pytest.raises(ValueError, match="radix is"):
        check_encoding(Flattened((1, 1)), SHIFTS, GRID)


def test_no_value_is_looked_at_on_the_meta_device() -> None:
    own = having(gap=lambda *_: 1 / 0)
    assert check_encoding(complete_encoding(own), SHIFTS.to("meta"), GRID) == 3
    with pytest.raises(ZeroDivisionError):
        check_encoding(complete_encoding(own), SHIFTS, GRID)


# In a layer ---------------------------------------------------------------------------------------


class SubclassOfTwo(Two, Encoding):
    """The same, of the base class."""


@pytest.mark.parametrize("sharpness", [None, 3.0])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate"])
def test_an_object_completed_or_of_the_base_class_makes_the_same_layer(
    padding_mode: Any, sharpness: float | None
) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, padding_mode=padding_mode), 3)
    x = integers(2, 2, 5, 4) / 7
    bare: Any = Two()
    outputs, weights = [], []
    for encoding in (bare, complete_encoding(bare), SubclassOfTwo()):
        layer = attention_from_conv(
            conv, encoding=encoding, sharpness=sharpness, evaluation="dense"
        )
        outputs.append(layer(x))
        weights.append(layer.attention_weights((5, 4)))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("own", [Two(), Stating(), Stating(3.0)], ids=repr)
def test_traced_code_reads_the_same_statements(own: Two) -> None:
    completed = complete_encoding(own)

    def told(x: Tensor) -> tuple[Tensor, list[Any]]:
        return x, [getattr(completed, name) for name in sorted(FLAGS)]

    torch.compiler.reset()
    compiled = torch.compile(told, backend="eager", fullgraph=True)
    assert compiled(SHIFTS)[1] == [getattr(completed, name) for name in sorted(FLAGS)]


@pytest.mark.parametrize("own", [Stating(), Two()], ids=repr)
def test_a_layer_with_a_completed_object_is_traced_whole(own: Two) -> None:
    layer = attention_from_conv(
        filled(nn.Conv1d(2, 3, 3, padding=1)), encoding=complete_encoding(own), sharpness=3.0
    )
    x = integers(2, 2, 5)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))
