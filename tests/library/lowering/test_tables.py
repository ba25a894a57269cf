"""Layers lowered through the tables of their scores."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv, lower
from constructions.encodings import BiasTable, Encoding, Gaussian, Scored, T5Buckets
from constructions.lowering.tables import OfEncoding
from tests.support.helpers import filled, integers, refused


def city_block(displacements: Tensor) -> Tensor:
    return -displacements.abs().sum(-1)


ENCODINGS: dict[str, Encoding] = {
    "a score function": Scored(city_block, 2),
    "a sheared Gaussian": Gaussian(((2.0, 1.0), (1.0, 2.0))),
    "a table": BiasTable(),
}
PLANES: dict[str, Any] = {
    "stride": nn.Conv2d(2, 3, 3, padding=1, stride=2),
    "replicate": nn.Conv2d(2, 3, (2, 3), padding=1, padding_mode="replicate"),
    "groups": nn.Conv2d(4, 2, 3, groups=2),
    "transposed": nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1),
}


def agrees(layer: Any, x: Tensor, fast: Any = None) -> bool:
    """Whether the lowered layer is within its bound of the definition, computed in float64."""
    fast, wide = fast or lower(layer), copy.deepcopy(layer).double()
    with torch.no_grad():
        off = (fast(x).double() - wide(x.double())).abs()
    return bool((off <= fast.error_bound(x) + lower(wide).error_bound(x.double())).all())


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_layer_of_any_encoding_of_displacements_is_lowered(encoding: str, plane: str) -> None:
    conv = filled(PLANES[plane], 7)
    layer = attention_from_conv(
        conv, encoding=ENCODINGS[encoding], sharpness=2.0, evaluation="dense"
    )
    fast = lower(layer)
    assert all(isinstance(group.scores, OfEncoding) for group in fast.head_groups)
    assert agrees(layer, integers(2, conv.in_channels, 5, 6), fast)
    # What is a function of key less target is one P for all heads.
    shared = encoding != "a table"
    assert len(fast.head_groups) == (1 if shared else layer.num_heads)


@pytest.mark.parametrize("encoding", ["a sheared Gaussian", "a table"])
def test_heads_that_were_edited_have_tables_of_their_own(encoding: str) -> None:
    layer = attention_from_conv(
        filled(nn.Conv2d(2, 3, 3, padding=1), 7),
        encoding=ENCODINGS[encoding],
        sharpness=2.0,
        evaluation="dense",
    )
    with torch.no_grad():
        key = layer.positional_key
        key[1] += integers(*key.shape[1:], dtype=key.dtype) / 16
        key[5] *= -0.5
    x = integers(2, 2, 5, 6)
    assert agrees(layer, x)
    before = lower(layer)
    with torch.no_grad():
        key[1] *= 2
    assert not agrees(layer, x, before)


def test_buckets_of_one_axis_are_lowered() -> None:
    conv = filled(nn.Conv1d(2, 2, 5, padding=2), 7)
    layer = attention_from_conv(conv, encoding=T5Buckets(), sharpness=3.0)
    assert agrees(layer, integers(2, 2, 40))


def test_cost_is_that_of_the_products() -> None:
    layer = attention_from_conv(
        filled(nn.Conv2d(2, 3, 3)), encoding=Scored(city_block, 2), sharpness=1.0
    )
    keys, queries = 5 * 6, 3 * 4
    cost = lower(layer).cost((5, 6))
    assert cost.padding == 2 * keys * keys  # of both channels, to every target
    assert cost.mixing == 9 * queries * 2 * 3


def test_state_dict_is_taken_by_a_layer_of_the_same_scores_alone() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    layers = [
        attention_from_conv(conv, encoding=Scored(city_block, reach), sharpness=s)
        for reach, s in ((2, 1.0), (2, 1.0), (3, 1.0), (2, 2.0))
    ]
    first, same, *others = (lower(layer) for layer in layers)
    same.load_state_dict(first.state_dict())
    for other in others:
        with pytest.raises(RuntimeError):
            other.load_state_dict(first.state_dict())


def test_table_of_positions_is_refused() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3), encoding="sinusoidal", sharpness=1.0)
    lower(layer)  # a sum over axes
    with torch.no_grad():
        layer.positional_shift += 0.5
    with refused(ValueError, "layer", "where keys stand", "displacements"):
        lower(layer)


def test_traced_code_that_would_make_a_table_is_refused() -> None:
    layer = attention_from_conv(
        nn.Conv2d(1, 1, 3), encoding=Gaussian(((2.0, 1.0), (1.0, 2.0))), sharpness=1.0
    )
    with pytest.raises(ValueError, match="traced code cannot make; accepted"):
        torch.export.export(lower(layer), (torch.rand(1, 1, 5, 5),))
