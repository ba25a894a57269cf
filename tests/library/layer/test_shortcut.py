"""The shortcut of a layer is taken again only while nothing has changed that it rests on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from constructions import attention_from_conv
from constructions.layer import shortcut
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import edit_matrices, filled, integers
from tests.support.matrix_units import without_onednn

CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "zeros": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
    "strided, dilated, grouped": (
        lambda: nn.Conv2d(4, 2, 3, 2, 2, dilation=2, groups=2, padding_mode="replicate"),
        (4, 7, 6),
    ),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 3, 2, output_padding=1), (2, 5)),
    "one tap, no bias": (lambda: nn.Conv3d(2, 2, 1, bias=False), (2, 2, 3, 2)),
    "same": (lambda: nn.Conv1d(2, 2, 4, padding="same"), (2, 6)),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The outputs that came by a shortcut."""
    outputs: list[Tensor] = []
    call = shortcut.Shortcut.__call__

    def told(self: Any, layer: Any, x: Tensor) -> Tensor | None:
        y = call(self, layer, x)
        if y is not None:
            outputs.append(y)
        return y

    monkeypatch.setattr(shortcut.Shortcut, "__call__", told)
    return outputs


@pytest.mark.parametrize(("make", "size"), CONVOLUTIONS.values(), ids=[*CONVOLUTIONS])
def test_second_call_is_torchs_own_and_the_first_one_again(
    make: Callable[[], nn.Module], size: tuple[int, ...], taken: list[Tensor]
) -> None:
    conv: Any = filled(make())
    layer, x = attention_from_conv(conv), integers(2, *size)
    first = layer(x)
    assert not taken
    assert torch.equal(layer(x), first)
    assert len(taken) == 1
    assert torch.equal(layer(x[0]), first[0])  # another shape: asked anew
    assert len(taken) == 1
    assert torch.equal(first, conv(x))


def test_many_images_are_plain_sums_by_the_shortcut_too(taken: list[Tensor]) -> None:
    conv = filled(nn.Conv2d(1, 1, 3, padding=1, bias=False))
    layer, x = attention_from_conv(conv), integers(16, 1, 32, 32)
    wanted = conv(x)
    with without_onednn():
        layer(x)
        assert torch.equal(layer(x), wanted)
    assert taken


def edited(layer: MultiHeadSelfAttention) -> None:
    with torch.no_grad():
        layer.positional_shift.copy_(layer.positional_shift.flip(0))


def exchanged(layer: MultiHeadSelfAttention) -> None:
    layer.positional_shift = layer.positional_shift.flip(0)


def with_content(layer: MultiHeadSelfAttention) -> None:
    layer.unfreeze("content")
    with torch.no_grad():
        for term in (layer.query, layer.key, layer.content_bias):
            assert term is not None
            term.fill_(1.0)


def with_trained_shifts(layer: MultiHeadSelfAttention) -> None:
    layer.unfreeze("shifts")


def softened(layer: MultiHeadSelfAttention) -> None:
    layer.positional_sharpness = torch.tensor([1.0], dtype=torch.float64)


CHANGES = [edited, exchanged, with_content, with_trained_shifts, softened]


@pytest.mark.parametrize("change", CHANGES)
def test_change_of_what_it_rests_on_ends_it(
    change: Callable[[MultiHeadSelfAttention], None], taken: list[Tensor]
) -> None:
    layer, x = attention_from_conv(filled(nn.Conv2d(2, 3, 3, padding=1))), integers(1, 2, 5, 4)
    layer(x)
    fresh = copy.deepcopy(layer)
    change(layer)
    change(fresh)  # a layer that has never been called since
    y = layer(x)
    assert not taken
    assert torch.equal(y, fresh(x))


def test_other_numbers_are_taken_as_they_are(taken: list[Tensor]) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    layer, x = attention_from_conv(conv), integers(1, 2, 5, 4)
    layer(x)
    edit_matrices(layer, lambda matrices: matrices.mul_(2))
    with torch.no_grad():
        conv.weight.mul_(2)
    assert torch.equal(layer(x), conv(x))
    numbers = {"weight": -conv.weight.detach(), "bias": torch.ones(3)}
    assert torch.equal(functional_call(layer, numbers, (x,)), functional_call(conv, numbers, (x,)))
    layer.bias = None
    conv.bias = None
    assert torch.equal(layer(x), conv(x))
    assert len(taken) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_layer_moved_to_another_format_asks_anew(dtype: torch.dtype, taken: list[Tensor]) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    layer, x = attention_from_conv(conv), integers(1, 2, 5, 4)
    layer(x)
    layer.to(dtype)
    assert torch.equal(layer(x.to(dtype)), conv(x).to(dtype))
    with pytest.raises(ValueError, match="dtype"):
        layer(x)
    assert not taken


def test_autocast_and_output_sizes_are_asked_for_anew(taken: list[Tensor]) -> None:
    conv = filled(nn.ConvTranspose1d(2, 3, 3, 2))
    layer, x = attention_from_conv(conv), integers(1, 2, 5)
    assert torch.equal(layer(x, [12]), conv(x, [12]))
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.equal(layer(x, [12]), conv(x, [12]))
    assert not taken


def test_copy_has_no_shortcut_of_another_layer() -> None:
    layer = attention_from_conv(nn.Conv1d(1, 1, 3))
    layer(torch.zeros(1, 1, 5))
    assert layer._shortcut is not None
    assert copy.deepcopy(layer)._shortcut is None


def test_no_more_shapes_are_kept_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "MOST_INPUTS", 2)
    layer = attention_from_conv(nn.Conv1d(1, 1, 1))
    for size in range(1, 6):
        layer(torch.zeros(1, 1, size))
    assert layer._shortcut is not None
    assert len(layer._shortcut._inputs) <= 2


def test_layer_made_in_inference_mode_is_asked_each_time() -> None:
    with torch.inference_mode():
        layer = attention_from_conv(nn.Conv1d(1, 1, 3))
        x = torch.zeros(1, 1, 5)
        layer(x)
        assert layer._shortcut is None
