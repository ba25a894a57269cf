"""The parameters of a layer are those of its convolution, in a checkpoint, a script and a step.

Networks are compared with the same networks of convolutions, bit for bit: what is done to the one
by an optimiser, a penalty or an average is done to the other.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.utils import parametrizations, prune
from torch.optim import swa_utils

from constructions import attention_from_conv, certify, convert
from constructions.conversion.construction import expressed
from constructions.formats import FORMATS
from constructions.layer.attention import MultiHeadSelfAttention
from constructions.layer.parameters import PARTS
from constructions.sources import POOLINGS, AnySource, stencil_of
from tests.support.helpers import edit_matrices, enlivened, filled, integers, refused
from tests.support.strategies import Convolution

CONVOLUTIONS: dict[str, Callable[[], Convolution]] = {
    "1-D": lambda: nn.Conv1d(4, 6, 3, padding=1),
    "fewer outputs": lambda: nn.Conv2d(6, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(0, 1)),
    "dilated": lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "3-D": lambda: nn.Conv3d(2, 3, (1, 2, 2), stride=2, padding=(0, 1, 1)),
    "no bias": lambda: nn.Conv2d(3, 2, 2, bias=False),
    "same": lambda: nn.Conv2d(2, 2, (2, 3), padding="same"),
    "transposed, 1-D": lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(
        4, 6, 3, stride=2, groups=2, output_padding=1, bias=False
    ),
    "transposed, dilated": lambda: nn.ConvTranspose2d(3, 2, (2, 3), dilation=(1, 2), padding=1),
    "transposed, 3-D": lambda: nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 2)),
    "replicate": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"),
    "reflect": lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"),
}
CIRCULAR: dict[str, Callable[[], Convolution]] = {
    "circular, 1-D": lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"),
    "circular, 2-D": lambda: nn.Conv2d(3, 2, (2, 3), padding="same", padding_mode="circular"),
    "circular, 3-D": lambda: nn.Conv3d(2, 2, 2, padding=1, padding_mode="circular", groups=2),
}
EVERY = CONVOLUTIONS | CIRCULAR
EVERY_CONVOLUTION = pytest.mark.parametrize("make", EVERY.values(), ids=list(EVERY))


def drawn(module: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The module with parameters of a normal distribution, the same in every run."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.to(dtype)


def image_for(conv: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """An image of normal numbers, the same in every run."""
    generator = torch.Generator().manual_seed(1)
    sizes = (2, conv.in_channels, *(6, 5, 4)[: len(conv.kernel_size)])
    return torch.randn(sizes, generator=generator).to(dtype)


def tensors_are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dictionaries of tensors agree, key by key and bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A checkpoint -------------------------------------------------------------------------------------


@EVERY_CONVOLUTION
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_state_of_a_saturated_layer_is_that_of_the_convolution(
    make: Callable[[], Convolution], dtype: torch.dtype
) -> None:
    conv = drawn(make(), dtype)
    layer = attention_from_conv(conv)
    assert list(layer.state_dict()) == list(conv.state_dict())
    assert tensors_are_equal(layer.state_dict(), conv.state_dict())
    assert tensors_are_equal(dict(layer.named_parameters()), dict(conv.named_parameters()))
    assert not set(layer.parameters()) & set(conv.parameters())


@EVERY_CONVOLUTION
def test_checkpoint_of_either_loads_into_the_other(make: Callable[[], Convolution]) -> None:
    conv, other = drawn(make()), drawn(make(), seed=1)
    x = image_for(conv)
    layer = attention_from_conv(other)
    layer.load_state_dict(conv.state_dict())
    assert torch.equal(layer(x), attention_from_conv(conv)(x))
    conv.load_state_dict(attention_from_conv(other).state_dict())
    assert tensors_are_equal(conv.state_dict(), other.state_dict())


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="replicate"),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 4, 1),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),
    )


def test_state_of_a_converted_network_is_that_of_the_network() -> None:
    model: Any = drawn(network())
    converted: Any = convert(model)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert tensors_are_equal(converted.state_dict(), model.state_dict())
    other: Any = drawn(network(), seed=1)
    converted.load_state_dict(other.state_dict())
    x = torch.ones(1, 3, 4, 4)
    assert torch.equal(converted.eval()(x), convert(other.eval())(x))
    model.load_state_dict(converted.state_dict())
    assert tensors_are_equal(model.state_dict(), other.state_dict())


@EVERY_CONVOLUTION
def test_finite_sharpness_is_the_only_key_more(make: Callable[[], Convolution]) -> None:
    conv = drawn(make())
    layer = attention_from_conv(conv, sharpness=2.5)
    state = layer.state_dict()
    assert state.pop("positional_sharpness").tolist() == [2.5]
    assert tensors_are_equal(state, conv.state_dict())
    assert tensors_are_equal(dict(layer.named_parameters()), dict(conv.named_parameters()))


@pytest.mark.parametrize(
    "parts", [*combinations(PARTS, 1), *combinations(PARTS, 2), tuple(PARTS)], ids=" ".join
)
@pytest.mark.parametrize("name", ["grouped", "transposed, grouped"])
def test_state_of_an_unfrozen_layer_loads_into_another(name: str, parts: tuple[str, ...]) -> None:
    layers = [
        attention_from_conv(drawn(EVERY[name](), seed=seed), sharpness=2.0).unfreeze(*parts)
        for seed in (0, 1)
    ]
    drawn(layers[0], seed=2)
    with torch.no_grad():
        if layers[0].positional_sharpness is not None:
            layers[0].positional_sharpness.fill_(3.0)
    layers[1].load_state_dict(layers[0].state_dict())
    assert tensors_are_equal(layers[1].state_dict(), layers[0].state_dict())
    x = image_for(EVERY[name]())
    assert torch.equal(layers[1](x), layers[0](x))


# A checkpoint of version 0.1 ----------------------------------------------------------------------


def old_factors(conv: Convolution) -> tuple[Tensor, Tensor]:
    """W_val, (G, D_h, D_in / G, H), and W_out, (G, D_out / G, D_h, H), of version 0.1."""
    groups, taps = conv.groups, conv.weight[0, 0].numel()
    d_in, d_out = conv.in_channels // groups, conv.out_channels // groups
    weight = conv.weight.detach()
    if conv.transposed:  # (D_in, D_out / G, *kernel), and the first head had the last tap
        kernel = weight.reshape(groups, d_in, d_out, taps).transpose(1, 2).flip(-1)
    else:
        kernel = weight.reshape(groups, d_out, d_in, taps)
    width = min(d_in, d_out)
    one = torch.eye(width).reshape(1, width, width, 1).repeat(groups, 1, 1, taps)
    return (kernel, one) if d_out <= d_in else (one, kernel)


def old_state(source: AnySource, layer: MultiHeadSelfAttention) -> dict[str, Tensor]:
    """What version 0.1 saved of the layer of a convolution or pooling, all keys in its order."""
    heads, names, keys = layer.positional_key.shape
    inputs = getattr(source, "in_channels", 1)
    state = {
        "query": torch.zeros(heads, inputs, keys),
        "key": torch.zeros(heads, inputs, keys),
        "content_bias": torch.zeros(heads, keys),
        "positional_key": torch.eye(names).repeat(heads, 1, 1),
        "positional_shift": layer.positional_shift.clone(),
    }
    if layer.positional_sharpness is not None:
        state["positional_sharpness"] = torch.tensor(2.0, dtype=torch.float64)
    if isinstance(source, POOLINGS):
        state["value"] = state["output"] = torch.ones(1, 1, 1, 1)
    else:
        state["value"], state["output"] = old_factors(source)
        if source.bias is not None:
            state["bias"] = source.bias.detach()
    return state


@EVERY_CONVOLUTION
@pytest.mark.parametrize("sharpness", [None, 1.5], ids=["saturated", "soft"])
def test_state_of_version_0_1_loads(
    make: Callable[[], Convolution], sharpness: float | None
) -> None:
    conv = drawn(make())
    layer = attention_from_conv(drawn(make(), seed=1), sharpness=sharpness)
    expected = attention_from_conv(conv, sharpness=None if sharpness is None else 2.0)
    state = old_state(conv, layer)
    kept = dict(state)
    layer.load_state_dict(state)
    assert state.keys() == kept.keys()  # the file's own dictionary is left as it is
    assert tensors_are_equal(layer.state_dict(), expected.state_dict())
    assert torch.equal(layer(image_for(conv)), expected(image_for(conv)))


@pytest.mark.parametrize("name", ["grouped", "no bias", "transposed, 1-D", "circular, 2-D"])
def test_state_of_version_0_1_with_live_content_loads(name: str) -> None:
    conv = filled(EVERY[name]())
    expected = enlivened(attention_from_conv(conv, sharpness=2.0))
    layer = attention_from_conv(drawn(EVERY[name]()), sharpness=1.0)
    state = old_state(conv, layer)
    for term in (*PARTS["content"], "positional_key"):
        state[term] = getattr(expected, term).detach()
    layer.load_state_dict(state)
    assert layer.evaluation == "dense"
    assert torch.equal(layer.positional_key, expected.positional_key)
    assert torch.equal(layer(image_for(conv)), expected(image_for(conv)))


def test_shifts_of_version_0_1_that_were_trained_load() -> None:
    conv = filled(nn.Conv1d(2, 3, 3, padding=1))
    layer, moved = (attention_from_conv(conv, sharpness=2.0) for _ in range(2))
    moved.positional_shift += 0.25
    layer.load_state_dict(old_state(conv, moved))
    assert torch.equal(layer.positional_shift, moved.positional_shift)
    assert layer.evaluation == "dense"
    assert torch.equal(layer(image_for(conv)), moved(image_for(conv)))


def test_network_of_version_0_1_loads() -> None:
    model: Any = drawn(network()).eval()
    converted: Any = convert(drawn(network(), seed=1).eval())
    state: dict[str, Tensor] = {}
    for path, module in model.named_children():
        layer = converted[int(path)]
        attends = isinstance(layer, MultiHeadSelfAttention)
        own = old_state(module, layer) if attends else module.state_dict()
        state |= {f"{path}.{name}": tensor for name, tensor in own.items()}
    converted.load_state_dict(state)
    assert tensors_are_equal(converted.state_dict(), model.state_dict())


def test_pooling_of_version_0_1_loads() -> None:
    pool = nn.AvgPool2d(2)
    layer = attention_from_conv(pool)
    layer.load_state_dict(old_state(pool, layer))
    x = integers(1, 2, 4, 4)
    assert torch.equal(layer(x), pool(x))
    assert not layer.state_dict()


def test_mixing_layer_of_version_0_1_loads() -> None:
    conv, other = drawn(nn.Conv1d(2, 3, 2)), drawn(nn.Conv1d(2, 3, 2), seed=1)
    layer, expected = (attention_from_conv(c, encoding="scalar") for c in (other, conv))
    state = old_state(conv, layer)
    state["positional_key"] = expected.positional_key
    value, output = (m.detach().permute(1, 3, 2, 0) for m in expected.head_matrices())
    layer.load_state_dict(state | {"value": value, "output": output})
    assert tensors_are_equal(layer.state_dict(), expected.state_dict())
    assert torch.equal(layer(torch.ones(1, 2, 5)), expected(torch.ones(1, 2, 5)))


# A script -----------------------------------------------------------------------------------------


def both(make: Callable[[], Convolution], **options: Any) -> tuple[Convolution, Any]:
    """A convolution and its layer, in float64."""
    conv: Convolution = drawn(make(), torch.float64)
    return conv, attention_from_conv(conv, **options)


def same(conv: nn.Module, layer: nn.Module, x: Tensor) -> bool:
    """Whether both save and compute the same."""
    states = layer.state_dict(), conv.state_dict()
    return tensors_are_equal(*states) and torch.equal(layer(x), conv(x))


SCRIPTED = pytest.mark.parametrize("name", ["fewer outputs", "grouped", "transposed, grouped"])


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
@EVERY_CONVOLUTION
def test_training_every_parameter_leaves_the_layer_factored(
    make: Callable[[], Convolution], sharpness: float | None
) -> None:
    layer = attention_from_conv(make(), sharpness=sharpness).requires_grad_(False)
    layer.requires_grad_(True)
    assert layer.evaluation == "factored"


@SCRIPTED
def test_every_matrix_drawn_anew_is_the_convolution_s(name: str) -> None:
    pair = both(EVERY[name])
    for module in pair:
        torch.manual_seed(3)
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    assert same(*pair, image_for(pair[0], torch.float64))


@SCRIPTED
def test_moving_average_is_the_convolution_s(name: str) -> None:
    conv, layer = both(EVERY[name])
    decay: Any = swa_utils.get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    averages = [swa_utils.AveragedModel(module, multi_avg_fn=decay) for module in (conv, layer)]
    for average, module in zip(averages, (conv, layer), strict=True):
        for seed in (4, 5, 6):
            average.update_parameters(drawn(module, torch.float64, seed))
    assert same(averages[0], averages[1], image_for(conv, torch.float64))


@SCRIPTED
def test_pruning_is_the_convolution_s(name: str) -> None:
    conv, layer = both(EVERY[name])
    x = image_for(conv, torch.float64)
    for module in (conv, layer):
        prune.l1_unstructured(module, "weight", amount=0.4)  # type: ignore[no-untyped-call]
    assert same(conv, layer, x)
    for module in (conv, layer):
        prune.remove(module, "weight")  # type: ignore[no-untyped-call]
    assert same(conv, layer, x)
    assert (layer.weight == 0).sum() == round(0.4 * layer.weight.numel())


@SCRIPTED
def test_weight_norm_is_the_convolution_s(name: str) -> None:
    pair: tuple[Any, Any] = both(EVERY[name])
    conv, layer = pair
    x = image_for(conv, torch.float64)
    for module in pair:
        parametrizations.weight_norm(module, "weight")
    assert same(conv, layer, x)
    for module in pair:
        with torch.no_grad():
            module.parametrizations.weight.original0.mul_(2)
        module(x).sum().backward()
    gradients = [{n: p.grad for n, p in module.named_parameters()} for module in pair]
    assert tensors_are_equal(*gradients)
    assert same(conv, layer, x)


def test_functional_call_with_tied_weights_is_the_convolutions() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1))
    drawn(model, torch.float64)
    model[1].weight = model[0].weight
    converted: Any = convert(model)
    x, given = image_for(model[0], torch.float64), {"0.weight": torch.ones(2, 2, 3).double()}
    assert converted[1].weight is converted[0].weight
    for tie in (True, False):
        found = functional_call(converted, given, (x,), tie_weights=tie)
        assert torch.equal(found, functional_call(model, given, (x,), tie_weights=tie))
    assert torch.equal(converted(x), model(x))


# A step -------------------------------------------------------------------------------------------

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=2.0**-6, momentum=0.5, weight_decay=0.25),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}
EVERY_OPTIMISER = pytest.mark.parametrize("optimise", OPTIMISERS.values(), ids=list(OPTIMISERS))


def squared(y: Tensor) -> Tensor:
    """A loss whose gradient depends on the weights."""
    return y.square().sum() / 16


def mean_square(y: Tensor) -> Tensor:
    """The same, small enough for a network."""
    return y.square().mean() / 64


def linear(y: Tensor) -> Tensor:
    """A loss whose gradient does not."""
    return (y * integers(*y.shape, dtype=y.dtype)).sum()


def after_steps(
    module: nn.Module,
    x: Tensor,
    optimise: Callable[[Any], torch.optim.Optimizer],
    loss: Callable[[Tensor], Tensor] = squared,
    steps: int = 4,
) -> dict[str, Tensor]:
    """What a module saves after steps of an optimiser."""
    optimiser = optimise(module.parameters())
    for _ in range(steps):
        optimiser.zero_grad()
        loss(module(x)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return module.state_dict()


@EVERY_OPTIMISER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_equal_steps_give_the_weights_of_the_convolution_bit_for_bit(
    make: Callable[[], Convolution],
    dtype: torch.dtype,
    optimise: Callable[[Any], torch.optim.Optimizer],
) -> None:
    conv = drawn(make(), dtype)
    layer, before = attention_from_conv(conv), copy.deepcopy(conv.state_dict())
    x = image_for(conv, dtype)
    found = after_steps(layer, x, optimise)
    assert tensors_are_equal(found, after_steps(conv, x, optimise))
    assert not any(torch.equal(found[name], before[name]) for name in before)


@EVERY_OPTIMISER
@pytest.mark.parametrize("make", CIRCULAR.values(), ids=list(CIRCULAR))
def test_equal_steps_on_a_circle_give_the_weights_of_the_convolution_where_sums_are_exact(
    make: Callable[[], Convolution], optimise: Callable[[Any], torch.optim.Optimizer]
) -> None:
    """Heads on a circle are not the call that torch makes, and sums are in another order.

    On integers every gradient is exact in float64, in any order: with SGD at a rate, momentum and
    decay that are powers of two the weights stay multiples of a power of two; with AdamW the
    gradients of a linear loss do not see the weights.
    """
    conv = filled(make()).double()
    layer, x = attention_from_conv(conv), integers(*image_for(conv).shape, dtype=torch.float64)
    loss = squared if optimise is OPTIMISERS["SGD"] else linear
    found = after_steps(layer, x, optimise, loss, steps=3)
    assert tensors_are_equal(found, after_steps(conv, x, optimise, loss, steps=3))


@EVERY_OPTIMISER
def test_network_trains_as_its_original_bit_for_bit(
    optimise: Callable[[Any], torch.optim.Optimizer],
) -> None:
    # Less the pooling, whose shares are summed in another order.
    model = drawn(network(), torch.float64)
    model[4] = nn.MaxPool2d(2)
    x = integers(2, 3, 6, 6, dtype=torch.float64)
    converted = convert(model)
    of_conv, of_layer = (after_steps(m, x, optimise, mean_square) for m in (model, converted))
    assert all(tensor.isfinite().all() for tensor in of_conv.values())
    assert of_conv.keys() == of_layer.keys()
    assert tensors_are_equal(of_layer, of_conv)


# Parts that are trained when asked for ------------------------------------------------------------


def soft(**options: Any) -> MultiHeadSelfAttention:
    """A layer with more inputs than outputs, in groups."""
    conv = filled(nn.Conv2d(6, 4, 3, padding=1, groups=2))
    layer: MultiHeadSelfAttention = attention_from_conv(conv, **options)
    return layer


@pytest.mark.parametrize(
    ("part", "evaluation"),
    [
        ("content", "dense"),
        ("shifts", "dense"),
        ("sharpness", "factored"),
        ("value", "factored"),
        ("output", "factored"),
    ],
)
def test_unfrozen_part_is_trained_and_changes_no_output(part: str, evaluation: str) -> None:
    layer, x = soft(sharpness=1.0), integers(1, 6, 4, 5) / 8
    weights, dense = layer.attention_weights((4, 5)), soft(sharpness=1.0, evaluation="dense")
    assert layer.unfreeze(part) is layer
    assert layer.evaluation == evaluation
    assert torch.equal(layer.attention_weights((4, 5), x=x).squeeze(0), weights)
    if evaluation == "dense":
        assert torch.equal(layer(x), dense(x))
    parameters = dict(layer.named_parameters())
    y = layer(x)
    y.backward(integers(*y.shape))
    reached = []
    for name in PARTS[part]:
        gradient = parameters[name].grad
        assert parameters[name].requires_grad
        assert gradient is not None
        reached.append(bool(gradient.any()))
    assert any(reached)


@pytest.mark.parametrize("channels", [(6, 4), (4, 6), (4, 4)], ids=str)
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
@pytest.mark.parametrize("part", ["value", "output"])
def test_kernel_in_two_factors_is_the_same_layer(
    kind: Any, channels: tuple[int, int], part: str
) -> None:
    conv = drawn(kind(*channels, 3, groups=2), torch.float64)
    layer, x = attention_from_conv(conv), image_for(conv, torch.float64)
    before = layer.head_matrices()
    layer.unfreeze(part)
    assert not layer.stores_kernel
    assert "weight" not in layer.state_dict()
    for factor, whole in zip(layer.head_matrices(), before, strict=True):
        assert torch.equal(factor, whole)
    assert torch.equal(layer.weight, conv.weight)
    with refused(AttributeError, "weight", "value and output", "new numbers"):
        layer.weight = nn.Parameter(torch.zeros_like(conv.weight))
    assert torch.equal(layer(filled_as(x)), attention_from_conv(conv)(filled_as(x)))


def filled_as(x: Tensor) -> Tensor:
    """An image of one pixel, in which no sum has two terms but those of the channels."""
    image = torch.zeros_like(x)
    image[0, 0, 0] = 1
    return image


def test_gradients_of_the_factors_are_those_of_the_kernel_through_their_product() -> None:
    conv = filled(nn.Conv2d(4, 6, 3, padding=1, groups=2)).double()
    x = integers(1, 4, 5, 4, dtype=torch.float64)
    whole, factors = attention_from_conv(conv), attention_from_conv(conv).unfreeze("value")
    with torch.no_grad():
        assert factors.value is not None
        factors.value.add_(integers(*factors.value.shape, dtype=torch.float64))
        whole.weight.copy_(factors.weight)
    for layer in (whole, factors):
        y = layer(x)
        y.backward(integers(*y.shape, dtype=torch.float64))
    by_head = whole.weight.grad.reshape(2, 3, 2, 9)  # G, D_out / G, D_in / G, H
    assert factors.value is not None
    assert factors.output is not None
    value, output = factors.value.detach(), factors.output.detach()
    of_output = torch.einsum("goih,gjih->gojh", by_head, value)
    of_value = torch.einsum("goih,gojh->gjih", by_head, output)
    assert torch.equal(factors.output.grad, of_output)
    assert torch.equal(factors.value.grad, of_value)


def test_parts_can_be_unfrozen_again_and_keep_their_numbers() -> None:
    layer = soft(sharpness=1.0).unfreeze(*PARTS)
    drawn(layer)
    numbers = copy.deepcopy(layer.state_dict())
    layer.requires_grad_(False)
    layer.unfreeze(*PARTS)
    assert tensors_are_equal(layer.state_dict(), numbers)
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    assert trained == {name for names in PARTS.values() for name in names}


def test_sharpness_has_a_shape_that_can_be_sharded() -> None:
    layer = soft(sharpness=2.0)
    assert layer.positional_sharpness is not None
    assert layer.positional_sharpness.shape == (1,)
    assert layer.positional_sharpness.dtype == torch.float64
    assert isinstance(layer.sharpness, float)
    (parameter,) = [
        p for n, p in layer.unfreeze("sharpness").named_parameters() if n == "positional_sharpness"
    ]
    assert parameter.shape == (1,)


def test_what_cannot_be_unfrozen_is_refused() -> None:
    with refused(ValueError, "parts has", "'bias'", "'content', 'shifts', 'sharpness'"):
        soft().unfreeze("content", "bias")
    with refused(ValueError, "parts has 'sharpness'", "saturated", "made with a sharpness"):
        soft().unfreeze("shifts", "sharpness")
    layer = soft()
    for parts in (("content", "bias"), ("shifts", "sharpness")):
        with pytest.raises(ValueError, match="parts has"):
            layer.unfreeze(*parts)
        assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("part", ["value", "output"])
def test_part_that_is_not_named_is_not_trained(part: str) -> None:
    for channels, whole in (((4, 2), "value"), ((2, 4), "output")):
        conv = nn.Conv1d(*channels, 3)
        layer = attention_from_conv(conv).unfreeze(part)
        trained = {name for name, p in layer.named_parameters() if p.requires_grad}
        # The factor that has the kernel was trained already; the identity is if it is named.
        assert trained == {"bias", whole, part}
        conv.weight.requires_grad_(False)
        frozen: Any = convert(conv)
        layer = frozen.unfreeze(part)
        trained = {name for name, p in layer.named_parameters() if p.requires_grad}
        assert trained == {"bias", part}


# What is remembered -------------------------------------------------------------------------------


def test_every_edit_in_place_or_by_assignment_counts_at_once() -> None:
    layer = soft()
    key, shift = layer.positional_key.clone(), layer.positional_shift.clone()
    assert layer.evaluation == "factored"
    for _ in range(8):  # tensors come and go, and may stand where others stood
        layer.positional_shift = shift + 0.5
        layer.positional_shift = shift + 0.25
        assert layer.evaluation == "dense"
        layer.positional_shift = shift.clone()
        layer.positional_shift = shift.clone()
        assert layer.evaluation == "factored"
        layer.positional_key = key * 1.5
        layer.positional_key = key * 1.25
        assert layer.evaluation != "factored"
        layer.positional_key.copy_(key)
        assert layer.evaluation == "factored"


def test_shifts_of_a_functional_call_are_its_own() -> None:
    conv = filled(nn.Conv1d(2, 3, 3, padding=1))
    layer, dense = (attention_from_conv(conv, evaluation=way) for way in ("auto", "dense"))
    shift, x = layer.positional_shift.clone(), integers(1, 2, 7)
    for moved in (0.0, 0.5) * 8:
        given = {"positional_shift": shift + moved}
        found = functional_call(layer, given, (x,))
        assert torch.equal(found, functional_call(dense, given, (x,)))


def test_matrices_edited_in_place_count_at_once() -> None:
    conv = filled(nn.Conv2d(3, 2, 2))
    layer, x = attention_from_conv(conv), integers(1, 3, 4, 4)
    layer(x)
    edit_matrices(layer, lambda matrices: matrices[1].zero_())
    with torch.no_grad():
        conv.weight[..., 0, 1] = 0
    assert torch.equal(layer(x), conv(x))


# A module among others ----------------------------------------------------------------------------


def through_file(layer: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": through_file,
}
POSITIONS = ("positional_key", "positional_shift", "positional_sharpness")


@pytest.mark.parametrize("parts", [(), tuple(PARTS)], ids=["fixed", "unfrozen"])
@pytest.mark.parametrize("again", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_copies_and_moves_keep_the_formats_of_positions(
    dtype: torch.dtype, again: Callable[[Any], Any], parts: tuple[str, ...]
) -> None:
    layer = soft(sharpness=2.0).unfreeze(*parts)
    formats = {name: getattr(layer, name).dtype for name in POSITIONS}
    moved = again(copy.deepcopy(layer).to(dtype))
    assert {name: getattr(moved, name).dtype for name in POSITIONS} == formats
    assert {p.dtype for n, p in moved.named_parameters() if n not in POSITIONS} == {dtype}
    for name in POSITIONS:
        assert torch.equal(getattr(moved, name), getattr(layer, name))
    assert moved.evaluation == layer.evaluation
    x = integers(1, 6, 3, 3, dtype=dtype)
    assert torch.equal(moved(x), copy.deepcopy(layer).to(dtype)(x))


@EVERY_CONVOLUTION
@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
def test_layer_on_the_meta_device_has_shapes_alone(
    make: Callable[[], Convolution], sharpness: float | None
) -> None:
    conv = make()
    layer = attention_from_conv(conv, sharpness=sharpness).to("meta")
    assert all(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
    x = image_for(conv)
    y = layer(x.to("meta"))
    assert y.is_meta
    assert y.shape == conv(x).shape
    assert "MultiHeadSelfAttention(" in repr(layer)


@EVERY_CONVOLUTION
def test_layer_is_on_the_device_of_its_convolution_whatever_the_default(
    make: Callable[[], Convolution],
) -> None:
    conv = filled(make())
    with torch.device("meta"):
        layers = attention_from_conv(conv), attention_from_conv(conv, sharpness=2.0)
    for layer in layers:
        assert {t.device.type for t in (*layer.parameters(), *layer.buffers())} == {"cpu"}
    x = integers(*image_for(conv).shape)
    assert torch.equal(layers[0](x), conv(x))


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
def test_layer_made_in_inference_mode_computes_and_is_looked_at_each_time(
    sharpness: float | None,
) -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(1, 2, 4, 5)
    expected = attention_from_conv(conv, sharpness=sharpness)(x)
    with torch.inference_mode():
        layer = attention_from_conv(conv, sharpness=sharpness)
        assert layer.evaluation == "factored"
        assert torch.equal(layer(x), expected)
        layer.positional_shift += 0.5
        assert layer.evaluation == "dense"
        layer.positional_shift -= 0.5
        assert layer.evaluation == "factored"
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
def test_ensemble_of_layers_is_mapped_at_once(sharpness: float | None) -> None:
    convs = [filled(nn.Conv2d(2, 3, 3), denominator) for denominator in (1, 2, 4)]
    layers = [attention_from_conv(conv, sharpness=sharpness) for conv in convs]
    x = integers(3, 1, 2, 6, 6)
    parameters, _ = stack_module_state(layers)

    def run(own: dict[str, Tensor], image: Tensor) -> Tensor:
        y: Tensor = functional_call(layers[0], (own,), (image,))
        return y

    with torch.no_grad():
        found = torch.vmap(run)(parameters, x)
    for layer, conv, image, y in zip(layers, convs, x, found, strict=True):
        if sharpness is None:
            assert torch.equal(y, conv(image))
        layer.register_forward_hook(lambda *_, y=y: y)  # the certificate of one, held against it
        assert certify(layer, conv, image).holds


CHAIN: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2)),
    "pooling": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 2, 1)),
    "circular": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
}
EVERY_CHAIN = pytest.mark.parametrize("make", CHAIN.values(), ids=list(CHAIN))


@EVERY_CHAIN
def test_graph_of_a_converted_network_has_the_layer_as_a_leaf(
    make: Callable[[], nn.Module],
) -> None:
    model, x = filled(make()), integers(1, 3, 8, 8)
    graph = torch.fx.symbolic_trace(convert(model))
    assert torch.equal(graph(x), model(x))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert targets == [name for name, _ in model.named_children()]


@EVERY_CHAIN
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_converted_network_is_traced(make: Callable[[], nn.Module]) -> None:
    model, x = filled(make()).eval(), integers(1, 3, 8, 8)
    traced: Any = torch.jit.trace(convert(model).eval(), x)  # type: ignore[no-untyped-call]
    other = integers(2, 3, 8, 8).flip(0)
    assert torch.equal(traced(other), model(other))


MEMBERS: dict[str, Callable[[int, MultiHeadSelfAttention], object]] = {
    "as made": lambda _, layer: layer,
    "one with other shifts": lambda number, layer: (
        layer.positional_shift.copy_(layer.positional_shift.flip(0)) if number == 1 else layer
    ),
    "shifts trained": lambda _, layer: layer.unfreeze("shifts"),
    "content trained": lambda _, layer: layer.unfreeze("content"),
    "sharpness trained": lambda _, layer: layer.unfreeze("sharpness"),
}


@pytest.mark.parametrize("border", ["zeros", "circular"])
@pytest.mark.parametrize("change", MEMBERS.values(), ids=[*MEMBERS])
def test_ensemble_with_its_buffers_is_each_layer_of_its_own(
    change: Callable[[int, MultiHeadSelfAttention], object], border: Any
) -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1, padding_mode=border))
    layers = [attention_from_conv(conv, sharpness=sharpness) for sharpness in (1.0, 2.0, 3.0)]
    for number, layer in enumerate(layers):
        change(number, layer)
    x = integers(3, 1, 2, 5, 4)
    parameters, buffers = stack_module_state(layers)

    def run(own: dict[str, Tensor], held: dict[str, Tensor], image: Tensor) -> Tensor:
        y: Tensor = functional_call(layers[0], (own, held), (image,))
        return y

    with torch.no_grad():
        found = torch.vmap(run)(parameters, buffers, x)
    for number, (layer, image, y) in enumerate(zip(layers, x, found, strict=True)):
        if number == 1 and not torch.equal(layer.positional_shift, layers[0].positional_shift):
            assert not certify(layer, conv, image).holds
            taps = attention_from_conv(flipped(conv), sharpness=layer.sharpness)
            taps.register_forward_hook(lambda *_, y=y: y)
            assert certify(taps, flipped(conv), image).holds
            continue
        with torch.no_grad():  # judged as what it is, of zero content
            judge = attention_from_conv(
                conv, sharpness=layer.sharpness, evaluation=layer.evaluation
            )
        judge.register_forward_hook(lambda *_, y=y: y)
        assert certify(judge, conv, image).holds


def flipped(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with its taps in the reverse order."""
    other = copy.deepcopy(conv)
    with torch.no_grad():
        other.weight.copy_(conv.weight.flip(2, 3))
    return other


def test_ensemble_on_a_long_line_is_each_layer_of_its_own() -> None:
    conv = filled(nn.Conv1d(1, 1, 3, padding=1))
    layers = [attention_from_conv(conv, sharpness=sharpness) for sharpness in (1.0, 2.0)]
    x = integers(2, 1, 1, 600)  # long enough for bands
    state = stack_module_state(layers)
    found = torch.vmap(lambda own, held, one: functional_call(layers[0], (own, held), (one,)))(
        *state, x
    )
    for layer, image, y in zip(layers, x, found, strict=True):
        layer.register_forward_hook(lambda *_, y=y: y)
        assert certify(layer, conv, image).holds


@pytest.mark.parametrize("part", [*PARTS])
def test_pooling_has_nothing_to_train(part: str) -> None:
    layer = attention_from_conv(nn.AvgPool2d(2))
    with refused(ValueError, "parts", repr(part), "the layer of a convolution"):
        layer.unfreeze(part)
    assert list(layer.parameters()) == []


OF_ANY_SIZE: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "zeros": (nn.Conv2d(3, 4, 3, 2, 1), {}),
    "soft": (nn.Conv2d(3, 4, 3, padding=1), {"sharpness": 3.0}),
    "soft, replicate": (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
        {"sharpness": 1.0},
    ),
    "soft, padded": (nn.Conv2d(3, 4, 3, 2, 1), {"sharpness": 3.0, "boundary": "padded"}),
    "reflect": (nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"), {"sharpness": 2.0}),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), {}),
    "soft, circular": (
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        {"sharpness": 3.0},
    ),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, 2), {"sharpness": 3.0}),
    "pooling": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), {}),
    "pooling of all": (nn.AdaptiveAvgPool2d((1, None)), {}),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("source", "options"), OF_ANY_SIZE.values(), ids=[*OF_ANY_SIZE])
def test_traced_layer_takes_images_of_other_sizes(source: Any, options: dict[str, Any]) -> None:
    layer = attention_from_conv(source, **options).eval()
    traced: Any = torch.jit.trace(layer, torch.randn(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    for size in ((12, 10), (7, 7), (5, 17)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(traced(x), layer(x))


def test_heads_of_no_convolution_have_no_kernel() -> None:
    stencil = stencil_of(filled(nn.Conv1d(2, 3, 3, padding=1)))
    fields = {name: getattr(stencil, name) for name in ("geometry", "border", "matrices", "bias")}
    layer, x = expressed(type(stencil)(**fields)), integers(1, 2, 5)
    assert torch.equal(layer(x), attention_from_conv(filled(nn.Conv1d(2, 3, 3, padding=1)))(x))
    assert [name for name, _ in layer.named_parameters()] == ["output", "bias"]
    with pytest.raises(AttributeError, match="made of heads"):
        _ = layer.weight
