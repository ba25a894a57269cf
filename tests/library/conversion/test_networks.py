"""`convert` copies a network, puts attention where convolutions were, and changes nothing else."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from constructions import Following, Report, attention_from_conv, certify, convert
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import filled, integers, refused


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
    # README says so; no warning tells of them, since they are no convolutions.
    left = nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 2)
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(2), *left)
    converted = convert(model)
    assert isinstance(converted, nn.Sequential)
    replaced, pooled, *others = converted
    assert isinstance(replaced, MultiHeadSelfAttention)
    assert isinstance(pooled, MultiHeadSelfAttention)
    assert [type(module) for module in others] == [type(module) for module in left]


# What is left -------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A convolution and a pooling called as functions, beside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(integers(4, 2, 3, 3))
        self.conv = filled(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The functions, then the module."""
        y: Tensor = self.conv(F.avg_pool2d(F.conv2d(x, self.kernel), 2))
        return y


class ByLambda(nn.Module):
    """A convolution that is called by a function, whose copy still holds the original."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.Conv2d(2, 4, 3))
        self.call: Callable[[Tensor], Tensor] = lambda x: self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        """By the function."""
        return self.call(x)


class CopiesItself(nn.Module):
    """A module whose copy is itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.Conv2d(2, 4, 3))

    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesItself:
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        y: Tensor = self.conv(x)
        return y


class Unregistered(nn.Module):
    """A convolution in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [filled(nn.Conv2d(2, 4, 3))]

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        y: Tensor = self.parts[0](x)
        return y


class OwnWay(nn.Conv2d):
    """A convolution whose weight is made in a way that nobody knows."""

    def forward(self, input: Tensor) -> Tensor:
        """Twice the kernel."""
        y: Tensor = self._conv_forward(input, self.doubled(), self.bias)
        return y

    def doubled(self) -> Tensor:
        """The weight."""
        return 2 * self.weight


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.script(filled(nn.Conv2d(2, 4, 3)))
    return module


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = torch.jit.trace(Calls(), integers(1, 2, 6, 6))  # type: ignore[no-untyped-call]
    return module


def exported() -> nn.Module:
    return torch.export.export(filled(nn.Conv2d(2, 4, 3)), (integers(2, 2, 6, 6),)).module()


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind: Any = torch.ao.nn.quantized.Conv2d
        module: nn.Module = kind(2, 4, 3)
    return module


LEFT: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str, str]] = {
    "scripted": (scripted, {}, "", "scripted or traced"),
    "traced": (traced, {}, "", "scripted or traced"),
    "exported": (exported, {}, "", "its graph calls conv2d as a function"),
    "quantised": (quantised, {}, "", "quantised"),
    "called as functions": (
        Calls,
        {"example": integers(1, 2, 6, 6)},
        "",
        "a convolution, weight (4, 2, 3, 3), and an average pooling as a function",
    ),
    "by a lambda": (ByLambda, {}, ".call", "a function that holds convolutions"),
    "copies itself": (CopiesItself, {}, ".conv", "copies itself"),
    "in a plain list": (Unregistered, {}, ".parts", "no registered submodule"),
    "no example": (lambda: nn.AdaptiveAvgPool2d(2), {}, "", "no example= was given"),
    "windows that differ": (
        lambda: nn.AdaptiveAvgPool2d((4, 3)),
        {"example": integers(1, 2, 6, 6)},
        "",
        "its windows on (6, 6) are not all alike",
    ),
    "refused and kept": (
        lambda: filled(OwnWay(2, 4, 3)),
        {"on_refusal": "keep"},
        "",
        "OwnWay with a forward of its own",
    ),
}


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch, of its own graphs
@pytest.mark.parametrize(("make", "options", "where", "why"), LEFT.values(), ids=[*LEFT])
def test_what_is_left_is_told_with_its_path_and_the_reason(
    make: Callable[[], nn.Module], options: dict[str, Any], where: str, why: str
) -> None:
    model = nn.Sequential(nn.ReLU(), make())
    converted, report = convert(model, report=True, **options)
    assert list(report.left) == [f"1{where}"]
    assert why in report.left[f"1{where}"]
    with pytest.warns(UserWarning, match="convert left 1 of") as caught:
        convert(model, **options)
    (warning,) = (w for w in caught if w.category is UserWarning)
    assert f"1{where}: {report.left[f'1{where}']}" in str(warning.message)
    assert warning.filename == __file__
    if "quantised" not in why:
        x = integers(2, 2, 6, 6)
        assert torch.equal(converted(x), model(x))


def test_model_that_is_itself_scripted_is_never_a_silent_copy() -> None:
    with pytest.warns(UserWarning, match="scripted or traced: convert the model before"):
        convert(scripted())


def test_functions_are_not_looked_for_without_an_example() -> None:
    _, report = convert(Calls(), report=True)
    assert report.left == {}


def test_convolution_that_reads_the_weight_of_a_converted_one_is_told() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv_transpose1d(self.conv(x), self.conv.weight)

    _, report = convert(Tied(), example=torch.zeros(1, 2, 6), report=True)
    assert [*report.replaced] == ["conv"]
    assert "calls a convolution, weight (3, 2, 3)" in report.left[""]


def test_look_leaves_the_model_as_it_was() -> None:
    model = network().train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model.stem.eval()
    convert(model, example=integers(2, 2, 4, 5))
    assert {n for n, m in model.named_modules() if not m.training} == {"stem"}
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "example",
    [integers(1, 2, 6, 6), (integers(1, 2, 6, 6),), {"x": integers(1, 2, 6, 6)}],
    ids=["a tensor", "a tuple", "by name"],
)
def test_example_is_a_tensor_or_all_arguments(example: Any) -> None:
    _, report = convert(Calls(), example=example, report=True)
    assert [*report.left] == [""]


# The report ---------------------------------------------------------------------------------------


def test_report_tells_what_was_replaced_and_nothing_of_what_is_no_convolution() -> None:
    converted, report = convert(network(), report=True)
    assert isinstance(report, Report)
    assert set(report.replaced) == CONVOLUTIONS
    assert report.left == {}
    assert report.replaced["stem"] == "Conv2d -> attention, 9 heads"
    assert torch.equal(converted(x := integers(2, 2, 4, 5)), network()(x))


def test_path_of_the_model_itself_is_empty() -> None:
    layer, report = convert(nn.Conv1d(1, 1, 3), report=True)
    assert isinstance(layer, MultiHeadSelfAttention)
    assert [*report.replaced] == [""]


# Refusals and handlers ----------------------------------------------------------------------------


def test_refusal_names_path_reason_and_ways_out() -> None:
    with pytest.raises(TypeError) as caught:
        convert(nn.Sequential(nn.ReLU(), OwnWay(2, 4, 3)))
    for phrase in ("1: conv", "OwnWay with a forward of its own", "handlers=", "on_refusal='keep'"):
        assert phrase in str(caught.value)


def test_option_that_suits_no_convolution_keeps_none() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 3))
    bad: list[dict[str, Any]] = [{"sharpness": -1}, {"encoding": "cubic"}, {"evaluation": "fast"}]
    for options in bad:
        with pytest.raises(ValueError, match="accepted"):
            convert(model, on_refusal="keep", **options)
    with pytest.raises(TypeError, match="alpha"):
        convert(model, on_refusal="keep", alpha=1)


ARGUMENTS: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, str, str]]] = {
    "on_refusal": (
        {"on_refusal": "skip"},
        ValueError,
        ("on_refusal", "'skip'", "'raise' or 'keep'"),
    ),
    "on_refusal of a kind": ({"on_refusal": None}, TypeError, ("on_refusal", "None", "'keep'")),
    "inplace": ({"inplace": 1}, TypeError, ("inplace", "int", "True or False")),
    "report": ({"report": "yes"}, TypeError, ("report", "str", "True or False")),
    "handlers": ({"handlers": [OwnWay]}, TypeError, ("handlers", "list", "mapping")),
    "a handler": ({"handlers": {OwnWay: 3}}, TypeError, ("handlers", "3", "a function")),
    "its class": ({"handlers": {"OwnWay": print}}, TypeError, ("handlers", "'OwnWay'", "a class")),
}


@pytest.mark.parametrize(("options", "kind", "phrases"), ARGUMENTS.values(), ids=[*ARGUMENTS])
def test_argument_is_refused(
    options: dict[str, Any], kind: type[Exception], phrases: tuple[str, str, str]
) -> None:
    with refused(kind, *phrases):
        convert(nn.Sequential(nn.Conv1d(1, 1, 1)), **options)


def test_exported_program_is_refused_with_what_to_give() -> None:
    program: Any = torch.export.export(nn.Conv1d(1, 1, 1), (torch.zeros(1, 1, 2),))
    with refused(TypeError, "model", "ExportedProgram", ".module()"):
        convert(program)


def as_numbers(module: OwnWay) -> nn.Conv2d:
    conv = nn.Conv2d(2, 4, 3)
    conv.weight, conv.bias = nn.Parameter(module.doubled().detach()), module.bias
    return conv


def as_followed(module: OwnWay) -> tuple[nn.Conv2d, Callable[[], Tensor]]:
    conv = nn.Conv2d(2, 4, 3)
    conv.bias = module.bias
    return conv, lambda: 2 * module.weight


@pytest.mark.parametrize(
    ("handler", "kind"), [(as_numbers, MultiHeadSelfAttention), (as_followed, Following)]
)
def test_handler_says_what_a_module_computes(handler: Any, kind: type[nn.Module]) -> None:
    class Heir(OwnWay):
        """Found by its base."""

    model, x = nn.Sequential(filled(Heir(2, 4, 3))), integers(2, 2, 5, 4)
    converted: Any = convert(model, handlers={OwnWay: handler, nn.Linear: print})
    assert type(converted[0]) is kind
    assert torch.equal(converted(x), model(x))


@pytest.mark.parametrize(
    ("handler", "kind", "phrase"),
    [
        (lambda m: nn.Linear(1, 1), TypeError, r"handlers\[OwnWay\] returned Linear"),
        (lambda m: (nn.Conv2d(2, 4, 3), 3), TypeError, r"handlers\[OwnWay\] returned"),
        (lambda m: (nn.Conv2d(2, 4, 3), lambda: 3), TypeError, "a weight that is a int"),
        (lambda m: (nn.Conv2d(2, 4, 1), lambda: m.weight), ValueError, r"shape \(4, 2, 3, 3\)"),
        (lambda m: (nn.AvgPool2d(2), lambda: m.weight), TypeError, "a weight for AvgPool2d"),
        (lambda m: m, TypeError, "OwnWay with a forward of its own"),
    ],
    ids=["no convolution", "no function", "no tensor", "another shape", "a pooling", "itself"],
)
def test_answer_of_a_handler_is_checked(handler: Any, kind: type[Exception], phrase: str) -> None:
    with pytest.raises(kind, match=f"0: .*{phrase}"):
        convert(nn.Sequential(OwnWay(2, 4, 3)), handlers={OwnWay: handler})


# Copies, and the model itself ---------------------------------------------------------------------


class Keeps(nn.Module):
    """Keeps what it has computed last, which has a history that deepcopy does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.Conv2d(2, 4, 3))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        self.last = self.conv(x)
        return self.last  # type: ignore[no-any-return]


def locked() -> nn.Module:
    model = nn.Sequential(filled(nn.Conv2d(2, 4, 3)))
    model.last = threading.Lock()  # type: ignore[assignment]
    return model


def kept() -> nn.Module:
    model = Keeps()
    model(integers(1, 2, 4, 4))
    return model


@pytest.mark.parametrize("make", [kept, locked], ids=["an activation", "a lock"])
def test_what_cannot_be_copied_is_named_and_converts_in_place(
    make: Callable[[], nn.Module],
) -> None:
    model = nn.Sequential(nn.ReLU(), nn.ModuleDict({"deep": make()}))
    with pytest.raises(TypeError, match=r"1\.deep\.last: model holds .* inplace=True"):
        convert(model)
    deep, x = model.get_submodule("1.deep"), integers(1, 2, 5, 4)
    y = deep(x)
    assert convert(model, inplace=True) is model
    assert any(isinstance(part, MultiHeadSelfAttention) for part in deep.modules())
    assert torch.equal(deep(x), y)


def test_weight_of_a_hook_does_not_keep_a_model_from_being_copied() -> None:
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(24, 4))
    model, x = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), normed), torch.ones(1, 3, 8)
    y = model(x)  # leaves a weight with a history
    assert torch.equal(convert(model)(x), y)


class Refers(nn.Module):
    """A convolution that is referred to in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = filled(nn.Conv2d(2, 4, 3))
        self.method = self.conv.forward
        self.listed = [self.conv, [self.conv.forward]]
        self.named = {"conv": (self.conv,)}

    def forward(self, x: Tensor) -> Tensor:
        """All of them."""
        first, second = self.listed
        y: Tensor = self.method(x) + first(x) + second[0](x) + self.named["conv"][0](x)  # type: ignore[operator, index]
        return y


@pytest.mark.parametrize("inplace", [False, True])
def test_every_reference_leads_to_the_layer(inplace: bool) -> None:
    model, x = nn.Sequential(Refers()), integers(2, 2, 4, 5)
    y = model(x)
    converted: Any = convert(model, inplace=inplace)
    assert torch.equal(converted(x), y)
    refers = converted[0]
    layer = refers.conv
    assert isinstance(layer, MultiHeadSelfAttention)
    assert refers.method.__self__ is refers.listed[1][0].__self__ is layer
    assert refers.listed[0] is refers.named["conv"][0] is layer
    assert isinstance(model[0].conv, MultiHeadSelfAttention) is inplace


def test_convolution_converts_in_place_to_its_layer() -> None:
    assert isinstance(convert(nn.Conv1d(1, 1, 3), inplace=True), MultiHeadSelfAttention)


def test_lambda_of_a_model_converted_in_place_calls_the_layer() -> None:
    model, x = ByLambda(), integers(1, 2, 4, 4)
    y = model(x)
    _, report = convert(model, inplace=True, report=True)
    assert report.left == {}
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("inplace", [False, True])
def test_layer_that_follows_is_converted_to_itself(inplace: bool) -> None:
    once = convert(nn.Sequential(weight_norm(nn.Conv1d(2, 2, 3))))
    twice, report = convert(once, inplace=inplace, report=True)
    assert report.replaced == {}
    assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]


# Adaptive poolings --------------------------------------------------------------------------------

ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_pooling_to_one_pixel_takes_every_size(rank: int) -> None:
    pool = ADAPTIVE[rank - 1](1)
    model = nn.Sequential(pool)
    converted, report = convert(model, report=True)
    assert [*report.replaced] == ["0"]
    for size in ((4, 2, 8)[:rank], (1, 1, 1)[:rank], (2, 16, 4)[:rank]):
        x = integers(2, 3, *size)  # a power of two of pixels: the mean is exact
        assert torch.equal(converted(x), model(x))
        assert torch.equal(converted(x[0]), model(x[0]))


def _pair(outputs: Any) -> tuple[int | None, int | None]:
    return outputs if isinstance(outputs, tuple) else (outputs, outputs)


@pytest.mark.parametrize(
    ("outputs", "size"),
    [
        (2, (8, 4)),
        ((2, 4), (8, 8)),
        ((None, 1), (3, 4)),
        ((3, 1), (6, 4)),
        ((4, None), (4, 7)),
        ((3, 3), (5, 9)),
    ],
    ids=str,
)
def test_adaptive_pooling_of_windows_that_are_alike_is_the_pooling_that_it_equals(
    outputs: Any, size: tuple[int, int]
) -> None:
    model, x = nn.Sequential(nn.AdaptiveAvgPool2d(outputs)), 27 * integers(2, 3, *size)
    converted, report = convert(model, example=x, report=True)
    alike = size != (5, 9)  # windows of 5 pixels to 3: 2, 3 and 2 pixels
    assert bool(report.replaced) is alike
    y, wanted = converted(x), model(x)
    if not alike:
        assert torch.equal(y, wanted)
        return
    first = [n if o is None else o for o, n in zip(_pair(outputs), size, strict=True)]
    windows = [n // o for o, n in zip(first, size, strict=True)]
    plain: Any = nn.AvgPool2d(windows)  # type: ignore[arg-type]
    assert plain(x).shape == y.shape
    certificate = certify(attention_from_conv(plain), plain, x)
    # Both are within the bound of the exact mean.
    assert ((y.double() - wanted.double()).abs() <= 2 * certificate.bound).all()


def test_overlapping_windows_may_be_alike() -> None:
    model, x = nn.Sequential(nn.AdaptiveAvgPool1d(3)), integers(1, 2, 7) * 3
    converted: Any = convert(model, example=x)  # [0, 3), [2, 5), [4, 7)
    assert isinstance(converted[0], Following)
    windows = torch.stack([x[..., i : i + 3].sum(-1) / 3 for i in (0, 2, 4)], dim=-1)
    assert torch.equal(model(x), windows)
    assert certify(converted[0].layer, nn.AvgPool1d(3, 2), x).holds


def test_adaptive_pooling_of_an_example_refuses_other_windows() -> None:
    converted: Any = convert(
        nn.Sequential(nn.AdaptiveAvgPool2d(2)), example=torch.zeros(1, 1, 4, 4)
    )
    with pytest.raises(
        ValueError, match=r"x has spatial shape \(6, 4\); accepted: .* windows of \(2, 2\)"
    ):
        converted(torch.zeros(1, 1, 6, 4))
