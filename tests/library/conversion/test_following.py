"""A layer that follows a module has its state, answers as it does, and is copied with it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from constructions import Following, certify, convert
from tests.support.helpers import filled, integers


class Doubled(nn.Conv1d):
    """A convolution with twice its kernel."""

    def forward(self, input: Tensor) -> Tensor:
        """Of the doubled kernel."""
        y: Tensor = self._conv_forward(input, 2 * self.weight, self.bias)
        return y


def doubled(module: Doubled) -> tuple[nn.Conv1d, Callable[[], Tensor]]:
    conv = nn.Conv1d(2, 3, 3)
    conv.bias = module.bias
    return conv, lambda: 2 * module.weight


def following() -> tuple[Any, Any]:
    """A layer that follows, and its model, with numbers on which sums are exact."""
    model = filled(Doubled(2, 3, 3))
    return convert(model, handlers={Doubled: doubled}), model


X = integers(2, 2, 6)


def through_pickle(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


def through_torch(layer: Any) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
def test_copy_follows_its_own_module(copied: Callable[[Any], Any]) -> None:
    layer, model = following()
    other: Any = copied(layer)
    assert type(other) is Following
    with torch.no_grad():
        layer.source.weight.zero_()
    assert torch.equal(other(X), model(X))
    with torch.no_grad():
        other.get_submodule("source").get_parameter("weight").mul_(3)
        model.weight.mul_(3)
    assert torch.equal(other(X), model(X))
    assert not torch.equal(layer(X), model(X))


def test_copy_of_a_parametrised_one_is_no_copy_of_its_module() -> None:
    layer = convert(weight_norm(nn.Conv1d(2, 3, 3)))  # torch gives the module a __deepcopy__
    assert type(copy.deepcopy(layer)) is Following


def test_state_has_the_keys_of_the_module_and_loads_in_both_directions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), weight_norm(nn.Conv1d(2, 3, 3)))
    other = nn.Sequential(nn.ReLU(), weight_norm(nn.Conv1d(2, 3, 3)))
    converted = convert(model)
    state, own = converted.state_dict(), model.state_dict()
    assert {key for key in state if ".layer." not in key} == own.keys()
    for key, value in own.items():
        assert torch.equal(state[key], value)
    missing, unexpected = converted.load_state_dict(other.state_dict(), strict=False)
    assert unexpected == []
    assert all(".layer." in key for key in missing)
    assert torch.equal(converted(X), convert(other)(X))
    again = convert(model)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(again(X), converted(X))


def test_trained_parameters_are_those_of_the_module() -> None:
    layer, model = following()
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {f"source.{name}" for name, _ in model.named_parameters()}
    model.weight.requires_grad_(False)
    frozen: Any = convert(model, handlers={Doubled: doubled})
    assert {n for n, p in frozen.named_parameters() if p.requires_grad} == {"source.bias"}


def test_attributes_are_those_of_the_module() -> None:
    layer, model = following()
    for name in ("stride", "kernel_size", "padding", "in_channels", "padding_mode"):
        assert getattr(layer, name) == getattr(model, name)
    assert layer.weight is layer.source.weight
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_layer_moves_with_its_module(dtype: torch.dtype) -> None:
    layer, model = following()
    y = layer.to(dtype)(X.to(dtype))
    assert y.dtype == dtype
    assert torch.equal(y, model(X).to(dtype))


def test_current_layer_is_certified_against_the_weight_as_it_is() -> None:
    layer, model = following()
    with torch.no_grad():
        layer.source.weight.add_(1)
    plain = nn.Conv1d(2, 3, 3)
    plain.weight = nn.Parameter(2 * (model.weight.detach() + 1))
    plain.bias = model.bias
    assert certify(layer.current(), plain, X).holds
    assert torch.equal(layer.current()(X), layer(X))


@pytest.mark.parametrize(
    "options",
    [{"sharpness": 3.0}, {"encoding": "scalar"}, {"boundary": "padded", "evaluation": "dense"}],
    ids=str,
)
def test_every_way_of_building_a_layer_follows(options: dict[str, Any]) -> None:
    model = Doubled(2, 3, 3).double()
    plain = nn.Conv1d(2, 3, 3).double()
    plain.bias = model.bias
    layer: Any = convert(model, handlers={Doubled: doubled}, **options)
    with torch.no_grad():
        for module in (model, layer.source):
            module.weight.mul_(-2)
    plain.weight = nn.Parameter(2 * model.weight.detach())
    x = X.double()
    assert torch.equal(layer(x), convert(plain, **options)(x))


@pytest.mark.parametrize("compiled", [False, True], ids=["exported", "compiled"])
def test_layer_is_compiled_and_exported(compiled: bool) -> None:
    layer, model = following()
    if compiled:
        torch.compiler.reset()
        run: Any = torch.compile(layer, backend="eager", fullgraph=True)
    else:
        run = torch.export.export(layer, (X,)).module()
    assert torch.equal(run(X), model(X))


def test_description_says_what_is_followed() -> None:
    layer, _ = following()
    assert "follows the weight of its source" in repr(layer)
    assert torch.equal(layer(input=X), layer(X))
