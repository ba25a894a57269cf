"""The multi-head attention of a stock library, unmodified and without mask or positional bias, computes any convolution of tokens [x, p, ‖p‖², 1, 0 …], one for each pixel.

T17, `docs/theorems/stock_attention_is_convolution.md`. The module is torch's own, on each of its
code paths: with weights returned and without, the fused kernel and the plain one, the fast path of
`eval()`.
"""  # noqa: E501, the claim is one sentence

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from constructions import Stock, assert_equivalent, stock
from constructions.stock import plan
from tests.pages.options import agrees, truth_of
from tests.support.helpers import filled, integers, refused
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import Case, integer_cases, real_cases
from theory import stock_attention_is_convolution as theory

SLUG = "stock_attention_is_convolution"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
bounded = pytest.mark.evidence(SLUG, "property")
control = pytest.mark.evidence(SLUG, "control")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
BORDERS = ("zeros", "replicate")
PATHS: dict[str, dict[str, Any]] = {
    "fused": {"need_weights": False},
    "weights": {"need_weights": True},
    "plain": {"need_weights": False},
}
"""The plain path runs within the backend of that name."""


def stock_of(case: Case, **options: Any) -> Stock:
    """The stock attention of a case, called on its image with nothing else."""
    d = len(case.conv.kernel_size)
    module: Stock = stock.multihead_attention(
        case.conv, case.x.shape[-d:], output_size=case.output_size, **options
    )
    return module


def alone(case: Case) -> Case:
    """The case, for a module that knows its output size."""
    return Case(case.conv, case.x)


def agrees_on(path: str, module: Stock, x: Tensor, y: Tensor) -> bool:
    """Whether the module returns y, bit for bit up to the sign of zero, on one of its paths."""
    module.need_weights = PATHS[path]["need_weights"]
    kernel = SDPBackend.MATH if path == "plain" else SDPBackend.FLASH_ATTENTION
    with torch.no_grad(), sdpa_kernel(kernel):
        found: Tensor = module(x)
    return torch.equal(found, y)


# The proof ----------------------------------------------------------------------------------------


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


# Every convolution --------------------------------------------------------------------------------


@exact
@DTYPES
@given(data=st.data())
def test_stock_attention_is_the_convolution_bit_for_bit_on_integers(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype, padding_modes=BORDERS))
    bias, need_weights = data.draw(st.booleans()), data.draw(st.booleans())
    module = stock_of(case, bias=bias, need_weights=need_weights)
    module.train(data.draw(st.booleans()))
    truth = truth_of(case)
    assert type(module.module) is nn.MultiheadAttention
    assert agrees(module, alone(case), truth)
    record(dtype=dtype)


@bounded
@DTYPES
@given(data=st.data())
def test_on_any_numbers_it_errs_by_the_rounding_of_a_sum(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(real_cases(dtype, padding_modes=BORDERS))
    if case.output_size is None:
        assert_equivalent(stock_of(case, bias=data.draw(st.booleans())), case.conv, case.x)


@exact
@DTYPES
@given(data=st.data())
def test_every_head_looks_at_its_target_and_at_nothing_else(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    # The weights themselves, against targets found from torch's options in NumPy.
    case = data.draw(integer_cases(dtype, padding_modes=BORDERS))
    module = stock_of(case)
    x = case.x if case.x.dim() == case.conv.weight.dim() else case.x.unsqueeze(0)
    queries, keys, values, *_ = module.tokens(x)
    _, weights = module.module(queries, keys, values, average_attn_weights=False)
    wanted = one_hot_rows(case, x.shape[2:], module.image((queries, None)).shape[2:])
    found = numbers(weights)
    if not module.module.add_zero_attn:
        assert not wanted[..., -1].any()
        wanted = wanted[..., :-1]
    assert all(np.array_equal(image, wanted) for image in found)


def one_hot_rows(case: Case, pixels: torch.Size, outputs: torch.Size) -> np.ndarray[Any, Any]:
    """(H, queries, keys + 1): where each tap looks; the last column is a zero."""
    conv = case.conv
    d = len(conv.kernel_size)
    rows = []
    taps = list(np.ndindex(*conv.kernel_size))
    for tap in reversed(taps) if conv.transposed else taps:  # by offset
        for output in np.ndindex(*outputs):
            where: list[Any] = [
                on_axis(conv, axis, tap[axis], output[axis], pixels[axis]) for axis in range(d)
            ]
            row = np.zeros(math.prod(pixels) + 1)
            place = -1 if None in where else int(np.ravel_multi_index(where, pixels))
            row[place] = 1
            rows.append(row)
    return np.array(rows).reshape(math.prod(conv.kernel_size), -1, math.prod(pixels) + 1)


def on_axis(conv: Any, axis: int, j: int, output: int, size: int) -> int | None:
    """The pixel that a tap shows to an output on one axis; None for a zero."""
    step, spread = conv.stride[axis], conv.dilation[axis]
    if conv.transposed:
        coarse, off = divmod(output + conv.padding[axis] - j * spread, step)
        return int(coarse) if not off and 0 <= coarse < size else None
    low = conv.padding
    if isinstance(low, str):
        reach = spread * (conv.kernel_size[axis] - 1)
        low = [0 if low == "valid" else reach // 2] * (axis + 1)
    place: int = output * step + j * spread - low[axis]
    if conv.padding_mode == "replicate":
        return min(max(place, 0), size - 1)
    return place if 0 <= place < size else None


@exact
@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_any_border_that_no_target_meets_will_do(mode: Any) -> None:
    conv, x = filled(nn.Conv2d(2, 3, (2, 3), padding_mode=mode)), integers(2, 2, 4, 5)
    assert torch.equal(stock.multihead_attention(conv, (4, 5))(x), conv(x))


@exact
def test_tokens_hold_a_pixel_and_where_it_stands_and_nothing_else() -> None:
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    module, x = stock.multihead_attention(conv, (3, 4)), integers(2, 2, 3, 4)
    queries, keys, values, *_ = module.tokens(x)
    assert queries is keys is values
    for i, j in np.ndindex(3, 4):
        p, r = i - 1, j - 1  # from the middle of the grid
        wanted = [*x[0, :, i, j].tolist(), p, r, p * p + r * r, 1]
        token = keys[0, 4 * i + j].tolist()
        assert token == wanted + [0] * (len(token) - len(wanted))


# How large ----------------------------------------------------------------------------------------


@exact
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("size", "d_h"), [(361, 3), (362, 16), (2895, 16)])
def test_line_of_the_largest_size_is_exact_on_every_path(path: str, size: int, d_h: int) -> None:
    # Equation (9): n + |Δ| is at most 362 for any head dimension, and 2896 for 16.
    conv, x = filled(nn.Conv1d(1, 1, 3, padding=1)), integers(1, 1, size)
    module = stock.multihead_attention(conv, size)
    assert module.module.head_dim == d_h
    assert agrees_on(path, module, x, conv(x).detach())


@exact
@pytest.mark.parametrize("path", PATHS)
def test_picture_is_exact_on_every_path(path: str) -> None:
    conv, x = filled(nn.Conv2d(1, 2, 2, padding=1)), integers(1, 1, 24, 25)
    assert agrees_on(path, stock.multihead_attention(conv, (24, 25)), x, conv(x).detach())


@exact
def test_larger_image_is_refused_with_the_way_out() -> None:
    conv = nn.Conv1d(1, 1, 5, padding=2)
    for kind, shape in ((conv, (2896,)), (nn.Conv2d(1, 1, 5, padding=2), (2046, 3000))):
        with refused(ValueError, "spatial_shape", str(shape), "float64"):
            stock.multihead_attention(kind, shape)
    assert stock.multihead_attention(conv.double(), 2896).module.head_dim == 3


@control
def test_head_dimension_of_three_loses_pixels_on_a_long_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from constructions.stock import multihead

    monkeypatch.setattr(multihead, "head_dimension", lambda places, least, dtype: least)
    conv, x = filled(nn.Conv1d(1, 1, 3, padding=1)), integers(1, 1, 2895)
    module = stock.multihead_attention(conv, 2895)
    assert module.module.head_dim == 3
    assert not agrees_on("plain", module, x, conv(x).detach())


# The module does it -------------------------------------------------------------------------------


def halved(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.div_(2)


def query_minus_key(module: nn.Module) -> None:
    """Every head looks at q - Δ."""
    attention: Any = module
    conv = filled(nn.Conv2d(2, 3, 3, padding=1))
    turned = plan.Plan.of(conv, (4, 5))
    turned.places.shifts.neg_()
    one = torch.eye(attention.embed_dim, dtype=torch.float64)
    plan.set_attention(attention, turned, plan.Layout(one[:2], one[2:6], one[:, :3]))


def swapped_heads(module: nn.Module) -> None:
    attention: Any = module
    with torch.no_grad():
        query = attention.in_proj_weight[: attention.embed_dim]
        query.copy_(query.unflatten(0, (attention.num_heads, -1)).roll(1, 0).flatten(0, 1))


def no_zero_key(module: nn.Module) -> None:
    attention: Any = module
    attention.add_zero_attn = False


def target_at_zero(module: nn.Module) -> None:
    """The zero key as high as the target, which then has half of the weight."""
    attention: Any = module
    with torch.no_grad():
        # The last feature's name is c - α |q + Δ|²; its constant part is read from channel 5.
        query = attention.in_proj_weight[: attention.embed_dim].unflatten(
            0, (attention.num_heads, -1)
        )
        query[:, 3, 5] -= 256 * math.sqrt(attention.head_dim)


def a_head_lost(module: nn.Module) -> None:
    attention: Any = module
    with torch.no_grad():
        attention.out_proj.weight[:, : attention.head_dim] = 0


WRONG: dict[str, Callable[[nn.Module], None]] = {
    f.__name__: f
    for f in (halved, query_minus_key, swapped_heads, no_zero_key, target_at_zero, a_head_lost)
}


@control
@pytest.mark.parametrize("wrong", WRONG)
def test_module_with_other_parameters_is_rejected(wrong: str) -> None:
    conv, x = filled(nn.Conv2d(2, 3, 3, padding=1)), integers(2, 2, 4, 5)
    module = stock.multihead_attention(conv, (4, 5))
    assert_equivalent(module, conv, x)
    changed = copy.deepcopy(module)
    WRONG[wrong](changed.module)
    assert not torch.equal(changed(x), module(x))
    with pytest.raises(AssertionError, match="not the convolution"):
        assert_equivalent(changed, conv, x)


@control
def test_bias_of_the_convolution_is_not_that_of_the_module() -> None:
    # `bias=False` drops the output projection's bias too; a head more carries it.
    conv, x = filled(nn.Conv1d(1, 2, 3, padding=1)), integers(1, 1, 5)
    module = stock.multihead_attention(conv, 5, bias=False)
    assert module.module.num_heads == 4
    assert module.module.out_proj.bias is None
    assert torch.equal(module(x), conv(x))
    without = copy.deepcopy(conv)
    without.bias = None
    assert stock.multihead_attention(without, 5, bias=False).module.num_heads == 3
    with torch.no_grad():
        module.module.out_proj.weight[:, 3 * module.module.head_dim :] = 0
    assert torch.equal(module(x), without(x))


# Where torch drops the zero key, and says nothing -------------------------------------------------


@control
def test_causal_hint_without_weights_drops_the_zero_key() -> None:
    # A causal mask of as many columns as keys with the zero key: it is the last, and masked.
    conv = filled(nn.Conv1d(2, 2, 3, padding=2))
    x, mask = integers(1, 2, 6), torch.ones(6, 6, dtype=torch.bool).triu(1)
    module = stock.multihead_attention(filled(nn.Conv1d(2, 2, 3)), 6, causal=True)
    tokens = module.tokens(x)[0][:, 1:]
    attention = module.module
    attention.add_zero_attn = True
    options = {"attn_mask": mask, "is_causal": True}
    zeros, _ = attention(tokens, tokens, tokens, need_weights=True, **options)
    dropped, _ = attention(tokens, tokens, tokens, need_weights=False, **options)
    assert torch.equal(zeros[..., :2].mT, conv(x)[..., :6])
    replicated = nn.functional.pad(x, (2, 0), mode="replicate")
    assert torch.equal(dropped[..., :2].mT, filled(nn.Conv1d(2, 2, 3))(replicated))
    # Without the hint the mask is padded by torch, and the key is seen.
    kept, _ = attention(tokens, tokens, tokens, need_weights=False, attn_mask=mask)
    assert torch.equal(kept, zeros)


@control
def test_fast_path_of_the_encoder_layer_ignores_the_zero_key() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    filled(layer, 8)
    x = integers(2, 3, 8)
    ways = {}
    for zero in (False, True):
        layer.self_attn.add_zero_attn = zero
        ways[zero, "training"] = layer.train()(x).detach()
        with torch.no_grad():
            ways[zero, "fast"] = layer.eval()(x)
    assert torch.equal(ways[False, "fast"], ways[True, "fast"])
    assert not torch.equal(ways[False, "training"], ways[True, "training"])
