"""Convolutions on the layers of timm and transformers: the class unmodified, our parameters.

What holds for every function of `constructions.stock` that is about these libraries: which
convolutions it carries and which it refuses, bit for bit on integers, within rounding on real
numbers, within its leak at a finite sharpness; and that the module does the mixing.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from constructions import assert_equivalent, lower, stock
from tests.pages.options import agrees, truth_of
from tests.stock.domains import by_buckets, by_gates, by_tables, usual, with_zeros, within_pixels
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.libraries import imported
from tests.support.oracle import convolve_module, exact_error, numbers
from tests.support.strategies import (
    CONVOLUTIONS,
    TRANSPOSED,
    Case,
    Convolution,
    integer_cases,
    real_cases,
)

GATED = "gated_heads_start_as_convolution_for_odd_sides"
TABLES = "tables_select_the_shifts_they_tell_apart"
ROTATIONS = "rotations_select_shifts_without_resonance"


@dataclass(frozen=True)
class Target:
    """A function of `constructions.stock`, and what is said of it.

    Attributes:
        where: the module of its class.
        kind: the name of the class.
        ranks: dimensions of its convolutions.
        carries: whether it takes a case.
        values: names of the parameters that hold the kernel and the bias, all at once.
        positions: of those that hold the shifts.
        sink: whether a finite sharpness is halved by a sink.
    """

    where: str
    kind: str
    ranks: tuple[int, ...]
    carries: Callable[[Case], bool]
    values: tuple[str, ...]
    positions: tuple[str, ...]
    sink: bool = False


TARGETS = {
    "gpsa": Target(
        "timm.models.convit",
        "GPSA",
        (2,),
        by_gates,
        ("v.weight", "proj.weight", "proj.bias"),
        ("pos_proj.weight", "gating_param"),
    ),
    "swin": Target(
        "timm.models.swin_transformer",
        "WindowAttention",
        (1, 2),
        by_tables,
        ("qkv.weight", "proj.weight", "proj.bias"),
        ("relative_position_bias_table",),
    ),
    "beit": Target(
        "timm.models.beit",
        "Attention",
        (1, 2),
        lambda case: by_tables(case) and within_pixels(case),
        ("qkv.weight", "proj.weight", "proj.bias"),
        ("relative_position_bias_table",),
        sink=True,
    ),
    "t5": Target(
        "transformers.models.t5.modeling_t5",
        "T5Attention",
        (1,),
        by_buckets,
        ("v.weight", "o.weight"),
        ("relative_attention_bias.weight",),
    ),
    "llama": Target(
        "transformers.models.llama.modeling_llama",
        "LlamaAttention",
        (1, 2, 3),
        with_zeros,
        ("v_proj.weight", "o_proj.weight"),
        ("q_proj.weight", "k_proj.weight"),
    ),
    "gpt_oss": Target(
        "transformers.models.gpt_oss.modeling_gpt_oss",
        "GptOssAttention",
        (1,),
        lambda case: with_zeros(case) and within_pixels(case),
        ("v_proj.weight", "o_proj.weight", "o_proj.bias"),
        ("q_proj.weight", "k_proj.weight"),
        sink=True,
    ),
}


exact = pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpsa", marks=pytest.mark.evidence(GATED, "exact")),
        pytest.param("swin", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("beit", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("t5", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("llama", marks=pytest.mark.evidence(ROTATIONS, "exact")),
        pytest.param("gpt_oss", marks=pytest.mark.evidence(ROTATIONS, "exact")),
    ],
)
bounded = pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpsa", marks=pytest.mark.evidence(GATED, "property")),
        pytest.param("swin", marks=pytest.mark.evidence(TABLES, "property")),
        pytest.param("beit", marks=pytest.mark.evidence(TABLES, "property")),
        pytest.param("t5", marks=pytest.mark.evidence(TABLES, "property")),
        pytest.param("llama", marks=pytest.mark.evidence(ROTATIONS, "property")),
        pytest.param("gpt_oss", marks=pytest.mark.evidence(ROTATIONS, "property")),
    ],
)
control = pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpsa", marks=pytest.mark.evidence(GATED, "control")),
        pytest.param("swin", marks=pytest.mark.evidence(TABLES, "control")),
        pytest.param("beit", marks=pytest.mark.evidence(TABLES, "control")),
        pytest.param("t5", marks=pytest.mark.evidence(TABLES, "control")),
        pytest.param("llama", marks=pytest.mark.evidence(ROTATIONS, "control")),
        pytest.param("gpt_oss", marks=pytest.mark.evidence(ROTATIONS, "control")),
    ],
)


def layers(target: Target) -> list[type[Convolution]]:
    """Torch's convolutions of its dimensions."""
    return [kinds[rank - 1] for rank in target.ranks for kinds in (CONVOLUTIONS, TRANSPOSED)]


def built(name: str, conv: Any, x: torch.Tensor, **options: Any) -> Any:
    """The stock module for a convolution and its image."""
    imported(TARGETS[name].where)
    return getattr(stock, name)(conv, x.shape[-len(conv.kernel_size) :], **options)


def sample(name: str, dtype: torch.dtype = torch.float32) -> Case:
    """A padded kernel in which nothing is symmetric, of the greatest dimension but 3."""
    rank = min(2, max(TARGETS[name].ranks))
    kind: Any = CONVOLUTIONS[rank - 1]
    conv = filled(kind(2, 3, (2, 3)[-rank:], padding=(0, 1)[-rank:], dtype=dtype))
    return Case(conv, integers(2, 2, *(5, 4)[-rank:], dtype=dtype))


# Bit for bit, within rounding, within the leak ----------------------------------------------------


@exact
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_stock_module_is_the_convolution_bit_for_bit_or_refuses_by_a_theorem(
    data: st.DataObject, dtype: torch.dtype, name: str
) -> None:
    target = TARGETS[name]
    case = data.draw(usual(integer_cases(dtype, layers(target))), label="case")
    if not target.carries(case):
        with pytest.raises(ValueError, match=r"accepted: .*theorem [a-z]+_"):
            built(name, case.conv, case.x)
        return
    assert agrees(built(name, case.conv, case.x), case, truth_of(case))
    record(dtype=dtype)


@bounded
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_stock_module_is_equivalent_on_real_numbers(
    data: st.DataObject, dtype: torch.dtype, name: str
) -> None:
    target = TARGETS[name]
    case = data.draw(usual(real_cases(dtype, layers(target))), label="case")
    if target.carries(case):
        assert_equivalent(built(name, case.conv, case.x), case.conv, case.x)


@bounded
@pytest.mark.parametrize("sharpness", [2.0, 8.0])
def test_stock_module_of_finite_sharpness_leaks_no_more_than_all_keys_at_the_gap(
    name: str, sharpness: float
) -> None:
    case = sample(name, torch.float64)
    module = built(name, case.conv, case.x, sharpness=sharpness)
    (tokens, *_) = module.tokens(case.x)
    # One key more than there are: what rounding may take of it is less. A sink is at half the gap.
    leak = tokens.shape[1] * math.exp(-sharpness) + TARGETS[name].sink * math.exp(-sharpness / 2)
    assert_equivalent(module, case.conv, case.x, leak=min(1.0, leak))
    with pytest.raises(AssertionError):
        assert_equivalent(module, case.conv, case.x)


# The module is theirs, and does the mixing --------------------------------------------------------


@exact
def test_module_is_of_the_library_with_its_own_forward(name: str) -> None:
    case, target = sample(name), TARGETS[name]
    module = built(name, case.conv, case.x).module
    assert type(module) is getattr(imported(target.where), target.kind)
    assert "forward" not in vars(module)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert not module.training


@exact
def test_tokens_hold_a_pixel_and_its_position_alone(name: str) -> None:
    # One pixel changed: one token is, and by that pixel.
    case = sample(name)
    module = built(name, case.conv, case.x)
    changed = case.x.clone()
    changed[0, 1].flatten()[3] += 1
    (before, *_), (after, *_) = module.tokens(case.x), module.tokens(changed)
    different = (before != after).nonzero()
    assert len(different) == 1
    assert different[0, 0] == 0
    assert different[0, 2] == 1


@control
def test_half_of_a_value_or_output_is_not_the_convolution(name: str) -> None:
    case = sample(name)
    for parameter in TARGETS[name].values:
        module = built(name, case.conv, case.x)
        assert agrees(module, case, truth_of(case))
        with torch.no_grad():
            module.module.get_parameter(parameter).mul_(0.5)
        assert not agrees(module, case, truth_of(case)), parameter
        with pytest.raises(AssertionError):
            assert_equivalent(module, case.conv, case.x)


@control
def test_module_without_its_positions_is_not_the_convolution(name: str) -> None:
    case = sample(name)
    for parameter in TARGETS[name].positions:
        module = built(name, case.conv, case.x)
        with torch.no_grad():
            module.module.get_parameter(parameter).zero_()
        assert not agrees(module, case, truth_of(case)), parameter


@control
def test_module_of_the_flipped_kernel_is_not_the_convolution(name: str) -> None:
    # Query minus key for key minus query.
    case = sample(name)
    conv: Any = copy.deepcopy(case.conv)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flip(list(range(2, conv.weight.dim()))))
    assert not agrees(built(name, conv, case.x), case, truth_of(case))


@exact
def test_gradients_reach_the_image_and_the_module(name: str) -> None:
    # Of the image they are the convolution's own, since weights do not depend on it.
    case = sample(name)
    x = case.x.clone().requires_grad_()
    module = built(name, case.conv, x)
    (of_module,) = torch.autograd.grad(module(x).square().sum(), x)
    (of_conv,) = torch.autograd.grad(case.conv(x).square().sum(), x)
    assert torch.equal(of_module, of_conv)


# There and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("gpsa", marks=pytest.mark.evidence(GATED, "exact")),
        pytest.param("swin", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("beit", marks=pytest.mark.evidence(TABLES, "exact")),
        pytest.param("t5", marks=pytest.mark.evidence(TABLES, "exact")),
    ],
)
def test_module_lowered_again_is_the_convolution(name: str) -> None:
    # From the convolution to the library's module, and from that, read anew, to a convolution.
    case = sample(name, torch.float64)
    module = built(name, case.conv, case.x)
    lowered = lower(module.module, grid=module.canvas.shape)
    tokens = module.placed(case.x).transpose(1, 2)
    with torch.no_grad():
        y = lowered(tokens.reshape(len(case.x), -1, *module.canvas.shape))
    outputs = module.canvas.select(y.flatten(2).transpose(1, 2), 3)
    assert not exact_error(numbers(outputs), truth_of(case)).any()


# Decoders, with their mask ------------------------------------------------------------------------

decoders = pytest.mark.parametrize("name", ["llama", "gpt_oss"])


@pytest.mark.evidence(ROTATIONS, "exact")
@decoders
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_decoder_with_its_causal_mask_is_the_causal_convolution_bit_for_bit(
    data: st.DataObject, dtype: torch.dtype, name: str
) -> None:
    imported(TARGETS[name].where)
    taps, dilation = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    length, bias = data.draw(st.integers(1, 9)), data.draw(st.booleans())
    conv = filled(nn.Conv1d(2, 3, taps, dilation=dilation, bias=bias, dtype=dtype))
    x = integers(2, 2, length, dtype=dtype)
    module: Any = getattr(stock, name)(conv, (length,), causal=True)
    padded = nn.functional.pad(x, (dilation * (taps - 1), 0))
    with torch.no_grad():
        assert not exact_error(numbers(module(x)), convolve_module(conv, padded)).any()
    *_, mask = module.tokens(x)
    assert torch.equal(mask.isinf(), torch.ones_like(mask).triu(1).bool())
    record(dtype=dtype)


@pytest.mark.evidence(ROTATIONS, "control")
@decoders
def test_causal_mask_hides_the_taps_ahead(name: str) -> None:
    case = Case(filled(nn.Conv1d(2, 3, 3, padding=1)), integers(2, 2, 6))
    module = built(name, case.conv, case.x)
    assert agrees(module, case, truth_of(case))
    module.causal = True
    assert not agrees(module, case, truth_of(case))


@pytest.mark.evidence(ROTATIONS, "control")
@decoders
@pytest.mark.parametrize("wrong", [{"padding": 1}, {"stride": 2}], ids=str)
def test_causal_module_of_another_convolution_is_refused(name: str, wrong: Any) -> None:
    imported(TARGETS[name].where)
    with refused(ValueError, "conv", next(iter(wrong)), "without padding and of stride 1"):
        getattr(stock, name)(nn.Conv1d(1, 1, 3, **wrong), (6,), causal=True)
    with refused(ValueError, "conv", "transposed True", "without padding and of stride 1"):
        getattr(stock, name)(nn.ConvTranspose1d(1, 1, 3), (6,), causal=True)


SINKS: dict[str, tuple[str, Any]] = {
    "beit": ("relative_position_bias_table", -2),  # the class token as a key
    "gpt_oss": ("sinks", slice(None)),
}


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.evidence("borders_are_limits_of_attention", "control")
def test_without_its_sink_a_module_is_wrong_at_the_border_alone(name: str) -> None:
    conv = filled(nn.Conv1d(2, 3, 3, padding=1))
    x = integers(2, 2, 6)
    module = built(name, conv, x)
    parameter, place = SINKS[name]
    with torch.no_grad():
        module.module.get_parameter(parameter)[place] = -1e9
        y, wanted = module(x), conv(x)
    assert torch.equal(y[..., 1:-1], wanted[..., 1:-1])
    assert not torch.equal(y[..., 0], wanted[..., 0])
    assert not torch.equal(y[..., -1], wanted[..., -1])


@pytest.mark.evidence("borders_are_limits_of_attention", "control")
@pytest.mark.parametrize("pixels", [4, 5, 6])
def test_no_table_of_displacements_reflects_two_pixels(pixels: int) -> None:
    # Every order of the displacements, for the shift by 2: a query sees the first one on the grid.
    wanted = {q: (2 * (pixels - 1) - q - 2 if q + 2 >= pixels else q + 2) for q in range(pixels)}
    ahead: dict[int, set[int]] = {}  # what each displacement has to come before
    for query, key in wanted.items():
        seen = {k - query for k in range(pixels)}
        ahead.setdefault(key - query, set()).update(seen - {key - query})
    assert 0 in ahead[-2]
    assert -2 in ahead[0]


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.evidence(GATED, "exact")
def test_scores_of_gates_are_exact_up_to_the_size_that_is_refused() -> None:
    imported("timm.models.convit")
    conv = nn.Conv2d(1, 1, 3, bias=False)
    side = next(n for n in range(2800, 3000) if 2 * (n - 1) ** 2 + 4 * (n - 1) > 2**24)
    with refused(ValueError, "spatial_shape", f"{side} x {side}", "16777216"):
        stock.gpsa(conv, (side, side))
    projection = stock.gpsa(conv, (side - 1, side - 1)).module.pos_proj.weight.detach()
    far = side - 2
    corners = torch.tensor([[x, y, x * x + y * y] for x in (-far, far) for y in (1 - far, far)])
    scores = corners.float() @ projection.T
    exact = corners.double() @ projection.double().T
    assert torch.equal(scores.double(), exact)


@pytest.mark.evidence(ROTATIONS, "exact")
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_more_tokens_than_rotations_tell_apart_are_refused(name: str) -> None:
    conv = nn.Conv1d(1, 1, 3, padding=1)
    imported(TARGETS[name].where)
    with refused(ValueError, "spatial_shape", "tokens", ROTATIONS):
        getattr(stock, name)(conv, (10**7,))


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_other_dimension_format_kind_size_or_sharpness_is_refused(name: str) -> None:
    case, target = sample(name), TARGETS[name]
    imported(target.where)
    function: Any = getattr(stock, name)
    shape = tuple(case.x.shape[2:])
    for rank in {1, 2, 3} - set(target.ranks):
        kind: Any = CONVOLUTIONS[rank - 1]
        with refused(ValueError, "conv", f"{rank} dimensions", str(target.ranks[0])):
            function(kind(1, 1, 1), (4,) * rank)
    with refused(ValueError, "conv", "float16", "float32"):
        function(case.conv.half(), shape)
    case.conv.float()
    pooling = (nn.AvgPool1d, nn.AvgPool2d)[len(shape) - 1](2)
    with refused(TypeError, "conv", "AvgPool", "convolution"):
        function(pooling, shape)
    with refused(ValueError, "spatial_shape", "(4, 4, 4, 4)", "sizes"):
        function(case.conv, (4, 4, 4, 4))
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with refused(ValueError, "sharpness", str(wrong), "positive"):
            function(case.conv, shape, sharpness=wrong)
    module = function(case.conv, shape)
    with refused(ValueError, "input", "shape", "made for"):
        module(torch.zeros(1, 2, *(n + 1 for n in shape)))


@pytest.mark.evidence(GATED, "control")
def test_grid_that_is_not_square_is_read_as_one_by_the_module_itself() -> None:
    # 2 x 8 tokens are taken for 4 x 4 without a word; so the adapter fills up with zeros.
    module = imported("timm.models.convit").GPSA(2, 1)
    distances = module.get_rel_indices(16)[0, 0, :, 2]
    square = [float(c * c + r * r) for r in range(4) for c in range(4)]
    assert distances.tolist() == square
    conv = filled(nn.Conv2d(1, 1, 3, padding=1))
    x = integers(1, 1, 2, 8)
    assert torch.equal(stock.gpsa(conv, (2, 8))(x), conv(x))
    replicate = filled(nn.Conv2d(1, 1, 3, padding=1, padding_mode="replicate"))
    with refused(ValueError, "spatial_shape", "(2, 8)", "square"):
        stock.gpsa(replicate, (2, 8))
