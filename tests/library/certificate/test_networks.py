"""Whole networks, certified: what is listed, left, refused and said.

What the numbers mean is the subject of `test_certificates_compose_by_telescoping.py`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from constructions import NetworkCertificate, attention_from_conv, certify, certify_layers, convert
from constructions.demo.network import digit_network
from tests.support.helpers import filled, integers, refused


class Small(nn.Module):
    """A shared convolution, one that is called twice, a pooling, and one that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = filled(nn.Conv2d(2, 2, 3, padding=1))
        self.again = self.first
        self.normed = nn.utils.parametrizations.weight_norm(filled(nn.Conv2d(2, 2, 2)))
        self.pool = nn.AvgPool2d(2)
        self.idle = nn.Conv2d(1, 1, 1)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """The input is worked on in place."""
        x = self.first(x.mul_(2)).relu_()
        y: Tensor = self.drop(self.pool(self.normed(x + self.again(x))))
        return y


def small() -> tuple[Small, Any, Tensor]:
    network = Small()
    return network, convert(network, sharpness=12.0), integers(2, 2, 5, 5)


def swapped(layer: Any) -> None:
    layer.positional_shift[[0, 4]] = layer.positional_shift[[4, 0]]


# What is listed -----------------------------------------------------------------------------------


def test_every_call_of_every_layer_is_listed_in_its_order() -> None:
    network, attention, x = small()
    certificate = certify_layers(attention, network, x)
    assert list(certificate.layers) == ["first", "first (call 2)", "normed", "pool"]
    assert dict(certificate.left) == {"idle": "not called on this input"}
    assert (certificate.holds, certificate.failing, dict(certificate.diagnoses)) == (True, (), {})


def test_layer_s_certificate_is_certify_s_own() -> None:
    network, attention, x = small()
    certificate = certify_layers(attention, network, x).layers["first"]
    alone = certify(attention.first, network.first, 2 * x)
    for name in ("error", "leak", "rounding", "conv_error"):
        assert torch.equal(getattr(certificate, name), getattr(alone, name))


def test_large_batches_are_certified_in_parts_that_are_one_certificate() -> None:
    conv = filled(nn.Conv1d(1, 2, 3))
    x = integers(130, 1, 5)
    layer = attention_from_conv(conv, sharpness=3.0)
    certificate = certify_layers(layer, conv, x).layers[""]
    assert torch.equal(certificate.error, certify(layer, conv, x).error)
    assert certificate.bound.shape == (130, 2, 3)


@pytest.mark.parametrize("batch", [(), (0,)], ids=["unbatched", "empty"])
def test_single_images_and_empty_batches_are_certified(batch: tuple[int, ...]) -> None:
    chain = nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Conv1d(2, 1, 2))
    certificate = certify_layers(convert(chain), chain, torch.rand(*batch, 1, 5))
    assert certificate.holds
    assert certificate.difference.shape == (*batch, 1, 3)


def test_swapped_head_in_one_layer_is_found_and_named() -> None:
    network = digit_network()
    attention: Any = convert(network, evaluation="dense")
    swapped(attention.dilated)
    certificate = certify_layers(attention, network, torch.rand(3, 1, 8, 8))
    assert not certificate.holds
    assert certificate.failing == ("dilated",)
    assert "heads 0 and 4 swapped" in certificate.diagnoses["dilated"]
    assert "heads 0 and 4 swapped" in certificate.table()
    assert re.findall(r"^(\w+) .*FAILS$", certificate.table(), re.MULTILINE) == ["dilated"]
    assert certificate.end_to_end is None


def test_weight_that_a_layer_follows_is_the_one_it_has_now() -> None:
    network, attention, x = small()
    for model in (network, attention):
        conv = model.normed if model is network else model.normed.source
        with torch.no_grad():
            conv.parametrizations.weight.original0.mul_(3)
    assert certify_layers(attention, network, x).holds
    with torch.no_grad():
        network.normed.parametrizations.weight.original0.mul_(3)
    assert certify_layers(attention, network, x).failing == ("normed",)


def test_convolution_that_is_left_is_told_of() -> None:
    class Own(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    network = nn.Sequential(nn.Conv2d(1, 1, 1), Own(1, 1, 1))
    attention = convert(network, on_refusal="keep", report=True)[0]
    certificate = certify_layers(attention, network, torch.rand(1, 1, 3, 3))
    assert list(certificate.layers) == ["0"]
    assert dict(certificate.left) == {"1": "is a Own in both networks"}
    assert certificate.end_to_end is None


def test_layer_that_cannot_be_certified_is_left_with_the_reason() -> None:
    network = nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3))
    attention: Any = convert(network)
    attention[1].unfreeze("content")
    with torch.no_grad():
        attention[1].query.fill_(1.0)
    certificate = certify_layers(attention, network, torch.rand(1, 1, 9))
    assert list(certificate.layers) == ["0"]
    assert "live content" in certificate.left["1"]


def test_progress_is_told_layer_after_layer() -> None:
    network, attention, x = small()
    told: list[tuple[str, bool]] = []
    certify_layers(
        attention, network, x, progress=lambda path, layer: told.append((path, layer.holds))
    )
    assert told == [(path, True) for path in ("first", "first (call 2)", "normed", "pool")]


# Inputs, outputs, and what is left as it was ------------------------------------------------------


class Named(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.ConvTranspose1d(1, 2, 3, stride=2))

    def forward(self, image: Tensor, size: int) -> dict[str, Any]:
        """Called by name, with an output size."""
        y = self.conv(image, output_size=[size])
        return {"image": y, "mean": y.mean(), "count": 3}


@pytest.mark.parametrize("x", [(integers(1, 1, 4), 10), {"image": integers(1, 1, 4), "size": 10}])
def test_networks_are_called_by_position_or_by_name(x: Any) -> None:
    network = Named()
    certificate = certify_layers(convert(network), network, x)
    assert certificate.layers["conv"].error.shape == (1, 2, 10)
    assert certificate.difference.shape == (21,)  # the image and its mean, flat
    assert certificate.holds


def test_networks_and_input_are_left_as_they_were() -> None:
    network, attention, x = small()
    before, given = copy.deepcopy(network.state_dict()), x.clone()
    network.train()
    attention.train()
    attention.drop.eval()
    first, second = (certify_layers(attention, network, x) for _ in range(2))
    assert torch.equal(first.difference, second.difference)  # no dropout
    assert torch.equal(x, given)
    assert network.training
    assert attention.training
    assert not attention.drop.training
    assert all(torch.equal(n, before[name]) for name, n in network.state_dict().items())
    assert not any(module._forward_hooks for module in (*network.modules(), *attention.modules()))


def test_table_and_representation_have_all_numbers() -> None:
    network, attention, x = small()
    certificate = certify_layers(attention, network, x)
    assert isinstance(certificate, NetworkCertificate)
    table = certificate.table()
    assert max(map(len, table.splitlines())) <= 100
    for path in (*certificate.layers, *certificate.left):
        assert re.search(f"^{re.escape(path)} ", table, re.MULTILINE)
    for word in ("observed", "estimate"):
        assert word in table
    assert "a bound on it" not in table
    assert "holds=True, layers=4, left=1, failing=[]" in repr(certificate)
    assert "end_to_end=None" in repr(certificate)


# Which bounds and estimates there are -------------------------------------------------------------


def test_main_job_s_network_has_a_bound_end_to_end_in_float64() -> None:
    network = digit_network().double()
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    certificate = certify_layers(convert(network), network, x)
    assert certificate.end_to_end is not None
    assert (certificate.difference <= certificate.end_to_end).all()


Chain = Callable[[], nn.Module]
BOUNDED: dict[str, Chain] = {
    "two convolutions": lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.Conv1d(2, 1, 2)),
    "one": lambda: nn.Conv1d(1, 2, 2),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU()), nn.Identity()),
}
UNBOUNDED: dict[str, Chain] = {
    "a branch": lambda: Wrapped(),
    "an unknown module": lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.Sigmoid()),
    "half precision": lambda: nn.Sequential(nn.Conv1d(1, 2, 2)).bfloat16(),
    "a hook": lambda: hooked(nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU())),
}


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(x)
        return y


def hooked(chain: nn.Sequential) -> nn.Sequential:
    chain[1].register_forward_hook(lambda _, __, y: 2 * y)
    return chain


@pytest.mark.parametrize("chain", [*BOUNDED, *UNBOUNDED])
def test_bound_is_there_for_chains_of_what_is_known_and_else_none(chain: str) -> None:
    network = {**BOUNDED, **UNBOUNDED}[chain]()
    x = torch.rand(2, 1, 6).to(next(network.parameters()).dtype)
    certificate = certify_layers(convert(network), network, x)
    assert certificate.holds
    assert (certificate.end_to_end is not None) is (chain in BOUNDED)
    assert certificate.estimate is not None


def test_estimate_is_none_without_a_forward_derivative() -> None:
    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return gradients

    class Through(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = Silent.apply(x)  # type: ignore[no-untyped-call]
            return y

    network = nn.Sequential(nn.Conv1d(1, 1, 2), Through())
    certificate = certify_layers(convert(network), network, torch.rand(1, 1, 5))
    assert certificate.estimate is None
    assert "estimate" not in certificate.table()


def test_estimate_goes_through_fused_attention() -> None:
    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.mT
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    network = nn.Sequential(nn.Conv1d(2, 4, 3), Attending()).double()
    x = torch.rand(2, 2, 9, dtype=torch.float64)
    certificate = certify_layers(convert(network, sharpness=20.0), network, x)
    estimate, difference = certificate.estimate, certificate.difference
    assert estimate is not None
    # Errors of some e^-20 each, whose products are below what estimate and difference share.
    assert (estimate - difference).abs().max() < difference.max() / 1000


# What is refused ----------------------------------------------------------------------------------


def test_what_is_no_module_is_refused() -> None:
    conv, x = nn.Conv1d(1, 1, 1), torch.rand(1, 1, 3)
    anything: Any = F.relu
    with refused(TypeError, "converted", "function", "torch.nn.Module"):
        certify_layers(anything, conv, x)
    with refused(TypeError, "original", "function", "torch.nn.Module"):
        certify_layers(attention_from_conv(conv), anything, x)


def test_networks_that_do_not_belong_together_are_refused() -> None:
    chain = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())
    x = torch.rand(1, 1, 3)
    with refused(ValueError, "original", "'0'", "what convert makes of it"):
        certify_layers(convert(chain), nn.ReLU(), x)
    longer = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Flatten())
    with refused(ValueError, "converted returns", "(1, 3)", "what convert makes of it"):
        certify_layers(convert(chain), longer, x)
    twice: Any = copy.deepcopy(chain)
    twice.forward = lambda y: twice[0](twice[0](y))
    with pytest.raises(ValueError, match="another number of times"):
        certify_layers(convert(chain), twice, x)
