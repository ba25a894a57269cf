"""A layer of images in the place of a transformer's attention."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from constructions import attention_from_conv
from constructions.stock.tokens import on_tokens
from tests.support.helpers import filled, integers, refused


def layer_of(rank: int, **options: Any) -> nn.Module:
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    layer: nn.Module = attention_from_conv(filled(kinds[rank](3, 3, 3, padding=1)), **options)
    return layer


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("grid", [(4,), (3, 5), (2, 3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_pixels_pass_through_the_layer_and_the_prefix_is_passed_by(
    prefix: int, grid: tuple[int, ...], batch: int
) -> None:
    layer = layer_of(len(grid))
    image, before = integers(batch, 3, *grid), 100 + integers(batch, prefix, 3)
    tokens = torch.cat([before, image.flatten(2).transpose(1, 2)], dim=1)
    y = on_tokens(layer, grid, prefix)(tokens)
    assert y.shape == tokens.shape
    assert torch.equal(y[:, :prefix], before)
    expected = layer(image).flatten(2).transpose(1, 2)
    assert torch.equal(y[:, prefix:], expected)


def test_one_token_stands_before_the_pixels_unless_it_is_said() -> None:
    assert on_tokens(layer_of(2), (2, 2)).prefix == 1


def test_function_is_found_again_after_its_first_use() -> None:
    door: Any = importlib.import_module("constructions").stock
    for _ in range(2):
        assert door.on_tokens(layer_of(2), grid=(2, 2)).grid == (2, 2)


def test_gradients_reach_pixels_and_prefix() -> None:
    module = on_tokens(layer_of(2, sharpness=3.0), (3, 2), 1)
    tokens = integers(1, 7, 3).requires_grad_()
    y = module(tokens)
    y.backward(torch.ones_like(y))
    assert tokens.grad is not None
    assert torch.equal(tokens.grad[:, 0], torch.ones(1, 3))
    assert tokens.grad[:, 1:].count_nonzero() > 0


def test_module_is_copied_saved_and_shown() -> None:
    module = on_tokens(layer_of(2), [3, 2], 2)
    tokens = integers(1, 8, 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(tokens), module(tokens))
    assert set(module.state_dict()) == {"layer.weight", "layer.bias"}
    assert "grid=(3, 2), prefix=2" in repr(module)


def test_pooling_and_convolution_are_layers_of_images_too() -> None:
    tokens = integers(1, 13, 3)
    conv = filled(nn.Conv2d(3, 3, 3, padding=1))
    pairs = [(conv, attention_from_conv(conv))]
    for module, layer in pairs:
        assert torch.equal(on_tokens(module, (3, 4))(tokens), on_tokens(layer, (3, 4))(tokens))


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, padding=1, stride=2)],
    ids=["channels", "valid", "strided"],
)
def test_layer_that_changes_the_shape_is_refused(conv: nn.Conv2d) -> None:
    module = on_tokens(attention_from_conv(conv), (4, 4))
    with refused(ValueError, "layer made", "(1, 3, 4, 4)", "keeps the shape"):
        module(integers(1, 17, 3))


def test_other_numbers_of_tokens_are_refused() -> None:
    module = on_tokens(layer_of(2), (4, 4))
    for shape in ((1, 16, 3), (1, 18, 3), (17, 3), (1, 17, 3, 1)):
        with refused(ValueError, "tokens has shape", str(shape), "(N, 17, C)"):
            module(torch.zeros(shape))


def test_masks_are_refused() -> None:
    module = on_tokens(layer_of(2), (2, 2))
    for mask, causal in ((torch.zeros(5, 5), False), (None, True)):
        with refused(ValueError, "attn_mask or is_causal", "is given", "neither"):
            module(torch.zeros(1, 5, 3), mask, causal)


def test_bad_arguments_are_refused() -> None:
    wrong: Any
    for wrong in ("layer", None):
        with refused(TypeError, "layer is a", type(wrong).__name__, "torch.nn.Module"):
            on_tokens(wrong, (2, 2))
    for wrong in (4, (2.0, 2), (True, 2), None):
        with refused(TypeError, "grid", str(wrong), "a sequence of integers"):
            on_tokens(nn.Identity(), wrong)
    for wrong in (1.0, True, None):
        with refused(TypeError, "prefix", str(wrong), "an integer"):
            on_tokens(nn.Identity(), (2, 2), wrong)
    for grid in ((), (0, 2), (2, -1)):
        with refused(ValueError, "grid", str(grid), "at least one pixel"):
            on_tokens(nn.Identity(), grid)
    with refused(ValueError, "prefix", "-1", "0 or more"):
        on_tokens(nn.Identity(), (2, 2), -1)
