"""Layers one after another: what is refused, what they keep of the convolution, whole networks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from constructions import (
    MultiHeadSelfAttention,
    attention_from_conv,
    certify,
    certify_layers,
    convert,
    revert,
)
from constructions.heads.skeletons import skeleton
from constructions.heads.stacked import native_of
from constructions.sources import stencil_of
from tests.support.helpers import filled, integers, refused


def stack_of(conv: Any, depth: int, **options: Any) -> list[MultiHeadSelfAttention]:
    """The layers."""
    found: Any = attention_from_conv(conv, depth=depth, **options)
    return list(found)


@pytest.mark.parametrize(
    ("conv", "depth", "way_out"),
    [
        (nn.Conv1d(1, 1, 5, padding=2, padding_mode="reflect"), 2, "1, or boundary='padded'"),
        (nn.Conv2d(1, 1, 5, padding=2, padding_mode="reflect"), 3, "2, an axis each, or boundary"),
        (nn.Conv1d(1, 1, 5, padding=1, dilation=2), 2, "leave no tap at the query"),
        (nn.Conv1d(1, 1, 3, padding=2), 2, "puts queries beyond the image"),
        (nn.Conv1d(1, 1, 2, padding=2), 2, "leave no tap at the query"),
        (nn.ConvTranspose1d(1, 1, 5, stride=2), 2, "pixels of a transposed convolution"),
        (nn.ConvTranspose2d(1, 1, 5), 3, "2, an axis each"),
        (nn.AvgPool2d(2), 2, "1 for an average pooling"),
        (nn.Conv2d(1, 1, 3), 65, "1 to 64 layers"),
        (nn.Conv2d(1, 1, 3), 0, "1 to 64 layers"),
    ],
    ids=str,
)
def test_depth_that_does_not_apply_is_refused_with_the_way_out(
    conv: Any, depth: int, way_out: str
) -> None:
    with refused(ValueError, "depth", str(depth), way_out):
        attention_from_conv(conv, depth=depth)


@pytest.mark.parametrize("depth", [2.0, True, "2", None], ids=str)
def test_depth_is_an_integer(depth: Any) -> None:
    with refused(TypeError, "depth", type(depth).__name__, "an integer"):
        attention_from_conv(nn.Conv2d(1, 1, 3), depth=depth)
    with refused(TypeError, "depth", type(depth).__name__, "an integer"):
        convert(nn.Sequential(nn.Linear(1, 1)), on_refusal="keep", depth=depth)


def test_weights_without_numbers_have_no_ranks() -> None:
    broken = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        broken.weight[0, 0, 0, 0] = torch.nan
    with refused(ValueError, "depth", "infinite or NaN", "finite numbers"):
        attention_from_conv(broken, depth=2)
    with refused(ValueError, "depth", "meta device", "finite numbers"):
        attention_from_conv(nn.Conv2d(1, 1, 3, device="meta"), depth=2)


def test_two_arguments_of_one_layer_alone_mean_what_they_do_for_each() -> None:
    conv = nn.Conv2d(1, 2, 3, padding=1)
    layers = stack_of(conv, 2, sharpness=5.0, evaluation="dense", encoding="gaussian")
    assert {layer.sharpness for layer in layers} == {5.0}
    assert {layer.evaluation for layer in layers} == {"dense"}
    assert {layer.encoding for layer in layers} == {layers[0].encoding}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_layers_keep_dtype_flags_and_the_bias(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(2, 3, 3).to(dtype).eval()
    conv.weight.requires_grad_(False)
    first, last = stack_of(conv, 2)
    assert (first.dtype, last.dtype) == (dtype, dtype)
    assert not first.training
    assert first.bias is None
    assert conv.bias is not None
    assert last.bias is not None
    assert torch.equal(last.bias, conv.bias)
    assert {name: p.requires_grad for name, p in last.named_parameters()} == {
        "weight": False,
        "bias": True,
    }


def test_layers_are_convolutions_by_name_and_the_way_back_is_open() -> None:
    conv = filled(nn.Conv2d(2, 3, (3, 5), stride=(2, 1), padding="valid").double())
    stack = attention_from_conv(conv, depth=2)
    first, last = stack_of(conv, 2)
    assert (first.kernel_size, last.kernel_size) == ((3, 1), (1, 5))
    assert (first.stride, last.stride) == ((2, 1), (1, 1))
    x = integers(1, 2, 7, 8, dtype=torch.float64)
    back: Any = revert(stack)
    assert [type(part) for part in back] == [nn.Conv2d, nn.Conv2d]
    assert torch.equal(back(x), conv(x))


def test_even_kernel_on_the_padded_grid_has_no_name_of_torchs() -> None:
    conv = filled(nn.Conv1d(1, 1, 4, padding="same").double())
    first, last = stack_of(conv, 2, boundary="padded")
    assert first.native is None  # more zeros on one side than on the other
    assert last.native is not None
    x = integers(1, 1, 6, dtype=torch.float64)
    assert torch.equal(last(first(x)), conv(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(1, 1, 4, padding="same"),
        nn.Conv1d(1, 1, 3, padding=2, dilation=3),
        nn.Conv2d(1, 1, (2, 3), stride=2, padding_mode="circular"),
        nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, output_padding=1),
    ],
    ids=str,
)
def test_native_convolution_of_a_geometry_has_that_geometry(conv: Any) -> None:
    stencil = stencil_of(conv)
    native = native_of(stencil.geometry, stencil.border.name)
    assert native is not None
    options = {**vars(native)}
    if not options.pop("transposed"):
        del options["output_padding"]
    again = type(conv)(1, 1, **options)
    assert stencil_of(again).geometry == stencil.geometry


@pytest.mark.parametrize("zero", [False, True], ids=["as it is", "with zero rows and columns"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)], ids=str)
def test_matrix_is_a_product_of_its_rank(shape: tuple[int, int], rank: int, zero: bool) -> None:
    left = integers(shape[0], rank, dtype=torch.float64)
    right = integers(rank, shape[1], dtype=torch.float64).flip(1)
    matrix = left @ right
    if zero:
        matrix[1], matrix[:, 0] = 0, 0
    wanted = int(torch.linalg.matrix_rank(matrix))
    first, second = skeleton(matrix, 2.0**-53)
    assert first.shape[1] == len(second) == max(wanted, 1)
    own = all(any(torch.equal(row, other) for other in matrix) for row in second)
    assert own or set(second.flatten().tolist()) <= {0.0, 1.0}  # rows as they are, or selected
    if {0.0, 1.0} >= set(first.flatten().tolist()) or not own:
        assert torch.equal(first @ second, matrix)


def test_subnormal_numbers_have_a_skeleton_too() -> None:
    small = 2.0**-1074
    matrix = integers(4, 2, dtype=torch.float64) @ integers(2, 5, dtype=torch.float64) * small
    first, second = skeleton(matrix, 2.0**-53)
    assert first.shape == (4, 2)
    assert bool(first.isfinite().all())
    assert all(any(torch.equal(row, other) for other in matrix) for row in second)


def test_stack_of_a_transposed_convolution_takes_no_output_size() -> None:
    conv = nn.ConvTranspose2d(1, 1, 3, stride=2)
    stack: Any = attention_from_conv(conv, depth=2)
    x = integers(1, 1, 2, 3)
    assert certify(stack, conv, x).holds
    with refused(ValueError, "output_size", "[6, 8]", "None for layers in a sequence"):
        certify(stack, conv, x, output_size=[6, 8])


def test_kernel_of_one_tap_has_layers_of_one_head() -> None:
    conv = filled(nn.Conv1d(2, 3, 1, stride=2).double())
    layers = stack_of(conv, 3)
    assert [layer.num_heads for layer in layers] == [1, 1, 1]
    x = integers(1, 2, 5, dtype=torch.float64)
    assert torch.equal(nn.Sequential(*layers)(x), conv(x))


def test_zero_kernel_has_one_channel_between_its_layers() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    nn.init.zeros_(conv.weight)
    first, last = stack_of(conv, 2)
    assert first.out_channels == last.in_channels == 1
    x = integers(1, 2, 4, 5)
    assert torch.equal(last(first(x)), conv(x))


# Networks -----------------------------------------------------------------------------------------


def test_network_is_converted_with_its_poolings_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(2, 1, 1)).double()
    filled(net)
    result, report = convert(net, depth=2, boundary="padded", report=True)
    converted: Any = result
    first, pooling, last = converted
    assert isinstance(pooling, MultiHeadSelfAttention)
    assert [len(part) for part in (first, last)] == [2, 2]
    assert "6 heads in 2 layers" in report.replaced["0"]
    assert not report.left
    x = integers(1, 1, 4, 6, dtype=torch.float64)
    assert torch.equal(converted(x), net(x))
    for layers, conv, seen in ((first, net[0], x), (last, net[2], net[:2](x))):
        of: Any = conv
        assert certify(layers, of, seen).holds
    assert torch.equal(copy.deepcopy(converted)(x), net(x))


def test_network_of_stacks_is_certified_layer_by_layer_and_to_its_end() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 1, 1)),
    ).double()
    filled(net)
    converted: Any = convert(net, depth=2)
    x = integers(2, 1, 5, 6, dtype=torch.float64)
    found = certify_layers(converted, net, x)
    assert list(found.layers) == ["0", "2.0", "2.1"]
    assert found.holds
    assert not found.left
    assert found.end_to_end is not None
    assert bool((found.difference <= found.end_to_end).all())
    with torch.no_grad():
        converted[2][0][1].weight.mul_(1.5)
    wrong = certify_layers(converted, net, x)
    assert wrong.failing == ("2.0",)
    assert "outputs fail" in wrong.diagnoses["2.0"]


def test_convolution_itself_becomes_a_sequence() -> None:
    found = convert(nn.Conv2d(1, 1, 3), depth=2)
    assert isinstance(found, nn.Sequential)


def test_weight_that_is_shared_stays_shared_where_the_layers_look_alike() -> None:
    first, second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
    second.weight, second.bias = first.weight, first.bias
    converted: Any = convert(nn.Sequential(first, second), depth=2)
    one, other = converted
    assert all(a.weight is b.weight for a, b in zip(one, other, strict=True))
    assert one[-1].bias is other[-1].bias
    moved = nn.Conv1d(1, 1, 4, padding=1), nn.Conv1d(1, 1, 4)
    moved[1].weight = moved[0].weight
    with pytest.raises(TypeError, match=r"whose layers look elsewhere; accepted: .*depth=1"):
        convert(nn.Sequential(*moved), depth=2)


def test_weight_that_is_made_at_each_call_has_one_layer() -> None:
    made = parametrizations.weight_norm(nn.Conv2d(1, 1, 3))
    with pytest.raises(ValueError, match="depth is 2, and the module makes its weight"):
        convert(nn.Sequential(made), depth=2)
