"""`convert` copies a network, puts attention where convolutions were, and changes nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructions import attention_from_conv, convert
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import filled, integers


class Network(nn.Module):
    """Convolutions in every place that a module has, and parts that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, padding_mode="replicate")
        self.body = nn.Sequential(
            nn.BatchNorm2d(4),
            nn.ModuleList([nn.Conv2d(4, 4, 3, padding="same", groups=2), nn.ReLU()]),
        )
        self.named = nn.ModuleDict({"up": nn.ConvTranspose2d(4, 3, 2, stride=2)})
        self.again = self.stem
        self.listed: list[nn.Module] = [self.named["up"], nn.Tanh()]
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("offset", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """Use the stem twice, and the last convolution through the list."""
        body: Any = self.body
        y = self.again(x) + self.stem(x)
        for layer in body[1]:
            y = layer(y)
        up: Tensor = self.listed[0](y) * self.scale + self.offset
        return up


CONVOLUTIONS = {"stem", "body.1.0", "named.up"}


def network() -> Network:
    model = Network()
    for name in CONVOLUTIONS:
        filled(model.get_submodule(name))
    return model


def test_converted_network_computes_the_same_bit_for_bit() -> None:
    model, x = network(), integers(2, 2, 4, 5)
    assert torch.equal(convert(model)(x), model(x))


def test_every_convolution_becomes_attention_at_its_path_and_nothing_else_does() -> None:
    model = network()
    converted = convert(model)
    types = {name: type(module) for name, module in model.named_modules()}
    expected = {
        name: MultiHeadSelfAttention if name in CONVOLUTIONS else kind
        for name, kind in types.items()
    }
    assert {name: type(module) for name, module in converted.named_modules()} == expected


def test_parameters_and_buffers_of_other_modules_are_copied() -> None:
    model = network()
    state = convert(model).state_dict()
    others = [name for name in model.state_dict() if name.rpartition(".")[0] not in CONVOLUTIONS]
    others.remove("again.weight")
    others.remove("again.bias")
    assert {"scale", "offset", "body.0.running_mean", "body.0.weight"} <= set(others)
    for name in others:
        assert torch.equal(state[name], model.state_dict()[name])


def test_original_is_left_as_it_was_and_shares_no_memory() -> None:
    model, x = network(), integers(1, 2, 4, 5)
    before, y = copy.deepcopy(model.state_dict()), model(x)
    converted = convert(model)
    with torch.no_grad():
        for tensor in converted.state_dict().values():
            tensor.zero_()
    assert type(model.stem) is nn.Conv2d
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(model(x), y)


def test_module_in_two_places_stays_one_module() -> None:
    converted = convert(network())
    assert isinstance(converted, Network)
    assert converted.again is converted.stem


def test_reference_from_a_python_list_leads_to_the_converted_module() -> None:
    converted = convert(network())
    assert isinstance(converted, Network)
    assert converted.listed[0] is converted.named["up"]
    assert isinstance(converted.listed[1], nn.Tanh)


class Tied(nn.Module):
    """Two convolutions that share their kernel and their bias, and two that share the kernel."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, out_channels, 3)
        self.dilated = nn.Conv1d(2, out_channels, 3, dilation=2)
        self.free = nn.Conv1d(2, out_channels, 3, padding=1)
        self.dilated.weight, self.dilated.bias = self.first.weight, self.first.bias
        self.free.weight = self.first.weight


@pytest.mark.parametrize("out_channels", [1, 2, 3])
def test_tied_kernels_stay_tied(out_channels: int) -> None:
    model: Any = convert(Tied(out_channels))
    for other in (model.dilated, model.free):
        assert other is not model.first
        assert other.weight is model.first.weight
    assert torch.equal(model.dilated.positional_shift, 2 * model.first.positional_shift)


def test_tied_biases_stay_tied() -> None:
    model: Any = convert(Tied(2))
    assert model.dilated.bias is model.first.bias
    assert model.free.bias is not model.first.bias


def test_parameters_tied_outside_convolutions_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    converted: Any = convert(model)
    assert converted[2].weight is converted[0].weight
    assert converted[2].weight is not model[0].weight


def test_root_convolution_is_itself_converted() -> None:
    conv, x = filled(nn.Conv1d(2, 2, 3)), integers(1, 2, 5)
    layer = convert(conv)
    assert isinstance(layer, MultiHeadSelfAttention)
    assert torch.equal(layer(x), conv(x))


def test_network_without_convolutions_is_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    converted: Any = convert(model)
    assert converted[0] is not model[0]
    assert torch.equal(converted[0].weight, model.get_parameter("0.weight"))


def test_converted_network_converts_to_itself() -> None:
    once: nn.Module = convert(network())
    twice: nn.Module = convert(once)
    assert once.state_dict().keys() == twice.state_dict().keys()
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, twice.state_dict()[name])


def test_options_reach_every_convolution() -> None:
    converted = convert(network(), sharpness=2.0, boundary="padded", evaluation="dense")
    for name in CONVOLUTIONS:
        layer: Any = converted.get_submodule(name)
        assert layer.sharpness == 2.0


def test_subclass_that_computes_the_same_is_converted() -> None:
    class Named(nn.Conv1d):
        """A convolution with a name of its own."""

    model: Any = convert(nn.Sequential(Named(1, 1, 3)))
    assert isinstance(model[0], MultiHeadSelfAttention)


@pytest.mark.parametrize("weight", [True, False], ids=["weight trained", "weight frozen"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias trained", "bias frozen"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_flags_are_kept(weight: bool, bias: bool, training: bool) -> None:
    conv = nn.Conv1d(2, 3, 3).train(training)
    conv.weight.requires_grad_(weight)
    assert conv.bias is not None
    conv.bias.requires_grad_(bias)
    converted: Any = convert(nn.Sequential(conv))
    for layer in (attention_from_conv(conv), converted[0]):
        assert isinstance(layer, MultiHeadSelfAttention)
        assert layer.training is training
        trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
        assert trained == {*(("weight",) if weight else ()), *(("bias",) if bias else ())}


def test_training_flag_is_each_module_s_own() -> None:
    model = network().train()
    model.stem.eval()
    converted = convert(model)
    assert isinstance(converted, Network)
    assert {
        name: module.training for name, module in converted.named_modules() if not module.training
    } == {"stem": False}


def test_soft_layer_trains_what_the_convolution_does() -> None:
    layer = attention_from_conv(nn.Conv1d(2, 3, 3), sharpness=2.0)
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trained == {"weight", "bias"}


def test_poolings_without_a_construction_are_left_as_they_are() -> None:
    # README says so; calls of functions are no modules, and stay what they are.
    left = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 2)
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(2), *left)
    converted = convert(model)
    assert isinstance(converted, nn.Sequential)
    replaced, pooled, *others = converted
    assert isinstance(replaced, MultiHeadSelfAttention)
    assert isinstance(pooled, MultiHeadSelfAttention)
    assert [type(module) for module in others] == [type(module) for module in left]
