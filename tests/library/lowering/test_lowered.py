"""A lowered layer says what it is, and is differentiated and called as a module."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import constructions.lowering
from constructions import attention_from_conv, lower
from constructions.geometry.lattice import Lattice
from constructions.layer.soft_padding import Banded
from constructions.lowering.bands import Squares, SumOverAxes
from tests.support.helpers import filled


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
