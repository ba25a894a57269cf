"""A lowered layer says what it is, and is differentiated and called as a module."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import constructions.lowering
from constructions import attention_from_conv, lower
from constructions.encodings import Encoding, Quadratic
from constructions.geometry.lattice import Lattice
from constructions.layer.soft_padding import Banded
from constructions.lowering import Lowered
from constructions.lowering.bands import Squares, SumOverAxes
from tests.support.helpers import filled, integers, refused, traced


def test_door_has_what_is_returned() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3), sharpness=1.0)
    lowered = lower(layer)
    assert constructions.lowering.lower is lower
    assert type(lowered) is constructions.lowering.Lowered
    assert type(lowered.cost((5,))) is constructions.lowering.Cost


@pytest.mark.parametrize(("mode", "is_named"), [("zeros", True), ("circular", False)], ids=str)
def test_precision_is_named_where_there_is_one(mode: str, is_named: bool) -> None:
    kind: Any = nn.Conv1d
    conv = filled(kind(1, 1, 3, padding=1, padding_mode=mode))
    lowered = lower(attention_from_conv(conv, sharpness=1.5))  # circles have periodic scores
    (group,) = lowered.head_groups
    assert isinstance(group.scores, Squares) is is_named
    assert group.scores.precision == (1.5 if is_named else None)
    assert ("precision=1.5" in repr(lowered)) is is_named


def test_sink_of_a_lowered_layer_stands_at_the_layer_s_height() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3, padding=1), sharpness=3.0)
    (group,) = lower(layer).head_groups
    assert isinstance(group.scores, Squares)
    assert group.scores.sink == -0.5 * 3.0


def test_spans_that_look_alike_are_one() -> None:
    # In the middle of a long line all blocks look alike; at either end one does not.
    line = Lattice.box((1000,))
    (factor,) = Squares(2.0, (0.25,), None).padding(line, line, 1e-6).factors
    assert isinstance(factor, Banded)
    assert len(factor.bands) > 10
    assert len({id(entries) for entries in factor.entries}) == 3


def test_whole_rows_are_multiplied_at_once() -> None:
    # As many products as are counted, whatever underflows.
    line = Lattice.box((200,))
    layer = attention_from_conv(
        nn.Conv1d(1, 1, 3, padding=1), encoding="periodic", sharpness=50.0, boundary="padded"
    )
    (group,) = lower(layer).head_groups
    assert isinstance(group.scores, SumOverAxes)
    (factor,) = group.scores.padding(line, line, 0.0).factors
    assert [span.size for span in factor.spans()] == [200 * 200]


# As a module --------------------------------------------------------------------------------------


def narrow() -> Lowered:
    """Heads apart, each of its own precision, that read fewer channels than the pixels have."""
    weight = torch.tensor([[0.5, 0.0, -1.0], [0.0, 1.0, -2.0]])
    return Lowered.from_scores(weight, integers(2, 3, 1), integers(2, 1, 3))


KINDS: dict[str, Any] = {
    "valid": lambda: lower(attention_from_conv(filled(nn.Conv2d(3, 4, 3)), sharpness=3.0)),
    "zeros": lambda: lower(
        attention_from_conv(filled(nn.Conv2d(3, 4, 3, 2, padding=1)), sharpness=3.0)
    ),
    "circular": lambda: lower(
        attention_from_conv(
            filled(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), sharpness=3.0
        )
    ),
    "transposed": lambda: lower(
        attention_from_conv(filled(nn.ConvTranspose2d(3, 4, 3, stride=2)), sharpness=3.0)
    ),
    "pooling": lambda: lower(attention_from_conv(nn.AvgPool2d(2))),
    "narrow": narrow,
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
THOROUGH = pytest.mark.thorough  # an export takes a second or two
SOME_KINDS = pytest.mark.parametrize(
    "kind",
    [n if n in ("zeros", "circular") else pytest.param(n, marks=THOROUGH) for n in KINDS],
)


def assert_agree(found: Tensor, lowered: Lowered, x: Tensor) -> None:
    """Both stand for one function, each within the bound."""
    error = (found.double() - lowered(x).double()).abs()
    assert (error <= 2 * lowered.error_bound(x)).all()


@EVERY_KIND
def test_a_first_call_in_inference_mode_serves_gradients(kind: str) -> None:
    lowered, x = KINDS[kind](), integers(2, 3, 9, 8)
    with torch.inference_mode():
        first = lowered(x)
    x.requires_grad_()
    y = lowered(x)
    y.sum().backward()
    assert torch.equal(y, first)
    assert x.grad is not None


def test_a_layer_lowered_in_inference_mode_serves_gradients() -> None:
    with torch.inference_mode():
        lowered = KINDS["zeros"]()
    x = integers(2, 3, 9, 8).requires_grad_()
    lowered(x).sum().backward()
    assert torch.equal(lowered(x), KINDS["zeros"]()(x))


@SOME_KINDS
def test_a_layer_is_compiled_before_its_first_call(kind: str) -> None:
    x = integers(2, 3, 9, 8)
    assert_agree(traced(KINDS[kind]())(x), KINDS[kind](), x)


@pytest.mark.parametrize(
    "strict", [True, pytest.param(False, marks=THOROUGH)], ids=["strict", "not strict"]
)
@pytest.mark.parametrize(
    "sizes", [*(pytest.param(n, marks=THOROUGH) for n in ("static", "batch")), "all"]
)
@SOME_KINDS
def test_a_layer_is_exported_before_its_first_call(kind: str, sizes: str, strict: bool) -> None:
    axes = {"static": (), "batch": (0,), "all": (0, 2, 3)}[sizes]
    torch.compiler.reset()
    dynamic = dict.fromkeys(axes, Dim.DYNAMIC)
    exported = torch.export.export(
        KINDS[kind](), (integers(2, 3, 9, 8),), dynamic_shapes=(dynamic,), strict=strict
    ).module()
    shapes = {"static": [(2, 9, 8)], "batch": [(2, 9, 8), (5, 9, 8)]}
    for batch, *grid in shapes.get(sizes, [(2, 9, 8), (1, 12, 13), (3, 70, 5)]):
        x = integers(batch, 3, *grid)
        assert_agree(exported(x), KINDS[kind](), x)


def test_a_layer_whose_gap_has_no_closed_form_is_exported_with_batches_of_any_size() -> None:
    conv, x = filled(nn.Conv2d(3, 4, 3)), integers(2, 3, 9, 8)
    layer = attention_from_conv(conv, encoding="rotary", sharpness=3.0)
    exported = torch.export.export(
        lower(layer), (x,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=True
    ).module()
    assert_agree(traced(lower(layer))(x), lower(layer), x)
    for batch in (2, 5):
        x = integers(batch, 3, 9, 8)
        assert_agree(exported(x), lower(layer), x)


def test_traced_code_looks_at_no_number_of_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(*_: Any) -> Any:
        raise AssertionError("spans were asked for")

    monkeypatch.setattr(Squares, "spans", looked_at)
    x = integers(1, 3, 9, 8)
    with pytest.raises(AssertionError, match="asked for"):
        KINDS["valid"]()(x)
    traced(KINDS["valid"]())(x)


@EVERY_KIND
def test_an_empty_batch_has_an_empty_output_and_bound(kind: str) -> None:
    lowered, x = KINDS[kind](), integers(2, 3, 9, 8)
    empty = lowered(x[:0])
    assert empty.shape == lowered(x)[:0].shape
    assert lowered.error_bound(x[:0]).shape == empty.shape


def test_autocast_changes_the_format_of_input_and_output_alone() -> None:
    lowered, x = KINDS["zeros"](), integers(2, 3, 9, 8)
    expected = lowered(x).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lowered(x), expected)  # integers, which bfloat16 has
        assert torch.equal(lowered(x.bfloat16()), expected)
        with refused(ValueError, "autocast", "on", "off"):
            lowered.error_bound(x)
    with refused(ValueError, "x", "bfloat16", "float32"):
        lowered(x.bfloat16())


def test_input_is_called_as_torch_calls_it() -> None:
    lowered, x = KINDS["zeros"](), integers(2, 3, 9, 8)
    assert torch.equal(lowered(input=x), lowered(x))


def test_numbers_of_numpy_are_numbers() -> None:
    layer = attention_from_conv(filled(nn.ConvTranspose2d(3, 4, 3, stride=2)), sharpness=3.0)
    lowered, x = lower(layer, tolerance=np.float64(0.0)), integers(2, 3, 9, 8)
    size = np.array([20, 18])
    assert torch.equal(lowered(x, tuple(size)), lowered(x, (20, 18)))
    assert lowered.cost(tuple(size)) == lowered.cost((20, 18))


# Its state ----------------------------------------------------------------------------------------


def test_state_dict_round_trips() -> None:
    conv, other = filled(nn.Conv2d(3, 4, 3)), nn.Conv2d(3, 4, 3)
    lowered, same = (lower(attention_from_conv(c, sharpness=3.0)) for c in (conv, other))
    x = integers(2, 3, 9, 8)
    assert not torch.equal(same(x), lowered(x))
    file = io.BytesIO()
    torch.save(lowered.state_dict(), file)
    file.seek(0)
    same.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(same(x), lowered(x))


class Wordless(Encoding):
    """An encoding of a user's, whose `repr` says where it lies in memory."""

    def on_axis(self, axis: int) -> Encoding:
        return self

    def encode(self, displacements: Tensor, shifts: Tensor, grid: Lattice) -> tuple[Tensor, Tensor]:
        return Quadratic().encode(displacements, shifts, grid)

    def gap(self, shifts: Tensor, grid: Lattice) -> float:
        return 1.0


def test_state_of_an_encoding_without_words_is_taken_by_another_of_its_class() -> None:
    conv = filled(nn.Conv2d(3, 4, 3))
    kept = [Wordless(), Wordless()]
    lowered, same = (lower(attention_from_conv(conv, encoding=e, sharpness=3.0)) for e in kept)
    assert repr(kept[0]) != repr(kept[1])
    assert repr(lowered.head_groups) != repr(same.head_groups)
    same.load_state_dict(lowered.state_dict())


def test_numbers_that_are_changed_are_those_that_are_used() -> None:
    lowered, x = KINDS["zeros"](), integers(2, 3, 9, 8)
    before = lowered(x)
    lowered.output.mul_(2)
    assert lowered.bias is not None
    lowered.bias.mul_(2)
    assert torch.equal(lowered(x), 2 * before)


@pytest.mark.parametrize(
    "other",
    [
        lambda: lower(attention_from_conv(nn.Conv2d(3, 4, 3), sharpness=4.0)),
        lambda: lower(attention_from_conv(nn.Conv2d(3, 4, 3, dilation=2), sharpness=3.0)),
        lambda: lower(attention_from_conv(nn.Conv2d(3, 4, 3), sharpness=3.0), tolerance=0.1),
        lambda: lower(attention_from_conv(nn.Conv2d(3, 4, 3, padding=1), sharpness=3.0)),
    ],
    ids=["another sharpness", "other shifts", "another tolerance", "another border"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_state_of_another_layout_is_refused(other: Any, strict: bool) -> None:
    lowered = KINDS["valid"]()
    before = {name: tensor.clone() for name, tensor in lowered.state_dict().items()}
    state = other().state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "layout"}
    for given in (state, without):
        with pytest.raises(RuntimeError, match="accepted: the state_dict of one lowered from"):
            lowered.load_state_dict(given, strict=strict)
    assert all(torch.equal(lowered.state_dict()[name], before[name]) for name in before)
