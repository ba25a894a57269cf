"""Narrow heads: what is refused, what they keep of the convolution, whole networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from constructions import MultiHeadSelfAttention, attention_from_conv, certify, convert
from tests.support.helpers import filled, integers, refused


@pytest.mark.parametrize(
    ("conv", "options", "way_out"),
    [
        (nn.Conv2d(2, 2, 3, groups=2), {}, "None, since its heads have a block for each group"),
        (nn.Conv1d(2, 2, 3), {"encoding": "scalar"}, "whose heads mix all taps"),
        (nn.AvgPool2d(2), {}, "every channel alike and apart"),
        (nn.Conv2d(2, 2, 3, device="meta"), {}, "finite numbers, whose ranks"),
    ],
    ids=["groups", "mixing", "pooling", "meta"],
)
def test_head_dim_that_does_not_apply_is_refused_with_the_reason(
    conv: Any, options: Any, way_out: str
) -> None:
    with refused(ValueError, "head_dim", "1", way_out):
        attention_from_conv(conv, head_dim=1, **options)


@pytest.mark.parametrize(
    ("head_dim", "kind", "accepted"),
    [
        (0, ValueError, "at least 1"),
        (1.0, TypeError, "an integer"),
        (True, TypeError, "an integer"),
    ],
    ids=str,
)
def test_head_dim_is_a_positive_integer(head_dim: Any, kind: Any, accepted: str) -> None:
    with refused(kind, "head_dim", "", accepted):
        attention_from_conv(nn.Conv1d(2, 2, 3), head_dim=head_dim)
    with refused(kind, "head_dim", "", accepted):
        convert(nn.Sequential(nn.Linear(1, 1)), on_refusal="keep", head_dim=head_dim)


def test_weights_that_are_no_numbers_have_no_ranks() -> None:
    conv = nn.Conv1d(2, 2, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0] = torch.inf
    with refused(ValueError, "head_dim", "infinite or NaN", "finite numbers"):
        attention_from_conv(conv, head_dim=1)


def test_as_many_channels_as_there_are_is_a_head_for_each_tap() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    wide = attention_from_conv(conv, head_dim=3)
    assert wide.num_heads == 9
    assert wide.stores_kernel
    assert wide.state_dict().keys() == conv.state_dict().keys()


def test_zero_taps_have_no_heads_and_a_zero_kernel_one() -> None:
    conv = filled(nn.Conv1d(2, 3, 5, bias=False).double())
    with torch.no_grad():
        conv.weight[..., 1] = 0
        conv.weight[..., 3] = 0
    layer, x = attention_from_conv(conv, head_dim=2), integers(1, 2, 8, dtype=torch.float64)
    assert layer.num_heads == 3
    assert torch.equal(layer(x), conv(x))
    assert torch.equal(layer.weight, conv.weight)
    nn.init.zeros_(conv.weight)
    for head_dim in (1, 2):
        layer = attention_from_conv(conv, head_dim=head_dim)
        assert layer.num_heads == 1
        assert torch.equal(layer(x), conv(x))


def test_layer_keeps_flags_and_is_trained_in_its_factors() -> None:
    conv = nn.Conv1d(4, 4, 3).eval()
    conv.weight.requires_grad_(False)
    layer = attention_from_conv(conv, head_dim=2)
    assert not layer.training
    assert {name: p.requires_grad for name, p in layer.named_parameters()} == {
        "value": False,
        "output": False,
        "bias": True,
    }
    trained = attention_from_conv(nn.Conv1d(4, 4, 3), head_dim=2)
    trained(torch.ones(1, 4, 5)).sum().backward()
    assert trained.value.grad is not None
    assert trained.output.grad is not None


@pytest.mark.parametrize("evaluation", ["dense", "factored", "fused"])
def test_every_way_of_computing_has_its_certificate(evaluation: str) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        nn.init.normal_(conv.weight)
        x = torch.randn(1, 4, 5, 6)
    layer = attention_from_conv(conv, head_dim=3, evaluation=evaluation, boundary="padded")
    assert certify(layer, conv, x).holds


def test_depth_and_head_dimension_go_together() -> None:
    conv = filled(nn.Conv2d(4, 4, 3, padding=1).double())
    stack: Any = attention_from_conv(conv, head_dim=2, depth=2)
    assert all(layer.head_matrices()[0].shape[-1] == 2 for layer in stack)
    assert certify(stack, conv, integers(1, 4, 4, 5, dtype=torch.float64)).holds


def test_network_is_converted_with_its_poolings_left_alone() -> None:
    net = filled(
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)).double()
    )
    converted: Any = convert(net, head_dim=2)
    first, pooling, last = converted
    assert all(isinstance(part, MultiHeadSelfAttention) for part in converted)
    assert (first.num_heads, pooling.num_heads, last.num_heads) == (18, 1, 1)
    x = integers(1, 4, 4, 6, dtype=torch.float64)
    assert certify(first, net[0], x).holds  # type: ignore[arg-type]
    made = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="head_dim is 2, and the module makes its weight"):
        convert(nn.Sequential(made), head_dim=2)
