"""Weights that torch makes, and classes of others by name, are read as what they compute.

The classes here have the names of the ones that they stand for, and an independent `forward`; the
real ones are in `tests/stock/test_networks.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from constructions import Following, convert
from constructions.conversion.known import KNOWN
from constructions.layer.attention import MultiHeadSelfAttention
from tests.support.helpers import filled, integers

# Weights that torch makes -------------------------------------------------------------------------


def old(norm: Callable[..., nn.Module], module: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch, that there is a newer one
        return norm(module, **options)


def masked(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        prune.random_unstructured(module, name, 0.5)  # type: ignore[no-untyped-call]
    return module


def pruned_twice(module: nn.Module) -> nn.Module:
    prune.random_unstructured(module, "weight", 0.3)  # type: ignore[no-untyped-call]
    prune.ln_structured(module, "weight", 0.3, n=1, dim=0)  # type: ignore[no-untyped-call]
    return module


MADE: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: weight_norm(nn.Conv2d(2, 4, 3)),
    "weight_norm of one axis": lambda: weight_norm(nn.Conv1d(2, 4, 3), dim=2),
    "weight_norm, transposed": lambda: weight_norm(nn.ConvTranspose1d(4, 2, 3, stride=2)),
    "weight_norm, grouped": lambda: weight_norm(nn.Conv2d(4, 4, 3, groups=2, padding=1)),
    "weight_norm, circular": lambda: weight_norm(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
    ),
    "old weight_norm": lambda: old(nn.utils.weight_norm, nn.Conv2d(2, 4, 3)),
    "spectral_norm": lambda: spectral_norm(nn.Conv2d(2, 4, 3)),
    "old spectral_norm": lambda: old(nn.utils.spectral_norm, nn.Conv2d(2, 4, 3)),
    "orthogonal": lambda: orthogonal(nn.Conv2d(2, 4, 1)),
    "pruned": lambda: masked(nn.Conv2d(2, 4, 3), "weight"),
    "pruned, bias too": lambda: masked(nn.Conv2d(2, 4, 3), "weight", "bias"),
    "pruned twice": lambda: pruned_twice(nn.Conv2d(2, 4, 3)),
    "normed and pruned": lambda: masked(weight_norm(nn.Conv2d(2, 4, 3), "bias"), "weight"),
}
every_made = pytest.mark.parametrize("make", MADE.values(), ids=[*MADE])


def image_for(module: Any) -> Tensor:
    return integers(2, module.in_channels, *[6] * len(module.kernel_size))


def with_weight(module: Any, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The convolution of a module with a weight that it does not make any more."""
    plain: Any = type(module) if type(module).__module__.startswith("torch.nn.modules") else None
    kind = plain or next(c for c in type(module).__mro__ if c.__module__ == "torch.nn.modules.conv")
    conv = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        groups=module.groups,
        padding_mode=module.padding_mode,
    ).to(weight.dtype)
    conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(module.bias.detach())
    return conv  # type: ignore[no-any-return]


def within_rounding(y: Tensor, wanted: Tensor, conv: Any, x: Tensor) -> bool:
    """Whether two sums of the same products differ by no more than their roundings."""
    training = conv.training
    weight = conv.eval().weight.detach()  # in training, looking at it makes it another
    conv.train(training)
    terms = weight.numel() // conv.bias.numel() + 2
    unit = torch.finfo(y.dtype).eps / 2
    sizes = with_weight(conv, weight.abs())
    sizes.bias = nn.Parameter(conv.bias.detach().abs())  # type: ignore[attr-defined]
    largest = sizes(x.abs())
    return bool(((y - wanted).abs() <= 2 * terms * unit * largest / (1 - terms * unit)).all())


@every_made
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_weight_that_torch_makes_is_followed(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    module: Any = make().double().train(training)
    model, x = nn.Sequential(module), image_for(module).double()
    converted: Any = convert(model)
    assert type(converted[0]) is Following
    for _ in range(2):  # spectral normalisation in training has another weight at each call
        y, wanted = converted(x), model(x)
        assert within_rounding(y, wanted, module, x)
    with torch.no_grad():
        for part in (module, converted[0].source):
            for parameter in part.parameters():
                parameter.mul_(1.5).add_(0.25)
    if "orthogonal" not in str(module):
        assert within_rounding(converted(x), model(x), module, x)


@every_made
def test_gradients_are_those_of_the_module_s_own_parameters(make: Callable[[], nn.Module]) -> None:
    # The loss is linear in the weight, with integers: the gradient of the weight is exact, and from
    # there on both run the same code.
    torch.manual_seed(0)
    module: Any = make().double().eval()
    x = image_for(module).double()
    converted: Any = convert(nn.Sequential(module))[0]  # type: ignore[index]
    for part in (module, converted):
        y = part(x)
        (y * integers(*y.shape)).sum().backward()
    own = dict(module.named_parameters())
    trained = {name: p for name, p in converted.named_parameters() if p.requires_grad}
    others = {name.removeprefix("source."): p for name, p in trained.items()}
    assert own.keys() == others.keys()
    for name, parameter in own.items():
        assert parameter.grad is not None
        assert torch.equal(others[name].grad, parameter.grad)


@every_made
def test_model_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    module = make().train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    convert(nn.Sequential(module))
    assert module.training
    for name, t in module.state_dict().items():
        assert torch.equal(t, before[name])


def test_shared_parameters_of_followed_modules_stay_shared() -> None:
    first, second = weight_norm(nn.Conv1d(2, 2, 3)), weight_norm(nn.Conv1d(2, 2, 3))
    second.parametrizations.weight.original1 = first.parametrizations.weight.original1
    converted: Any = convert(nn.Sequential(first, second))
    one, other = (f.source.parametrizations.weight.original1 for f in converted)
    assert one is other
    assert one is not first.parametrizations.weight.original1


# Classes of others, by name -----------------------------------------------------------------------


def named(name: str, kind: type[nn.Module]) -> type[nn.Module]:
    """The class under the name of another."""
    kind.__module__, _, kind.__qualname__ = name.rpartition(".")
    return kind


def test_class_is_known_by_its_whole_name_alone() -> None:
    class Conv2dSame(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.pad(super().forward(input), (0, 0))

    with pytest.raises(TypeError, match="Conv2dSame with a forward of its own"):
        convert(Conv2dSame(1, 1, 3))


def of_timm() -> type[nn.Module]:
    class Same(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            raise AssertionError("the layer runs, not the module")

    return named("timm.layers.conv2d_same.Conv2dSame", Same)


def tensorflow_same(x: Tensor, conv: Any) -> Tensor:
    """The outputs by TensorFlow's own rule, one image axis after the other, by explicit sums."""
    sizes = x.shape[2:]
    outputs = [math.ceil(n / s) for n, s in zip(sizes, conv.stride, strict=True)]
    before = []
    for n, m, k, s, r in zip(
        sizes, outputs, conv.kernel_size, conv.stride, conv.dilation, strict=True
    ):
        before.append(max((m - 1) * s + (k - 1) * r + 1 - n, 0) // 2)
    y = conv.bias.reshape(1, -1, 1, 1).expand(len(x), -1, *outputs).clone()
    for i in range(outputs[0]):
        for j in range(outputs[1]):
            for a in range(conv.kernel_size[0]):
                for b in range(conv.kernel_size[1]):
                    p = i * conv.stride[0] + a * conv.dilation[0] - before[0]
                    q = j * conv.stride[1] + b * conv.dilation[1] - before[1]
                    if 0 <= p < sizes[0] and 0 <= q < sizes[1]:
                        y[:, :, i, j] += x[:, :, p, q] @ conv.weight[:, :, a, b].T
    return y  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (7, 6), (8, 3)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": (2, 5), "stride": (1, 3)},
        {"kernel_size": 3, "stride": 1, "dilation": (2, 1)},
        {"kernel_size": 1, "stride": 3},
    ],
    ids=str,
)
def test_same_padding_of_tensorflow_depends_on_the_size(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    kind: Any = of_timm()
    conv = filled(kind(2, 3, **options))
    converted: Any = convert(nn.Sequential(conv))
    x = integers(2, 2, *size)
    assert torch.equal(converted(x), tensorflow_same(x, conv))


def test_heir_of_a_known_class_is_known_unless_it_computes_in_its_own_way() -> None:
    kind: Any = of_timm()

    class Heir(kind):  # type: ignore[misc]
        pass

    class Other(kind):  # type: ignore[misc]
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return input

    assert type(convert(Heir(1, 1, 3))) is Following
    with pytest.raises(TypeError, match="forward of its own"):
        convert(Other(1, 1, 3))


def test_known_class_with_a_normed_weight_is_both() -> None:
    kind: Any = of_timm()
    conv = kind(2, 3, 3, stride=2).double()
    plain = nn.Conv2d(2, 3, 3, stride=2).double()
    weight_norm(conv)
    x = integers(1, 2, 5, 6).double()
    plain.weight, plain.bias = nn.Parameter(conv.weight.detach()), conv.bias
    converted: Any = convert(nn.Sequential(conv))
    padded = F.pad(x, (0, 1, 1, 1))
    assert torch.equal(converted(x), convert(plain)(padded))


def test_known_class_that_is_hooked_is_refused() -> None:
    kind: Any = of_timm()
    conv = kind(1, 1, 3)
    conv.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="conv has a forward or backward hook"):
        convert(conv)


class Cache:
    """What came before, kept by name."""

    def __init__(self, before: Tensor) -> None:
        self.before = before

    def update(self, x: Tensor, key: str, module: nn.Module) -> Tensor:
        """The signal with what came before it."""
        assert key == "first"
        assert isinstance(module, nn.Conv1d)
        return torch.cat([self.before, x], dim=-1)


def test_causal_convolution_takes_its_cache() -> None:
    class Causal(nn.Conv1d):
        cache_key, left_pad = "first", 2

        def forward(self, x: Tensor, padding_cache: Any = None) -> Tensor:
            raise AssertionError("the layer runs, not the module")

    kind: Any = named(
        "transformers.models.voxtral_realtime.modeling_voxtral_realtime.VoxtralRealtimeCausalConv1d",
        Causal,
    )
    conv = filled(kind(2, 3, 3))
    converted: Any = convert(nn.ModuleList([conv]))
    x = integers(1, 2, 9)
    whole = F.conv1d(F.pad(x, (2, 0)), conv.weight, conv.bias)
    assert torch.equal(converted[0](x, padding_cache=None), whole)
    later = converted[0](x[..., 5:], padding_cache=Cache(x[..., 3:5]))
    assert torch.equal(later, whole[..., 5:])


@pytest.mark.parametrize(
    "name",
    ["autoencoder_kl_wan.WanCausalConv3d", "autoencoder_kl_qwenimage.QwenImageCausalConv3d"],
)
def test_causal_video_takes_the_frames_before_it(name: str) -> None:
    class Causal(nn.Conv3d):
        def __init__(self) -> None:
            super().__init__(2, 3, 3, padding=1)
            self._padding = (1, 1, 1, 1, 2, 0)
            self.padding = (0, 0, 0)

        def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
            raise AssertionError("the layer runs, not the module")

    kind: Any = named(f"diffusers.models.autoencoders.{name}", Causal)
    conv = filled(kind())
    converted: Any = convert(nn.ModuleList([conv]))
    x = integers(1, 2, 5, 3, 4)
    whole = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
    assert torch.equal(converted[0](x), whole)
    assert torch.equal(converted[0](x[:, :, 3:], cache_x=x[:, :, 1:3]), whole[:, :, 3:])
    assert torch.equal(converted[0](x[:, :, 1:], x[:, :, :1])[:, :, 1:], whole[:, :, 2:])


def test_convolution_that_computes_in_parts_is_the_plain_one() -> None:
    class Safe(nn.Conv3d):
        def forward(self, input: Tensor) -> Tensor:
            raise AssertionError("the layer runs, not the module")

    name = "diffusers.models.autoencoders.autoencoder_kl_cogvideox.CogVideoXSafeConv3d"
    conv: Any = filled(named(name, Safe)(2, 3, 3))
    x = integers(1, 2, 4, 5, 3)
    conv.weight.requires_grad_(False)
    layer: Any = convert(conv.eval())
    assert type(layer) is MultiHeadSelfAttention
    assert torch.equal(layer(x), F.conv3d(x, conv.weight, conv.bias))
    assert not layer.training
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert trained == {"bias"}


def test_table_names_modules_and_classes() -> None:
    for name in KNOWN:
        module, _, kind = name.rpartition(".")
        assert module.partition(".")[0] in ("timm", "transformers", "diffusers")
        assert kind[0].isupper()
