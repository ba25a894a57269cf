"""`stock.multihead_attention`: what it takes, what it refuses, and the module that it returns."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from constructions import Encoding, Heads, Stencil, Stock, stock
from constructions.heads import heads_of
from constructions.stock import plan
from tests.support.helpers import filled, integers, refused

CONV = nn.Conv2d(2, 3, 3, padding=1)

BAD: dict[str, tuple[Any, Any, dict[str, Any], type[Exception], tuple[str, str, str]]] = {
    "a linear map": (nn.Linear(2, 2), 4, {}, TypeError, ("conv", "Linear", "nn.Conv1d")),
    "a pooling": (nn.AvgPool1d(2), 4, {}, TypeError, ("conv", "AvgPool1d", "nn.Conv1d")),
    "half precision": (
        nn.Conv1d(1, 1, 3).bfloat16(),
        4,
        {},
        ValueError,
        ("conv", "torch.bfloat16", "float32"),
    ),
    "circular border": (
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
        4,
        {},
        ValueError,
        ("conv", "'circular'", "'replicate'"),
    ),
    "another rank": (CONV, 4, {}, ValueError, ("spatial_shape", "4", "2 positive integers")),
    "no pixel": (CONV, (0, 4), {}, ValueError, ("spatial_shape", "(0, 4)", "2 positive")),
    "no number": (CONV, (True, 4), {}, ValueError, ("spatial_shape", "True", "2 positive")),
    "no output": (nn.Conv1d(1, 1, 5), 4, {}, ValueError, ("no output", "(4,)", "larger image")),
    "causal and padded": (
        nn.Conv1d(1, 1, 3, padding=2),
        4,
        {"causal": True},
        ValueError,
        ("conv", "padding=(2,)", "without padding"),
    ),
    "causal picture": (
        nn.Conv2d(1, 1, 3),
        (4, 4),
        {"causal": True},
        ValueError,
        ("conv", "Conv2d", "nn.Conv1d"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_it_does_not_take_is_refused(name: str) -> None:
    conv, shape, options, kind, phrases = BAD[name]
    with refused(kind, *phrases):
        stock.multihead_attention(conv, shape, **options)


def test_image_of_another_size_or_format_is_refused() -> None:
    module = stock.multihead_attention(CONV, (4, 5))
    with refused(ValueError, "input", "(1, 2, 5, 4)", "(2, 4, 5)"):
        module(torch.zeros(1, 2, 5, 4))
    with refused(ValueError, "input", "torch.float64", "torch.float32"):
        module.double()(torch.zeros(1, 2, 4, 5, dtype=torch.float64))


def test_autocast_is_refused() -> None:
    module = stock.multihead_attention(CONV, (4, 5))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        refused(ValueError, "input", "torch.bfloat16", "enabled=False"),
    ):
        module(torch.zeros(1, 2, 4, 5))


def test_it_is_called_as_the_convolution_is() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, stride=2, padding=1))
    module = stock.multihead_attention(conv, (4, 5))
    assert isinstance(module, Stock)
    for shape in [(3, 2, 4, 5), (2, 4, 5), (0, 2, 4, 5)]:
        x = integers(*shape)
        assert torch.equal(module(x), conv(x))


def test_output_size_of_a_transposed_convolution_is_chosen_when_it_is_made() -> None:
    conv, x = filled(nn.ConvTranspose1d(2, 1, 3, stride=2)), integers(1, 2, 4)
    module = stock.multihead_attention(conv, 4, output_size=[10])
    assert torch.equal(module(x), conv(x, output_size=[10]))


def test_it_is_copied_pickled_and_loaded() -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(1, 2, 4, 5)
    module = stock.multihead_attention(conv, (4, 5))
    other = stock.multihead_attention(CONV, (4, 5))
    other.load_state_dict(module.state_dict())
    for found in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(found(x), conv(x))


def test_module_is_made_from_the_heads_and_the_bias_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(1, 2, 4, 5)

    def doubled(stencil: Stencil, encoding: Encoding) -> Heads:
        heads = heads_of(stencil, encoding)
        assert heads.output is not None
        return dataclasses.replace(heads, output=2 * heads.output)

    monkeypatch.setattr(plan, "heads_of", doubled)
    module = stock.multihead_attention(conv, (4, 5))
    assert conv.bias is not None
    constant = conv.bias.reshape(-1, 1, 1)
    assert torch.equal(module(x) - constant, 2 * (conv(x) - constant))


def test_gradient_in_the_image_is_the_convolutions() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    module = stock.multihead_attention(conv, (4, 5))
    gradients: list[Any] = []
    for layer in (conv, module):
        x = integers(1, 2, 4, 5).requires_grad_()
        layer(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
