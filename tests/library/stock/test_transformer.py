"""`stock.encoder_layer`, `encoder` and `decoder_layer`: what they take, refuse and return."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from constructions import Stock, stock
from tests.support.helpers import filled, integers, refused

CONV = nn.Conv2d(2, 3, 3, padding=1)
Phrases = tuple[str, str, str]

BAD: dict[str, tuple[Callable[[], Stock], type[Exception], Phrases]] = {
    "a linear map": (
        lambda: stock.encoder_layer(nn.Linear(2, 2), 4),
        TypeError,
        ("conv", "Linear", "nn.Conv1d"),
    ),
    "half precision": (
        lambda: stock.encoder_layer(copy.deepcopy(CONV).half(), (4, 5)),
        ValueError,
        ("conv", "torch.float16", "float32"),
    ),
    "replicate border": (
        lambda: stock.encoder_layer(
            nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"), (4, 5)
        ),
        ValueError,
        ("conv", "replicate", "a border of zeros"),
    ),
    "more outputs than pixels": (
        lambda: stock.encoder_layer(nn.Conv1d(1, 1, 2, padding=1), 4),
        ValueError,
        ("conv", "Conv1d", "stock.decoder_layer"),
    ),
    "transposed": (
        lambda: stock.encoder_layer(nn.ConvTranspose1d(1, 1, 3, stride=2), 4),
        ValueError,
        ("conv", "ConvTranspose1d", "stock.decoder_layer"),
    ),
    "no network": (
        lambda: stock.encoder(CONV, (4, 5)),
        TypeError,
        ("network", "Conv2d", "nn.Sequential"),
    ),
    "an empty network": (
        lambda: stock.encoder(nn.Sequential(), (4, 5)),
        TypeError,
        ("network", "no convolution", "one or more"),
    ),
    "another module": (
        lambda: stock.encoder(nn.Sequential(CONV, nn.GELU()), (4, 5)),
        TypeError,
        ("network.1", "GELU", "nn.ReLU"),
    ),
    "a ReLU first": (
        lambda: stock.encoder(nn.Sequential(nn.ReLU(), CONV), (4, 5)),
        TypeError,
        ("network.0", "ReLU", "behind one"),
    ),
    "padded behind a smaller image": (
        lambda: stock.encoder(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3, padding=1)), 6),
        ValueError,
        ("conv", "stand on", "keep the size"),
    ),
    "behind a stride": (
        lambda: stock.encoder(nn.Sequential(nn.Conv1d(1, 1, 1, stride=2), nn.Conv1d(1, 1, 2)), 6),
        ValueError,
        ("conv", "stand on", "stride 1"),
    ),
    "channels that do not fit": (
        lambda: stock.encoder(nn.Sequential(nn.Conv1d(1, 3, 1), nn.Conv1d(2, 1, 1)), 6),
        ValueError,
        ("network", "2 channels behind one that returns 3", "as many"),
    ),
    "formats that do not fit": (
        lambda: stock.encoder(nn.Sequential(nn.Conv1d(1, 3, 1), nn.Conv1d(3, 1, 1).double()), 6),
        ValueError,
        ("network", "torch.float64", "one dtype"),
    ),
    "no power of two": (
        lambda: stock.encoder_layer(CONV, (4, 5), magnitude=1000.0),
        ValueError,
        ("magnitude", "1000.0", "a power of two"),
    ),
    "too large a constant": (
        lambda: stock.decoder_layer(CONV, (4, 5), magnitude=2.0**60),
        ValueError,
        ("magnitude", "1.152921504606847e+18", "a power of two"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_they_do_not_take_is_refused(name: str) -> None:
    make, kind, phrases = BAD[name]
    with refused(kind, *phrases):
        make()


@pytest.mark.parametrize("make", [stock.encoder_layer, stock.decoder_layer])
def test_image_of_another_size_or_format_is_refused(make: Callable[..., Stock]) -> None:
    module = make(CONV, (4, 5))
    with refused(ValueError, "input", "(1, 2, 5, 4)", "(2, 4, 5)"):
        module(torch.zeros(1, 2, 5, 4))
    wide = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    for call in (module.double(), module.bound):
        with refused(ValueError, "input", "torch.float64", "torch.float32"):
            call(wide)


@pytest.mark.parametrize("make", [stock.encoder_layer, stock.decoder_layer])
def test_they_are_called_as_the_convolution_is(make: Callable[..., Stock]) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, stride=2, padding=1))
    module = make(conv, (4, 5), relu=False)
    for shape in [(3, 2, 4, 5), (2, 4, 5), (0, 2, 4, 5)]:
        x = integers(*shape)
        bound = module.bound(x)
        assert bound is not None
        assert module(x).shape == conv(x).shape == bound.shape
        assert ((module(x) - conv(x)).abs() <= bound).all()


def test_they_are_copied_pickled_and_loaded() -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(1, 2, 4, 5)
    module, other = stock.encoder_layer(conv, (4, 5)), stock.encoder_layer(CONV, (4, 5))
    other.load_state_dict(module.state_dict())
    for found in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert torch.equal(found(x), module(x))


def test_layers_share_their_sizes_and_no_parameter() -> None:
    network = filled(nn.Sequential(nn.Conv1d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv1d(4, 2, 3)))
    encoder: Any = stock.encoder(network, 7).module
    first, second = encoder.layers
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(
        p.data_ptr() for p in second.parameters()
    )
    assert (first.self_attn.num_heads, first.linear1.out_features) == (6, 4)
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)
