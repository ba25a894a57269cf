"""Convolutions on timm's attention of a ViT, tokens that are patches.

T20, `docs/theorems/patches_trade_heads_for_width.md`. The class is unmodified.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import assert_equivalent, stock
from tests.pages.options import agrees, truth_of
from tests.stock.domains import usual, with_zeros, within_pixels
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.support.strategies import CONVOLUTIONS, Case, integer_cases, real_cases

SLUG = "patches_trade_heads_for_width"
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

formats = st.sampled_from([torch.float32, torch.float64])


def sides(case: Case) -> list[int]:
    """The sides of patches that an image can be cut into."""
    spatial = case.x.shape[-len(case.conv.kernel_size) :]
    return [n for n in range(1, math.gcd(*spatial) + 1) if not any(m % n for m in spatial)]


def built(case: Case, side: int, **options: Any) -> Any:
    """The stock module for a case."""
    imported("timm.layers")
    shape = case.x.shape[-len(case.conv.kernel_size) :]
    return stock.vit(case.conv, shape, patch_size=side, **{"head_dim": 16} | options)


def sample(dtype: torch.dtype = torch.float32) -> Case:
    """A padded kernel in which nothing is symmetric, on 3 x 2 patches of 2 x 2 pixels."""
    conv = filled(nn.Conv2d(2, 3, (2, 3), padding=(0, 1), dtype=dtype))
    return Case(conv, integers(2, 2, 6, 4, dtype=dtype))


@exact
@given(data=st.data(), dtype=formats)
def test_vit_is_the_convolution_bit_for_bit_or_refuses_by_a_theorem(
    data: st.DataObject, dtype: torch.dtype
) -> None:
    case = data.draw(usual(integer_cases(dtype, CONVOLUTIONS)), label="case")
    side = data.draw(st.sampled_from(sides(case)), label="side of a patch")
    if with_zeros(case) and within_pixels(case):
        assert agrees(built(case, side), case, truth_of(case))
        record(dtype=dtype)
    else:
        with pytest.raises(ValueError, match=r"accepted: .*theorem [a-z]+_"):
            built(case, side)


@bounded
@given(data=st.data(), dtype=formats)
def test_vit_is_equivalent_on_real_numbers(data: st.DataObject, dtype: torch.dtype) -> None:
    case = data.draw(usual(real_cases(dtype, CONVOLUTIONS, ["zeros"])), label="case")
    side = data.draw(st.sampled_from(sides(case)), label="side of a patch")
    if within_pixels(case):
        assert_equivalent(built(case, side), case.conv, case.x)


@exact
@pytest.mark.parametrize("fused", [False, True])
def test_width_and_heads_of_vit_b_16_are_too_few_for_a_3_by_3_kernel_on_rgb(fused: bool) -> None:
    # Equation (9): 20 heads of 64, where the model has 12.
    conv = filled(nn.Conv2d(3, 3, 3, padding=1))
    x = integers(1, 3, 48, 32)
    module = built(Case(conv, x), 16, head_dim=64)
    assert module.module.num_heads == 20
    assert module.module.qkv.in_features == 1280
    module.module.fused_attn = fused  # timm's own switch
    assert agrees(module, Case(conv, x), truth_of(Case(conv, x)))


@exact
def test_module_is_timms_with_its_own_forward() -> None:
    module = built(sample(), 2).module
    assert type(module) is imported("timm.models.vision_transformer").Attention
    assert "forward" not in vars(module)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert not module.training


@exact
def test_tokens_hold_the_pixels_of_a_patch_and_its_position_alone() -> None:
    case = sample()
    module = built(case, 2)
    changed = case.x.clone()
    changed[0, 1, 2, 3] += 1  # patch (1, 1), pixel (0, 1), channel 1
    (before,), (after,) = module.tokens(case.x), module.tokens(changed)
    assert (before != after).nonzero().tolist() == [[0, 1 + 1 * 2 + 1, 1 * 2 + 1]]


@bounded
@pytest.mark.parametrize("sharpness", [2.0, 8.0])
def test_vit_of_finite_sharpness_leaks_no_more_than_all_patches_at_the_gap(
    sharpness: float,
) -> None:
    case = sample(torch.float64)
    module = built(case, 2, sharpness=sharpness)
    leak = 7 * math.exp(-sharpness) + math.exp(-sharpness / 2)
    # A patch leaks pixels of another place; each is in the range, and each of up to four shifts.
    assert_equivalent(module, case.conv, case.x, leak=min(1.0, leak))
    with pytest.raises(AssertionError):
        assert_equivalent(module, case.conv, case.x)


@control
@pytest.mark.parametrize("name", ["qkv.weight", "proj.weight", "proj.bias"])
def test_half_of_a_parameter_is_not_the_convolution(name: str) -> None:
    case = sample()
    module = built(case, 2)
    assert agrees(module, case, truth_of(case))
    with torch.no_grad():
        module.module.get_parameter(name).mul_(0.5)
    assert not agrees(module, case, truth_of(case))
    with pytest.raises(AssertionError):
        assert_equivalent(module, case.conv, case.x)


@control
def test_module_without_queries_is_not_the_convolution() -> None:
    case = sample()
    module = built(case, 2)
    with torch.no_grad():
        module.module.qkv.weight[: module.width].zero_()
    assert not agrees(module, case, truth_of(case))


@control
def test_class_token_that_is_no_sink_is_wrong_at_the_border_alone() -> None:
    case = sample()
    module = built(case, 2)
    module.positions[0].zero_()  # its key is 0, as high as a target
    with torch.no_grad():
        y, wanted = module(case.x), case.conv(case.x)
    assert not torch.equal(y, wanted)


# Sizes and refusals -------------------------------------------------------------------------------


@exact
def test_scores_are_exact_up_to_the_size_that_is_refused() -> None:
    imported("timm.layers")
    conv = nn.Conv1d(1, 1, 3, padding=1)
    # Positions are counted from the middle, h away at most, and targets one farther.
    half = next(h for h in range(1, 2**13) if 4 * (h + 1) * h + 2 * h**2 + 2 * (h + 1) ** 2 > 2**24)
    with refused(ValueError, "spatial_shape", f"({2 * half},)", "16777216"):
        stock.vit(conv, (2 * half,), patch_size=1, head_dim=16)
    allowed = 2 * half - 1
    module: Any = stock.vit(conv, (allowed,), patch_size=1, head_dim=16)
    features = module.positions
    ends = features[[0, 1, 2, allowed // 2, allowed - 1, allowed]]
    heads, width = module.module.num_heads, module.width
    queries, keys, _ = module.module.qkv.weight.detach().view(3, heads, 16, width)[..., -4:]
    for head in range(heads):
        parts = [(ends.to(d) @ queries[head].to(d).T) for d in (torch.float32, torch.float64)]
        assert torch.equal(parts[0].double(), parts[1])
        scores = [p @ (ends.to(p) @ keys[head].to(p).T).T / 4 for p in parts]
        assert torch.equal(scores[0].double(), scores[1])


def test_other_patches_heads_sizes_and_sources_are_refused() -> None:
    imported("timm.layers")
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with refused(ValueError, "spatial_shape", "(5, 4)", "multiples of patch_size"):
        stock.vit(conv, (5, 4), patch_size=2)
    with refused(ValueError, "spatial_shape", "(4, 4)", "multiples of patch_size"):
        stock.vit(conv, (4, 4), patch_size=0)
    for head_dim in (1, 4, 32):
        with refused(ValueError, "head_dim", str(head_dim), "power of four"):
            stock.vit(conv, (4, 4), patch_size=2, head_dim=head_dim)
    with refused(ValueError, "conv", "float16", "float32"):
        stock.vit(nn.Conv2d(1, 1, 3).half(), (4, 4), patch_size=2)
    with refused(TypeError, "conv", "AvgPool2d", "convolution"):
        stock.vit(nn.AvgPool2d(2), (4, 4), patch_size=2)
    with refused(ValueError, "conv", "replicate", "zeros"):
        stock.vit(nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"), (4, 4), patch_size=2)
    with refused(ValueError, "sharpness", "-1.0", "positive"):
        stock.vit(conv, (4, 4), patch_size=2, sharpness=-1.0)


def test_kernel_of_zeros_takes_a_head_that_does_nothing() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.zero_()
    x = torch.ones(1, 1, 4, 4)
    case = Case(conv, x)
    assert agrees(built(case, 2), case, truth_of(case))
