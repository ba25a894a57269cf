"""A layer answers like its convolution or pooling: by torch's names, and to torch's own tools."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from constructions import attention_from_conv, convert
from constructions.encodings import Mixing
from constructions.formats import FORMATS
from constructions.sources import AnyPooling
from constructions.sources.native import NativeConvolution
from tests.library.layer.test_parameters import EVERY, EVERY_CONVOLUTION, drawn, image_for
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.strategies import Convolution

OPTIONS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "output_padding",
    "transposed",
)


# By torch's names ---------------------------------------------------------------------------------


@EVERY_CONVOLUTION
@pytest.mark.parametrize("options", [{}, {"sharpness": 2.0}, {"evaluation": "dense"}], ids=str)
def test_layer_has_the_options_of_the_convolution(
    make: Callable[[], Convolution], options: dict[str, Any]
) -> None:
    conv = make()
    layer = attention_from_conv(conv, **options)
    assert {n: getattr(layer, n) for n in OPTIONS} == {n: getattr(conv, n) for n in OPTIONS}
    assert torch.equal(layer.weight, conv.weight)
    assert (layer.weight.shape, layer.weight.dtype) == (conv.weight.shape, conv.weight.dtype)
    assert (layer.bias is None) is (conv.bias is None)


POOLINGS: dict[str, Callable[[], AnyPooling]] = {
    "1-D": lambda: nn.AvgPool1d(3, stride=2, padding=1, ceil_mode=True),
    "2-D": lambda: nn.AvgPool2d((2, 3), stride=(1, 2), count_include_pad=False),
    "3-D": lambda: nn.AvgPool3d(2, divisor_override=3),
}


@pytest.mark.parametrize("make", POOLINGS.values(), ids=list(POOLINGS))
def test_layer_has_the_options_of_the_pooling(make: Callable[[], AnyPooling]) -> None:
    pool: Any = make()
    layer: Any = attention_from_conv(pool)
    d = layer.geometry.dimension

    def on_every_axis(option: Any) -> tuple[int, ...]:
        return option if isinstance(option, tuple) else (option,) * d

    for name in ("kernel_size", "stride", "padding"):
        assert getattr(layer, name) == on_every_axis(getattr(pool, name))
    for name in ("ceil_mode", "count_include_pad"):
        assert getattr(layer, name) is getattr(pool, name)
    if d > 1:  # torch's in one dimension has none
        assert layer.divisor_override == pool.divisor_override
    with pytest.raises(AttributeError):
        _ = layer.weight


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("make", POOLINGS.values(), ids=list(POOLINGS))
def test_layer_of_a_pooling_takes_and_returns_every_format(
    make: Callable[[], AnyPooling], dtype: torch.dtype
) -> None:
    pool = make()
    sizes = (7, 6, 5)[: attention_from_conv(pool).geometry.dimension]
    x = integers(2, 3, *sizes, dtype=dtype)
    for layer in (attention_from_conv(pool), attention_from_conv(pool).to(dtype)):
        assert not list(layer.parameters())
        assert not layer.state_dict()
        assert layer(x).dtype == dtype
        assert layer(x).shape == pool(x.float()).shape  # torch's in half precision is not in 3-D


def test_pooling_in_a_network_of_doubles_takes_doubles() -> None:
    pool, x = nn.Sequential(nn.AvgPool2d(2)), integers(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(convert(pool)(x), pool(x))
    with refused(ValueError, "x has dtype", "torch.int64", "float64"):
        convert(pool)(x.long())


class Reads(nn.Module):
    """A network that asks its convolution for its format."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As patch embeddings do."""
        y: torch.Tensor = self.conv(x.to(self.conv.weight.dtype))
        return y.flatten(2) * self.conv.stride[0] + self.conv.weight.mean()


def test_network_that_reads_its_convolution_runs() -> None:
    model, x = filled(Reads()).double(), integers(1, 3, 8, 8)
    assert torch.equal(convert(model)(x), model(x))


def test_input_may_be_named_as_torch_names_it() -> None:
    conv, up = filled(nn.Conv2d(3, 4, 3)), filled(nn.ConvTranspose1d(3, 4, 3, stride=2))
    x, line = integers(1, 3, 8, 8), integers(1, 3, 8)
    assert torch.equal(attention_from_conv(conv)(input=x), conv(input=x))
    layer = attention_from_conv(up)
    assert torch.equal(layer(input=line, output_size=[18]), up(input=line, output_size=[18]))


# What torch takes ---------------------------------------------------------------------------------


def test_integers_of_numpy_are_options() -> None:
    two, one = np.int64(2), np.int32(1)
    for conv in (
        nn.Conv2d(2, 4, (two, 3), stride=two, padding=(one, one), dilation=one, groups=two),  # type: ignore[arg-type]
        nn.ConvTranspose1d(2, 3, np.int64(3), stride=two, padding=one, output_padding=one),  # type: ignore[arg-type]
    ):
        layer, x = (
            attention_from_conv(filled(conv)),
            integers(1, 2, *(6, 5)[: conv.weight.dim() - 2]),
        )
        assert torch.equal(layer(x), conv(x))
        assert {type(n) for o in (layer.stride, layer.kernel_size) for n in o} == {int}
    pool, x = nn.AvgPool2d(two, stride=one, padding=one), integers(1, 2, 5, 4)  # type: ignore[arg-type]
    layer = attention_from_conv(pool)
    assert torch.equal(layer(x), nn.AvgPool2d(2, 1, 1)(x))
    assert layer.stride == (1, 1)


@pytest.mark.parametrize("kind", [nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d])
def test_empty_stride_is_the_window(kind: Any) -> None:
    pool = kind(2, stride=())
    layer = attention_from_conv(pool)
    d = layer.geometry.dimension
    x = integers(1, 2, *(6, 4, 2)[:d])
    assert torch.equal(layer(x), F.avg_pool1d(x, 2) if d == 1 else pool(x))
    assert layer.stride == (2,) * d


# The kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_batch_normalisation_is_fused_into_the_layer(transposed: bool, bias: bool) -> None:
    kind: Any = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = drawn(kind(3, 4, 3, bias=bias)).eval()
    norm = drawn(nn.BatchNorm2d(4)).eval()
    norm.running_mean, norm.running_var = torch.tensor([1.0, -2, 3, 0.5]), torch.arange(1.0, 5)
    layer: Any = attention_from_conv(conv)
    fused = fuse_conv_bn_eval(conv, norm, transposed)
    of_layer = fuse_conv_bn_eval(layer, norm, transposed)
    x = image_for(conv)
    assert torch.equal(of_layer.weight, fused.weight)
    assert torch.equal(of_layer(x), fused(x))
    assert torch.equal(of_layer(x), attention_from_conv(fused)(x))
    assert torch.equal(layer(x), conv(x))


@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
@EVERY_CONVOLUTION
def test_kernel_is_assigned(make: Callable[[], Convolution], sharpness: float | None) -> None:
    conv, other = drawn(make()), drawn(make(), seed=1)
    layer = attention_from_conv(conv, sharpness=sharpness)
    layer.weight, layer.bias = nn.Parameter(other.weight.detach().clone()), other.bias
    expected = attention_from_conv(other, sharpness=sharpness)
    assert torch.equal(layer(image_for(conv)), expected(image_for(conv)))
    assert torch.equal(layer.head_matrices()[0], expected.head_matrices()[0])
    assert torch.equal(layer.head_matrices()[1], expected.head_matrices()[1])


@pytest.mark.parametrize("factors", [(), ("value", "output")], ids=["kernel", "two factors"])
def test_tied_decoder_trains_the_kernel(factors: tuple[str, ...]) -> None:
    conv = filled(nn.Conv2d(3, 4, 3, bias=False)).double()
    layer = attention_from_conv(conv).unfreeze(*factors)
    x = integers(1, 3, 6, 5, dtype=torch.float64)
    for module in (conv, layer):
        y = F.conv_transpose2d(module(x), module.weight)
        y.backward(integers(*y.shape, dtype=torch.float64))  # type: ignore[no-untyped-call]
    trained = layer.output if factors else layer.weight  # more outputs: W_out has the kernel
    assert trained is not None
    assert trained.grad is not None
    assert conv.weight.grad is not None
    assert torch.equal(trained.grad.reshape(conv.weight.shape), conv.weight.grad)


@EVERY_CONVOLUTION
def test_factors_are_views_through_which_gradients_flow(make: Callable[[], Convolution]) -> None:
    conv = filled(make())
    layer = attention_from_conv(conv)
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    kept, none = (layer.value, layer.output) if outputs <= inputs else (layer.output, layer.value)
    assert none is None
    assert kept is not None
    value, output = layer.head_matrices()
    (value @ output).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(layer.weight.grad, torch.ones_like(conv.weight))
    assert kept.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr() or (
        conv.transposed
    )


def exact(tensor: torch.Tensor) -> Any:
    """The numbers of a tensor as fractions."""
    numbers = [Fraction(n) for n in tensor.detach().double().flatten().tolist()]
    return np.array(numbers, dtype=object).reshape(tuple(tensor.shape))


MIXED: dict[str, Callable[[], Convolution]] = {
    "1-D": lambda: nn.Conv1d(2, 3, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 2, (2, 3), groups=2),
    "transposed": lambda: nn.ConvTranspose1d(3, 2, 3, stride=2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", MIXED.values(), ids=list(MIXED))
def test_kernel_of_a_mixing_layer_is_the_convolution_s_within_its_rounding(
    make: Callable[[], Convolution], dtype: torch.dtype
) -> None:
    """M = b W is stored, and b has a left inverse P: P M - W = (P b - 1) W + P (M - b W).

    Both terms are known exactly, P as it is in float64; the product P M is a sum of H products in
    float64, rounded once more to the format of the layer.
    """
    conv = drawn(make(), dtype)
    layer = attention_from_conv(conv, encoding="scalar")
    assert isinstance(layer.encoding, Mixing)
    assert isinstance(layer.native, NativeConvolution)
    taps = layer.native.taps
    mixed = layer.encoding.coefficients(layer.positional_shift.double()[:taps])
    inverse, value_output = exact(torch.linalg.pinv(mixed)), layer.head_matrices()
    stored = exact((value_output[0].double() @ value_output[1].double()).flatten(1))
    whole = exact(layer.native.taps_of(conv.weight, conv.groups).flatten(1))
    b, heads = exact(mixed), layer.num_heads
    off = abs((inverse @ b - np.eye(taps, dtype=int)) @ whole) + abs(inverse) @ abs(
        stored - b @ whole
    )
    sums = abs(inverse) @ abs(stored)
    bound = off + heads * Fraction(2) ** -52 * sums  # gamma_H for H u <= 1/2
    unit = Fraction(torch.finfo(dtype).eps) / 2
    bound = bound + unit * (abs(whole) + bound)
    error = abs(exact(layer.native.taps_of(layer.weight, conv.groups).flatten(1)) - whole)
    record(ratio=float(error.max() / bound.max()), dtype=dtype)
    assert (error <= bound).all()
    # So small that it tells kernels apart.
    assert bound.max() < Fraction(2) ** (-12 if dtype == torch.float32 else -40) * abs(whole).max()


def test_kernel_of_a_mixing_layer_is_not_assigned() -> None:
    conv = nn.Conv1d(2, 3, 3)
    layer = attention_from_conv(conv, encoding="scalar")
    before = layer.weight
    for given in (conv.weight, torch.zeros(3, 2, 3)):
        with refused(AttributeError, "weight", "value and output", "new numbers for these"):
            layer.weight = given
    assert torch.equal(layer.weight, before)
    layer.weight.sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if n != "bias")


# A description ------------------------------------------------------------------------------------


def test_description_of_an_evaluation_that_no_longer_applies() -> None:
    layer = attention_from_conv(nn.Conv2d(3, 4, 3), evaluation="factored")
    layer.positional_key.requires_grad_(True)
    assert "evaluation=factored (does not apply)" in repr(layer)
    with pytest.raises(ValueError, match="'factored' does not apply"):
        _ = layer.evaluation
    assert "evaluation=factored)" in repr(attention_from_conv(nn.Conv2d(3, 4, 3)))


@pytest.mark.parametrize("name", ["grouped", "transposed, 1-D", "circular, 1-D"])
@pytest.mark.parametrize("sharpness", [None, 2.0], ids=["saturated", "soft"])
def test_description_on_the_meta_device(name: str, sharpness: float | None) -> None:
    layer = attention_from_conv(EVERY[name](), sharpness=sharpness)
    here = repr(layer)
    there = repr(layer.to("meta"))
    assert there == (here if sharpness is None else here.replace("sharpness=2,", "sharpness=?,"))
    assert "sharpness=?" in repr(layer.unfreeze("content")) or sharpness is None


@pytest.mark.parametrize("make", POOLINGS.values(), ids=list(POOLINGS))
def test_description_of_a_pooling(make: Callable[[], AnyPooling]) -> None:
    layer = attention_from_conv(make())
    assert "num_heads=1" in repr(layer)
    assert "sharpness=none" in repr(layer)
    assert repr(layer.to("meta")) == repr(attention_from_conv(make()))


def test_description_of_a_mixing_layer_and_of_a_kernel_in_factors() -> None:
    assert "encoding=Scalar" in repr(attention_from_conv(nn.Conv1d(2, 3, 3), encoding="scalar"))
    layer = attention_from_conv(nn.Conv1d(2, 3, 3))
    assert repr(layer) == repr(attention_from_conv(nn.Conv1d(2, 3, 3)).unfreeze("value"))
