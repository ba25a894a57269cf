"""Under a causal mask the heads of a causal convolution attend as they do without it, and the left border replicates the first token.

T22, `docs/theorems/causal_convolution_is_causal_attention.md`. The module is torch's own, run with
its causal mask; the truth is the integer oracle's convolution of the padded line.
"""  # noqa: E501, the claim is one sentence

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from constructions import stock
from constructions.stock import plan
from tests.support import oracle
from tests.support.helpers import filled, integers
from tests.support.ledger import record
from tests.support.oracle import numbers
from tests.support.proofs import claimed_equations, discharged_equations
from tests.support.strategies import integer_cases
from theory import causal_convolution_is_causal_attention as theory

SLUG = "causal_convolution_is_causal_attention"
symbolic = pytest.mark.evidence(SLUG, "symbolic")
exact = pytest.mark.evidence(SLUG, "exact")
control = pytest.mark.evidence(SLUG, "control")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def unpadded(conv: nn.Conv1d) -> nn.Conv1d:
    """The convolution without its padding."""
    bare = copy.deepcopy(conv)
    bare.padding = (0,)
    return bare


def truth_of(conv: nn.Conv1d, x: Tensor) -> oracle.Integers:
    """The exact convolution of the line, continued on the left by the convolution's border."""
    reach = conv.dilation[0] * (conv.kernel_size[0] - 1)
    weight, bias = numbers(conv.weight), conv.bias
    return oracle.convolve(
        numbers(x).astype(np.int64),
        weight.astype(np.int64),
        None if bias is None else numbers(bias).astype(np.int64),
        stride=conv.stride[0],
        padding=[(reach, 0)],
        dilation=conv.dilation[0],
        groups=conv.groups,
        padding_mode=conv.padding_mode,
    )


def is_equal(y: Tensor, truth: oracle.Integers) -> bool:
    """Whether the numbers are those of the oracle, up to the sign of zero."""
    return tuple(y.shape) == truth.shape and bool((numbers(y) == truth.astype(np.float64)).all())


@symbolic
def test_proof_runs() -> None:
    assert discharged_equations(theory.prove()) == claimed_equations(SLUG)


@exact
@DTYPES
@given(data=st.data())
def test_causal_attention_is_the_causal_convolution_bit_for_bit_on_integers(
    dtype: torch.dtype, data: st.DataObject
) -> None:
    case = data.draw(integer_cases(dtype, (nn.Conv1d,), ("zeros", "replicate")))
    conv: Any = unpadded(case.conv)  # type: ignore[arg-type]
    module = stock.multihead_attention(
        conv,
        case.x.shape[-1:],
        causal=True,
        bias=data.draw(st.booleans()),
        need_weights=data.draw(st.booleans()),
    )
    module.train(data.draw(st.booleans()))
    assert type(module.module) is nn.MultiheadAttention
    assert not module.module.add_zero_attn
    with torch.no_grad():
        assert is_equal(module(case.x), truth_of(conv, case.x))
    record(dtype=dtype)


@exact
@pytest.mark.parametrize("need_weights", [False, True])
def test_later_tokens_change_no_earlier_output(need_weights: bool) -> None:
    module = stock.multihead_attention(
        filled(nn.Conv1d(2, 3, 3, dilation=2)), 9, causal=True, need_weights=need_weights
    )
    x = integers(1, 2, 9)
    changed = x.clone()
    changed[..., 5:] = 100 - 7 * x[..., 5:]
    before, after = module(x), module(changed)
    assert torch.equal(before[..., :5], after[..., :5])
    assert not torch.equal(before, after)


@exact
@pytest.mark.parametrize("need_weights", [False, True])
def test_line_of_two_thousand_tokens_is_exact(need_weights: bool) -> None:
    conv, x = filled(nn.Conv1d(1, 1, 4)), integers(1, 1, 2000)
    module = stock.multihead_attention(conv, 2000, causal=True, need_weights=need_weights)
    assert torch.equal(module(x), conv(F.pad(x, (3, 0))))


@exact
def test_taps_that_reach_beyond_the_line_see_nothing() -> None:
    conv, x = filled(nn.Conv1d(1, 2, 4, dilation=3)), integers(1, 1, 2)
    assert torch.equal(stock.multihead_attention(conv, 2, causal=True)(x), conv(F.pad(x, (9, 0))))


# Wrong constructions ------------------------------------------------------------------------------


@control
@pytest.mark.parametrize("need_weights", [False, True])
def test_without_its_token_of_zeros_the_border_replicates_the_first_token(
    need_weights: bool,
) -> None:
    conv, x = filled(nn.Conv1d(2, 3, 3)), integers(1, 2, 6)
    module = stock.multihead_attention(conv, 6, causal=True, need_weights=need_weights)
    tokens, _, _, *rest = module.tokens(x)
    rest[2] = rest[2][1:, 1:]
    y, _ = module.module(*3 * (tokens[:, 1:],), *rest)
    found = y[..., :3].mT
    assert torch.equal(found, conv(F.pad(x, (2, 0), mode="replicate")))
    assert not is_equal(found, truth_of(conv, x))


@control
def test_no_layer_whose_rows_sum_to_one_is_it() -> None:
    # Equation (4), on the module with any scores and matrices: constants go to constants.
    conv = filled(nn.Conv1d(1, 1, 3))
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(1, 6, 4, dtype=torch.float64)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    wanted = truth_of(conv, torch.ones(1, 1, 6))[0, 0]
    assert len(set(wanted)) > 1
    for _ in range(5):
        module = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            for parameter in module.parameters():
                # Powers of two: values, their means and their sums are exact.
                exponents = torch.randint(-2, 3, parameter.shape, generator=generator)
                parameter.copy_(2.0**exponents)
        y, weights = module(ones, ones, ones, attn_mask=mask, average_attn_weights=False)
        assert weights.triu(1).count_nonzero() == 0
        # All terms are positive: two projections of 4 terms and a bias, a row of 6 weights, each
        # a quotient, and its sum, are 24 roundings at most.
        u, terms = 2.0**-53, 24
        spread = y[0].amax(0) - y[0].amin(0)
        assert (spread <= 2 * terms * u / (1 - terms * u) * y[0].abs().amax(0)).all()


@control
@given(seed=st.integers(0, 2**31), taps=st.integers(2, 4), dilation=st.integers(1, 2))
def test_layer_without_positions_is_at_its_floor_or_above(
    seed: int, taps: int, dilation: int
) -> None:
    # Equation (7), on torch's module with a causal mask and any parameters, which are positive so
    # that what its order of summation may change is a relative error.
    generator = torch.Generator().manual_seed(seed)
    conv: Any = filled(nn.Conv1d(2, 3, taps, dilation=dilation, bias=False))
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-9, 10, conv.weight.shape, generator=generator))
    reach, past = dilation * (taps - 1), taps - 1
    q = max(reach, 2 * past)
    at = [q - reach + dilation * j for j in range(past)]
    beside = [k for k in range(q) if k not in at][:past]
    first = torch.randint(0, 2, (q + 1, 2), generator=generator)
    second = first.clone()
    for tap, place, far in zip(range(past), at, beside, strict=True):
        token = (conv.weight[0, :, tap] > 0).long()
        first[place], first[far] = token, 1 - token
        second[place], second[far] = 1 - token, token
    lines = [first.T.unsqueeze(0), second.T.unsqueeze(0)]
    truths = [truth_of(conv, line.float())[0, 0, q] for line in lines]
    floor = int(conv.weight[0, :, :-1].abs().sum())
    assert abs(truths[0] - truths[1]) == floor

    attention = nn.MultiheadAttention(2, 1, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    mask = torch.ones(q + 1, q + 1, dtype=torch.bool).triu(1)
    found = []
    for line in lines:
        tokens = line.mT.double()
        with torch.no_grad():
            y, _ = attention(tokens, tokens, tokens, attn_mask=mask)
        found.append(float(y[0, q, 0]))
    # The same terms in another order: a sum of exponentials, one of values, two of channels; and
    # scores, each the sum of two products below 9, of which exponentials feel 4 roundings of 18.
    terms, u = 2 * (q + 1) + 12 + 4 * 18, 2.0**-53
    assert abs(found[0] - found[1]) <= 2 * terms * u / (1 - terms * u) * max(found)
    module = stock.multihead_attention(conv, q + 1, causal=True)  # has positions
    assert all(
        float(module(line.float())[0, 0, q].detach()) == truth
        for line, truth in zip(lines, truths, strict=True)
    )


@control
@pytest.mark.parametrize("wrong", ["future", "halved", "a head lost"])
def test_module_with_other_parameters_is_rejected(wrong: str) -> None:
    conv, x = filled(nn.Conv1d(2, 3, 3)), integers(1, 2, 6)
    module = stock.multihead_attention(conv, 6, causal=True)
    attention: Any = module.module
    with torch.no_grad():
        if wrong == "future":
            turned = plan.Plan.of(conv, 6, causal=True)
            turned.places.shifts.neg_()
            one = torch.eye(attention.embed_dim, dtype=torch.float64)
            plan.set_attention(attention, turned, plan.Layout(one[:2], one[2:5], one[:, :3]))
        elif wrong == "halved":
            for parameter in attention.parameters():
                parameter.div_(2)
        else:
            attention.out_proj.weight[:, -attention.head_dim :] = 0
    assert not is_equal(module(x), truth_of(conv, x))
